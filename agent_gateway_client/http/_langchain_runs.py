"""Follows LangChain's runs while :func:`instrument` is active, if the program uses langchain-core.

In async code, the span that MLflow's autolog keeps for a run is not the active one. LangChain is not imported here
before the program has imported its models.
"""

import sys
from importlib import import_module

from agent_gateway_client._after_import import AfterImport
from agent_gateway_client._guard import Guard

_MODELS = ("langchain_core.language_models.chat_models", "langchain_core.language_models.llms")

_ADAPTER = "agent_gateway_client.langchain._methods"

_guard = Guard("Could not follow LangChain's runs; their requests carry a less specific parent span", "langchain-core")


class _Runs:
    """Holds LangChain's patches, at most once."""

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
            # Imported late: the adapter imports this package.
            patches = import_module(_ADAPTER).patches
            patches.add(self)
            if not self._is_on:
                # Another thread has stopped it in the meantime.
                patches.remove(self)

    def _release(self) -> None:
        methods = sys.modules.get(_ADAPTER)
        if methods is not None:
            methods.patches.remove(self)


def _is_loaded(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


runs = _Runs()
"""The process's only instance."""
