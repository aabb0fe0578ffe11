"""The environments as tasks of Inspect, played by mock models and by the command. Without the package inspect_ai these
tests are skipped, unless AGENT_GYM_REQUIRE_INSPECT=1."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium as gym
import pytest
from adapters import SETS, adapter, playable
from shop_play import TASKS, write_tasks

import agent_gym
from agent_gym import PARSERS
from agent_gym.envs.api_agent import APIAgentEnv

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ours():
    return adapter("inspect", "inspect_ai")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A file with four tasks."""
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", TASKS[:4])


def spoken(text="", calls=(), stop="stop"):
    """What a provider makes of a model's turn."""
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput, ModelUsage
    from inspect_ai.tool import ToolCall

    made = [ToolCall(f"id{i}", one.name, dict(one.arguments)) for i, one in enumerate(calls)]
    message = ChatMessageAssistant(content=text, tool_calls=made or None)
    return ModelOutput(
        choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
        usage=ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2),
    )


def model_of(turn):
    """A model whose n-th turn on a request is ``turn(request, n)``, in Hermes' format."""
    from inspect_ai.model import ModelOutput, get_model

    def answer(messages, tools, choice, config):
        found = turn(messages[1].text, sum(one.role == "assistant" for one in messages))
        if isinstance(found, ModelOutput):
            return found
        read = PARSERS["hermes"].parse(found)
        return spoken(read.text, read.calls)

    return get_model("mockllm/model", custom_outputs=answer, memoize=False)


def oracle_of(env):
    """A model that plays what the oracle would, on the tasks of ``env``."""
    found = {}

    def turn(request, number):
        if request not in found:
            for task_id in env.unwrapped.task_ids:
                if env.reset(options={"task": task_id})[0] == request:
                    found[request] = env.unwrapped.oracle()
                    break
        return found[request][number]

    return model_of(turn)


def evaluated(task, model, tmp_path, **settings):
    import inspect_ai

    (log,) = inspect_ai.eval(task, model=model, display="none", log_dir=str(tmp_path), **settings)
    return log


def scores(log):
    return [sample.scores["outcome"].value for sample in log.samples]


# ---- the same episodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env_id", "tasks", "kwargs"), SETS)
def test_episodes_are_those_of_the_environment(ours, tmp_path, env_id, tasks, kwargs):
    tasks = playable(env_id, tasks, tmp_path)
    direct = gym.make(env_id, tasks=tasks, **kwargs)
    log = evaluated(ours.task(env_id, tasks, **kwargs), oracle_of(direct), tmp_path, limit=2)
    assert [sample.id for sample in log.samples] == list(direct.unwrapped.task_ids[:2])
    for sample in log.samples:
        request, first = direct.reset(options={"task": sample.id})
        assert [message.text for message in sample.messages[:2]] == [one["content"] for one in first["messages"]]
        assert sample.input[1].text == request
        steps = [direct.step(action)[1:] for action in direct.unwrapped.oracle()]
        told = [event.data for event in sample.events if event.event == "info" and event.source == "agent_gym"]
        assert told == [{name: step[3][name] for name in told[0]} for step in steps]
        reward, _, _, last = steps[-1]
        score = sample.scores["outcome"]
        assert score.value == {"success": reward, "in_budget_success": reward, **last["cost_total"]}
        assert reward == 1.0
        assert score.metadata == {
            "task_id": sample.id, "task_hash": first["task_hash"], "turns": len(steps),
            **{name: last[name] for name in ("state_hash", "cost_total", "budget_left", "verdict")},
        }  # fmt: skip
        assert sample.metadata["task_hash"] == first["task_hash"]
    (metrics,) = {tuple(one.metrics) for one in log.results.scores}
    assert metrics == ("mean", "stderr")
    assert [one.name for one in log.results.scores] == ["success", "in_budget_success", *agent_gym.CHANNELS]


def test_a_model_that_does_nothing_fails(ours, shop, tmp_path):
    log = evaluated(ours.task("APIAgent-v0", shop), model_of(lambda request, number: "Done."), tmp_path)
    assert [one["success"] for one in scores(log)] == [0.0] * 4
    assert {sample.scores["outcome"].answer for sample in log.samples} == {"wrong_state", "wrong_answer"}


def test_a_success_above_the_budget_is_none_in_the_budget(ours, shop, tmp_path):
    task = ours.task("APIAgent-v0", shop, budget={"tool_calls": 1}, on_budget="record")
    log = evaluated(task, None, tmp_path, solver=ours.agent())
    assert {one["success"] for one in scores(log)} == {1.0}
    assert {one["in_budget_success"] for one in scores(log)} == {float(c["tool_calls"] <= 1) for c in scores(log)}
    assert {one["tool_calls"] for one in scores(log)} == {1.0, 3.0}


# ---- what models do --------------------------------------------------------------------------------------------------


def test_what_the_model_wrote_and_heard_stays_in_the_conversation(ours, shop, tmp_path):
    from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ContentText, ModelOutput

    def turn(request, number):
        if number == 0:  # an invented tool, and one that is there
            return '<tool_call>{"name":"win","arguments":{}}</tool_call><tool_call>{"name":"return_policy"}</tool_call>'
        if number == 1:  # calls that the provider did not read
            return spoken('<tool_call>{"name":"return_policy","arguments":{}}</tool_call>')
        parts = [ContentReasoning(reasoning="x" * 400), ContentText(text="Done.")]
        return ModelOutput.from_message(ChatMessageAssistant(content=parts), "stop").model_copy(
            update={"usage": spoken().usage}
        )

    log = evaluated(ours.task("APIAgent-v0", shop), model_of(turn), tmp_path, limit=1)
    (sample,) = log.samples
    first, win, policy, second, again, last = sample.messages[2:]
    assert [call.id for call in first.tool_calls] == [win.tool_call_id, policy.tool_call_id] == ["id0", "id1"]
    assert "there is no tool 'win'" in win.text
    assert again.text == policy.text
    assert [call.id for call in second.tool_calls] == [again.tool_call_id]
    assert last.content[0].reasoning == "x" * 400
    assert sample.scores["outcome"].value["tool_calls"] == 3.0
    assert sample.scores["outcome"].value["output_tokens"] > 100  # reasoning is written, too


def test_a_turn_that_cannot_be_read_is_answered(ours, shop, tmp_path):
    from inspect_ai.tool import ToolCall

    def turn(request, number):
        found = spoken("Done.")
        if number == 0:
            found.message.tool_calls = [ToolCall("a", "get_order", {}, parse_error="Error parsing: {order_id")]
        if number == 1:
            return spoken("Done", stop="max_tokens")  # cut: not the answer
        return found

    log = evaluated(ours.task("APIAgent-v0", shop), model_of(turn), tmp_path, limit=1)
    (sample,) = log.samples
    assert "is not valid JSON" in sample.messages[3].text
    assert "cut before its end" in sample.messages[5].text
    assert sample.messages[5].role == "user"
    assert sample.scores["outcome"].metadata["turns"] == 3


def test_limits_of_the_model_and_of_inspect_are_failures(ours, shop, tmp_path):
    def endless(request, number):
        return '<tool_call>{"name":"return_policy","arguments":{}}</tool_call>'

    long = model_of(lambda request, number: spoken(stop="model_length") if number else endless(request, 0))
    for model, reason, settings in (long, "context", {}), (model_of(endless), "limit", {"message_limit": 7}):
        log = evaluated(ours.task("APIAgent-v0", shop), model, tmp_path, limit=1, **settings)
        score = log.samples[0].scores["outcome"]
        assert (log.status, score.answer, score.value["success"]) == ("success", reason, 0.0)
        assert score.value["tool_calls"] > 0


def test_no_verdict_is_a_failed_sample_and_no_score(ours, shop, tmp_path, monkeypatch):
    judge = APIAgentEnv._verify

    def broken(env, answer):
        if env.task.id == "named":
            raise agent_gym.InfraError("the machinery failed")
        return judge(env, answer)

    monkeypatch.setattr(APIAgentEnv, "_verify", broken)
    log = evaluated(ours.task("APIAgent-v0", shop), None, tmp_path, solver=ours.agent(), fail_on_error=False)
    lost = [sample for sample in log.samples if sample.error]
    assert [(sample.id, sample.scores) for sample in lost] == [("named", {})]
    assert "the machinery failed" in lost[0].error.message
    assert {score.metrics["mean"].value for score in log.results.scores if "success" in score.name} == {1.0}


def test_environments_work_side_by_side(ours, shop, tmp_path, monkeypatch):
    together, step = threading.Barrier(4, timeout=20), APIAgentEnv.step

    def waits(env, action):
        together.wait()
        return step(env, action)

    monkeypatch.setattr(APIAgentEnv, "step", waits)
    log = evaluated(ours.task("APIAgent-v0", shop), None, tmp_path, solver=ours.agent("noop"))
    assert [one["success"] for one in scores(log)] == [0.0] * 4


# ---- the command -----------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")


def command(cwd, *arguments):
    """The exit status of ``inspect eval``, and what it printed."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "300"}
    environment.pop("PYTHONPATH", None)  # Inspect knows the tasks of installed packages alone
    line = [sys.executable, "-m", "inspect_ai", "eval", *arguments, "--display", "plain"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_the_command_plays_a_file_and_the_registered_task(ours, tmp_path):
    (tmp_path / "refunds.py").write_text(re.search(r"```python\n(# refunds.py.*?)```", PAGE, re.DOTALL)[1])
    passed, failed = r"^success.*\nmean +1\.000 ", r"^success.*\nmean +0\.000 "
    code, printed = command(tmp_path, "refunds.py", "--solver", "agent_gym/agent", "--limit", "5")
    assert (code, bool(re.search(passed, printed, re.MULTILINE))) == (0, True), printed
    write_tasks(tmp_path / "tasks.jsonl", TASKS[:4])
    named = ["agent_gym/task", "-T", "env_id=APIAgent-v0", "-T", "tasks=tasks.jsonl", "--solver", "agent_gym/agent"]
    code, printed = command(tmp_path, *named, "-S", "spec=noop", "-T", 'budget={"tool_calls": 6}')
    assert (code, bool(re.search(failed, printed, re.MULTILINE))) == (0, True), printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("APIAgent-v0", "APIAgent-mini-v9"), "there is no task set 'APIAgent-mini-v9'; there are APIAgent-mini-v1"),
        (("SQL-v0", "APIAgent-mini-v1"), "the task set APIAgent-mini-v1 is of APIAgent-v0, not of SQL-v0"),
        (("Nothing-v0", "tasks.jsonl"), "Environment `Nothing` doesn't exist."),
        (("APIAgent-v0", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(ours, arguments, sentence):
    from inspect_ai._util.error import PrerequisiteError

    with pytest.raises(PrerequisiteError) as found:
        ours.task(*arguments)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


def test_an_agent_that_is_a_model_or_unknown_is_refused(ours):
    from inspect_ai._util.error import PrerequisiteError

    with pytest.raises(PrerequisiteError, match="give oracle, noop"):
        ours.agent("nobody")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.delitem(sys.modules, "agent_gym.integrations.inspect", raising=False)
    with pytest.raises(ImportError, match=re.escape("pip install 'agent-gym[inspect]'")):
        importlib.import_module("agent_gym.integrations.inspect")
