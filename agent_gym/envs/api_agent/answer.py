"""What an answer has to be: values by key, some of them free, or words that it has to contain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent_gym.text import fenced
from agent_gym.tools import dump, load

__all__ = ["answer_faults", "spoken"]


def _form(expected: Any) -> str | None:
    """``contains`` or ``any`` where an expectation is one of the two forms, ``{"contains": [text, ...]}`` and
    ``{"any": true}``; None for a plain value."""
    if not isinstance(expected, Mapping) or len(expected) != 1:
        return None
    texts = expected.get("contains")
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) and text.strip() for text in texts):
        return "contains"
    return "any" if expected.get("any") is True else None


def _plain(text: str) -> str:
    """Lower case, single blanks, no commas between thousands."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", " ".join(text.lower().split()))


def _missing(text: str, wanted: Sequence[str]) -> list[str]:
    """The wanted texts that do not stand in a text as words of their own: 10 does not stand in 210 or 10.5."""
    text = _plain(text)
    ends = r"(?<!\w)(?<!\d[.,]){}(?!\w|[.,]\d)"
    return [one for one in wanted if not re.search(ends.format(re.escape(_plain(one))), text)]


def _unlike(found: Any, expected: Any, path: str) -> Iterator[str]:
    """Faults of a value of an answer. A whole number does for an equal float, and nothing else for another type."""
    if (form := _form(expected)) == "any":
        return
    if form:
        text = found if isinstance(found, str) else dump(found)
        yield from (f"{path}: does not contain {dump(one)}" for one in _missing(text, expected["contains"]))
    elif isinstance(expected, dict) and isinstance(found, dict):
        yield from (f"{path}.{key}: Field required" for key in expected if key not in found)
        yield from (f"{path}.{key}: Extra inputs are not permitted" for key in found if key not in expected)
        for key in expected:
            if key in found:
                yield from _unlike(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list) and len(found) == len(expected):
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _unlike(one, other, f"{path}.{at}")
    else:
        kinds = (float, int) if type(expected) is float else (type(expected),)
        if type(found) not in kinds or found != expected:
            yield f"{path}: wrong value {dump(found)}"


def answer_faults(answer: Any, expected: Mapping[str, Any], heard: str = "") -> list[str]:
    """What is wrong with an answer.

    Args:
        answer: Text, as JSON alone or in one fenced block, or the value itself.
        expected: An object with exactly the keys of the answer. A value, here or inside of one, may be
            ``{"contains": [text, ...]}`` for a text with these words in it, or ``{"any": true}`` for whatever it is.
            The first form in the place of the whole object judges all that the agent said.
        heard: All that the agent said.
    """
    if (form := _form(expected)) == "contains":
        return list(_unlike(heard or (answer if isinstance(answer, str) else dump(answer)), expected, "answer"))
    if form:
        return []
    value = answer
    if isinstance(answer, str):
        try:
            value = load(answer)
        except ValueError:
            try:
                value = load(fenced(answer))
            except ValueError:
                value = None
    if not isinstance(value, dict):
        kind = "text that is not JSON" if isinstance(answer, str) and value is None else dump(value)[:80]
        return [f"answer: expected a JSON object with the keys {', '.join(expected)}, found {kind}"]
    return list(_unlike(value, dict(expected), "answer"))


def spoken(expected: Any) -> str:
    """An answer that is right, as the oracle gives it."""
    if expected is None or _form(expected) == "any":
        return "Done."
    if _form(expected):
        return ", ".join(expected["contains"])
    return dump(_example(expected))


def _example(expected: Any) -> Any:
    if form := _form(expected):
        return None if form == "any" else ", ".join(expected["contains"])
    if isinstance(expected, Mapping):
        return {key: _example(value) for key, value in expected.items()}
    return [_example(value) for value in expected] if isinstance(expected, list | tuple) else expected
