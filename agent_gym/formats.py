"""How models write a turn: reasoning, words, and tool calls in one of several formats.

Parsers never raise on any input: what cannot be read as a call becomes a call that carries its own error, which
the environment charges for and answers in words.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent_gym.text import fenced
from agent_gym.tools import Call, dump, load, load_at

__all__ = [
    "PARSERS", "HermesParser", "LlamaParser", "MistralParser", "OpenAIParser", "Parser", "QwenCoderParser", "Turn",
    "canonical_text", "foreign_format", "register_parser", "set_apart",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn: free text and any number of calls. Without a call it is the final answer.

    Args:
        text: The words, without the calls and without the blanks around them.
        calls: In the order in which they were written.
        reasoning: What was set apart before the rest was read, with its tags.
    """

    text: str
    calls: tuple[Call, ...] = ()
    reasoning: str = field(default="", compare=False)


class Parser(Protocol):
    """Text to turn and back; ``parse`` accepts every string."""

    def parse(self, action: str) -> Turn:
        """The turn that ``action`` spells."""
        ...

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """An action that parses back to ``text`` (without the blanks around it) and ``calls``."""
        ...


# ---- reasoning ---------------------------------------------------------------------------------------------------

_OPENERS = re.compile(r"\A|<tool_call>|<\|python_tag\|>|\[TOOL_CALLS\](?:[^\[\]{}<>]*\[ARGS\])?|(<parameter=[^<>]*>)")
_NEXT_OBJECT = re.compile(r"\s*;\s*(?=\{)")


def _json_end(action: str, start: int) -> int:
    """Where the JSON that starts there ends, with the objects that semicolons separate from it; ``start`` for none."""
    end = start
    try:
        end = load_at(action, start)[1]
        while following := _NEXT_OBJECT.match(action, end):
            end = load_at(action, following.end())[1]
    except ValueError:
        pass
    return end


def _arguments_spans(action: str) -> Iterator[tuple[int, int]]:
    """Where well-formed arguments of calls stand: a tag within them is data."""
    end, last = 0, action.rfind("</parameter>")
    for opener in _OPENERS.finditer(action):
        start = opener.end()
        if opener.start() < end:
            continue
        if not opener[1]:
            stop = _json_end(action, start)
        else:
            stop = action.find("</parameter>", start) if start <= last else start
        if stop > start:
            yield start, stop
            end = stop


def set_apart(action: str, tags: Sequence[str] | None) -> tuple[str, str]:
    """Split a turn into its reasoning and the rest, which alone is read.

    A block is closed by the first closing tag. A closing tag without an opening one ends reasoning that a chat template
    had opened: all before it is reasoning. A block that is never closed goes on to the end. A tag inside the JSON or
    the parameter of a call is data.

    Args:
        action: The turn as written.
        tags: The opening and the closing tag, or None for no reasoning at all.

    Returns:
        The reasoning with its tags, and the rest.
    """
    if tags is None or (tags[0] not in action and tags[1] not in action):
        return "", action
    opening, closing = tags
    spans = _arguments_spans(action)
    span = next(spans, None)
    thought: list[str] = []
    said: list[str] = []
    start, inside, message_end = 0, False, 0
    for mark in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", action):
        while span is not None and span[1] <= mark.start():
            span = next(spans, None)
        if mark.start() < message_end or (span is not None and span[0] <= mark.start()):
            continue
        if mark[0] == closing:
            thought.append(action[start : mark.end()])
            start, inside = mark.end(), False
            message_end = _json_end(action, start)  # a message as JSON may follow
        elif not inside:
            said.append(action[start : mark.start()])
            start, inside = mark.start(), True
    (thought if inside else said).append(action[start:])
    return "".join(thought), "".join(said)


# ---- calls -------------------------------------------------------------------------------------------------------


def _call(value: Any, written: str, id: Any = None) -> Call:
    """A call from its JSON object; arguments come as an object or as a JSON string of one."""
    id = id if isinstance(id, str) else None

    def refused(name: Any, error: str) -> Call:
        return Call(name if isinstance(name, str) else "", id=id, error=error, written=written)

    if not isinstance(value, dict):
        return refused("", 'a tool call must be a JSON object with "name" and "arguments"')
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return refused("", 'a tool call needs a "name" that is a string')
    given = [key for key in ("arguments", "parameters") if key in value]
    if unknown := [key for key in value if key not in ("name", "arguments", "parameters")]:
        return refused(name, f'{name}: unknown key "{unknown[0]}": a tool call has "name" and "arguments" alone')
    if len(given) == 2:
        return refused(name, f'{name}: give "arguments" or "parameters", not both')
    arguments = value[given[0]] if given else {}
    if isinstance(arguments, str):
        try:
            arguments = load(arguments) if arguments.strip() else {}
        except ValueError as error:
            return refused(name, f'{name}: "{given[0]}" is not valid JSON: {error}')
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return refused(name, f'{name}: "{given[0]}" must be a JSON object, not {type(arguments).__name__}')
    return Call(name, arguments, id)


class _Escape:
    """Lets text hold the words that start a call: their first character becomes an entity, at any depth."""

    def __init__(self, *words: str, only_at_start: bool = False) -> None:
        ahead = "|".join(f"(?={re.escape(word[1:])})" for word in words)
        self._first, anchor = words[0][0], r"\A" if only_at_start else ""
        self.entity = f"&#{ord(self._first)};"
        entities = f"&(?:amp;)*{self.entity[1:]}"
        self._out = re.compile(f"{anchor}(?:{re.escape(self._first)}|{entities})(?:{ahead})")
        self._in = re.compile(f"{anchor}{entities}(?:{ahead})")

    def write(self, text: str) -> str:
        """``text`` without the words."""
        return self._out.sub(lambda found: self.entity if found[0] == self._first else f"&amp;{found[0][1:]}", text)

    def read(self, text: str) -> str:
        """What :meth:`write` was given."""
        return self._in.sub(lambda found: self._first if found[0] == self.entity else f"&{found[0][5:]}", text)


_TAG = "<tool_call>"
_TAG_END = "</tool_call>"
_TAGS = re.compile("</?tool_call>")
_INNER = re.compile(r"<(?=/?tool_call>)")


def _body(call: Call, key: str = "arguments") -> str:
    """A call as JSON that holds no tag: many readers take one for the end, and JSON can spell it otherwise."""
    return _INNER.sub(r"\\u003c", dump({"name": call.name, key: call.arguments}))


class HermesParser:
    """The Hermes/Qwen form: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them.

    The last tag may be unclosed: generation often stops there.
    """

    _escape = _Escape(_TAG)

    def parse(self, action: str) -> Turn:
        """See :class:`Parser`."""
        calls, texts, end = [], [], 0
        while (start := action.find(_TAG, end)) >= 0:
            texts.append(action[end:start])
            call, end = self._read(action, start + len(_TAG))
            calls.append(call)
        text = "".join([*texts, action[end:]]).strip()
        return Turn(self._escape.read(text), tuple(calls))

    def _read(self, action: str, start: int) -> tuple[Call, int]:
        """The call whose body starts at ``start``, and where the text goes on."""
        value, after, fault = None, start, ""
        try:
            value, after = load_at(action, start)
        except ValueError as error:
            fault = str(error)
        tag = _TAGS.search(action, after)
        body_end = tag.start() if tag else len(action)
        end = tag.end() if tag and tag[0] == _TAG_END else body_end
        written = action[start:body_end]
        if not fault and action[after:body_end].strip():
            fault = f"there is more text after the object: {action[after:body_end].strip()[:40]!r}"
        if fault:
            other = "; this is Qwen3-Coder's form, not JSON" if written.lstrip().startswith("<function=") else ""
            return Call("", error=f"the tool call is not valid JSON: {fault}{other}", written=written), end
        return _call(value, written), end

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """See :class:`Parser`."""
        tags = (f"{_TAG}{_body(call)}{_TAG_END}" for call in calls)
        return "\n".join(part for part in (self._escape.write(text), *tags) if part)


class QwenCoderParser:
    """Qwen3-Coder's form: ``<tool_call><function=NAME><parameter=KEY>`` value ``</parameter></function></tool_call>``.

    Every value is text; the environment reads it as the tool's parameter wants it. Without a tool at hand, a value on
    lines of its own that is JSON is read as JSON, any other value as text.
    """

    _start = re.compile(r"(?:<tool_call>\s*)?<function=([^<>]*)>|<tool_call>")
    _parameter = re.compile(r"\s*<parameter=([^<>]*)>")
    _end = re.compile(r"\s*(</function>)?\s*(</tool_call>)?")
    _value_end = "</parameter>"
    _escape = _Escape(_TAG, "<function=")
    _inner = _Escape(_value_end)

    def parse(self, action: str) -> Turn:
        """See :class:`Parser`."""
        calls, texts, end = [], [], 0
        last = action.rfind(self._value_end)
        while start := self._start.search(action, end):
            texts.append(action[end : start.start()])
            call, end = self._read(action, start, last)
            calls.append(call)
        text = "".join([*texts, action[end:]]).strip()
        return Turn(self._escape.read(text), tuple(calls))

    def _read(self, action: str, start: re.Match[str], last: int) -> tuple[Call, int]:
        """The call that starts there, and where the text goes on."""
        name, at = html.unescape(start[1] or ""), start.end()
        arguments: dict[str, Any] = {}
        raw: dict[str, str] = {}
        while parameter := self._parameter.match(action, at):
            begin = parameter.end()
            if begin <= last:
                stop = action.index(self._value_end, begin)
                at = stop + len(self._value_end)
                text = action[begin:stop]
            else:  # generation stopped there
                at = len(action)
                text = f"{action[begin:].rstrip()}\n"
            key = html.unescape(parameter[1])
            arguments[key], raw[key] = self._value(self._inner.read(text))
        closing = self._end.match(action, at)
        assert closing is not None  # it matches nothing, too
        end, fault = closing.end(), ""
        if not name:
            fault = "it has no <function=name>"
        elif not (closing[1] or closing[2] or end == len(action) or self._start.match(action, end)):
            fault = f"{name!r}: expected <parameter=key> or </function>, found {action[end : end + 40]!r}"
        if fault:
            following = self._start.search(action, end)
            end = following.start() if following else len(action)
            other = "; this is JSON, not Qwen3-Coder's form" if action[at:end].lstrip()[:1] == "{" else ""
            fault = f"the tool call cannot be read: {fault}{other}"
        elif not _encodes(dump([name, arguments])):
            fault = f"{name!r}: half a surrogate pair is no text"
        if fault:
            return Call(name, error=fault, written=action[start.start() : end]), end
        return Call(name, arguments, raw=raw), end

    @staticmethod
    def _value(text: str) -> tuple[Any, str]:
        """A value as it is read without a schema, and its text."""
        if len(text) < 2 or text[0] != "\n" or text[-1] != "\n":
            return text, text
        text = text[1:-1]
        try:
            return (load(text) if text == text.strip() else text), text
        except ValueError:
            return text, text

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """See :class:`Parser`."""
        blocks = (
            f"<tool_call>\n<function={html.escape(call.name, quote=False)}>\n"
            + "".join(self._spelled(key, value) for key, value in call.arguments.items())
            + "</function>\n</tool_call>"
            for call in calls
        )
        return "\n".join(part for part in (self._escape.write(text), *blocks) if part)

    def _spelled(self, key: str, value: Any) -> str:
        text = value if isinstance(value, str) else dump(value)
        framed = f"\n{text}\n"
        if isinstance(value, str) and self._value(framed)[0] != value:
            framed = text  # on a line of its own it would be read as JSON
        return f"<parameter={html.escape(key, quote=False)}>{self._inner.write(framed)}{self._value_end}\n"


class LlamaParser:
    """Llama 3's JSON form: ``{"name": ..., "parameters": {...}}``, with or without ``<|python_tag|>`` before it.

    Several calls are separated by semicolons.
    """

    _tag = "<|python_tag|>"
    _between = re.compile(r"(?:\s|;|<\|python_tag\|>)*")
    _begun = re.compile(
        r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"[^"]*"\s*,\s*"(?:parameters|arguments)"\s*:'
    )
    _escape_tag, _escape_object = _Escape(_tag), _Escape("{", only_at_start=True)

    def parse(self, action: str) -> Turn:
        """See :class:`Parser`."""
        text, tag, _ = action.partition(self._tag)
        calls: tuple[Call, ...] = ()
        if tag:
            calls, rest = self._read(action, len(text) + len(tag), True)
            text += rest
        elif action.lstrip()[:1] == "{":
            calls, text = self._read(action, 0, False)
        return Turn(self._escape_object.read(self._escape_tag.read(text.strip())), calls)

    def _read(self, action: str, at: int, tagged: bool) -> tuple[tuple[Call, ...], str]:
        """The calls from ``at`` on, and what is left of the text."""
        calls: list[Call] = []
        at = self._between.match(action, at).end()  # type: ignore[union-attr]
        while at < len(action) and (action[at] == "{" or (tagged and not calls)):
            try:
                value, end = load_at(action, at)
            except ValueError as error:
                if not (tagged or calls or self._begun.match(action, at)):
                    break
                fault = f"the tool call is not valid JSON: {error}"
                calls.append(Call("", error=fault, written=action[at:]))
                return tuple(calls), ""
            if isinstance(value, dict) and value.get("type") == "function":
                del value["type"]
            named = isinstance(value, dict) and "name" in value and ("parameters" in value or "arguments" in value)
            if not (tagged or named):
                break
            calls.append(_call(value, action[at:end]))
            at = self._between.match(action, end).end()  # type: ignore[union-attr]
        return tuple(calls), action[at:]

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """See :class:`Parser`."""
        bodies = "; ".join(_body(call, "parameters") for call in calls)
        text = self._escape_tag.write(text.strip())
        if text.startswith("&") or self.parse(text).calls:
            text = self._escape_object.write(text)
        return f"{text}{self._tag}{bodies}" if bodies else text


class MistralParser:
    """Mistral's form: ``[TOOL_CALLS]`` and a JSON list of calls; of newer models, ``[TOOL_CALLS]name[ARGS]{...}``."""

    _mark = "[TOOL_CALLS]"
    _named = re.compile(r"\s*([^\[\]{}<>]+?)\s*(?:\[CALL_ID\]([^\[\]{}<>]*))?\[ARGS\]")
    _escape = _Escape(_mark)

    def parse(self, action: str) -> Turn:
        """See :class:`Parser`."""
        calls: list[Call] = []
        texts, end = [], 0
        while (start := action.find(self._mark, end)) >= 0:
            texts.append(action[end:start])
            found, end = self._read(action, start + len(self._mark))
            calls += found
        text = "".join([*texts, action[end:]]).strip()
        return Turn(self._escape.read(text), tuple(calls))

    def _read(self, action: str, start: int) -> tuple[list[Call], int]:
        """The calls of one mark, and where the text goes on."""
        named = self._named.match(action, start)
        try:
            value, end = load_at(action, named.end() if named else start)
        except ValueError as error:
            following = action.find(self._mark, start)
            end = len(action) if following < 0 else following
            fault = f"the tool call is not valid JSON: {error}"
            return [Call(named[1] if named else "", error=fault, written=action[start:end])], end
        written = action[start:end]
        if named:
            return [_call({"name": named[1], "arguments": value}, written, named[2])], end
        if value == []:
            return [Call("", error="the list of tool calls is empty", written=written)], end
        value = value if isinstance(value, list) else [value]
        return [
            _call(_without_id(one), dump(one), one.get("id") if isinstance(one, dict) else None) for one in value
        ], end

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """See :class:`Parser`."""
        bodies = ",".join(_body(call) for call in calls)
        text = self._escape.write(text)
        return f"{text}{self._mark}[{bodies}]" if bodies else text


def _without_id(entry: Any) -> Any:
    return {key: item for key, item in entry.items() if key != "id"} if isinstance(entry, dict) else entry


class OpenAIParser:
    """The chat-completions form: the assistant message as JSON, with ``content`` and ``tool_calls``.

    Text that is not such a message is a final answer. ``content`` may be a list of parts, whose texts are joined.
    """

    def parse(self, action: str) -> Turn:
        """See :class:`Parser`."""
        try:
            message = load(action)
        except ValueError:
            message = None
        if not isinstance(message, dict) or not ("content" in message or message.get("tool_calls")):
            return Turn(action.strip())
        return self.message(message)

    def message(self, message: Mapping[str, Any]) -> Turn:
        """The turn of a message that is already JSON; see :meth:`parse`."""
        calls = message.get("tool_calls") or []
        thought = message.get("reasoning_content") or message.get("reasoning")
        text, more = self._content(message.get("content"))
        reasoning = f"{thought if isinstance(thought, str) else ''}{more}"
        return Turn(text.strip(), tuple(map(self._entry, calls if isinstance(calls, list) else [calls])), reasoning)

    @staticmethod
    def _content(content: Any) -> tuple[str, str]:
        """The words of a message's content, and the reasoning among its parts."""
        if isinstance(content, str):
            return content, ""
        said, thought = "", ""
        for part in content if isinstance(content, list) else []:
            if isinstance(part, str):
                said += part
            elif isinstance(part, dict):
                said += next((part[key] for key in ("text", "refusal") if isinstance(part.get(key), str)), "")
                thought += next((part[key] for key in ("thinking", "reasoning") if isinstance(part.get(key), str)), "")
        return said, thought

    @staticmethod
    def _entry(entry: Any) -> Call:
        function = entry.get("function") if isinstance(entry, dict) else None
        if not isinstance(function, dict):
            error = 'an entry of "tool_calls" needs a "function" object'
            return Call("", error=error, written=dump(entry), id=_id(entry))
        return _call(function, dump(function), entry.get("id"))

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """See :class:`Parser`."""
        entries = [
            {
                "id": call.id or f"call_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": dump(call.arguments)},
            }
            for index, call in enumerate(calls)
        ]
        return dump({"role": "assistant", "content": text, **({"tool_calls": entries} if entries else {})})


def _id(entry: Any) -> str | None:
    id = entry.get("id") if isinstance(entry, dict) else None
    return id if isinstance(id, str) else None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- the formats there are ---------------------------------------------------------------------------------------

PARSERS: dict[str, Parser] = {
    "hermes": HermesParser(),
    "openai": OpenAIParser(),
    "qwen3_coder": QwenCoderParser(),
    "llama3": LlamaParser(),
    "mistral": MistralParser(),
}
"""The readers by name, as the argument ``parser`` of every environment takes it."""


def register_parser(name: str, parser: Parser) -> Parser:
    """Make a reader of your own available as ``parser=name``.

    Args:
        name: A new name.
        parser: An object with ``parse`` and ``render``; ``parse`` must accept every string.

    Raises:
        TypeError: If it lacks one of the two.
        ValueError: If the name is taken by another parser.
    """
    check_parser(parser)
    if not isinstance(name, str) or not name:
        raise TypeError(f"register_parser({name!r}, ...): the name is a text that is not empty")
    if PARSERS.get(name, parser) is not parser:
        raise ValueError(f"register_parser({name!r}, ...): the name is taken; there are {', '.join(PARSERS)}")
    PARSERS[name] = parser
    return parser


def check_parser(parser: Any) -> Parser:
    """The parser of that name, or the object itself.

    Raises:
        ValueError: For an unknown name.
        TypeError: For an object that lacks ``parse`` or ``render``.
    """
    if isinstance(parser, str):
        if parser not in PARSERS:
            raise ValueError(f"parser={parser!r}: choose one of {', '.join(map(repr, PARSERS))}, or give a parser")
        return PARSERS[parser]
    if not all(callable(getattr(parser, name, None)) for name in ("parse", "render")) or isinstance(parser, type):
        raise TypeError(f"parser={parser!r}: neither a name nor an object with the methods parse and render")
    return parser


def foreign_format(text: str, parser: Parser) -> str | None:
    """The name of a format, other than the parser's own, in which ``text`` holds a call; None where there is none."""
    found = None
    for name, other in PARSERS.items():
        for one in dict.fromkeys((text, fenced(text))) if other is not parser else ():
            if calls := other.parse(one).calls:
                if not calls[0].error:
                    return name
                found = found or name
    return found


def canonical_text(turn: Turn) -> str:
    """A turn in the one rendering by which its tokens are counted, whatever the format it was written in: reasoning,
    words, and calls as JSON between tags; a call that could not be read as it was written."""
    bodies = (
        call.written if call.error else dump({"name": call.name, "arguments": call.arguments}) for call in turn.calls
    )
    return turn.reasoning + "\n".join(
        part for part in (turn.text, *(f"{_TAG}{body}{_TAG_END}" for body in bodies)) if part
    )
