"""MiniWoB++ through Chromium: the pages of the PyPI package ``miniwob``, with their own rewards.

A page's scripts cannot be snapshotted. They are deterministic instead: their random numbers are seeded, and their clock
stands still but for a fixed time after each action, so :func:`reexecute` comes back to any moment of an episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

from agent_gym.costs import Latency
from agent_gym.env import Outcome, ToolEnv
from agent_gym.envs.splits import check_split
from agent_gym.envs.web_lite.chromium import CENTRE, OnePage, find_chromium, open_page, pixels
from agent_gym.replay import Drift
from agent_gym.tools import Tool, ToolError
from agent_gym.trajectory import Trajectory
from agent_gym.verdict import InfraError, Verdict

__all__ = ["MiniWoBEnv", "MiniWoBTask", "Screen", "page_names", "reexecute"]

SIZE = {"width": 500, "height": 320}
STEP_MS = 1000
"""What the page's clock goes on by after each action, unless a timer of the page is due before."""
FRAME_MS = 50
"""A timer of less is no tick: it draws an animation."""
MOST_MOVES = 5
"""So often the mouse follows an element that moves under it."""
NO_TIMEOUT_MS = 2_000_000_000
"""An episode's time by the page's clock: the turn limit comes first."""
TODAY = 1_481_760_000
"""When every episode starts by the page's clock, in seconds: 15 December 2016, among the dates that the tasks name."""

# Some pages draw before the episode starts, so Math.random is seeded from the very first script on.
SEEDED = """(() => {
  let state = %d;
  Math.random = () => {
    state = (state + 0x6D2B79F5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
})();"""
# Which elements listen to the mouse, other than to its click, and which timers tick.
NOTED = """(() => {
  const pointed = window[Symbol.for('agent_gym.pointed')] = new WeakSet();
  const kinds = /^(mouse|pointer|drag)/, listen = EventTarget.prototype.addEventListener;
  EventTarget.prototype.addEventListener = function(kind, ...rest) {
    if (kinds.test(kind) && this instanceof Element) pointed.add(this);
    return listen.call(this, kind, ...rest);
  };
  const ticks = window[Symbol.for('agent_gym.ticks')] = new Map();
  const note = (start, stop, left) => {
    const [begin, end] = [window[start], window[stop]];
    window[start] = (fn, ms, ...rest) => {
      const id = begin(fn, ms, ...rest), at = Date.now();
      ticks.set(id, () => left(ms, Date.now() - at));
      return id;
    };
    window[stop] = id => { ticks.delete(id); end(id); };
  };
  note('setInterval', 'clearInterval', (ms, gone) => ms);
  note('setTimeout', 'clearTimeout', (ms, gone) => ms - gone);
})();"""
STEP = """([step, frame]) => Math.min(
  step, ...Array.from(window[Symbol.for('agent_gym.ticks')].values(), left => left()).filter(ms => ms >= frame)
)"""
# Pictures that a style brings in only under the mouse: once they are there, nothing moves when they show.
PICTURES = """() => Promise.all(Array.from(document.styleSheets).flatMap(sheet => {
  let rules = [];
  try { rules = Array.from(sheet.cssRules); } catch (error) { /* a file of its own may not be read */ }
  return rules.flatMap(rule => Array.from(rule.cssText.matchAll(/url\\("([^"]*)"\\)/g), found => found[1]));
}).map(url => {
  const picture = new Image();
  (window[Symbol.for('agent_gym.pictures')] ||= []).push(picture);
  picture.src = url;
  return picture.decode().catch(() => null);
}))"""
START = """([seed, time]) => { core.EPISODE_MAX_TIME = time; Math.seedrandom(seed); core.startEpisodeReal(); }"""
READER = """() => {
  const mark = Symbol.for('agent_gym'), numbers = window[mark] = window[mark] || new Map();
  const outside = new Set(['reward-display', 'click-canvas', 'sync-task-cover', 'query']);
  const squeeze = text => text.replace(/\\s+/g, ' ').trim();
  const shown = node => {
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    return (box.width > 0 || box.height > 0) && style.visibility !== 'hidden' && style.display !== 'none';
  };
  const pointed = window[Symbol.for('agent_gym.pointed')];
  const handles = '.ui-draggable, .ui-sortable-handle, .ui-slider-handle, .ui-resizable-handle, [draggable=true]';
  const points = node => {  // it, or what it is a part of
    for (; node && !['area', 'wrap'].includes(node.id) && node !== document.body; node = node.parentElement)
      if (pointed.has(node) || node.matches(handles)) return true;
    return false;
  };
  const lines = [];
  const describe = (node, own) => {
    if (!numbers.has(node)) numbers.set(node, numbers.size + 1);
    const tag = node.tagName.toLowerCase(), svg = node instanceof SVGElement, box = node.getBoundingClientRect();
    const parts = [`[${numbers.get(node)}] ${tag}`];
    if (node.id) parts[0] += `#${node.id}`;
    const kinds = (node.getAttribute('class') || '').trim();
    if (kinds) parts[0] += `.${kinds.split(/\\s+/).join('.')}`;
    if (own) parts.push(`"${own}"`);
    if (['checkbox', 'radio'].includes(node.type)) parts.push(node.type, node.checked ? 'on' : 'off');
    else if (tag === 'input' || tag === 'textarea') parts.push(node.type, `value "${node.value}"`);
    else if (tag === 'select') {
      const chosen = Array.from(node.selectedOptions).map(o => squeeze(o.textContent)).join(', ');
      parts.push(`value "${chosen}" of ${Array.from(node.options).map(o => squeeze(o.textContent)).join(', ')}`);
    }
    if (tag === 'img') {
      for (const name of ['alt', 'title']) if (node[name]) parts.push(`${name} "${squeeze(node[name])}"`);
    }
    if (document.activeElement === node) parts.push('focused');
    if (svg) parts.push(`fill ${getComputedStyle(node).fill}`);
    else if (!own && !['INPUT', 'SELECT', 'TEXTAREA', 'BUTTON'].includes(node.tagName)) {
      const color = getComputedStyle(node).backgroundColor;
      if (color !== 'rgba(0, 0, 0, 0)') parts.push(`color ${color}`);
    }
    if (svg || tag === 'canvas' || (!own && tag === 'div') || points(node)) {
      parts.push(`at ${Math.round(box.x)},${Math.round(box.y)} ${Math.round(box.width)}x${Math.round(box.height)}`);
    }
    lines.push(parts.join(' '));
  };
  const walk = node => {
    for (const child of node.children) {
      if (outside.has(child.id) || ['SCRIPT', 'STYLE', 'BR', 'HR', 'OPTION'].includes(child.tagName)) continue;
      const texts = Array.from(child.childNodes).filter(n => n.nodeType === Node.TEXT_NODE).map(n => n.data);
      const own = squeeze(texts.join(' '));
      const control = ['INPUT', 'SELECT', 'TEXTAREA', 'BUTTON', 'A'].includes(child.tagName);
      if (shown(child) && (own || control)) describe(child, own);
      const before = lines.length;
      if (child.tagName !== 'SELECT') walk(child);
      if (lines.length === before && !own && !control && shown(child)) describe(child, own);  // nothing in it is shown
    }
  };
  walk(document.body);
  const query = document.getElementById('query');
  const tints = Array.from(query ? query.querySelectorAll('*') : []).map(n => getComputedStyle(n).backgroundColor);
  const tinted = tints.filter(color => color !== 'rgba(0, 0, 0, 0)').map(color => ` (color ${color})`).join('');
  return {
    query: query ? squeeze(query.innerText || query.textContent) + tinted : '', lines: lines, done: WOB_DONE_GLOBAL,
    reward: Number(WOB_RAW_REWARD_GLOBAL), why: WOB_REWARD_REASON ? String(WOB_REWARD_REASON) : '',
  };
}"""
FIND = """number => {
  for (const [node, n] of window[Symbol.for('agent_gym')] || []) {
    if (n !== number || !node.isConnected) continue;
    const box = node.getBoundingClientRect();
    if (box.width > 0 || box.height > 0) return node;
  }
  return null;
}"""
LATENCY = Latency(30.0, 8.0)


def click(element: int) -> None:
    """Click an element.

    Args:
        element: Its number on the page.
    """


def fill(element: int, text: str) -> None:
    """Click into a field and type, in place of what stands there.

    Args:
        element: Its number on the page.
        text: What to type.
    """


def select(element: int, options: list[str]) -> None:
    """Choose options of a select.

    Args:
        element: Its number on the page.
        options: As the page spells them.
    """


def press(key: str) -> None:
    """Press a key or a combination, where the focus is.

    Args:
        key: Such as Enter, ArrowDown, a, or Control+C.
    """


def click_at(x: int, y: int) -> None:
    """Click at a place of the page.

    Args:
        x: Pixels from the left.
        y: Pixels from the top.
    """


def drag(x: int, y: int, to_x: int, to_y: int) -> None:
    """Press the mouse button at one place and let it go at another.

    Args:
        x: Pixels from the left.
        y: Pixels from the top.
        to_x: Where to, from the left.
        to_y: Where to, from the top.
    """


def hover(element: int) -> None:
    """Move the mouse onto an element and leave it there.

    Args:
        element: Its number on the page.
    """


def drag_to(element: int, to: int) -> None:
    """Press the mouse button on one element and let it go on another.

    Args:
        element: Number of the element to drag.
        to: Number of the element to drag it onto.
    """


def wait() -> None:
    """Let a second pass, or less: up to the page's next tick."""


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(fn, cacheable=False, latency=LATENCY)
        for fn in (click, fill, select, press, click_at, drag, hover, drag_to, wait)
    )
}


def _pages() -> Path:
    """The folder of the package's pages.

    Raises:
        ImportError: If the package is not installed.
    """
    found = find_spec("miniwob")
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            "tasks='miniwob' needs the pages of the package miniwob: pip install 'agent-gym[miniwob]' "
            "(or pip install --no-deps miniwob: its code is not used)"
        )
    return Path(found.submodule_search_locations[0]) / "html" / "miniwob"


@lru_cache(maxsize=1)
def page_names() -> tuple[str, ...]:
    """The names of the package's tasks."""
    return tuple(sorted(file.stem for file in _pages().glob("*.html")))


@dataclass(frozen=True)
class Screen:
    """What a page shows. Its scripts' variables are no part of it: this is no snapshot.

    Args:
        text: The elements.
        done: Whether the page has ended the episode.
        reward: The page's own reward, without its discount for time.
        why: The page's reason for it, if it gives one.
    """

    text: str
    done: bool = False
    reward: float = 0.0
    why: str = ""

    @cached_property
    def hash(self) -> str:
        """Of all that is shown."""
        return blake2b(repr((self.text, self.done, self.reward)).encode("utf-8", "replace"), digest_size=16).hexdigest()

    def apply(self, delta: Screen) -> Screen:
        """The next screen."""
        return delta


@dataclass(frozen=True)
class MiniWoBTask:
    """A page and its seed.

    Args:
        id: ``name-seed``.
        words: The page's own request.
        world: What it shows at first.
        latency_seed: The seed.
    """

    id: str
    words: str
    world: Screen
    latency_seed: int

    @property
    def request(self) -> str:
        """The request and the page."""
        return f"{self.words}\n{self.world.text}"


class MiniWoBEnv(OnePage, ToolEnv):
    """MiniWoB++. The page ends the episode; the agent's final answer then fetches the verdict.

    Args:
        sites: Names of tasks; all of them by default.
        threshold: Least reward of the page that is a pass. 1 is the package's binary reward; pages that grade
            (``bisect-angle``, ``find-midpoint`` ...) give less for all but a perfect answer.
        tasks: ``"miniwob"``.
        split: There is one set of tasks, whatever the split.
        backend: ``"chromium"``.
        render_mode: ``"ansi"``, ``"rgb_array"`` or None.
        **kwargs: See :class:`~agent_gym.env.ToolEnv`.

    Raises:
        ImportError: If Playwright or the package ``miniwob`` is not installed.
        BrowserUnavailable: If there is no Chromium.
        ValueError: For a value outside what is listed here.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
    system_prompt = (
        "You use a web page of 160 by 210 pixels. Each element has a number. Use the tools to do what the page asks. "
        "A message without a tool call is the final answer."
    )

    def __init__(
        self,
        *,
        sites: Sequence[str] | None = None,
        threshold: float = 1.0,
        tasks: str = "miniwob",
        split: str = "train",
        backend: str = "chromium",
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(render_mode=None if render_mode == "rgb_array" else render_mode, **kwargs)
        if backend != "chromium":
            raise ValueError(f"backend={backend!r}: the pages of MiniWoB++ are scripts; they need 'chromium'")
        check_split(split)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold!r}: a reward above 0, at most 1")
        find_chromium()
        known = page_names()
        names = known if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
        if unknown := [name for name in names if name not in known] or (None if names else ["(none)"]):
            raise ValueError(f"sites: MiniWoB++ has no task {unknown[0]!r}; the first of {len(known)} is {known[0]!r}")
        self.sites, self.threshold, self.render_mode = names, float(threshold), render_mode

    # ---- the page ----

    def _open(self, name: str, seed: int) -> dict[str, Any]:
        """Load a page and start its episode; each gets a context of its own, since clocks cannot be put back."""
        self._drop()
        self._page = open_page(viewport=SIZE)
        page = self._page
        with self._working():
            page.clock.pause_at(TODAY)  # not installed before: until the pause, its time would flow
            page.add_init_script(NOTED)
            page.add_init_script(SEEDED % (seed % 2**31))
            page.goto((_pages() / f"{name}.html").as_uri())
            page.evaluate(PICTURES)
            page.evaluate(START, [str(seed), NO_TIMEOUT_MS])
            for _ in range(100):
                if page.evaluate("() => WOB_TASK_READY"):
                    break
                page.clock.run_for(100)
            return page.evaluate(READER)

    def _find(self, number: int) -> Any:
        handle = self._page.evaluate_handle(FIND, number).as_element()
        if handle is None:
            raise ToolError("not_found", f"the page that is shown has no element {number}")
        return handle

    def _point(self, number: int) -> tuple[Any, float, float]:
        """Move the mouse onto an element, and after it where the page moves it for that."""
        place: list[float] = []
        for _ in range(MOST_MOVES):
            handle = self._find(number)
            before, place = place, handle.evaluate(CENTRE)
            if place == before:
                break
            self._page.mouse.move(*place)
        return (handle, *place)

    def _click(self, number: int) -> Any:
        handle, x, y = self._point(number)
        self._page.mouse.click(x, y)
        return handle

    def _drag(self, x: float, y: float, to_x: float, to_y: float) -> None:
        mouse = self._page.mouse
        mouse.move(x, y)
        mouse.down()
        mouse.move((x + to_x) / 2, (y + to_y) / 2)
        mouse.move(to_x, to_y)
        mouse.up()

    def _act(self, tool: str, given: dict[str, Any]) -> None:
        page = self._page
        if tool == "click":
            self._click(given["element"])
        elif tool == "fill":
            handle = self._find(given["element"])
            kind = handle.evaluate("node => node.isContentEditable ? 'text' : node.type || ''")
            if kind in ("", "button", "submit", "checkbox", "radio", "select-one", "select-multiple"):
                raise ToolError("invalid", f"element {given['element']} takes no text")
            if kind in ("date", "time", "range", "color", "month", "week", "datetime-local"):
                try:
                    handle.fill(given["text"])
                except Exception as error:
                    raise ToolError("invalid", f"element {given['element']} takes no such {kind}") from error
                return
            self._click(given["element"])
            page.keyboard.press("Control+A")
            page.keyboard.press("Delete")
            page.keyboard.type(given["text"])
        elif tool == "select":
            handle = self._find(given["element"])
            found = handle.evaluate(
                "node => node.tagName === 'SELECT' ? Array.from(node.options).map(o => o.textContent.trim()) : null"
            )
            if found is None or any(option not in found for option in given["options"]):
                offers = "is no select" if found is None else f"offers {', '.join(found)}"
                raise ToolError("not_found", f"element {given['element']} {offers}")
            handle.select_option(label=given["options"])
        elif tool == "press":
            try:
                page.keyboard.press(given["key"])
            except Exception as error:
                if "Unknown key" not in str(error):
                    raise
                raise ToolError("invalid", f"there is no key {given['key']!r}") from error
        elif tool == "click_at":
            page.mouse.click(given["x"], given["y"])
        elif tool == "drag":
            self._drag(given["x"], given["y"], given["to_x"], given["to_y"])
        elif tool == "hover":
            self._point(given["element"])
        elif tool == "drag_to":
            handle, target = self._find(given["element"]), self._find(given["to"])
            target.evaluate(CENTRE)  # into view, if one can see both
            self._drag(*handle.evaluate(CENTRE), *target.evaluate(CENTRE))

    # ---- what ToolEnv asks for ----

    def _make_task(self, task_id: str | None) -> MiniWoBTask:
        if task_id is None:
            name = self.sites[int(self.np_random.integers(len(self.sites)))]
            task_id = f"{name}-{int(self.np_random.integers(2**31))}"
        name, _, seed = task_id.rpartition("-") if isinstance(task_id, str) else ("", "", "")
        if name not in page_names() or not seed.isdecimal():
            raise ValueError(f"unknown task id {task_id!r}: it reads name-seed, such as 'click-test-7'")
        shown = self._open(name, int(seed))
        return MiniWoBTask(task_id, shown["query"], _screen(shown), int(seed))

    def _tools(self) -> Mapping[str, Tool]:
        return TOOLS

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        if self._world.done:
            raise ToolError("conflict", "the page has ended the task: give the final answer")
        if self._page is None:
            raise InfraError("the browser is gone")
        with self._working():
            self._act(tool.name, arguments)
            self._page.clock.run_for(self._page.evaluate(STEP, [STEP_MS, FRAME_MS]))
            screen = _screen(self._page.evaluate(READER))
        return Outcome(screen.text, screen, float(screen.text.count("\n") + 1))

    def _verify(self, answer: Any) -> Verdict:
        """The page's own reward."""
        screen: Screen = self._world
        if not screen.done:
            return Verdict("fail", "wrong_state", 0.0, ("the page has not ended the task",))
        score = min(max(screen.reward, 0.0), 1.0)
        if screen.reward >= self.threshold:
            return Verdict("pass", "passed", score)
        return Verdict("fail", "wrong_state", score, (f"the page's reward is {screen.reward:g} {screen.why}".strip(),))

    def oracle(self) -> list[str]:
        """There is none: the tasks are the package's own.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("MiniWoB++ has no oracle")

    def get_state(self) -> tuple[Any, ...]:
        """Not possible.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "a MiniWoB++ page runs scripts, so it has no snapshot: agent_gym.envs.web_lite.miniwob.reexecute plays the "
            "seeded episode again up to a step"
        )

    def render(self) -> Any:
        """The last turn as text (``"ansi"``), or a picture of the browser (``"rgb_array"``), height x width x 3."""
        if self.render_mode != "rgb_array":
            return super().render()
        if self._page is None:
            raise InfraError("the browser is gone")
        return pixels(self._page)

    def close(self) -> None:
        """Close the page; the browser stays for others."""
        self._drop()
        super().close()


def _screen(shown: dict[str, Any]) -> Screen:
    over = ["The page has ended the task."] if shown["done"] else []
    lines = shown["lines"] if not over else []
    return Screen("\n".join(lines + over), shown["done"], shown["reward"], shown["why"])


def reexecute(env: gym.Env, trajectory: Trajectory, steps: int | None = None) -> tuple[str, dict[str, Any]]:
    """Come back to a moment of a recorded episode by playing it again: what stands in for ``restore`` where there is
    no snapshot.

    Args:
        env: An environment made as the recorded one was.
        trajectory: The recorded episode.
        steps: Play so many of its steps; all of them by default.

    Returns:
        The observation and info after the last of them.

    Raises:
        ValueError: If the trajectory has not so many steps.
        Drift: If the page does not show what was recorded.
    """
    count = len(trajectory.steps) if steps is None else steps
    if not 0 <= count <= len(trajectory.steps):
        raise ValueError(f"steps={steps}: the trajectory has {len(trajectory.steps)}")
    observation, info = env.reset(seed=trajectory.seed, options={"task": trajectory.task_id})
    for number, step in enumerate(trajectory.steps[:count]):
        if observation != step.observation:
            raise Drift(f"step {number}: the page does not show what was recorded")
        observation, _, _, _, info = env.step(step.action)
        if info["state_hash"] != step.state_hash:
            raise Drift(f"step {number}: state {info['state_hash']} after it, recorded was {step.state_hash}")
    return observation, info
