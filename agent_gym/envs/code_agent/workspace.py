"""The workspace: an immutable folder of text files that shares what did not change with the one before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import PurePosixPath
from types import MappingProxyType

from agent_gym.text import split_lines
from agent_gym.tools import ToolError

__all__ = ["Workspace"]

MOST_CHARACTERS = 200_000
"""Of one file."""
MOST_PATH = 200
"""Bytes of a path."""
LEAST_SEARCHED = 3
"""Characters of a searched text, blanks around it not counted."""
MOST_FOUND = 20
"""Lines that one search shows."""
MOST_SHOWN = 160
"""Characters of a line that a search shows, or of a name that an error repeats."""

_END = re.compile(r"\r\n|\n|\r")


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
            raise ToolError("not_found", f"there is no file {_brief(path)}; list_files shows what there is")
        return self.files[path]

    def numbered(self, path: str, start: int = 1, end: int | None = None) -> str:
        """Lines ``start`` to ``end`` (both included, from 1), each after its number.

        Raises:
            ToolError: If the file or the range does not exist.
        """
        lines = split_lines(self.text(path))
        end = len(lines) if end is None else min(end, len(lines))
        if not 1 <= start <= max(end, 1):
            raise ToolError("invalid", f"{path} has the lines 1 to {len(lines)}, not {start} to {end}")
        return "\n".join(f"{number}| {line}" for number, line in enumerate(lines[start - 1 : end], start))

    def search(self, text: str) -> str:
        """The first lines that contain ``text``, as ``path:number: line``, and how many more there are. Of a long line
        it shows the part around the text.

        Raises:
            ToolError: If the text is so short that it would show whole files.
        """
        if len(text.strip()) < LEAST_SEARCHED:
            raise ToolError("invalid", f"{_brief(text)} is too short; search for {LEAST_SEARCHED} characters or more")
        found = list(self._matches(text))
        more = [f"... and {len(found) - MOST_FOUND} more lines"] if len(found) > MOST_FOUND else []
        return "\n".join([*found[:MOST_FOUND], *more]) if found else f"no line contains {_brief(text)}"

    def _matches(self, text: str) -> Iterator[str]:
        for path in sorted(self.files):
            for number, line in enumerate(split_lines(self.files[path]), start=1):
                if (at := line.find(text)) >= 0:
                    start = max(0, at - MOST_SHOWN // 4) if len(line) > MOST_SHOWN else 0
                    shown = line[start : start + MOST_SHOWN]
                    cut = ("... " if start else "", " ..." if start + MOST_SHOWN < len(line) else "")
                    yield f"{path}:{number}: {cut[0]}{shown}{cut[1]}"

    def replaced(self, path: str, old: str, new: str) -> dict[str, str]:
        """The change that puts ``new`` in the place of ``old``. A line end matches any other; those of the file stay.

        Raises:
            ToolError: Unless ``old`` stands in the file exactly once.
        """
        text, old = _plain(self.text(path)), _plain(old)
        at = text.find(old) if old else -1
        if at < 0:
            raise ToolError(
                "conflict", f"the old text does not stand in {path}; give text that stands there exactly once"
            )
        if text.find(old, at + 1) >= 0:
            count = max(2, text.count(old))  # 2 where they overlap
            raise ToolError(
                "conflict", f"the old text stands in {path} {count} times; give text that stands there exactly once"
            )
        return self._spliced(path, at, at + len(old), new)

    def replaced_lines(self, path: str, start: int, end: int, new: str) -> dict[str, str]:
        """The change that puts ``new`` in the place of the lines ``start`` to ``end``. The file's line ends stay.

        Raises:
            ToolError: If the file or the range does not exist.
        """
        lines = split_lines(_plain(self.text(path)), keepends=True)
        if not 1 <= start <= end <= len(lines):
            raise ToolError("invalid", f"{path} has the lines 1 to {len(lines)}, not {start} to {end}")
        ended = not new or new[-1] in "\r\n" or not lines[end - 1].endswith("\n")
        begin = sum(map(len, lines[: start - 1]))
        return self._spliced(path, begin, begin + sum(map(len, lines[start - 1 : end])), new if ended else f"{new}\n")

    def written(self, path: str, text: str) -> dict[str, str]:
        """The change that makes ``text`` the whole of a file, new or not, as it stands.

        Raises:
            ToolError: If the path leaves the workspace, or a folder or a file is in its way.
        """
        if path not in self.files:
            parts = PurePosixPath(path)
            inside = re.fullmatch(r"[\w./-]+", path) and parts.parts and not parts.is_absolute()
            if not inside or str(parts) != path or ".." in parts.parts or len(path.encode()) > MOST_PATH:
                raise ToolError("invalid", f"{_brief(path)} is not a relative path such as 'helpers.py'")
            if any(one.startswith(f"{path}/") or path.startswith(f"{one}/") for one in self.files):
                raise ToolError("conflict", f"{path!r} would be a file and a folder at once")
        return self._written(path, text)

    def _spliced(self, path: str, start: int, stop: int, new: str) -> dict[str, str]:
        """The change that puts ``new`` in the place of what stands from ``start`` to ``stop`` in the plain text. Its
        line ends are those that it takes the place of; further ones are as that of the line where it begins."""
        text, new = self.files[path], _plain(new)
        plain, ends = _plain(text), _END.findall(text)
        first, last = plain.count("\n", 0, start), plain.count("\n", 0, stop)
        usual = (ends[first : first + 1] or ends[-1:] or ["\n"])[0]
        count = new.count("\n")
        ends[first:last] = [*ends[first:last], *[usual] * count][:count]
        parts: list[str] = []
        for line, end in zip((plain[:start] + new + plain[stop:]).split("\n"), [*ends, ""], strict=True):
            joined = end == "\n" and not line and parts[-1:] == ["\r"]  # the two would be one line end
            parts += [line, "\r" if joined else end]
        return self._written(path, "".join(parts))

    def _written(self, path: str, text: str) -> dict[str, str]:
        if len(text) > MOST_CHARACTERS:
            raise ToolError("invalid", f"{path} would have {len(text)} characters; {MOST_CHARACTERS} are allowed")
        return {path: text}


def _plain(text: str) -> str:
    """The text with every line end as ``\\n``: what its line numbers and an edit's old text refer to."""
    return _END.sub("\n", text)


def _brief(text: str) -> str:
    """A name that an agent gave, as an error repeats it."""
    return repr(text) if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]!r}... ({len(text)} characters)"
