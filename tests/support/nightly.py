"""The size of a test: small in the usual run, large if NIGHTLY is set."""

import os

NIGHTLY = bool(os.environ.get("NIGHTLY"))


def amount(usual: int, nightly: int) -> int:
    """Return the number for this run."""
    return nightly if NIGHTLY else usual
