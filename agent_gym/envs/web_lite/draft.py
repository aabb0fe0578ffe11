"""What goals write a task into: names, records, words, and the steps of a solution."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from agent_gym.envs.api_agent.world import Record
from agent_gym.envs.splits import split_of
from agent_gym.envs.web_lite.site import Goal

__all__ = ["Clash", "Draft", "Step"]

Step = tuple[str, str, str]
"""A tool; the name of an element, or the address to go to; what is written there."""


class Clash(Exception):
    """These goals do not go together, or there is no room for them."""


_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl", "st")
_VOWELS = ("a", "e", "i", "o", "u")


@dataclass
class Draft:
    """A task in the making: a goal writes records, words and the steps of a solution into it.

    Args:
        rng: Source of all chance.
        split: Names drawn here belong to this split.
        rows: Rows of a page.
        total: Rows of the whole list. It is five pages long where something is far away.
        namesakes: Whether traps get names that begin as the right one does.
        parts: The steps of each goal.
    """

    rng: random.Random
    split: str
    rows: int
    total: int
    namesakes: bool
    tables: dict[str, dict[str, Record]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    parts: list[list[Step]] = field(default_factory=list)
    traps: list[tuple[Step, ...]] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    answer: str | None = None

    def __post_init__(self) -> None:
        self._names: set[str] = set()
        rows, total = self.rows, self.total
        self._slots = {
            "here": list(range(rows)),
            "far": list(range(3 * rows, total)),
            "any": list(range(rows, min(3 * rows, total))),
        }
        # Of the objects far away all but one stand on the last page, even after two records before them are gone:
        # paging to both takes no fewer steps than two searches.
        self._edge = 4 * rows + 2
        for slots in self._slots.values():
            self.rng.shuffle(slots)

    # ---- names ----

    def word(self, like: str = "") -> str:
        """A new name of two or three syllables; ``like`` another one and a word more, where namesakes are wanted."""
        begin = f"{like} " if like and self.namesakes else ""
        while True:
            syllables = range(2 + (self.rng.random() < 0.5))
            word = "".join(self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) for _ in syllables).capitalize()
            if split_of(f"web {word}") == self.split and word not in self._names:
                self._names.add(word)
                return begin + word

    def code(self, prefix: str) -> str:
        """A new code such as ``C4821``."""
        while True:
            code = f"{prefix}{self.rng.randrange(1000, 10_000)}"
            if split_of(f"web {code}") == self.split and code not in self._names:
                self._names.add(code)
                return code

    # ---- records ----

    def place(self, where: str = "any") -> str:
        """A free place in the site's long list: ``here`` on its first page, ``far`` on its last but one or last.

        Returns:
            The key of the record that goes there.

        Raises:
            Clash: If that part of the list is full.
        """
        for part in (where,) if where != "any" else ("any", "far", "here"):
            if slots := self._slots[part]:
                slot = slots.pop()
                if part == "far" and slot < self._edge:
                    self._slots["any"] += [other for other in slots if other < self._edge]
                    slots[:] = [other for other in slots if other >= self._edge]
                return f"{slot:02}"
        raise Clash("the list is full")

    @property
    def room(self) -> bool:
        """Whether the list has free places."""
        return any(self._slots.values())

    def new(self, table: str, record: Record) -> None:
        """Add a record."""
        if record.key in self.tables[table]:
            raise Clash(f"{table} has {record.key!r}")
        self.tables[table][record.key] = record

    # ---- words and steps ----

    def alone(self) -> None:
        """This goal goes with no other.

        Raises:
            Clash: If there is another.
        """
        if len(self.parts) > 1:
            raise Clash("alone")

    def say(self, *wordings: str) -> None:
        """A sentence of the request, in one of these wordings."""
        self.words.append(self.rng.choice(wordings))

    def find(self, where: str, name: str) -> None:
        """Search for a name, if it is far away."""
        if where == "far":
            self.fill("Search", name)
            self.click("Search")

    def click(self, name: str) -> None:
        """Click a link, a button or a box."""
        self.parts[-1].append(("click", name, ""))

    def fill(self, name: str, text: str) -> None:
        """Write into a field."""
        self.parts[-1].append(("fill", name, text))

    def select(self, name: str, option: str) -> None:
        """Choose an option."""
        self.parts[-1].append(("select", name, option))

    def trap(self, path: str, *names: str) -> None:
        """Clicks that are tempting and wrong, on the page at ``path`` (without the session's number)."""
        self.traps.append((("go_to", path, ""), *(("click", name, "") for name in names)))

    def expect(self, answer: str, *lies: str) -> None:
        """What must be answered, and what it might be mistaken for.

        Raises:
            Clash: If another goal asks something too.
        """
        if self.answer is not None:
            raise Clash("two questions")
        self.answer, self.lies = answer, list(lies)

    def build(self, goal: Goal, way: str) -> None:
        """Add a goal."""
        self.parts.append([])
        goal.build(self, way)
