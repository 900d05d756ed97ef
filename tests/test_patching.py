"""_patching.py: a set of patches is on exactly while something holds it."""

import gc
import logging
import sys
import threading
from types import SimpleNamespace
from typing import Any
from weakref import finalize

import pytest

from agent_gateway_client import _log
from agent_gateway_client._patching import PatchSet, Switch, find_argument, find_patch


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log, "_warned", set())


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def doubled(original: Any, switch: Switch) -> Any:
    return lambda value: 2 * original(value) if switch.is_on else original(value)


@pytest.fixture(name="library")
def somebody_elses_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Somebody else's module with the functions ``one`` and ``two``."""
    library = SimpleNamespace(__name__="library", __spec__=None, one=lambda value: value, two=lambda value: value)
    monkeypatch.setattr("agent_gateway_client._patching.find_spec", lambda name: name == "library" or None)
    monkeypatch.setattr("agent_gateway_client._patching.import_module", lambda name: library)
    return library


def test_the_first_handle_puts_on_and_the_last_takes_off(library: Any):
    """Handles are counted by identity: adding or removing one twice is the same as once."""
    original = library.one
    patches = PatchSet({"library:one": doubled}, "nothing works")
    first, second = object(), object()
    for handle in (first, first, second):
        patches.add(handle)
    assert library.one(3) == 6
    for handle in (first, first):
        patches.remove(handle)
    assert library.one(3) == 6
    patches.remove(second)
    assert library.one is original


@pytest.mark.usefixtures("guards_hold")
def test_a_function_that_is_gone_is_said_once(library: Any, caplog: pytest.LogCaptureFixture):
    """The others are replaced; the warning names the function, the library and what is lost."""
    del library.one
    patches = PatchSet({"library:one": doubled, "library:two": doubled, "library:three?": doubled}, "nothing works")
    for _ in range(2):
        patches.add(1)
        assert library.two(3) == 6
        patches.remove(1)
    (warning,) = warnings_in(caplog)
    assert "Could not replace library:one: nothing works (AttributeError with library unknown)" in warning


@pytest.mark.usefixtures("guards_hold")
def test_a_replacement_that_cannot_be_made_is_said_once(library: Any, caplog: pytest.LogCaptureFixture):
    """A function that no longer is what the replacement expects is left as it is."""
    original = library.one

    def refuse(original: Any, switch: Switch) -> Any:
        raise AttributeError("takes no run_manager")

    patches = PatchSet({"library:one": refuse, "library:two": doubled}, "nothing works")
    patches.add(1)
    assert (library.one, library.two(3)) == (original, 6)
    patches.remove(1)
    assert len(warnings_in(caplog)) == 1


def test_the_first_place_that_exists_is_the_one(library: Any):
    """A function that has moved is found in its new place or its old one."""
    library.new = SimpleNamespace(__name__="new", one=lambda value: value)
    moved = find_patch("library:new.one|library:one", doubled)
    moved.apply()
    assert (library.new.one(3), library.one(3)) == (6, 3)
    moved.restore()
    del library.new
    stayed = find_patch("library:new.one|library:one", doubled)
    stayed.apply()
    assert library.one(3) == 6
    stayed.restore()
    with pytest.raises(AttributeError, match="three"):
        find_patch("library:new.one|library:three", doubled)
    assert find_patch("library:new.one|library:three?", doubled) is None


def test_a_missing_library_is_looked_for_once(library: Any, monkeypatch: pytest.MonkeyPatch):
    """Looking for what is not there takes long. What is installed later is replaced when it is imported by then."""
    looked_for: list[str] = []
    monkeypatch.setattr("agent_gateway_client._patching.find_spec", looked_for.append)
    original = library.one
    patches = PatchSet({"library:one": doubled, "library:two": doubled}, "nothing works")
    patches.add(1)
    patches.add(2)
    assert (looked_for, library.one) == (["library"], original)
    monkeypatch.setitem(sys.modules, "library", library)
    patches.add(3)
    assert library.one(3) == 6


def test_the_garbage_collector_may_remove_a_handle_at_any_time(library: Any):
    """Handles that are collected while this thread or another one changes the set: nothing waits, all come off."""
    original = library.one

    class Handle:
        def __init__(self) -> None:
            token = object()
            patches.add(token)
            finalize(self, patches.remove, token, wait=False)
            self.circle = self

    def collect(handles: tuple[Any, ...]) -> None:
        gc.collect(0)

    patches = PatchSet({"library:one": doubled}, "nothing works", collect)

    def use() -> None:
        for _ in range(20):
            Handle()
            patches.add(threading.get_ident())
            assert library.one(3) == 6
            patches.remove(threading.get_ident())

    threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    gc.collect()
    assert patches.handles == ()
    assert library.one is original


def test_an_argument_is_found_however_it_is_given():
    """By position, by name or not at all. A function that does not take it is an error at once."""

    def function(first: Any, second: Any = None, *, third: Any = None) -> None: ...

    second, third = find_argument(function, "other", "second"), find_argument(function, "third")
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((1, 2), {"third": 3}), ((1,), {"second": 2}), ((1,), {})]
    assert [(second(*call), third(*call)) for call in calls] == [(2, 3), (2, None), (None, None)]
    with pytest.raises(AttributeError, match="function takes no other"):
        find_argument(function, "other")
