"""Cheap strategies: what a reader of one listing, or of the request alone, can try instead of the look-ups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_origin

from agent_gym.envs.api_agent.domain import APITask, run_tool
from agent_gym.envs.api_agent.world import Record, Transaction, World
from agent_gym.tools import Call

__all__ = ["Side", "gambles"]

Side = tuple[tuple[Call, ...], dict[str, Any] | None]
"""One way a gamble can come out: the calls, and the answer after them."""
Swap = list[tuple[Any, Any]]
"""Pairs of a right value and what is put in its place."""


def _stands_in(value: Any, text: str) -> bool:
    """Whether the text holds the value, all of it where it is a list, in words of their own."""
    parts = value if isinstance(value, list) else [value]
    return all(re.search(rf"(?<!\w){re.escape(str(part))}(?!\w)", text) for part in parts)


def gambles(task: APITask) -> Iterator[tuple[str, list[Side]]]:
    """Ways to do a task with fewer calls than the oracle makes.

    The first calls of a goal, all of them reads, are left out; where what is left needs something that the request does
    not say, a listing is read in their place, and a record of it is taken that looks like the right one: as many of its
    words stand in the request, and its enumerated fields are the same. All other goals are done as the oracle does.

    Yields:
        What was done, and its sides, all equally likely.
    """
    keys = list(task.answer or ())
    at, key_at = 0, 0
    for calls, count in task.parts or ((len(task.calls), len(keys)),):
        before, own, after = task.calls[:at], task.calls[at : at + calls], task.calls[at + calls :]
        answer = {key: task.answer[key] for key in keys[key_at : key_at + count]} if task.answer else {}
        at, key_at = at + calls, key_at + count
        world = task.after(before)
        for cut in range(1, calls + 1):
            kept = own[cut:]
            if not task.tools[own[cut - 1].name].reads_only:
                break
            if not (kept or answer):
                continue
            unknown = _unknown(task, world, kept, answer)
            if not unknown:
                yield f"leaving out {own[cut - 1].name}", [((*before, *kept, *after), task.answer)]
                continue
            for name, rows in _listings(task, world) if cut > 1 else ():  # which saves a call
                sides = [
                    ((*before, Call(name), *tried, *after), {**(task.answer or {}), **(told or {})} or None)
                    for swap in _swaps(rows, unknown, answer, task.request)
                    for tried, told in [_follow(task, kept, answer, swap)]
                ]
                if sides:
                    yield f"{name} and a guess", sides


def _unknown(task: APITask, world: World, kept: Sequence[Call], answer: Mapping[str, Any]) -> list[Any]:
    """What the kept calls and the answer hold that neither the request nor an earlier kept call tells."""
    told, found = task.request, []
    for call in kept:
        found += [value for value in call.arguments.values() if not _stands_in(value, told)]
        tool = task.tools[call.name]
        if tool.reads_only:
            told += run_tool(tool, tool.validate(call.arguments), world).content
    return found + [value for value in answer.values() if not _stands_in(value, told)]


def _listings(task: APITask, world: World) -> Iterator[tuple[str, list[Record]]]:
    """The tools without parameters that list records of one kind, and what they list."""
    for name, tool in task.tools.items():
        if tool.reads_only and not tool.parameters:
            rows = tool.fn(Transaction(world))
            if isinstance(rows, list) and len({type(row) for row in rows}) == 1 and isinstance(rows[0], Record):
                yield name, rows


def _swaps(rows: Sequence[Record], unknown: Sequence[Any], answer: Mapping[str, Any], request: str) -> list[Swap]:
    """What each record that looks like the right one puts in the place of the unknown values; nothing if the listing
    does not show them. Where values of several records are unknown, those of the most ambiguous are guessed."""
    shown = [value for row in rows for value in vars(row).values()]
    if not all(part in shown for value in unknown for part in (value if isinstance(value, list) else [value])):
        return []
    swaps: list[Swap] = []
    single = [value for value in unknown if not isinstance(value, list)]
    while single:
        right = max(rows, key=lambda row: sum(value in single for value in vars(row).values()))
        places = [name for name, value in right if value in single]
        asked = [name for name, value in right if value in single or value in answer.values()]
        alike = [row for row in rows if _looks(row, asked, request) == _looks(right, asked, request)]
        swaps = max(swaps, [[(getattr(right, name), getattr(row, name)) for name in places] for row in alike], key=len)
        single = [value for value in single if value not in vars(right).values()]
    if swaps:
        return swaps
    wanted = next(value for value in unknown if isinstance(value, list))
    right = next(row for row in rows if {*vars(row).values()} & {*wanted})
    key = next(name for name, value in right if value in wanted)
    alike = [row for row in rows if _looks(row, [key], "") == _looks(right, [key], "")]
    for by, value in right:  # the field that the listed records share, and no others
        groups: dict[Any, list[Any]] = {}
        for row in alike:
            groups.setdefault(getattr(row, by), []).append(getattr(row, key))
        if sorted(groups[value]) == sorted(wanted):
            return [[(wanted, group)] for group in groups.values() if len(group) == len(wanted)]
    return []


def _looks(row: Record, places: Sequence[str], request: str) -> tuple[Any, ...]:
    """What a reader of the request can tell a record by, but for the fields that are looked for."""
    fields = {name: about.annotation for name, about in type(row).model_fields.items() if name not in places}
    words = sum(_stands_in(getattr(row, name), request) for name in fields)
    return words, *(getattr(row, name) for name, kind in fields.items() if get_origin(kind) is Literal)


def _follow(task: APITask, kept: Sequence[Call], answer: Mapping[str, Any], swap: Swap) -> Side:
    """The kept calls and the answer with a guess in them. What a kept read tells hangs on what it was asked, so after a
    wrong question nothing more is known."""
    tried = []
    for call in kept:
        tried.append(Call(call.name, _swapped(call.arguments, swap)))
        if task.tools[call.name].reads_only and tried[-1] != call:
            return tuple(tried), dict.fromkeys(answer)
    return tuple(tried), _swapped(answer, swap)


def _swapped(values: Mapping[str, Any], swap: Swap) -> dict[str, Any]:
    return {name: next((new for old, new in swap if old == value), value) for name, value in values.items()}
