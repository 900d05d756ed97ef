"""The install command in error messages about missing packages."""

from __future__ import annotations

NAME = "agent-gateway-client"


def install_command(*extras: str) -> str:
    """Return the command that adds extras to this installation, from its source: a checkout, a repository, an index.

    Args:
        extras: Names of extras, like ``openai``.
    """
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    wanted = f"[{','.join(extras)}]"
    try:
        # PEP 610: pip and uv write it for installations that are not from an index.
        source = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        source = {}
    url = source.get("url", "")
    if "vcs_info" in source:
        vcs = source["vcs_info"]
        return f"pip install '{NAME}{wanted} @ {vcs['vcs']}+{url}@{vcs['commit_id']}'"
    if "dir_info" in source and url.startswith("file://"):
        editable = "--editable " if source["dir_info"].get("editable") else ""
        return f"pip install {editable}'{_path(url)}{wanted}'"
    return f"pip install '{NAME}{wanted}'"


def _path(url: str) -> str:
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return url2pathname(urlsplit(url).path)
