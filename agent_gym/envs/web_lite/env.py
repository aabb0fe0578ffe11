"""WebLite-v0: small web sites, read as text with numbered elements, worked by clicks and fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from agent_gym.costs import Latency
from agent_gym.env import Outcome, ToolEnv, asked_levels
from agent_gym.envs.splits import SPLITS, check_split
from agent_gym.envs.web_lite.actions import act
from agent_gym.envs.web_lite.dom import DomBackend
from agent_gym.envs.web_lite.page import Page
from agent_gym.envs.web_lite.site import unsigned
from agent_gym.envs.web_lite.sites import SITES
from agent_gym.envs.web_lite.tasks import LEVELS, WebTask, compose, levels_of, play
from agent_gym.text import fenced
from agent_gym.tools import Call, Tool, dump
from agent_gym.verdict import Verdict

__all__ = ["BACKENDS", "WebLiteEnv"]

BACKENDS = ("dom", "chromium")
LOAD = Latency(30.0, 8.0)
"""A page: the way there and back, and each element or piece of text that it shows."""
FIELD = Latency(30.0, 0.0)


def click(element: int) -> None:
    """Click a link, a button or a checkbox.

    Args:
        element: Its number on the page.
    """


def fill(element: int, text: str) -> None:
    """Write into a textbox, in place of what stands there.

    Args:
        element: Its number on the page.
        text: One line.
    """


def select(element: int, option: str) -> None:
    """Choose an option.

    Args:
        element: Number of the select on the page.
        option: As the page spells it.
    """


def go_to(path: str) -> None:
    """Open an address of this site. Pages other than those of the menu open from its links and forms only.

    Args:
        path: Starts with /, which alone is the first page.
    """


def back() -> None:
    """Open the page that was shown before this one."""


def look() -> None:
    """Show the page once more."""


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(click, latency=LOAD),
        Tool(fill, latency=FIELD),
        Tool(select, latency=FIELD),
        Tool(go_to, latency=LOAD),
        Tool(back, latency=LOAD, cacheable=False),  # where it leads is no part of the state's hash
        Tool(look, latency=LOAD, reads_only=True),
    )
}


class WebLiteEnv(ToolEnv):
    """Work on small web sites: find things, change them, answer from them, and touch nothing else.

    Args:
        split: ``"train"``, ``"validation"`` (unseen names) or ``"test"`` (unseen names and compositions of goals).
        difficulty: Actions of a straightforward solution: a whole number from 1 to 8, or ``[least, most]``; by
            default every number that the sites have tasks of. At 1 the request says which element it is.
        sites: Names of sites; all of them by default.
        backend: ``"dom"`` (in this process) or ``"chromium"`` (a browser).
        port: Port of the site on loopback, for ``"chromium"``; 0 for any that is free.
        tasks: Must be None here; ``"miniwob"`` makes another environment.
        render_mode: Also ``"rgb_array"``, for ``"chromium"``.
        **kwargs: See :class:`~agent_gym.env.ToolEnv`.

    Raises:
        ValueError: For a value outside what is listed here, or a port that is in use.
        ImportError: If a package of the extra ``web`` is missing.
        BrowserUnavailable: If there is no Chromium.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
    system_prompt = (
        "You use a web site. Each element of the page that is shown has a number. Use the tools to do what the user "
        "asks. A message without a tool call is the final answer."
    )

    def __init__(
        self,
        *,
        split: str = "train",
        difficulty: int | Sequence[int] | None = None,
        sites: Sequence[str] | None = None,
        backend: str = "dom",
        port: int = 0,
        tasks: str | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(render_mode=None if render_mode == "rgb_array" else render_mode, **kwargs)
        check_split(split)
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}: choose one of {', '.join(map(repr, BACKENDS))}")
        if tasks is not None:
            raise ValueError(f"tasks={tasks!r}: the only source beside the generator is 'miniwob'")
        if render_mode == "rgb_array" and backend != "chromium":
            raise ValueError("render_mode='rgb_array' is a picture of the browser: it needs backend='chromium'")
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
            raise ValueError(f"port={port!r}: a whole number from 0 (any that is free) to 65535")
        names = tuple(SITES) if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
        if unknown := [name for name in names if name not in SITES] or (None if names else ["(none)"]):
            raise ValueError(f"sites: there is no {unknown[0]!r}; there are {', '.join(SITES)}")
        self.split, self.sites, self.render_mode = split, names, render_mode
        if backend == "dom":
            self.metadata = {**self.metadata, "render_modes": ["ansi"]}  # type: ignore[misc]
        self.levels = self._levels(difficulty)
        self._backend: Any = DomBackend()
        if backend == "chromium":
            from agent_gym.envs.web_lite.chromium import ChromiumBackend

            self._backend = ChromiumBackend(port)

    def _levels(self, difficulty: Any) -> tuple[int, ...]:
        there = levels_of(self.sites, self.split)
        if difficulty is None:
            return there
        asked = asked_levels(difficulty, LEVELS[1], "actions")
        if missing := [level for level in asked if level not in there]:
            raise ValueError(
                f"difficulty={difficulty!r}: the sites {', '.join(self.sites)} have no {self.split} task of "
                f"{missing[0]} actions, only of {', '.join(map(str, there))}"
            )
        return asked

    def _make_task(self, task_id: str | None) -> WebTask:
        if task_id is None:
            calls = self.levels[int(self.np_random.integers(len(self.levels)))]
            return compose(self.split, calls, int(self.np_random.integers(2**31)), self.sites)
        parts = task_id.split("-") if isinstance(task_id, str) else []
        if len(parts) == 3 and parts[0] in SPLITS and all(map(str.isdecimal, parts[1:])):
            self._check_split(parts[0], task_id)
            calls, seed = int(parts[1]), int(parts[2])
            if LEVELS[0] <= calls <= LEVELS[1]:
                return compose(parts[0], calls, seed, self.sites)
        raise ValueError(f"unknown task id {task_id!r}: it reads split-difficulty-seed, such as 'train-3-42'")

    def _task_type(self) -> str:
        """The goals, without their ways."""
        return "+".join(sorted({goal.split(":")[0] for goal in self.task.composition})) or "task"

    def _tools(self) -> Mapping[str, Tool]:
        return TOOLS

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        world = self._world
        move = None if tool.name == "look" else act(self._backend, world, tool.name, arguments)
        page: Page = self._backend.show(world if move is None else world.apply(move))
        return Outcome(page.text, move, float(page.size))

    # ---- the verdict ----

    def _verify(self, answer: Any) -> Verdict:
        """The goal state, that nothing else changed, and the answer where one is asked for."""
        task: WebTask = self.task
        wanted, left = task.world.tables.differences(task.goal), self._world.tables.differences(task.goal)
        faults = []
        for path, (found, expected) in left.items():
            asked = any(f"{path}.".startswith(f"{p}.") or f"{p}.".startswith(f"{path}.") for p in wanted)
            what = "not as asked" if asked else "changed though nothing asked for it"
            faults.append(f"{path}: {what}: expected {dump(expected)}, found {dump(found)}")
        done = sum(path not in left for path in wanted)
        checks, held = len(wanted) + 1, done + (len(faults) == len(wanted) - done)
        reason = "wrong_state" if faults else "passed"
        if task.answer is not None:
            checks += 1
            if _plain(answer) == _plain(task.answer):
                held += 1
            else:
                reason = reason if faults else "wrong_answer"
                faults.append(f"answer: not what the site shows, found {dump(_plain(answer)[:80])}")
        if faults:
            return Verdict("fail", reason, held / checks, tuple(faults))
        return Verdict("pass", "passed", 1.0)

    def oracle(self) -> list[str]:
        """See :meth:`ToolEnv.oracle`: one call a turn, then the answer."""
        return [*(self.parser.render("", [call]) for call in self.task.calls), self.parser.render(self._answer(), [])]

    def cheats(self) -> list[list[str]]:
        """Claim success without acting; act rightly and on something else too; give a wrong answer; open the page of
        the first change by its address and go on from there.
        """
        task: WebTask = self.task
        right, done = self.oracle()[:-1], self.parser.render(self._answer(), [])
        found = [[self.parser.render('{"status":"success","passed":true}', [])]]
        if task.goal.hash != task.world.tables.hash:
            found.append([done])
        for trap in task.traps:
            calls, _ = play(task.solved[1], trap)
            found.append([*right, *(self.parser.render("", [call]) for call in calls), done])
        for lie in task.lies:
            found.append([*right, self.parser.render("", [Call("submit", {"answer": lie})])])
        world, backend, opened = task.world, DomBackend(), 0
        for at, call in enumerate(task.calls):
            after = world.apply(act(backend, world, call.name, call.arguments))
            if after.tables.hash != world.tables.hash:  # the page of the first change was opened after so many calls
                address = Call("go_to", {"path": unsigned(world.path)})
                if opened > 1 and task.answer is None:  # else what was read before stands in the answer
                    found.append([self.parser.render("", [address]), *right[opened:], done])
                break
            opened = at + 1 if after.path != world.path else opened
            world = after
        return found

    def _answer(self) -> str:
        return "Done." if self.task.answer is None else self.task.answer

    # ---- pictures and closing ----

    def render(self) -> Any:
        """The last turn as text (``"ansi"``), or a picture of the browser (``"rgb_array"``), height x width x 3."""
        if self.render_mode != "rgb_array":
            return super().render()
        return self._backend.screenshot(self._world)

    def close(self) -> None:
        """Let go of the browser's page and of the port."""
        self._backend.close()
        super().close()


def _plain(answer: Any) -> str:
    """An answer without the marks that a sentence puts around it."""
    return fenced(str(answer)).strip("\"'`.").strip().lower()
