"""A real LiteLLM Proxy in a separate process, in front of the local model provider."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from agent_gateway_client.demo._port import KEEP_ALIVE_S, Reservation
from agent_gateway_client.demo._server import NOT_INHERITED
from tests.support import warm_python
from tests.support.gateways import MODELS, Column

MIRROR = "agent_gateway_client.server.litellm_proxy.mirror"
MASTER_KEY = "sk-there-is-no-secret-in-here-5f1c7a90b2"
DEADLINE_S = 120.0
STOP_DEADLINE_S = 60.0

OPENAI_MODELS: dict[str, list[str]] = {
    **{group: models[:1] for group, models in MODELS.items()},
    "cached": ["gpt-4o-mini-cached"],
    "slow": ["gpt-4o-mini-slow"],
    "limited": ["gpt-4o-mini-fail-429"],
    "two-fallbacks": ["gpt-4o-fail-503"],
    "retried": ["gpt-4o-fail-502", "gpt-4o-mini"],
    "any/*": ["*"],
}
"""Model groups whose deployments have OpenAI's API, in the order in which LiteLLM should try them."""

ANTHROPIC_MODELS = {"claude": "claude-3-5-haiku-20241022", "failing-claude": "claude-fail-500"}

MLFLOW_MODELS = {"mlflow": "chat", "mlflow-fallback": "failing"}
"""Model groups that are endpoints of MLflow's gateway."""

ENGINE_MODEL = "llama"
"""A model group whose deployment is a model server, with the model of the same name."""


def configuration(
    provider_url: str, callbacks: Any = MIRROR, *, gateway_url: str | None = None, engine_url: str | None = None
) -> dict[str, Any]:
    """Return a proxy's configuration.

    Args:
        provider_url: The local model provider.
        callbacks: LiteLLM's callbacks.
        gateway_url: The OpenAI API of an MLflow AI Gateway that serves some of the models.
        engine_url: A model server that serves one of the models.
    """
    openai_provider = {"api_base": f"{provider_url}/v1", "api_key": "none"}
    models = [
        {"model_name": group, "litellm_params": {"model": f"openai/{model}", "order": order, **openai_provider}}
        for group, names in OPENAI_MODELS.items()
        for order, model in enumerate(names, 1)
    ]
    fallbacks = [{"fallback": ["chat"]}, {"two-fallbacks": ["failing", "chat"]}]
    if gateway_url:
        gateway = {"api_base": gateway_url, "api_key": "none"}
        models += [
            {"model_name": group, "litellm_params": {"model": f"openai/{endpoint}", **gateway}}
            for group, endpoint in MLFLOW_MODELS.items()
        ]
        fallbacks.append({"mlflow-fallback": ["mlflow"]})
    if engine_url:
        engine = {"model": f"hosted_vllm/{ENGINE_MODEL}", "api_base": f"{engine_url}/v1", "api_key": "none"}
        models.append({"model_name": ENGINE_MODEL, "litellm_params": engine})
    models += [
        {
            "model_name": group,
            "litellm_params": {"model": f"anthropic/{model}", "api_base": provider_url, "api_key": "none"},
        }
        for group, model in ANTHROPIC_MODELS.items()
    ]
    return {
        "model_list": models,
        "litellm_settings": {
            "callbacks": callbacks,
            "telemetry": False,
            "cache": True,
            "cache_params": {"type": "local", "mode": "default_off"},
        },
        # For requests that ask for the cache.
        "guardrails": [
            {
                "guardrail_name": "words",
                "litellm_params": {
                    "guardrail": "litellm_content_filter",
                    "mode": "pre_call",
                    "blocked_words": [{"keyword": "forbidden", "action": "BLOCK"}],
                },
            }
        ],
        "router_settings": {
            "num_retries": 0,
            "retry_after": 0,
            # A deployment that fails in one test must not be skipped in the next.
            "disable_cooldowns": True,
            "fallbacks": fallbacks,
        },
        "general_settings": {
            "cancel_on_disconnect": True,
            "forward_client_headers_to_llm_api": True,
            "pass_through_endpoints": [
                {"path": "/raw", "target": f"{provider_url}/v1", "include_subpath": True, "headers": {}, "auth": True}
            ],
        },
    }


class LiteLLMProxy:
    """A running proxy on 127.0.0.1, as a context manager, without a database and without telemetry.

    Args:
        directory: The folder for its configuration and its output.
        config: Its configuration, or the file with it.
        port: TCP port; 0 takes a free one.
        environment: Variables for it, such as ``MLFLOW_TRACKING_URI``.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any] | Path, port: int = 0, **environment: str) -> None:
        self.log_path = directory / "litellm.log"
        self._directory = directory
        self._config_path = config if isinstance(config, Path) else directory / "config.yaml"
        if not isinstance(config, Path):
            # JSON is valid YAML.
            self._config_path.write_text(json.dumps(config, indent=1))
        self._port = port
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> "LiteLLMProxy":
        reserved = Reservation(self._port)
        self.url = f"http://127.0.0.1:{reserved.port}"
        try:
            self._process = self._spawn(reserved.port)
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.stop()
            raise
        finally:
            reserved.release()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the proxy as an operator does, and then every process that it may have left behind."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_DEADLINE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    @property
    def column(self) -> Column:
        """Its address, its key, and what is particular to it."""
        return Column(f"{self.url}/v1", MASTER_KEY, reads_one_line=True)

    def httpx_client(self, headers: dict[str, str] | None = None) -> httpx.Client:
        """Return a wrapped httpx client for all of the proxy's routes."""
        return self.column._replace(url=self.url).httpx_client(headers)

    def log(self) -> str:
        """Return the proxy's output so far."""
        return self.log_path.read_text(errors="replace")

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
        own = {
            "LITELLM_MASTER_KEY": MASTER_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONUNBUFFERED": "1",
        }
        litellm = str(Path(sys.executable).with_name("litellm"))
        command = [warm_python.interpreter(), litellm, "--config", str(self._config_path)]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port), "--keepalive_timeout", str(KEEP_ALIVE_S)],
                cwd=self._directory,
                env={**inherited, **own, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline:
                assert process.poll() is None, f"litellm ended with status {process.returncode}:\n{self.log()[-3000:]}"
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health/readiness").status_code == httpx.codes.OK:
                        return
                time.sleep(0.1)
        raise AssertionError(f"litellm did not answer within {DEADLINE_S:.0f} s:\n{self.log()[-3000:]}")
