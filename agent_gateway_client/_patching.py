"""Replaces an attribute of somebody else's class or module, and puts it back exactly."""

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from agent_gateway_client._log import version_of, warn_once

_ABSENT = object()


class Switch:
    """Tells a replacement whether it is in use.

    Attributes:
        is_on: Has to be asked at each call; a replacement that is off does nothing but call the original.
    """

    is_on = True


Replace = Callable[[Callable[..., Any], Switch], Any]
"""Makes a replacement out of the original."""


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
        """Put the attribute back, unless it is somebody else's by now."""
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


def find_patch(path: str, replace: Replace, consequence: str) -> Patch | None:
    """Return the patch of a function of a library.

    Args:
        path: ``module:class.function``, or ``module:function``.
        replace: Makes the replacement.
        consequence: What is to be said, once, where the library does not have the function.

    Returns:
        ``None`` where the library is not installed or does not have the function.
    """
    module, _, qualified_name = path.partition(":")
    library = module.partition(".")[0]
    try:
        if find_spec(library) is None:
            return None
        owner: Any = import_module(module)
        *classes, name = qualified_name.split(".")
        for class_name in classes:
            owner = getattr(owner, class_name)
        return Patch(owner, name, replace)
    except Exception as error:  # a library that is broken, or no longer what it was, is no reason to stop the program
        warn_once(
            path,
            "%s %s is not what this version of agent-gateway-client expects (%s: %s): %s. "
            "Upgrade agent-gateway-client.",
            library,
            version_of(library),
            type(error).__name__,
            error,
            consequence,
        )
        return None
