"""Adds the project's web page to the distribution's metadata.

PyPI shows the README without the repository, so relative links lead nowhere. The page's URL is not in the code: the
release workflow sets PROJECT_URL to the repository that it runs in, so that a fork's release links to the fork.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"<picture>.*?</picture>\n*|!\[[^]]*\]\((?!\w+:)[^)]*\)\n*", re.DOTALL)
LINK = re.compile(r"\[([^]]+)\]\((?!\w+:|#)([^)]*)\)")
IMAGE = re.compile(r'(!\[[^]]*\]\(|(?:src|srcset)=")(?!\w+:)')


class ProjectPage(MetadataHookInterface):
    """Adds the readme and, if PROJECT_URL is set, the project's links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the fields that pyproject.toml declares as dynamic."""
        url = os.environ.get("PROJECT_URL", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        readme = with_absolute_links(text, url, f"v{version(self.root)}") if url else without_relative_links(text)
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
        metadata["urls"] = project_urls(url) if url else {}


def version(root: str) -> str:
    """Return the package's version."""
    text = (Path(root) / "agent_gateway_client" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    if found is None:
        raise ValueError("agent_gateway_client/_version.py has no __version__")
    return found[1]


def project_urls(url: str) -> dict[str, str]:
    """Return the links that PyPI shows next to the description."""
    return {
        "Homepage": url,
        "Documentation": f"{url}/tree/main/docs",
        "Source": url,
        "Issues": f"{url}/issues",
        "Changelog": f"{url}/blob/main/CHANGELOG.md",
    }


def with_absolute_links(text: str, url: str, tag: str) -> str:
    """Return Markdown with its relative links and images pointing to a tag of the repository."""
    text = IMAGE.sub(rf"\g<1>{url}/raw/{tag}/", text)
    return LINK.sub(rf"[\1]({url}/blob/{tag}/\2)", text)


def without_relative_links(text: str) -> str:
    """Return Markdown without its relative links and images; the text of the links is kept."""
    return LINK.sub(r"\1", PICTURE.sub("", text))
