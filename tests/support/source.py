"""Source code as a syntax tree."""

import ast
import gc
from pathlib import Path


def syntax_tree(path: Path) -> ast.Module:
    """Parse a file while the garbage collector is off.

    Python 3.11 counts the depth of a tree per interpreter, not per call: a finalizer that parses too, as a formatted
    traceback does, makes it raise ``SystemError`` ("AST constructor recursion depth mismatch").
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        if enabled:
            gc.enable()
