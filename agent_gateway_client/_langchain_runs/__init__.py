"""Follows LangChain's runs, so that their requests carry the run's own span as parent.

In async code, the span that MLflow's autolog keeps for a run is not the active one. Runs are followed for the callback
handler and while :func:`agent_gateway_client.instrument` is active. Importing this module does not import LangChain.
"""

import sys
from importlib import import_module

from agent_gateway_client._after_import import AfterImport
from agent_gateway_client._guard import Guard

_MODELS = ("langchain_core.language_models.chat_models", "langchain_core.language_models.llms")

_METHODS = "agent_gateway_client._langchain_runs._methods"

_guard = Guard("Could not follow LangChain's runs; their requests carry a less specific parent span", "langchain-core")


class _Runs:
    """Follows all runs once the program has imported LangChain's models."""

    def __init__(self) -> None:
        self._is_on = False
        self._watcher: AfterImport | None = None

    def follow(self, is_on: bool) -> None:
        """Start or stop following runs. Idempotent. The caller must hold a lock."""
        if is_on == self._is_on:
            return
        self._is_on = is_on
        if is_on and any(_is_loaded(name) for name in _MODELS):
            self._hold()
        elif is_on:
            self._watcher = AfterImport(dict.fromkeys(_MODELS, self._hold))
        else:
            if self._watcher is not None:
                self._watcher.stop()
                self._watcher = None
            self._release()

    def _hold(self) -> None:
        with _guard:
            # Imported late, because it imports LangChain.
            methods = import_module(_METHODS)
            methods.patches.add(methods.ALL_RUNS)
            if not self._is_on:
                # Another thread has stopped it in the meantime.
                methods.patches.remove(methods.ALL_RUNS)

    def _release(self) -> None:
        methods = sys.modules.get(_METHODS)
        if methods is not None:
            methods.patches.remove(methods.ALL_RUNS)


def _is_loaded(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


runs = _Runs()
"""The process's only instance."""
