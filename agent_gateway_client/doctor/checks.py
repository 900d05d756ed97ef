"""The doctor's settings and the results of its checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Settings(NamedTuple):
    """The doctor's settings.

    Attributes:
        gateway: The gateway's URL: its root, the prefix of one of its APIs, or a chat route.
        model: The endpoint's or model's name, as agents send it.
        tracking_uri: The MLflow server of the agent's traces.
        api_key: The gateway's API key.
        experiment: Name of the MLflow experiment for the probe's trace.
        patience_s: Seconds to wait for spans to arrive.
        relay: URL of the relay that gets the gateway's spans; ``None`` without a relay.
    """

    gateway: str
    model: str
    tracking_uri: str
    api_key: str | None = None
    experiment: str = "agent-gateway doctor"
    patience_s: float = 30.0
    relay: str | None = None


class Check(NamedTuple):
    """The result of checking one link.

    Attributes:
        name: The check's name; see :func:`~agent_gateway_client.doctor.examine.examine`.
        ok: Whether the link works.
        detail: The finding.
        fix: What to do; ``""`` if the link works.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""

    @classmethod
    def of(cls, name: str, examine: Callable[[], str]) -> Check:
        """Run a check.

        Args:
            name: The check's name.
            examine: Checks the link; returns the finding, or raises ``Broken``.
        """
        try:
            return cls(name, True, examine())
        except Broken as broken:
            return cls(name, False, broken.detail, broken.fix)


class Broken(Exception):
    """A link is broken.

    Args:
        detail: The finding.
        fix: What to do.
    """

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix


def excerpt(text: str, length: int = 300) -> str:
    """Return the start of a server's text as one printable line."""
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in line[:length])
