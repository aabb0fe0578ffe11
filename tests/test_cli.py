"""The command agent-gym: what it prints, what it says of mistakes, its exit codes."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from shop_play import call, turn, write_tasks

from agent_gym import read_trajectories
from agent_gym.cli import COMMANDS, main
from agent_gym.cli import envs as envs_command
from agent_gym.envs.api_agent import env as api_env
from agent_gym.tasksets import names, open_set
from agent_gym.wrappers import RecordTrajectory

ROOT = Path(__file__).parents[1]
REFUND = "train-3-1016164991"
SHOP = ["play", "--task", REFUND, "--env-kwargs", '{"domains": ["shop"]}']


@pytest.fixture
def play(monkeypatch, capsys):
    """Plays lines; returns what was printed."""

    def played(arguments, *lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(arguments) == 0
        return capsys.readouterr().out

    return played


@pytest.fixture
def wasteful(tmp_path):
    """A file with a success that has a needless call, and a failure."""
    env = RecordTrajectory(gym.make("APIAgent-v0", domains=["shop"]), tmp_path / "two.jsonl")
    env.reset(seed=0, options={"task": REFUND})
    for action in (call("return_policy"), *env.unwrapped.oracle()):
        env.step(action)
    env.reset(seed=0, options={"task": REFUND})
    env.step("Done.")
    return tmp_path / "two.jsonl"


def process(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "agent_gym", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def rows(text):
    """The lines of the tables of replay, by step."""
    return [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]


# ---- the command ----


def test_every_command_helps_itself(capsys):
    for name in ("envs", "tasks", "play", "eval", "check", "replay", "view", "gate", "sandbox"):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert "usage:" in capsys.readouterr().out


def test_wrong_usage_is_2(capsys):
    wrong = ([], ["nothing"], ["tasks", "--typo"], ["play", "--env-kwargs", "[]"], ["play", "--budget", "time=3"])
    for arguments in wrong:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert "unknown channel 'time'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["envs", "Nowhere-v0"], "there is no environment 'Nowhere-v0'"),
        (["tasks", "SQL-test-v7"], "there is no task set 'SQL-test-v7'; there are SQL-mini-v1"),
        (["tasks", "SQL-mini-v1", "train-1-1"], "of the split 'train'"),
        (["tasks", "SQL-mini-v1", "test-1-1"], "SQL-mini-v1 has no task 'test-1-1'"),
        (["tasks", "--check"], "--check needs the name of a task set"),
        (["tasks", "nowhere.jsonl", "--env-id", "SQL-v0"], "neither a file of records nor a folder"),
        (["play", "Nowhere-v0"], "Nowhere-v0: "),
        (["play", "--task", "nonsense"], "unknown task id 'nonsense'"),
        (["play", "--env-kwargs", '{"typo": 1}'], "no keyword argument 'typo'"),
        (["play", "SQL-v0", "--tasks", "WebLite-mini-v1"], "is of WebLite-v0, not of SQL-v0"),
        (["play", "--record", "/nowhere/x.jsonl"], "/nowhere"),
        (["replay", "/nowhere.jsonl"], "cannot be read"),
        (["replay", "README.md"], "README.md, line 1: not a trajectory"),
    ],
)
def test_a_mistake_is_one_sentence_and_1(arguments, says, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("agent-gym: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err


def test_ctrl_c_is_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(envs_command, "names", lambda env_id: interrupted())
    assert main(["envs"]) == 130


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m agent_gym tasks SQL-test-v1 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("SQL-test-v1: 500 tasks")
    assert done.stderr == ""


def test_listing_needs_nothing_heavy():
    code = "import sys; from agent_gym.cli import main; main(['envs']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "transformers", "matplotlib", "plotly", "datasets", "docker", "playwright"}
    assert not {name.split(".")[0] for name in done.stderr.split()} & heavy


def test_python_m_is_the_same():
    done = process("tasks")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == names()


def test_every_module_of_the_commands_is_there():
    modules = {path.stem for path in (ROOT / "agent_gym" / "cli").glob("*.py")} - {"__init__", "arguments", "errors"}
    assert {command.__name__.rpartition(".")[2] for command in COMMANDS} == modules


def test_the_page_shows_what_is_printed(tmp_path):
    page = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```sh\n(.*?)^```\n+```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(shown) == 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command, text in shown:
        line = command.replace("agent-gym", f"{shlex.quote(sys.executable)} -m agent_gym", 1)
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
        pattern = ".*?".join(re.escape(part) for part in text.strip("\n").split("\n...\n"))
        assert re.fullmatch(pattern, done.stdout.strip("\n"), re.DOTALL), done.stdout + done.stderr


# ---- envs, tasks ----


def test_envs(capsys):
    assert main(["envs"]) == 0
    shown = capsys.readouterr().out
    for word in ("APIAgent-v0", "domains=None", "SQL-test-v1", "bfcl", "max_turns=16"):
        assert word in shown
    assert main(["envs", "SQL-v0"]) == 0
    assert "instructions: Most instructions" in capsys.readouterr().out


def test_tasks_of_a_set(capsys):
    assert main(["tasks", "SQL-mini-v1"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    found = open_set("SQL-mini-v1")
    assert found.fingerprint in head
    assert [tuple(line.split()[:2]) for line in lines] == list(zip(found.task_ids, found.task_hashes, strict=True))
    assert lines[0].endswith("difficulty 1")


def test_one_task_is_shown_with_its_oracle(capsys):
    task_id = open_set("APIAgent-mini-v1").task_ids[3]
    assert main(["tasks", "APIAgent-mini-v1", task_id]) == 0
    shown = capsys.readouterr().out
    env = gym.make("APIAgent-v0", tasks="APIAgent-mini-v1")
    request, _ = env.reset(options={"task": task_id})
    for text in (request, *env.unwrapped.oracle()):
        assert text in shown
    for action in env.unwrapped.oracle():
        *_, info = env.step(action)
    assert f"oracle      pass, tool_calls {info['cost_total']['tool_calls']:g}, " in shown


def test_check_names_what_has_changed(monkeypatch, capsys):
    assert main(["tasks", "APIAgent-mini-v1", "--check"]) == 0
    assert "40 tasks, 0 changed" in capsys.readouterr().out
    made, victim = api_env.compose, open_set("APIAgent-mini-v1").task_ids[5]
    level, seed = map(int, victim.split("-")[1:])
    monkeypatch.setattr(
        api_env, "compose", lambda s, c, n, d: made(s, c, n + 1, d) if (c, n) == (level, seed) else made(s, c, n, d)
    )
    assert main(["tasks", "APIAgent-mini-v1", "--check"]) == 1
    shown = capsys.readouterr().out
    assert f"{victim} has changed since APIAgent-mini-v1 was frozen" in shown
    assert "40 tasks, 1 changed" in shown


# ---- play ----


def test_a_person_plays_to_the_end(play, tmp_path):
    lines = [
        "find_customer email=repapa@mail.com", "customer_orders customer_id=C4308",
        'refund_order {"order_id": "O3874"}', "Done.", "quit", "never read",
    ]  # fmt: skip
    shown = play([*SHOP, "--budget", "tool_calls=6", "--record", str(tmp_path / "mine.jsonl")], *lines)
    assert "find_customer email=string" in shown
    assert '"status":"refunded"' in shown
    assert "so far: tool_calls 1, output_tokens 22, read_tokens 20, latency_ms 41.591; left: tool_calls 5" in shown
    assert "pass (passed), reward 1" in shown
    assert "the oracle: tool_calls 3, " in shown
    assert "never read" not in shown
    (episode,) = read_trajectories(tmp_path / "mine.jsonl")
    assert (episode.success, episode.cost_total["tool_calls"], episode.task_id) == (True, 3.0, REFUND)


def test_undo_takes_back_world_and_costs(play, tmp_path):
    lines = [
        "undo", "find_customer email=repapa@mail.com", "customer_orders customer_id=C4308",
        "cancel_order order_id=O3026", "undo", "undo", "customer_orders customer_id=C4308",
        "refund_order order_id=O3874", "list_customers",
        "Done.", "more", "undo", "undo", "Done.",
    ]  # fmt: skip
    shown = play([*SHOP, "--record", str(tmp_path / "mine.jsonl")], *lines)
    assert "nothing to take back" in shown
    assert "taken back; so far: tool_calls 1," in shown
    assert "the episode is over: undo or quit" in shown
    first, last = read_trajectories(tmp_path / "mine.jsonl")
    assert first.success
    assert last.success
    assert [step.tool_results[0]["name"] for step in last.steps[:-1]] == [
        "find_customer", "customer_orders", "refund_order",
    ]  # fmt: skip
    assert last.cost_total["tool_calls"] == 3.0


def test_lines_that_are_no_call_cost_nothing(play):
    lines = ["find_customer somebody", 'find_customer email="open', "find_customer {broken", "help", "task", ""]
    shown = play(SHOP, *lines)
    assert "'somebody' is not NAME=VALUE; its arguments are email" in shown
    assert "the quote in '\"open' is not closed" in shown
    assert "not JSON" in shown
    assert "take the last turn back" in shown
    assert shown.count("Refund the Laro order") == 2
    assert "this turn" not in shown


def test_values_are_read_as_their_schema_wants_them(play):
    task = open_set("SQL-mini-v1").task_ids[1]
    table = gym.make("SQL-v0", tasks="SQL-mini-v1")
    table.reset(options={"task": task})
    name = table.unwrapped.task.world.session.tables[0]
    game = ["play", "--tasks", "SQL-mini-v1", "--task", task]
    shown = play(game, f"sample_rows count=1 table={name}", """run_sql query="SELECT 'a b' AS x, 7" """)
    assert "error" not in shown
    assert "a b" in shown
    lines = ["get_customer customer_id=1234", 'get_orders order_ids=["O3874"]', "get_order order_id=2031-01-05"]
    shown = play(SHOP, *lines)
    assert "there is no '1234'" in shown  # a text, although it looks like a number
    assert '"id":"O3874"' in shown
    assert "there is no '2031-01-05'" in shown


def test_an_answer_in_json_is_submitted_as_text(play, tmp_path):
    tasks = ["--env-kwargs", json.dumps({"tasks": write_tasks(tmp_path / "tasks.jsonl")})]
    said = '{"status": "sent"}'
    for answer in (said, f"submit answer={said}", f"submit {json.dumps({'answer': said})}"):
        assert "pass (passed)" in play(["play", "--task", "question", *tasks], "get_order order_id=O2003", answer)


def test_a_budget_ends_the_game(play):
    shown = play([*SHOP, "--budget", "tool_calls=1"], "return_policy", "return_policy", "undo", "Done.")
    assert "fail (budget)" in shown
    assert "left: tool_calls 0" in shown
    assert "fail (wrong_state)" in shown


def test_the_set_says_which_environment(play):
    assert "WebLite-v0, task test-" in play(["play", "--tasks", "WebLite-mini-v1"])
    assert "SQL-v0, task train-" in play(["play", "SQL-v0"])


# ---- replay ----


def test_replay_shows_credits(wasteful, capsys):
    assert main(["replay", str(wasteful)]) == 0
    shown = capsys.readouterr().out
    table = rows(shown)
    assert [(row[0], row[-1]) for row in table[:5]] == [
        ("0", "goes"), ("1", "kept"), ("2", "kept"), ("3", "kept"), ("4", "kept"),
    ]  # fmt: skip
    assert table[0] == ["0", "return_policy()", "+0.0", "1", "16", "13", "19.586", "goes"]
    assert table[1][2:] == ["+1.0", "3", "64", "71", "179.945", "kept"]
    assert "after elimination: tool_calls 3, output_tokens 66" in shown
    assert "episode 2: APIAgent-v0, task train-3-1016164991: fail (wrong_state)" in shown
    assert len(table) == 6  # nothing is eliminated from a failure
    assert table[5][-1] == "0"


def test_replay_of_a_turn_with_several_calls(tmp_path, capsys):
    env = RecordTrajectory(gym.make("APIAgent-v0", domains=["shop"]), tmp_path / "one.jsonl")
    env.reset(seed=0, options={"task": REFUND})
    first, *rest = env.unwrapped.oracle()
    (needed,) = env.unwrapped.read(first).calls
    for action in (turn(("return_policy", {}), (needed.name, dict(needed.arguments))), *rest):
        env.step(action)
    assert main(["replay", str(tmp_path / "one.jsonl")]) == 0
    assert "1 of 2 calls kept" in capsys.readouterr().out


def test_replay_of_one_task(wasteful, capsys):
    assert main(["replay", str(wasteful), "--task", REFUND]) == 0
    assert capsys.readouterr().out.count("episode ") == 2
    assert main(["replay", str(wasteful), "--task", "other"]) == 1
    assert "holds no episode of the task 'other'" in capsys.readouterr().err


def test_replay_of_a_made_up_episode_is_refused(wasteful, capsys):
    lines = wasteful.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["steps"][0]["cost"]["output_tokens"] = 0.0
    wasteful.write_text(lines[0] + "\n" + json.dumps(changed) + "\n")
    assert main(["replay", str(wasteful)]) == 1
    assert "two.jsonl, episode 2 (train-3-1016164991): " in capsys.readouterr().err


def test_replay_draws_a_picture(wasteful, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    assert main(["replay", str(wasteful), "--picture", str(tmp_path / "credits.png")]) == 0
    assert (tmp_path / "credits.png").read_bytes().startswith(b"\x89PNG")


# ---- gate, sandbox ----


def test_gate_is_the_gate(capsys):
    assert main(["gate", "--env-id", "WebLite-v0", "--tasks", "WebLite-mini-v1", "--n", "2"]) == 0
    assert "2 tasks, 2 sound, 0 broken" in capsys.readouterr().out
    assert main(["gate", "--env-id", "Nowhere-v0"]) == 2
    assert capsys.readouterr().err.startswith("gate: Nowhere-v0")


def test_sandbox_is_the_sandbox(capsys):
    with pytest.raises(SystemExit) as end:
        main(["sandbox", "typo"])
    assert end.value.code == 2
    assert "python -m agent_gym.sandbox: error" in capsys.readouterr().err
