"""Scripted solutions of some MiniWoB++ tasks, through nothing but what WebLite-v0 shows and its tools.

Each takes a :class:`Play` and leaves the page with the task done.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agent_gym import Call

__all__ = ["SOLVERS", "Play", "solve"]

LINE = re.compile(r'\[(\d+)\] ([\w-]+)((?:[#.][^\s"]+)*)(?: "(.*?)"(?= |$))?(.*)')


@dataclass(frozen=True)
class Node:
    """One line of the page."""

    number: int
    tag: str
    marks: str
    text: str
    rest: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        found = re.search(r"at (-?\d+),(-?\d+) (\d+)x(\d+)", self.rest)
        return tuple(map(int, found.groups())) if found else (0, 0, 0, 0)  # type: ignore[return-value]


class Play:
    """An episode in the making."""

    def __init__(self, env: gym.Env, task_id: str) -> None:
        self.env, self.base = env, env.unwrapped
        observation, _ = env.reset(seed=0, options={"task": task_id})
        self.words, _, self.page = observation.partition("\n")
        self.info: dict[str, Any] = {}

    def act(self, tool: str, **arguments: Any) -> None:
        """One call."""
        action = self.base.parser.render("", [Call(tool, arguments)])  # type: ignore[attr-defined]
        self.page, *_, self.info = self.env.step(action)

    @property
    def nodes(self) -> list[Node]:
        """The page's elements."""
        found = [LINE.fullmatch(line) for line in self.page.splitlines()]
        return [Node(int(m[1]), m[2], m[3] or "", m[4] or "", m[5]) for m in found if m]

    def find(self, text: str | None = None, tag: str = "", mark: str = "", at: int = 0) -> Node:
        """The element with that text, tag and mark (id or class)."""
        found = [n for n in self.nodes if text in (None, n.text) and tag in ("", n.tag)]
        return [n for n in found if not mark or mark in re.findall(r"[#.][^#.]+", n.marks)][at]

    def click(self, text: str | None = None, tag: str = "", mark: str = "", at: int = 0) -> None:
        """Click what ``find`` finds."""
        self.act("click", element=self.find(text, tag, mark, at).number)

    def fill(self, text: str, mark: str = "", tag: str = "input", at: int = 0) -> None:
        """Type into what ``find`` finds."""
        self.act("fill", element=self.find(None, tag, mark, at).number, text=text)

    def submit(self) -> None:
        """The button at the end."""
        self.click("Submit", "button")

    @property
    def quoted(self) -> list[str]:
        """The quoted parts of the request."""
        return re.findall(r'"([^"]*)"', self.words)

    def asked(self, pattern: str) -> str:
        """What the request has there."""
        found = re.search(pattern, self.words)
        if found is None:
            raise LookupError(f"{self.words!r} does not match {pattern!r}")
        return found[1]


SOLVERS: dict[str, Callable[[Play], None]] = {}


def solver(*names: str) -> Callable[[Callable[[Play], None]], Callable[[Play], None]]:
    """Register a solution for these tasks."""

    def register(fn: Callable[[Play], None]) -> Callable[[Play], None]:
        SOLVERS.update(dict.fromkeys(names, fn))
        return fn

    return register


def solve(env: gym.Env, name: str, seed: int) -> dict[str, Any]:
    """Play a solution and answer; the verdict."""
    play = Play(env, f"{name}-{seed}")
    SOLVERS[name](play)
    *_, info = env.step("Done.")
    return info["verdict"]


@solver("click-test", "click-test-transfer")
def one_button(p: Play) -> None:
    p.click(tag="button")


@solver("click-test-2")
def button_one(p: Play) -> None:
    p.click("ONE")


@solver("click-button")
def named_button(p: Play) -> None:
    p.click(p.quoted[0], "button")


@solver("click-link")
def named_link(p: Play) -> None:
    p.click(p.quoted[0])


@solver("click-button-sequence")
def sequence(p: Play) -> None:
    p.click("ONE")
    p.click("TWO")


@solver("focus-text")
def focus(p: Play) -> None:
    p.click(tag="input")


@solver("focus-text-2")
def focus_nth(p: Play) -> None:
    p.click(tag="input", at=int(p.asked(r"(\d+)")) - 1)


@solver("enter-text", "enter-text-dynamic")
def enter(p: Play) -> None:
    p.fill(p.quoted[0])
    p.submit()


@solver("enter-text-2")
def enter_cased(p: Play) -> None:
    p.fill(p.quoted[0].upper() if "upper case" in p.words else p.quoted[0].lower())
    p.submit()


@solver("enter-password")
def password(p: Play) -> None:
    p.fill(p.quoted[0])
    p.fill(p.quoted[0], at=1)
    p.submit()


@solver("enter-date")
def enter_date(p: Play) -> None:
    month, day, year = p.asked(r"([\d/]+)").split("/")
    p.fill(f"{year}-{month}-{day}")
    p.submit()


@solver("enter-time")
def enter_time(p: Play) -> None:
    hour, minute, half = re.search(r"(\d+):(\d+) (AM|PM)", p.words).groups()  # type: ignore[union-attr]
    p.fill(f"{int(hour) % 12 + 12 * (half == 'PM'):02}:{minute}")
    p.submit()


@solver("login-user")
def login(p: Play) -> None:
    p.fill(p.quoted[0], "#username")
    p.fill(p.quoted[1], "#password")
    p.click("Login")


@solver("click-option")
def option(p: Play) -> None:
    label = p.asked(r"Select (.*) and click")
    p.act("click", element=_box_of(p, label))
    p.submit()


def _box_of(p: Play, text: str) -> int:
    """The box that belongs to a label: inside it on the page, after it in the text."""
    nodes = p.nodes
    return nodes[next(i for i, n in enumerate(nodes) if n.text == text) + 1].number


@solver("click-checkboxes", "click-checkboxes-transfer", "click-checkboxes-large")
def boxes(p: Play) -> None:
    wanted = p.asked(r"Select (.*) and click").split(", ")
    for text in wanted:
        if text != "nothing":
            p.act("click", element=_box_of(p, text))
    p.submit()


@solver("click-dialog")
def close_dialog(p: Play) -> None:
    p.click(mark=".ui-dialog-titlebar-close")


@solver("click-dialog-2")
def dialog_button(p: Play) -> None:
    name = p.quoted[0]
    p.click(mark=".ui-dialog-titlebar-close") if name == "x" else p.click(name, "button")


@solver("click-tab")
def tab(p: Play) -> None:
    p.click("Tab #" + p.asked(r"#(\d)"))


@solver("click-tab-2", "click-tab-2-easy", "click-tab-2-medium")
def link_in_tab(p: Play) -> None:
    for tab in [n for n in p.nodes if n.text.startswith("Tab #")]:
        p.click(tab.text)
        if _click_word(p):
            return


def _click_word(p: Play) -> bool:
    """Click the quoted word, if a link of the page is that."""
    word = p.quoted[0].strip(".,")
    found = [n for n in p.nodes if n.tag in ("span", "a") and n.text.strip(".,") == word]
    if found:
        p.act("click", element=found[0].number)
    return bool(found)


@solver("click-collapsible", "click-collapsible-nodelay")
def collapsible(p: Play) -> None:
    p.click(tag="h3")
    p.submit()


@solver("click-collapsible-2", "click-collapsible-2-nodelay")
def link_in_collapsible(p: Play) -> None:
    for header in [n.number for n in p.nodes if n.tag == "h3"]:
        p.act("click", element=header)
        if _click_word(p):
            return


@solver("choose-list")
def choose(p: Play) -> None:
    p.act("select", element=p.find(tag="select").number, options=[p.asked(r"Select (.*) from the list")])
    p.submit()


@solver("simple-arithmetic", "simple-algebra")
def arithmetic(p: Play) -> None:
    text = " ".join(n.text for n in p.nodes if n.tag in ("div", "span") and n.text)
    numbers = re.findall(r"(-?\d+|x) ?([+x*-]) ?(-?\d+|x) ?= ?(-?\d*)", text)
    if not numbers:
        return
    a, sign, b, total = numbers[0]
    tries = range(-300, 300)
    compute: dict[str, Callable[[int, int], int]] = {
        "+": lambda x, y: x + y, "-": lambda x, y: x - y, "x": lambda x, y: x * y, "*": lambda x, y: x * y,
    }  # fmt: skip
    if total:
        value = next(
            v for v in tries
            if compute[sign](v if a == "x" else int(a), v if b == "x" else int(b)) == int(total)
        )  # fmt: skip
    else:
        value = compute[sign](int(a), int(b))
    p.fill(str(value))
    p.submit()


@solver("find-greatest")
def greatest(p: Play) -> None:
    cards = [n for n in p.nodes if ".card" in n.marks]
    numbers = []
    for card in cards:
        p.act("click", element=card.number)
        numbers.append(next(int(n.text) for n in p.nodes if n.text.isdecimal()))
    p.act("click", element=cards[numbers.index(max(numbers))].number)
    p.submit()


@solver("odd-or-even")
def odd_or_even(p: Play) -> None:
    numbers = [int(n.text) for n in p.nodes if re.fullmatch(r"-?\d+", n.text)]
    for at, number in enumerate(numbers):
        p.click("Even" if number % 2 == 0 else "Odd", "button", at=at)
    p.submit()


@solver("use-spinner")
def spinner(p: Play) -> None:
    wanted = int(p.asked(r"(-?\d+)"))
    for _ in range(abs(wanted)):
        p.click(mark=".ui-spinner-up" if wanted > 0 else ".ui-spinner-down")
    p.submit()


@solver("unicode-test", "click-widget")
def widget(p: Play) -> None:
    if not p.quoted:
        return p.click(p.asked(r"Click (?:on )?(.*?)\.?$"))
    kind = p.quoted[0]
    nodes = {
        "button": lambda n: n.tag == "button" and n.text != "Submit",
        "text": lambda n: n.tag == "input" and n.rest.strip().startswith("text"),
        "textarea": lambda n: n.tag == "textarea",
        "radio": lambda n: n.tag == "input" and "radio" in n.rest,
        "checkbox": lambda n: n.tag == "input" and "checkbox" in n.rest,
    }
    found = [n for n in p.nodes if nodes.get(kind, lambda n: n.text == kind)(n)]
    return p.act("click", element=found[0].number)


@solver("copy-paste")
def copy(p: Play) -> None:
    text = re.search(r'value "(.*)"', p.find(tag="textarea").rest)
    p.fill(text[1] if text else "", tag="input")
    p.submit()


@solver("read-table")
def table(p: Play) -> None:
    cells = [n.text for n in p.nodes if n.tag == "td"]
    p.fill(cells[cells.index(p.asked(r"value of (.*) into")) + 1])
    p.submit()


@solver("email-inbox-important", "email-inbox-delete")
def mark_mail(p: Play) -> None:
    sender, nodes = p.asked(r"by (\w+)"), p.nodes
    mark = ".star" if "important" in p.words else ".trash"
    at = next(i for i, n in enumerate(nodes) if n.text == sender)
    p.act("click", element=next(n.number for n in nodes[at:] if mark in n.marks))


@solver("guess-number")
def guess(p: Play) -> None:
    low, high = 0, 9
    for _ in range(5):
        if "ended" in p.page:
            return
        middle = (low + high) // 2
        p.fill(str(middle))
        p.submit()
        if "higher than" in p.page:
            low = middle + 1
        elif "lower than" in p.page:
            high = middle - 1


@solver("use-autocomplete-nodelay", "use-autocomplete")
def autocomplete(p: Play) -> None:
    p.fill(p.quoted[0])
    ending = p.quoted[1] if len(p.quoted) > 1 else ""
    p.act("click", element=next(n.number for n in p.nodes if n.tag in ("div", "a", "li") and "menu" in n.marks
                                and n.text.startswith(p.quoted[0]) and n.text.endswith(ending)))  # fmt: skip
    p.submit()


@solver("phone-book")
def phone_book(p: Play) -> None:
    name = p.asked(r"Find (\S+) in")
    for _ in range(12):
        if any(n.text == name for n in p.nodes):
            break
        p.click(">")
    kind = "phone" if "phone" in p.words else "email" if "email" in p.words else "address"
    p.click(mark=f".{kind}")


@solver("navigate-tree")
def tree(p: Play) -> None:
    for _ in range(12):
        if found := [n for n in p.nodes if n.text == p.quoted[0]]:
            p.act("click", element=found[0].number)
            return
        closed = [n for n in p.nodes if "expandable" in n.marks or "closed" in n.marks]
        p.act("click", element=closed[0].number)
