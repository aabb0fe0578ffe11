"""Run folders of the trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from agent_gym.trajectory import read_trajectories
from agent_gym.view.episodes import with_credits

MOST = 40
"""Episodes of a trajectory file that a page shows; those with credits are the first."""

T = TypeVar("T")


class Result(BaseModel):
    """Of result.json: means and intervals of every figure, by test and by split."""

    tables: dict[str, dict[str, dict[str, tuple[FiniteFloat | None, FiniteFloat | None, FiniteFloat | None]]]]


class Groups(BaseModel):
    """Of groups.json."""

    names: list[str]


class CreditMap(BaseModel):
    """A line of credits.jsonl."""

    iteration: int
    task_id: str
    success: bool
    steps: list[str]
    u: list[FiniteFloat | None]
    v: list[list[FiniteFloat | None]]
    eliminated: list[int]
    necessary: list[int]


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """A run folder, finished or not.

    Returns:
        What the tables and charts show, and sample episodes by trajectory file.

    Raises:
        ValueError: If there is no run in the folder, or a file of it cannot be read.
    """
    if not (folder / "args.json").is_file():
        raise ValueError(f"{folder} holds no run of a trainer: args.json is missing")
    rows = _lines(folder / "metrics.jsonl", dict[str, FiniteFloat])
    if not rows:
        raise ValueError(f"{folder} holds a run that has logged nothing yet: metrics.jsonl has no line")
    result, groups = folder / "result.json", folder / "groups.json"
    maps = _lines(folder / "credits.jsonl", CreditMap)
    episodes = {path.stem: _episodes(path, maps) for path in sorted(folder.glob("trajectories/*.jsonl"))}
    return {
        "name": folder.resolve().name,
        "folder": str(folder),
        "args": _json(folder / "args.json", dict[str, Any]),
        "rows": rows,
        "tests": _json(result, Result).tables if result.exists() else {},
        "groups": _json(groups, Groups).names if groups.exists() else [],
        "credits": [one.model_dump() for one in maps],
        "files": {stem: len(own) for stem, own in episodes.items()},
    }, {stem: own[:MOST] for stem, own in episodes.items()}


def _episodes(path: Path, maps: list[CreditMap]) -> list[dict[str, Any]]:
    own = [one for one in maps if path.stem == f"iteration_{one.iteration:06d}"]
    return with_credits(list(read_trajectories(path)), own)


def _json(path: Path, kind: type[T]) -> T:
    return _read(path.read_bytes(), kind, path)


def _lines(path: Path, kind: type[T]) -> list[T]:
    """The objects of a file of JSON lines without the end that is still being written; no file has none."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1].splitlines()
    return [_read(line, kind, f"{path}, line {number}") for number, line in enumerate(whole, start=1)]


def _read(data: bytes, kind: type[T], where: object) -> T:
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        said = ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        raise ValueError(f"{where} is not what a trainer writes: {said}") from None
