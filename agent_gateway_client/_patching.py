"""Replaces functions of other packages and restores them exactly."""

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from agent_gateway_client._guard import Guard

_ABSENT = object()


class Switch:
    """Enables or disables a replacement.

    Attributes:
        is_on: Must be checked at each call; a disabled replacement only calls the original.
    """

    is_on = True


Replace = Callable[[Callable[..., Any], Switch], Any]
"""Makes the replacement of an original function."""


Finder = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Finds an argument among those of a call; ``None`` where it is not given."""


def find_argument(function: Callable[..., Any], *names: str) -> Finder:
    """Return what finds the argument for the first of these parameters that a function has.

    Raises:
        AttributeError: It has none of them.
    """
    parameters = list(inspect.signature(function).parameters)
    name = next((name for name in names if name in parameters), None)
    if name is None:
        raise AttributeError(f"{function.__qualname__} takes no {names[0]}")
    position = parameters.index(name)
    # Much faster than Signature.bind().
    return lambda args, kwargs: args[position] if len(args) > position else kwargs.get(name)


class _Applied(NamedTuple):
    replacement: Any
    before: Any
    switch: Switch


class Patch:
    """One replaced attribute.

    Restoring it puts back the same object. If other code has replaced the attribute again in the meantime, our
    replacement stays below theirs, disabled.

    Args:
        owner: The class or module.
        name: The name of a function.
        replace: Makes the replacement.

    Raises:
        AttributeError: The owner does not have the function.
    """

    def __init__(self, owner: Any, name: str, replace: Replace) -> None:
        if not callable(getattr(owner, name, None)):
            raise AttributeError(f"{owner.__name__} has no function {name}")
        self._owner = owner
        self._name = name
        self._replace = replace
        self._applied_replacements: list[_Applied] = []
        """Replacements that may still be called: the last is in use, the others are below those of other code."""

    def apply(self) -> None:
        """Replace the attribute. Idempotent."""
        made = self._in_place()
        if made is None:
            before = vars(self._owner).get(self._name, _ABSENT)
            original, switch = getattr(self._owner, self._name), Switch()
            made = _Applied(functools.wraps(original)(self._replace(original, switch)), before, switch)
            for covered in self._applied_replacements:
                covered.switch.is_on = False
            setattr(self._owner, self._name, made.replacement)
            self._applied_replacements.append(made)
        made.switch.is_on = True

    def restore(self) -> None:
        """Restore the attribute, unless other code has replaced it."""
        for made in reversed(self._applied_replacements):
            made.switch.is_on = False
            if vars(self._owner).get(self._name) is not made.replacement:
                continue
            if made.before is _ABSENT:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, made.before)
            self._applied_replacements.remove(made)

    def _in_place(self) -> _Applied | None:
        """Return our replacement that calls reach, also through wrappers that set ``__wrapped__``."""
        function = getattr(self._owner, self._name)
        while function is not None:
            for made in self._applied_replacements:
                if function is made.replacement:
                    return made
            function = getattr(function, "__wrapped__", None)
        return None


def find_patch(path: str, replace: Replace) -> Patch | None:
    """Return the patch of a function of an installed library.

    Args:
        path: ``module:class.function`` or ``module:function``. Alternatives for several versions of the library are
            separated by ``|``; the first that exists is used. A final ``?`` marks a function that some versions lack.
        replace: Makes the replacement.

    Returns:
        ``None`` if the library is still being imported, or lacks a function that may be missing.

    Raises:
        ImportError: The library does not have the module.
        AttributeError: The module does not have the function.
    """
    is_optional = path.endswith("?")
    *candidates, last = path.rstrip("?").split("|")
    for candidate in candidates:
        with suppress(ImportError, AttributeError):
            return _patch_at(candidate, replace)
    with suppress(*(ImportError, AttributeError) if is_optional or _is_half_imported(path) else ()):
        return _patch_at(last, replace)
    return None


def _patch_at(path: str, replace: Replace) -> Patch:
    module, _, qualified_name = path.partition(":")
    owner: Any = import_module(module)
    *classes, name = qualified_name.split(".")
    for class_name in classes:
        owner = getattr(owner, class_name)
    return Patch(owner, name, replace)


def _is_half_imported(path: str) -> bool:
    module = sys.modules.get(_library(path))
    return module is not None and getattr(module.__spec__, "_initializing", False)


def _library(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]


class PatchSet:
    """Patches that are applied while there is at least one handle.

    The first handle applies them, and removing the last one restores the functions. A function that the library no
    longer has is skipped with one warning.

    Args:
        replacements: The replacements by path, as in :func:`find_patch`.
        consequence: The end of the warning: what a missing function means for the user.
        changed: Called with all handles after each change, before patches are applied or restored.
    """

    def __init__(
        self,
        replacements: Mapping[str, Replace],
        consequence: str,
        changed: Callable[[tuple[Any, ...]], None] = lambda handles: None,
    ) -> None:
        self._replacements = replacements
        self._consequence = consequence
        self._changed = changed
        self._handles: dict[Any, None] = {}
        self._applied: tuple[Any, ...] = ()
        """The handles at the last update."""
        self._patches: dict[str, Patch] = {}
        self._found: dict[str, bool] = {}
        """Whether a library that was not imported yet is installed."""
        self._lock = threading.RLock()
        self._is_applying = False

    @property
    def handles(self) -> tuple[Any, ...]:
        """The handles in the order of their addition."""
        return tuple(self._handles)

    def add(self, handle: object) -> None:
        """Add a handle. Idempotent."""
        self._handles[handle] = None
        self._update()

    def remove(self, handle: object, *, wait: bool = True) -> None:
        """Remove a handle. Idempotent.

        Args:
            handle: The handle.
            wait: Whether to wait for another thread that is adding or removing a handle. If not, that thread does the
                update; the garbage collector must not wait.
        """
        self._handles.pop(handle, None)
        self._update(wait=wait)

    def renew(self) -> None:
        """Apply patches again that other code has undone, or whose library was still being imported."""
        with self._lock:
            if self._applied and not self._is_applying:
                self._apply_all()

    def _update(self, *, wait: bool = True) -> None:
        while self._applied != self.handles and self._lock.acquire(blocking=wait):
            try:
                if self._is_applying:
                    return  # The garbage collector interrupted this thread, which checks the handles again.
                self._is_applying = True
                try:
                    handles = self.handles
                    self._changed(handles)
                    if handles:
                        self._apply_all()
                    else:
                        self._restore_all()
                    self._applied = handles
                finally:
                    self._is_applying = False
            finally:
                self._lock.release()

    def _apply_all(self) -> None:
        for path, replace in self._replacements.items():
            if self._is_missing(_library(path)):
                continue
            with Guard(f"Could not replace {path}: {self._consequence}", _library(path).replace("_", "-")):
                patch = self._patches.get(path) or find_patch(path, replace)
                if patch is not None:
                    self._patches[path] = patch
                    patch.apply()

    def _is_missing(self, library: str) -> bool:
        """Tell whether a library is not installed. One that was installed since counts once it is imported."""
        if sys.modules.get(library) is not None:
            return False
        if library not in self._found:
            # Python takes 0.1 ms to look for what is not there.
            self._found[library] = find_spec(library) is not None
        return not self._found[library]

    def _restore_all(self) -> None:
        for patch in self._patches.values():
            patch.restore()
