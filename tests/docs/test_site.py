"""mkdocs.yml: the site has every page, and every page of it is there. ``mkdocs build --strict`` checks its links."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.source import syntax_tree

ROOT = Path(__file__).parents[2]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(entry)


def patterns() -> tuple[str, ...]:
    """The pages that docs/site/pages.py collects; it needs MkDocs to be imported."""
    tree = syntax_tree(ROOT / "docs" / "site" / "pages.py")
    (value,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "PAGES")
    found: tuple[str, ...] = ast.literal_eval(value)
    return found


def test_the_navigation_has_every_page_once():
    listed = list(pages_of(SITE["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.relative_to(ROOT).as_posix() for pattern in patterns() for path in ROOT.glob(pattern)}


def test_nothing_is_fetched_from_elsewhere():
    assert SITE["theme"]["font"] is False
    text = (ROOT / "mkdocs.yml").read_text()
    assert "http://" not in text
    assert "https://" not in text
