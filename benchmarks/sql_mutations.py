"""How many wrong queries and changes pass SQL-v0's verifier: every gold with one part of it changed.

    python benchmarks/sql_mutations.py --tasks 1000 --out benchmarks/sql_mutations.json

The golds of generated tasks (train and test, all difficulties, in turn) are parsed with sqlglot, and each mutant
differs in one part: a comparison, an aggregate, DISTINCT, the order, the limit, a condition left out, AND for OR, a
join's kind or condition, a set operation, a value, a column. Each is submitted to the environment, which has to fail
it.

A mutant that passes is called equivalent by one rule: on ``--fills`` databases drawn here, not by the generator, it
says what the gold says (for a change: leaves the same rows). Their columns draw from all values that the column has in
the task's databases, from the gold's literals and from their neighbours; a few values are favoured in each, so that
there are ties; values are missing where the schema allows it, and each reference refers to a row. Those where a LIMIT
cuts through a tie do not count, as the gold itself is not determined there. Equivalent mutants are listed, and are in
no denominator.

One line a task is written beside ``--out`` as it is done, so a run that was stopped goes on. The interval of the whole
is a bootstrap over tasks, those of the kinds are Wilson's; both 95 %.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sqlglot
from sqlglot import exp
from tqdm import tqdm

from agent_gym import Call
from agent_gym.envs.sql_agent.compare import differences
from agent_gym.envs.sql_agent.database import Database, Result
from agent_gym.envs.sql_agent.tasks import SQLTask, in_order
from agent_gym.tools import ToolError

COMPARISONS = (exp.LT, exp.LTE, exp.GT, exp.GTE, exp.EQ, exp.NEQ)
AGGREGATES = (exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max)
SETS = ("UNION", "INTERSECT", "EXCEPT", "UNION ALL")


# ---- mutants ---------------------------------------------------------------------------------------------------------


def mutants(gold: str, columns: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Kind and text of each mutant of a gold.

    Args:
        gold: The statement.
        columns: Of each table.
    """
    tree: Any = sqlglot.parse_one(gold, dialect="sqlite")
    same = tree.sql(dialect="sqlite")
    found: dict[str, str] = {}
    for number in range(len(list(tree.walk()))):
        for kind, one in _mutants(tree, number, columns):
            found.setdefault(one.sql(dialect="sqlite") if isinstance(one, exp.Expression) else one, kind)
    found.pop(same, None)
    return [(kind, sql) for sql, kind in found.items()]


def _mutants(tree: exp.Expression, number: int, columns: dict[str, list[str]]) -> Iterator[tuple[str, Any]]:
    """Those of the tree's node with a number, each a tree of its own."""

    def at() -> tuple[exp.Expression, Any]:
        copy = tree.copy()
        return copy, list(copy.walk())[number]

    def instead(kind: str, make: Any) -> tuple[str, exp.Expression]:
        copy, here = at()
        new = make(here)
        if here is copy:
            return kind, new
        here.replace(new)
        return kind, copy

    def without(kind: str, name: str) -> tuple[str, exp.Expression]:
        copy, here = at()
        here.set(name, None)
        return kind, copy

    node = list(tree.walk())[number]
    setting = isinstance(node.parent, exp.Update) and node.arg_key == "expressions"
    if isinstance(node, COMPARISONS) and not setting:
        equal = isinstance(node, exp.EQ | exp.NEQ)
        for other in COMPARISONS:
            if type(node) is not other:
                yield instead(
                    "equality" if equal else "boundary", lambda h, o=other: o(this=h.this, expression=h.expression)
                )
    if isinstance(node, exp.And):
        yield instead("AND, OR", lambda h: exp.Or(this=h.this, expression=h.expression))
        yield instead("condition dropped", lambda h: h.this)
        yield instead("condition dropped", lambda h: h.expression)
    if isinstance(node, AGGREGATES):
        star = isinstance(node.this, exp.Star)
        for aggregate in AGGREGATES:
            if type(node) is not aggregate and not star:
                yield instead("aggregate", lambda h, a=aggregate: a(this=h.this))
        if star:
            for table in _tables(tree, columns):
                for name in columns[table]:
                    column = exp.column(name, table)
                    yield instead("aggregate", lambda h, c=column: exp.Count(this=c.copy()))
                    yield instead("DISTINCT", lambda h, c=column: exp.Count(this=exp.Distinct(expressions=[c.copy()])))
        else:
            yield instead("aggregate", lambda h: exp.Count(this=exp.Star()))
            yield instead("DISTINCT", lambda h: type(h)(this=exp.Distinct(expressions=[h.this])))
    if isinstance(node, exp.Select):
        copy, here = at()
        here.set("distinct", None if here.args.get("distinct") else exp.Distinct())
        yield "DISTINCT", copy
    for name, kind in (("where", "condition dropped"), ("having", "HAVING"), ("order", "ORDER BY"), ("limit", "LIMIT"),
                       ("group", "GROUP BY"), ("on", "join"), ("joins", "join")):  # fmt: skip
        if node.args.get(name) and (name != "on" or isinstance(node, exp.Join)):
            yield without(kind, name)
    if isinstance(node, exp.Ordered):
        copy, here = at()
        here.set("desc", not here.args.get("desc"))
        here.set("nulls_first", not here.args["desc"])  # as SQLite has it, or the direction is not all that changes
        yield "ORDER BY", copy
    if isinstance(node, exp.Join) and node.args.get("on"):
        for side in ("LEFT", "RIGHT", "FULL"):
            copy, here = at()
            here.set("side", side)
            yield "join", copy
    if isinstance(node, exp.SetOperation):
        left, right = (part.sql(dialect="sqlite") for part in (node.this, node.expression))
        yield from (("set operation", f"{left} {word} {right}") for word in SETS)
        yield from (("set operation", f"{right} {word} {left}") for word in SETS)
        yield from (("set operation", part) for part in (left, right))
    if isinstance(node, exp.In):
        yield instead("negation", lambda h: exp.Not(this=h.copy()))
    if isinstance(node, exp.Not):
        yield instead("negation", lambda h: h.this)
    if isinstance(node, exp.Is) and not isinstance(node.parent, exp.Not):
        yield instead("negation", lambda h: exp.Not(this=h.copy()))
    if isinstance(node, exp.Literal):
        for value in _beside(node):
            kind = "LIMIT" if isinstance(node.parent, exp.Limit) else "value"
            yield instead(kind, lambda h, v=value: exp.Literal(this=str(v), is_string=h.is_string))
    if isinstance(node, exp.Column):
        for table, names in columns.items():
            if table in _tables(tree, columns) and node.table in ("", table) and node.name in names:
                for name in names:
                    yield instead("column", lambda h, n=name: exp.column(n, h.table or None))


def _tables(tree: exp.Expression, columns: dict[str, list[str]]) -> list[str]:
    return sorted({table.name for table in tree.find_all(exp.Table)} & set(columns))


def _beside(literal: exp.Literal) -> list[Any]:
    """Values near a literal."""
    text = str(literal.this)
    if not literal.is_string:
        return [float(text) + step for step in (-0.25, 0.25)] if "." in text else [int(text) + step for step in (-1, 1)]
    if len(text) == 10 and text[4] == text[7] == "-":
        return [f"{text[:8]}{min(28, max(1, int(text[8:]) + step)):02d}" for step in (-1, 1)]
    if text.endswith("%"):
        return [f"%{text}", f"%{text[:-1]}", text[:-1], f"{text[:-2]}%"]
    return [text[:-1], text + text[-1]]


# ---- whether a mutant is equivalent ----------------------------------------------------------------------------------


class Schema:
    """A task's tables, and the values that its databases and its gold know for each column."""

    def __init__(self, task: SQLTask) -> None:
        self.ddl = task.world.database.ddl
        self.columns: dict[str, list[tuple[str, str, bool, bool]]] = {}
        self.keys: dict[str, dict[str, str]] = {}
        self.values: dict[tuple[str, str], list[Any]] = {}
        with sqlite3.connect(":memory:") as db:
            for statement in self.ddl:
                db.execute(statement)
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall():
                info = db.execute(f"PRAGMA table_info({table})").fetchall()
                self.columns[table] = [(name, kind, bool(must), bool(key)) for _, name, kind, must, _, key in info]
                self.keys[table] = {row[3]: row[2] for row in db.execute(f"PRAGMA foreign_key_list({table})")}
        literals = [
            value if node.is_string else float(value) if "." in str(value) else int(value)
            for node in sqlglot.parse_one(task.golds[0], dialect="sqlite").find_all(exp.Literal)
            for value in (node.this, *_beside(node))
        ]
        texts = [one.strip("%") for one in literals if isinstance(one, str)]
        texts += [f"Z{one}a" for one in texts] + [f"{one}a" for one in texts] + [f"Z{one}" for one in texts]
        databases: list[Database] = [task.world.database, *task.refills]
        for table, columns in self.columns.items():
            for at, (name, kind, _, key) in enumerate(columns):
                known = {row[at] for database in databases for row in database.rows[table]} - {None}
                text = any(isinstance(value, str) for value in known)
                dates = text and all(len(value) == 10 and value[4] == "-" for value in known)
                more = [one for one in texts if (len(one) == 10 and one[4] == "-") == dates] if text else literals
                numbers = [one for one in more if isinstance(one, int) or kind == "REAL"] if not text else more
                known |= set() if key else {one for one in numbers if text or not isinstance(one, str)}
                self.values[table, name] = sorted(known)

    def fill(self, rng: random.Random) -> sqlite3.Connection:
        """A database of this schema."""
        db = sqlite3.connect(":memory:", isolation_level=None)
        ids: dict[str, list[Any]] = {}
        for statement in self.ddl:
            db.execute(statement)
        for table, columns in self.columns.items():
            known = next(self.values[table, name] for name, _, _, key in columns if key)
            ids[table] = rng.sample(known, min(rng.randint(1, 24), len(known)))
            count, drawn = len(ids[table]), []
            for name, _, must, key in columns:
                values = self.values[table, name]
                if key:
                    drawn.append(ids[table])
                    continue
                values = ids[self.keys[table][name]] if name in self.keys[table] else values
                few = rng.sample(values, min(len(values), rng.choice([1, 2, 3, 5, 8, 100])))
                none = 0.0 if must else rng.choice([0.0, 0.1, 0.5])
                drawn.append([None if rng.random() < none else rng.choice(few) for _ in range(count)])
            rows = list(zip(*drawn, strict=True))
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", rows)
        return db


def equivalent(task: SQLTask, wrong: list[str], fills: int) -> set[str]:
    """Those of some mutants that no fill tells from the gold."""
    schema, rng, left = Schema(task), random.Random(task.id), set(wrong)
    for _ in range(fills):
        if not left:
            break
        db = schema.fill(rng)
        left -= _told_apart(db, task, sorted(left))
        db.close()
    return left


def _told_apart(db: sqlite3.Connection, task: SQLTask, wrong: list[str]) -> set[str]:
    gold = task.golds[0]
    if task.writes:
        states = [_state(db, statement, task) for statement in (gold, *wrong)]
        return {one for one, state in zip(wrong, states[1:], strict=True) if state != states[0]}

    def run(query: str) -> Result:
        try:
            cursor = db.execute(query)
            return Result(tuple(entry[0] for entry in cursor.description), cursor.fetchall(), False, 0.0, {})
        except sqlite3.Error as error:
            raise ToolError("sql", str(error)) from None

    tree: Any = sqlglot.parse_one(gold, dialect="sqlite")
    if (limit := tree.args.get("limit")) is not None:
        count = int(limit.expression.name)
        _, ties = in_order(run, tree.copy().limit(count + 1).sql(dialect="sqlite"))
        if ties is not None and len(ties) > count and ties[-1] == ties[-2]:
            return set()
    expected, ties = in_order(run, gold)

    def differs(query: str) -> bool:
        try:
            return bool(differences(expected, run(query), ties))
        except ToolError:
            return True

    return {one for one in wrong if differs(one)}


def _state(db: sqlite3.Connection, statement: str, task: SQLTask) -> Any:
    db.execute("PRAGMA foreign_keys=ON")
    db.execute("BEGIN")
    try:
        db.execute(statement)
        return [db.execute(f"SELECT * FROM {table}").fetchall() for table in task.world.session.tables]
    except sqlite3.Error:
        return None
    finally:
        db.execute("ROLLBACK")


# ---- the measurement -------------------------------------------------------------------------------------------------


def measure(env: Any, task_id: str, fills: int) -> dict[str, Any]:
    """Counts by kind, and the mutants of a task that pass."""

    def passes(statement: str) -> bool:
        env.reset(seed=0, options={"task": task_id})
        *_, info = env.step(env.unwrapped.parser.render("", [Call("submit_sql", {"query": statement})]))
        return info["verdict"]["status"] == "pass"

    started = time.thread_time()
    env.reset(seed=0, options={"task": task_id})
    composing = time.thread_time() - started
    task = env.unwrapped.task
    gold = task.golds[0]
    if not passes(gold):
        raise RuntimeError(f"{task_id}: the gold does not pass: {gold}")
    columns = {table: list(task.world.session.columns(table)) for table in task.world.session.tables}
    tried = mutants(gold, columns)
    passed = [(kind, one) for kind, one in tried if passes(one)]
    same = equivalent(task, [one for _, one in passed], fills)
    return {
        "task": task_id,
        "gold": gold,
        "refills": len(task.refills),
        "compose_ms": round(1000 * composing, 1),
        "tried": Counter(kind for kind, _ in tried),
        "equivalent": [[kind, one] for kind, one in passed if one in same],
        "passed": [[kind, one] for kind, one in passed if one not in same],
    }


def changed(gold: str, mutant: str) -> str:
    """What is other in a mutant, in a few words."""
    one, other = gold.replace("(", " ( ").split(), mutant.replace("(", " ( ").split()
    parts = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return "; ".join(f"{' '.join(one[a:b])} -> {' '.join(other[c:d])}" for tag, a, b, c, d in parts if tag != "equal")


def wilson(hits: int, of: int) -> list[float]:
    """95 % interval of a share."""
    if of == 0:
        return [0.0, 1.0]
    z, share = 1.959964, hits / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return [round(max(0.0, middle + sign * half) / (1 + z * z / of), 5) for sign in (-1, 1)]


def summary(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Shares of mutants that pass, in all and by kind."""
    tried = np.array([sum(row["tried"].values()) - len(row["equivalent"]) for row in rows])
    passed = np.array([len(row["passed"]) for row in rows])
    drawn = np.random.default_rng(seed).integers(len(rows), size=(4000, len(rows)))
    shares = passed[drawn].sum(1) / np.maximum(1, tried[drawn].sum(1))
    kinds: dict[str, dict[str, Any]] = {}
    for kind in sorted({kind for row in rows for kind in row["tried"]}):
        counts = {name: sum(one[0] == kind for row in rows for one in row[name]) for name in ("passed", "equivalent")}
        of = sum(row["tried"].get(kind, 0) for row in rows) - counts["equivalent"]
        share = round(counts["passed"] / max(1, of), 5)
        kinds[kind] = {"passed": counts["passed"], "of": of, "share": share, "interval": wilson(counts["passed"], of),
                       "equivalent": counts["equivalent"]}  # fmt: skip
    times = [row["compose_ms"] for row in rows]
    return {
        "tasks": len(rows),
        "mutants": int(tried.sum()),
        "passed": int(passed.sum()),
        "share": round(float(passed.sum() / max(1, tried.sum())), 5),
        "interval": [round(float(value), 5) for value in np.quantile(shares, [0.025, 0.975])],
        "equivalent": sum(len(row["equivalent"]) for row in rows),
        "kinds": kinds,
        "refills": dict(sorted(Counter(row["refills"] for row in rows).items())),
        "compose_ms": {"median": float(np.median(times)), "p95": float(np.quantile(times, 0.95)), "max": max(times)},
        "passing": [[row["task"], row["gold"], *one] for row in rows for one in row["passed"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000, help="number of tasks (1000)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (0)")
    parser.add_argument("--fills", type=int, default=200, help="databases on which a mutant must say the same (200)")
    parser.add_argument(
        "--out", required=True, help="JSON file; the tasks' lines and the equivalent mutants stand beside it"
    )
    options = parser.parse_args()
    out = Path(options.out)
    lines = out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {row["task"]: row for row in rows}
    envs = {split: gym.make("SQL-v0", split=split, disable_env_checker=True) for split in ("train", "test")}
    ids = [f"{('train', 'test')[n % 2]}-{n // 2 % 5 + 1}-{options.seed + n // 10}" for n in range(options.tasks)]
    with lines.open("a") as file:
        for task_id in tqdm(ids, desc="tasks"):
            if task_id not in done:
                done[task_id] = measure(envs[task_id.split("-")[0]], task_id, options.fills)
                file.write(json.dumps(done[task_id]) + "\n")
                file.flush()
    found = {"seed": options.seed, "fills": options.fills, "sqlite": sqlite3.sqlite_version}
    found |= summary([done[task_id] for task_id in ids], options.seed)
    found["equivalents"] = {}
    for task_id in ids:
        gold, same = done[task_id]["gold"], done[task_id]["equivalent"]
        if same:
            found["equivalents"][task_id] = " | ".join([gold, *(changed(gold, one) for _, one in same)])
    out.write_text(json.dumps(found, indent=1) + "\n")
    for kind, one in found["kinds"].items():
        share = f"{one['passed']:>4} of {one['of']:>6} pass  [{one['interval'][0]:.4f}, {one['interval'][1]:.4f}]"
        print(f"{kind:<18} {share}  {one['equivalent']:>5} equivalent")
    share = f"{found['passed']} of {found['mutants']} mutants pass: {found['share']:.4f} {found['interval']}"
    print(f"{found['tasks']} tasks: {share}; {found['equivalent']} are equivalent")


if __name__ == "__main__":
    main()
