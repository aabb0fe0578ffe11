import itertools
import json
import pickle
import re
import shutil
import sqlite3
import time
from pathlib import Path

import gymnasium as gym
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_gym import Call, Delete, ToolCache, Truncate, counterfactuals, restore, snapshot, state_hash
from agent_gym.envs.splits import SPLITS
from agent_gym.envs.sql_agent import database, load_tasks
from agent_gym.envs.sql_agent.compare import differences
from agent_gym.envs.sql_agent.database import (
    INSTRUCTIONS,
    MOST_MESSAGE,
    MOST_SQL,
    NOW,
    TICK,
    Database,
    QueryError,
    Result,
)
from agent_gym.envs.sql_agent.generate import LEVELS, compose, kind_of
from agent_gym.envs.sql_agent.mutants import mutants
from agent_gym.envs.sql_agent.schemas import SCHEMAS
from agent_gym.envs.sql_agent.syntax import (
    alternatives,
    compiled,
    holds_fence,
    identifiers,
    looks_like_query,
    reads_clock,
    statements,
)
from agent_gym.envs.sql_agent.tasks import in_order
from agent_gym.envs.sql_agent.world import World
from agent_gym.formats import HermesParser
from agent_gym.gate import gate_task
from agent_gym.tools import ToolError
from agent_gym.wrappers import RecordTrajectory

DDL = (
    "CREATE TABLE town (id INTEGER PRIMARY KEY, label TEXT, size REAL, note TEXT)",
    "CREATE TABLE person (id INTEGER PRIMARY KEY, town_id INTEGER REFERENCES town(id), name TEXT UNIQUE, age INTEGER)",
)
ROWS = {
    "town": [(1, "Velo", 10.5, None), (2, "Stulu", 3.25, "x"), (3, "Kedra", 7.0, None)],
    "person": [(1, 1, "Ann", 30), (2, 1, "Bob", 41), (3, 2, "Cid", 30), (4, 3, "Dee", 25), (5, 2, "Eve", 30)],
}


def call(name, **arguments):
    return HermesParser().render("", [Call(name, arguments)])


def run_sql(query):
    return call("run_sql", query=query)


def submit(query):
    return call("submit_sql", query=query)


def make_file(path, extra=()):
    """The small database as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    for statement in (*DDL, *extra):
        db.execute(statement)
    for table, rows in ROWS.items():
        db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    db.commit()
    db.close()
    return path


def spider(folder, *records, database=True):
    """A folder in Spider's form."""
    folder.mkdir(exist_ok=True)
    if database:
        make_file(folder / "database" / "small" / "small.sqlite")
    (folder / "dev.json").write_text(json.dumps(list(records)))
    return str(folder)


def record(query, question="?", **more):
    return {"db_id": "small", "question": question, "query": query, **more}


def make(**kwargs):
    return gym.make("SQL-v0", disable_env_checker=True, **kwargs)


def play(env, *actions, task=None, seed=0):
    env.reset(seed=seed, options={"task": task} if task else None)
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    return observation, reward, info


def world(writable=True):
    return World(Database(DDL, ROWS), writable)


@pytest.fixture
def ages(tmp_path):
    """One task: who is thirty?"""
    return spider(tmp_path / "given", record("SELECT name FROM person WHERE age = 30", "Who is thirty?"))


# ---- tools ---------------------------------------------------------------------------------------------------------


def test_tools_show_what_is_there(ages):
    env = make(tasks=ages)
    env.reset(seed=0)
    assert env.step(call("list_tables"))[0] == "town\nperson"
    assert env.step(call("describe_table", table="PERSON"))[0] == (
        "id INTEGER primary key\ntown_id INTEGER -> town.id\nname TEXT\nage INTEGER"
    )
    assert env.step(call("sample_rows", table="town", count=2))[0].splitlines() == [
        '["id","label","size","note"]', '[1,"Velo",10.5,null]', '[2,"Stulu",3.25,"x"]', "... (more rows)",
    ]  # fmt: skip
    assert env.step(run_sql("SELECT name FROM person WHERE age > 40;"))[0] == '["name"]\n["Bob"]'
    assert env.step(run_sql("SELECT name FROM person WHERE age > 90"))[0] == '["name"]\nno rows'
    assert env.step(run_sql("EXPLAIN QUERY PLAN SELECT * FROM town"))[0].endswith('"SCAN town"]')
    observation, reward, terminated, *_ = env.step(submit("SELECT name FROM person WHERE age = 30"))
    assert (observation, reward, terminated) == ("null", 1.0, True)


@pytest.mark.parametrize(
    ("action", "kind", "says"),
    [
        (call("describe_table", table="none"), "not_found", "there is no table 'none'; list_tables shows"),
        (call("sample_rows", table="town", count=0), "invalid", "count must be from 1 to 20, not 0"),
        (call("run_sql"), "invalid", "argument 'query'"),
        (call("submit_sql"), "invalid", "argument 'query'"),
        (run_sql("SELECT nme FROM person"), "sql", "no such column: nme"),
        (run_sql("SELEC 1"), "sql", 'near "SELEC": syntax error'),
        (run_sql(""), "sql", "the query is empty"),
        (run_sql("-- nothing"), "sql", "the query is empty"),
        (run_sql("SELECT 1\0"), "sql", "null character"),
        (run_sql("SELECT 1; SELECT 2"), "sql", "one statement at a time"),
        (run_sql("SELECT '" + "x" * MOST_SQL + "'"), "too_long", f"at most {MOST_SQL} are allowed"),
        ("x" * 1_000_000, "invalid", "1000000 characters long; at most 65536 are read"),
    ],
)
def test_tool_errors_say_what_would_be_right(ages, action, kind, says):
    env = make(tasks=ages)
    _, start = env.reset(seed=0)
    observation, _, terminated, truncated, info = env.step(action)
    assert (terminated, truncated) == (False, False)
    answer = json.loads(observation)
    assert answer["error"] == kind
    assert says in answer["message"]
    assert info["state_hash"] == start["state_hash"]


FORBIDDEN = {
    "ATTACH 'FILE' AS other": "ATTACH",
    "ATTACH ':memory:' AS other": "ATTACH",
    "DETACH main": "DETACH",
    "VACUUM": "VACUUM|ATTACH",
    "VACUUM INTO 'FILE'": "VACUUM|ATTACH",
    "PRAGMA query_only = 0": "PRAGMA",
    "PRAGMA journal_mode = DELETE": "PRAGMA",
    "PRAGMA writable_schema = 1": "PRAGMA",
    "PRAGMA database_list": "PRAGMA",
    "SELECT * FROM pragma_database_list": "UPDATE sqlite_master|READ|PRAGMA",
    "SELECT load_extension('FILE')": "load_extension",
    "SELECT readfile('FILE')": "readfile",
    "SELECT writefile('FILE', 'x')": "writefile",
    "SELECT fts3_tokenizer('simple')": "fts3_tokenizer",
    "SELECT random()": "random",
    "SELECT hex(randomblob(4))": "randomblob",
    "SELECT name FROM person ORDER BY random() LIMIT 1": "random",
    "SELECT sqlite_version()": "sqlite_version",
    "SELECT last_insert_rowid()": "last_insert_rowid",
    "SELECT total_changes()": "total_changes",
    "CREATE TABLE mine (x)": "CREATE|INSERT",
    "CREATE TEMP TABLE mine (x)": "CREATE|INSERT",
    "CREATE VIRTUAL TABLE mine USING fts5(x)": "CREATE|INSERT",
    "CREATE TRIGGER t AFTER INSERT ON town BEGIN SELECT 1; END": "CREATE|INSERT",
    "DROP TABLE town": "DROP|DELETE",
    "ALTER TABLE town RENAME TO village": "ALTER|READ|UPDATE",
    "REINDEX": "REINDEX",
    "ANALYZE": "ANALYZE|CREATE|INSERT",
    "BEGIN": "TRANSACTION",
    "COMMIT": "TRANSACTION",
    "ROLLBACK": "TRANSACTION",
    "SAVEPOINT s": "SAVEPOINT",
    "SELECT * FROM agent_gym_log": "READ agent_gym_log|no such table",
    "SELECT COUNT(*) FROM agent_gym_log": "READ agent_gym_log|no such table",
    "SELECT COUNT(*) FROM sqlite_temp_master": "READ sqlite_temp",
    "DELETE FROM temp.agent_gym_log": "DELETE agent_gym_log|no such table",
    "SELECT * FROM sqlite_temp_master": "READ sqlite_temp",
    "UPDATE sqlite_master SET sql = ''": "sqlite_master may not be modified|UPDATE sqlite_master",
    "SELECT * FROM sqlite_dbpage": "no such table|READ|UPDATE",
    "SELECT * FROM dbstat": "no such table|READ|UPDATE",
}

SHOWN = "the tools list_tables and describe_table show what the database has"
CATALOGUE = [
    "SELECT * FROM sqlite_master",
    "SELECT sql FROM main.sqlite_master",
    "SELECT group_concat(name) FROM sqlite_schema",
    "SELECT COUNT(*) FROM sqlite_master",
    "SELECT COUNT(*) FROM SQLITE_SCHEMA",
    "SELECT COUNT(*) FROM 'SQLITE_MASTER'",
    "SELECT COUNT(*) FROM Sqlite_Temp_Master",
    "SELECT name FROM temp.sqlite_schema",
    "SELECT rowid FROM [sqlite_master]",
    "SELECT * FROM pragma_table_list",
    "SELECT COUNT(*) FROM pragma_table_list",
    "SELECT COUNT(*) FROM PRAGMA_TABLE_INFO('town')",
    "SELECT name FROM pragma_table_info('town')",
    "SELECT * FROM pragma_table_xinfo('town')",
    "SELECT * FROM pragma_foreign_key_list('person')",
    "SELECT * FROM pragma_index_list('person')",
    "SELECT * FROM pragma_index_info('sqlite_autoindex_person_1')",
    "SELECT * FROM pragma_function_list",
    "PRAGMA table_info(town)",
    "PRAGMA table_list",
    "PRAGMA foreign_key_list(person)",
    "PRAGMA index_list(person)",
    "PRAGMA database_list",
    "PRAGMA foreign_key_check",
    "SELECT json_extract('{}', (SELECT group_concat(sql) FROM sqlite_master))",
    "SELECT 1 FROM person WHERE EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'town')",
    "SELECT * FROM person, json_each((SELECT json_group_array(name) FROM sqlite_master))",
    "WITH c AS (SELECT name FROM sqlite_master) SELECT * FROM c",
    "EXPLAIN SELECT * FROM sqlite_master",
    "EXPLAIN PRAGMA table_list",
    "SELECT * FROM dbstat",
    "SELECT sql FROM sqlite_stmt",
]


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("query", FORBIDDEN)
def test_what_is_forbidden(tmp_path, query, writable):
    file = tmp_path / "loot.db"
    here = world(writable)
    before = here.run("SELECT * FROM person").rows
    with pytest.raises(ToolError, match=FORBIDDEN[query]) as error:
        here.run(query.replace("FILE", str(file)), write=writable)
    assert error.value.kind in ("not_permitted", "sql")
    assert not file.exists()
    assert here.run("SELECT * FROM person").rows == before
    if writable:  # the refusal left no transaction open
        changed = here.run("DELETE FROM person WHERE id = 1", write=True).changes
        assert list(changed) == [("person", 1)]


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("query", CATALOGUE)
def test_the_catalogue_is_closed_to_queries(query, writable):
    here = world(writable)
    here.session.describe("town")  # the tools go their own way, and leave none open
    here.run("SELECT * FROM json_each('[1]')")
    with pytest.raises(ToolError) as error:
        here.run(query, write=writable)
    assert (error.value.kind, "no such table" in str(error.value)) in {("not_permitted", False), ("sql", True)}
    assert SHOWN in str(error.value) or "no such table: " in str(error.value)
    assert not re.search("label|town_id", str(error.value))


def test_what_is_no_catalogue_stays_open():
    here = world()
    for query in ("SELECT COUNT(*) FROM PERSON", 'SELECT COUNT(*) FROM "Person" AS p', "SELECT Age FROM pErSoN"):
        assert here.run(query).reads
    assert not here.run("SELECT COUNT(*) FROM json_each('[1]')").reads
    query = "SELECT p.name, j.value FROM person p, json_each('[30, 41]') j WHERE j.value = p.age ORDER BY 1 LIMIT 2"
    assert here.run(query).rows == [("Ann", 30), ("Bob", 41)]
    assert here.run("SELECT fullkey FROM json_tree('{\"a\": [1]}')").rows == [("$",), ("$.a",), ("$.a[0]",)]
    assert here.run("WITH sqlite AS (SELECT 1), pragma AS (SELECT 2) SELECT COUNT(*) FROM sqlite, pragma").rows == [
        (1,)
    ]


ROWS_READ = {
    "SELECT COUNT(*) FROM person": True,
    "SELECT COUNT(*) FROM PERSON AS p": True,
    'SELECT COUNT(*) FROM "pErSoN"': True,
    "SELECT COUNT(*) FROM [PERSON]": True,
    "SELECT COUNT(*) FROM `Person`": True,
    "SELECT COUNT(*) FROM MAIN.\"PERSON\"": True,
    "SELECT NAME FROM main.[PERSON]": True,
    "SELECT COUNT(*) FROM ADULTS": True,
    'SELECT Name FROM "adults"': True,
    "SELECT 5 WHERE (SELECT COUNT(*) FROM PERSON) > 0": True,
    "WITH p AS (SELECT * FROM PERSON) SELECT COUNT(*) FROM p": True,
    "WITH person AS (SELECT * FROM main.person) SELECT COUNT(*) FROM person": True,
    "SELECT 5": False,
    "VALUES (5)": False,
    "SELECT COUNT(*) FROM (VALUES (1), (2), (3), (4), (5)) AS Person": False,
    "WITH Person(x) AS (VALUES (1), (2), (3), (4), (5)) SELECT COUNT(*) FROM Person": False,
    'WITH "PERSON" AS MATERIALIZED (SELECT 1) SELECT 5 FROM [person]': False,
    "WITH RECURSIVE person AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM person LIMIT 5) SELECT COUNT(*) FROM person":
        False,
    "SELECT COUNT(*) FROM json_each('[1, 2, 3, 4, 5]') AS person": False,
}  # fmt: skip


@pytest.mark.parametrize("query", ROWS_READ)
@pytest.mark.parametrize(
    "gold", ["SELECT COUNT(*) FROM Person", "select count(*) from PERSON", "SELECT COUNT(id) FROM person"]
)
def test_a_constant_fails_however_the_tables_are_spelled(tmp_path, gold, query):
    folder = tmp_path / "given"
    make_file(
        folder / "database" / "small" / "small.sqlite", ["CREATE VIEW Adults AS SELECT * FROM person WHERE age > 0"]
    )
    (folder / "dev.json").write_text(json.dumps([record(gold)]))
    env = make(tasks=str(folder))
    env.reset(seed=0)
    found = env.unwrapped.task.world.run(query)
    assert found.reads is ROWS_READ[query]
    verdict = play(env, submit(query))[2]["verdict"]
    assert (verdict["status"] == "pass") is (ROWS_READ[query] and found.rows == [(5,)])
    if not ROWS_READ[query]:
        assert verdict["diagnostics"] == ["the query reads no table"]


def test_an_explained_change_does_not_name_the_tables_that_refer_to_its_own():
    here = world()
    for query in ("EXPLAIN QUERY PLAN DELETE FROM town", "EXPLAIN DELETE FROM town", "EXPLAIN UPDATE town SET id = 2"):
        with pytest.raises(ToolError, match="not allowed here"):
            here.run(query, write=True)
    assert here.run("EXPLAIN QUERY PLAN SELECT * FROM town", write=True).rows[0][-1] == "SCAN town"
    assert len(here.run("DELETE FROM person", write=True).changes) == 5


@pytest.mark.parametrize(
    "query",
    [
        "SELECT json_extract('{}', (SELECT group_concat(name || ' ' || id || hex(zeroblob(900))) FROM person))",
        "SELECT " + "a" * 15_000,
        "SELECT '" + "x" * 15_000,
        "SELECT * FROM " + "b" * 15_000,
        f"SELECT json_extract('{{}}', '{'z' * 9000}')",
    ],
)
def test_an_error_prints_no_table(ages, query):
    env = make(tasks=ages)
    for action in (run_sql(query), submit(query)):
        observation, *_ = play(env, action)
        message = json.loads(observation)["message"] if observation != "null" else ""
        assert len(message) <= MOST_MESSAGE
        assert message.endswith("... (cut)")
    long = play(env, call("describe_table", table="c" * 40_000))[0]
    assert len(json.loads(long)["message"]) < MOST_MESSAGE


@pytest.mark.parametrize(
    "query", ["INSERT INTO town VALUES (9, 'a', 1, NULL)", "UPDATE town SET size = 0", "DELETE FROM person"]
)
def test_a_question_only_reads(ages, query):
    env = make(tasks=ages)
    for action in (run_sql(query), submit(query)):
        _, start = env.reset(seed=0)
        observation, *_, info = env.step(action)
        assert json.loads(observation)["message"].endswith("this task only reads")
        assert info["state_hash"] == start["state_hash"]
    assert (info["verdict"]["status"], info["verdict"]["reason"]) == ("fail", "error")


RUNAWAYS = [
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n",
    "SELECT COUNT(*) FROM " + ", ".join(f"person p{n}" for n in range(14)),
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n ORDER BY x",
    "WITH RECURSIVE n(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM n) SELECT length(x) FROM n",
]


@pytest.mark.parametrize("query", RUNAWAYS)
def test_runaway_queries_are_stopped_by_their_instructions(ages, query):
    env, seen = make(tasks=ages, instructions=200_000), []
    for _ in range(2):
        observation, _, info = play(env, run_sql(query))
        seen.append((observation, info["cost"]))
        answer = json.loads(observation)
        assert answer["error"] in ("timeout", "sql")
        assert "after 200000 instructions" in answer["message"] or "too big" in answer["message"]
    assert seen[0] == seen[1]
    if answer["error"] == "timeout":  # it is charged what it took
        assert seen[0][1]["latency_ms"] > 0.9 * 2000
    _, reward, info = play(env, submit(RUNAWAYS[0]))
    assert (reward, info["verdict"]["reason"]) == (0.0, "timeout")
    assert play(env, *env.unwrapped.oracle())[1] == 1.0


LONG = "replace(hex(zeroblob(30000)), '0', 'a')"
MANY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000), s(x) AS (SELECT " + LONG + ") "
SLOW = {  # statements whose instructions take long, or that take long where nothing counts instructions
    "zeroblob": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
    "SELECT SUM(length(replace(hex(zeroblob(45000 + x * 0)), '0', '1'))) FROM n",
    "instr": MANY + "SELECT SUM(instr(x || i, substr(x, 30000) || 'b')) FROM s, n",
    "replace": MANY + "SELECT SUM(length(replace(x || i, substr(x, 30000) || 'b', ''))) FROM s, n",
    "like": MANY + f"SELECT SUM((x || i) LIKE '%{'a' * 80}b') FROM s, n",
    "glob": MANY + f"SELECT SUM((x || i) GLOB '*{'[a-b]' * 18}c') FROM s, n",
    "trim": MANY + f"SELECT SUM(length(trim(x || i, '{'b' * 90}a'))) FROM s, n",
    "dates": MANY + "SELECT COUNT(date(x || i)) FROM s, n",
    "json": MANY + "SELECT COUNT(*) FROM n, json_tree(replace(hex(zeroblob(900)), '0', '[') || "
    "replace(hex(zeroblob(900)), '0', ']'))",
    "distinct": MANY + "SELECT COUNT(*) FROM (SELECT DISTINCT (x || i) COLLATE NOCASE FROM s, n)",
    "sort": MANY + "SELECT length(y) FROM (SELECT x || i AS y FROM s, n) ORDER BY y COLLATE NOCASE DESC",
    "window": MANY + "SELECT SUM(length(g)) FROM (SELECT group_concat(i) OVER (ROWS 9000 PRECEDING) g FROM n)",
    "precision": "SELECT length(printf('%.2147483647c', 'a'))",
    "precisions": "SELECT format('%5d" + "%.*c" * 9 + "', 7" + ", 2147483647, 'a'" * 9 + ")",
    "stretch": "WITH s(x, y) AS MATERIALIZED (SELECT " + LONG + " || age, " + LONG + " || 'b' FROM person) SELECT "
    + " + ".join(["instr(x, y)"] * 900) + " FROM s",
    "quoted": "WITH s(x, y) AS MATERIALIZED (SELECT " + LONG + " || age, " + LONG + " || 'b' FROM person) SELECT "
    + " + ".join(['"instr"(x, y)'] * 900) + " FROM s",
    "doubled": "SELECT x + x + x + x + x + x + x + x AS x FROM (" * 9 + "SELECT age AS x FROM person" + ")" * 9,
    "copied": "WITH s(x) AS (SELECT instr(name, 'a') FROM person)"
    + "".join(f", s{n}(x) AS (SELECT x + x + x + x FROM s{n - 1 if n else ''})" for n in range(14))
    + " SELECT * FROM s13",
    "joined": "SELECT * FROM person p0 " + " ".join(f"JOIN person p{n} USING (id, name, age)" for n in range(1, 60)),
    "crossed": "SELECT 1 FROM " + ", ".join(f"person p{n}" for n in range(60))
    + " WHERE " + " AND ".join(f"p{n}.id = p{n + 1}.id" for n in range(59)),
}  # fmt: skip


@pytest.mark.parametrize("attack", SLOW)
def test_no_statement_takes_long(attack, monkeypatch):
    monkeypatch.setattr(database, "MOST_SECONDS", 0.3)  # the rest is what nothing can stop
    here = world()
    start, kind, units = time.thread_time(), "", 0.0
    try:
        here.run(SLOW[attack])
    except QueryError as error:
        kind, units = error.kind, error.units
    assert time.thread_time() - start < 10.0
    assert kind in ("timeout", "memory", "too_long", "sql")
    if kind in ("timeout", "memory"):  # what was stopped for its work has the price of all of it
        assert units == INSTRUCTIONS // TICK
    assert here.run("SELECT COUNT(*) FROM person").rows == [(5,)]


def test_what_the_clock_stops_costs_and_reads_like_what_the_count_stops(ages, monkeypatch):
    monkeypatch.setattr(database, "MOST_SECONDS", 0.3)
    env = make(tasks=ages)
    slow, endless = (play(env, run_sql(query)) for query in (SLOW["zeroblob"], RUNAWAYS[0]))
    assert json.loads(slow[0]) == json.loads(endless[0])
    for _, _, info in (slow, endless):
        assert info["cost"]["latency_ms"] > 0.9 * INSTRUCTIONS / TICK


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("INSERT INTO town SELECT i + 9, 'a', i, NULL FROM n", "changes too many rows"),
        ("INSERT INTO town SELECT i + 9, 'a', i, x FROM n, s LIMIT 1000", "changes too many rows"),
        ("SELECT x || i FROM n, s LIMIT 1000", "needs too much memory"),
    ],
)
def test_a_world_and_a_result_stay_small(query, says):
    here = world()
    many = MANY.replace("100000", "60000")
    with pytest.raises(ToolError, match=says) as error:
        here.run(many + query, write=True, most_rows=1000, instructions=100 * INSTRUCTIONS)
    assert error.value.kind == "memory"
    assert here.run("SELECT COUNT(*) FROM town").rows == [(3,)]
    after = written(here, MANY.replace("100000", "2000") + "INSERT INTO town SELECT i + 9, 'a', i, NULL FROM n")
    assert after.run("SELECT COUNT(*) FROM town").rows == [(2003,)]


def test_long_values_can_still_be_worked_on():
    query = f"WITH s(x) AS (SELECT {LONG}) SELECT length(upper(x) || x), instr(x, 'b'), x LIKE 'a%', trim(' a '), "
    query += "trim('--a-', '-'), ltrim(55.5, '5'), printf('%5.1f|%-4s|%c', 2.25, 'ab', 'xyz'), "
    query += "printf('%.2f%%', 50), printf('%s', NULL), rtrim(x, 'a') FROM s"
    assert world().run(query).rows == [
        (120_000, 0, 1, "a", "a", ".5", "  2.3|ab  |x", "50.00%", "", "")
    ]  # fmt: skip
    with pytest.raises(ToolError, match="more than 100 characters to trim, a precision of %c"):
        world().run(f"SELECT trim('a', {LONG})")


def test_expansions_at_compile_time_are_refused():
    def chain(count, name="c{}", body="SELECT a.x FROM {0} a, {0} b", head="AS"):
        parts = [f"{name.format(0)}(x) {head} (SELECT 1 x)"]
        for n in range(1, count):
            parts.append(f"{name.format(n)}(x) {head} ({body.format(name.format(n - 1))})")
        return f"WITH {', '.join(parts)} SELECT * FROM {name.format(count - 1)}"

    spellings = [
        {},
        {"name": '"a b {}"'},
        {"name": "'c{}'"},
        {"name": "[c {}]"},
        {"name": "c{}\u20ac"},
        {"name": "c{}$"},
    ]
    spellings += [{"head": "AS/* */"}, {"head": "AS NOT MATERIALIZED"}, {"head": "AS MATERIALIZED -- x\n"}]
    for spelling in spellings:
        with pytest.raises(ToolError, match="inside each other too often"):
            world().run(chain(20, **spelling))
    for name in ("t", "window", "'t'"):
        shadowed = f"WITH {name} AS (SELECT 1 x) SELECT a.x FROM {name} a, {name} b"
        for _ in range(13):
            shadowed = f"WITH {name} AS ({shadowed}) SELECT a.x FROM {name} a, {name} b"
        with pytest.raises(ToolError, match="inside each other too often"):
            world().run(shadowed)
    twice = "WITH a AS (SELECT age FROM person), b AS (SELECT x.age FROM a x, a y) SELECT COUNT(*) FROM b, b c"
    assert world().run(twice).rows == [(625,)]
    # names of columns are no copies, however often they stand there
    qualified = "WITH " + ", ".join(f"c{n} AS (SELECT id, age FROM person)" for n in range(6)) + " SELECT "
    qualified += ", ".join(f"c{n}.id, c{n}.age, c{n}.id + c{n}.age, c{n}.age" for n in range(6)) + " FROM c0"
    qualified += "".join(f" JOIN c{n} ON c{n}.id = c0.id" for n in range(1, 6))
    assert len(world().run(qualified).rows) == 5
    joins = "SELECT COUNT(*) FROM person p0" + "".join(f" JOIN person p{n} ON p{n}.id = p0.id" for n in range(1, 30))
    assert world().run(joins).rows == [(5,)]
    for query in (
        SLOW["joined"],
        SLOW["crossed"],
        "SELECT 1 FROM (person a JOIN (person b, " + "person, " * 40 + "town))",
    ):
        with pytest.raises(ToolError, match="tables; at most 32 are allowed"):
            world().run(query)


@pytest.mark.parametrize(
    "query",
    ["SELECT zeroblob(120001)", "SELECT zeroblob(2000000)", "SELECT replace(hex(zeroblob(400000)), '0', 'aaaa')"],
)
def test_values_that_grow_are_refused(query):
    with pytest.raises(ToolError, match="too big"):
        world().run(query)
    assert world().run("SELECT printf('%2000000d', 1)").rows == [(None,)]


def test_latency_is_the_instruction_count(ages):
    env = make(tasks=ages)

    def latency(query):
        return play(env, run_sql(query))[2]["cost"]["latency_ms"]

    point, cross = (
        "SELECT name FROM person WHERE id = 2",
        "SELECT COUNT(*) FROM person a, person b, person c, person d, person e",
    )
    assert latency(cross) > 2 * latency(point)
    assert latency(cross) == latency(cross)
    counts = [world().run(cross).units for _ in range(3)]
    assert counts[0] > 10
    assert len(set(counts)) == 1


def test_the_clock_stands_still():
    here = world()
    query = "SELECT date('now'), date(), datetime('NOW', '+1 day'), time('now', 'localtime'), CURRENT_TIMESTAMP, "
    query += "strftime('%Y'), strftime('%s', 'now'), julianday('now') = julianday('2025-01-01'), "
    query += "date('2024-02-28', '+2 days')"
    assert here.run(query).rows == [
        ("2025-01-01", "2025-01-01", "2025-01-02 00:00:00", "00:00:00", NOW, "2025", "1735689600", 1, "2024-03-01")
    ]
    with pytest.raises(ToolError):
        here.run("SELECT date('now', 'localtime', random())")


def test_results_are_cut_by_rows_and_characters(ages):
    env = make(tasks=ages, token_counter=len)
    count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {}) SELECT {} FROM n"
    observation, _, info = play(env, run_sql(count.format(1000, "x")))
    assert observation.splitlines()[-2:] == ["[50]", "... (more rows)"]
    assert info["cost"]["output_tokens"] == len(run_sql(count.format(1000, "x")))
    assert info["cost"]["read_tokens"] == len(observation)
    observation, *_ = play(env, run_sql(count.format(40, "hex(zeroblob(50000))")))
    assert len(observation) < 12_000
    assert "..." in observation.splitlines()[1]
    observation, *_ = play(env, run_sql(f"SELECT 1 AS {'a' * 5000}, {', '.join(f'{n} AS b{n}' for n in range(1500))}"))
    assert len(observation) < 9000  # names of columns are cut as well


def test_costs_matter(ages):
    env = make(tasks=ages)
    query = "SELECT name FROM person WHERE age = 30"
    direct = play(env, submit(query))[2]["cost_total"]
    looked = play(env, *[call("sample_rows", table=t, count=20) for t in ("town", "person")], submit(query))[2]
    assert looked["verdict"]["status"] == "pass"
    for channel, spent in looked["cost_total"].items():
        assert spent > direct[channel]
    tight = make(tasks=ages, budget={"tool_calls": 1})
    assert play(tight, call("list_tables"), submit(query))[2]["verdict"]["reason"] == "budget"


def test_tool_table_follows_the_code():
    page = (Path(__file__).parents[1] / "docs" / "sql_agent.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\(([^)]*)\)` \| (\d+) \+ (\d+) ", page, re.MULTILINE)
    env = make()
    env.reset(seed=0)
    assert rows == [
        (tool.name, ", ".join(tool.parameters), f"{tool.latency.base_ms:.0f}", f"{tool.latency.per_unit_ms:.0f}")
        for tool in env.unwrapped.tools.values()
    ]


# ---- the world -----------------------------------------------------------------------------------------------------

WRITES = st.sampled_from(
    [
        "INSERT INTO town VALUES (9, 'Nine', 1.5, NULL)",
        "INSERT OR REPLACE INTO town VALUES (9, 'Other', 2.5, 'y')",
        "DELETE FROM town WHERE id = 9",
        "UPDATE person SET age = age + 1",
        "UPDATE person SET age = age - 1",
        "UPDATE person SET name = CASE name WHEN 'Ann' THEN 'Zoe' WHEN 'Zoe' THEN 'Ann' ELSE name END",
        "UPDATE person SET id = id + 10 WHERE id < 10",
        "UPDATE person SET id = id - 10 WHERE id > 10",
        "INSERT INTO person (town_id, name, age) VALUES (1, 'New', 1)",
        "DELETE FROM person WHERE name = 'New'",
        "INSERT OR REPLACE INTO person (id, name) VALUES (7, 'Ann')",
        "UPDATE town SET note = x'00ff' WHERE id = 1",
        "DELETE FROM person",
        "DELETE FROM town",
    ]
)


def written(here, query):
    try:
        return here.apply(here.run(query, write=True).changes)
    except ToolError:
        return here


def content(here):
    return [here.run(f"SELECT rowid, * FROM {table} ORDER BY rowid").rows for table in ("town", "person")]


@settings(max_examples=60, deadline=None)
@given(queries=st.lists(WRITES, max_size=6))
def test_worlds_do_what_sqlite_does(queries):
    plain = sqlite3.connect(":memory:", isolation_level=None)
    plain.execute("PRAGMA foreign_keys=ON")
    plain.execute("PRAGMA recursive_triggers=ON")
    for statement in DDL:
        plain.execute(statement)
    for table, rows in ROWS.items():
        plain.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", rows)
    here, trail = world(), []
    for query in queries:
        try:
            plain.execute(query)
        except sqlite3.IntegrityError:
            with pytest.raises(ToolError):
                here.run(query, write=True)
        here = written(here, query)
        rows = [
            plain.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid").fetchall() for table in ("town", "person")
        ]
        assert content(here) == rows
        trail.append((here, rows))
    for one, rows in reversed(trail):  # and back again, on the same connection
        assert content(one) == rows
    # the hash is that of the content, whatever led to it
    for a, rows in trail:
        for b, others in trail:
            assert (a.hash == b.hash) == (rows == others)
        assert pickle.loads(pickle.dumps(a)).hash == a.hash
        assert (a.hash == world().hash) == (rows == content(world()))


def test_foreign_keys_hold_from_the_first_statement_on():
    fresh = World(Database((*DDL, "CREATE TABLE more (id INTEGER PRIMARY KEY)"), ROWS), True)
    for _ in range(2):
        with pytest.raises(ToolError, match="FOREIGN KEY constraint failed"):
            fresh.run("DELETE FROM town", write=True)
        fresh.apply(fresh.run("DELETE FROM person", write=True).changes).run("SELECT 1")


def test_worlds_share_what_did_not_change():
    here = world()
    after = written(here, "UPDATE town SET size = 1 WHERE id = 2")
    assert dict(after.delta) == {("town", 2): ((2, "Stulu", 3.25, "x"), (2, "Stulu", 1.0, "x"))}
    assert after.database is here.database
    assert here.run("SELECT size FROM town WHERE id = 2").rows == [(3.25,)]
    assert written(after, "UPDATE town SET size = 3.25 WHERE id = 2").hash == here.hash


def test_a_file_is_written_in_memory_only(tmp_path):
    path = make_file(tmp_path / "small.db")
    before = path.read_bytes()
    here = World(Database(path=str(path)), writable=True)
    after = written(here, "UPDATE person SET age = 0")
    assert after.run("SELECT SUM(age) FROM person").rows == [(0,)]
    assert here.run("SELECT SUM(age) FROM person").rows == [(156,)]
    assert path.read_bytes() == before
    assert len(pickle.dumps(after)) < 2000


def test_a_database_that_changed_is_not_restored(tmp_path):
    path = make_file(tmp_path / "small.db")
    data = pickle.dumps(World(Database(path=str(path))))
    assert pickle.loads(data).hash == Database(path=str(path)).key
    db = sqlite3.connect(path)
    db.execute("DELETE FROM person")
    db.commit()
    db.close()
    with pytest.raises(ValueError, match="the database has changed since the snapshot was taken"):
        pickle.loads(data)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("CREATE TABLE odd (a TEXT PRIMARY KEY) WITHOUT ROWID", "odd has no rowid"),
        ("CREATE TRIGGER t AFTER INSERT ON town BEGIN SELECT 1; END", "the trigger t"),
    ],
)
def test_databases_that_cannot_be_written_are_named(tmp_path, extra, says):
    path = make_file(tmp_path / "odd.db", [extra])
    assert World(Database(path=str(path))).run("SELECT COUNT(*) FROM town").rows == [(3,)]
    with pytest.raises(ValueError, match=says):
        World(Database(path=str(path)), writable=True).session.run("SELECT 1", {})


# ---- snapshots and replay ------------------------------------------------------------------------------------------

CHANGE = next(seed for seed in range(0, 400, 4) if compose("train", 1, seed).golds[0].startswith("DELETE"))
TASK = f"train-1-{CHANGE}"
TABLE = compose("train", 1, CHANGE).golds[0].split()[2]


def test_state_hash_is_of_the_content_alone():
    env = make()
    env.reset(options={"task": TASK})
    start = state_hash(env)
    env.step(run_sql(f"UPDATE {TABLE} SET id = id + 5000 WHERE id < 2000"))
    moved = state_hash(env)
    env.step(run_sql(f"UPDATE {TABLE} SET id = id - 5000 WHERE id > 5000"))
    assert state_hash(env) == start != moved


def recorded(env, *actions, **reset):
    env = RecordTrajectory(env)
    play(env, *actions, **reset)
    return env, env.last


def test_names_that_only_a_description_showed_are_ungrounded(tmp_path):
    path = spider(tmp_path / "given", record("SELECT label FROM town WHERE size > 5", "Which places are large?"))
    env, trajectory = recorded(
        make(tasks=path),
        call("list_tables"),
        call("describe_table", table="town"),
        submit("SELECT label FROM town WHERE size > 5"),
    )
    assert trajectory.reward == 1.0
    no_list, no_description, cut = counterfactuals(env, trajectory, [Delete(0), Delete(1), Truncate(0)])
    assert no_list.validity == ("ungrounded", "ungrounded")  # what is never asked for is never shown
    assert no_description.validity == cut.validity == ("ungrounded",)
    assert no_list.reward == no_description.reward == cut.reward == 0.0
    (literal,) = counterfactuals(env, trajectory, [Delete(1)], grounding=False)
    assert literal.reward == 1.0


def test_values_that_only_a_sample_showed_are_ungrounded(tmp_path):
    path = spider(
        tmp_path / "given", record("SELECT age FROM person WHERE name = 'Ann'", "The age of person.name ann?")
    )
    env, trajectory = recorded(
        make(tasks=path),
        call("sample_rows", table="person", count=1),
        submit("SELECT age FROM person WHERE name = 'Ann'"),
    )
    (deleted,) = counterfactuals(env, trajectory, [Delete(0)])
    assert deleted.validity == ("ungrounded",)


def test_names_in_the_request_stay_grounded(tmp_path):
    question = 'Show "label" of "town" where "size" is above 5.'
    path = spider(tmp_path / "given", record("SELECT label FROM town WHERE size > 5", question))
    env, trajectory = recorded(
        make(tasks=path), call("describe_table", table="town"), submit("SELECT label FROM town WHERE size > 5")
    )
    (deleted,) = counterfactuals(env, trajectory, [Delete(0)], cache=ToolCache())
    assert deleted.reward == trajectory.reward == 1.0
    assert deleted.cost_credit["tool_calls"] == 1.0


@pytest.mark.parametrize("level", LEVELS[1:])
def test_every_look_of_the_oracle_is_missed_or_spelled_in_the_request(level):
    env, ungrounded = RecordTrajectory(make(difficulty=level, kinds=["query"])), 0
    for seed in range(6):
        env.reset(seed=seed)
        play(env, *env.unwrapped.oracle(), seed=seed)
        found = counterfactuals(env, env.last, [Delete(t) for t in range(level - 1)])
        ungrounded += sum(one.reward == 0.0 for one in found)
    assert ungrounded >= 2 * (level - 1)


# ---- the verdict ---------------------------------------------------------------------------------------------------


def result(rows, columns=None, more=False):
    width = len(rows[0]) if rows else 1
    return Result(tuple(columns or "abcdefgh"[:width]), list(rows), more, 0.0, {})


@pytest.mark.parametrize(
    ("gold", "found", "ties", "same"),
    [
        ([(1,), (2,)], [(2,), (1,)], None, True),
        ([(1,), (2,)], [(2,), (1,)], (0, 1), False),
        ([(1, "x"), (1, "y"), (2, "z")], [(1, "y"), (1, "x"), (2, "z")], (0, 0, 2), True),
        ([(1, "x"), (1, "y"), (2, "z")], [(1, "y"), (2, "z"), (1, "x")], (0, 0, 2), False),
        ([(1, "x"), (1, "y")], [(1, "y"), (1, "x")], (0, 1), False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], None, False),
        ([(1,), (1,)], [(1,)], None, False),
        ([(1, "x"), (2, "y")], [("x", 1), ("y", 2)], None, True),
        ([(1, 2), (2, 1)], [(2, 1), (1, 2)], None, True),
        ([(1, 2), (1, 3)], [(1, 3), (2, 1)], None, False),
        ([(1, "x"), (2, "y")], [(1, "y"), (2, "x")], None, False),
        ([(0.1 + 0.2,)], [(0.3,)], None, True),
        ([(1,)], [(1.0,)], None, True),
        ([(5551234567,)], [(5551234568,)], None, False),
        ([(5551234567,)], [(5551234567,)], None, True),
        ([(10**18,)], [(10**18 + 1,)], None, False),
        ([(0,)], [(1e-9,)], None, True),
        ([(3000000,)], [(3000000.5,)], None, True),
        ([(1, 5551234567), (2, 5551234568)], [(2, 5551234567), (1, 5551234568)], None, False),
        ([(1.0,)], [(1.001,)], None, False),
        ([(1e9,)], [(1e9 + 1,)], None, True),
        ([("1",)], [(1,)], None, False),
        ([(None,)], [(None,)], None, True),
        ([(None,)], [(0,)], None, False),
        ([(None,)], [("",)], None, False),
        ([(None, 1), (2, None)], [(1, None), (None, 2)], None, True),
        ([(b"x",)], [("x",)], None, False),
        ([(1.0, 5), (1.0000001, 4)], [(1.0000001, 5), (1.0, 4)], None, True),
        ([(1, 1, 1, 1, 1, 1, 1, 2)], [(1, 1, 1, 2, 1, 1, 1, 1)], None, True),
        ([], [], None, True),
        ([], [(1,)], None, False),
    ],
)
def test_results_are_compared_as_bags(gold, found, ties, same):
    assert (differences(result(gold), result(found), ties) == []) is same


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([None, 1, 2, "x"]), st.floats(0, 1), st.integers(0, 2)), min_size=1, max_size=8
    ),
    data=st.data(),
)
def test_any_order_of_rows_and_columns_is_the_same(rows, data):
    order, columns = data.draw(st.permutations(range(len(rows)))), data.draw(st.permutations(range(3)))
    other = [tuple(rows[n][c] for c in columns) for n in order]
    assert differences(result(rows), result(other)) == []
    assert differences(result(rows), result(other[1:], "abc")) != []
    assert differences(result(rows), result([(*row[:2], 7) for row in rows])) != []


def test_diagnostics_name_the_difference(ages):
    env = make(tasks=ages)

    def verdict(action):
        return play(env, action)[2]["verdict"]

    assert verdict(submit("SELECT name FROM person WHERE age >= 30"))["diagnostics"] == [
        "expected 3 rows, found 4", 'unexpected row: ["Bob"]',
    ]  # fmt: skip
    assert verdict(submit("SELECT name FROM person WHERE id IN (1, 3, 4)"))["diagnostics"] == [
        'missing row: ["Eve"]', 'unexpected row: ["Dee"]',
    ]  # fmt: skip
    assert verdict(submit("SELECT name, age FROM person"))["diagnostics"] == ["expected 1 column, found 2: name, age"]
    wrong = verdict(submit("SELECT nme FROM person"))
    assert (wrong["reason"], wrong["score"], wrong["diagnostics"]) == ("error", 0.0, ["no such column: nme"])
    assert verdict(submit("SELECT 'Ann' UNION SELECT 'Cid' UNION SELECT 'Eve'"))["diagnostics"] == [
        "the query reads no table"
    ]
    assert verdict("")["diagnostics"] == ["nothing was submitted"]
    assert verdict("Ann, Cid, Eve")["diagnostics"] == ["the answer is not a query"]
    assert verdict(call("submit"))["status"] == verdict(submit(""))["status"] == "fail"


def test_an_answer_may_come_in_several_ways(ages):
    env, query = make(tasks=ages), "SELECT name FROM person WHERE age = 30"
    for action in (
        query, f"```sql\n{query};\n```", submit(query), call("submit", answer=query), f"-- mine\n{query}",
        submit(f"WITH p AS (SELECT * FROM person) {query.replace('person', 'p')}"), submit(f"{query} ORDER BY 1 DESC"),
    ):  # fmt: skip
        assert play(env, action)[1] == 1.0, action


def test_an_answer_may_be_fenced(ages):
    env, query = make(tasks=ages), "SELECT name FROM person WHERE age = 30"
    for answer in (
        f"Here it is:\n```sql\n{query}\n```\nIt reads one table.", f"```\n{query}\n```", f"```SQL\r\n{query}\r\n```",
        f"With this it's done:\n```sql\n{query}\n```", f"Select this:\n\n```sql\n{query};\n```", f"```sql\n{query}",
        f"{query} OR name = '```sql\nSELECT 1\n```'", f"-- ```\n{query} -- ```",
        f'{query} OR name IN ("```", \'``` it\'\'s\')',
    ):  # fmt: skip
        for action in (answer, call("submit", answer=answer)):
            assert play(env, action)[1] == 1.0, answer
    two = f"```sql\nSELECT 1\n```\nor\n```sql\n{query}\n```"
    for answer in (two, "```" + "\n" * 20_000 + "x", "```" * 5000, "`" * 9999, f"It is ```{query[:6]}``` or not"):
        assert play(env, answer)[2]["verdict"]["status"] == "fail"


def test_a_fenced_query_in_a_call_is_read(ages):
    env, query = make(tasks=ages), "SELECT name FROM person WHERE age = 30"
    for text in (f"```sql\n{query}\n```", f"```\n{query};\n```", f"Here:\n```sql\n{query}\n```", f"```sql\n{query}"):
        assert play(env, submit(text))[1] == 1.0, text
        observation, _, info = play(env, run_sql(text))
        assert (observation, info["tool_results"][0]["error"]) == (play(env, run_sql(query))[0], None)
    change = compose("train", 1, CHANGE).golds[0]
    for call_of in (run_sql, submit):
        assert play(make(), call_of(f"```sql\n{change}\n```"), "Done.", task=TASK)[1] == 1.0
    # its names and literals are those of the query
    env, trajectory = recorded(
        make(tasks=ages),
        call("describe_table", table="person"),
        submit("```sql\nSELECT name FROM person WHERE age = 30\n```"),
    )
    assert trajectory.reward == 1.0
    (deleted,) = counterfactuals(env, trajectory, [Delete(0)])
    assert deleted.validity == ("ungrounded",)


def test_a_value_may_be_fenced_and_no_answer_is_too_odd():
    env = make()
    task = next(t for seed in range(1, 40) if (t := compose("train", 2, seed)).value)
    ((wanted,),) = task.world.run(task.golds[0]).rows
    for answer in (f"```\n{wanted}\n```", f"The value:\n```json\n{json.dumps(wanted)}\n```", json.dumps(wanted)):
        assert play(env, answer, task=task.id)[1] == 1.0, answer
    for answer in (
        "[" * 990,
        "[" * 30_000,
        '{"a":' * 900,
        "9" * 400,
        "9" * 5000,
        "-1e999",
        "NaN",
        "Infinity",
        "```\n[[\n```",
    ):
        assert play(env, answer, task=task.id)[2]["verdict"]["reason"] == "wrong_answer"


def test_order_counts_where_the_gold_orders(tmp_path):
    gold = "SELECT name, age FROM person ORDER BY age DESC"
    env = make(tasks=spider(tmp_path / "given", record(gold), record(f"SELECT * FROM ({gold})")))
    assert play(env, submit(gold), task="small-1")[1] == 1.0
    assert play(env, submit(f"{gold}, name DESC"), task="small-1")[1] == 1.0  # ties may come in any order
    _, reward, info = play(env, submit("SELECT name, age FROM person ORDER BY age"), task="small-1")
    assert (reward, info["verdict"]["diagnostics"]) == (0.0, ["the rows are right, their order is not"])
    assert play(env, submit("SELECT age, name FROM person"), task="small-2")[1] == 1.0


def queries(split, level, count):
    for seed in range(1, 4 * count):
        task = compose(split, level, seed)
        if kind_of(seed) == "query" and not task.value:
            yield task


def test_hard_coded_and_accidental_answers_are_caught_on_other_rows():
    env, caught = make(), 0
    for task in queries("train", 1, 6):
        names = task.world.session.columns(task.golds[0].split(" FROM ")[1].split()[0])
        rows = task.world.run(task.golds[0]).rows
        # the same rows by their values, from a real table: right on the visible rows alone
        literal = " UNION ALL ".join(f"SELECT {', '.join(map(repr, row))}" for row in rows).replace("None", "NULL")
        table = task.golds[0].split(" FROM ")[1].split()[0]
        query = f"SELECT * FROM ({literal}) WHERE EXISTS (SELECT {names[0]} FROM {table})"
        _, reward, info = play(env, submit(query), task=task.id)
        assert reward == 0.0
        if "ORDER BY" not in task.golds[0]:
            assert info["verdict"]["score"] < 1.0
            assert all(fault.startswith("on other rows") for fault in info["verdict"]["diagnostics"])
            caught += info["verdict"]["score"] > 0
    assert caught > 5


def test_a_value_is_an_answer_only_where_one_is_asked_for():
    env, values = make(), 0
    for level in (2, 3, 4, 5):
        for seed in range(1, 40):
            task = compose("train", level, seed)
            if not task.value:
                continue
            values += 1
            ((wanted,),) = task.world.run(task.golds[0]).rows
            assert task.request.endswith("Answer with the value alone.")
            assert play(env, str(wanted), task=task.id)[1] == 1.0
            assert play(env, call("submit", answer=wanted), task=task.id)[1] == 1.0
            assert play(env, submit(task.golds[0]), task=task.id)[1] == 1.0
            assert play(env, "0", task=task.id)[2]["verdict"]["reason"] == "wrong_answer"
            assert play(env, submit(f"SELECT {wanted!r}"), task=task.id)[1] == 0.0
    assert values > 5


def test_a_change_is_judged_by_the_state():
    env, task = make(), compose("train", 1, CHANGE)
    gold, start = task.golds[0], task.wrong[0]
    assert play(env, submit(gold), task=TASK)[1] == 1.0
    assert play(env, run_sql(gold), "Done.", task=TASK)[1] == 1.0
    assert play(env, run_sql(start), run_sql(gold), "Done.", task=TASK)[2]["verdict"]["reason"] == "wrong_state"
    assert play(env, gold, task=TASK)[1] == 0.0  # words are no deeds
    other = task.world.session.tables[0]
    text = task.world.session.columns(other)[1]
    aside = run_sql(f"UPDATE {other} SET {text} = 'x' WHERE id = (SELECT MAX(id) FROM {other})")
    _, reward, info = play(env, aside, submit(gold), task=TASK)
    assert reward == 0.0
    assert 0.0 < info["verdict"]["score"] < 1.0
    fault, *elsewhere = info["verdict"]["diagnostics"]
    assert fault.startswith(other)
    assert "changed though nothing asked for it" in fault
    assert [one.split(":")[0] for one in elsewhere] == [
        f"on other rows ({number} of {len(task.refills)})" for number in range(1, len(task.refills) + 1)
    ]
    _, reward, info = play(env, submit("UPDATE nowhere SET x = 1"), task=TASK)
    assert (reward, info["verdict"]["reason"]) == (0.0, "error")
    assert info["verdict"]["diagnostics"][0] == "no such table: nowhere"


def test_a_change_is_judged_on_other_rows_too():
    """What is right by accident on the visible rows: the rows named one by one, a boundary that none of them shows."""
    env, judged = make(), 0
    for seed in range(0, 160, 4):
        task = compose("train", 1, seed)
        gold = task.golds[0]
        if not gold.startswith("UPDATE") or not (ids := sorted(row for _, row in task.goals[0].delta)):
            continue
        judged += 1
        start = gold.split(" WHERE ")[0]
        listed = f"{start} WHERE id IN ({', '.join(map(str, ids))})"
        _, reward, info = play(env, run_sql(listed), "Done.", task=task.id)
        assert (reward, info["verdict"]["reason"]) == (0.0, "wrong_state")
        assert 0.0 < info["verdict"]["score"] < 1.0
        assert all(fault.startswith(("on other rows (", "and ")) for fault in info["verdict"]["diagnostics"])
        # the same change by another way, in several statements, with a look between them, some of which do nothing
        table = gold.split()[1]
        nested = f"{start} WHERE id IN (SELECT id FROM {table} WHERE {gold.split(' WHERE ')[1]})"
        for actions in (
            [run_sql(gold), run_sql(gold), "Done."],
            [run_sql(f"SELECT * FROM {table}"), run_sql("UPDATE nothing"), submit(nested)],
            [run_sql(f"DELETE FROM {table} WHERE id < 0"), submit(gold)],
            [
                run_sql(f"UPDATE {table} SET id = id + 9000"),
                run_sql(gold),
                submit(f"UPDATE {table} SET id = id - 9000"),
            ],
        ):
            result = play(env, *actions, task=task.id)
            if "FOREIGN KEY" not in result[0]:
                assert result[1] == 1.0, (task.id, actions, result[2]["verdict"])
    assert judged > 5


def test_the_statements_of_a_change_are_part_of_a_snapshot():
    env = make()
    env.reset(options={"task": TASK})
    env.step(run_sql(compose("train", 1, CHANGE).golds[0]))
    snap = pickle.loads(pickle.dumps(snapshot(env)))
    env.step(run_sql(f"DELETE FROM {TABLE}"))
    restore(env, snap)
    assert env.step("Done.")[1] == 1.0
    # nor has what was refused
    for query in (None, ["DELETE"], {"DELETE": 1}, 5):
        action = call("run_sql", query=query)
        assert play(env, action, submit(compose("train", 1, CHANGE).golds[0]), task=TASK)[1] == 1.0
    # what ran out of budget has not happened, on no rows
    tight = make(budget={"tool_calls": 1})
    assert (
        play(tight, run_sql(compose("train", 1, CHANGE).golds[0]), run_sql(f"DELETE FROM {TABLE}"), task=TASK)[2][
            "verdict"
        ]["diagnostics"]
        == []
    )


# ---- no action makes a step raise ----------------------------------------------------------------------------------

VALUE = next(t.id for seed in range(1, 40) if (t := compose("train", 2, seed)).value)
OPENED = [("(", ")"), ("[", "]"), ('{"a":', "}"), ("SELECT (", ")"), ("SELECT * FROM (", ")"), ("-", ""), ("NOT ", ""),
          ("CASE WHEN 1 THEN ", " END"), ("json_array(", ")"), ("WITH a AS (SELECT 1) SELECT * FROM (", ")"),
          ("/*", "*/")]  # fmt: skip
SIGNS = [*"'\"`[]();,.-*/%$#a1\0\ud800\u20ac", "```", "a ", "a,", "a("]
WHOLE = ["9" * 400, "1" * 5000, "NaN", "-Infinity", "1e999", "null", "true", '{"query": 1}',
         "```\n" + "\n" * 9000, "x, " * 9000, '1 AS "' + "n" * 15_000 + '"', ", ".join(["hex(zeroblob(50000))"] * 800),
         *SLOW.values()]  # fmt: skip
HEADS = ["", "SELECT ", "SELECT '", "SELECT * FROM ", "VALUES ", "WITH a AS (", "WITH ", "```sql\n", "INSERT INTO ",
         "EXPLAIN ", "SELECT 1 WHERE ", "[", '"', "SELECT 1, "]  # fmt: skip


def nested(pair, depth, inner, closed):
    return pair[0] * depth + inner + pair[1] * (depth if closed else 0)


ODD = st.builds(
    str.__add__,
    st.sampled_from(HEADS),
    st.one_of(
        st.builds(
            nested,
            st.sampled_from(OPENED),
            st.integers(1, 3000),
            st.sampled_from(["", "1", "SELECT 1", "'a", "age"]),
            st.booleans(),
        ),
        st.builds(str.__mul__, st.sampled_from(SIGNS) | st.characters(codec=None), st.integers(1, 30_000)),
        st.text(st.characters(codec=None), max_size=60),
        st.sampled_from(WHOLE),
    ),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(ODD, min_size=1, max_size=3),
    ways=st.lists(
        st.sampled_from(["answer", "submit", "run_sql", "submit_sql", "describe_table", "unknown", "extra"]), min_size=3
    ),
    task=st.sampled_from([VALUE, TASK, "train-1-1"]),
)
def test_no_action_makes_a_step_raise(texts, ways, task, monkeypatch):
    monkeypatch.setattr(database, "MOST_SECONDS", 0.1)
    env = make()
    env.reset(seed=0, options={"task": task})
    for text, way in zip(texts, ways, strict=False):
        action = {
            "answer": text,
            "submit": call("submit", answer=text),
            "extra": call("submit_sql", **{"query": "SELECT 1", text: text}),
            "unknown": call(text, query=text),
        }.get(way) or call(way, **{"table" if way == "describe_table" else "query": text})
        observation, _, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert json.loads(json.dumps(info, allow_nan=False)).keys() == info.keys()
        for result in info["tool_results"]:
            assert result["error"] not in QueryError.KINDS or json.loads(result["content"])["error"] == result["error"]
        if terminated or truncated:
            assert info["verdict"]["status"] == "fail"
            return


def test_a_submission_with_a_long_fault_is_answered(ages):
    env = make(tasks=ages)
    _, _, terminated, _, info = (
        env.reset(seed=0),
        env.step(call("submit_sql", **{"query": "SELECT 1", "n" * 50_000: 1})),
    )[1]
    assert (terminated, info["tool_results"][0]["error"]) == (False, "invalid")
    _, reward, info = play(make(), call("submit_sql", **{"query": "UPDATE " + "n" * 15_000 + " SET x = 1"}), task=TASK)
    assert (reward, info["verdict"]["reason"]) == (0.0, "error")
    assert len(info["verdict"]["diagnostics"][0]) <= MOST_MESSAGE


@pytest.mark.parametrize(
    "text", ["a", "a ", "`", "'", '"', "[", "(", "a(", "AS(", "a AS (", ",a", "--", "/*", "```", "\n", "SELECT "]
)
def test_reading_takes_time_in_line_with_length(text):
    start = time.thread_time()
    for head in ("", "SELECT ", "WITH ", '"', "SELECT a FROM "):
        query = (head + text * 60_000)[:60_000]
        looks_like_query(query), holds_fence(query), identifiers(query), compiled(query)
    assert time.thread_time() - start < 10.0


# ---- generated tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_generated_tasks_are_sound(split, level):
    env = make(split=split, difficulty=level)
    for seed in range(8):
        _, info = env.reset(seed=seed)
        assert gate_task(env, info["task_id"], seed) == []
        task = env.unwrapped.task
        assert len(task.calls) == level
        assert len(task.refills) >= 2


NEIGHBOURS = [(" < ", " <= "), (" <= ", " < "), (" > ", " >= "), (" >= ", " > "), (r"AVG\(", "SUM("),
              (r"SUM\(", "AVG("), (r"MAX\(", "MIN("), (" INTERSECT ", " UNION "),
              (" UNION ", " UNION ALL "), (" EXCEPT ", " INTERSECT "),
              (" DESC", ""), (r" ORDER BY \S+( DESC)?$", ""), (r" LIMIT \d+", ""), (r" HAVING COUNT\(\*\) > \d+", ""),
              (" AND ", " OR "), ("^SELECT (?!DISTINCT|COUNT|SUM|AVG|MIN|MAX)", "SELECT DISTINCT "),
              (r" ON \S+ = \S+", ""), (r"\(\*\) FROM", "(DISTINCT 1) FROM"), (" NOT IN ", " IN "),
              (" WHERE .*$", "")]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "test"])
def test_wrong_neighbours_of_the_gold_fail(split):
    env, tried, passed = make(split=split), {}, []
    for level in LEVELS:
        for seed in range(24):
            task = compose(split, level, seed)
            for number, (part, instead) in enumerate(NEIGHBOURS):
                wrong = re.sub(part, instead, task.golds[0], count=1)
                often = "DISTINCT" in instead or " ON " in part  # which gives some rows more often, or less
                if wrong == task.golds[0] or (often and re.search("GROUP|UNION|INTERSECT|EXCEPT", wrong)):
                    continue
                tried[number] = tried.get(number, 0) + 1
                if play(env, submit(wrong), task=task.id)[1] == 1.0:
                    passed.append((task.id, wrong))
    assert len(tried) > 14
    assert sum(tried.values()) > 150
    assert len(passed) <= 0.01 * sum(tried.values()), passed


def test_thresholds_and_ties_are_among_the_rows():
    thresholds = ties = orders = 0
    for level in (1, 2):
        for seed in range(60):
            task = compose("train", level, seed)
            databases = (task.world.database, *task.refills)
            for column, value in re.findall(r"(?:WHERE|AND) (\w+) [<>]=? (\d[\d.]*)", task.golds[0]):
                table = re.search(r"(?:FROM|UPDATE) (\w+)", task.golds[0])[1]
                query = f"SELECT 1 FROM {table} WHERE {column} = {value}"
                assert all(World(database).run(query).rows for database in databases[:1])
                assert any(World(database).run(query).rows for database in databases[1:])
                thresholds += 1
            if " ORDER BY " in task.golds[0]:
                found = [in_order(World(database).run, task.golds[0])[1] for database in databases]
                orders += 1
                ties += any(len(set(one)) < len(one) for one in found)
    assert thresholds > 10
    assert 0 < orders < 3 * ties


def test_what_a_neighbour_is():
    found = mutants("SELECT a FROM t WHERE b < 5 AND c = 'Velo' ORDER BY d LIMIT 2", {"t": ["id", "a", "b"]}, set())
    for wrong in (
        "SELECT a FROM t WHERE b <= 5 AND c = 'Velo' ORDER BY d LIMIT 2",
        "SELECT a FROM t WHERE b < 6 AND c = 'Velo' ORDER BY d LIMIT 2",
        "SELECT a FROM t WHERE b < 5 OR c = 'Velo' ORDER BY d LIMIT 2",
        "SELECT a FROM t WHERE c = 'Velo' ORDER BY d LIMIT 2",
        "SELECT a FROM t WHERE b < 5 ORDER BY d LIMIT 2",
        "SELECT a FROM t ORDER BY d LIMIT 2",
        "SELECT a FROM t WHERE b < 5 AND c = 'Velo' LIMIT 2",
        "SELECT a FROM t WHERE b < 5 AND c = 'Velo' ORDER BY d DESC LIMIT 2",
        "SELECT a FROM t WHERE b < 5 AND c = 'Velo' ORDER BY d",
        "SELECT a FROM t WHERE b < 5 AND c = 'Velo' ORDER BY d LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b < 5 AND c = 'Velo' ORDER BY d LIMIT 2",
        "SELECT b FROM t WHERE b < 5 AND c = 'Velo' ORDER BY d LIMIT 2",
    ):
        assert wrong in found
    assert len(found) == len(set(found))
    joined = mutants("SELECT COUNT(*) FROM t JOIN u ON t.u_id = u.id WHERE u.x IS NULL", {"t": ["id", "y"]}, {"t.y"})
    for part in ("COUNT ( t.y )", "COUNT ( DISTINCT t.y )", "FROM u LEFT JOIN ( t ) ON", "JOIN u WHERE", "IS NOT NULL"):
        assert any(part in one for one in joined), part


def forms(split, levels=LEVELS, seeds=120):
    """What is asked, with names and values left out."""
    for level in levels:
        for seed in range(seeds):
            yield level, re.sub(r"'[^']*'|\b\d[\d.]*\b", "?", compose(split, level, seed).golds[0])


def test_tasks_are_of_many_kinds():
    asked = list(forms("train", seeds=60))
    for words in ("JOIN", "GROUP BY", "HAVING", "ORDER BY", "LIMIT", "INTERSECT", "EXCEPT", "UNION", "NOT IN",
                  "IS NULL", "LIKE", "UPDATE", "INSERT", "DELETE", "COUNT", "AVG", "SELECT MAX", " AND "):  # fmt: skip
        assert any(words in query for _, query in asked), words
    assert {query.count("JOIN") for _, query in asked} >= {0, 1, 2, 3}


def test_splits_share_no_schema_and_no_value():
    tables = [{t for schema in SCHEMAS[split] for t in schema.tables} for split in SPLITS]
    assert sum(len(SCHEMAS[split]) for split in SPLITS) >= 8
    values = [
        {value for seed in range(60) for value in re.findall(r"'([A-Z][a-z]{3,})'", compose(split, 1, seed).golds[0])}
        for split in SPLITS
    ]
    assert min(map(len, values)) > 5
    for found in (tables, values):
        assert all(not here & there for here, there in itertools.combinations(found, 2))


def test_only_test_has_words_of_its_own():
    """A table of validation is new; what it and its columns are called is known."""
    tables = {split: [t for schema in SCHEMAS[split] for t in schema.tables] for split in SPLITS}
    named = {split: {t.words for t in found} for split, found in tables.items()}
    columns = {split: {column for t in found for column in t.columns} for split, found in tables.items()}
    assert named["validation"] <= named["train"]
    assert not named["test"] & named["train"]
    assert columns["validation"] <= columns["train"]


def test_at_difficulty_one_the_other_splits_have_new_schemas_of_known_words():
    shapes, words = {}, {}
    for split in SPLITS:
        databases = [compose(split, 1, seed).world.database for seed in range(200)]
        # what is left of a schema without its names: kinds of columns, and which table refers to which
        shapes[split] = {re.sub(r"[A-Z]\w*[a-z]\w*", "", " ".join(database.ddl)) for database in databases}
        words[split] = {word for d in databases for word in re.findall(r"\b[A-Z][a-z]+\b", " ".join(d.ddl))}
    assert all(not here & there for here, there in itertools.combinations(shapes.values(), 2))
    for split in ("validation", "test"):
        assert len(words[split]) > 100
        assert len(words[split] - words["train"]) < 0.05 * len(words[split])


def composition(query):
    """The query with names and values taken out."""
    query = re.sub(r"LIKE '[^']*'", "LIKE ?", query)
    query = re.sub(r"'\d{4}-\d\d-\d\d'", "DATE", query)
    words = re.findall(r"'[^']*'|\w+(?:\.\w+)?|[^\s\w]+", query)
    return tuple(word if word.isupper() or not word[0].isalnum() else "x" for word in words if word[0] != "'")


def test_only_test_has_compositions_of_its_own():
    seen = {split: set() for split in SPLITS}
    for split, found in seen.items():
        for level in LEVELS:
            found |= {composition(compose(split, level, seed).golds[0]) for seed in range(1, 50) if seed % 4}
    assert min(map(len, seen.values())) >= 70
    assert not seen["test"] & (seen["train"] | seen["validation"])
    assert len(seen["train"] & seen["validation"]) > 15
    parts = {split: {word for query in found for word in query if word.isupper()} for split, found in seen.items()}
    assert parts["test"] <= parts["train"]  # in training each part is met, in other company


def test_difficulty_one_names_everything_as_the_schema_does():
    for seed in range(60):
        task = compose("train", 1, seed)
        quoted = set(re.findall(r'"([^"]*)"', task.request))
        known = identifiers(task.golds[0])
        assert all(
            word in quoted
            or word in task.request.split()
            or re.fullmatch(r"[\d.\-]+|\w+%", word)
            or word + "." in task.request.split()
            or word + "," in task.request.split()
            for word in known
        ), (task.request, task.golds)
        assert len(task.request) < 220


def test_a_task_id_names_its_task():
    env = make()
    _, info = env.reset(seed=5)
    _, other = make(difficulty=1).reset(options={"task": info["task_id"]})
    assert (other["state_hash"], other["task_hash"]) == (info["state_hash"], info["task_hash"])
    with pytest.raises(ValueError, match="is of the split 'train', not of this environment's 'test'"):
        make(split="test").reset(options={"task": info["task_id"]})


def test_the_order_of_columns_is_drawn_by_the_seed():
    places, found = set(), {}
    for seed in range(150):
        task = compose("train", 3, seed)
        for statement in task.world.database.ddl:
            columns = re.findall(r"[(,] ?(\w+)", statement.replace("(id)", ""))
            places.add(columns.index("id"))
            found.setdefault(frozenset(re.findall(r"\w+", statement)), set()).add(tuple(columns))
        assert {refill.ddl for refill in task.refills} <= {task.world.database.ddl}
    assert places >= {0, 1, 2, 3}
    # tables with the same columns have them in many orders
    assert sum(len(orders) - 1 for orders in found.values()) > 8


@pytest.mark.parametrize("kind", ["query", "change"])
def test_kinds(kind):
    env = make(kinds=[kind])
    for seed in range(8):
        env.reset(seed=seed)
        assert env.unwrapped.task.writes == (kind == "change")


# ---- given tasks ---------------------------------------------------------------------------------------------------


def test_spider_and_bird(tmp_path):
    env = make(
        tasks=spider(tmp_path / "given", record("SELECT COUNT(*) FROM person;"), record("SELECT name FROM person"))
    )
    assert env.unwrapped.task_ids == ("small-1", "small-2")
    for task in env.unwrapped.task_ids:
        assert gate_task(env, task, 0) == []
    bird = {"db_id": "small", "question": "How many?", "evidence": "People.", "SQL": "SELECT COUNT(id) FROM person"}
    folder = tmp_path / "bird"
    make_file(folder / "dev_databases" / "small" / "small.sqlite")
    (folder / "dev.jsonl").write_text(json.dumps(bird) + "\n")
    for source in (folder, folder / "dev.jsonl"):
        env = make(tasks=str(source))
        assert env.reset(seed=0)[0] == "How many?\nPeople."
        assert play(env, submit("SELECT COUNT(*) FROM person"))[1] == 1.0


def refill(path, *changes):
    """Another file with the small database, other rows."""
    make_file(path)
    with sqlite3.connect(path) as db:
        for change in changes:
            db.execute(change)
    db.close()


@pytest.mark.parametrize("parent", ["database", "dev_databases", "test_database"])
def test_further_files_beside_a_database_are_refills(tmp_path, parent):
    folder = tmp_path / parent / "small"
    make_file(folder / "small.sqlite")
    refill(folder / "small_2.sqlite", "UPDATE person SET age = 33 WHERE name = 'Ann'")
    refill(folder / "a.sqlite", "INSERT INTO person VALUES (6, 3, 'Fay', 30)")
    refill(folder / "empty.sqlite", "DELETE FROM person")
    refill(folder / "other.sqlite", "ALTER TABLE person RENAME COLUMN age TO years")  # the gold does not run there
    (folder / "small.sql").write_text("-- the schema")
    (folder / "database_description").mkdir()
    (tmp_path / "dev.json").write_text(json.dumps([record("SELECT name FROM person WHERE age = 30")]))
    env = make(tasks=str(tmp_path))
    env.reset(seed=0)
    assert [Path(d.path).name for d in env.unwrapped.task.refills] == [
        "a.sqlite", "empty.sqlite", "other.sqlite", "small_2.sqlite",
    ]  # fmt: skip
    assert gate_task(env, "small-1", 0) == []
    _, reward, info = play(env, submit("SELECT name FROM person WHERE id IN (1, 3, 5)"))
    assert (reward, info["verdict"]["score"]) == (0.0, 0.5)  # right on the visible rows, and where there are none
    assert info["verdict"]["diagnostics"] == [
        "on other rows (1 of 4): expected 4 rows, found 3", 'on other rows (1 of 4): missing row: ["Fay"]',
        "on other rows (4 of 4): expected 2 rows, found 3", 'on other rows (4 of 4): unexpected row: ["Ann"]',
    ]  # fmt: skip
    # the agent sees the first one alone
    assert play(env, run_sql("SELECT COUNT(*) FROM person"))[0].endswith("[5]")
    (folder / "broken.sqlite").write_text("this is no database" * 100)
    with pytest.raises(ValueError, match=r"broken\.sqlite: not a SQLite database that can be read"):
        load_tasks(str(tmp_path))


def test_databases_in_one_folder_are_no_refills_of_each_other(tmp_path):
    make_file(tmp_path / "database" / "small.sqlite")
    make_file(tmp_path / "database" / "other.sqlite")
    (tmp_path / "dev.json").write_text(json.dumps([record("SELECT name FROM person")]))
    assert load_tasks(str(tmp_path))[0][0].refills == ()


def test_the_golds_own_rows_as_literals_are_cheats(tmp_path):
    golds = ["SELECT COUNT(*) FROM PERSON", "SELECT NAME, age FROM Main.Person ORDER BY 1", "SELECT note FROM town"]
    env = make(tasks=spider(tmp_path / "given", *map(record, golds)))
    for task in env.unwrapped.task_ids:
        assert gate_task(env, task, 0) == []
        env.reset(seed=0, options={"task": task})
        queries = [query for (action,) in env.unwrapped.cheats() if (query := re.search('"query":"([^"]*)', action))]
        heads = {query[1].split()[0] for query in queries}
        assert heads >= {"VALUES", "SELECT", "WITH"}
    # where the gold itself reads no table, nothing tells a constant from it
    env = make(tasks=spider(tmp_path / "constant", record("SELECT 'small'")))
    assert [fault.split(":")[0] for fault in gate_task(env, "small-1", 0)] == ["cheat"] * 3


def test_a_gold_that_gives_nothing_but_zeros_is_remarked_on(tmp_path):
    golds = {
        "SELECT COUNT(*) FROM person WHERE age > 99": True,
        "SELECT note FROM town WHERE id = 1": True,
        "SELECT 0.0, note FROM town WHERE note IS NULL": True,
        "SELECT COUNT(*) FROM person": False,
        "SELECT note FROM town": False,
        "SELECT note, label FROM town WHERE id = 1": False,
        "SELECT '' FROM town": False,
    }
    env = make(tasks=spider(tmp_path / "given", *map(record, golds)))
    for task, remarked in zip(env.unwrapped.task_ids, golds.values(), strict=True):
        env.reset(seed=0, options={"task": task})
        assert (
            env.unwrapped.remarks()
            == ["the gold gives nothing but 0 and NULL, which many wrong queries give too"] * remarked
        )
    for seed in range(6):
        generated = make()
        generated.reset(seed=seed)
        assert generated.unwrapped.remarks() == []


def test_defog(tmp_path):
    make_file(tmp_path / "database" / "small.db")
    records = [
        {"db_name": "small", "question": "Ages?", "instructions": "Sorted.",
         "query": "SELECT {name, id}, age FROM person WHERE age > 29;SELECT age FROM person WHERE age > 29;"},
        {"db_name": "small", "question": "Today?", "query": "SELECT name FROM person WHERE date('now') > '2020'"},
        {"db_name": "small", "question": "Flagged?", "query": "SELECT 1 FROM town", "uses_now": True},
        {"db_name": "small", "question": "Nobody?", "query": "SELECT name FROM person WHERE age > 99"},
        {"db_name": "small", "question": "Broken?", "query": "SELECT nme FROM person"},
    ]  # fmt: skip
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.warns(UserWarning, match="4 of 5 records were left out; record 2: the gold depends on the clock"):
        env = make(tasks=str(tmp_path))
    assert env.unwrapped.task_ids == ("small-1",)
    assert env.unwrapped.left_out == {
        "small-2": "the gold depends on the clock",
        "small-3": "the gold depends on the clock",
        "small-4": "the gold's result is empty",
        "small-5": "the gold fails: no such column: nme",
    }
    assert env.reset(seed=0)[0] == "Ages?\nSorted."
    for columns in ("name, id, age", "name, age", "age, id", "age"):
        assert play(env, submit(f"SELECT {columns} FROM person WHERE age > 29"))[1] == 1.0, columns
    assert play(env, submit("SELECT name, id FROM person WHERE age > 29"))[1] == 0.0
    assert gate_task(env, "small-1", 0) == []


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"db_id": "none", "question": "?", "query": "SELECT 1"}, "there is no database 'none', such as"),
        ({"db_id": "small", "query": "SELECT 1"}, "the key 'question' is missing"),
        ({"db_id": "small", "question": "?"}, "the key 'query' is missing"),
        ({"db_id": "small", "question": "?", "query": ";"}, "the gold query is empty"),
        ({"question": "?"}, "neither db_id nor db_name is there"),
        (["small"], "a record is a JSON object, not list"),
    ],
)
def test_bad_record_is_named_and_left_out(tmp_path, second, says):
    with pytest.warns(UserWarning, match=r"dev\.json: 1 of 2 records were left out; record 2: ") as caught:
        tasks, left_out = load_tasks(spider(tmp_path / "given", record("SELECT name FROM person"), second))
    assert says in str(caught[0].message)
    assert [task.id for task in tasks] == ["small-1"]
    assert list(left_out) == ["record 2"]
    assert says in left_out["record 2"]


def test_bad_files_are_named(tmp_path):
    for name, text, says in (
        ("cut", '{"id": ', "cut, record 1: not JSON: "),
        ("list", '[{"id": 1},\n{"id": 2', "list: not JSON: "),
        ("empty", "", "the file has no task"),
        ("latin", "\xe9", "latin, record 1: not UTF-8 text"),
    ):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=says):
            load_tasks(str(tmp_path / name))
    with pytest.raises(ValueError, match="neither a file of records nor a folder with one of"):
        load_tasks(str(tmp_path))
    folder = spider(tmp_path / "given", record("SELECT name FROM person WHERE 0"))
    with pytest.raises(ValueError, match="record 1: the gold's result is empty; the file has no task"):
        load_tasks(folder)


def test_a_corrupt_database_is_named_and_one_that_rots_is_infra(tmp_path):
    folder = spider(tmp_path / "given", record("SELECT name FROM person WHERE age = 30"))
    path = tmp_path / "given" / "database" / "small" / "small.sqlite"
    good = path.read_bytes()
    path.write_text("this is no database" * 100)
    with pytest.raises(ValueError, match=r"record 1: .*not a SQLite database that can be read"):
        load_tasks(folder)
    page = 4096  # the header and the schema stay, the tables' pages are lost
    path.write_bytes(good[:page] + b"\xff" * (len(good) - page))
    with pytest.raises(ValueError, match=r"the gold fails: the database cannot be read: .*malformed"):
        load_tasks(folder)
    second = tmp_path / "second"
    shutil.copytree(tmp_path / "given", second)
    path = second / "database" / "small" / "small.sqlite"
    path.write_bytes(good)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE person SET age = 31 WHERE id = 1")
    env = make(tasks=str(second))
    env.reset(seed=0)
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(page)
        file.write(b"\xff" * (len(data) - page))
    env.unwrapped.task.world.session._db.execute("PRAGMA shrink_memory")
    _, reward, terminated, truncated, info = env.step(run_sql("SELECT * FROM person"))
    assert (terminated, truncated, info["verdict"]["status"]) == (False, True, "infra")
    assert reward != reward
    assert "cannot be read" in info["verdict"]["diagnostics"][0]
    assert play(make(difficulty=1), "Done.")[1] == 0.0


def test_values_that_are_not_utf8_are_shown(tmp_path):
    folder = tmp_path / "given"
    path = make_file(folder / "database" / "small" / "small.sqlite")
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO town VALUES (8, CAST(x'ff41' AS TEXT), 1, x'00ff')")
    (folder / "dev.json").write_text(json.dumps([record("SELECT label FROM town")]))
    env = make(tasks=str(folder))
    observation, *_ = play(env, run_sql("SELECT label, note FROM town WHERE id = 8"))
    assert observation.splitlines()[1] == '["\ufffdA","x\'00ff\'"]'
    assert env.observation_space.contains(observation)
    assert play(env, *env.unwrapped.oracle())[1] == 1.0


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"split": "dev"}, "choose 'train', 'validation' or 'test'"),
        ({"difficulty": 6}, "a whole number from 1 to 5"),
        ({"difficulty": [3, 2]}, "a whole number from 1 to 5"),
        ({"difficulty": True}, "a whole number from 1 to 5"),
        ({"kinds": ["poetry"]}, "'query' and 'change'"),
        ({"kinds": "query"}, "'query' and 'change'"),
        ({"instructions": 10}, "a whole number of 1000 or more"),
        ({"tasks": "nowhere"}, "neither a file of records nor a folder"),
    ],
)
def test_wrong_arguments_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        make(**kwargs)


def test_unknown_task_of_a_file(ages):
    with pytest.raises(ValueError, match="the first of 1 is 'small-1'"):
        make(tasks=ages).reset(options={"task": "train-9-1"})


# ---- syntax --------------------------------------------------------------------------------------------------------


ORDERED = {  # by gold: whose rows tie, as the names of persons in the gold's order
    "SELECT name FROM person": None,
    "SELECT name FROM (SELECT name FROM person ORDER BY age)": None,
    "SELECT name, rank() OVER (ORDER BY age) FROM person": None,
    "SELECT name FROM person WHERE name <> ' ORDER BY age'": None,
    "SELECT name FROM person -- ORDER BY age": None,
    "SELECT name FROM person ORDER BY age": ["Dee", "Ann Cid Eve", "Bob"],
    "SELECT name FROM person p ORDER BY p.Age DESC;": ["Bob", "Ann Cid Eve", "Dee"],
    "SELECT name, age FROM person ORDER BY 2 LIMIT 4": ["Dee", "Ann Cid Eve"],
    "SELECT name, age AS years FROM person ORDER BY YEARS": ["Dee", "Ann Cid Eve", "Bob"],
    "SELECT name, age years FROM person ORDER BY \"years\" + 1": ["Dee", "Ann Cid Eve", "Bob"],
    "SELECT name, age AS id FROM person ORDER BY id": ["Dee", "Ann Cid Eve", "Bob"],
    "SELECT name, age AS id FROM person ORDER BY -person.id": ["Eve", "Dee", "Cid", "Bob", "Ann"],
    "SELECT name, age, age FROM person ORDER BY age, 2": ["Dee", "Ann Cid Eve", "Bob"],
    "SELECT p.name, q.age, p.age FROM person p JOIN person q ON q.id = p.town_id ORDER BY p.age":
        ["Dee", "Ann Cid Eve", "Bob"],
    "SELECT p.name, q.age, p.age FROM person p JOIN person q ON q.id = p.town_id ORDER BY q.age":
        ["Ann Bob Dee", "Cid Eve"],
    "SELECT p.name, t.id AS n, p.id AS n FROM person p JOIN town t ON t.id = p.town_id ORDER BY t.id":
        ["Ann Bob", "Cid Eve", "Dee"],
    "SELECT MAX(name), COUNT(*) FROM person GROUP BY town_id ORDER BY COUNT(*)": ["Dee", "Bob Eve"],
    "SELECT MAX(name), COUNT(*) AS n FROM person GROUP BY town_id ORDER BY n DESC": ["Bob Eve", "Dee"],
    "SELECT MAX(name) FROM person GROUP BY town_id HAVING COUNT(*) > 0 ORDER BY COUNT(*) * 2": ["Dee", "Bob Eve"],
    "SELECT *, age % 5 AS odd FROM person ORDER BY odd": ["Ann Cid Dee Eve", "Bob"],
    "SELECT name, CASE WHEN age > 29 THEN 1 ELSE 0 END old FROM person ORDER BY old": ["Dee", "Ann Bob Cid Eve"],
    "WITH p AS (SELECT name, age AS a FROM person ORDER BY 1) SELECT name FROM p ORDER BY a NULLS LAST":
        ["Dee", "Ann Cid Eve", "Bob"],
    "SELECT DISTINCT name, town_id FROM person ORDER BY town_id": ["Ann Bob", "Cid Eve", "Dee"],
    "SELECT name, 'a' AS kind FROM person WHERE id < 3 UNION SELECT name, 'A' FROM person ORDER BY kind":
        ["Ann Bob Cid Dee Eve", "Ann Bob"],
    "SELECT name FROM person ORDER BY CASE id WHEN 1 THEN 'a' WHEN 2 THEN 'A' ELSE 'b' END COLLATE NOCASE":
        ["Ann Bob", "Cid Dee Eve"],
}  # fmt: skip


@pytest.mark.parametrize("query", ORDERED)
def test_rows_tie_where_the_gold_order_does_not_tell_them_apart(query):
    here = world(writable=False)
    found, ties = in_order(here.run, query)
    name = next(n for n, column in enumerate(found.columns) if "name" in column)
    if ORDERED[query] is None:
        assert ties is None
        return
    groups = {}
    for tie, row in zip(ties, found.rows, strict=True):
        groups.setdefault(tie, []).append(row[name])
    assert [" ".join(sorted(group)) for group in groups.values()] == ORDERED[query]


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (  # a key under an alias
            "SELECT name, age AS a FROM person ORDER BY a",
            "SELECT name, age FROM person ORDER BY age, name DESC",
            "SELECT name, age FROM person ORDER BY name",
        ),
        (  # an aggregate
            "SELECT town_id, COUNT(*) FROM person GROUP BY town_id ORDER BY COUNT(*) DESC",
            "SELECT town_id, COUNT(*) AS n FROM person GROUP BY town_id ORDER BY n DESC, town_id DESC",
            "SELECT town_id, COUNT(*) FROM person GROUP BY town_id ORDER BY 2",
        ),
        (  # twice by name: the first is another
            "SELECT t.id, p.id FROM town t JOIN person p ON p.town_id = t.id ORDER BY p.id",
            "SELECT t.id, p.id FROM town t JOIN person p ON p.town_id = t.id ORDER BY 2",
            "SELECT t.id, p.id FROM town t JOIN person p ON p.town_id = t.id ORDER BY 1, 2 DESC",
        ),
        (  # not in the result
            "SELECT name FROM person ORDER BY age",
            "SELECT name FROM person ORDER BY age, name DESC",
            "SELECT name FROM person ORDER BY name",
        ),
        (
            "SELECT name FROM person ORDER BY age DESC LIMIT 4",
            "SELECT name FROM (SELECT * FROM person ORDER BY age DESC LIMIT 4) ORDER BY age DESC, name DESC",
            "SELECT name FROM (SELECT * FROM person ORDER BY age DESC LIMIT 4) ORDER BY name",
        ),
    ],
)
def test_order_is_judged_by_the_keys(tmp_path, gold, right, wrong):
    env = make(tasks=spider(tmp_path / "given", record(gold)))
    assert [play(env, submit(query))[1] for query in (gold, right)] == [1.0, 1.0]
    assert play(env, submit(wrong))[2]["verdict"]["diagnostics"] == ["the rows are right, their order is not"]


def test_syntax():
    assert statements("SELECT ';' AS a; -- b;\nSELECT 2;;") == ["SELECT ';' AS a", "-- b;\nSELECT 2"]
    assert alternatives("SELECT {a,b} FROM t GROUP BY {}") == [
        "SELECT a, b FROM t GROUP BY a, b", "SELECT a FROM t GROUP BY a, b", "SELECT b FROM t GROUP BY a, b",
    ]  # fmt: skip
    assert identifiers("SELECT \"x y\", t.a FROM t WHERE b = 'Velo' AND c > 30") == {
        "x y",
        "t",
        "a",
        "b",
        "Velo",
        "c",
        "30",
    }
    for query in ("SELECT date('now')", "SELECT CURRENT_DATE", "SELECT datetime()", "SELECT strftime('%Y', 'NOW')"):
        assert reads_clock(query)
    for query in ("SELECT date(day) FROM t", "SELECT 'now and then'", "SELECT date FROM t"):
        assert not reads_clock(query)
