"""``agent-gateway demo``: agents and a real gateway on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from agent_gateway_client._install import install_command
from agent_gateway_client.cli._signals import Signals
from agent_gateway_client.errors import MissingDependencyError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from agent_gateway_client.demo.agents import SentCall
    from agent_gateway_client.demo.gateway import DemoGateway

_NEEDS = {"mlflow": "mlflow.server", "openai": "openai", "httpx": "httpx"}
_EXTRAS = ("cli", "openai", "mlflow-gateway")
_FILE_COLUMNS = 240


class Outcome(NamedTuple):
    """The result of the demo.

    Attributes:
        experiment_id: MLflow experiment of the agent's traces.
        verdicts: One object per call, as ``demo --json`` prints it.
    """

    experiment_id: str
    verdicts: list[dict[str, Any]]

    @property
    def closed(self) -> int:
        """Number of closed calls."""
        return sum(verdict["closed"] for verdict in self.verdicts)

    @property
    def all_closed(self) -> bool:
        """Whether there are calls and all are closed."""
        return 0 < len(self.verdicts) == self.closed


@click.command(short_help="Run an agent and a gateway here, and show their traces.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the trees.")
@click.option("--keep", is_flag=True, help="Keep MLflow's UI running until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of MLflow; by default a free one.")
def demo(json_output: bool, keep: bool, port: int | None) -> None:
    """Run an agent through a gateway on this machine and show the joined traces.

    Starts MLflow with its AI Gateway and a local model provider, runs an OpenAI agent with tool calls,
    streams, concurrent async calls, a fallback and a failure, and prints its traces as trees. Needs no API
    key and no network.

    The exit status is 0 only if every call is closed, that is, its gateway spans are in the right place in
    the agent's trace.
    """
    from rich.console import Console
    from rich.text import Text

    _check_packages()
    _clear_user_settings()
    # In JSON mode stdout has only the object.
    console = Console(stderr=json_output)
    if not console.is_terminal:
        # The default of 80 columns would truncate the trees in a file or a pipe.
        console.width = _FILE_COLUMNS
    status = console.status("Loading MLflow ...")

    def progress(sentence: str) -> None:
        # A terminal shows one line that changes; a file or a pipe gets one line per step.
        if console.is_terminal:
            status.update(Text(sentence))
        else:
            console.print(Text(sentence))

    with Signals() as signals, status:
        from agent_gateway_client.demo.gateway import DemoGateway

        gateway = DemoGateway(port=port, progress=progress)

        def clean_up() -> None:
            status.stop()
            gateway.stop()

        try:
            outcome = signals.run(lambda: _run(gateway, progress), clean_up)
            status.stop()
            if json_output:
                _print_json(gateway, outcome)
            else:
                _print_trees(console, gateway, outcome)
            url = f"{gateway.tracking_uri}/#/experiments/{outcome.experiment_id}/traces"
            if keep:
                console.print(Text(f"MLflow's UI runs until you press Ctrl-C: {url}"), soft_wrap=True)
                signals.wait()
            elif not json_output:
                console.print(Text(f"MLflow's UI was at {url}; with --keep it stays up."), soft_wrap=True)
        finally:
            clean_up()
    raise SystemExit(0 if outcome.all_closed else 1)


def _run(gateway: DemoGateway, progress: Callable[[str], None]) -> Outcome:
    import mlflow

    from agent_gateway_client.demo import agents, verdict

    gateway.start()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(gateway.tracking_uri)
    experiment_id = mlflow.set_experiment(agents.EXPERIMENT).experiment_id
    calls: list[SentCall] = []
    for instrumentation in ("autolog", "start_span"):
        agent = agents.Agent(gateway.openai_base_url, instrumentation)
        agent.run(lambda step, by=instrumentation: progress(f"The agent ({by}) {step} ..."))  # type: ignore[misc]
        calls += agent.calls
    progress("Waiting for the gateway's spans ...")
    mlflow.flush_trace_async_logging()
    client = mlflow.MlflowClient(gateway.tracking_uri)
    return Outcome(experiment_id, verdict.wait_for_verdicts(client, calls))


def _print_json(gateway: DemoGateway, outcome: Outcome) -> None:
    from agent_gateway_client.demo import verdict

    click.echo(verdict.as_json(gateway.tracking_uri, outcome.experiment_id, outcome.verdicts))


def _print_trees(console: Console, gateway: DemoGateway, outcome: Outcome) -> None:
    from rich.text import Text

    from agent_gateway_client.cli.tree import trace_tree
    from agent_gateway_client.traces.read import read_joined

    for trace_id in dict.fromkeys(v["trace_id"] for v in outcome.verdicts if v["trace_id"]):
        # A missing trace is reported below, as the reason of its calls.
        with contextlib.suppress(NotFoundError):
            # Without the linked traces, which would double the length; `agent-gateway trace` shows them.
            console.print(trace_tree(read_joined(trace_id, gateway.tracking_uri)._replace(linked={})))
            console.print()
    for v in outcome.verdicts:
        if not v["closed"]:
            call = f"{v['mode']} call of {v['endpoint']} ({v['instrumentation']})"
            console.print(Text(f"Not closed: {call}: {v['reason']}", style="red"))
    style = "bold green" if outcome.all_closed else "bold red"
    console.print(Text(f"{outcome.closed} of {len(outcome.verdicts)} calls are closed.", style=style))


def _check_packages() -> None:
    missing = [package for package, module in _NEEDS.items() if not _is_there(module)]
    if missing:
        raise MissingDependencyError(f"the demo needs {', '.join(missing)}: {install_command(*_EXTRAS)}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _clear_user_settings() -> None:
    """Remove settings from this process's environment that would send the demo's traces elsewhere."""
    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "_MLFLOW_", "OTEL_", "AGENT_GATEWAY_"))]:
        del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
