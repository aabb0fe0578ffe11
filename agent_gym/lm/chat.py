"""Conversations as token ids: prompts, answers between turns, and turns, each encoded once and never again.

What a chat template can do is found out by rendering small conversations with it: the format of its tool calls,
whether it has a system and a tool role, what ends a turn. Content (requests, results, tool schemas) is encoded apart
from the template's own words, so that no content is ever read as a control token.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any, NamedTuple

from agent_gym import PARSERS, Call, Parser
from agent_gym.formats import set_apart
from agent_gym.lm.errors import Refused
from agent_gym.lm.pieces import Pieces, mark

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
        self._pieces = Pieces(tokenizer)
        self._ids = self._pieces.id_of
        self.control = frozenset(self._ids.values())
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
        cut = mark(messages, shown)
        text = self._render(self._pieces.cut(messages, cut), tools=self._pieces.cut(shown, cut) or None)
        return self._pieces.ids(text, cut, begins=True)

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
        cut = mark(messages)
        text = self._render([_ASK, frame.turn, *self._pieces.cut(self._seated(messages), cut)])
        ids = self._pieces.ids(text[text.index(_TURN) + len(_TURN) + frame.at :], cut)
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
        frame, cut = self._frame_of(action), mark(action)
        text = f"{frame.lead}{self._pieces.cut(action, cut, self._markers)}{frame.tail}"
        return [*self._pieces.ids(text, cut), self._ids[frame.end]]

    def text(self, ids: Sequence[int]) -> str:
        """What a turn says, without the stop ids at its end, and without what the template puts around every turn."""
        end = len(ids)
        while end and ids[end - 1] in self.stops:
            end -= 1
        said = self._pieces.text(ids[:end])
        for frame in (self._calls, self._words):
            tail = frame.tail if end < len(ids) else ""
            bare = said.removeprefix(frame.lead).removesuffix(tail)
            if f"{frame.lead}{bare}{tail}" == said and self._frame_of(bare) is frame:
                return bare
        return said

    def encode(self, text: str) -> list[int]:
        """Ids of content, none of them a control token's."""
        cut = mark(text)
        return self._pieces.ids(self._pieces.cut(text, cut), cut)

    def count(self, text: str) -> int:
        """Tokens of a message, its end included: what an environment charges for a turn and for a result. The marks of
        a call count as the tokens that the model writes for them."""
        cut = mark(text)
        return len(self._pieces.ids(self._pieces.cut(text, cut, self._markers), cut)) + 1

    def _frame_of(self, action: str) -> _Frame:
        return self._calls if self._calls is not self._words and self.parser.parse(action).calls else self._words

    # ---- what the template can do ------------------------------------------------------------------------------

    def _render(self, messages: Sequence[Message], *, opens: bool = True, **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=opens,
                **self._options, **options,
            )  # fmt: skip
        except Exception as error:  # a template is a program of someone else's
            sentence = " ".join(str(error).split())
            raise Refused(f"the chat template cannot render the conversation: {sentence}") from error

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
        if prompt == self._render([_ASK], opens=False) and any(self._pieces.controls(frame.lead)):
            raise Refused("the chat template does not open the assistant's turn (it ignores add_generation_prompt)")
        return frame

    def _frame(self, turn: Message, follower: Message) -> _Frame | None:
        """How a turn is written when ``follower`` comes after it; None where one of them is lost."""
        prompt, alone = self._try([_ASK]), self._try([_ASK, turn], opens=False)
        followed = self._try([_ASK, turn, follower])
        if not (prompt and alone and followed and _TURN in alone):
            return None
        if not 0 <= (begin := followed.find(_TURN)) < followed.find(_NEXT):
            return None
        after = followed[begin + len(_TURN) : followed.index(_NEXT)]
        both = _shared(alone.partition(_TURN)[2], after)
        own = [(at, word) for at, word in self._pieces.controls(both) if word not in self._call_words()]
        known = [(at, word) for at, word in self._pieces.controls(after) if self._ids[word] in self.stops]
        if not (own or known):
            return None
        at, end = known[0] if not own else own[0] if turn is _SAY else own[-1]
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
            end = next((at for at, word in self._pieces.controls(written) if self._ids[word] in self.stops), None)
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
        return {word for _, word in self._pieces.controls(rendered)}

    def _format_markers(self) -> frozenset[str]:
        """Control tokens that a turn may hold: those of calls and of reasoning, without ends and roles."""
        calls = self.parser.render("", [_PROBE]) + self._calls.written
        frames = self._render([_ASK, _SAY, _ASK])
        mine = {word for _, word in self._pieces.controls(calls)} - {word for _, word in self._pieces.controls(frames)}
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
