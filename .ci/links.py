"""Links to files of the repository, made absolute where a page is read without it: on a package index, on the site.

setup.py takes README.md from here. mkdocs.yml names this file as a hook, for links that lead out of docs/.
"""

import re
import tomllib
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!\w+:|#)([^)\s]+)(?=\))")


def repository() -> str:
    """Where the files are, by pyproject.toml."""
    url: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    return url


def absolute(text: str, folder: str, stays: str | None = None) -> str:
    """A page's Markdown with absolute links.

    Args:
        text: Markdown.
        folder: Where the page lies, from the repository's root.
        stays: Links into this folder are left as they are.
    """
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "agent_gym/__init__.py").read_text(encoding="utf-8"), re.M)
    assert version

    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        path = normpath(str(PurePosixPath(folder) / target))
        if stays is not None and PurePosixPath(path).is_relative_to(stays):
            return found[0]
        return f"{image}{words}{repository()}/{'raw' if image else 'blob'}/v{version[1]}/{path}"

    return LINK.sub(link, text)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs' hook."""
    return absolute(markdown, f"docs/{PurePosixPath(page.file.src_uri).parent}", stays="docs")
