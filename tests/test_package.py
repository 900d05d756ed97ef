"""The package as it is installed: what importing it costs, its public names, and its metadata."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import agent_gateway_client
from agent_gateway_client._install import install_command
from agent_gateway_client.errors import MissingDependencyError

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "agent-gateway-client"
PUBLIC_NAMES = [
    "GatewayCallbackHandler",
    "instrument",
    "instrument_litellm",
    "show_trace",
    "trace_headers",
    "uninstrument",
    "unwrap",
    "wrap_httpx",
    "wrap_openai",
]
NEEDED_BY = {"GatewayCallbackHandler": "langchain_core", "instrument_litellm": "litellm"}
GATEWAY = "http://localhost:5000/gateway/openai/v1"


def modules_loaded_by(code: str) -> set[str]:
    """Return the top-level modules outside the standard library that a fresh interpreter loads for ``code``."""
    program = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        f"{code}\n"
        "print(json.dumps([name.partition('.')[0] for name in set(sys.modules) - before]))\n"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output)) - set(sys.stdlib_module_names)


def test_importing_the_package_loads_nothing_else():
    """import agent_gateway_client loads no MLflow, no OpenAI, no httpx: nothing outside the standard library."""
    assert modules_loaded_by("import agent_gateway_client") == {"agent_gateway_client"}
    assert modules_loaded_by("import agent_gateway_client; dir(agent_gateway_client)") == {"agent_gateway_client"}


def all_modules_loaded_by(code: str) -> set[str]:
    """Return every module that a Python with nothing loaded but itself loads for ``code``."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    # -S: what is in an environment's .pth files may load half of the standard library before.
    command = [sys.executable, "-S", "-c", program]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return set(output.split())


def test_importing_the_package_takes_few_modules():
    """import agent_gateway_client loads its own two modules; ten would be as cheap, and typing alone is twenty."""
    assert len(all_modules_loaded_by("import agent_gateway_client")) <= 10
    assert len(all_modules_loaded_by("import agent_gateway_client, typing")) > 10


def test_wrap_openai_adds_nothing_to_openai_but_the_opentelemetry_api():
    """To a program that has openai anyway, wrap_openai adds this package's own modules and OpenTelemetry's API."""
    used = f"import openai\nclient = openai.OpenAI(base_url={GATEWAY!r}, api_key='none')"
    api = all_modules_loaded_by(f"{used}\nimport opentelemetry.context, opentelemetry.trace")
    more = all_modules_loaded_by(f"{used}\nfrom agent_gateway_client import wrap_openai\nwrap_openai(client)") - api
    assert {name.partition(".")[0] for name in more} == {"agent_gateway_client"}
    assert not any(name.startswith("opentelemetry.sdk") for name in api)


def test_a_module_that_is_loaded_would_be_seen():
    """The check above can fail: a public name loads what it needs, and that is seen."""
    assert "openai" in modules_loaded_by("from agent_gateway_client import wrap_openai")


def test_wrapping_any_other_client_loads_no_openai_and_no_mlflow():
    """What does not need OpenAI's SDK or MLflow works without them."""
    loaded = modules_loaded_by("from agent_gateway_client import trace_headers, unwrap, wrap_httpx")
    assert loaded.isdisjoint({"openai", "mlflow", "httpx", "httpx2"})


def test_the_public_names_are_these():
    """__all__ and dir() are the public contract, and nothing else."""
    assert sorted(agent_gateway_client.__all__) == sorted(["__version__", *PUBLIC_NAMES])
    assert dir(agent_gateway_client) == sorted(["__version__", *PUBLIC_NAMES])


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_can_be_imported(name):
    """Each public name is there under that name, documented; without its framework, the extra to install is named."""
    if name in NEEDED_BY and importlib.util.find_spec(NEEDED_BY[name]) is None:
        with pytest.raises(MissingDependencyError, match="pip install"):
            getattr(agent_gateway_client, name)()
    value = getattr(agent_gateway_client, name)
    assert value.__name__ == name
    assert value.__doc__


def test_without_the_frameworks_the_package_can_be_looked_at():
    """import *, help() and hasattr() work in a base install; the error comes with the first use."""
    program = (
        "import pydoc, sys\n"
        "for name in ('openai', 'litellm', 'langchain_core'):\n"
        "    sys.modules[name] = None\n"
        "from agent_gateway_client import *\n"
        "import agent_gateway_client\n"
        "assert all(hasattr(agent_gateway_client, name) for name in agent_gateway_client.__all__)\n"
        "assert 'trace_headers' in pydoc.plain(pydoc.render_doc(agent_gateway_client))\n"
        "for missing in (wrap_openai, instrument_litellm, GatewayCallbackHandler):\n"
        "    try:\n"
        "        missing('http://gw.test')\n"
        "    except agent_gateway_client.errors.MissingDependencyError as error:\n"
        "        print(missing.__name__, str(error).partition(': ')[2])\n"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == [
        f"wrap_openai {install_command('openai')}",
        f"instrument_litellm {install_command('litellm')}",
        f"GatewayCallbackHandler {install_command('langchain')}",
    ]


def test_any_other_name_is_an_attribute_error():
    """A name that is not there is an AttributeError that says so, so that hasattr() and import say the usual."""
    with pytest.raises(AttributeError, match=r"module 'agent_gateway_client' has no attribute 'wrap_everything'"):
        _ = agent_gateway_client.wrap_everything


def test_the_version_is_that_of_the_distribution():
    """__version__ and the installed metadata agree."""
    assert agent_gateway_client.__version__ == metadata.version(DISTRIBUTION)


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    """A wheel has the typing marker and the licence, and no top-level package but this one."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    info = f"agent_gateway_client-{agent_gateway_client.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"agent_gateway_client", info}
    assert {"agent_gateway_client/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
