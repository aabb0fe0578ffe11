"""Plain data as flat tagged JSON, and frames on a socket. Both sides use this file; the standard library is enough.

A value is a list of tokens in postorder, so that neither side recurses: ``[1, (2.5,)]`` is
``[1, ["f", "0x1.4p+1"], ["t", 1], ["l", 2]]``. A token of a subclass carries the name of its class as a third element.
Whatever is not plain data becomes ``["o", class name]``: nothing but the builtin types below is ever built from it,
except where the one who reads says how (see ``special`` and ``build``).
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

__all__ = ["BUILD", "REPLY_BYTES", "Foreign", "Malformed", "TooLarge", "containers", "decode", "describe", "encode",
           "pack", "unpack"]  # fmt: skip

REPLY_BYTES = 1 << 20
"""Cap on what one call may return, in bytes of its JSON, where nothing else is said."""

DEPTH = 400
"""Deepest nesting: comparing, hashing and printing a value must not exhaust the grader's stack."""

COLLIDING = 64
MOST_STEPS = 1 << 20
"""Longest range that is built: a test may make a list of it."""
MOST_DIGITS = 10_000
"""Of a Decimal, before or behind the point: a test may make an int of it."""

_SEQUENCES = {"l": list, "t": tuple, "s": set, "z": frozenset}
_COUNTED = ("l", "t", "s", "z", "d", "x")
_TAGS = {kind: tag for tag, kind in _SEQUENCES.items()}
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEADER = struct.Struct(">I")


class TooLarge(ValueError):
    """The value exceeds the cap on bytes or depth."""


class Malformed(ValueError):
    """Not what :func:`encode` writes."""


class Foreign:
    """Stands for an object that is not plain data; equal to nothing, not even itself.

    Args:
        name: What its class calls itself.
    """

    __slots__ = ("name",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _base(kind: type) -> type | None:
    """The plain type that ``kind`` is or derives from. The MRO is read through ``type``: a class may lie about it."""
    for base in type.__dict__["__mro__"].__get__(kind):
        if base in _PLAIN:
            return base
    return None


_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))


def encode(
    value: Any, limit: int = REPLY_BYTES, special: Callable[[Any], tuple[str, list[Any]] | None] | None = None
) -> list[Any]:
    """The tokens of ``value``.

    Args:
        value: Anything; what is not plain data is replaced by its class's name.
        limit: Cap on the size of the JSON, in bytes.
        special: The name and the parts of an object that is not plain data, which become ``["x", count, name]``; with
            the name ``""`` a list of the parts. None for an object that is to be replaced by its class's name.

    Raises:
        TooLarge: For a value above the cap, or deeper than ``DEPTH`` (a cycle is).
    """
    tokens: list[Any] = []
    stack: list[tuple[bool, Any]] = [(False, value)]
    size = depth = 0
    while stack:
        closing, item = stack.pop()
        if closing:
            tokens.append(item)
            depth -= 1
            continue
        kind = type(item)
        base: Any = kind if kind in _PLAIN else _base(kind)
        mark = [] if kind is base else [type.__dict__["__name__"].__get__(kind)[:80]]
        size += 4
        known = special(item) if base is None and special is not None else None
        if known is not None:
            depth += 1
            if depth > DEPTH:
                raise TooLarge(f"nested more than {DEPTH} deep, or a cycle")
            name, parts = known
            size += 8 + len(name)
            stack.append((True, ["x", len(parts), name] if name else ["l", len(parts)]))
            stack.extend([(False, part) for part in reversed(parts)])
            continue
        if base is None:
            token: Any = ["o", *mark]
        elif base in (bool, type(None)):
            token = item
        elif base is int:
            if size + int.bit_length(item) // 4 > limit:
                raise TooLarge(f"more than {limit} bytes")
            small = int.bit_length(item) <= 53 and not mark
            token = item if small else ["i", int.__format__(item, "x"), *mark]
            size += int.bit_length(item) // 3
        elif base is float:
            token = ["f", float.hex(item), *mark]
            size += 24
        elif base is complex:
            numbers = [complex.__dict__[part].__get__(item) for part in ("real", "imag")]  # a subclass may lie
            token = ["c", *map(float.hex, numbers), *mark]
            size += 48
        elif base is str:
            size += str.__len__(item)
            text = str.__str__(item)
            if not text.isascii() and _SURROGATE.search(text):  # JSON would join a pair of them
                token = ["p", base64.b64encode(text.encode("utf-8", "surrogatepass")).decode(), *mark]
            else:
                token = ["u", text, *mark] if mark else text
        elif base is bytes:
            size += bytes.__len__(item) * 4 // 3
            token = ["b", base64.b64encode(item).decode() if size < limit else "", *mark]
        else:
            depth += 1
            if depth > DEPTH:
                raise TooLarge(f"nested more than {DEPTH} deep, or a cycle")
            size += 8
            if size + 2 * base.__len__(item) > limit:
                raise TooLarge(f"more than {limit} bytes")
            parts = (
                [part for pair in list(dict.items(item)) for part in pair]
                if base is dict
                else list(base.__iter__(item))
            )
            stack.append((True, ["d", len(parts) // 2, *mark] if base is dict else [_TAGS[base], len(parts), *mark]))
            stack.extend([(False, part) for part in reversed(parts)])
            continue
        if size > limit:
            raise TooLarge(f"more than {limit} bytes")
        tokens.append(token)
    return tokens


def describe(item: Any) -> tuple[str, list[Any]] | None:
    """A ``special`` of :func:`encode`: values of the standard library that a test may compare or go through."""
    kind: Any = type(item)
    if kind is range:
        return "range", [item.start, item.stop, item.step]
    if kind is Fraction:
        return "Fraction", [item.numerator, item.denominator]
    if kind in (Decimal, datetime, time):
        return kind.__name__, [str(item) if kind is Decimal else item.isoformat()]
    if kind is date:
        return "date", [item.year, item.month, item.day]
    if kind is timedelta:
        return "timedelta", [item.days, item.seconds, item.microseconds]
    if kind is type({}.keys()):
        return "keys", [dict.fromkeys(item)]
    if kind is type({}.values()):
        return "values", [list(item)]
    if kind is type({}.items()):
        return "items", [dict(item)]
    return None


def _range(start: int, stop: int, step: int) -> range:
    found = range(start, stop, step)
    if not -MOST_STEPS < start - stop < MOST_STEPS and len(found) > MOST_STEPS:
        raise ValueError(f"a range of more than {MOST_STEPS} numbers")
    return found


def _decimal(text: str) -> Decimal:
    found = Decimal(text)
    if found.is_finite() and abs(found.adjusted()) > MOST_DIGITS:
        raise ValueError(f"a Decimal of more than {MOST_DIGITS} digits")
    return found


BUILD: dict[str, Callable[..., Any]] = {
    "range": _range, "Fraction": Fraction, "Decimal": _decimal, "date": date, "datetime": datetime.fromisoformat,
    "time": time.fromisoformat, "timedelta": timedelta, "keys": lambda held: dict.keys(held),
    "values": lambda held: dict(enumerate(held)).values(), "items": lambda held: dict.items(held),
}  # fmt: skip
"""A ``build`` of :func:`decode`: the inverse of :func:`describe`."""


def containers(value: Any) -> list[Any]:
    """The lists, dicts and sets in a value, each before what it holds; equal values give them in equal order."""
    found: list[Any] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) in (list, dict, set):
            found.append(item)
        if type(item) in (list, tuple):
            stack.extend(item)
        elif type(item) is dict:
            stack.extend(item.values())
    return found


def decode(tokens: Any, exact: bool = True, build: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """The value that ``tokens`` spell.

    Args:
        tokens: As :func:`encode` returns them, from a source that is not trusted.
        exact: What is not of exactly a plain type becomes a :class:`Foreign`. Otherwise an instance of a subclass
            becomes its plain base.
        build: What makes the objects of :func:`encode`'s ``special`` from their parts, by name.

    Raises:
        Malformed: For anything :func:`encode` would not have written, and for keys chosen to collide.
    """
    if type(tokens) is not list:
        raise Malformed("a value is a list of tokens")
    stack: list[tuple[Any, int]] = []  # (value, its depth)
    try:
        for token in tokens:
            if token is None or type(token) in (bool, str, int):
                stack.append((token, 0))
                continue
            if type(token) is not list or not token:
                raise Malformed("an unknown token")
            tag, *rest = token
            value: Any = None
            depth = 0
            used = 0 if tag == "o" else 2 if tag in ("c", "x") else 1
            texts = rest[1:] if tag in _COUNTED else rest
            if len(rest) not in (used + (tag == "o"), used + 1) or not all(type(text) is str for text in texts):
                raise Malformed("a token of the wrong shape")
            if tag == "i":
                value = int(rest[0], 16)
            elif tag == "f":
                value = float.fromhex(rest[0])
            elif tag == "c":
                value = complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
            elif tag == "u":
                value = rest[0]
            elif tag == "p":
                value = base64.b64decode(rest[0], validate=True).decode("utf-8", "surrogatepass")
            elif tag == "b":
                value = base64.b64decode(rest[0], validate=True)
            elif tag == "o":
                value = Foreign(str(rest[0]))
            elif tag in _COUNTED:
                count = rest[0] * 2 if tag == "d" else rest[0]
                if type(count) is not int or not 0 <= count <= len(stack):
                    raise Malformed("a container of items that are not there")
                taken = stack[len(stack) - count :]
                del stack[len(stack) - count :]
                items = [item for item, _ in taken]
                depth = 1 + max((below for _, below in taken), default=0)
                if depth > DEPTH:
                    raise Malformed(f"nested more than {DEPTH} deep")
                if tag in "dsz" and items:
                    most = max(Counter(map(hash, items[::2] if tag == "d" else items)).values())
                    if most > COLLIDING:
                        raise Malformed("keys that collide on purpose")
                if tag == "x":
                    value = build[rest[1]](*items) if build is not None and rest[1] in build else Foreign(rest[1])
                else:
                    value = dict(zip(items[::2], items[1::2], strict=True)) if tag == "d" else _SEQUENCES[tag](items)
            else:
                raise Malformed("an unknown tag")
            if exact and len(rest) > used:
                value, depth = Foreign(rest[used]), 0
            stack.append((value, depth))
    except Malformed:
        raise
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise Malformed(f"not a value: {error}") from None
    if len(stack) != 1:
        raise Malformed("not one value")
    return stack[0][0]


def pack(message: Any) -> bytes:
    """A frame: the length in four bytes, then JSON in ASCII (half a surrogate pair is an escape there)."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _HEADER.pack(len(body)) + body


def unpack(read: Any, limit: int | None = None) -> Any:
    """The next frame's message.

    Args:
        read: ``read(n)`` gives exactly ``n`` bytes, or raises.
        limit: Cap on the length, in bytes.

    Raises:
        TooLarge: If the frame announces more than ``limit``.
        Malformed: If it is not JSON.
    """
    (length,) = _HEADER.unpack(read(_HEADER.size))
    if limit is not None and length > limit:
        raise TooLarge(f"a reply of {length} bytes; {limit} is the cap")
    try:
        return json.loads(read(length))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
