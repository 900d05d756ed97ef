"""Python imports this at start, because ``agent-gateway run`` adds this directory to ``PYTHONPATH``.

The environment's own ``sitecustomize`` is run first.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _run_the_other() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    path = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        other = module_from_spec(spec)
        sys.modules["sitecustomize"] = other
        spec.loader.exec_module(other)


try:
    _run_the_other()
finally:
    try:
        from agent_gateway_client.auto import start
    except ImportError as error:
        print(f"agent-gateway run: {sys.executable} has no agent-gateway-client ({error})", file=sys.stderr)
    else:
        start()
