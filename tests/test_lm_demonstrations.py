"""agent_gym.lm: the small model, demonstrations and the warm start on them, dialogues of files, and budgets."""

import json
import math
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
from shop_play import TASKS, call, turn, write_tasks

pytest.importorskip("torch", reason="agent_gym.lm needs the extra 'train'")
pytest.importorskip("transformers", reason="agent_gym.lm needs the extra 'train'")

import numpy as np
import torch
from small_lm import chat_of, small_model, torchrun

from agent_gym import CHANNELS, PARSERS
from agent_gym.lm import tiny
from agent_gym.lm.budget import Budget, bounds, oracle_costs
from agent_gym.lm.demonstrations import (
    Dialogue,
    WarmStart,
    demonstrations,
    dialogue_of,
    encoded,
    sampled_here,
    spelled,
    warm_start,
)
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import token_logprobs
from agent_gym.lm.ranks import Ranks
from agent_gym.wrappers import RecordTrajectory

SHOP = {"difficulty": [1, 2], "domains": ["shop"], "split": "train", "on_budget": "record"}
TIGHT = {"budget": {"output_tokens": 1}, "on_budget": "truncate"}
WARM = WarmStart(updates=6, batch_size=4, demonstrations=40)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def env():
    return gym.make("APIAgent-v0", **SHOP)


@pytest.fixture(scope="module")
def dialogues(env):
    return demonstrations(env, range(40), wasteful=0.5, waste=0.5)


def make_model(dialogues):
    return small_model(text for dialogue in dialogues for text in dialogue.texts)


@pytest.fixture(scope="module")
def chat(dialogues):
    return chat_of(make_model(dialogues))


@pytest.fixture(scope="module")
def examples(chat, dialogues):
    return [encoded(chat, dialogue) for dialogue in dialogues]


def train(model, examples, warm=WARM, **changes):
    settings = {"context": 512, "most_tokens": 2048, "seed": 1, "ranks": Ranks()} | changes
    return warm_start(model, examples, warm, **settings)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.trained()])


# ---- the small model ----


def test_the_small_model_comes_from_its_seed_alone(dialogues):
    texts = [text for dialogue in dialogues for text in dialogue.texts]
    state = torch.get_rng_state()
    one, again, other = tiny.fresh(texts, 1), tiny.fresh(texts, 1), tiny.fresh(texts, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.8e6 < sum(p.numel() for p in one.trained()) < 1.2e6
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_what_is_copied_has_the_same_tokens_everywhere(chat):
    """An id in a request, in a result and in a call; and what is always the same is one token."""

    def has(text, part):
        ids, wanted = chat.encode(text), chat.encode(part)
        return any(ids[i : i + len(wanted)] == wanted for i in range(len(ids)))

    action = call("get_order", order_id="O4151")
    for text in ("Refund order O4151.", '{"id":"O4151","customer":"C1001"}', action):
        assert has(text, "O4151")
        assert len(chat.encode("O4151")) == 3
    assert len(chat.encode('","customer":"')) == 1
    assert chat.tokenizer.convert_ids_to_tokens(chat.spelled(action))[::len(chat.spelled(action)) - 1] == [
        "<tool_call>", "<|end|>",
    ]  # fmt: skip


def test_a_fresh_model_copies():
    """What follows a token that has been there before is likely what followed it then, at any distance; after random
    weights alone it is as likely as any other."""
    generator = torch.Generator().manual_seed(3)
    words = torch.randperm(250, generator=generator)[:60]
    ids = torch.cat([words, torch.randint(250, (200,), generator=generator), words])[None]
    net = tiny.fresh(["a b c"], 1).net
    with torch.no_grad():
        likely = [float(n(input_ids=ids).logits[0, -50:-1].log_softmax(-1).gather(-1, ids[0, -49:, None]).mean())
                  for n in (net, type(net)(net.config))]  # fmt: skip
    assert likely[0] > likely[1] + 0.7


@pytest.mark.parametrize("env_id", tiny.PRESETS)
def test_presets_fit_their_environments(env_id):
    preset = tiny.preset(env_id)
    env = gym.make(env_id, **preset.env_kwargs, budget=preset.budget)
    env.reset(seed=1)
    assert env.unwrapped.oracle()
    assert min(preset.demonstrations, preset.updates) > 0


def test_an_environment_without_a_preset():
    assert tiny.preset("Own-v0") == tiny.Preset({}, {}, 6000, 900)


# ---- demonstrations ----


def names(dialogue):
    parser = PARSERS["hermes"]
    return [made.name for said in dialogue.turns for made in parser.parse(said.action).calls]


def test_demonstrations_are_the_oracles(env):
    (dialogue,) = demonstrations(env, [7], wasteful=0.0, waste=0.5)
    observation, info = env.reset(seed=7)
    assert (dialogue.messages, dialogue.tools) == (info["messages"], info["tools"])
    assert [said.action for said in dialogue.turns] == env.unwrapped.oracle()
    for said in dialogue.turns:
        observation, *_ = env.step(said.action)
        assert said.ids is None
        assert "\n".join(message["content"] for message in said.answers) == observation


def test_demonstrations_have_needless_calls_in_the_stated_share(env):
    plain = demonstrations(env, range(100), wasteful=0.0, waste=0.5)
    some = demonstrations(env, range(100), wasteful=0.6, waste=0.5)
    assert len(plain) == 100
    more = [len(names(b)) - len(names(a)) for a, b in zip(plain, some, strict=True)]
    assert min(more) == 0
    assert 0.3 < np.mean(np.array(more) > 0) < 0.6  # of the wasteful ones, some happen to waste nothing
    reads = {name for name, tool in env.unwrapped.tools.items() if tool.reads_only}
    for a, b in zip(plain, some, strict=True):
        left = names(b)
        for name in names(a):
            left.remove(name)
        assert set(left) <= reads


def test_a_demonstration_depends_on_its_seed_alone(env):
    options = {"wasteful": 0.6, "waste": 0.5}
    both, alone = demonstrations(env, [3, 4], **options), demonstrations(env, [4], **options)
    assert both[1] == alone[0]


def test_demonstrations_that_fail_are_left_out():
    short = gym.make("APIAgent-v0", **SHOP | TIGHT)
    assert demonstrations(short, range(5), wasteful=0.0, waste=0.0) == []


# ---- ids ----


def test_spans_hold_the_turns_and_the_rest_is_the_conversation(chat, dialogues, examples):
    for dialogue, (ids, spans) in zip(dialogues, examples, strict=True):
        assert [chat.text(ids[b:e]) for b, e in spans] == [said.action for said in dialogue.turns]
        assert all(ids[e - 1] in chat.stops for _, e in spans)
        assert ids[: spans[0][0]] == chat.prompt(dialogue.messages, dialogue.tools)
        ends = [*(b for b, _ in spans[1:]), len(ids)]
        between = [chat.reply(said.answers, True) for said in dialogue.turns[:-1]] + [[]]
        assert [ids[e:b] for (_, e), b in zip(spans, ends, strict=True)] == between


def test_sampled_ids_are_learnt_as_they_were(chat, dialogues):
    """Other ids of the same text are kept; ids of another tokenizer are not."""
    dialogue = dialogues[0]
    said = dialogue.turns[0]
    own = chat.spelled(said.action)
    place = next(i for i, one in enumerate(own) if len(chat.text([one])) > 1 and one not in chat.control)
    sampled = [*own[:place], *(chat.encode(letter)[0] for letter in chat.text([own[place]])), *own[place + 1 :]]
    assert chat.text(sampled) == said.action
    for ids, expected in ((sampled, sampled), (sampled[:-1], sampled[:-1]), (sampled[1:], own), ([10**6], own)):
        turn = said._replace(ids=ids)
        assert sampled_here(chat, turn) == (expected is ids or expected == ids)
        row, spans = encoded(chat, Dialogue(dialogue.messages, dialogue.tools, [turn, *dialogue.turns[1:]]))
        assert row[spans[0][0] : spans[0][1]] == expected
        assert row[spans[0][1] : spans[1][0]] == chat.reply(said.answers, expected[-1] in chat.stops)


# ---- the warm start ----


def test_warm_start_learns(dialogues, examples):
    model = make_model(dialogues)
    first = train(model, examples, replace(WARM, updates=1))
    last = train(model, examples, replace(WARM, updates=60))
    assert first > 6.0
    assert last < 5.5


def test_warm_start_repeats_itself(dialogues, examples):
    one, two, three = make_model(dialogues), make_model(dialogues), make_model(dialogues)
    state = torch.get_rng_state()
    loss = train(one, examples)
    torch.rand(3)
    assert train(two, examples) == loss
    assert train(three, examples, seed=2) != loss
    assert torch.equal(weights(one), weights(two))
    torch.set_rng_state(state)
    train(one, examples)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_is_of_the_models_own_tokens(dialogues, examples, monkeypatch):
    """The gradient of an update is that of their mean, whatever the parts it is computed in."""
    model, seen = make_model(dialogues), []

    def clip(parameters, most):
        seen.append(torch.cat([p.grad.flatten() for p in parameters]))
        return torch.zeros(())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    batch = examples[:6]
    loss = train(model, batch, replace(WARM, updates=1, batch_size=6), most_tokens=200, context=10**6)
    model = make_model(dialogues)
    logprobs = [token_logprobs(model, [ids], [spans]).logprobs for ids, spans in batch]
    expected = -torch.cat(logprobs).mean()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    gradient = torch.cat([p.grad.flatten() for p in model.trained()])
    torch.testing.assert_close(seen[0], gradient, rtol=1e-4, atol=1e-5)


def test_nothing_to_learn_from(dialogues, examples):
    model = make_model(dialogues)
    with pytest.raises(Refused, match="none of 40 demonstrations is within 9 tokens; raise --max-context"):
        train(model, examples, context=9)
    before = weights(model)
    assert math.isnan(train(model, examples, replace(WARM, updates=0)))
    assert torch.equal(weights(model), before)


TWO = """
import sys
from pathlib import Path
import gymnasium as gym
import torch
sys.path.insert(0, sys.argv[1])
from test_lm_demonstrations import SHOP, WARM, WarmStart, make_model, oracle_costs, train, weights
from small_lm import chat_of
from agent_gym.lm.demonstrations import demonstrations, encoded
from agent_gym.lm.ranks import Ranks
torch.set_num_threads(1)
ranks = Ranks.start("cpu")
env = gym.make("APIAgent-v0", **SHOP)
dialogues = demonstrations(env, range(40), wasteful=0.5, waste=0.5, ranks=ranks)
model = make_model(dialogues)
chat = chat_of(model)
examples = [encoded(chat, one) for one in dialogues]
loss = train(model, examples, ranks=ranks)
alone = WarmStart(updates=3, batch_size=1)
again = train(model, examples, alone, ranks=ranks)
torch.save([weights(model), loss, again, oracle_costs(env, range(5), ranks).tolist()], f"{ranks.rank}.pt")
ranks.stop()
"""


def test_two_processes_end_as_one_does(env, dialogues, examples, tmp_path):
    """Demonstrations, batches (of one dialogue too: the other process has none) and the oracle's costs are shared."""
    (tmp_path / "two.py").write_text(TWO)
    torchrun(2, tmp_path / "two.py", Path(__file__).parent, cwd=tmp_path)
    model = make_model(dialogues)
    loss = train(model, examples)
    again = train(model, examples, WarmStart(updates=3, batch_size=1))
    for rank in range(2):
        found, *losses, costs = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, weights(model), rtol=0, atol=1e-5)
        assert losses == pytest.approx([loss, again], abs=1e-5)
        assert costs == oracle_costs(env, range(5)).tolist()


# ---- dialogues of files ----


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return {"tasks": write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", TASKS[:5]), "max_turns": 6}


def recorded(tasks, actions=None, number=0):
    env = RecordTrajectory(gym.make("APIAgent-v0", **tasks))
    env.reset(options={"task": TASKS[number]["id"]})
    for action in env.unwrapped.oracle() if actions is None else actions:
        env.step(action)
    return env.last


def test_a_dialogue_of_a_file_is_what_was_seen_and_said(tasks):
    trajectory, env = recorded(tasks), gym.make("APIAgent-v0", **tasks)
    dialogue = dialogue_of(trajectory, env)
    _, info = env.reset(options={"task": TASKS[0]["id"]})
    assert (dialogue.messages, dialogue.tools) == (info["messages"], info["tools"])
    assert [said.action for said in dialogue.turns] == [step.action for step in trajectory.steps]
    for said, step in zip(dialogue.turns, trajectory.steps[1:], strict=False):
        assert "\n".join(message["content"] for message in said.answers) == step.observation


def test_the_conversation_of_a_file_is_that_of_the_demonstration(tasks, chat):
    """From its text alone, a file gives the ids that playing gave."""
    env = gym.make("APIAgent-v0", **tasks)
    for shown in demonstrations(env, range(4), wasteful=1.0, waste=0.5):
        request = shown.messages[-1]["content"]
        number = next(i for i, one in enumerate(TASKS) if one["request"] == request)
        read = dialogue_of(recorded(tasks, [said.action for said in shown.turns], number), env)
        assert encoded(chat, read) == encoded(chat, shown)


def test_episodes_played_as_messages_are_learnt_as_text(tasks):
    """The file of an endpoint's agent holds its messages; the turns to learn are in the environment's own format."""
    env = gym.make("APIAgent-v0", **tasks)
    texts = [step.action for step in recorded(tasks).steps]
    messages = []
    for text in texts:
        spoken = PARSERS["hermes"].parse(text)
        messages.append(json.loads(PARSERS["openai"].render(spoken.text, spoken.calls)))
    trajectory = recorded(tasks, messages)
    assert trajectory.success
    assert all(isinstance(step.action, dict) for step in trajectory.steps)
    assert [said.action for said in dialogue_of(trajectory, env).turns] == texts


def test_a_broken_call_of_a_message_stays_broken():
    hermes, function = PARSERS["hermes"], {"name": "get_order", "arguments": '{"order_id": '}
    message = {"role": "assistant", "content": "so", "tool_calls": [{"id": "1", "function": function}]}
    parsed = hermes.parse(spelled(message, hermes))
    assert parsed.text == "so"
    assert "not valid JSON" in parsed.calls[0].error
    whole = {**message, "tool_calls": [{"id": "1", "function": {**function, "arguments": '{"order_id": "O1"}'}}]}
    assert spelled(whole, hermes) == f"so\n{call('get_order', order_id='O1')}"
    text = {"role": "assistant", "content": turn(("get_order", {"order_id": "O1"}))}  # a server without a parser
    assert spelled(text, hermes) == text["content"]
    cut = {"role": "assistant", "content": " <tool_call>{", "finish_reason": "length"}
    assert spelled(cut, hermes) == " <tool_call>{"


def test_episodes_that_cannot_be_opened_are_refused(tasks):
    env, trajectory = gym.make("APIAgent-v0", **tasks), recorded(tasks)
    first = replace(trajectory.steps[0], observation="Once.")
    for changes, said in (
        ({"env_id": "SQL-v0"}, "f, line 1: an episode of SQL-v0, not of --env-id APIAgent-v0"),
        ({"env_kwargs": {"split": "test"}}, "f, line 1: an episode of the test split, which is kept for the tests"),
        ({"task_id": "gone"}, "f, line 1: its task 'gone' cannot be opened: "),
        ({"steps": (first,)}, "f, line 1: task 'cascade' does not begin as the file says; another version made it"),
        ({"task_hash": "0" * 32}, "f, line 1: task 'cascade' has other content than the file's; another version"),
    ):
        with pytest.raises(Refused) as refused:
            dialogue_of(replace(trajectory, **changes), env, "f, line 1")
        assert str(refused.value).startswith(said)
        assert "\n" not in str(refused.value)
    assert dialogue_of(replace(trajectory, task_hash=None), env).turns


# ---- budgets ----

PRESET = {"tool_calls": 2.0, "output_tokens": 48.0}
SEEDS = range(24)


def found(env, preset=PRESET, tiny=True, **budget):
    return bounds(Budget(**budget), preset, env, SEEDS, tiny=tiny)


def test_the_oracles_costs_are_those_of_its_episodes(env):
    costs = oracle_costs(env, [3, 4])
    assert costs.shape == (2, len(CHANNELS))
    for row, seed in zip(costs, (3, 4), strict=True):
        env.reset(seed=seed)
        for action in env.unwrapped.oracle():
            info = env.step(action)[-1]
        assert row.tolist() == [info["cost_total"][channel] for channel in CHANNELS]


def test_relative_bounds_need_a_measurement():
    cut = gym.make("APIAgent-v0", **SHOP | TIGHT)
    assert oracle_costs(cut, SEEDS).shape == (0, len(CHANNELS))
    with pytest.raises(Refused, match="the oracle passed none of 24 tasks"):
        found(cut, relative=1.3)
    assert found(cut)["tool_calls"] == PRESET["tool_calls"]


def test_bounds_of_their_own_win_over_relative_ones_and_these_over_the_preset(env):
    mean = dict(zip(CHANNELS, oracle_costs(env, SEEDS).mean(axis=0), strict=True))
    free = dict.fromkeys(CHANNELS, math.inf)
    assert found(env) == free | PRESET
    assert found(env, tool_calls=3, read_tokens=9) == free | PRESET | {"tool_calls": 3.0, "read_tokens": 9.0}
    assert found(env, relative=2.0) == pytest.approx({k: 2 * mean[k] for k in CHANNELS})
    assert found(env, relative=2.0, latency_ms=math.inf)["latency_ms"] == math.inf
    assert found(env, tiny=False) == pytest.approx({k: 1.3 * mean[k] for k in CHANNELS})
    assert found(env, tiny=False, tool_calls=0)["tool_calls"] == 0
    assert found(env, preset={}) == free


def test_relative_bounds_are_in_the_models_own_tokens(env):
    double = gym.make("APIAgent-v0", **SHOP)
    count = double.unwrapped.token_counter
    double.unwrapped.token_counter = lambda text: 2 * count(text)
    one, two = found(env, relative=1.5), found(double, relative=1.5)
    assert two["output_tokens"] == pytest.approx(2 * one["output_tokens"])
    assert two["tool_calls"] == one["tool_calls"]


def test_a_channel_that_costs_the_oracle_nothing_has_no_relative_bound():
    env = gym.make("APIAgent-v0", **SHOP)
    env.unwrapped.token_counter = lambda text: 0
    assert found(env, relative=1.3)["read_tokens"] == math.inf


def test_bounds_are_said_and_those_that_the_oracle_breaks_are_warned_about(env, capsys):
    found(env, preset={}, relative=10.0, read_tokens=math.inf)
    said = capsys.readouterr().out
    assert said.startswith("budget (x the oracle's mean cost): tool_calls ")
    assert "(10.00 x)" in said
    assert "read_tokens" not in said
    assert said.endswith("the oracle breaks it in 0% of 24 tasks\n")
    found(env, tool_calls=0.5)
    assert "tool_calls 0.5 (" in (said := capsys.readouterr().out)
    assert "breaks it in 100% of 24 tasks\nwarning: in more than 20% of tasks even the oracle breaks the budget" in said


@pytest.mark.parametrize("value", [-1.0, math.nan])
@pytest.mark.parametrize("name", ["latency_ms", "relative"])
def test_bounds_below_zero_are_refused(env, name, value):
    with pytest.raises(Refused, match=f"--budget.{name.replace('_', '-')} must be 0 or more, not {value:g}"):
        found(env, **{name: value})
