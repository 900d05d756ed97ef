"""What MkDocs does for this site: its pages are the repository's files, in the folders in which they are.

So that each page reads the same in the repository and on the site, links stay as they are: one to a folder leads to its
README, and one to a file that is no page, like a guide's program, to that file.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/*.md", "integrations/README.md", "integrations/*/README.md", "notebooks/README.md",
         "benchmarks/README.md", "deploy/README.md")  # fmt: skip
_LINK = re.compile(r"(?P<before>\]\(|\b(?:src|srcset|href)=\")(?P<target>[^)\"#:\s]+)(?P<after>[)\"#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and each file that one of them links to."""
    pages = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    linked = {target for page in pages for target in _targets(page) if target.is_file()}
    for path in sorted(pages | linked):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to folders to the README in them."""
    folder = (ROOT / page.file.src_uri).parent

    def readme(match: re.Match[str]) -> str:
        target = match["target"]
        if (folder / target / "README.md").is_file():
            target = f"{target.rstrip('/')}/README.md"
        return f"{match['before']}{target}{match['after']}"

    return _LINK.sub(readme, markdown)


def _targets(page: Path) -> set[Path]:
    return {(page.parent / match["target"]).resolve() for match in _LINK.finditer(page.read_text(encoding="utf-8"))}
