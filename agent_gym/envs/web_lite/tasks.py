"""Tasks of WebLite-v0: goals of a site are drawn and put together, and played once to know what is asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Any

from agent_gym.envs.web_lite.actions import Backend, act
from agent_gym.envs.web_lite.dom import DomBackend
from agent_gym.envs.web_lite.draft import Clash, Draft, Step
from agent_gym.envs.web_lite.page import Element, canonical_path
from agent_gym.envs.web_lite.site import Goal, Session, Setting, Site, signed
from agent_gym.envs.web_lite.sites import SITES
from agent_gym.envs.web_lite.world import Tables, World
from agent_gym.tools import Call, ToolError

__all__ = ["LEVELS", "WebTask", "compose", "levels_of", "play"]

LEVELS = (1, 8)
MOST_GOALS = 3
PRESS = {"link": "click", "button": "click", "checkbox": "click", "textbox": "fill", "select": "select"}


@dataclass(frozen=True)
class WebTask:
    """One task. Everything that follows from it is a pure function of it.

    Args:
        id: ``split-difficulty-seed``.
        words: What the user asks for.
        world: The site on its first page.
        steps: The oracle's actions, by the names of elements.
        answer: The expected answer, None where the site's state alone is judged.
        traps: Tempting wrong actions that follow a good solution.
        lies: Tempting wrong answers.
        composition: Its goals and ways.
    """

    id: str
    words: str
    world: World
    steps: tuple[Step, ...]
    answer: str | None = None
    traps: tuple[tuple[Step, ...], ...] = ()
    lies: tuple[str, ...] = ()
    composition: tuple[str, ...] = ()

    @property
    def latency_seed(self) -> int:
        """The task's seed."""
        return self.world.salt

    @cached_property
    def request(self) -> str:
        """The user's words and the page they look at."""
        return f"{self.words}\n{DomBackend().show(self.world).text}"

    @cached_property
    def solved(self) -> tuple[tuple[Call, ...], World]:
        """The oracle's calls and where they end."""
        return play(self.world, self.steps)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The oracle's calls."""
        return self.solved[0]

    @property
    def goal(self) -> Tables:
        """The site's state after the oracle's calls: what the verifier compares with."""
        return self.solved[1].tables


def play(world: World, steps: Sequence[Step]) -> tuple[tuple[Call, ...], World]:
    """Actions by name as calls by number. What the shown page does not have is looked for on the first page.

    Args:
        world: Where they start.
        steps: The actions.

    Raises:
        LookupError: If an element is on neither page.
    """
    backend: Backend = DomBackend()
    calls: list[Call] = []

    def step(tool: str, **arguments: Any) -> None:
        nonlocal world
        calls.append(Call(tool, arguments))
        world = world.apply(act(backend, world, tool, arguments))

    for tool, name, value in steps:
        if tool == "go_to":
            step("go_to", path=signed(world.tables, name))
            continue
        element = _find(world, tool, name)
        if element is None:
            home = _find(world, "click", SITES[world.site].home)
            if home is None or world.path == "/":
                raise LookupError(f"{world.path} has no {name!r}")
            step("click", element=home.number)
            element = _find(world, tool, name)
            if element is None:
                raise LookupError(f"the first page has no {name!r}")
        if element.control.role == "link" and canonical_path(element.control.target) == world.path:
            continue  # it leads to the page that is shown
        written = {"fill": {"text": value}, "select": {"option": value}}.get(tool, {})
        step(tool, element=element.number, **written)
    return tuple(calls), world


def _find(world: World, tool: str, name: str) -> Element | None:
    for element in DomBackend().show(world).elements.values():
        if element.control.name == name and PRESS[element.control.role] == tool:
            return element
    return None


# ---- composing -----------------------------------------------------------------------------------------------------

Part = tuple[Goal, str]


def composition_split(parts: Sequence[Part]) -> str | None:
    """The split of a multiset of goals: a third of them is test's. A single goal belongs to all (None)."""
    if len(parts) < 2:
        return None
    return "test" if sum(goal.index + list(goal.ways).index(way) for goal, way in parts) % 3 == 0 else "train"


def _draw(rng: random.Random, site: Site, calls: int) -> list[Part]:
    """Some goals whose actions are about as many as asked for."""
    every = [(goal, way, n) for goal in site.goals for way, n in goal.ways.items()]
    parts: list[Part] = []
    left = calls
    while left > 0 and len(parts) < MOST_GOALS:
        fitting = [(goal, way, n) for goal, way, n in every if n <= left and (len(parts) < MOST_GOALS - 1 or n == left)]
        if not fitting:
            break
        n = rng.choice(sorted({n for _, _, n in fitting}))
        goal, way, n = rng.choice([entry for entry in fitting if entry[2] == n])
        parts.append((goal, way))
        left -= n + (rng.random() < 0.5)  # most goals end on another page than the first
    return parts


def _try(rng: random.Random, site: Site, parts: Sequence[Part], split: str, calls: int, seed: int) -> WebTask | None:
    far = any(way == "far" for _, way in parts)
    rows = 3 if calls == 1 else 4 if calls < 4 else 5
    total = 5 * rows if far else rows + (calls > 1)  # a single page where one action is enough
    draft = Draft(rng, split, rows, total, namesakes=calls > 2)
    draft.tables = {name: {} for name in site.tables}
    sid = random.Random(f"web-sid-{split}-{calls}-{seed}").randrange(10**6, 10**7)
    draft.new("session", Session(sid=str(sid)))
    draft.new("settings", Setting(name="rows", value=draft.rows))
    try:
        for goal, way in parts:
            draft.build(goal, way)
        while draft.room:
            site.fill(draft)
        tables = Tables({name: dict(sorted(table.items())) for name, table in draft.tables.items()})
        world = World(site.name, tables, salt=seed)
        steps = _ordered(world, draft.parts, calls)
        if steps is None:
            return None
        task = WebTask(
            id=f"{split}-{calls}-{seed}",
            words=" ".join(draft.words),
            world=world,
            steps=steps,
            answer=draft.answer,
            traps=tuple(draft.traps),
            lies=tuple(draft.lies),
            composition=tuple(sorted(goal.name(way) for goal, way in parts)),
        )
        if _shortened(task):
            return None
        if calls == 1:  # nothing has to be looked up before the one action
            return replace(task, words=f"{task.words} Start with element {task.calls[0].arguments['element']}.")
        return task
    except (Clash, LookupError):
        return None


def _ordered(world: World, parts: Sequence[Sequence[Step]], calls: int) -> tuple[Step, ...] | None:
    """The steps of some goals in the first order that takes so many calls; None if none does, or one takes fewer.
    Orders that end in another state than the request's own do not count.
    """
    orders = [tuple(step for part in order for step in part) for order in permutations(parts)]
    ends = [play(world, steps) for steps in orders]
    asked = ends[0][1].tables.hash
    taken = [len(done) if end.tables.hash == asked else LEVELS[1] + 1 for done, end in ends]
    return orders[taken.index(calls)] if min(taken) == calls else None


def _shortened(task: WebTask) -> bool:
    """Whether the oracle's calls would do without some that follow each other."""
    backend: Backend = DomBackend()

    def does(world: World, told: bool, calls: Sequence[Call]) -> bool:
        for call in calls:
            try:
                world = world.apply(act(backend, world, call.name, call.arguments))
            except ToolError:  # the page shows no such element
                return False
            told |= (task.answer or "") in backend.show(world).text
        return told and world.tables.hash == task.goal.hash

    world, told = task.world, (task.answer or "") in task.request
    for at, call in enumerate(task.calls):
        if any(does(world, told, task.calls[end:]) for end in range(at + 1, len(task.calls) + 1)):
            return True
        world = world.apply(act(backend, world, call.name, call.arguments))
        told |= (task.answer or "") in backend.show(world).text
    return False


def compose(split: str, calls: int, seed: int, sites: tuple[str, ...]) -> WebTask:
    """The task of a split and a seed: a pure function.

    Args:
        split: One of ``SPLITS``. No two share a name; test has compositions of two goals or more of its own.
        calls: Actions of a straightforward solution, 1 to 8.
        seed: Any non-negative integer.
        sites: Where it may take place.

    Raises:
        ValueError: If these sites have no such task.
    """
    rng = random.Random(f"web-{split}-{calls}-{seed}")
    ours = (None, "test" if split == "test" else "train")
    for _ in range(1000):
        site = SITES[rng.choice(sites)]
        parts = _draw(rng, site, calls)
        if parts and composition_split(parts) in ours and (task := _try(rng, site, parts, split, calls, seed)):
            return task
    raise ValueError(f"the sites {', '.join(sites)} have no {split} task of {calls} actions")


@lru_cache(maxsize=64)
def levels_of(sites: tuple[str, ...], split: str) -> tuple[int, ...]:
    """The difficulties that these sites have tasks of."""
    found = []
    for calls in range(LEVELS[0], LEVELS[1] + 1):
        try:
            compose(split, calls, 0, sites)
        except ValueError:
            continue
        found.append(calls)
    return tuple(found)
