"""Conversations as token ids: prompts, answers between turns, and turns, each encoded once and never again.

What a chat template can do is found out by rendering small conversations with it: the format of its tool calls,
whether it has a system and a tool role, what ends a turn. Content (requests, results, tool schemas) is encoded apart
from the template's own words, so that no content is ever read as a control token.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from agent_gym import PARSERS, Call, Parser
from agent_gym.formats import set_apart
from agent_gym.lm.errors import Refused

__all__ = ["Chat"]

Message = Mapping[str, Any]

_TODAY = datetime(2025, 1, 1)  # for every template that asks for the date
_DATES = "".join(f".replace('%{code}', '{_TODAY.strftime(f'%{code}')}')" for code in [*"aAbBdFHIjmMpSTyY", "-d", "-m"])
_CLOCK = f"{{% macro strftime_now(form) %}}{{{{ form{_DATES} }}}}{{% endmacro %}}\n"
_THOUGHT = ("<think>", "</think>")
_SWITCHES = ("enable_thinking", "thinking")
_CALL_ID = "call{:05}"  # nine letters and digits, which Mistral's templates insist on
_TURN, _NEXT = "xTURNx", "xNEXTx"  # stand for words in the conversations that are rendered to find something out
_ASK = {"role": "user", "content": "."}
_SAY = {"role": "assistant", "content": _TURN}
_PROBE = Call("find_place", {"name": _TURN})
_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE.name,
        "description": "Find a place.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}
_LISTING = 'A tool call reads <tool_call>{"name": ..., "arguments": {...}}</tool_call>. The tools:'


class _Frame(NamedTuple):
    """How the template writes an assistant turn of one kind: words, or a call."""

    turn: Message  # an example, with _TURN in it
    written: str  # what it is rendered as
    lead: str  # what stands between the end of the prompt and the model's own words
    tail: str  # and between these and the turn's end
    at: int  # where the turn's end stands after _TURN
    end: str  # the token that ends it


class Chat:
    """The codec between conversations and ids for one tokenizer and its chat template.

    Args:
        tokenizer: Of transformers, with a chat template.
        thinking: Whether the model is to think, for templates that have a switch for it; None leaves it alone.
        stops: Further ids that end a turn, such as those of the model's generation config.
        sees_tools: Whether the prompt lists the tools. A model that is to know them by heart gets no system text
            either, where the template has no place for it.

    Attributes:
        parser: Reads the calls that the template teaches; environments take it as ``parser=``.
        stops: Every id that ends a turn.
        control: Ids that no content ever has.
        eos: The id that ends a turn of words.
        pad: The id for padding.

    Raises:
        Refused: If no turn can be played with this template, and why.
    """

    def __init__(
        self, tokenizer: Any, *, thinking: bool | None = None, stops: Iterable[int] = (), sees_tools: bool = True
    ) -> None:
        if not tokenizer.chat_template:
            raise Refused("the tokenizer has no chat template; choose an instruction-tuned model")
        self.tokenizer, self.sees_tools = tokenizer, sees_tools
        self._outer, self._inner = _backends(tokenizer)
        added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self._ids = {text: id for id, text in added.items() if len(text) > 1 and text.strip(" \t\r\n\u2581")}
        self.control = frozenset(self._ids.values())
        self._lengths = sorted({len(text) for text in self._ids})
        self._first = re.compile("|".join(sorted({re.escape(text[0]) for text in self._ids})) or "(?!)")
        source = tokenizer.get_chat_template(tools=[_TOOL])
        self._template = f"{_CLOCK}{source}" if "strftime_now" in source else source
        self._options: dict[str, Any] = {}
        if thinking is not None:
            self._options = {self._switch(): thinking}
        self.stops: frozenset[int] = frozenset({tokenizer.eos_token_id, *stops} - {None})
        self._takes_system = _NEXT in (self._try([{"role": "system", "content": _NEXT}, _ASK]) or "")
        self._shows_tools = self._try([_ASK], tools=[_TOOL]) != self._render([_ASK])
        self.parser, turn = self._format()
        self._words = self._need_words()
        called = self._frame(turn, self._tool_message(_NEXT, 0))
        self._takes_results = called is not None
        self._calls = called or self._words
        after = [_ASK, self._calls.turn, self._tool_message(".", 0), {"role": "user", "content": _NEXT}]
        self._takes_both = _NEXT in (self._try(after) or "")
        self.eos: int = self._ids[self._words.end]
        self.stops |= {self.eos, self._ids[self._calls.end]}
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._markers = self._format_markers()

    # ---- conversations -----------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], tools: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant speaks.

        Raises:
            Refused: If the template cannot render it.
        """
        messages = list(messages)
        system = [messages.pop(0)["content"]] if messages and messages[0]["role"] == "system" else []
        if self.sees_tools and not self._shows_tools and tools:
            listing = "\n".join(json.dumps(tool["function"]) for tool in tools)
            system = ["\n".join([*system, f"{_LISTING}\n{listing}"])]
        if self._takes_system:
            messages[:0] = [{"role": "system", "content": words} for words in system]
        elif self.sees_tools and system:
            if not messages or messages[0]["role"] != "user":
                raise Refused("the chat template has no system role, and no user's message follows the system's")
            messages[0] = {**messages[0], "content": "\n\n".join([*system, messages[0]["content"]])}
        shown = list(tools) if self.sees_tools and self._shows_tools else []
        mark = _mark(messages, shown)
        text = self._render(self._cut(messages, mark), tools=self._cut(shown, mark) or None)
        return self._encoded(text, mark, begins=True)

    def reply(self, messages: Sequence[Message], closed: bool) -> list[int]:
        """Ids between an assistant turn and the next one.

        Args:
            messages: One tool message a result (with ``content``, and ``name`` where it is known), or a user message,
                or both in this order.
            closed: Whether the turn ended with one of ``stops``; if not, its end comes first.

        Raises:
            Refused: If the template cannot render them.
        """
        frame = self._calls if messages[0]["role"] == "tool" and self._takes_results else self._words
        mark = _mark(messages)
        text = self._render([_ASK, frame.turn, *self._cut(self._seated(messages), mark)])
        ids = self._encoded(text[text.index(_TURN) + len(_TURN) + frame.at :], mark)
        return ids[1:] if closed else ids

    def _seated(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in roles that the template has."""
        results = [one for one in messages if one["role"] == "tool"]
        others = [one["content"] for one in messages if one["role"] != "tool"]
        if not (results and self._takes_results):
            return [{"role": "user", "content": "\n".join([*(one["content"] for one in results), *others])}]
        seated: list[Any] = [{**self._tool_message("", at), **one} for at, one in enumerate(results)]
        if others and self._takes_both:
            seated.append({"role": "user", "content": "\n".join(others)})
        elif others:
            seated[-1]["content"] = "\n".join([seated[-1]["content"], *others])
        return seated

    # ---- turns -------------------------------------------------------------------------------------------------

    def spelled(self, action: str) -> list[int]:
        """Ids of a turn as the model would write it, its end included.

        Marks of the call format and of reasoning may be control tokens in it; what ends a turn or opens a role may not.
        """
        frame, mark = self._frame_of(action), _mark(action)
        text = f"{frame.lead}{self._cut(action, mark, self._markers)}{frame.tail}"
        return [*self._encoded(text, mark), self._ids[frame.end]]

    def text(self, ids: Sequence[int]) -> str:
        """What a turn says, without the stop ids at its end, and without what the template puts around every turn."""
        end = len(ids)
        while end and ids[end - 1] in self.stops:
            end -= 1
        said = self._inner.decode(list(ids[:end]), skip_special_tokens=False)
        for frame in (self._calls, self._words):
            tail = frame.tail if end < len(ids) else ""
            bare = said.removeprefix(frame.lead).removesuffix(tail)
            if f"{frame.lead}{bare}{tail}" == said and self._frame_of(bare) is frame:
                return bare
        return said

    def encode(self, text: str) -> list[int]:
        """Ids of content, none of them a control token's."""
        mark = _mark(text)
        return self._encoded(self._cut(text, mark), mark)

    def count(self, text: str) -> int:
        """Tokens of a message, its end included: what an environment charges for a turn and for a result."""
        return len(self.encode(text)) + 1

    def _frame_of(self, action: str) -> _Frame:
        return self._calls if self._calls is not self._words and self.parser.parse(action).calls else self._words

    # ---- text to ids -------------------------------------------------------------------------------------------

    def _controls(self, text: str, but: Collection[str] = ()) -> Iterator[tuple[int, str]]:
        """Where control tokens' texts stand, overlapping ones too."""
        for first in self._first.finditer(text):
            at = first.start()
            for length in self._lengths:
                if (word := text[at : at + length]) in self._ids and word not in but:
                    yield at, word

    def _cut(self, value: Any, mark: str, but: Collection[str] = ()) -> Any:
        """A copy of ``value`` in which ``mark`` stands after the first character of every control token's text."""
        if isinstance(value, str):
            cuts = sorted({at + 1 for at, _ in self._controls(value, but)})
            return mark.join(value[a:b] for a, b in zip([0, *cuts], [*cuts, len(value)], strict=True))
        if isinstance(value, Mapping):
            return {self._cut(key, mark): self._cut(entry, mark) for key, entry in value.items()}
        return [self._cut(entry, mark) for entry in value] if isinstance(value, Sequence) else value

    def _encoded(self, text: str, mark: str, begins: bool = False) -> list[int]:
        """Ids of rendered text. No token reaches over a mark, and no piece gains a blank from standing alone."""
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"{mark}|{re.escape(_escaped(mark))}", text)):
            head = 0
            if number or not begins:
                head = next((at for at, _ in self._controls(piece)), len(piece))
                ids += self._inner.encode(piece[:head], add_special_tokens=False).ids
            ids += self._outer.encode(piece[head:], add_special_tokens=False).ids
        return ids

    # ---- what the template can do ------------------------------------------------------------------------------

    def _render(self, messages: Sequence[Message], *, opens: bool = True, **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=opens,
                **self._options, **options,
            )  # fmt: skip
        except Exception as error:  # a template is a program of someone else's
            raise Refused(f"the chat template cannot render the conversation: {error}") from error

    def _try(self, messages: Sequence[Message], **options: Any) -> str | None:
        try:
            return self._render(messages, **options)
        except Refused:
            return None

    def _switch(self) -> str:
        """The name of the template's switch for thinking: the one that changes what is rendered."""
        for name in _SWITCHES:
            if self._try([_ASK], **{name: True}) != self._try([_ASK], **{name: False}):
                return name
        raise Refused("the chat template has no switch for thinking; leave `thinking` out")

    def _need_words(self) -> _Frame:
        prompt = self._render([_ASK])
        alone = self._render([_ASK, _SAY], opens=False)
        if (frame := self._frame(_SAY, {"role": "user", "content": _NEXT})) is None:
            if _TURN not in alone:
                raise Refused("the chat template leaves out what the assistant says")
            raise Refused("the chat template does not end the assistant's turn with a token; name it with `stops`")
        if prompt == self._render([_ASK], opens=False) and any(self._controls(frame.lead)):
            raise Refused("the chat template does not open the assistant's turn (it ignores add_generation_prompt)")
        return frame

    def _frame(self, turn: Message, follower: Message) -> _Frame | None:
        """How a turn is written when ``follower`` comes after it; None where one of them is lost."""
        prompt, alone = self._try([_ASK]), self._try([_ASK, turn], opens=False)
        followed = self._try([_ASK, turn, follower])
        if not (prompt and alone and followed) or not 0 <= followed.find(_TURN) < followed.find(_NEXT):
            return None
        begin = followed.index(_TURN)
        after = followed[begin + len(_TURN) : followed.index(_NEXT)]
        both = _shared(alone[alone.find(_TURN) + len(_TURN) :], after)
        own = [(at, word) for at, word in self._controls(both) if word not in self._call_words()]
        known = [(at, word) for at, word in self._controls(after) if self._ids[word] in self.stops]
        if not (own or known):
            return None
        at, end = own[-1] if own else known[0]
        written = _after(prompt, followed[: begin + len(_TURN) + at])
        lead = followed[len(prompt) : begin] if followed.startswith(prompt) else ""
        if prompt.rstrip().endswith(_THOUGHT[0]) and _THOUGHT[1] not in lead:  # the turn has to close its reasoning
            lead = f"{_THOUGHT[1]}\n\n{lead}"
        if turn is _SAY:
            return _Frame(turn, written, lead, after[:at], at, end)
        return _Frame(turn, written, _shared(self._words.lead, lead), "", at, end)

    def _format(self) -> tuple[Parser, Message]:
        """The parser of the calls that the template teaches, and a turn with such a call."""
        if not self._shows_tools:
            return PARSERS["hermes"], _SAY
        prompt, written = self._render([_ASK], tools=[_TOOL]), ""
        for content, arguments in product(("", None), (dict(_PROBE.arguments), json.dumps(_PROBE.arguments))):
            function = {"name": _PROBE.name, "arguments": arguments}
            call = {"id": _CALL_ID.format(0), "type": "function", "function": function}
            turn = {"role": "assistant", "content": content, "tool_calls": [call]}
            text = self._try([_ASK, turn], tools=[_TOOL], opens=False) or ""
            written = _after(prompt, text)
            end = next((at for at, word in self._controls(written) if self._ids[word] in self.stops), None)
            for parser in PARSERS.values():
                calls = parser.parse(set_apart(written[:end], _THOUGHT)[1]).calls
                if len(calls) == 1 and (calls[0].name, calls[0].arguments) == (_PROBE.name, _PROBE.arguments):
                    return parser, turn
            if _PROBE.name in written:
                break
        else:  # a call is words to the template, in the form that it describes
            taught = _after(self._render([_ASK]), prompt)
            taught = re.sub(r"<[\w-]*name>", '"name"', re.sub(r"<[\w-]*(?:args|arguments)[\w-]*>", "{}", taught))
            for parser in PARSERS.values():
                if any(not call.error for call in parser.parse(taught).calls):
                    return parser, _SAY
        raise Refused(
            "the chat template teaches a format of tool calls that no parser reads; "
            "register one for it with agent_gym.register_parser"
        )

    def _call_words(self) -> set[str]:
        """Control tokens that stand in calls."""
        rendered = "".join(parser.render("", [_PROBE]) for parser in PARSERS.values())
        return {word for _, word in self._controls(rendered)}

    def _format_markers(self) -> frozenset[str]:
        """Control tokens that a turn may hold: those of calls and of reasoning, without ends and roles."""
        calls = self.parser.render("", [_PROBE]) + self._calls.written
        frames = self._render([_ASK, _SAY, _ASK])
        mine = {word for _, word in self._controls(calls)} - {word for _, word in self._controls(frames)}
        return frozenset(word for word in {*mine, *_THOUGHT} if self._ids.get(word) not in self.stops)

    @staticmethod
    def _tool_message(content: str, number: int) -> Message:
        return {"role": "tool", "name": _PROBE.name, "tool_call_id": _CALL_ID.format(number), "content": content}


def _shared(one: str, other: str) -> str:
    """How both begin."""
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:at]


def _after(prompt: str, text: str) -> str:
    """What a text goes on with after a prompt, or after what it has of it: a line, or a tag, is not torn apart."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    shared = _shared(prompt, text)
    return text[max(map(shared.rfind, "\n>]")) + 1 :]


def _mark(*values: Any) -> str:
    """A text that stands in none of the values, however they are escaped."""
    written = json.dumps(values, ensure_ascii=False)
    held, mark = written + written.replace("\\\\", "\\"), "\ufdd0"
    while mark in held or _escaped(mark) in held:
        mark += "\ufdd0"
    return mark


def _escaped(mark: str) -> str:
    return "\\ufdd0" * len(mark)


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
