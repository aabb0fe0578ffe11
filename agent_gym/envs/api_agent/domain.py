"""Domains (state model, tools, goals) and the generator that composes their goals into tasks."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from pydantic_core import to_json

from agent_gym.costs import Latency
from agent_gym.env import Outcome
from agent_gym.envs.api_agent.answer import spoken
from agent_gym.envs.api_agent.schema import SchemaTool
from agent_gym.envs.api_agent.world import Record, Transaction, World
from agent_gym.envs.splits import split_of
from agent_gym.tools import Call, Tool

__all__ = ["DOMAINS", "APITask", "Domain", "Draft", "compose", "register_domain", "run_tool"]

R = TypeVar("R", bound=Record)

# what the built-in services take: an indexed look-up, a slow scan, a write
LOOKUP = Latency(base_ms=40.0, per_unit_ms=2.0)
SCAN = Latency(base_ms=300.0, per_unit_ms=30.0)
WRITE = Latency(base_ms=80.0, per_unit_ms=10.0)

MOST_CALLS = 8
MOST_GOALS = 4
MOST_REPLIES = 16
TWINS = 4
"""Records beside the right one that a reader of one listing cannot tell from it, so that a guess seldom passes."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One thing a user may want. ``by`` maps each way of naming its object to the calls it then needs."""

    domain: str
    index: int
    build: Callable[[Draft, str], None]
    by: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A tool call that reveals a value of some type, so that a task can name the value by where it stands."""

    domain: str
    index: int
    type: str
    build: Callable[[Draft, str], str]


@dataclass(frozen=True, slots=True)
class Atom:
    """A goal, how its object is named, where that name must be read first (if not in the request), and the groups
    of its calls (see :meth:`Domain.tool`)."""

    goal: Goal
    by: str
    source: Source | None
    groups: frozenset[str] = frozenset()

    @property
    def calls(self) -> int:
        """Necessary tool calls."""
        return self.goal.by[self.by] + (self.source is not None)

    @property
    def name(self) -> str:
        """``shop.cancel_order:email<mail.sender``."""
        source = f"<{self.source.domain}.{self.source.build.__name__}" if self.source else ""
        return f"{self.goal.domain}.{self.goal.build.__name__}:{self.by}{source}"

    @property
    def phase(self) -> int:
        """Decides the split of a composition. Neighbouring ways of naming differ in phase, so that every goal and
        every way occurs in both splits, but no composition does."""
        way = list(self.goal.by).index(self.by)
        return 1 + self.goal.index + way + (1 + self.source.index if self.source else 0)


class Domain:
    """A service: its tables, its tools, the goals users have, and records that stand around.

    Args:
        name: Name in ``domains=[...]``.
        **tables: Record type by table name.
    """

    def __init__(self, name: str, **tables: type[Record]) -> None:
        self.name, self.tables = name, tables
        self.tools: dict[str, Tool] = {}
        self.groups: dict[str, str] = {}
        self.goals: list[Goal] = []
        self.sources: list[Source] = []
        self.fill: Callable[[Draft], Any] = lambda g: None
        self.answers: Callable[[APITask, str, tuple[str, ...]], str | None] = lambda task, message, said: None

    def tool(
        self,
        *,
        reads_only: bool = False,
        latency: Latency | None = None,
        group: str | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Callable[[Callable], Tool]:
        """Register a typed function ``(db: Transaction, ...)`` as a tool. It returns a record, a list, a dict or
        a scalar, and raises ToolError for any other answer.

        Tools of one ``group`` can stand in for each other: one listing or batch call does the work of several
        calls. No task needs two calls of a group, so that no way is shorter than the oracle's.

        With ``schema``, a function of OpenAI's form (``name``, ``description`` and ``parameters``), the function needs
        no types: the schema is shown, and arguments are checked by it and passed on as they are.
        """

        def register(fn: Callable[..., Any]) -> Tool:
            if schema is not None:
                made: Tool = SchemaTool(fn, schema, reads_only=reads_only, latency=latency)
            else:
                made = Tool(fn, context=True, reads_only=reads_only, latency=latency)
            self.tools[made.name] = made
            if group is not None:
                self.groups[made.name] = f"{self.name}.{group}"
            return made

        return register

    def goal(self, **by: int) -> Callable[[Callable], Callable]:
        """Register ``fn(g: Draft, by: str)``; ``by`` maps each way of naming the object to the necessary calls."""

        def register(fn: Callable[[Draft, str], None]) -> Callable[[Draft, str], None]:
            self.goals.append(Goal(self.name, len(self.goals), fn, by))
            return fn

        return register

    def source(self, type: str) -> Callable[[Callable], Callable]:
        """Register ``fn(g: Draft, value: str) -> phrase`` that hides a value of ``type`` behind one read call, for
        the goals of other domains. The phrase takes the value's place: "the e-mail *of the sender of mail M1*"."""

        def register(fn: Callable[[Draft, str], str]) -> Callable[[Draft, str], str]:
            self.sources.append(Source(self.name, len(self.sources), type, fn))
            return fn

        return register

    def user(self, fn: Callable[[APITask, str, tuple[str, ...]], str | None]) -> Callable:
        """Register ``fn(task, message, said) -> reply`` as the user, who answers a message without a call; None ends
        the episode. ``said`` is what the user has said so far. Equal arguments must give an equal reply."""
        self.answers = fn
        return fn

    def background(self, fn: Callable[[Draft], Any]) -> Callable[[Draft], Any]:
        """Register ``fn(g: Draft)``, which adds one distractor of each kind."""
        self.fill = fn
        return fn


@dataclass(frozen=True)
class APITask:
    """One task. Everything that follows from it is a pure function of it.

    Args:
        id: ``split-calls-seed`` for procedural tasks.
        request: The user's words.
        world: Initial state.
        domains: The domains whose tools are at hand.
        calls: The oracle's calls.
        answer: The expected answer, by key (see :func:`~agent_gym.envs.api_agent.answer.answer_faults`); None where the
            state alone is judged.
        traps: Tempting wrong writes.
        composition: The goals, for the split.
        parts: Of each goal in the request's order, how many calls and how many keys of the answer it has.
        user: What the user has to say, each once: the pattern of the agent's message that it replies to, and the words.
        says: The oracle's messages to the user: the number of calls before each, and the words.
        latency_seed: Seeds the latency model.
    """

    id: str
    request: str
    world: World
    domains: tuple[str, ...]
    calls: tuple[Call, ...]
    answer: dict[str, Any] | None = None
    traps: tuple[Call, ...] = ()
    composition: tuple[str, ...] = ()
    parts: tuple[tuple[int, int], ...] = ()
    user: tuple[tuple[str, str], ...] = ()
    says: tuple[tuple[int, str], ...] = ()
    latency_seed: int = 0

    @property
    def tools(self) -> dict[str, Tool]:
        """Tools of the task's domains, by name."""
        return tools_of(self.domains)

    @cached_property
    def goal(self) -> World:
        """The world after the oracle's calls: what the verifier compares with."""
        return self.after(self.calls)

    def turns(self) -> list[Call | str]:
        """The oracle's turns: a call, or words. The answer is said until the user has nothing more to say.

        Raises:
            ValueError: If the user has no reply to a message before the last call, or never falls silent.
        """
        found: list[Call | str] = []
        talk = Talk()
        for number in range(len(self.calls) + 1):
            for _, words in (entry for entry in self.says if entry[0] == number):
                found.append(words)
                if (talk := talk.next(self, words)).reply is None:
                    raise ValueError(f"the user has no reply to the oracle's {words!r}, so the episode would end there")
            found += self.calls[number : number + 1]
        for _ in range(MOST_REPLIES):
            found.append(spoken(self.answer))
            if (talk := talk.next(self, spoken(self.answer))).reply is None:
                return found
        raise ValueError(f"the user still replies after {MOST_REPLIES} messages of the answer {spoken(self.answer)!r}")

    def after(self, calls: Sequence[Call]) -> World:
        """The initial world after some calls.

        Raises:
            ToolError: If one of them is refused.
        """
        world = self.world
        for call in calls:
            tool = self.tools[call.name]
            delta = run_tool(tool, tool.validate(call.arguments), world).delta
            world = world.apply(delta) if delta is not None else world
        return world

    @property
    def writes(self) -> bool:
        """Whether the goal differs from the start."""
        return bool(self.world.differences(self.goal))


@dataclass(frozen=True, slots=True)
class Talk:
    """What the agent and the user have told each other.

    Args:
        heard: The agent's messages.
        said: The user's.
        used: Which of the task's lines those were.
        reply: The user's to the latest message; None for silence.
    """

    heard: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    used: frozenset[int] = frozenset()
    reply: str | None = None

    def next(self, task: APITask, message: str) -> Talk:
        """The conversation after the agent's ``message``."""
        heard = (*self.heard, message)
        for at, (pattern, words) in enumerate(task.user):
            if at not in self.used and re.search(pattern, message, re.IGNORECASE):
                return Talk(heard, (*self.said, words), self.used | {at}, words)
        for name in task.domains:
            if reply := DOMAINS[name].answers(task, message, self.said):
                return Talk(heard, (*self.said, reply), self.used, reply)
        return Talk(heard, self.said, self.used)


def run_tool(tool: Tool, arguments: dict[str, Any], world: World) -> Outcome:
    """Run one validated call on ``world``; its changes come back as the outcome's delta.

    Raises:
        ToolError: The tool's refusal; then nothing changed.
    """
    transaction = Transaction(world)
    value = tool.fn(transaction, **arguments)
    return Outcome(to_json(value).decode(), transaction.delta or None, float(transaction.rows))


class Draft:
    """A task in the making: goals and sources write records, words, calls and expected answers into it.

    Args:
        rng: Source of all chance.
        split: Entities drawn here belong to this split.
    """

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng, self.split = rng, split
        self.tables: dict[str, dict[str, Record]] = {}
        self.sentences: list[str] = []
        self.calls: list[Call] = []
        self.traps: list[Call] = []
        self.answer: dict[str, Any] = {}
        self._source: Source | None = None
        self._names: set[str] = set()

    # ---- entities ----

    def _fresh(self, make: Callable[[], str]) -> str:
        while (name := make()) in self._names or split_of(name) != self.split:
            pass
        self._names.add(name)
        return name

    def id(self, prefix: str) -> str:
        """A new id such as ``O4821``."""
        return self._fresh(lambda: f"{prefix}{int(self.rng.random() * 9000) + 1000}")

    def word(self) -> str:
        """A new capitalised name of two or three syllables."""
        return self._fresh(self._word)

    def _word(self) -> str:
        random, word = self.rng.random, ""
        for _ in range(2 + (random() < 0.5)):
            word += _ONSETS[int(random() * len(_ONSETS))] + _VOWELS[int(random() * len(_VOWELS))]
        return word.capitalize()

    def person(self, first: str | None = None) -> str:
        """A new person, or a namesake of ``first``."""
        return self._fresh(lambda: f"{first or self._word()} {self._word()}")

    def email(self) -> str:
        """A new address."""
        return self._fresh(lambda: f"{self._word().lower()}@{self.rng.choice(_HOSTS)}")

    def path(self) -> str:
        """A new path of a file."""
        return self._fresh(lambda: f"/{self._word().lower()}/{self._word().lower()}.txt")

    def day(self) -> str:
        """A date that the task does not have yet. Not an entity: the splits share their dates."""
        while (day := f"2031-{self.rng.randrange(1, 13):02}-{self.rng.randrange(1, 29):02}") in self._names:
            pass
        self._names.add(day)
        return day

    # ---- records ----

    def new(self, table: str, record: R) -> R:
        """Add a record to the initial world."""
        self.tables[table][record.key] = record
        return record

    # ---- words, calls, expectations ----

    def refer(self, type: str, value: str) -> str:
        """How the request names ``value``: plainly, or by where it can be read (one more call)."""
        if self._source is None:
            return value
        source, self._source = self._source, None
        return source.build(self, value)

    def say(self, *variants: str) -> None:
        """One sentence of the request; one of the wordings is drawn."""
        self.sentences.append(self.rng.choice(variants))

    def call(self, name: str, /, **arguments: Any) -> None:
        """The next call of the oracle."""
        self.calls.append(Call(name, arguments))

    def trap(self, name: str, /, **arguments: Any) -> None:
        """A write that looks right and is wrong."""
        self.traps.append(Call(name, arguments))

    def expect(self, key: str, value: Any) -> str:
        """The answer's ``key`` must be ``value``, or of the form ``{"contains": ["text"]}`` or ``{"any": True}``.
        Returns the key as used (numbered when taken).

        Raises:
            ValueError: For the key ``contains`` or ``any``, which these forms have.
        """
        if key in ("contains", "any"):
            raise ValueError(f"expect({key!r}, ...): choose another key, this one marks a form of expectation")
        name = next(
            n for n in itertools.chain([key], (f"{key}{i}" for i in itertools.count(2))) if n not in self.answer
        )
        self.answer[name] = value
        return name


_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl", "st")
_VOWELS = ("a", "e", "i", "o", "u")
_HOSTS = ("mail.com", "post.net", "corp.org")

DOMAINS: dict[str, Domain] = {}
_tool_tables: dict[tuple[str, ...], dict[str, Tool]] = {}


def register_domain(domain: Domain) -> Domain:
    """Make a domain available to ``APIAgent-v0`` as ``domains=[domain.name]``.

    Raises:
        ValueError: If its name is taken by another domain.
    """
    if domain.name in DOMAINS:
        raise ValueError(f"cannot register domain {domain.name!r}: the name is taken by another domain")
    DOMAINS[domain.name] = domain
    return domain


def check_names(domains: Sequence[str]) -> None:
    """See that domains can be used together.

    Raises:
        ValueError: If two of them have a table or a tool of one name.
    """
    for what in ("tables", "tools"):
        owners: dict[str, str] = {}
        for domain in domains:
            for name in getattr(DOMAINS[domain], what):
                if owners.setdefault(name, domain) != domain:
                    kind = what.removesuffix("s")
                    raise ValueError(
                        f"domains: {owners[name]!r} and {domain!r} both have a {kind} {name!r}: choose one of them"
                    )


def tools_of(domains: tuple[str, ...]) -> dict[str, Tool]:
    """The tools of domains, by name."""
    if domains not in _tool_tables:
        _tool_tables[domains] = {name: tool for d in domains for name, tool in DOMAINS[d].tools.items()}
    return _tool_tables[domains]


_atom_tables: dict[tuple[str, ...], dict[int, list[Atom]]] = {}


def _grouped(atom: Atom, domains: tuple[str, ...]) -> Atom:
    """The atom with the groups of the calls it makes, found by building it once."""
    g = Draft(random.Random(0), "train")
    g.tables = {table: {} for d in domains for table in DOMAINS[d].tables}
    g._source = atom.source
    atom.goal.build(g, atom.by)
    groups = {name: group for d in domains for name, group in DOMAINS[d].groups.items()}
    return replace(atom, groups=frozenset(groups[call.name] for call in g.calls if call.name in groups))


def _atoms(domains: tuple[str, ...]) -> dict[int, list[Atom]]:
    """Every goal in every way it can be named, by the number of necessary calls."""
    if domains not in _atom_tables:
        table: dict[int, list[Atom]] = {}
        sources = [source for d in domains for source in DOMAINS[d].sources]
        for goal in (goal for d in domains for goal in DOMAINS[d].goals):
            for by in goal.by:
                elsewhere = (s for s in sources if s.type == by and s.domain != goal.domain)
                for source in (None, *elsewhere):
                    atom = _grouped(Atom(goal, by, source), domains)
                    table.setdefault(atom.calls, []).append(atom)
        _atom_tables[domains] = table
    return _atom_tables[domains]


def composition_split(atoms: Sequence[Atom]) -> str:
    """The split of a multiset of atoms: a third of all compositions is kept for test."""
    return "test" if sum(atom.phase for atom in atoms) % 3 == 0 else "train"


def _draw_composition(rng: random.Random, domains: tuple[str, ...], split: str, calls: int) -> list[Atom]:
    table = _atoms(domains)
    for _ in range(1000):
        atoms: list[Atom] = []
        taken: frozenset[str] = frozenset()
        left = calls
        while left and len(atoms) < MOST_GOALS:
            fitting = {
                n: free
                for n in table
                if n <= left and (len(atoms) < MOST_GOALS - 1 or n == left)
                if (free := [atom for atom in table[n] if not atom.groups & taken])
            }
            if not fitting:
                break
            atoms.append(rng.choice(fitting[rng.choice([*fitting])]))
            taken |= atoms[-1].groups
            left -= atoms[-1].calls
        if not left and (composition_split(atoms) == "test") == (split == "test"):
            return atoms
    raise ValueError(
        f"the domains {list(domains)} have no {split} task of {calls} necessary calls; "
        "add a domain, or a goal that can be named in another way, or choose another difficulty"
    )


@lru_cache(maxsize=256)
def levels_of(domains: tuple[str, ...], split: str) -> tuple[int, ...]:
    """The numbers of necessary calls that the domains have tasks of."""
    found = []
    for calls in range(1, MOST_CALLS + 1):
        with suppress(ValueError):
            _draw_composition(random.Random(0), domains, split, calls)
            found.append(calls)
    return tuple(found)


def compose(split: str, calls: int, seed: int, domains: tuple[str, ...]) -> APITask:
    """The task of a split and a seed: a pure function.

    Args:
        split: One of ``SPLITS``. No two share an entity; test has compositions of goals of its own.
        calls: Necessary tool calls, 1 to 8. Distractors grow with it.
        seed: Any non-negative integer.
        domains: Where goals, sources and distractors come from.

    Raises:
        ValueError: If the domains have no such task.
    """
    rng = random.Random(f"{split}-{calls}-{seed}")
    atoms = _draw_composition(rng, domains, split, calls)
    involved = {atom.goal.domain for atom in atoms} | {atom.source.domain for atom in atoms if atom.source}
    others = [d for d in domains if d not in involved]
    present = involved | set(rng.sample(others, min(len(others), calls // 3)))
    g = Draft(rng, split)
    g.tables = {table: {} for d in domains if d in present for table in DOMAINS[d].tables}
    parts = []
    for atom in atoms:
        calls_before, keys_before = len(g.calls), len(g.answer)
        g._source = atom.source
        atom.goal.build(g, atom.by)
        parts.append((len(g.calls) - calls_before, len(g.answer) - keys_before))
    for _ in range(2 + calls // 2):
        for name in domains:
            if name in present:
                DOMAINS[name].fill(g)
    request = " ".join(g.sentences)
    if g.answer:
        keys = ",".join(f'"{key}":...' for key in g.answer)
        request += f" Answer with JSON: {{{keys}}}"
    return APITask(
        id=f"{split}-{calls}-{seed}",
        request=request,
        world=World({name: dict(sorted(table.items())) for name, table in g.tables.items()}),
        domains=tuple(d for d in domains if d in present),
        calls=tuple(g.calls),
        answer=g.answer or None,
        traps=tuple(g.traps),
        composition=tuple(sorted(atom.name for atom in atoms)),
        parts=tuple(parts),
        latency_seed=seed,
    )
