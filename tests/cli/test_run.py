"""``agent-gateway run``: programs that do not know this package, as seen by the gateway."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from agent_gateway_client.auto import AgentGatewayInstrumentor
from tests.support.http_server import HttpServer

ROOT = Path(__file__).parents[2]
TRACEPARENT = f"00-{0xA:032x}-{0xB:016x}-01"
SPAN = """
import sys
from opentelemetry import context, trace
remote = trace.NonRecordingSpan(trace.SpanContext(0xA, 0xB, True, trace.TraceFlags(1)))
context.attach(trace.set_span_in_context(remote))
url = sys.argv[-1]
"""

PROGRAMS = {
    "requests": """
        import requests
        requests.get(url)
    """,
    "openai": """
        import openai
        try:
            openai.OpenAI(api_key="key", base_url=url, max_retries=0).models.list()
        except Exception:
            pass  # The answer is empty.
    """,
    "litellm": """
        import litellm
        try:
            litellm.completion("openai/m", messages=[], api_base=url, api_key="key", max_retries=0)
        except Exception:
            pass
        from litellm.litellm_core_utils.litellm_logging import Logging
        assert hasattr(Logging.__init__, "__wrapped__")
    """,
    "langchain_openai": """
        from langchain_openai import ChatOpenAI
        try:
            ChatOpenAI(model="m", base_url=url, api_key="key", max_retries=0).invoke("hi")
        except Exception:
            pass
        from langchain_core.callbacks import CallbackManager
        names = [type(handler).__name__ for handler in CallbackManager.configure().handlers]
        assert names.count("GatewayCallbackHandler") == 1
    """,
    "httpx": """
        import inspect, httpx
        assert "class Client" in inspect.getsource(httpx._client)
        assert type(httpx.__spec__.loader) is type(inspect.__spec__.loader)
        httpx.get(url, trust_env=False)
    """,
}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


def agent_gateway(
    *arguments: str, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line; nothing but what it is given names a gateway."""
    variables = {name: value for name, value in os.environ.items() if name != "AGENT_GATEWAY_URLS"}
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    command = [python, "-c", "from agent_gateway_client.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=variables)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(body: str, name: str = "program.py") -> str:
        (tmp_path / name).write_text(SPAN + dedent(body))
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", [name for name in PROGRAMS if find_spec(name)])
def test_an_unchanged_program_is_joined(name: str, server: HttpServer, write: Any):
    """Its requests to the gateway carry the span's header, with LiteLLM's and LangChain's adapters on."""
    ended = agent_gateway(
        "run", "--gateway", server.gateway, "--", sys.executable, write(PROGRAMS[name]), server.gateway
    )
    assert ended.returncode == 0, ended.stderr
    assert "not instrumented" not in ended.stderr
    assert server.sent() == [[TRACEPARENT]] * len(server.requests)
    assert server.requests


def test_python_m_and_child_processes(server: HttpServer, write: Any, tmp_path: Path):
    """``python -m`` is covered, a child process is, and a sitecustomize that was there is run once in each."""
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    write(PROGRAMS["requests"], "child.py")
    write("import subprocess\nsubprocess.run([sys.executable, '-m', 'child', url], check=True)\n", "parent.py")
    python_path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = agent_gateway(
        *("run", sys.executable, "-m", "parent", server.gateway),
        PYTHONPATH=python_path,
        AGENT_GATEWAY_URLS=server.gateway,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    # The command itself is Python too.
    assert ended.stdout.split() == ["theirs"] * 3
    assert server.sent() == [[TRACEPARENT]]


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_exit_status_is_the_programs(status: int):
    """Also where nothing that sends requests is imported, which then is not imported by us."""
    program = f"import sys; assert not {{'httpx', 'urllib3', 'mlflow'}} & set(sys.modules); sys.exit({status})"
    ended = agent_gateway("run", "--gateway", "http://gw.test", "--", sys.executable, "-c", program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_ends_it_as_it_would():
    """A program that is killed is seen as killed."""
    program = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    ended = agent_gateway("run", "--gateway", "http://gw.test", "--", sys.executable, "-c", program)
    assert ended.returncode == -signal.SIGTERM


def test_what_is_wrong_is_said():
    """Without a gateway, with a bad one, or without such a program: one line, and a status as shells have it."""
    without = agent_gateway("run", "--", "true")
    assert (without.returncode, "Give --gateway or set AGENT_GATEWAY_URLS" in without.stderr) == (2, True)
    bad = agent_gateway("run", "--gateway", "localhost:5000", "--", "true")
    assert (bad.returncode, bad.stderr.startswith("Error: 'localhost:5000' has no scheme")) == (1, True)
    missing = agent_gateway("run", "--gateway", "http://gw.test", "--", "no-such-program")
    assert (missing.returncode, missing.stderr) == (127, "Error: no-such-program: No such file or directory\n")


def test_opentelemetrys_entry_point(server: HttpServer, write: Any):
    """What ``opentelemetry-instrument`` does with an entry point instruments the program, and undoes it."""
    program = write("""
        from agent_gateway_client.auto import AgentGatewayInstrumentor
        AgentGatewayInstrumentor().instrument(skip_dep_check=True)
        import requests
        requests.get(url)
        AgentGatewayInstrumentor().uninstrument()
        requests.get(url)
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AGENT_GATEWAY_URLS": server.gateway}
    subprocess.run([sys.executable, program, server.gateway], check=True, timeout=120, env=environment)
    assert server.sent() == [[TRACEPARENT], []]
    assert list(AgentGatewayInstrumentor().instrumentation_dependencies()) == []


def test_a_jupyter_kernel(server: HttpServer, tmp_path: Path):
    """The kernel of a notebook is a child process, and what its cells send is covered."""
    nbformat = pytest.importorskip("nbformat")
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed)
    cell = SPAN.replace("sys.argv[-1]", repr(server.gateway)) + "import requests\nrequests.get(url)\n"
    notebook = tmp_path / "agent.ipynb"
    cells = [nbformat.v4.new_code_cell(cell)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), notebook)
    execute = "import nbclient, nbformat, sys; nbclient.execute(nbformat.read(sys.argv[1], 4))"
    ended = agent_gateway("run", "--gateway", server.gateway, "--", sys.executable, "-c", execute, str(notebook))
    assert ended.returncode == 0, ended.stderr
    assert server.sent() == [[TRACEPARENT]]


def test_the_entry_point_is_declared():
    """pip tells ``opentelemetry-instrument`` of it."""
    declared = '[project.entry-points.opentelemetry_instrumentor]\nagent-gateway = "'
    target = (ROOT / "pyproject.toml").read_text().partition(declared)[2].partition('"')[0]
    assert target == f"{AgentGatewayInstrumentor.__module__.rpartition('.')[0]}:{AgentGatewayInstrumentor.__name__}"
