"""Text as models and files write it: lines, the one fenced block that holds an answer, and Python."""

from __future__ import annotations

import ast
import re
import threading
from typing import Any

__all__ = ["fenced", "split_lines", "syntax_tree"]

_END = re.compile(r"\r\n|\n|\r")
_FENCE = "```"
_PARSING = threading.Lock()
_LANGUAGE = re.compile(r"[\w+#.-]*[ \t]*(?:\r\n|\n|\r)|(?:json|sql)(?=[\s{\[(])", re.IGNORECASE)


def split_lines(text: str, keepends: bool = False) -> list[str]:
    """The lines of ``text``, ended by ``\\n``, ``\\r\\n`` or ``\\r`` alone, as Python and JSON lines have them.

    ``str.splitlines`` also splits at form feeds, U+2028 and others, which stand inside strings.

    Args:
        text: Any text; one that ends with a line end has no empty line after it.
        keepends: Whether the lines keep their ends.
    """
    lines, start = [], 0
    for end in _END.finditer(text):
        lines.append(text[start : end.end() if keepends else end.start()])
        start = end.end()
    if start < len(text):
        lines.append(text[start:])
    return lines


def fenced(text: str) -> str:
    """What stands in the one block of ``text`` that is fenced by three backticks, with or without words around it.

    The word after the opening fence names a language and is no part of it. The closing fence may be missing where the
    opening one starts a line: generation often stops there. Text with no such block, or with several, comes back as it
    is, without the blanks around it.
    """
    before, *parts = text.split(_FENCE, 3)
    unclosed = len(parts) == 1 and not before.rpartition("\n")[2].strip()
    if not (len(parts) == 2 or unclosed):
        return text.strip()
    language = _LANGUAGE.match(parts[0])
    return parts[0][language.end() if language else 0 :].strip()


def syntax_tree(source: str, mode: str = "exec") -> Any:
    """``ast.parse``, one thread at a time: CPython counts the depth of all threads together, so that of two at once one
    may end in a SystemError (python/cpython#106905).

    Args:
        source: Python.
        mode: As ``ast.parse`` takes it.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: As ``ast.parse``.
    """
    with _PARSING:
        return ast.parse(source, mode=mode)
