"""agent_gym.evaluation and its commands: agents, a misbehaving server, interruptions, result files and their check."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gymnasium as gym
import pytest
from shop_play import call, write_tasks

from agent_gym import PARSERS, Trajectory
from agent_gym.cli import main
from agent_gym.evaluation import endpoint as client
from agent_gym.evaluation.agents import Job, TurnAgent, open_agent, play_turns
from agent_gym.evaluation.baselines import baseline
from agent_gym.evaluation.check import check_result
from agent_gym.evaluation.endpoint import Endpoint, EndpointError, Reply
from agent_gym.evaluation.measure import first_wrong_step, measure, oracle_cost
from agent_gym.evaluation.result import (
    SCHEMA,
    Outcome,
    aggregate,
    pack_trajectories,
    read_result,
    schema,
    unpack_trajectories,
)
from agent_gym.evaluation.run import evaluate, file_of
from agent_gym.metrics import FAILURES
from agent_gym.tasksets import open_set

MINI = "APIAgent-mini-v1"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Six tasks of a file."""
    return open_set(write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl"), "APIAgent-v0")


def played(agent, tasks, folder, **settings):
    agent = open_agent(agent) if isinstance(agent, str) else agent
    return evaluate(agent, tasks, Path(folder) / "r.json", **{"budget": {}, **settings})


# ---- agents ----------------------------------------------------------------------------------------------------------


def test_the_oracle_is_the_measure_of_all(few, tmp_path):
    result = played("oracle", few, tmp_path)
    assert [one.task_id for one in result.outcomes] == list(few.task_ids)
    assert all(one.success and one.cost == one.oracle_cost for one in result.outcomes)
    assert {one.task_id: one.redundant_calls for one in result.outcomes if one.redundant_calls} == {"told": 1}
    assert result.aggregates.success == result.aggregates.pareto_auc == (1.0, 1.0, 1.0)
    assert result.aggregates.relative_cost == dict.fromkeys(result.aggregates.cost, (1.0, 1.0, 1.0))
    assert result.aggregates.failures == {}


def test_to_do_nothing_fails_without_an_attempt(few, tmp_path):
    result = played("noop", few, tmp_path)
    assert {(one.success, one.failure, one.first_wrong_step) for one in result.outcomes} == {(False, "no_attempt", 0)}
    assert result.aggregates.redundant_call_rate == (None, None, None)


def test_random_calls_are_valid_and_depend_on_the_seed_alone(tmp_path):
    tasks = open_set("SQL-mini-v1")
    first = played("random", tasks, tmp_path, seed=1)
    calls = [r for t in unpack_trajectories(tmp_path / "r.jsonl") for s in t.steps for r in s.tool_results]
    assert len(calls) > 50
    assert not [r for r in calls if r["error"] == "unknown_tool" or "is missing" in r["content"]]
    assert played("random", tasks, tmp_path, seed=1, workers=1).outcomes == first.outcomes
    assert played("random", tasks, tmp_path, seed=2).outcomes != first.outcomes


def test_the_number_of_workers_and_the_samples_change_no_byte(few, tmp_path):
    def files(workers):
        (folder := tmp_path / str(workers)).mkdir()
        played("random", few, folder, samples=3, workers=workers)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    found = files(1)
    assert sorted(found) == ["r.json", "r.jsonl"]
    assert files(5) == found


def test_a_function_of_the_users(few, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import json\n"
        "def good(messages, info):\n"
        "    assert messages[0]['role'] == 'system' and info['tools'] and info['budget_left']['tool_calls'] <= 3\n"
        "    name = 'get_product' if len(messages) == 2 else 'submit'\n"
        "    given = {'product_id': 'P3001'} if name == 'get_product' else {'answer': json.dumps({'stock': 17})}\n"
        "    arguments = json.dumps(given)\n"
        "    called = {'id': 'a', 'type': 'function', 'function': {'name': name, 'arguments': arguments}}\n"
        "    return {'role': 'assistant', 'tool_calls': [called], 'output_tokens': 0}\n"
        "def bad(messages, info):\n    return 1 / 0\n"
        "def ill(messages, info):\n    return 7\n"
        "def odd(messages, info):\n    return {'content': {1, 2}}\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "--tasks", few.name, "--env-id", "APIAgent-v0", "--budget", "tool_calls=3", "--out", "r.json"]
    assert main([*arguments, "--agent", "mine:good"]) == 0
    assert "success" in capsys.readouterr().out
    result = read_result(Path("r.json"))
    assert {one.task_id for one in result.outcomes if one.success} == {"stock"}
    assert all(one.cost["output_tokens"] > 10 for one in result.outcomes)  # not what the agent says
    for name, said in (
        ("bad", "mine:bad raised ZeroDivisionError at a turn of cascade: division by zero"),
        ("ill", "mine:ill returned int: a turn is text (str) or a message (dict)"),
        (
            "odd",
            "a turn of cascade cannot be played: an assistant message is plain JSON data: Object of type set is not",
        ),
        ("none", "--agent mine:none cannot be loaded: module 'mine' has no attribute 'none'"),
    ):
        assert main([*arguments, "--workers", "1", "--agent", f"mine:{name}", "--resume"]) == 1
        assert (error := capsys.readouterr().err).startswith(f"agent-gym: {said}")
        assert error.count("\n") == 1
        Path("r.json.journal").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--agent", "nobody"], "--agent nobody: give oracle, noop, random, baseline, tiny:ENV"),
        (["--agent", "openai:m@localhost"], "address localhost must begin with http:// or https://"),
        (["--agent", "openai:@http://x"], "the endpoint http://x needs a model"),
        (["--agent", "openai:m@http://x", "--rpm", "0"], "per_minute must be above 0, not 0"),
        (["--agent", "oracle", "--tasks", "SQL-mini-v9"], "there is no task set 'SQL-mini-v9'"),
    ],
)
def test_what_cannot_be_asked_for_ends_in_a_sentence(arguments, said, capsys, tmp_path):
    assert main(["eval", "--tasks", MINI, "--out", str(tmp_path / "r.json"), *arguments]) == 1
    assert said in (found := capsys.readouterr().err)
    assert found.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--budget", "calls=3"], ["--budget", "tool_calls"], ["--samples", "0"], ["--workers", "-1"]]
)
def test_options_that_cannot_be_read(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--tasks", MINI, "--agent", "oracle", *arguments])
    assert ended.value.code == 2


@pytest.mark.parametrize(("env_id", "least"), [("APIAgent-v0", 0.9), ("SQL-v0", 0.3), ("WebLite-v0", 0.7)])
def test_the_scripted_baselines_are_useful(env_id, least, tmp_path):
    """On training tasks, which they were written for."""
    tasks = open_set(f"{env_id.removesuffix('-v0')}-train-v1")
    tasks = replace(tasks, task_ids=tasks.task_ids[:32], task_hashes=tasks.task_hashes[:32])
    result = played("baseline", tasks, tmp_path)
    assert result.aggregates.success[0] >= least
    assert not set(result.aggregates.failures) & {"unreadable", "other"}


def test_a_baseline_answers_what_it_does_not_understand(few):
    env = gym.make(few.env_id, **few.env_kwargs)
    env.reset(options={"task": "cascade"})
    info = {"turn": 0}
    action, _ = baseline(env, [{"role": "user", "content": "Sing."}], info)
    assert action == "Done."


def test_names_of_files():
    assert file_of("openai:org/model@http://x:1/v1") == "openai-org-model@http-x-1-v1"


# ---- a server that misbehaves ----------------------------------------------------------------------------------------


class Model(BaseHTTPRequestHandler):
    """Plays the oracle over chat completions, and misbehaves as ``server.faults`` says, a request each; dies for good
    after ``server.life`` requests."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            server.life -= 1
            fault = server.faults.pop(0) if server.faults else None
            if server.life < 0:
                fault = "dead"
        if fault == "dead":
            self.connection.close()
            return
        if fault == "slow":
            threading.Event().wait(0.6)
        if isinstance(fault, int):
            said = b'{"error": {"message": "busy"}}'
            self.send_response(fault)
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            return
        messages = body["messages"]
        request = next(m["content"] for m in messages if m["role"] == "user")
        said = sum(m["role"] == "assistant" for m in messages)
        actions = server.oracle[request]
        spoken = PARSERS["hermes"].parse(actions[min(said, len(actions) - 1)])
        message = json.loads(PARSERS["openai"].render(spoken.text, spoken.calls))
        if "tools" not in body:
            message = {"role": "assistant", "content": actions[min(said, len(actions) - 1)]}
        if fault == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I will not."}
        if fault == "parallel":
            message["tool_calls"] = message["tool_calls"] * 2
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if spoken.calls else "stop"}
        usage = {"prompt_tokens": 50, "completion_tokens": 5, "total_tokens": 55}
        answer = {
            "id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage,
        }  # fmt: skip
        if fault == "empty":
            answer["choices"] = []
        data = b'{"choices": [' if fault == "nonsense" else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "half" else data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(tasks, faults=(), life=10**9):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.handle_error = lambda *_: None  # who was too slow finds nobody to answer
    server.faults, server.life, server.seen, server.lock = list(faults), life, [], threading.Lock()
    env = gym.make(tasks.env_id, **tasks.env_kwargs)
    server.oracle = {}
    for task_id in tasks.task_ids:
        request, _ = env.reset(options={"task": task_id})
        server.oracle[request] = env.unwrapped.oracle()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"openai:m@http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pauses(monkeypatch):
    """No pause between tries; what they would have been."""
    found = []
    monkeypatch.setattr(client, "time", type("Clock", (), {"sleep": found.append, "time": time.time,
                                                           "monotonic": time.monotonic}))  # fmt: skip
    return found


def without_place(result):
    """Of a result: what does not name the server's port, nor the file."""
    return result.model_dump(exclude={"agent", "trajectories"})


def test_an_endpoint_plays_as_it_would_be_played_by_hand(few, tmp_path):
    with serving(few) as (server, spec):
        result = played(spec, few, tmp_path)
    assert result.agent.name == "m"
    assert result.agent.settings == {"temperature": 1.0, "max_tokens": 512, "native": True}
    assert result.aggregates.success == (1.0, 1.0, 1.0)
    for outcome in result.outcomes:  # the server's count stands beside the environment's
        assert outcome.usage == {"prompt_tokens": 50 * outcome.turns, "completion_tokens": 5 * outcome.turns}
        assert outcome.cost["output_tokens"] != 5 * outcome.turns
    assert len({body["seed"] for body in server.seen}) == len(server.seen)  # every turn has its own draw
    assert check_result(tmp_path / "r.json") == []


def test_calls_in_words_for_a_server_that_reads_none(few, tmp_path):
    with serving(few) as (server, spec):
        result = played(open_agent(spec, native=False), few, tmp_path)
    assert result.aggregates.success == (1.0, 1.0, 1.0)
    longest = max((body["messages"] for body in server.seen), key=len)
    assert all("tools" not in body for body in server.seen)
    assert '"find_customer"' in longest[0]["content"]
    assert [m["role"] for m in longest] == ["system", *["user", "assistant"] * (len(longest) // 2)][: len(longest)]
    assert longest[2]["content"].startswith("<tool_call>")
    assert longest[3]["content"].startswith("<tool_response>\n{")
    assert check_result(tmp_path / "r.json") == []


@pytest.mark.parametrize("fault", ["slow", 429, 500, 408, "half", "nonsense", "empty", "dead"])
def test_a_passing_fault_is_asked_again_and_changes_nothing(fault, few, tmp_path, pauses):
    with serving(few) as (_, spec):
        undisturbed = played(spec, few, tmp_path)
    with serving(few, faults=[None, fault, fault, None, fault]) as (server, spec):
        disturbed = played(open_agent(spec, timeout=0.3 if fault == "slow" else 60.0), few, tmp_path, workers=1)
        assert len(server.seen) == 3 + sum(outcome.turns for outcome in disturbed.outcomes)
    assert without_place(disturbed) == without_place(undisturbed)
    asked_to_wait = isinstance(fault, int)
    assert [pause == 7.0 for pause in pauses] == [asked_to_wait] * 3  # Retry-After is longer than our own pauses
    assert asked_to_wait or (0.5 <= pauses[0] < 1.5 and 1 <= pauses[1] < 3 and 0.5 <= pauses[2] < 1.5)


def test_pauses_are_drawn_from_the_seed_and_end_at_a_minute(few, pauses):
    def told(seed):
        pauses.clear()
        with pytest.raises(EndpointError, match="the connection failed"):
            Endpoint(url="http://127.0.0.1:9/v1", model="m", tries=9).ask([], [], seed)
        return list(pauses)

    assert told(1) == told(1) != told(2)
    assert len(told(3)) == 8
    assert max(pauses) == 60.0
    assert client._seconds("Wed, 21 Oct 2015 07:28:00 GMT") < 0.0
    assert client._seconds("soon") == 0.0


def test_a_rate_limit_spaces_the_requests_of_all_workers(few, tmp_path, pauses):
    with serving(few) as (server, spec):
        played(open_agent(spec, per_minute=120), few, tmp_path, workers=3)
        requests = len(server.seen)
    assert len(pauses) == requests - 1  # the first begins at once
    assert max(pauses) == pytest.approx(0.5 * (requests - 1), abs=0.3)


def test_a_refusal_is_the_models_own_answer(few, tmp_path):
    with serving(few, faults=["refusal"]) as (_, spec):
        result = played(spec, few, tmp_path, workers=1)
    assert [(one.success, one.failure) for one in result.outcomes] == [(False, "no_attempt")] + [(True, None)] * 5
    assert unpack_trajectories(tmp_path / "r.jsonl")[0].steps[0].action["content"] == "I will not."


def test_parallel_calls_have_a_result_each(few, tmp_path):
    with serving(few, faults=["parallel"]) as (server, spec):
        result = played(spec, few, tmp_path, workers=1)
    assert result.outcomes[0].cost["tool_calls"] == 4.0
    assert result.outcomes[0].redundant_calls == 1
    assert [m["role"] for m in server.seen[1]["messages"][2:]] == ["assistant", "tool", "tool"]
    assert check_result(tmp_path / "r.json") == []


def test_a_conversation_too_long_for_the_model_fails_and_is_replayed_so(few, tmp_path, monkeypatch):
    from urllib.error import HTTPError

    real = client.urllib.request.urlopen

    def urlopen(request, timeout):
        if len(json.loads(request.data)["messages"]) > 4:
            said = b'{"error": {"message": "maximum context length is 99 tokens"}}'
            raise HTTPError(request.full_url, 400, "Bad Request", {}, __import__("io").BytesIO(said))
        return real(request, timeout=timeout)

    with serving(few) as (_, spec):
        monkeypatch.setattr(client.urllib.request, "urlopen", urlopen)
        result = played(spec, few, tmp_path)
    (first, *rest) = result.outcomes
    assert (first.success, first.reason, first.failure, first.turns) == (False, "context", "no_answer", 2)
    assert first.first_wrong_step is None  # it could still have been done
    assert Counter(one.success for one in rest) == {True: 4, False: 1}
    assert check_result(tmp_path / "r.json") == []


def test_a_server_that_dies_loses_nothing_and_is_no_0(few, tmp_path, pauses, capsys):
    arguments = ["eval", "--tasks", few.name, "--env-id", "APIAgent-v0", "--tries", "2", "--workers", "2"]
    out = tmp_path / "r.json"
    with serving(few) as (_, spec):
        undisturbed = played(spec, few, tmp_path)
    out.unlink()
    with serving(few, life=9) as (server, spec):
        arguments += ["--agent", spec, "--out", str(out)]
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"agent-gym: {spec.partition('@')[2]}: the connection failed (")
        assert error.count("\n") == 1
        assert not out.exists()
        journal = out.with_name("r.json.journal")
        finished = journal.read_text().count("\n") - 1
        assert 1 <= finished < len(few.task_ids)

        assert main(arguments) == 1  # a second evaluation does not tread on the first
        assert "--resume goes on with it; or delete it" in capsys.readouterr().err
        assert main([*arguments, "--resume", "--seed", "5"]) == 1
        assert "is of an evaluation with other arguments" in capsys.readouterr().err

        server.life, before = 10**9, len(server.seen)
        assert main([*arguments, "--resume"]) == 0
        asked = len(server.seen) - before
    result = read_result(out)
    assert without_place(result) == without_place(undisturbed)
    assert asked < sum(outcome.turns for outcome in result.outcomes)  # what was finished is not asked again
    assert not journal.exists()


# ---- interruptions ---------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
from agent_gym.evaluation.agents import TurnAgent, open_agent
from agent_gym.evaluation.run import evaluate
from agent_gym.metrics import FAILURES
from agent_gym.tasksets import open_set

oracle = open_agent("oracle")
def act(*given):
    time.sleep(float(sys.argv[2]))
    return oracle.act(*given)
evaluate(TurnAgent("slow", act), open_set("APIAgent-mini-v1"), Path(sys.argv[1]), budget={}, workers=2,
         resume=bool(sys.argv[3:]))
assert "torch" not in sys.modules  # all of this works with the base install
"""


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def begin(out, pause, *more):
        return subprocess.Popen([sys.executable, "-c", SLOW, str(out), str(pause), *more], env=environment)

    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    assert begin(whole, 0).wait() == 0
    journal, episodes = tmp_path / "killed.json.journal", 0
    for _ in range(2):  # and killed once more while it goes on
        process = begin(killed, 0.01, "resume")
        while not journal.exists() or journal.read_bytes().count(b"\n") < episodes + 6:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        episodes = journal.read_bytes().count(b"\n")
        with journal.open("ab") as file:
            file.write(b'{"outcome": {"task_id": "test-')  # a line that was being written
    assert not killed.exists()
    assert begin(killed, 0, "resume").wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "killed.json", "killed.jsonl", "whole.json", "whole.jsonl",
    ]  # fmt: skip
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert read_result(killed).outcomes == read_result(whole).outcomes


def test_a_full_disk_is_told_and_what_was_played_is_kept(tmp_path):
    """A limit on the size of files stands for a disk that fills up in the middle of a line."""
    out = tmp_path / "r.json"
    command = [sys.executable, "-m", "agent_gym", "eval", "--agent", "oracle", "--tasks", MINI, "--out", str(out)]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"agent-gym: {out}.journal cannot be written: File too large; the finished episodes are kept, and --resume "
        "goes on\n"
    )
    assert not out.exists()
    assert (tmp_path / "r.json.journal").stat().st_size == 20_000
    assert subprocess.run([*command, "--resume"], capture_output=True).returncode == 0
    assert check_result(out) == []


def test_our_own_failure_is_no_failure_of_the_agent(few, tmp_path, monkeypatch):
    from agent_gym import InfraError
    from agent_gym.envs.api_agent.env import APIAgentEnv

    judge = APIAgentEnv._verify

    def verify(self, answer):
        if self.task.id == "named":
            raise InfraError("the service is down")
        return judge(self, answer)

    monkeypatch.setattr(APIAgentEnv, "_verify", verify)
    result = played("oracle", few, tmp_path)
    assert [one.success for one in result.outcomes] == [True, None, True, True, True, True]
    assert result.aggregates.success == (1.0, 1.0, 1.0)
    monkeypatch.undo()
    assert any("named, sample 0: verdict" in fault for fault in check_result(tmp_path / "r.json", replays=0))


def test_a_machine_on_which_the_oracle_fails_measures_nothing(tmp_path, monkeypatch):
    from agent_gym.envs.api_agent.env import APIAgentEnv

    monkeypatch.setattr(APIAgentEnv, "oracle", lambda self: ["Done."])
    with pytest.raises(ValueError, match=r"the oracle does not pass test-.* here: is the machine too busy"):
        played("noop", open_set(MINI), tmp_path)
    assert not (tmp_path / "r.json").exists()


# ---- what is measured ------------------------------------------------------------------------------------------------


def episode(env, task_id, *actions):
    """A recorded episode of these actions."""
    turns = iter(actions)
    trajectory, _ = play_turns(lambda *_: Reply(next(turns), None), env, Job(task_id, 0, 0))
    return trajectory


REFUND = [call("find_customer", email="ana@mail.com"), call("customer_orders", customer_id="C1001"),
          call("refund_order", order_id="O2001")]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "actions", "kind", "wrong"),
    [
        ("cascade", ["Done."], "no_attempt", 0),
        ("cascade", [*REFUND[:2], "Done."], "incomplete", 2),
        ("cascade", [REFUND[0], call("refund_order", order_id="O2002"), *REFUND[1:], "Done."], "side_effect", 1),
        ("cascade", [call("find", email="x"), "Done."], "unreadable", 1),
        ("cascade", [REFUND[0]] * 16, "no_answer", 14),  # the refund and the answer take two turns
        ("question", [call("get_order", order_id="O2003"), '{"status": "lost"}'], "wrong_answer", 1),
        ("cascade", [*REFUND, "Done."], None, None),
    ],
)
def test_where_an_episode_goes_wrong(few, task, actions, kind, wrong):
    env = gym.make(few.env_id, **few.env_kwargs, on_budget="record")
    trajectory = episode(env, task, *actions)
    outcome = measure(env, trajectory, 0, oracle_cost(env, task), None)
    assert (outcome.failure, outcome.first_wrong_step) == (kind, wrong)
    assert outcome.redundant_calls == (0 if kind is None else None)


def test_an_early_change_that_cannot_be_mended():
    """A query ran that took rows away; what follows does not matter."""
    env = gym.make("SQL-v0", tasks="SQL-mini-v1", on_budget="record")
    for task_id in open_set("SQL-mini-v1").task_ids:
        env.reset(options={"task": task_id})
        if env.unwrapped.task.writes:
            break
    table = env.unwrapped.task.world.session.tables[0]
    steps = [call("list_tables"), call("run_sql", query=f'DELETE FROM "{table}"'), call("list_tables"), "Done."]
    assert first_wrong_step(env, episode(env, task_id, *steps)) in (1, 3)
    # the oracle may well write another table: then the end is what is wrong


def outcome(task, success, calls, oracle=2.0, **more):
    cost = {"tool_calls": calls, "output_tokens": 10.0, "read_tokens": 10.0, "latency_ms": 10.0}
    given = {
        "task_id": task, "task_hash": "", "sample": 0, "success": success, "reason": "", "cost": cost,
        "oracle_cost": {**cost, "tool_calls": oracle} if oracle else {}, "difficulty": None, "task_type": "",
        "turns": 1, "redundant_calls": 0 if success else None, "failure": None if success else "incomplete",
        "first_wrong_step": None, "usage": None,
    }  # fmt: skip
    return Outcome(**{**given, **more})


def test_aggregates_by_hand():
    outcomes = [
        outcome("a", True, 2.0), outcome("a", True, 5.0, redundant_calls=3),  # 1 and 2.5 times the oracle's calls
        outcome("b", False, 4.0), outcome("b", True, 8.0, redundant_calls=1),  # 4 times
        outcome("c", False, 1.0), outcome("c", None, 50.0, failure=None),
        outcome("d", False, 3.0, oracle=None),
    ]  # fmt: skip
    found = aggregate(outcomes, {"tool_calls": 4.0}, samples=2, seed=0)
    assert found.success[0] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert found.pass_at_k["1"][0] == found.success[0]
    assert found.pass_at_k["2"][0] == pytest.approx((1 + 1) / 2)  # c and d have one judged episode
    assert set(found.pass_at_k) == {"1", "2"}
    assert found.cost["tool_calls"][0] == pytest.approx((3.5 + 6 + 1 + 3) / 4)
    assert found.violation_rate["tool_calls"][0] == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)
    assert set(found.violation_rate) == {"tool_calls"}
    assert found.in_budget_success[0] == pytest.approx((0.5 + 0 + 0 + 0) / 4)
    curve = {m: mean for m, mean, *_ in found.budget_curve}
    assert (curve[1.0], curve[2.25]) == (pytest.approx(0.5 / 3), pytest.approx(0.5 / 3))
    assert (curve[2.5], curve[4.0]) == (pytest.approx(1 / 3), pytest.approx(1.5 / 3))
    assert found.pareto_auc[0] == pytest.approx(((1.0 + 0.5) / 2 + 0 + 0) / 3)
    assert found.redundant_call_rate[0] == pytest.approx((3 + 1) / (2 + 5 + 8))
    assert found.relative_cost["tool_calls"][0] == pytest.approx(((1 + 2.5) / 2 + 4) / 2)
    assert found.failures == {"incomplete": 3}


def test_of_nothing_everything_is_null():
    found = aggregate([outcome("a", None, 1.0, failure=None)], {}, samples=1, seed=0)
    assert found.success == found.in_budget_success == found.pareto_auc == (None, None, None)
    assert "NaN" not in found.model_dump_json()


# ---- result files ----------------------------------------------------------------------------------------------------


def test_the_published_schema_is_that_of_the_model():
    assert SCHEMA.read_text(encoding="utf-8") == schema()


def test_a_result_file_is_what_its_schema_says(few, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    result = played("random", few, tmp_path)
    data = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    assert read_result(tmp_path / "r.json") == result
    assert {"python", "agent-gym", "numpy"} <= data["versions"].keys()
    assert data["env_kwargs"] == {"tasks": few.name, "budget": {}, "on_budget": "record"}


@pytest.fixture(scope="module")
def entry(few, tmp_path_factory):
    """A result with successes, failures and two samples."""
    folder = tmp_path_factory.mktemp("entry")
    oracle, chance = open_agent("oracle"), open_agent("random")
    half = TurnAgent("half", lambda env, m, info: (oracle if info["seed"] % 2 else chance).act(env, m, info))
    result = played(half, few, folder, samples=2, budget={"tool_calls": 3}, seed=3)
    assert 0.2 < result.aggregates.success[0] < 0.8
    assert check_result(folder / "r.json") == []
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def first(data, success):
    return next(i for i, one in enumerate(data["outcomes"]) if one["success"] is success)


def claim(**changes):
    """Change the first failure's outcome, and make the aggregates fit."""

    def change(data, episodes):
        data["outcomes"][first(data, False)].update(changes)

    return change


def play_more_cheaply(data, episodes):
    """A success without its dearest step: outcome, episode and hash made to fit."""
    at = first(data, True)
    steps = episodes[at].steps
    total = {name: round(episodes[at].cost_total[name] - steps[0].cost[name], 3) for name in steps[0].cost}
    later = (replace(steps[1], observation=steps[0].observation), *steps[2:])
    episodes[at] = replace(episodes[at], steps=later, cost_total=total)
    data["outcomes"][at].update(cost=total, turns=len(later))


def pass_off_as_won(data, episodes):
    at = first(data, False)
    verdict = {**episodes[at].verdict, "status": "pass", "reason": "passed", "score": 1.0, "diagnostics": []}
    episodes[at] = replace(episodes[at], reward=1.0, verdict=verdict)
    data["outcomes"][at].update(success=True, reason="passed", failure=None, first_wrong_step=None, redundant_calls=0)


def hide(data, episodes):
    at = first(data, False)
    episodes[at] = replace(episodes[at], reward=None, verdict={**episodes[at].verdict, "status": "infra"})
    data["outcomes"][at].update(success=None, failure=None, first_wrong_step=None)


def change_an_answer(data, episodes):
    at = first(data, True)
    results = [{**episodes[at].steps[0].tool_results[0], "content": "{}"}, *episodes[at].steps[0].tool_results[1:]]
    episodes[at] = replace(episodes[at], steps=(replace(episodes[at].steps[0], tool_results=results),
                                                *episodes[at].steps[1:]))  # fmt: skip


def count_for_itself(data, episodes):
    """The environment would charge what the turn says."""
    at = first(data, True)
    step, *rest = episodes[at].steps
    cost = {**step.cost, "output_tokens": 1.0}
    message = {"role": "assistant", "content": step.action, "output_tokens": 1}
    total = {**episodes[at].cost_total}
    total["output_tokens"] += 1.0 - step.cost["output_tokens"]
    episodes[at] = replace(episodes[at], steps=(replace(step, action=message, cost=cost), *rest), cost_total=total)
    data["outcomes"][at].update(cost=total)


def change_the_arguments(data, episodes):
    data["env_kwargs"]["max_calls"] = 99
    episodes[:] = [replace(one, env_kwargs=data["env_kwargs"]) for one in episodes]


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda data, episodes: data["aggregates"].update(success=[0.99, 0.98, 1.0]), "aggregates.success: [0.99"),
        (lambda data, episodes: data["aggregates"]["cost"].update(tool_calls=[1.0, 1.0, 1.0]), "aggregates.cost: "),
        (lambda data, episodes: data["aggregates"].update(failures={}), "aggregates.failures: {} in the file"),
        (lambda data, episodes: data["tasks"].update(fingerprint="0" * 64), "has the fingerprint"),
        (lambda data, episodes: data["outcomes"].pop(), "outcomes: there must be one for each task"),
        (lambda data, episodes: data["outcomes"].reverse(), "outcomes: there must be one for each task"),
        (claim(success=True), "success is True, of its episode False"),
        (claim(reason="passed"), "reason is 'passed', of its episode"),
        (claim(turns=1), "turns is 1, of its episode"),
        (claim(cost={"tool_calls": 0.0, "output_tokens": 1.0, "read_tokens": 0.0, "latency_ms": 0.0}), "cost is"),
        (claim(task_type="easy"), "task_type is 'easy', measured again"),
        (claim(oracle_cost={"tool_calls": 99.0, "output_tokens": 99.0, "read_tokens": 99.0, "latency_ms": 999.0}),
         "oracle_cost is"),
        (claim(difficulty=8), "difficulty is 8, measured again None"),
        (play_more_cheaply, "the file is not what the environment gives"),
        (pass_off_as_won, "verdict or total costs in the file are not those of the environment"),
        (hide, "verdict or total costs in the file are not those of the environment"),
        (change_an_answer, "step 0: tool_results in the file is not what the environment gives"),
        (change_the_arguments, "env_kwargs: "),
        (count_for_itself, "a turn brings its own count of tokens"),
        (lambda data, episodes: episodes.pop(), "there are 11 episodes for 12 outcomes"),
        (lambda data, episodes: data["trajectories"].update(sha256="0" * 64), "is not the file that was recorded"),
    ],
)  # fmt: skip
def test_a_made_up_result_is_found_out(entry, tamper, said, tmp_path, capsys):
    """Whatever is changed, the rest is made to fit."""
    data = json.loads(entry["r.json"])
    episodes = [Trajectory.from_json(line) for line in entry["r.jsonl"].splitlines()]
    aggregates, digest = json.dumps(data["aggregates"]), data["trajectories"]["sha256"]
    tamper(data, episodes)
    packed = pack_trajectories(episodes, "r.jsonl")
    if json.dumps(data["aggregates"]) == aggregates:
        outcomes = [Outcome(**one) for one in data["outcomes"]]
        data["aggregates"] = aggregate(outcomes, data["budget"], 2, data["seed"]).model_dump(mode="json")
    if data["trajectories"]["sha256"] == digest:
        data["trajectories"]["sha256"] = sha256(packed).hexdigest()
    (tmp_path / "r.jsonl").write_bytes(packed)
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert main(["check", str(tmp_path / "r.json")]) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda text: text[: len(text) // 2], "r.json is no result file: Invalid JSON: EOF"),
        (lambda text: "", "r.json is no result file: Invalid JSON"),
        (lambda text: "[]", "r.json is no result file: Input should be an object"),
        (
            lambda text: text.replace("result-v1", "result-v0"),
            "r.json is no result file: schema: Input should be 'agent",
        ),
        (lambda text: text.replace('"samples": 2', '"samples": "two"'), "samples: Input should be a valid integer"),
        (lambda text: text.replace('"seed": 3', '"seed": 3, "x": 1'), "x: Extra inputs are not permitted"),
        (lambda text: text.replace('"tool_calls": 3', '"tool_call": 3'), "budget: unknown channel 'tool_call'"),
        (lambda text: text.replace('"tool_calls": 3.0', '"tool_calls": NaN'), "r.json is no result file: "),
        (lambda text: text.replace("r.jsonl", "r.jsonx"), "r.jsonx cannot be read: No such file or directory"),
        (lambda text: text.replace('"r.jsonl"', '"../../r.jsonl"'), None),  # read beside the file, wherever it points
    ],
)
def test_malformed_results_end_in_a_sentence(entry, broken, said, tmp_path, capsys):
    (tmp_path / "r.jsonl").write_bytes(entry["r.jsonl"])
    (tmp_path / "r.json").write_text(broken(entry["r.json"].decode()))
    assert main(["check", str(tmp_path / "r.json")]) == (said is not None)
    errors = capsys.readouterr().err
    assert (said or "") in errors
    assert errors.count("\n") == (said is not None)


def test_trajectory_files_that_are_cut_or_missing(entry, tmp_path, capsys):
    (tmp_path / "r.json").write_bytes(entry["r.json"])
    for data in (None, entry["r.jsonl"][:-40], b""):
        if data is not None:
            (tmp_path / "r.jsonl").write_bytes(data)
        assert main(["check", str(tmp_path / "r.json")]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "r.jsonl.gz").write_bytes(b"\x1f\x8b cut")
    with pytest.raises(ValueError, match="gz cannot be read: "):
        unpack_trajectories(tmp_path / "r.jsonl.gz")


def test_compressed_trajectories_are_the_same_bytes_each_time(few, tmp_path):
    first = played("oracle", few, tmp_path, compress=True).trajectories
    time.sleep(1.1)
    assert played("oracle", few, tmp_path, compress=True).trajectories == first
    assert first.file == "r.jsonl.gz"
    assert check_result(tmp_path / "r.json") == []


# ---- policies --------------------------------------------------------------------------------------------------------


def test_a_ready_made_policy(tmp_path):
    pytest.importorskip("torch", reason="tiny:ENV needs the extra 'train'")
    tasks = open_set("SQL-mini-v1")
    tasks = replace(tasks, task_ids=tasks.task_ids[:3], task_hashes=tasks.task_hashes[:3])
    result = played("tiny:SQL-v0", tasks, tmp_path)
    assert [one.task_id for one in result.outcomes] == list(tasks.task_ids)
    assert all(one.usage["completion_tokens"] > 0 for one in result.outcomes)
    assert result.env_kwargs["parser"] == "hermes"
    assert {"max_new_tokens", "temperature"} <= result.agent.settings.keys()
    assert played("tiny:SQL-v0", tasks, tmp_path).outcomes == result.outcomes


def test_the_page_names_every_kind_of_failure_in_the_order_of_their_decision():
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = page[page.index("| kind | when |") :]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(FAILURES)
