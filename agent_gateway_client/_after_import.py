"""Runs a function after the program has imported a package, so that unused packages are not imported."""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class AfterImport(MetaPathFinder):
    """Calls functions after packages are imported; immediately for those that are imported already.

    Args:
        actions: The functions, by the name of a package or module. They must not raise.
    """

    def __init__(self, actions: dict[str, Callable[[], None]]) -> None:
        self._actions = dict(actions)
        self._here = threading.local()
        for name in [name for name in actions if name in sys.modules]:
            self.imported(name)
        sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Stop calling functions."""
        self._actions.clear()
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a package as Python does, and wrap its loader."""
        if fullname not in self._actions or getattr(self._here, "name", None) == fullname:
            return None
        self._here.name = fullname
        try:
            spec = find_spec(fullname)
        finally:
            self._here.name = None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def imported(self, name: str) -> None:
        """Call the function for a package that was imported."""
        action = self._actions.pop(name, None)
        if action is not None:
            action()


class _Loader(Loader):
    """Wraps a package's loader."""

    def __init__(self, inner: Any, watcher: AfterImport) -> None:
        self._inner = inner
        self._watcher = watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._inner.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        module.__loader__ = self._inner
        self._inner.exec_module(module)
        self._watcher.imported(module.__name__)
