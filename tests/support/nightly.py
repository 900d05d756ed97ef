"""How much a test does: little in the usual run, and much where NIGHTLY is set."""

import os

NIGHTLY = bool(os.environ.get("NIGHTLY"))


def amount(usual: int, nightly: int) -> int:
    """Return the number for this run."""
    return nightly if NIGHTLY else usual
