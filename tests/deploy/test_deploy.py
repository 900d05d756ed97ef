"""deploy/: what can be told of its files without Docker, a cluster or systemd."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from mlflow import environment_variables
from mlflow.utils import crypto

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def instruction(name: str) -> list[str]:
    (value,) = re.findall(rf"^{name} (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    words: list[str] = json.loads(value)
    return words


def unit() -> Any:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "agent-gateway.service")
    return parser


(DEPLOYMENT,) = documents("kubernetes/deployment.yaml")
(CONTAINER,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
(SECRET,) = documents("kubernetes/secret.yaml")
COMPOSE = documents("compose.yaml")[0]
GATEWAY = COMPOSE["services"]["gateway"]

COMMANDS = {
    "Dockerfile": [*instruction("ENTRYPOINT"), *instruction("CMD")],
    "kubernetes": [*instruction("ENTRYPOINT"), *CONTAINER["args"]],
    "systemd": shlex.split(unit()["Service"]["ExecStart"]),
}


def mlflow_commands() -> dict[str, click.Command]:
    # Takes a second, which processes that run other tests save.
    import mlflow.cli

    commands: dict[str, click.Command] = mlflow.cli.cli.commands
    return commands


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_command_is_one_that_mlflow_takes(command: list[str]):
    """With the companion, and with nothing secret in it."""
    program, server, *options = command
    assert Path(program).name == "mlflow"
    with mlflow_commands()[server].make_context(server, options) as context:
        assert context.params["app_name"] == "agent-gateway"
        assert (context.params["port"], int(context.params["workers"]) >= 1) == (5000, True)
    assert not any("://" in option for option in options)


def variables() -> dict[str, set[str]]:
    in_unit = set(re.findall(r"\b([A-Z][A-Z_]+)=", unit()["Service"]["Environment"]))
    image = (DEPLOY / "Dockerfile").read_text().partition("\nENV ")[2].partition("\nUSER")[0]
    return {
        "compose": set(GATEWAY["environment"]),
        "kubernetes": {entry["name"] for entry in CONTAINER["env"]} | set(SECRET["stringData"]),
        "systemd": in_unit,
        "image": set(re.findall(r"^\s*([A-Z_]+)=", image, re.MULTILINE)) | {"PATH"},
        "README": set(re.findall(r"`([A-Z]+_[A-Z_]+)[`=]", (DEPLOY / "README.md").read_text())),
    }


@pytest.mark.parametrize("place", variables())
def test_each_variable_is_one_that_somebody_reads(place: str):
    """MLflow's are known to MLflow, ours to docs/configuration.md, OpenTelemetry's to OpenTelemetry."""
    known = {value.name for value in vars(environment_variables).values() if hasattr(value, "name")}
    known |= {crypto.CRYPTO_KEK_PASSPHRASE_ENV_VAR}
    known |= {str(option.envvar) for option in mlflow_commands()["server"].params if isinstance(option, click.Option)}
    known |= set(re.findall(r"`(AGENT_GATEWAY_[A-Z_]+)`", (ROOT / "docs" / "configuration.md").read_text()))
    known |= {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "LITELLM_LOCAL_MODEL_COST_MAP"}
    known |= {"HOME", "PATH", "PYTHONDONTWRITEBYTECODE", "PROMETHEUS_MULTIPROC_DIR"}
    assert variables()[place] - known == set()


def test_the_server_has_time_to_send_what_waits():
    """A stop sends waiting mirrors for up to 10 s; nothing kills the server before."""
    assert int(GATEWAY["stop_grace_period"].removesuffix("s")) > 10
    assert DEPLOYMENT["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 10
    assert int(unit()["Service"]["TimeoutStopSec"]) > 10


def test_probes_leave_time_for_the_first_start():
    """Two minutes at least: several workers import MLflow side by side. The probes' name is one that MLflow answers."""
    startup = CONTAINER["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120
    (hosts,) = (entry["value"] for entry in CONTAINER["env"] if entry["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = CONTAINER[probe]["httpGet"]
        assert get["path"] == "/health"
        assert get["port"] in {port["name"] for port in CONTAINER["ports"]}
        assert get["httpHeaders"][0]["value"] in hosts.split(",")


def test_a_service_leads_to_the_deployment():
    service, budget = documents("kubernetes/service.yaml")
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels
    assert CONTAINER["envFrom"][0]["secretRef"]["name"] == SECRET["metadata"]["name"]


def test_no_secret_is_in_the_files():
    """Those that have to be there are asked for, or say that they are to be changed."""
    for name, value in GATEWAY["environment"].items():
        if name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_CRYPTO_KEK_PASSPHRASE"):
            assert ":?set it in deploy/.env" in value
    assert all("change" in value for value in SECRET["stringData"].values())


def test_what_the_image_is_built_from_is_there():
    """The build context holds what the build copies, and little else."""
    kept = [
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for pattern in kept:
        assert list(ROOT.glob(pattern)), pattern
    (constraints,) = re.findall(r"^ARG CONSTRAINTS=(\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert (ROOT / constraints).is_file()
    assert any(Path(constraints).match(pattern) or constraints.startswith(pattern.rstrip("*")) for pattern in kept)


def test_the_package_can_be_built_in_the_image(tmp_path: Path):
    """What .dockerignore leaves in the build context is all that pip needs for the package."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for pattern in [line.removeprefix("!") for line in lines if line.startswith("!")]:
        for path in ROOT.glob(pattern):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, copy)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert len(list(tmp_path.glob("dist/*.whl"))) == 1


def test_the_collectors_pipeline_is_of_what_is_there():
    (collector,) = documents("collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])
    volumes = COMPOSE["services"]["collector"]["volumes"]
    assert all((DEPLOY / volume.partition(":")[0]).is_file() for volume in volumes)
