"""Files of records: JSON lines, or one JSON list. A record that is no task is told and left out, not the whole file."""

from __future__ import annotations

import codecs
import difflib
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from agent_gym.text import split_lines

__all__ = ["Fault", "Own", "Published", "Text", "checked", "load_records"]

Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]
"""A string without half surrogate pairs: it can be written to a file."""


class _Task(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Task)
M = TypeVar("M", bound=BaseModel)


class Fault(ValueError):
    """Why a record is no task, in one sentence.

    Args:
        sentence: Says what is wrong, where, and what would be right.
        id: Of the task that it would have been, where that is not the record's ``id``.
    """

    def __init__(self, sentence: str, id: str) -> None:
        super().__init__(sentence)
        self.id = id


class Own(BaseModel):
    """A record of a form of ours: a key that it does not have is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Published(BaseModel):
    """A record of a published data set, which may hold more than is read."""

    model_config = ConfigDict(strict=True)


def load_records(path: Path, read: Callable[[int, dict[str, Any]], T]) -> tuple[list[T], dict[str, str]]:
    """The tasks of a file of records, and what was left out; one warning says how much, and the first fault.

    Args:
        path: JSON lines, or one JSON list, in UTF-8.
        read: The task of a record and its number, from 1. It raises ValueError where the record is none.

    Returns:
        The tasks, and the fault of each record that is none: by its id, or by ``record N`` where it has none.

    Raises:
        ValueError: If the file cannot be read, or no record is a task; names file, record and fault.
    """
    tasks: dict[str, T] = {}
    left_out: dict[str, str] = {}
    first, records = "", _records(path)
    for number, record in enumerate(records, start=1):
        try:
            if isinstance(record, ValueError):
                raise record
            if not isinstance(record, dict):
                raise ValueError(f"a record is a JSON object, not {_kind(record)}")
            task = read(number, record)
            if task.id in tasks:
                raise ValueError(f"the id {task.id!r} is taken by an earlier record")
            tasks[task.id] = task
        except ValueError as fault:
            name = fault.id if isinstance(fault, Fault) else record.get("id") if isinstance(record, dict) else None
            known = isinstance(name, str) and name and name not in tasks and name not in left_out
            said = " ".join(split_lines(str(fault)))  # what it quotes of the record may have several
            left_out[name if known else f"record {number}"] = said  # type: ignore[index]
            first = first or f"record {number}: {said}"
    if not tasks:
        raise ValueError(f"{path}, {first}; the file has no task" if first else f"{path}: the file has no task")
    if left_out:
        warnings.warn(f"{path}: {len(left_out)} of {len(records)} records were left out; {first}", stacklevel=2)
    return list(tasks.values()), left_out


def _records(path: Path) -> list[Any]:
    """What the file holds; in the place of a record that cannot be read, a ValueError that says why."""
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    lines = [line for line in data.splitlines() if line.strip()]  # of bytes: at \n, \r\n and \r alone
    if not data.lstrip().startswith(b"[") or (len(lines) > 1 and not isinstance(_decoded(lines[0]), ValueError)):
        return list(map(_decoded, lines))
    records = _decoded(data)
    if isinstance(records, ValueError):
        raise ValueError(f"{path}: {records}")
    return records


def _decoded(data: bytes) -> Any:
    try:
        return _decode(data.decode())
    except UnicodeDecodeError:
        return ValueError("not UTF-8 text")
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON: {error}")
    except RecursionError:
        return ValueError("nested too deeply to be read")
    except ValueError as error:
        return error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return record


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def checked(model: type[M], value: Any, where: str = "") -> M:
    """``value`` as a ``model``.

    Args:
        model: What it has to be.
        value: Of a file.
        where: Its place in the record, such as ``hidden[0]``.

    Raises:
        ValueError: In one sentence: the key that is missing, unknown or of the wrong type, and what would be right.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a JSON object, not {_kind(value)}")
    try:
        found = model.model_validate(value)
        if issubclass(model, Own):
            _check_finite(value, where)
        return found
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    above, place = "", where
    for part in fault["loc"]:
        above, place = place, _below(place, part)
    said, message = f"{above}: " if above else "", fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        raise ValueError(f"{said}the key {fault['loc'][-1]!r} is missing")
    if fault["type"] == "extra_forbidden":
        key, known = str(fault["loc"][-1]), list(model.model_fields) if len(fault["loc"]) == 1 else []
        close = [f", did you mean {name!r}?" for name in difflib.get_close_matches(key, known, 1)]
        raise ValueError(f"{said}the key {key!r} is unknown{''.join(close)} (known are {', '.join(known)})")
    if message.startswith("Input should"):
        raise ValueError(f"{place} {message.removeprefix('Input ')}, not {_kind(fault['input'])}")
    raise ValueError(f"{place}: {message}")


def _check_finite(value: Any, where: str) -> None:
    """Python reads NaN and Infinity, which no JSON has and no verifier can compare."""
    left = [(where, value)]
    while left:
        place, one = left.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{place} is {json.dumps(one)}: a number must be finite")
        parts = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        left += [(_below(place, part), inner) for part, inner in parts]


def _below(place: str, part: str | int) -> str:
    """The place of a part, such as ``hidden[0].args``."""
    return f"{place}[{part}]" if isinstance(part, int) else f"{place}.{json.dumps(part)[1:-1]}".lstrip(".")


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    return type(value).__name__ if isinstance(value, dict | list) else json.dumps(value)[:80]
