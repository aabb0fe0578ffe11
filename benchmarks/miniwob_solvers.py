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


@solver("click-tab-2", "click-tab-2-easy", "click-tab-2-medium", "click-tab-2-hard")
def link_in_tab(p: Play) -> None:
    for tab in [n for n in p.nodes if ".ui-tabs-anchor" in n.marks]:
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


@solver("ascending-numbers")
def ascending(p: Play) -> None:
    for node in sorted((n for n in p.nodes if n.text.isdecimal()), key=lambda n: int(n.text)):  # gone after the first
        x, y, width, height = node.box
        p.act("click_at", x=x + width // 2, y=y + height // 2)


@solver("button-delay")
def two_buttons(p: Play) -> None:
    p.click("ONE")
    for _ in range(int(p.asked(r"wait (\d+) second")) - 1):
        p.act("wait")
    p.click("TWO")


@solver("click-menu")
def menu(p: Play) -> None:
    *way, last = p.asked(r"Select (.*)").split(">")
    for text in way:
        p.act("hover", element=p.find(text).number)
    p.click(last)


@solver("drag-sort-numbers")
def sort_numbers(p: Play) -> None:
    for place in range(sum(n.tag == "div" for n in p.nodes)):
        items = [n for n in p.nodes if n.tag == "div"]
        _move(p, items, min(items[place:], key=lambda n: int(n.text)), place)
    p.submit()


def _move(p: Play, items: list[Node], item: Node, place: int) -> None:
    """Drag an item of a list to a place of it."""
    if items[place] != item:
        x, y, _, height = item.box
        down = place > items.index(item)
        edge = items[place].box[1] + (items[place].box[3] + 2 if down else -2)
        p.act("drag", x=x + 5, y=y + height // 2, to_x=x + 5, to_y=edge)


@solver("drag-items")
def drag_item(p: Play) -> None:
    items = [n for n in p.nodes if n.tag == "div" and n.text]
    at = next(i for i, n in enumerate(items) if n.text == p.asked(r"Drag ([\w-]+)"))
    numbers = re.search(r"(\d+)(?:st|nd|rd|th)", p.words)
    places = {"top": 0, "bottom": len(items) - 1, "up": at - 1, "down": at + 1}
    place = int(numbers[1]) - 1 if numbers else places[p.asked(r"\b(top|bottom|up|down)\b")]
    _move(p, items, items[at], place)


@solver("drag-box")
def drag_box(p: Play) -> None:
    p.act("drag_to", element=p.find("s").number, to=p.find("L").number)
    p.submit()


@solver("use-slider", "use-slider-2")
def sliders(p: Play) -> None:
    for at, wanted in enumerate(map(int, re.findall(r"-?\d+", p.words))):
        _slide(p, wanted, at)
    p.submit()


def _slide(p: Play, wanted: int, at: int = 0) -> None:
    """Set a slider by the arrow keys, once its handle has the focus."""
    p.click(mark=".ui-slider-handle", at=at)
    for _ in range(400):
        value = int([n for n in p.nodes if n.marks.startswith("#val")][at].text)
        if value == wanted:
            break
        p.act("press", key="ArrowRight" if value < wanted else "ArrowLeft")


@solver("form-sequence")
def slider_and_box(p: Play) -> None:
    _slide(p, int(p.asked(r"Select (-?\d+)")))
    p.click(mark="#checkbox-" + p.asked(r"the (\d)"))
    p.submit()


@solver("form-sequence-2")
def radio_and_text(p: Play) -> None:
    radios = [n.number for n in p.nodes if "radio" in n.rest]
    p.act("click", element=radios[int(p.asked(r"the (\d)\w+ radio")) - 1])
    p.fill(p.quoted[0], "#input-" + p.asked(r"the (\d)\w+ textbox"))
    p.submit()


@solver("form-sequence-3")
def dropdown_and_button(p: Play) -> None:
    p.act("select", element=p.find(tag="select").number, options=[p.asked(r"Choose (.*) from")])
    p.click(p.quoted[0], "button")


@solver("multi-layouts", "multi-orderings")
def movie(p: Play) -> None:
    genre, director, year = re.search(r"for (.*) movies directed by (.*) from year (\d+)", p.words).groups()  # type: ignore[union-attr]
    texts = {"genre": genre, "director": director, "year": year, "date": year}
    labels = [word for n in p.nodes for word in texts if word in n.text.lower()]
    for at, label in enumerate(labels):  # before its field or after it
        p.fill(texts[label], at=at)
    p.act("click", element=p.nodes[-1].number)


@solver("copy-paste-2")
def copy_nth(p: Play) -> None:
    text = re.search(r'value "(.*)"', p.find(mark="#text-" + p.asked(r"(\d)")).rest)
    p.fill(text[1] if text else "", tag="input")
    p.submit()


@solver("text-transform")
def transformed(p: Play) -> None:
    p.fill("".join(n.text for n in p.nodes if n.tag == "span"))
    p.submit()


@solver("find-word")
def nth_word(p: Play) -> None:
    p.fill(p.find(tag="p").text.split()[int(p.asked(r"(\d+)")) - 1].strip(".,"))
    p.submit()


@solver("scroll-text")
def last_word(p: Play) -> None:
    p.fill(p.find(tag="textarea").text.split()[-1].strip(".,"))
    p.submit()


@solver("read-table-2")
def labels(p: Play) -> None:
    nodes = p.nodes
    cells = [n.text for n in nodes if n.tag == "td"]
    for at, node in enumerate(nodes):
        if node.tag == "label":
            p.act("fill", element=nodes[at + 1].number, text=cells[cells.index(node.text.strip(":")) + 1])
    p.submit()


@solver("generate-number")
def generate(p: Play) -> None:
    limit = re.search(r"(greater|less) than (-?\d+)", p.words)
    for _ in range(60):
        p.click("Generate")
        shown = p.find(mark="#display-number").text
        if not re.fullmatch(r"-?\d+", shown):
            continue
        number = int(shown)
        if limit:
            fits = number > int(limit[2]) if limit[1] == "greater" else number < int(limit[2])
        else:
            fits = number % 2 == ("odd" in p.words)
        if fits:
            break
    p.submit()


@solver("grid-coordinate")
def coordinate(p: Play) -> None:
    p.click(mark="#" + p.asked(r"(\(.*\))"))


@solver("buy-ticket")
def ticket(p: Play) -> None:
    durations = [int(h) * 60 + int(m) for n in p.nodes for h, m in re.findall(r"^(\d+)h (\d+)m$", n.text)]
    prices = [int(n.text.split("$")[1]) for n in p.nodes if "$" in n.text]
    by = prices if re.search("cheap|expensive|cost|price", p.words) else durations
    best = max(by) if re.search("longest|most|expensive", p.words) else min(by)
    p.click(tag="button", at=by.index(best))


@solver("click-scroll-list")
def scroll_list(p: Play) -> None:
    p.act("select", element=p.find(tag="select").number, options=p.asked(r"Select (.*) from").split(", "))
    p.submit()


@solver("visual-addition")
def add_blocks(p: Play) -> None:
    p.fill(str(sum(".addition-block" in n.marks for n in p.nodes)))
    p.submit()


@solver("click-shades")
def shades(p: Play) -> None:
    channel = ("red", "green", "blue").index(p.asked(r"shades of (\w+)"))
    for node in p.nodes:
        if found := re.search(r"rgb\((\d+), (\d+), (\d+)\)", node.rest):
            levels = [int(level) for level in found.groups()]
            if levels[channel] == max(levels):
                p.act("click", element=node.number)
    p.submit()


@solver("social-media")
def one_post(p: Play) -> None:
    user, button = p.asked(r"user (@\w+)"), p.quoted[0]
    mark = f".{button.lower()}" if button in ("Reply", "Retweet", "Like") else ".more"
    at = next(i for i, n in enumerate(p.nodes) if n.text == user)
    p.act("click", element=next(n.number for n in p.nodes[at:] if mark in n.marks))
    if mark == ".more":
        p.act("click", element=next(n.number for n in p.nodes if n.tag == "li" and n.text.startswith(button)))


@solver("social-media-all", "social-media-some")
def posts(p: Play) -> None:
    user, mark = p.asked(r"by (@\w+)"), f".{p.quoted[0].lower()}"
    most = int(found[1]) if (found := re.search(r"on (\d+) post", p.words)) else 1000
    nodes = p.nodes
    for at in [i for i, n in enumerate(nodes) if n.text == user][:most]:
        p.act("click", element=next(n.number for n in nodes[at:] if mark in n.marks))
    p.submit()


@solver("stock-market")
def stock(p: Play) -> None:
    limit = float(p.asked(r"\$([\d.]+\d)"))
    for _ in range(130):
        price = p.find(mark="#stock-price").text
        if price and float(price[1:]) < limit:
            break
        p.act("wait")
    p.click("Buy")


@solver("click-color")
def color_box(p: Play) -> None:
    colors = {"red": "255, 0, 0", "blue": "0, 0, 255", "olive": "128, 128, 0", "lime": "0, 255, 0", "black": "0, 0, 0",
              "white": "255, 255, 255", "grey": "128, 128, 128", "purple": "128, 0, 128", "orange": "255, 165, 0",
              "yellow": "255, 255, 0", "cyan": "0, 255, 255", "pink": "255, 192, 203",
              "magenta": "255, 0, 255"}  # fmt: skip
    named = re.search(r"the (\w+) colored box", p.words)
    wanted = colors[named[1]] if named else p.asked(r"rgb\((.*?)\)")
    p.act("click", element=next(n.number for n in p.nodes if f"color rgb({wanted})" in n.rest))


@solver("order-food")
def food(p: Play) -> None:
    dishes: list[list[Node]] = []
    for node in p.nodes:
        if node.marks == ".item-name":
            dishes.append([])
        if dishes:
            dishes[-1].append(node)
    if found := re.search(r"Order (\d+) items? that (?:is|are) (.*)", p.words):
        kind = found[2].strip(".")
        fitting = [d for d in dishes if any(f'"{kind}"' in n.rest for n in d)][: int(found[1])]
    else:
        wanted = p.words.removeprefix("Order ").strip(".")
        fitting = [d for d in dishes if d[0].text in wanted]
    for dish in fitting:
        p.act("click", element=next(n.number for n in dish if ".add" in n.marks))
    p.click("Order!")


@solver("email-inbox-noscroll", "email-inbox", "email-inbox-star-reply", "email-inbox-forward", "email-inbox-reply")
def mail(p: Play) -> None:
    sender, nodes = p.asked(r"by (\w+)"), p.nodes
    at = next(i for i, n in enumerate(nodes) if n.text == sender)
    if re.search("important|trash|delete", p.words):
        mark = ".star" if "important" in p.words else ".trash"
        return p.act("click", element=next(n.number for n in nodes[at:] if mark in n.marks))
    p.act("click", element=nodes[at].number)
    if "reply" in p.words:
        p.click("Reply")
        p.fill(p.quoted[0], tag="textarea")
    else:
        p.click("Forward")
        p.fill(p.asked(r"to (\w+)\.?$"), tag="input")
    return p.click(mark="#send-reply" if "reply" in p.words else "#send-forward")


@solver("drag-circle", "drag-single-shape")
def drag_away(p: Play) -> None:
    way = p.asked(r"(up|down|left|right)")
    x, y, width, height = p.nodes[0].box
    x, y = x + width // 2, y + height // 2
    dx, dy = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}[way]
    p.act("drag", x=x, y=y, to_x=x + 25 * dx, to_y=y + 25 * dy)
    p.submit()


@solver("drag-shapes")
def drag_shapes(p: Play) -> None:
    tag = {"circles": "circle", "rectangles": "rect", "triangles": "polygon"}[p.asked(r"all (\w+)")]
    box = p.find(mark="#shape-container").number
    for shape in [n.number for n in p.nodes if n.tag == tag and n.number != box]:
        p.act("drag_to", element=shape, to=box)
    p.submit()


@solver("resize-textarea")
def resize(p: Play) -> None:
    x, y, width, height = p.find(mark=".ui-resizable-se").box
    x, y = x + width // 2, y + height // 2
    way = 1 if "larger" in p.words else -1
    dx, dy = (0, 20 * way) if "height" in p.words else (20 * way, 0)
    p.act("drag", x=x, y=y, to_x=x + dx, to_y=y + dy)
    p.submit()


@solver("draw-line")
def line(p: Play) -> None:
    x, y, width, height = p.find(tag="circle").box
    x, y = x + width // 2, y + height // 2
    dx, dy = (0, 20) if "vertical" in p.words else (20, 0)
    p.act("drag", x=x - dx, y=y - dy, to_x=x + dx, to_y=y + dy)
    p.submit()


@solver("identify-shape")
def shape(p: Play) -> None:
    figure = p.nodes[0]
    names = {"circle": "Circle", "rect": "Rectangle", "polygon": "Triangle"}
    p.click("Number" if figure.text.isdecimal() else names.get(figure.tag, "Letter"), "button")


@solver("simon-says")
def simon(p: Play) -> None:
    order: list[int] = []
    still = 0
    while still < 3:  # each wait goes on to the next button that lights up or goes out
        p.act("wait")
        pushed = [n.number for n in p.nodes if ".push" in n.marks]
        order, still = order + pushed, 0 if pushed else still + 1
    for number in order:
        p.act("click", element=number)


@solver("choose-date-nodelay", "choose-date", "choose-date-easy", "choose-date-medium")
def date(p: Play) -> None:
    month, day, year = map(int, p.asked(r"([\d/]+)").split("/"))
    p.click(mark="#datepicker")
    _pick(p, month, day, year)
    p.submit()


def _pick(p: Play, month: int, day: int, year: int) -> None:
    """Choose a day of the calendar that is shown."""
    names = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
             "November", "December")  # fmt: skip
    for _ in range(40):
        shown = names.index(p.find(mark=".ui-datepicker-month").text) + 12 * int(
            p.find(mark=".ui-datepicker-year").text
        )
        ahead = month - 1 + 12 * year - shown
        if not ahead:
            break
        p.click(mark=".ui-datepicker-next" if ahead > 0 else ".ui-datepicker-prev")
    p.click(str(day), "a")


@solver("search-engine")
def search(p: Play) -> None:
    p.fill(p.quoted[0], "#search-text")
    p.click("Search", "button")
    left = int(p.asked(r"the (\d+)\w+ search result")) - 1
    for _ in range(10):
        titles = [n for n in p.nodes if ".search-title" in n.marks]
        if left < len(titles):
            return p.act("click", element=titles[left].number)
        left -= len(titles)
        p.click(">")
    return None


@solver("count-shape")
def count_shapes(p: Play) -> None:
    asked = p.asked(r"How many (.*) are there").split()
    buttons = [n for n in p.nodes if n.tag == "button"]
    shapes = [n for n in p.nodes if n.tag != "button"]
    kinds = {"circle": "circle", "rectangle": "rect", "triangle": "polygon"}
    colors = {"red": "255, 0, 0", "green": "0, 128, 0", "blue": "0, 0, 255", "aqua": "0, 255, 255", "black": "0, 0, 0",
              "magenta": "255, 0, 255", "yellow": "255, 255, 0"}  # fmt: skip

    def fits(node: Node, word: str) -> bool:
        word = word.rstrip("s") if word not in kinds else word
        if word in ("large", "small"):
            tall = node.box[3] >= (18 if node.tag == "text" else 15)
            return tall == (word == "large")
        if word in colors:
            return f"rgb({colors[word]})" in node.rest
        if word in kinds:
            return node.tag == kinds[word]
        if word in ("letter", "number", "digit"):
            return node.tag == "text" and node.text.isdecimal() == (word != "letter")
        return word in ("item", "shape") or (node.tag == "text" and node.text == word)

    count = sum(all(fits(node, word) for word in asked) for node in shapes)
    p.click(str(count), "button") if any(b.text == str(count) for b in buttons) else None


@solver("terminal")
def terminal(p: Play) -> None:
    ending = found[1] if (found := re.search(r"extension (\.\w+)", p.words)) else ""

    def enter(line: str) -> None:
        p.fill(line, "#terminal-target")
        p.act("press", key="Enter")

    enter("ls")
    names = [word for n in p.nodes if ".output" in n.marks for word in n.text.split()]
    fitting = [name for name in names if (name.endswith(ending) if ending else "." not in name and name.isalpha())]
    enter(f"rm {fitting[-1]}")


@solver("email-inbox-forward-nl", "email-inbox-forward-nl-turk")
def forward(p: Play) -> None:
    senders = {n.text for n in p.nodes if n.marks == ".email-sender"}
    names = re.findall(r"(?:from|by) ([A-Z]\w+)|\b([A-Z]\w+)'s", p.words)
    sender = next(name for pair in names for name in pair if name in senders)
    others = [w for w in re.findall(r"\b[A-Z][a-z]+\b", p.words) if w != sender]
    p.click(sender)
    p.click("Forward")
    p.fill(others[-1], tag="input")
    p.click(mark="#send-forward")


@solver("click-pie-nodelay", "click-pie")
def pie(p: Play) -> None:
    for _ in range(4):
        found = [n for n in p.nodes if n.tag == "tspan" and n.text == p.quoted[0] and n.box[2] > 2]
        if found:
            return p.act("click", element=found[0].number)
        p.click("+") if any(n.text == "+" for n in p.nodes) else p.act("wait")
    return None
