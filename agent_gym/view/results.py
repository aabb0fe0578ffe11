"""Result files of ``agent-gym eval``, and the trajectories beside them."""

from __future__ import annotations

import json
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from agent_gym.trajectory import Trajectory, read_trajectories
from agent_gym.view.episodes import episode

SCHEMA = "agent-gym-result-v1"
SHOWN = ("agent", "env_id", "tasks", "budget", "samples", "seed", "made", "aggregates")
OF_OUTCOME = ("oracle_cost", "difficulty", "task_type", "failure", "first_wrong_step", "redundant_calls")


def read_result(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A result file.

    Returns:
        What the tables and charts show, and an episode an outcome; one whose trajectory is not there has no steps.

    Raises:
        ValueError: If the file is not a result, or the one beside it is not that of the result.
    """
    try:
        result = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON, or it is cut off: give a file that agent-gym eval wrote") from None
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        what = f"its schema is {schema!r}" if schema else "it names no schema"
        raise ValueError(f"{path} is not a result that this version reads ({what}, not {SCHEMA!r})")
    return {key: result[key] for key in SHOWN}, []
