"""Repair and completion tasks without end: a library program, a fault that tests can see, names drawn by the seed."""

from __future__ import annotations

import ast
import builtins
import io
import keyword
import re
import sys
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from agent_gym.envs.code_agent.inputs import TEST_PROGRAMS, VALIDATION_PROGRAMS, Case, draw_cases, files, programs
from agent_gym.envs.code_agent.mutate import Mutant, line_budget_run, mutants, same
from agent_gym.envs.code_agent.tasks import CodeTask
from agent_gym.envs.code_agent.workspace import Workspace
from agent_gym.sandbox import Raises, Test
from agent_gym.text import split_lines, syntax_tree
from agent_gym.tools import Call, dump

__all__ = ["KINDS", "LEVELS", "compose"]

STREAMS = {"train": 0, "test": 1, "validation": 2}
"""The number of a split in the seeds of its tasks."""
LEVELS = (1, 2, 3, 4, 5)
KINDS: dict[str, tuple[int, ...]] = {"repair": LEVELS, "completion": (2, 3)}

POOL = 64
"""Cases drawn for a program, from which every task takes its tests."""
VISIBLE, HIDDEN = 4, 12
LINES = 5_000
"""Bound on the lines that one case of a program may execute."""
NEAR = 1e-12
"""Floats that differ by so much, or by so much of the wanted one, are the same: another order of the same sums."""
SHORT = 20
"""Longest text that a review quotes (difficulty 1), in characters."""

FIRST = ("inner outer left right old fresh raw final small large open near early late main spare upper lower single "
         "double plain wide narrow local loose tight early prior base extra").split()  # fmt: skip
SECOND = ("item part value mark limit total count place score entry group piece level share width rest bound field "
          "step unit point index chunk label key size order offset buffer table").split()  # fmt: skip


def _programs(split: str) -> Sequence[str]:
    """The programs of a split, sorted."""
    held_out = {"validation": VALIDATION_PROGRAMS, "test": TEST_PROGRAMS}
    return held_out.get(split) or [n for n in programs() if not any(n in names for names in held_out.values())]


def compose(split: str, kind: str, level: int, seed: int) -> CodeTask:
    """The task that these four name; the same on every machine.

    Args:
        split: One of ``SPLITS``; no two have a program in common.
        kind: A key of ``KINDS``.
        level: Its difficulty.
        seed: Any whole number.
    """
    rng = np.random.default_rng([STREAMS[split], list(KINDS).index(kind), level, seed])
    names = _programs(split)
    while True:  # not every program has a fault of every kind
        program = names[int(rng.integers(len(names)))]
        fault = (_repair if kind == "repair" else _completion)(program, level, rng)
        task = fault and _finish(f"{split}-{kind}-{level}-{seed}", program, level, fault, rng)
        if task:
            return task


@dataclass(frozen=True)
class _Fault:
    """A broken program: its files, which cases of the pool fail, and the places to mend."""

    kind: str
    files: dict[str, str]
    killed: tuple[frozenset[int], ...]  # of each fault alone
    failing: frozenset[int]  # with all of them
    spots: tuple[tuple[str, Mutant | None], ...]


@lru_cache(maxsize=256)
def _pool(program: str) -> tuple[tuple[Case, ...], tuple[Any, ...]]:
    """Cases and what the program makes of them."""
    cases = draw_cases(program, np.random.default_rng(list(program.encode())), POOL)
    outcomes = line_budget_run(files(program), cases, LINES)
    kept = {
        (case.entry_point, repr(case.args)): (case, outcome)  # a small domain gives the same call again
        for case, outcome in zip(cases, outcomes, strict=True)
        if outcome[0] != "endless" and same(outcome, outcome)
    }
    return tuple(case for case, _ in kept.values()), tuple(outcome for _, outcome in kept.values())


def _failing(program: str, broken: Mapping[str, str]) -> frozenset[int] | None:
    """The cases that a broken program gets wrong; None where it does not come to an end."""
    cases, wanted = _pool(program)
    found: list[Any] = []
    for at in range(0, len(cases), 8):  # an endless one is seldom endless in its last case only
        part = line_budget_run(dict(broken), cases[at : at + 8], LINES)
        if ("endless",) in part:
            return None
        found += part
    return frozenset(
        i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if not same(one, other, NEAR, NEAR)
    )


@lru_cache(maxsize=256)
def _mutants(program: str) -> tuple[tuple[str, Mutant], ...]:
    return tuple((path, mutant) for path, text in files(program).items() for mutant in mutants(text))


@lru_cache(maxsize=1 << 14)
def _killed(program: str, number: int) -> frozenset[int] | None:
    path, mutant = _mutants(program)[number]
    return _failing(program, {**files(program), path: mutant.source})


def _repair(program: str, level: int, rng: np.random.Generator) -> _Fault | None:
    if level >= 4 and len(files(program)) == 1 and rng.random() < 0.5:
        return None  # programs of several files are few; the harder levels see them more often
    found = _mutants(program)
    chosen: dict[int, frozenset[int]] = {}  # what each fault alone kills
    for number in rng.permutation(len(found))[:24]:
        path, mutant = found[number]
        if level == 1 and not _is_short(mutant):
            continue
        if any(path == found[other][0] and abs(mutant.line - found[other][1].line) < 2 for other in chosen):
            continue
        killed = _killed(program, int(number))
        if not killed or (level >= 4 and len(killed) == len(_pool(program)[0])):
            continue
        chosen[int(number)] = killed
        if len(chosen) == (2 if level == 5 else 1):
            break
    else:
        return None
    broken = dict(files(program))
    for number in sorted(chosen, key=lambda n: -found[n][1].line):  # from below, so that line numbers still hold
        path, mutant = found[number]
        broken[path] = _merge(files(program)[path], mutant.source, broken[path])
    alone = tuple(chosen.values())
    failing = alone[0] if len(alone) == 1 else _failing(program, broken)
    if not failing:
        return None
    return _Fault("repair", broken, alone, failing, tuple(found[number] for number in chosen))


def _is_short(mutant: Mutant) -> bool:
    """Whether a review can quote the fault and the remedy, and an edit find its place by the quotation."""
    texts = (mutant.before, mutant.after)
    return all(0 < len(text) <= SHORT and "\n" not in text for text in texts) and (
        mutant.source.count(mutant.after) == 1
    )


def _merge(original: str, changed: str, other: str) -> str:
    """``other`` with the lines changed that differ between ``original`` and ``changed``."""
    start, old, new = _difference(original, changed)
    lines = split_lines(other, keepends=True)
    return "".join([*lines[:start], *new, *lines[start + len(old) :]])


def _difference(one: str, other: str) -> tuple[int, list[str], list[str]]:
    """The first line that differs (from 0), and the differing lines of each."""
    first, second = split_lines(one, keepends=True), split_lines(other, keepends=True)
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    end = 0
    while end < min(len(first), len(second)) - start and first[-1 - end] == second[-1 - end]:
        end += 1
    return start, first[start : len(first) - end], second[start : len(second) - end]


STUB = "raise NotImplementedError"


def _completion(program: str, level: int, rng: np.random.Generator) -> _Fault | None:
    """One function loses its body."""
    bodies = [
        (path, node)
        for path, text in files(program).items()
        for node in syntax_tree(text).body
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and STUB not in text
    ]
    path, node = bodies[int(rng.integers(len(bodies)))]
    lines = split_lines(files(program)[path], keepends=True)
    broken = [*lines[: node.body[1].lineno - 1], f"    {STUB}\n", *lines[node.end_lineno or len(lines) :]]
    text = {**files(program), path: "".join(broken)}
    failing = _failing(program, text)
    if not failing:
        return None
    return _Fault("completion", text, (failing,), failing, ((path, None),))


# ---- names ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _renamable(program: str) -> tuple[str, ...]:
    """Local names and parameters that can be replaced everywhere without changing what the program does."""
    local, taken = set(), set(dir(builtins)) | set(keyword.kwlist)
    for text in files(program).values():
        for node in ast.walk(syntax_tree(text)):
            if isinstance(node, ast.arg):
                local.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                local.add(node.id)
            elif isinstance(node, ast.Attribute):
                taken.add(node.attr)
            elif isinstance(node, ast.keyword):
                taken.add(node.arg or "")
            elif isinstance(node, ast.alias):
                taken.add(node.asname or node.name)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                taken.add(node.name)
        for statement in syntax_tree(text).body:
            taken |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)} - (
                set() if isinstance(statement, ast.Assign | ast.AnnAssign) else local
            )
    return tuple(
        name
        for name in sorted(local - taken)
        if not name.startswith("_") and not _failing(program, _renamed(files(program), {name: "some_other_name"}))
    )


def _renamed(texts: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {path: _rename(text, names) for path, text in texts.items()}


def _rename(text: str, names: Mapping[str, str]) -> str:
    """Names in code, and inside f-strings and docstrings (in prose only words of three letters or more)."""
    words = re.compile("|".join(rf"\b{name}\b" for name in names) or r"(?!)")
    prose = re.compile("|".join(rf"\b{name}\b" for name in names if len(name) > 2) or r"(?!)")
    parts, done = [], 0
    for start, end, kind in _places(text):
        piece = text[start:end]
        if kind == "name":
            piece = names.get(piece, piece)
        else:
            piece = (words if kind == "f-string" else prose).sub(lambda m: names[m[0]], piece)
        parts += [text[done:start], piece]
        done = end
    return "".join([*parts, text[done:]])


@lru_cache(maxsize=4096)
def _places(text: str) -> tuple[tuple[int, int, str], ...]:
    """Where names can stand: begin, end, and whether it is a name, an f-string or prose."""
    offsets = [0]
    for line in split_lines(text, keepends=True):
        offsets.append(offsets[-1] + len(line))
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = "name" if token.type == tokenize.NAME else ""
        if token.type == tokenize.STRING:
            formatted = "f" in token.string[: token.string.index(token.string[-1])].lower()
            kind = "f-string" if formatted else "prose" if token.string.startswith('"""') else ""
        if kind:
            found.append((offsets[token.start[0] - 1] + token.start[1], offsets[token.end[0] - 1] + token.end[1], kind))
    return tuple(found)


def _names(program: str, texts: Iterable[str], rng: np.random.Generator) -> tuple[dict[str, str], dict[str, str]]:
    """New names for the program's own, and for its modules."""
    used = set(re.findall(r"\w+", " ".join(texts))) | set(dir(builtins)) | set(sys.stdlib_module_names)

    def draw() -> str:
        while True:
            new = SECOND[int(rng.integers(len(SECOND)))]
            if rng.random() < 0.6:
                new = f"{FIRST[int(rng.integers(len(FIRST)))]}_{new}"
            if new not in used:
                used.add(new)
                return new

    return {n: draw() for n in _renamable(program)}, {p.removesuffix(".py"): draw() for p in files(program)}


def _moved(texts: Mapping[str, str], modules: Mapping[str, str]) -> dict[str, str]:
    """The files under the modules' new names; library programs import their own parts by ``from part import name``."""
    lines = re.compile(rf"^from ({'|'.join(modules)}) import ", re.MULTILINE)
    return {
        f"{modules[path.removesuffix('.py')]}.py": lines.sub(lambda m: f"from {modules[m[1]]} import ", text)
        for path, text in texts.items()
    }


# ---- words, tests, oracle ------------------------------------------------------------------------------------------


def _finish(task_id: str, program: str, level: int, fault: _Fault, rng: np.random.Generator) -> CodeTask | None:
    names, modules = _names(program, [*files(program).values(), *fault.files.values()], rng)
    original, broken = (_moved(_renamed(texts, names), modules) for texts in (files(program), fault.files))
    visible, hidden = _choose(program, fault, level, rng)
    if any(killed.isdisjoint(set(hidden) - set(visible)) for killed in fault.killed):
        return None  # who writes down what the visible tests show would pass
    tests = [tuple(_test(program, number, modules) for number in chosen) for chosen in (visible, hidden)]
    spots = tuple((f"{modules[path.removesuffix('.py')]}.py", mutant) for path, mutant in fault.spots)
    request, calls = _words(level, replace(fault, spots=spots), original, broken, names, tests[0])
    world = Workspace(broken)
    for call in calls:
        if call.name == "edit" and world.files[call.arguments["path"]].count(call.arguments["old"]) != 1:
            return None
        if call.name in ("edit", "edit_lines"):
            world = world.apply(
                getattr(world, "replaced" if call.name == "edit" else "replaced_lines")(**call.arguments)
            )
    if dict(world.files) != original:
        return None  # the quotation stands there more than once under the new names
    entry = f"{next(iter(original)).removesuffix('.py')}:"
    return CodeTask(task_id, request, Workspace(broken), entry, tests[0], tests[1], calls)


def _test(program: str, number: int, modules: Mapping[str, str]) -> Test:
    case, (kind, *value) = _pool(program)[0][number], _pool(program)[1][number]
    module, _, function = case.entry_point.partition(":")
    expected = value[0] if kind == "value" else Raises(value[0])
    return Test(case.args, expected, f"{modules[module]}:{function}", atol=NEAR, rtol=NEAR)


def _choose(program: str, fault: _Fault, level: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Numbers of visible and hidden cases: every fault is seen by a hidden one, not a visible one where it can be."""
    order = [int(i) for i in rng.permutation(len(_pool(program)[0]))]
    failing, passing = [i for i in order if i in fault.failing], [i for i in order if i not in fault.failing]
    seen = failing[: 1 if len(failing) < 4 else 2]
    visible = seen + passing[: VISIBLE - len(seen)] if level >= 4 else (failing[: VISIBLE // 2] + passing)[:VISIBLE]
    rest = [i for i in order if i not in visible]
    hidden: list[int] = []
    for killed in fault.killed:
        hidden += [i for i in (*rest, *visible) if i in killed and i not in hidden][:3]
    hidden += [i for i in rest if i not in hidden][: HIDDEN - len(hidden)]
    return visible, hidden


def _remedy(path: str, broken: str, original: str) -> Call:
    """The edit that mends a file: by its text where that stands there once, else by lines."""
    start, wrong, right = _difference(broken, original)
    if len(wrong) == 1 and len(right) == 1 and broken.count(wrong[0].strip()) == 1:
        return Call("edit", {"path": path, "old": wrong[0].strip(), "new": right[0].strip()})
    if not wrong:  # a line is missing: the one before it stays, followed by the new ones
        start, wrong, right = start - 1, [split_lines(broken, keepends=True)[start - 1]], [
            split_lines(broken, keepends=True)[start - 1], *right]  # fmt: skip
    return Call("edit_lines", {"path": path, "start": start + 1, "end": start + len(wrong), "new": "".join(right)})


def _words(
    level: int,
    fault: _Fault,
    original: Mapping[str, str],
    broken: Mapping[str, str],
    names: Mapping[str, str],
    visible: Sequence[Test],
) -> tuple[str, tuple[Call, ...]]:
    """The request, and the oracle's calls: they name nothing that neither the request nor an earlier call shows."""
    path, mutant = fault.spots[0]
    start, wrong, _ = _difference(broken[path], original[path])
    remedy = _remedy(path, broken[path], original[path])
    run, read = Call("run_tests"), Call("read_file", {"path": path})
    if fault.kind == "completion":
        node = _function_at(broken[path], start + 1)
        if level == 2:
            return f"The function {node.name} in {path} has no body yet. Write it as its docstring says.", (
                read,
                remedy,
            )
        return "A function of this program has no body yet. Write it as its docstring says.", (run, read, remedy)
    if level == 1 and mutant is not None:
        found, wanted = _rename_piece(mutant.after, names), _rename_piece(mutant.before, names)
        review = dump({"path": path, "found": found, "wanted": wanted})
        return f"A review found a fault: {review}. Mend it.", (
            Call("edit", {"path": path, "old": found, "new": wanted}),
        )
    if level == 2:
        shown = visible[0]
        call = f"{str(shown.entry_point).partition(':')[2]}({', '.join(map(repr, shown.args))})"
        wanted = shown.expected
        right = f"raise {wanted.name}" if isinstance(wanted, Raises) else f"return {wanted!r}"
        look = Call("read_lines", {"path": path, "start": max(1, start - 1), "end": start + len(wrong) + 2})
        return f"There is a fault in {path} near line {start + 1}: {call} should {right}. Mend it.", (look, remedy)
    if level == 3:
        return f"Tests fail because of a fault in {path}. Find it and mend it.", (run, read, remedy)
    if level == 4:
        module, _, function = str(visible[0].entry_point).partition(":")  # of a test that fails
        look = Call("search", {"text": f"def {function}" if f"{module}.py" == path else "def "})
        return "Some tests of this program fail. Find the fault and mend it.", (run, look, read, remedy)
    first, second = (spot[0] for spot in fault.spots)
    if first != second:
        request = f"This program has two faults, one in {first} and one in {second}. Find them and mend them."
        other = _remedy(second, broken[second], original[second])
        return request, (run, read, remedy, Call("read_file", {"path": second}), other)
    request = "This program has two faults. Find them and mend them."
    return request, (Call("list_files"), run, read, *_two_remedies(path, broken[path], original[path]))


def _rename_piece(text: str, names: Mapping[str, str]) -> str:
    """A piece of code that may not stand alone."""
    return re.sub(r"(?<![.\w\"'])[A-Za-z_]\w*\b(?![\"'])", lambda m: names.get(m[0], m[0]), text)


def _function_at(text: str, line: int) -> ast.FunctionDef:
    found = [
        n for n in syntax_tree(text).body if isinstance(n, ast.FunctionDef) and n.lineno <= line <= (n.end_lineno or 0)
    ]
    return found[0] if found else next(n for n in syntax_tree(text).body if isinstance(n, ast.FunctionDef))


def _two_remedies(path: str, broken: str, original: str) -> Sequence[Call]:
    """Both faults of one file, the first and then what is left."""
    import difflib

    blocks = difflib.SequenceMatcher(
        None, split_lines(broken, keepends=True), split_lines(original, keepends=True), autojunk=False
    )
    changes = [op for op in blocks.get_opcodes() if op[0] != "equal"]
    _, a, b, c, d = changes[0]
    lines = split_lines(broken, keepends=True)
    half = "".join([*lines[:a], *split_lines(original, keepends=True)[c:d], *lines[b:]])
    return _remedy(path, broken, half), _remedy(path, half, original)
