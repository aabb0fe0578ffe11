"""Run folders of the trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent_gym.trajectory import Trajectory, read_trajectories
from agent_gym.view.episodes import with_credits

MOST = 40
"""Episodes of a trajectory file that a page shows; those with credits are the first."""


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """A run folder, finished or not.

    Returns:
        What the tables and charts show, and sample episodes by trajectory file.

    Raises:
        ValueError: If there is no run in the folder, or a file of it cannot be read.
    """
    if not (folder / "args.json").is_file():
        raise ValueError(f"{folder} holds no run of a trainer: args.json is missing")
    rows = _lines(folder / "metrics.jsonl")
    if not rows:
        raise ValueError(f"{folder} holds a run that has logged nothing yet: metrics.jsonl has no line")
    maps = _lines(folder / "credits.jsonl")
    files = sorted(folder.glob("trajectories/*.jsonl"))
    episodes = {path.stem: _episodes(path, maps) for path in files}
    groups = folder / "groups.json"
    result = folder / "result.json"
    return {
        "name": folder.resolve().name,
        "folder": str(folder),
        "args": _json(folder / "args.json"),
        "rows": rows,
        "tests": _json(result)["tables"] if result.exists() else {},
        "groups": _json(groups)["names"] if groups.exists() else [],
        "credits": maps,
        "files": {stem: len(own) for stem, own in episodes.items()},
    }, {stem: own[:MOST] for stem, own in episodes.items()}


def _episodes(path: Path, maps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    trajectories: list[Trajectory] = list(read_trajectories(path))
    return with_credits(trajectories, [one for one in maps if path.stem == f"iteration_{one['iteration']:06d}"])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not JSON, or it is cut off") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; the last one may be cut off, as the run may still go on."""
    rows: list[dict[str, Any]] = []
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON") from None
    return rows
