"""What the distribution's metadata says of the project's web page.

PyPI shows the README apart from the repository, where relative links lead nowhere. The page is not written down: the
release workflow sets PROJECT_URL to the repository that it runs in, so that a fork's release leads to the fork.
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
    """Adds the readme and, where PROJECT_URL is set, the project's links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the fields that pyproject.toml calls dynamic."""
        url = os.environ.get("PROJECT_URL", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        readme = with_absolute_links(text, url, f"v{version(self.root)}") if url else without_relative_links(text)
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
        metadata["urls"] = project_urls(url) if url else {}


def version(root: str) -> str:
    """Return the version that the package has."""
    text = (Path(root) / "agent_gateway_client" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    if found is None:
        raise ValueError("agent_gateway_client/_version.py has no __version__")
    return found[1]


def project_urls(url: str) -> dict[str, str]:
    """Return the links that PyPI shows beside the description."""
    return {
        "Homepage": url,
        "Documentation": f"{url}/tree/main/docs",
        "Source": url,
        "Issues": f"{url}/issues",
        "Changelog": f"{url}/blob/main/CHANGELOG.md",
    }


def with_absolute_links(text: str, url: str, tag: str) -> str:
    """Return Markdown whose relative links and images lead to a tag of the repository."""
    text = IMAGE.sub(rf"\g<1>{url}/raw/{tag}/", text)
    return LINK.sub(rf"[\1]({url}/blob/{tag}/\2)", text)


def without_relative_links(text: str) -> str:
    """Return Markdown without its relative links and images; what the links say stays."""
    return LINK.sub(r"\1", PICTURE.sub("", text))
