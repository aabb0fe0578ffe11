"""SQL-v0: answer questions about a database, or change it, through SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent_gym.costs import Latency
from agent_gym.env import Outcome, ToolEnv, asked_levels
from agent_gym.envs.splits import SPLITS, check_split
from agent_gym.envs.sql_agent.compare import differences, same_rows, same_value
from agent_gym.envs.sql_agent.database import INSTRUCTIONS, MOST_SQL, Database, QueryError, Result, cut, shown, spelled
from agent_gym.envs.sql_agent.generate import KINDS, LEVELS, compose, kind_of
from agent_gym.envs.sql_agent.syntax import holds_fence, identifiers, looks_like_query, tokens, writes
from agent_gym.envs.sql_agent.tasks import SQLTask, changed, gold_order, gold_result, load_tasks
from agent_gym.envs.sql_agent.world import World
from agent_gym.text import fenced
from agent_gym.tools import Call, Tool, ToolError, dump, load
from agent_gym.verdict import Verdict

__all__ = ["SQLEnv"]

LOOK = Latency(20.0, 1.0)
QUERY = Latency(40.0, 1.0)
"""Every hundred instructions of SQLite's virtual machine take a millisecond."""

MOST_SHOWN_ROWS = 50
MOST_SHOWN = 8000
"""Characters of a result."""
MOST_CELL = 200
MOST_SAMPLE = 20
MOST_FAULTS = 20
"""Lines of a verdict's diagnostics."""


def list_tables(world: World) -> str:
    """List the tables of the database."""
    return "\n".join(world.session.tables)


def describe_table(world: World, table: str) -> str:
    """Show a table's columns: name, type, and the column that a foreign key refers to.

    Args:
        table: Name of the table.
    """
    columns, keys = world.session.describe(_known(world, table))
    refers = {column: f" -> {other}.{key}" if key else f" -> {other}" for column, other, key in keys}
    return "\n".join(
        f"{column} {kind}".strip() + (" primary key" if primary else "") + refers.get(column, "")
        for column, kind, primary in columns
    )


def sample_rows(world: World, table: str, count: int = 3) -> Result:
    """Show the first rows of a table.

    Args:
        table: Name of the table.
        count: How many, 1 to 20.
    """
    name = _known(world, table)
    if not 1 <= count <= MOST_SAMPLE:
        raise ToolError("invalid", f"sample_rows: count must be from 1 to {MOST_SAMPLE}, not {count}")
    return world.run("SELECT * FROM " + '"' + name.replace('"', '""') + '"', most_rows=count)


def run_sql(world: World, query: str) -> Result:
    """Run one SQL statement (SQLite) and show its rows.

    Args:
        query: The statement.
    """
    raise AssertionError("run by the environment")


def submit_sql(world: World, query: str) -> Result:
    """Give the final SQL statement and end the episode.

    Args:
        query: The statement.
    """
    raise AssertionError("run by the environment")


def _known(world: World, table: str) -> str:
    """The table's name as the schema spells it.

    Raises:
        ToolError: If there is no such table.
    """
    tables = {name.lower(): name for name in world.session.tables}
    if table.lower() not in tables:
        raise ToolError("not_found", f"there is no table {cut(table, 100)!r}; list_tables shows those there are")
    return tables[table.lower()]


def _text(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def _names(arguments: Mapping[str, Any]) -> frozenset[str]:
    """What the writer of a query must have known beside its literals, which are found without help: the names in it."""
    query = _unfenced(str(arguments.get("query", "")))
    return identifiers(query) - {word.strip("'") for word in tokens(query) if word[0] == "'" or word[0].isdigit()}


TOOLS = {
    tool.name: tool
    for tool in (
        *(Tool(fn, context=True, reads_only=True, latency=LOOK) for fn in (list_tables, describe_table, sample_rows)),
        Tool(run_sql, context=True, latency=QUERY, atoms=_names),
        Tool(submit_sql, context=True, latency=QUERY, atoms=_names, ends=True),
    )
}


class SQLEnv(ToolEnv):
    """Questions about a database, and changes to be made in it.

    Args:
        split: ``"train"``, ``"validation"`` (unseen schemas and values) or ``"test"`` (unseen words and
            compositions as well).
        difficulty: Calls of a straightforward solution, the submission included, 1 to 5, or ``[least, most]``; all of
            them by default. 1: the request names tables and columns as the schema does; from 2 on it describes them.
        kinds: ``"query"``, ``"change"``, or both.
        tasks: Path of a real data set instead of the generator; see
            :func:`~agent_gym.envs.sql_agent.tasks.load_tasks`. ``left_out`` says which of its records are no tasks,
            and why.
        instructions: Most instructions of SQLite's virtual machine for one query.
        **kwargs: See :class:`~agent_gym.env.ToolEnv`.

    Raises:
        ValueError: For a value outside what is listed here.
    """

    system_prompt = (
        "You work on a SQLite database. Use the tools to do what the user asks. For a question, submit the query that "
        "answers it. Queries and changes have to be right on other rows too. A message without a tool call is the "
        "final answer."
    )

    def __init__(
        self,
        *,
        split: str = "train",
        difficulty: int | Sequence[int] | None = None,
        kinds: Sequence[str] = KINDS,
        tasks: str | None = None,
        instructions: int = INSTRUCTIONS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_split(split)
        difficulty = [LEVELS[0], LEVELS[-1]] if difficulty is None else difficulty
        self.levels = asked_levels(difficulty, LEVELS[-1])
        if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
            raise ValueError(f"kinds={kinds!r}: a list of {' and '.join(map(repr, KINDS))}")
        if isinstance(instructions, bool) or not isinstance(instructions, int) or instructions < 1000:
            raise ValueError(f"instructions={instructions!r}: must be a whole number of 1000 or more")
        self.split, self.kinds, self.instructions = split, tuple(kinds), instructions
        given, self.left_out = ([], {}) if tasks is None else load_tasks(tasks, instructions)
        self._given = {task.id: task for task in given}
        self.task_ids = tuple(self._given) or None

    def _make_task(self, task_id: str | None) -> SQLTask:
        if self._given:
            return self._given_task(self._given, task_id)
        if task_id is None:
            level = self.levels[int(self.np_random.integers(len(self.levels)))]
            seed = int(self.np_random.integers(2**31))
            while kind_of(seed) not in self.kinds:
                seed += 1
            return compose(self.split, level, seed)
        parts = task_id.split("-") if isinstance(task_id, str) else []
        if len(parts) == 3 and parts[0] in SPLITS and all(map(str.isdecimal, parts[1:])) and int(parts[1]) in LEVELS:
            self._check_split(parts[0], task_id)
            return compose(parts[0], int(parts[1]), int(parts[2]))
        raise ValueError(f"unknown task id {task_id!r}: it reads split-difficulty-seed, such as 'train-2-7'")

    def _task_type(self) -> str:
        """What is asked for: a change, a single value, or a table."""
        return "change" if self.task.writes else "value" if self.task.value else "table"

    def _tools(self) -> Mapping[str, Tool]:
        return TOOLS

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        if tool.fn in (run_sql, submit_sql):
            limits = {"most_rows": MOST_SHOWN_ROWS, "instructions": self.instructions}
            try:
                result = self._world.run(_unfenced(arguments["query"]), write=self.task.writes, **limits)
            except QueryError as error:  # it took its time all the same
                message = dump({"error": error.kind, "message": str(error)})
                return Outcome(message, error=error.kind, units=error.units)
            if tool.ends:
                return Outcome("null", delta=result.changes or None, units=result.units)
        else:
            result = tool.fn(self._world, **arguments)
        if isinstance(result, str):
            return Outcome(result, units=result.count("\n") + 1.0)
        return Outcome(_table(result), delta=result.changes or None, units=result.units)

    # ---- the verdict -------------------------------------------------------------------------------------------------

    def _observe(self, results: list[dict[str, Any]]) -> None:
        """Keep the statements that ran where a change is asked for, and what was said of a submission that failed. Such
        a message is short, so its JSON is whole.
        """
        progress: _Progress = self._progress or _Progress()
        for result in results:
            if result["name"] == submit_sql.__name__ and result["error"] in QueryError.KINDS:
                progress = replace(progress, fault=(result["error"], load(result["content"])["message"]))
            elif self.task.writes and result["name"] in (run_sql.__name__, submit_sql.__name__) and not result["error"]:
                statement = _unfenced(result["arguments"]["query"])
                if writes(statement):
                    progress = replace(progress, statements=(*progress.statements, statement))
        self._progress = progress

    def _verify(self, answer: Any) -> Verdict:
        """The state where a change was asked for, else the query; on the visible database and on the refills."""
        if self.task.writes:
            return self._verify_state()
        query, value = _read_answer(answer)
        if query is None:
            if self.task.value and value is not None:
                return self._verify_value(value)
            what = "the answer is not a query" if value is not None else "nothing was submitted"
            return Verdict("fail", "wrong_answer", 0.0, (what,))
        return self._verify_query(query)

    def _verify_query(self, query: str) -> Verdict:
        task: SQLTask = self.task
        databases = (task.world.database, *task.refills)
        faults: list[str] = []
        held, silent, reason = 0, 0, "wrong_answer"
        for number, database in enumerate(databases):
            golds = self._golds(database)
            if not golds:
                silent += 1
                continue
            most = max(len(gold.rows) for gold, _ in golds)
            try:
                found = World(database).run(query, most_rows=most + 20, instructions=self.instructions)
            except ToolError as error:
                reason = error.kind if error.kind in ("timeout", "memory") else "error"
                faults.append(str(error))
                break
            if not found.reads and all(gold.reads for gold, _ in golds):  # right by accident, if at all
                faults.append("the query reads no table")
                break
            wrong = [differences(gold, found, ties) for gold, ties in golds]
            if [] in wrong:
                held += 1
                continue
            place = "" if number == 0 else f"on other rows ({number} of {len(task.refills)}): "
            faults += [place + line for line in min(wrong, key=len)]
        if not faults:
            return Verdict("pass", "passed", 1.0)
        return Verdict("fail", reason, held / (len(databases) - silent), _cut_faults(faults))

    def _golds(self, database: Database) -> list[tuple[Result, tuple[int, ...] | None]]:
        """What the golds give; those that do not run on the further files of a data set say nothing there."""
        found = []
        for gold in self.task.golds:
            try:
                found.append(gold_order(database, gold, self.instructions))
            except ToolError:
                continue
        return [one for one in found if not one[0].more]

    def _verify_value(self, value: str) -> Verdict:
        """A single value: text as it stands, or as JSON."""
        (wanted,) = gold_result(self.task.world.database, self.task.golds[0], self.instructions).rows[0]
        try:
            read = load(value)
        except ValueError:
            read = None
        if any(same_value(wanted, one) for one in (value, read) if one is not None):
            return Verdict("pass", "passed", 1.0)
        return Verdict("fail", "wrong_answer", 0.0, (f"expected {dump(shown(wanted))}, found {dump(cut(value, 200))}",))

    def _verify_state(self) -> Verdict:
        """Every row that should have changed did, and no other: here, and where the same statements ran elsewhere."""
        task, progress = self.task, self._progress or _Progress()
        faults, score = _state_faults(task.goals[0], self._world)
        scores = [score]
        for number, goal in enumerate(task.goals[1:], start=1):
            there = changed(World(goal.database, True), progress.statements, self.instructions)
            more, score = _state_faults(goal, there)
            faults += [f"on other rows ({number} of {len(task.refills)}): {fault}" for fault in more]
            scores.append(score)
        if not faults:
            return Verdict("pass", "passed", 1.0)
        reason = "wrong_state"
        if progress.fault is not None:
            kind, message = progress.fault
            reason = kind if kind in ("timeout", "memory") else "error"
            faults.insert(0, message)
        return Verdict("fail", reason, sum(scores) / len(scores), _cut_faults(faults))

    # ---- the gate ----------------------------------------------------------------------------------------------------

    def oracle(self) -> list[str]:
        """See :meth:`ToolEnv.oracle`: one call a turn, and the value as the final answer where one is asked for."""
        actions = [self.parser.render("", [call]) for call in self.task.calls]
        if self.task.value:
            (value,) = gold_result(self.task.world.database, self.task.golds[0], self.instructions).rows[0]
            actions.append(self.parser.render(str(value), []))
        return actions

    def cheats(self) -> list[list[str]]:
        """Answer 1; claim; near misses; the visible result in literals; write where one may not; change too much."""
        task: SQLTask = self.task
        found = [[self._submission("SELECT 1")], [self.parser.render("Done.", [])]]
        found += [[self._submission(query)] for query in task.wrong]
        table = '"' + task.world.session.tables[-1].replace('"', '""') + '"'
        if task.writes:
            delete = self.parser.render("", [Call("run_sql", {"query": f"DELETE FROM {table}"})])
            drop = self.parser.render("", [Call("run_sql", {"query": f"DROP TABLE {table}"})])
            return [*found, [delete, *self.oracle()], [drop, self.parser.render("Done.", [])]]
        result = gold_result(task.world.database, task.golds[0], self.instructions)
        rows = [", ".join(map(_literal, row)) for row in result.rows]
        cases = [f"VALUES ({'), ('.join(rows)})", " UNION ALL ".join(f"SELECT {row}" for row in rows)]
        # under a table's name, which is then counted, and not read
        cases.append(
            f"WITH {table}(x) AS (SELECT 1) " + " UNION ALL ".join(f"SELECT {row} FROM {table}" for row in rows)
        )
        found += [[self._submission(query)] for query in cases if len(query) <= MOST_SQL]
        if not task.value:
            found.append([self.parser.render(dump([list(map(shown, row)) for row in result.rows[:100]]), [])])
        return [*found, [self._submission(f"DELETE FROM {table}")]]

    def remarks(self) -> list[str]:
        """What the gate's report should say of the current task though it breaks no gate."""
        task: SQLTask = self.task
        results = (
            [] if task.writes else [gold_result(task.world.database, gold, self.instructions) for gold in task.golds]
        )
        if any(not any(value not in (None, 0) for row in result.rows for value in row) for result in results):
            return ["the gold gives nothing but 0 and NULL, which many wrong queries give too"]
        return []

    def _submission(self, query: str) -> str:
        return self.parser.render("", [Call("submit_sql", {"query": query})])


@dataclass(frozen=True)
class _Progress:
    """What a verdict needs beside the state: the statements that ran, and what was said of a submission that failed."""

    statements: tuple[str, ...] = ()
    fault: tuple[str, str] | None = None


def _state_faults(goal: World, world: World) -> tuple[list[str], float]:
    """Where a world differs from its goal, and the share of the checks that held: one a row that had to change, and one
    that no other did.
    """
    wanted, have = goal.delta, world.delta
    faults, held, clean = [], 0, True
    for key in sorted({*wanted, *have}):
        base = (wanted.get(key) or have[key])[0]
        expected = wanted[key][1] if key in wanted else base
        found = have[key][1] if key in have else base
        if expected is found or (expected is not None and found is not None and same_rows(expected, found)):
            held += key in wanted
            continue
        clean = clean and key in wanted
        what = "not as asked" if key in wanted else "changed though nothing asked for it"
        sides = [spelled(row) if row is not None else "no row" for row in (expected, found)]
        faults.append(f"{key[0]} row {key[1]}: {what}: expected {sides[0]}, found {sides[1]}")
    return faults, (held + clean) / (len(wanted) + 1)


def _cut_faults(faults: list[str]) -> tuple[str, ...]:
    more = len(faults) - MOST_FAULTS
    return (*faults[:MOST_FAULTS], *[f"and {more} more"] * (more > 0))


def _read_answer(answer: Any) -> tuple[str | None, str | None]:
    """An answer as a query, or else as a value's text; neither where there is none."""
    if isinstance(answer, Mapping) and isinstance(answer.get("query"), str):
        return _unfenced(answer["query"]), None  # of submit_sql
    text = answer.strip() if isinstance(answer, str) else "" if answer is None else dump(answer)
    text = _unfenced(text)
    if looks_like_query(text):
        return text, None
    return None, text or None


def _unfenced(text: str) -> str:
    """What stands in the one fenced block of a text, or the text."""
    return fenced(text) if holds_fence(text) else text


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return str(shown(value))
    return _text(value) if isinstance(value, str) else repr(value)


def _cell(value: Any) -> Any:
    value = shown(value)
    return value[:MOST_CELL] + "..." if isinstance(value, str) and len(value) > MOST_CELL else value


def _table(result: Result) -> str:
    """A result as lines of JSON: the columns, then each row."""
    if not result.columns:
        count = len(result.changes)
        return f"{count} row{'s' * (count != 1)} changed"
    lines = [cut(dump(list(map(_cell, result.columns))), MOST_SHOWN)]
    length = len(lines[0])
    for row in result.rows:
        line = dump([_cell(value) for value in row])
        length += len(line) + 1
        if length > MOST_SHOWN:
            break
        lines.append(line)
    if result.more or len(lines) <= len(result.rows):
        lines.append("... (more rows)")
    elif not result.rows:
        lines.append("no rows")
    return "\n".join(lines)
