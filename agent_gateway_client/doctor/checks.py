"""The doctor's settings and the results of its checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Settings(NamedTuple):
    """What is to be examined.

    Attributes:
        gateway: The gateway's URL: its root, the prefix of one of its APIs, or a chat route.
        model: The endpoint's or model's name, as an agent asks for it.
        tracking_uri: Where the agent's traces go.
        api_key: What the gateway asks its callers for.
        experiment: Name of the MLflow experiment for the probe's trace.
        patience_s: Seconds to wait for spans to arrive.
        relay: URL of the relay that the gateway's spans go to; ``None`` where there is none.
    """

    gateway: str
    model: str
    tracking_uri: str
    api_key: str | None = None
    experiment: str = "agent-gateway doctor"
    patience_s: float = 30.0
    relay: str | None = None


class Check(NamedTuple):
    """One link of the chain.

    Attributes:
        name: Its name; see :func:`~agent_gateway_client.doctor.examine.examine`.
        ok: Whether it holds.
        detail: What was seen.
        fix: What to do; ``""`` where it holds.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""

    @classmethod
    def of(cls, name: str, examine: Callable[[], str]) -> Check:
        """Make a check.

        Args:
            name: Its name.
            examine: Looks at the link; returns what was seen, or raises ``Broken``.
        """
        try:
            return cls(name, True, examine())
        except Broken as broken:
            return cls(name, False, broken.detail, broken.fix)


class Broken(Exception):
    """A link does not hold.

    Args:
        detail: What was seen.
        fix: What to do.
    """

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix


def excerpt(text: str, length: int = 300) -> str:
    """Return the beginning of what a server said, on one printable line."""
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in line[:length])
