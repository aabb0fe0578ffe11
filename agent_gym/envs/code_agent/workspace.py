"""The workspace: an immutable folder of text files that shares what did not change with the one before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import PurePosixPath
from types import MappingProxyType

from agent_gym.tools import ToolError

__all__ = ["Workspace"]

MOST_CHARACTERS = 200_000
"""Of one file."""


@lru_cache(maxsize=4096)
def _digest(path: str, text: str) -> int:
    data = f"{len(path)}:{path}{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=16).digest(), "big")


class Workspace:
    """Files by path. A change is a delta: the new text by path.

    Args:
        files: Text by relative path.
    """

    __slots__ = ("_hash", "files")

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = MappingProxyType(dict(files))
        self._hash: str | None = None

    @property
    def hash(self) -> str:
        """A function of paths and texts alone."""
        if self._hash is None:  # the sum does not depend on the order of the files
            total = sum(_digest(path, text) for path, text in self.files.items()) % (1 << 128)
            self._hash = f"{total:032x}"
        return self._hash

    def apply(self, delta: Mapping[str, str]) -> Workspace:
        """The workspace with some files written; the others are shared."""
        return Workspace({**self.files, **delta})

    def __reduce__(self) -> tuple[type[Workspace], tuple[dict[str, str]]]:
        return Workspace, (dict(self.files),)

    # ---- what the tools do -----------------------------------------------------------------------------------------

    def text(self, path: str) -> str:
        """A file's text.

        Raises:
            ToolError: If there is no such file.
        """
        if path not in self.files:
            raise ToolError("not_found", f"there is no file {path!r}; there are {', '.join(sorted(self.files))}")
        return self.files[path]

    def numbered(self, path: str, start: int = 1, end: int | None = None) -> str:
        """Lines ``start`` to ``end`` (both included, from 1), each after its number.

        Raises:
            ToolError: If the file or the range does not exist.
        """
        lines = self.text(path).splitlines()
        end = len(lines) if end is None else min(end, len(lines))
        if not 1 <= start <= max(end, 1):
            raise ToolError("invalid", f"{path} has the lines 1 to {len(lines)}, not {start} to {end}")
        return "\n".join(f"{number}| {line}" for number, line in enumerate(lines[start - 1 : end], start))

    def search(self, text: str) -> str:
        """Every line that contains ``text``, as ``path:number: line``."""
        found = list(self._matches(text))
        return "\n".join(found[:50]) if found else f"no line contains {text!r}"

    def _matches(self, text: str) -> Iterator[str]:
        for path in sorted(self.files):
            for number, line in enumerate(self.files[path].splitlines(), start=1):
                if text in line:
                    yield f"{path}:{number}: {line}"

    def replaced(self, path: str, old: str, new: str) -> dict[str, str]:
        """The change that puts ``new`` in the place of ``old``.

        Raises:
            ToolError: Unless ``old`` stands in the file exactly once.
        """
        text = self.text(path)
        count = text.count(old) if old else 0
        if count != 1:
            what = f"stands in {path} {count} times" if count else f"does not stand in {path}"
            raise ToolError("conflict", f"the old text {what}; give text that stands there exactly once")
        return self._written(path, text.replace(old, new))

    def replaced_lines(self, path: str, start: int, end: int, new: str) -> dict[str, str]:
        """The change that puts ``new`` in the place of the lines ``start`` to ``end``.

        Raises:
            ToolError: If the file or the range does not exist.
        """
        lines = self.text(path).splitlines(keepends=True)
        if not 1 <= start <= end <= len(lines):
            raise ToolError("invalid", f"{path} has the lines 1 to {len(lines)}, not {start} to {end}")
        block = new if not new or new.endswith("\n") else f"{new}\n"
        return self._written(path, "".join([*lines[: start - 1], block, *lines[end:]]))

    def written(self, path: str, text: str) -> dict[str, str]:
        """The change that makes ``text`` the whole of a file, new or not.

        Raises:
            ToolError: If the path leaves the workspace.
        """
        parts = PurePosixPath(path)
        if str(parts) != path or parts.is_absolute() or ".." in parts.parts or not re.fullmatch(r"[\w./-]+", path):
            raise ToolError("invalid", f"{path!r} is not a relative path such as 'helpers.py'")
        if path not in self.files and any(
            one.startswith(f"{path}/") or path.startswith(f"{one}/") for one in self.files
        ):
            raise ToolError("conflict", f"{path!r} would be a file and a folder at once")
        return self._written(path, text)

    def _written(self, path: str, text: str) -> dict[str, str]:
        if len(text) > MOST_CHARACTERS:
            raise ToolError("invalid", f"{path} would have {len(text)} characters; {MOST_CHARACTERS} are allowed")
        return {path: text}
