"""Text to ids and back, with what is content kept apart from control tokens.

A mark is put into every text in content that spells a control token. Templates carry it along like any other
character; a text with marks is encoded in the pieces between them, and no token reaches over a mark.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from agent_gym.lm.errors import Refused

__all__ = ["Pieces", "mark"]

_MARK = "\ufdd0"  # never a character of text, by the standard; an attacker may use it all the same
_ESCAPED = "\\ufdd0"  # as JSON and Python write it


class Pieces:
    """Ids of text that may hold marks.

    Args:
        tokenizer: Of transformers, with its fast version.

    Attributes:
        id_of: Ids of the control tokens, by their text: all added tokens but single characters and mere blanks.

    Raises:
        Refused: If there is no fast version.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._outer, self._inner = _backends(tokenizer)
        added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self.id_of = {text: id for id, text in added.items() if len(text) > 1 and text.strip(" \t\r\n\u2581")}
        self._lengths = sorted({len(text) for text in self.id_of})
        self._first = re.compile("|".join(sorted({re.escape(text[0]) for text in self.id_of})) or "(?!)")

    def controls(self, text: str) -> Iterator[tuple[int, str]]:
        """Where texts of control tokens stand, and which; those that overlap, too."""
        for first in self._first.finditer(text):
            at = first.start()
            for length in self._lengths:
                if (word := text[at : at + length]) in self.id_of:
                    yield at, word

    def cut(self, value: Any, mark: str, but: Collection[str] = ()) -> Any:
        """A copy in which ``mark`` stands after the first character of every control token's text.

        Args:
            value: Text, or messages and schemas with text in them.
            mark: See :func:`mark`.
            but: Control tokens that are left alone, if the value is text.
        """
        if isinstance(value, str):
            cuts = sorted({at + 1 for at, word in self.controls(value) if word not in but})
            return mark.join(value[a:b] for a, b in zip([0, *cuts], [*cuts, len(value)], strict=True))
        if isinstance(value, Mapping):
            return {self.cut(key, mark): self.cut(entry, mark) for key, entry in value.items()}
        return [self.cut(entry, mark) for entry in value] if isinstance(value, Sequence) else value

    def ids(self, text: str, mark: str, begins: bool = False) -> list[int]:
        """Ids of a text with marks. Unless it ``begins`` a conversation, it gains no blank from standing alone."""
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"{mark}|{re.escape(_escaped(mark))}", text)):
            head = 0
            if number or not begins:
                head = next((at for at, _ in self.controls(piece)), len(piece))
                ids += self._inner.encode(piece[:head], add_special_tokens=False).ids
            ids += self._outer.encode(piece[head:], add_special_tokens=False).ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, character by character, wherever they stand."""
        return self._inner.decode(list(ids), skip_special_tokens=False)


def mark(*values: Any) -> str:
    """A mark that stands in none of the values, however a template may escape it."""
    written = json.dumps(values, ensure_ascii=False)
    held, found = written + written.replace("\\\\", "\\"), _MARK
    while found in held or _escaped(found) in held:
        found += _MARK
    return found


def _escaped(mark: str) -> str:
    return _ESCAPED * len(mark)


def _backends(tokenizer: Any) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer for a text's beginning, and the one for what stands within a text: it puts no blank before it.

    In both, an added token is its own text alone: a normalizer could make one of text that merely looks like it.
    """
    outer = getattr(tokenizer, "backend_tokenizer", None)
    if outer is None:
        raise Refused(f"the tokenizer ({type(tokenizer).__name__}) has no fast version, a file tokenizer.json")
    outer.no_truncation()
    outer.no_padding()
    if outer.normalizer and any(token.normalized for token in tokenizer.added_tokens_decoder.values()):
        parts = json.loads(outer.to_str())
        for token in parts["added_tokens"]:
            token["normalized"] = False
        outer = Tokenizer.from_str(json.dumps(parts))
    kinds = ("normalizer", "pre_tokenizer", "decoder")
    found = {kind: json.loads(part.__getstate__()) for kind in kinds if (part := getattr(outer, kind)) is not None}
    if found.get("decoder", {}).get("type") == "ByteLevel":  # it takes nothing away, whatever it says
        del found["decoder"]
    changed = {kind: _unprefixed(part) for kind, part in found.items()}
    if changed == found:  # large vocabularies take seconds to copy
        return outer, outer
    return outer, Tokenizer.from_str(json.dumps({**json.loads(outer.to_str()), **changed}))


def _unprefixed(part: Any) -> Any:
    """A part of a tokenizer that puts no blank before a text, and takes none away."""
    if isinstance(part, list):
        return [one for one in map(_unprefixed, part) if one is not None]
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind == "Prepend" or (kind == "Strip" and "content" in part):
        return None
    scheme = {"prepend_scheme": "never"} if kind == "Metaspace" else {}
    blank = {"add_prefix_space": False} if kind == "ByteLevel" else {}
    return {key: _unprefixed(value) for key, value in part.items()} | scheme | blank
