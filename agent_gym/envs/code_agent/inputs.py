"""The programs of the library, and random arguments for each of their public functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resource_files
from typing import Any

import numpy as np

from agent_gym.envs.code_agent.input_table import INPUTS

# The longest repr of the arguments of a case: a failing test is shown to an agent.
MAX_REPR = 120

# Only the split "test" uses these: 17 single files and 4 of several files, of all kinds of domains.
TEST_PROGRAMS: tuple[str, ...] = (
    "backpack",
    "bit_tricks",
    "book_loans",
    "chess_moves",
    "dict_changes",
    "edit_distance",
    "flood_fill",
    "intervals",
    "layered_config",
    "money",
    "name_styles",
    "permutations",
    "postfix",
    "prefix_tree",
    "query_text",
    "rate_limits",
    "robot",
    "seat_map",
    "summary_stats",
    "task_order",
    "truth_tables",
)
# Only the split "validation" uses these.
VALIDATION_PROGRAMS: tuple[str, ...] = (
    "durations",
    "grade_book",
    "graph_paths",
    "lru_pages",
    "polynomials",
    "shipping",
    "spiral",
    "wrapping",
)


@dataclass(frozen=True)
class Case:
    """One call of a function of a program.

    Attributes:
        entry_point: "module:function"; the module is a file of the program without ".py".
        args: The positional arguments, plain data. Copy them deeply before a call.
    """

    entry_point: str
    args: tuple[Any, ...]


@cache
def _sources() -> dict[str, dict[str, str]]:
    """Program -> path -> source text, of the whole library."""
    found: dict[str, dict[str, str]] = {}
    for entry in resource_files("agent_gym.envs.code_agent").joinpath("library").iterdir():
        if entry.name.endswith(".py") and entry.name != "__init__.py":
            found[entry.name[:-3]] = {entry.name: entry.read_text(encoding="utf-8")}
        elif entry.is_dir() and not entry.name.startswith("_"):
            parts = sorted((part for part in entry.iterdir() if part.name.endswith(".py")), key=lambda part: part.name)
            found[entry.name] = {part.name: part.read_text(encoding="utf-8") for part in parts}
    return dict(sorted(found.items()))


def programs() -> tuple[str, ...]:
    """The names of all programs, sorted."""
    return tuple(_sources())


def files(program: str) -> dict[str, str]:
    """The source text of each file of a program by its path at the root of a workspace.

    Args:
        program: A name of `programs()`.

    Raises:
        KeyError: If there is no such program.
    """
    return dict(_sources()[program])


def entry_points(program: str) -> tuple[str, ...]:
    """All public functions of a program as "module:function", in the order of the input table."""
    return tuple(name.replace(".", ":") if "." in name else f"{program}:{name}" for name in INPUTS[program])


def draw_cases(program: str, rng: np.random.Generator, count: int) -> list[Case]:
    """Random calls, spread evenly over the public functions of a program; repeated ones are avoided.

    Args:
        program: A name of `programs()`.
        rng: The only source of randomness; equal states give equal cases.
        count: The number of cases.

    Returns:
        `count` cases whose arguments have a repr of at most `MAX_REPR` characters.

    Raises:
        KeyError: If there is no such program.
    """
    draws = list(zip(entry_points(program), INPUTS[program].values(), strict=True))
    # Every round covers each function once, in a new order, so that a short draw favours no function.
    order = [int(i) for _ in range(-(-count // len(draws))) for i in rng.permutation(len(draws))][:count]
    cases: list[Case] = []
    seen: set[str] = set()
    for index in order:
        entry_point, draw = draws[index]
        for attempt in range(1000):
            arguments = draw(rng)
            shown = repr(arguments)
            # Small domains run out of new calls: after some attempts a repeated one is as good as it gets.
            if len(shown) <= MAX_REPR and (attempt >= 4 or entry_point + shown not in seen):
                break
        else:
            raise RuntimeError(f"no short arguments for {entry_point}")
        seen.add(entry_point + shown)
        cases.append(Case(entry_point, arguments))
    return cases
