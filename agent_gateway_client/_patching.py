"""Replaces an attribute of another library's class or module, and restores it exactly."""

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
    """Tells a replacement whether it is in use.

    Attributes:
        is_on: Has to be asked at each call; a replacement that is off does nothing but call the original.
    """

    is_on = True


Replace = Callable[[Callable[..., Any], Switch], Any]
"""Makes a replacement out of the original."""


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


class _Made(NamedTuple):
    replacement: Any
    before: Any
    switch: Switch


class Patch:
    """One replaced attribute.

    While it is off, either the owner has what it had before, the same object, or, where somebody else has replaced the
    attribute on top in the meantime, our replacement stays below theirs and is off.

    Args:
        owner: The class or module.
        name: The attribute, a function.
        replace: Makes the replacement.

    Raises:
        AttributeError: The owner has no such function.
    """

    def __init__(self, owner: Any, name: str, replace: Replace) -> None:
        if not callable(getattr(owner, name, None)):
            raise AttributeError(f"{owner.__name__} has no function {name}")
        self._owner = owner
        self._name = name
        self._replace = replace
        self._made: list[_Made] = []
        """What may still be called: the last is the one in use, the others are below somebody else's."""

    def put_on(self) -> None:
        """Replace the attribute; the second time is the same as once."""
        made = self._in_place()
        if made is None:
            before = vars(self._owner).get(self._name, _ABSENT)
            original, switch = getattr(self._owner, self._name), Switch()
            made = _Made(functools.wraps(original)(self._replace(original, switch)), before, switch)
            for covered in self._made:
                covered.switch.is_on = False
            setattr(self._owner, self._name, made.replacement)
            self._made.append(made)
        made.switch.is_on = True

    def take_off(self) -> None:
        """Restore the attribute, unless another library has replaced it since."""
        for made in reversed(self._made):
            made.switch.is_on = False
            if vars(self._owner).get(self._name) is not made.replacement:
                continue
            if made.before is _ABSENT:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, made.before)
            self._made.remove(made)

    def _in_place(self) -> _Made | None:
        """Return our replacement that calls still come to, below those of others who say what they wrap."""
        function = getattr(self._owner, self._name)
        while function is not None:
            for made in self._made:
                if function is made.replacement:
                    return made
            function = getattr(function, "__wrapped__", None)
        return None


def find_patch(path: str, replace: Replace) -> Patch | None:
    """Return the patch of a function of a library that is installed.

    Args:
        path: ``module:class.function`` or ``module:function``. Several places, for several versions of the library, are
            separated by ``|``; the first one that exists counts. A ``?`` at the end says that some versions have none.
        replace: Makes the replacement.

    Returns:
        ``None`` where the library is just being imported, or does not have a function that may be missing.

    Raises:
        ImportError: The library does not have the module.
        AttributeError: The module does not have the function.
    """
    is_optional = path.endswith("?")
    *others, last = path.rstrip("?").split("|")
    for place in others:
        with suppress(ImportError, AttributeError):
            return _patch_at(place, replace)
    with suppress(*(ImportError, AttributeError) if is_optional or _is_half_imported(path) else ()):
        return _patch_at(last, replace)
    return None


def _patch_at(place: str, replace: Replace) -> Patch:
    module, _, qualified_name = place.partition(":")
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
    """Patches that are on as long as anything holds them.

    The first handle puts them on, the last one that is removed takes them off. A function that the library no longer
    has is left out, with one warning.

    Args:
        replacements: What replaces each function; the keys are as in :func:`find_patch`.
        consequence: What it means for the user that a function is not replaced; ends the warning.
        changed: Called with all handles whenever one was added or removed, before the patches are put on or taken off.
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
        """The handles that the patches and ``changed`` reflect."""
        self._patches: dict[str, Patch] = {}
        self._found: dict[str, bool] = {}
        """Whether a library that was not imported yet is installed."""
        self._lock = threading.RLock()
        self._is_applying = False

    @property
    def handles(self) -> tuple[Any, ...]:
        """The handles, in the order in which they were added."""
        return tuple(self._handles)

    def add(self, handle: object) -> None:
        """Put the patches on, for this handle; the second time does nothing."""
        self._handles[handle] = None
        self._apply()

    def remove(self, handle: object, *, wait: bool = True) -> None:
        """Take the patches off if this was the last handle; the second time does nothing.

        Args:
            handle: The handle.
            wait: Whether to wait for another thread that is adding or removing a handle. If not, that thread takes the
                patches off; the garbage collector must not wait.
        """
        self._handles.pop(handle, None)
        self._apply(wait=wait)

    def renew(self) -> None:
        """Put the patches on where somebody has put back what they had found before, or a library was half imported."""
        with self._lock:
            if self._applied and not self._is_applying:
                self._put_on()

    def _apply(self, *, wait: bool = True) -> None:
        while self._applied != self.handles and self._lock.acquire(blocking=wait):
            try:
                if self._is_applying:
                    return  # The garbage collector interrupted this thread, which looks at the handles again.
                self._is_applying = True
                try:
                    handles = self.handles
                    self._changed(handles)
                    if handles:
                        self._put_on()
                    else:
                        self._take_off()
                    self._applied = handles
                finally:
                    self._is_applying = False
            finally:
                self._lock.release()

    def _put_on(self) -> None:
        for path, replace in self._replacements.items():
            if self._is_missing(_library(path)):
                continue
            with Guard(f"Could not replace {path}: {self._consequence}", _library(path).replace("_", "-")):
                patch = self._patches.get(path) or find_patch(path, replace)
                if patch is not None:
                    self._patches[path] = patch
                    patch.put_on()

    def _is_missing(self, library: str) -> bool:
        """Tell whether a library is not installed. One that was installed since counts once it is imported."""
        if sys.modules.get(library) is not None:
            return False
        if library not in self._found:
            # Python takes 0.1 ms to look for what is not there.
            self._found[library] = find_spec(library) is not None
        return not self._found[library]

    def _take_off(self) -> None:
        for patch in self._patches.values():
            patch.take_off()
