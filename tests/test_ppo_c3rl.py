"""The trainer: tokens, masks, credits, advantages, multipliers, updates, whole runs, resuming, and wrong input."""

import copy
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_play import REFUND, call, turn, write_tasks
from shop_play import TASKS as SHOP_TASKS

torch = pytest.importorskip("torch", reason="the trainer needs the extra 'train'")
pytest.importorskip("transformers", reason="the trainer needs the extra 'train'")

import gymnasium as gym  # noqa: E402

import agent_gym  # noqa: E402
from agent_gym import CHANNELS, Step  # noqa: E402
from agent_gym.formats import canonical_text  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "cleanrl_llm" / "ppo_c3rl.py"
ENV = {"difficulty": [1, 2], "domains": ["shop"], "max_turns": 6}


def load_trainer():
    spec = importlib.util.spec_from_file_location("ppo_c3rl", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ppo_c3rl"] = module
    spec.loader.exec_module(module)
    return module


trainer = load_trainer()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of floats depend on the number of threads, and a resumed run is compared digit by digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(**changes):
    """Small settings; ``credit=``, ``dual=``, ``warm=`` and ``budget=`` take dictionaries."""
    warm = {"updates": 150, "demonstrations": 300, "batch_size": 16, "lr": 1e-2} | changes.pop("warm", {})
    groups = {
        "budget": trainer.Budget(**changes.pop("budget", {})),
        "credit": trainer.Credit(**changes.pop("credit", {})),
        "dual": trainer.Dual(**changes.pop("dual", {})),
        "warm": trainer.WarmStart(**warm),
    }
    small = {"env_kwargs": json.dumps(ENV), "max_new_tokens": 40, "max_context": 512, "num_episodes": 8}
    args = trainer.Args(**{**small, **groups, **changes})
    trainer.settle(args, torch.device("cpu"))
    return args


def make_env(policy=None, **changes):
    env = gym.make(
        "APIAgent-v0", disable_env_checker=True, **{"split": "train", "on_budget": "record", **ENV, **changes}
    )
    if policy is not None:
        env.unwrapped.token_counter = policy.count
    return env


def small_model(tokenizer, seed):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.06,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def dialogues():
    return list(trainer.demonstrations(make_env(), arguments()))


@pytest.fixture(scope="module")
def tokenizer(dialogues):
    return trainer.tiny_tokenizer(t for d in dialogues for t in (d.messages[1]["content"], *sum(d.turns, ())))


@pytest.fixture(scope="module")
def untrained(tokenizer):
    return trainer.Policy(small_model(tokenizer, 1), tokenizer, sees_tools=False, critic=False)


@pytest.fixture(scope="module")
def warmed(untrained, dialogues):
    """The briefly trained model and the loss it reached."""
    policy = copy.deepcopy(untrained)
    return policy, trainer.warm_start(policy, dialogues, arguments())


@pytest.fixture
def policy(warmed):
    return copy.deepcopy(warmed[0])


def roll(policy, args, n=8, seed=5, env=None):
    """``n`` episodes on different tasks."""
    episodes = [trainer.start(policy, make_env(policy, **(env or {})), 100 + i) for i in range(n)]
    prompts = [list(e.ids) for e in episodes]
    trainer.rollout(policy, episodes, args, seed)
    return episodes, prompts


def scored(policy, episodes, temperature=1.0):
    """The full forward pass, a list of log-probabilities an episode."""
    with torch.no_grad():
        logp = trainer.score(policy, [e.ids for e in episodes], [e.spans for e in episodes], temperature)[0]
    return [part.tolist() for part in logp.split([len(e.logprobs) for e in episodes])]


def mean_logp(policy, episodes):
    return float(np.mean(np.concatenate(scored(policy, episodes))))


# ---- the rollout ----


@pytest.fixture(scope="module", params=[1.0, 0.7])
def rolled(request, warmed):
    """Temperature, policy, episodes of a ragged batch, and their prompts."""
    return request.param, warmed[0], *roll(warmed[0], arguments(temperature=request.param), n=10)


def test_rollout_is_ragged(rolled):
    """What the tests below rely on: prompts and numbers of turns differ, so rows leave the batch one by one."""
    _, _, episodes, prompts = rolled
    assert all(e.done for e in episodes)
    assert len({len(e.steps) for e in episodes}) >= 2
    assert max(len(e.steps) for e in episodes) >= 3
    assert len({len(p) for p in prompts}) >= 3


def test_rollout_bookkeeping(rolled):
    _, policy, episodes, _ = rolled
    for e in episodes:
        assert len(e.spans) == len(e.steps) == len(e.entropies) == len(e.snapshots) > 0
        assert len(e.logprobs) == sum(end - begin for begin, end in e.spans)
        assert all(lp <= 0.0 for lp in e.logprobs)
        assert all(0.0 <= h <= math.log(len(policy.tokenizer)) for h in e.entropies)
        at = 0
        for (begin, end), step in zip(e.spans, e.steps, strict=True):
            assert e.ids[begin:end] == step.action_ids
            assert e.logprobs[at : at + end - begin] == step.logprobs
            at += end - begin
            assert policy.eos not in step.action_ids[:-1]
            assert len(step.action_ids) <= 40
            closed = step.action_ids[-1] == policy.eos
            text = policy.tokenizer.decode(step.action_ids[: len(step.action_ids) - closed])
            assert step.action == text
            assert step.cost["output_tokens"] == policy.count(canonical_text(e.env.unwrapped.read(text)))
            assert step.cost["read_tokens"] == sum(policy.count(result["content"]) for result in step.tool_results)
        total = {k: sum(step.cost[k] for step in e.steps) for k in CHANNELS}
        assert e.cost_total == pytest.approx(total, abs=1e-3)
        assert e.success == (e.reward == 1.0) == (e.verdict["status"] == "pass")


def test_tokens_in_are_tokens_out(rolled):
    """An episode is its prompt, what was sampled and what was answered; nothing sampled is encoded again."""
    _, policy, episodes, prompts = rolled
    for e, prompt in zip(episodes, prompts, strict=True):
        ids = list(prompt)
        for i, step in enumerate(e.steps):
            assert e.spans[i] == (len(ids), len(ids) + len(step.action_ids))
            ids += step.action_ids
            if i + 1 < len(e.steps):
                role = "tool" if step.tool_results else "user"
                closed = step.action_ids[-1] == policy.eos
                ids += policy.reply(role, e.steps[i + 1].observation, closed)
        assert e.ids == ids


def test_sampled_ids_are_kept_where_encoding_would_change_them(policy, monkeypatch):
    """ "Done" spelled in single characters is not what the tokenizer makes of "Done"."""
    spelled = [policy.tokenizer.convert_tokens_to_ids(c) for c in "Done"]
    assert spelled != policy.encode("Done")
    script = iter([*spelled, policy.eos])
    monkeypatch.setattr(trainer, "sample", lambda *_: torch.tensor([next(script)]))
    (episode,), _ = roll(policy, arguments(), n=1)
    assert episode.steps[0].action == "Done"
    assert episode.ids[slice(*episode.spans[0])] == [*spelled, policy.eos] == episode.steps[0].action_ids
    expected = scored(policy, [episode])[0]
    assert episode.logprobs == pytest.approx(expected, abs=1e-4)


def test_cached_logprobs_are_those_of_the_full_pass(rolled):
    temperature, policy, episodes, _ = rolled
    for e, full in zip(episodes, scored(policy, episodes, temperature), strict=True):
        assert e.logprobs == pytest.approx(full, abs=1e-4)
    other = scored(policy, episodes, 2.0)  # the check can fail
    assert (
        max(abs(a - b) for e, full in zip(episodes, other, strict=True) for a, b in zip(e.logprobs, full, strict=True))
        > 0.1
    )


def test_entropies_are_those_of_the_full_pass(rolled):
    temperature, policy, episodes, _ = rolled
    with torch.no_grad():
        entropy = trainer.score(policy, [e.ids for e in episodes], [e.spans for e in episodes], temperature)[1]
    turns = [end - begin for e in episodes for begin, end in e.spans]
    expected = [float(part.mean()) for part in entropy.split(turns)]
    assert [h for e in episodes for h in e.entropies] == pytest.approx(expected, abs=1e-4)


def test_a_row_does_not_depend_on_the_batch(rolled, monkeypatch):
    temperature, policy, episodes, _ = rolled
    longest = max(range(len(episodes)), key=lambda i: len(episodes[i].steps))
    before = episodes[longest]
    script = iter([token for step in before.steps for token in step.action_ids])
    monkeypatch.setattr(trainer, "sample", lambda *_: torch.tensor([next(script)]))
    alone = trainer.start(policy, make_env(policy), before.seed)
    trainer.rollout(policy, [alone], arguments(temperature=temperature), 99)
    assert alone.ids == before.ids
    assert alone.spans == before.spans
    assert alone.logprobs == pytest.approx(before.logprobs, abs=1e-4)
    assert next(script, None) is None


def test_a_shared_prompt_is_fed_once_and_in_parts(policy, monkeypatch):
    """Two tasks, four episodes each, in passes of at most 16 padded tokens: the log-probabilities are those of the full
    pass, and every prompt was fed once."""
    monkeypatch.setattr(trainer, "FEED", 16)
    fed, hidden = [], trainer.Policy.hidden

    def counted(self, cache=None, **inputs):
        if cache is not None:
            fed.append(tuple(inputs["input_ids"].shape))
        return hidden(self, cache, **inputs)

    monkeypatch.setattr(trainer.Policy, "hidden", counted)
    episodes = [trainer.start(policy, make_env(policy), 100 + i // 4) for i in range(8)]
    prompts = {tuple(e.ids) for e in episodes}
    assert len(prompts) == 2
    trainer.rollout(policy, episodes, arguments(), 5)
    assert sorted(fed[:2]) == sorted((1, len(prompt) - 1) for prompt in prompts)
    assert fed[2] == (8, 1)
    assert all(rows == 1 or rows * columns <= 16 for rows, columns in fed)
    assert len({len(step.action_ids) for e in episodes for step in e.steps}) > 2
    for e, full in zip(episodes, scored(policy, episodes), strict=True):
        assert e.logprobs == pytest.approx(full, abs=1e-4)


@given(st.integers(2, 40), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_sampling_follows_the_probabilities(size, seed):
    """Each token within 5 standard errors of its share of 4000 draws; what has no probability is never drawn."""
    logits = 3.0 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    logits[seed % size] = -math.inf
    p = torch.softmax(logits, 0)
    tokens = trainer.sample(p.expand(4000, -1), torch.Generator().manual_seed(seed))
    assert torch.equal(tokens, trainer.sample(p.expand(4000, -1), torch.Generator().manual_seed(seed)))
    share = torch.bincount(tokens, minlength=size) / 4000
    assert bool(((share - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt() + 1 / 4000).all())
    assert share[seed % size] == 0.0


def test_the_seed_decides_the_rollout(policy):
    first, second, third = (roll(policy, arguments(), n=3, seed=s)[0] for s in (5, 5, 6))
    assert [e.ids for e in first] == [e.ids for e in second]
    assert [e.logprobs for e in first] == [e.logprobs for e in second]
    assert [e.ids for e in first] != [e.ids for e in third]


def test_an_untrained_model_is_cut_at_its_limits(untrained):
    """Turns that never end are closed by the trainer; an episode without room for the answer fails as such."""
    episodes, _ = roll(untrained, arguments(max_new_tokens=7), n=6)
    ids = [step.action_ids for e in episodes for step in e.steps]
    assert max(map(len, ids)) == 7
    assert any(turn[-1] != untrained.eos for turn in ids)
    for e, full in zip(episodes, scored(untrained, episodes), strict=True):
        assert e.logprobs == pytest.approx(full, abs=1e-4)


def test_context_limit(policy, monkeypatch):
    look = [*policy.encode(call("list_orders")), policy.eos]
    env = make_env(policy)
    prompt = len(trainer.start(policy, env, 100).ids)
    limit = prompt + len(look) + 20
    script = iter(look * 9)
    monkeypatch.setattr(trainer, "sample", lambda *_: torch.tensor([next(script)]))
    episode = trainer.start(policy, env, 100)
    trainer.rollout(policy, [episode], arguments(max_context=limit), 0)
    assert (episode.verdict["status"], episode.verdict["reason"], episode.reward) == ("fail", "context", 0.0)
    assert len(episode.steps) == 1
    assert episode.ids[-1] == policy.eos
    assert len(episode.ids) < limit
    assert episode.cost_total["tool_calls"] == 1.0


# ---- masks ----


def test_score_takes_exactly_the_model_tokens(rolled):
    """Against a loop over rows and columns, one row at a time and without padding."""
    temperature, policy, episodes, _ = rolled
    with torch.no_grad():
        logp, entropy, values = trainer.score(
            policy, [e.ids for e in episodes], [e.spans for e in episodes], temperature
        )
        expected = []
        for e in episodes:
            logits = policy.model(input_ids=torch.tensor([e.ids])).logits[0].float() / temperature
            table = torch.log_softmax(logits, -1)
            expected += [float(table[c - 1, e.ids[c]]) for begin, end in e.spans for c in range(begin, end)]
    assert len(logp) == len(entropy) == len(expected) == sum(len(e.logprobs) for e in episodes)
    assert values is None
    assert logp.tolist() == pytest.approx(expected, abs=1e-4)


def test_the_loss_touches_no_other_token(policy, monkeypatch):
    """The gradient with respect to the hidden states of the last layer is zero but for those that predict a model
    token: the request and the tools' answers are never trained on."""
    episodes, _ = roll(policy, arguments(), n=4)
    kept = []
    original = trainer.Policy.hidden

    def hidden(self, *args, **kwargs):
        states = original(self, *args, **kwargs)
        states.retain_grad()
        kept.append(states)
        return states

    monkeypatch.setattr(trainer.Policy, "hidden", hidden)
    logp, _, _ = trainer.score(policy, [e.ids for e in episodes], [e.spans for e in episodes], 1.0)
    (-logp.sum()).backward()
    touched = (kept[0].grad.abs().sum(-1) > 0).tolist()
    for row, e in zip(touched, episodes, strict=True):
        predicting = {c - 1 for begin, end in e.spans for c in range(begin, end)}
        assert [c for c, hit in enumerate(row) if hit and c not in predicting] == []
        assert sum(row) >= 0.9 * len(predicting)  # a token of probability 1 has gradient 0


def test_micro_batches_hold_every_row_once_and_keep_the_limit():
    lengths = [50, 3, 200, 40, 41, 7, 300, 100]
    parts = trainer.micro_batches(lengths, 200)
    assert sorted(i for part in parts for i in part) == list(range(8))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 200
    assert parts == [[1, 5, 3, 4], [0, 7], [2], [6]]


# ---- z, leave-one-out, GAE ----


def test_z():
    nan = math.nan
    np.testing.assert_allclose(trainer.z(np.array([1.0, nan, 3.0, nan])), [-1.0, 0.0, 1.0, 0.0])
    assert trainer.z(np.array([5.0, 5.0, nan])).tolist() == [0.0, 0.0, 0.0]
    assert trainer.z(np.array([2.0, 2.0 + 1e-7])).tolist() == [0.0, 0.0]
    assert trainer.z(np.array([nan, nan])).tolist() == [0.0, 0.0]
    far = trainer.z(np.array([0.0] * 99 + [1000.0]))
    assert far[-1] == 3.0  # 9.9 standard deviations
    assert far[0] == pytest.approx(-10.0 / math.sqrt(1e6 / 100 - 100.0))
    assert trainer.z(np.array([0.0] * 99 + [-1000.0]))[-1] == -3.0


def test_relative_is_leave_one_out():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(9, 2)), list("aabbbacda")
    expected = np.zeros_like(values)
    for i, g in enumerate(groups):
        others = [values[j] for j in range(9) if groups[j] == g and j != i]
        if others:
            expected[i] = values[i] - np.mean(others, axis=0)
    np.testing.assert_allclose(trainer.relative(values, groups), expected)
    np.testing.assert_allclose(trainer.relative(np.array([1.0, 0.0, 1.0]), ["a", "a", "b"]), [1.0, -1.0, 0.0])


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae(lam):
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    following = np.vstack([values[1:], np.zeros((1, 3))])
    delta = rewards + following - values
    expected = [sum(lam**i * delta[t + i] for i in range(5 - t)) for t in range(5)]
    np.testing.assert_allclose(trainer.gae(rewards, values, lam), expected)


# ---- advantages ----


def hand_made(task_id, success, costs):
    """An episode of which only verdict and costs are given."""
    steps = [Step("", "", dict(zip(CHANNELS, map(float, cost), strict=True)), [], "") for cost in costs]
    total = {k: sum(s.cost[k] for s in steps) for k in CHANNELS}
    verdict = {"status": "pass" if success else "fail", "reason": ""}
    return trainer.Episode(None, task_id, 0, [], "", steps=steps, verdict=verdict, cost_total=total)


PAIR = [hand_made("a", True, [(1, 10, 30, 100), (1, 20, 0, 200)]), hand_made("a", False, [(1, 10, 5, 50)])]
CREDITS = [([0.0, 1.0], [[1, 7, 4, 9], [3, 8, 0, 2]]), ([math.nan], [[5, 1, 2, 1]])]
BOUNDS = np.array([4.0, 120.0, 60.0, 400.0])


def advantage(args, lambdas=(0.5, 0.0, 0.0, 0.0), episodes=PAIR, bounds=BOUNDS, values=None):
    credits = [trainer.Credits(np.array(u), np.array(v, dtype=float)) for u, v in CREDITS]
    found = trainer.advantages(episodes, credits, values, np.array(lambdas, dtype=float), np.array(bounds), args)
    assert [len(a) for a in found] == [len(e.steps) for e in episodes]
    return np.concatenate(found)


Z_V = math.sqrt(1.5)  # z of the calls' credits 1, 3, 5


def test_advantage_c3rl():
    """z(R) = 1, 1, -1; z(u) = -1, 1, 0; z(v) = -Z_V, 0, Z_V; lambda 0.5; the failed episode pays nothing."""
    expected = [(1 - 1 + 0.5 * Z_V) / 1.5, (1 + 1) / 1.5, -1 / 1.5]
    np.testing.assert_allclose(advantage(arguments()), expected)


def test_advantage_c3rl_without_the_gate_failures_pay():
    found = advantage(arguments(credit={"success_gate": False}))
    np.testing.assert_allclose(found, [(0.5 * Z_V) / 1.5, 2 / 1.5, (-1 - 0.5 * Z_V) / 1.5])


def test_advantage_c3rl_without_the_episodes_reward():
    found = advantage(arguments(credit={"z_reward": False}))
    np.testing.assert_allclose(found, [(-1 + 0.5 * Z_V) / 1.5, 1 / 1.5, 0.0], atol=1e-12)


def test_advantage_c3rl_weight_of_the_credit():
    found = advantage(arguments(credit={"weight": 0.25}))
    np.testing.assert_allclose(found, [(1 - 0.25 + 0.5 * Z_V) / 1.5, 1.25 / 1.5, -1 / 1.5])


def test_advantage_c3rl_all_channels():
    """Every channel is normalised alone: 7, 8, 1 and 4, 0, 2 and 9, 2, 1 beside 1, 3, 5."""
    z = [(np.array(x) - np.mean(x)) / np.std(x) for x in ([1, 3, 5], [7, 8, 1], [4, 0, 2], [9, 2, 1])]
    cost = 0.5 * z[0] + 1.0 * z[1] + 0.25 * z[2] + 2.0 * z[3]
    expected = (np.array([0.0, 2.0, -1.0]) - np.array([1, 1, 0]) * cost) / 4.75
    np.testing.assert_allclose(advantage(arguments(), lambdas=(0.5, 1.0, 0.25, 2.0)), expected)


def test_advantage_ignores_cost_without_multipliers():
    np.testing.assert_allclose(advantage(arguments(), lambdas=(0, 0, 0, 0)), [0.0, 2.0, -1.0], atol=1e-12)


@pytest.mark.parametrize("method", ["ppo", "truncation"])
def test_advantage_reward_only(method):
    np.testing.assert_allclose(advantage(arguments(method=method)), [1.0, 1.0, -1.0])


def test_advantage_lagrangian():
    """The episodes' calls are 2 and 1, so z of the relative cost is 1 and -1; no gate."""
    np.testing.assert_allclose(advantage(arguments(method="lagrangian")), [0.5 / 1.5, 0.5 / 1.5, -0.5 / 1.5])


def test_advantage_lagrangian_to_go():
    """Calls still to come: 2, 1 and 1."""
    found = advantage(arguments(method="lagrangian", lagrangian_to_go=True))
    root = math.sqrt(2)
    np.testing.assert_allclose(found, [(1 - root / 2) / 1.5, (1 + root / 4) / 1.5, (-1 + root / 4) / 1.5])


def test_advantage_penalty():
    """R - 0.3 mean_k C_k / B_k over the bounded channels; multipliers play no part."""
    episodes = [*PAIR, hand_made("b", True, [(2, 10, 10, 10)]), hand_made("b", True, [(4, 10, 10, 10)])]
    others = {"episodes": episodes, "lambdas": (3, 3, 3, 3)}
    args = arguments(method="penalty")

    def expected(bounds):
        worth = []
        for e in episodes:
            spent = [e.cost_total[k] / b for k, b in zip(CHANNELS, bounds, strict=True) if math.isfinite(b)]
            worth.append(e.success - 0.3 * (sum(spent) / len(spent) if spent else 0.0))
        r = np.array([worth[0] - worth[1], worth[1] - worth[0], worth[2] - worth[3], worth[3] - worth[2]])
        return (r / np.sqrt(np.mean(r**2)))[[0, 0, 1, 2, 3]]

    for bounds in (BOUNDS, [4.0, *[math.inf] * 3], [math.inf] * 4):
        np.testing.assert_allclose(advantage(args, bounds=bounds, **others), expected(bounds), atol=1e-12)
    only_calls = advantage(args, bounds=[4.0, *[math.inf] * 3], **others)
    assert only_calls[3] > 0 > only_calls[4]
    assert advantage(args, bounds=[math.inf] * 4, **others)[3:].tolist() == [0.0, 0.0]


def test_advantage_with_critics():
    """GAE of the value heads takes the place of the group baseline, for reward and for each cost."""
    rng = np.random.default_rng(2)
    values = [rng.normal(size=(2, 5)), rng.normal(size=(1, 5))]
    rows = []
    for e, value in zip(PAIR, values, strict=True):
        flow = np.array([[0.0, *(s.cost[k] / b for k, b in zip(CHANNELS, BOUNDS, strict=True))] for s in e.steps])
        flow[-1, 0] = e.success
        delta = flow + np.vstack([value[1:], np.zeros((1, 5))]) - value
        rows += [delta[0] + 0.9 * delta[1], delta[1]] if len(delta) == 2 else [delta[0]]
    normal = (np.array(rows) - np.mean(rows, axis=0)) / np.std(rows, axis=0)
    found = advantage(arguments(method="lagrangian", critic=True, gae_lambda=0.9), values=values)
    np.testing.assert_allclose(found, (normal[:, 0] - 0.5 * normal[:, 1]) / 1.5)
    found = advantage(arguments(critic=True, gae_lambda=0.9), values=values)
    np.testing.assert_allclose(found, (normal[:, 0] + [-1, 1, 0] + np.array([0.5 * Z_V, 0, 0])) / 1.5)


# ---- counterfactual credit ----

FIND, ORDERS, REFUNDED = (turn(one) for one in REFUND)
LOOK, PRODUCT = call("get_order", order_id="O2001"), call("get_product", product_id="P3001")


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    """Keyword arguments of an environment with one task: find, orders, refund."""
    return {"tasks": write_tasks(tmp_path_factory.mktemp("tasks") / "cascade.jsonl", SHOP_TASKS[:1]), "split": "train"}


def played(policy, kwargs, texts, entropies=None):
    """An episode of given turns."""
    options = {k: v for k, v in {**ENV, **kwargs}.items() if k != "difficulty"}
    env = gym.make("APIAgent-v0", disable_env_checker=True, **{"on_budget": "record", **options, "max_turns": 8})
    env.unwrapped.token_counter = policy.count
    episode = trainer.start(policy, env, 0)
    for i, text in enumerate(texts):
        ids = [*policy.encode(text), policy.eos]
        trainer.advance(policy, episode, ids, [-0.5] * len(ids), entropies[i] if entropies else 0.0, 10_000)
    return episode


def measured(policy, episodes, spare=(), seed=3, **credit):
    return trainer.measure(episodes, policy, list(spare), arguments(credit=credit), seed)


def spent(episode, *steps):
    return [sum(episode.steps[t].cost[k] for t in steps) for k in CHANNELS]


WASTEFUL = [FIND, ORDERS, LOOK, PRODUCT, REFUNDED, "Done."]


def test_delete_with_grounding(untrained, cascade):
    """A needless read is worth nothing and costs what it cost; a necessary one carries all that hangs on it."""
    episode = played(untrained, cascade, WASTEFUL)
    assert (episode.success, episode.cost_total["tool_calls"]) == (1.0, 5.0)
    (found,), tokens = measured(untrained, [episode])
    assert tokens == 0
    assert found.u.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    expected = [spent(episode, 0, 1, 2, 4), spent(episode, 1, 2, 4), *(spent(episode, t) for t in (2, 3, 4)), [0.0] * 4]
    np.testing.assert_allclose(found.v, expected, atol=2e-3)


def test_delete_without_grounding(untrained, cascade):
    """Re-issued literally, the suffix knows what it never read, so reads look worthless."""
    episode = played(untrained, cascade, WASTEFUL)
    (found,), _ = measured(untrained, [episode], grounding=False)
    assert found.u.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    np.testing.assert_allclose(found.v, [*(spent(episode, t) for t in range(5)), [0.0] * 4], atol=2e-3)


def test_delete_in_a_failed_episode(untrained, cascade):
    """Nothing can be lost; the final answer is worth the reward, 0."""
    (found,), _ = measured(untrained, [played(untrained, cascade, [FIND, PRODUCT, "Done."])])
    assert found.u.tolist() == [0.0, 0.0, 0.0]


def test_delete_blocks(untrained, cascade):
    """Two neighbours at a time; the last block ends before the final answer, which would otherwise make needless
    steps before it look necessary."""
    episode = played(untrained, cascade, [FIND, ORDERS, REFUNDED, LOOK, PRODUCT, "Done."])
    (found,), _ = measured(untrained, [episode], block=2)
    # blocks: 0-1 (u 1), 1-2 (1), 2-3 (1), 3-4 (0), 4 (0); a step has the mean of its blocks
    assert found.u.tolist() == [1.0, 1.0, 1.0, 0.5, 0.0, 1.0]
    np.testing.assert_allclose(found.v[4], (np.array(spent(episode, 3, 4)) + spent(episode, 4)) / 2, atol=2e-3)


def test_truncate(untrained, cascade):
    """The earliest cut that still passes earns the reward; what follows it was only paid for."""
    episode = played(untrained, cascade, [FIND, ORDERS, REFUNDED, LOOK, PRODUCT, "Done."])
    (found,), _ = measured(untrained, [episode], interventions=("truncate",))
    np.testing.assert_array_equal(found.u, [math.nan, math.nan, 1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(
        found.v, [*[[math.nan] * 4] * 3, spent(episode, 3), spent(episode, 4), [0.0] * 4], atol=2e-3
    )


def test_swap(untrained, cascade):
    """Looking up somebody else loses the customer, and with her all that followed."""
    other = call("find_customer", email="moe@mail.com")
    episodes = [
        played(untrained, cascade, [FIND, ORDERS, REFUNDED, "Done."]),
        played(untrained, cascade, [other, "No."]),
    ]
    (found, failed), _ = measured(untrained, episodes, interventions=("swap",))
    np.testing.assert_array_equal(found.u, [1.0, math.nan, math.nan, 1.0])  # no other action of the other tools
    tokens = spent(episodes[0], 0, 1, 2)[1] - untrained.count(other)  # the other look-up was paid for
    np.testing.assert_allclose(found.v[0][:2], [2.0, tokens])
    np.testing.assert_array_equal(failed.u, [0.0, 0.0])


def test_calls_that_did_not_run_are_no_calls(untrained, cascade):
    """Neither for a swap, nor on the map."""
    late = turn(("submit", {"answer": "x"}), ("get_order", {"order_id": "O2001"}))
    episode = played(untrained, cascade, [FIND, late])
    step = episode.steps[-1]
    assert [(r["name"], r["error"]) for r in step.tool_results] == [("submit", None), ("get_order", "not_run")]
    assert trainer.first_tool(step) == "submit"
    assert trainer.first_tool(replace(step, tool_results=step.tool_results[1:])) is None
    (found,), _ = measured(untrained, [episode])
    assert trainer.credit_map(episode, found, 0)["steps"][1] == "submit(x)"


def test_selection(untrained, cascade):
    entropies = [0.2, 0.9, 0.1, 0.8, 0.3, 5.0]
    episode = played(untrained, cascade, WASTEFUL, entropies)

    def chosen(**credit):
        (found,), _ = measured(untrained, [episode], **credit)
        there = ~np.isnan(found.u)
        assert (there == ~np.isnan(found.v).any(axis=1)).all()
        return np.flatnonzero(there).tolist()

    assert chosen(selection="uncertain", most_steps=2) == [1, 3, 5]  # the final answer needs no replay
    assert chosen(selection="uncertain", most_steps=3) == [1, 3, 4, 5]
    assert chosen(selection="all", most_steps=1) == [0, 1, 2, 3, 4, 5]
    assert chosen(selection="uncertain", most_steps=5, most_interventions=2) == [0, 1, 5]
    drawn = {tuple(chosen(selection="random", most_steps=2, seed=s)) for s in range(8)}
    assert all(len(steps) == 3 and steps[-1] == 5 for steps in drawn)
    assert len(drawn) > 1


def test_replace(policy, cascade, monkeypatch):
    """Fresh samples from the state before the step, played to the end."""
    episode = played(policy, cascade, WASTEFUL, [0.0, 0.0, 0.0, 1.0, 2.0, 0.0])
    options = {k: v for k, v in {**ENV, **cascade}.items() if k != "difficulty"}
    spare = [gym.make("APIAgent-v0", disable_env_checker=True, **options, on_budget="record") for _ in range(6)]
    for env in spare:
        env.unwrapped.token_counter = policy.count
    branches = []
    original = trainer.rollout

    def rollout(policy, episodes, args, seed):
        branches.extend(episodes)
        assert [agent_gym.state_hash(b.env) for b in episodes] == [
            episode.steps[t - 1].state_hash for t in (3, 3, 4, 4)
        ]
        assert [b.env.unwrapped.cost_total["tool_calls"] for b in episodes] == [3.0, 3.0, 4.0, 4.0]
        original(policy, episodes, args, seed)

    monkeypatch.setattr(trainer, "rollout", rollout)
    before = (agent_gym.state_hash(episode.env), episode.env.unwrapped.cost_total)
    (found,), tokens = measured(
        policy, [episode], spare, interventions=("replace",), selection="uncertain", most_steps=2, replace_samples=2
    )
    assert (agent_gym.state_hash(episode.env), episode.env.unwrapped.cost_total) == before
    assert len(branches) == 4
    assert tokens == sum(len(b.logprobs) for b in branches) > 0
    for b, t in zip(branches, (3, 3, 4, 4), strict=True):
        assert b.done
        assert b.spans[0][0] == episode.spans[t][0]
        assert b.ids[: b.spans[0][0]] == episode.ids[: episode.spans[t][0]]
        assert b.cost_total["tool_calls"] >= t
    np.testing.assert_array_equal(np.isnan(found.u), [True, True, True, False, False, False])
    for t, own in ((3, branches[:2]), (4, branches[2:])):
        assert found.u[t] == 1.0 - np.mean([b.success for b in own])
        v = [[episode.cost_total[k] - b.cost_total[k] for k in CHANNELS] for b in own]
        np.testing.assert_allclose(found.v[t], np.mean(v, axis=0))
    assert found.u[5] == 1.0


# ---- the multipliers ----


def ascend(costs, bounds=(4.0, 100.0, 50.0, 400.0), start=0, **dual):
    state, args = trainer.DualState(), arguments(dual=dual)
    for iteration, cost in enumerate(costs, start=start):
        state.update(np.array(cost, dtype=float), np.array(bounds, dtype=float), iteration, args)
    return state


def test_dual_ascent():
    """e = 1, 0.1, 2, -0.5; m = 0.5 m + 0.5 e; lambda moves by 0.1 m, never below 0."""
    state = ascend([(8, 110, 150, 200)], warmup=0)
    np.testing.assert_allclose(state.lambdas, [0.05, 0.005, 0.1, 0.0])
    np.testing.assert_allclose(state.ema, [0.5, 0.05, 1.0, -0.25])
    state = ascend([(8, 110, 150, 200)] * 2, warmup=0)
    np.testing.assert_allclose(state.lambdas, [0.05 + 0.075, 0.005 + 0.0075, 0.1 + 0.15, 0.0])
    state = ascend([(8, 100, 50, 400), (0, 100, 50, 400)], warmup=0, ema=0.0, lr=0.2)  # up by 0.2, down by 0.2
    np.testing.assert_allclose(state.lambdas, [0.0] * 4, atol=1e-12)


def test_dual_warm_up():
    over = (8, 200, 100, 800)
    assert ascend([over] * 3, warmup=3).lambdas.tolist() == [0.0] * 4
    later = ascend([over] * 4, warmup=3)  # the average has gone on: 0.5, 0.75, 0.875, 0.9375
    np.testing.assert_allclose(later.lambdas, [0.09375] * 4)


def test_dual_bounds_fixed_and_single():
    assert ascend([(400, 200, 100, 800)] * 5, warmup=0, lambda_max=0.7).lambdas[0] == 0.7
    fixed = ascend([(1, 1, 1, 1)], bounds=(4, math.inf, 9, 400), warmup=9, fixed=0.3)
    assert fixed.lambdas.tolist() == [0.3, 0.0, 0.3, 0.3]
    single = ascend([(8, 200, 100, 800)] * 3, warmup=0, channels=("read_tokens",))
    assert single.lambdas[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    assert single.lambdas[2] > 0.1
    with np.errstate(all="raise"):
        free = ascend([(8, 200, 100, 800)] * 3, bounds=[math.inf] * 4, warmup=0)
    assert free.lambdas.tolist() == [0.0] * 4
    one = ascend([(8, 200, 100, 800)] * 3, bounds=(math.inf, 100, math.inf, math.inf), warmup=0, pid=True)
    assert one.lambdas[[0, 2, 3]].tolist() == [0, 0, 0]


def test_dual_pid():
    """kp m + sum of lr m + kd max(0, rise of m), by hand for two updates of e = 1 with rho = 0.5."""
    state = ascend([(8, 100, 50, 400)] * 2, warmup=0, pid=True, kp=0.5, kd=0.25)
    integral = 0.1 * 0.5 + 0.1 * 0.75
    assert state.lambdas[0] == pytest.approx(0.5 * 0.75 + integral + 0.25 * 0.25)
    falling = ascend([(8, 100, 50, 400), (2, 100, 50, 400)], warmup=0, pid=True, kp=0.5, kd=0.25)  # m = 0.5, then 0
    assert falling.lambdas[0] == pytest.approx(0.1 * 0.5)  # proportional 0, no derivative on the way down


# ---- the update ----


def improve(policy, episodes, signs, reference=None, lr=1e-3, **changes):
    args = arguments(**{"num_minibatches": 1, "update_epochs": 1, "kl_coef": 0.0, **changes})
    optimizer = torch.optim.AdamW(trainer.trainable(policy), lr=lr, weight_decay=0.0)
    steps = [
        np.full(len(e.steps), float(sign))
        for e, sign in zip(episodes, np.broadcast_to(signs, len(episodes)), strict=True)
    ]
    return trainer.update(policy, reference, optimizer, episodes, steps, args, 0)


def test_update_follows_the_sign(policy):
    episodes, _ = roll(policy, arguments(), n=6)
    before = mean_logp(policy, episodes)
    for sign in (1.0, -1.0):
        other = copy.deepcopy(policy)
        losses = improve(other, episodes, sign)
        assert sign * (mean_logp(other, episodes) - before) > 1e-3
        assert losses["losses/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert losses["losses/policy_loss"] == pytest.approx(-sign, abs=1e-6)
        assert losses["losses/sampler_gap_max"] < 1e-4
        assert losses["losses/clip_fraction"] == 0.0
    still = copy.deepcopy(policy)
    losses = improve(still, episodes, 0.0)
    assert losses["losses/grad_norm"] == 0.0
    assert mean_logp(still, episodes) == before


def test_update_prefers_what_did_better(policy):
    episodes, _ = roll(policy, arguments(), n=6)
    before = [np.mean(x) for x in scored(policy, episodes)]
    improve(policy, episodes, [1, -1, 1, -1, 1, -1], lr=1e-3)
    moved = [np.mean(x) - b for x, b in zip(scored(policy, episodes), before, strict=True)]
    assert np.mean(moved[::2]) > np.mean(moved[1::2])


def test_update_reference(policy):
    episodes, _ = roll(policy, arguments(), n=4)
    same = improve(copy.deepcopy(policy), episodes, 1.0, reference=copy.deepcopy(policy), kl_coef=0.1)
    assert same["losses/kl"] == pytest.approx(0.0, abs=1e-6)
    other = copy.deepcopy(policy)
    improve(other, episodes, 1.0)
    now = improve(copy.deepcopy(policy), episodes, 0.0, reference=other, kl_coef=0.1)
    gap = np.concatenate(scored(other, episodes)) - np.concatenate(scored(policy, episodes))
    assert now["losses/kl"] == pytest.approx(np.mean(np.exp(gap) - gap - 1), rel=1e-2)
    assert now["losses/grad_norm"] > 0.0


def staged(policy, monkeypatch, shift):
    """Log-probabilities that do not depend on the network: the new ones are the old plus ``shift``, and one parameter
    stands for all. Counts the passes with gradient."""
    one = trainer.trainable(policy)[0]
    passes = []

    def score(model, ids, spans, temperature, entropy_grad):
        tokens = sum(end - begin for row in spans for begin, end in row)
        old = torch.full((tokens,), -1.0)
        if not torch.is_grad_enabled():
            return old, torch.zeros(tokens), None
        passes.append(tokens)
        theta = one.flatten()[0]
        return old + shift + (theta - theta.detach()), torch.zeros(tokens), None

    monkeypatch.setattr(trainer, "score", score)
    return passes


@pytest.mark.parametrize(
    ("ratio", "sign", "loss", "gradient"),
    [
        (1.0, 1.0, -1.0, 1.0),
        (1.25, 1.0, -1.25, 1.25),
        (1.5, 1.0, -1.28, 0.0),
        (0.5, 1.0, -0.5, 0.5),
        (0.5, -1.0, 0.8, 0.0),
        (2.0, -1.0, 2.0, 2.0),
        (10.0, -1.0, 3.0, 0.0),
        (10.0, -2.0, 6.0, 0.0),
    ],
)
def test_update_clips(policy, monkeypatch, ratio, sign, loss, gradient):
    """PPO-clip with 0.2 below and 0.28 above, and the dual bound 3 for negative advantages."""
    episodes, _ = roll(policy, arguments(), n=2)
    staged(policy, monkeypatch, math.log(ratio))
    losses = improve(policy, episodes, sign)
    assert losses["losses/policy_loss"] == pytest.approx(loss, rel=1e-5)
    assert losses["losses/grad_norm"] == pytest.approx(gradient, rel=1e-4)
    assert losses["losses/ratio"] == pytest.approx(ratio, rel=1e-5)
    assert losses["losses/clip_fraction"] == float(not 0.8 <= ratio <= 1.28)


def test_update_loss_norm(policy, monkeypatch):
    episodes, _ = roll(policy, arguments(), n=3)
    tokens = sum(len(e.logprobs) for e in episodes)
    staged(policy, monkeypatch, 0.0)
    assert improve(policy, episodes, 1.0, loss_norm="tokens")["losses/grad_norm"] == pytest.approx(1.0, rel=1e-5)
    found = improve(policy, episodes, 1.0, loss_norm="constant", num_episodes=4, max_context=512)
    assert found["losses/grad_norm"] == pytest.approx(tokens / (4 * 512 / 8), rel=1e-5)


def test_update_target_kl(policy, monkeypatch):
    """A shift of 0.2 is a KL of exp(-0.2) + 0.2 - 1 = 0.0187 on every token."""
    episodes, _ = roll(policy, arguments(), n=4)
    for target, passes in ((None, 6), (0.02, 6), (0.018, 1)):
        with monkeypatch.context() as patch:
            seen = staged(policy, patch, 0.2)
            losses = improve(policy, episodes, 1.0, target_kl=target, update_epochs=3, num_minibatches=2)
        assert len(seen) == passes
        assert losses["losses/old_kl"] == pytest.approx(math.exp(-0.2) - 0.8, rel=1e-4)


def test_update_with_critics(policy):
    """The heads learn the reward and the cost still to come, relative to its bound."""
    critic = trainer.Policy(policy.model, policy.tokenizer, sees_tools=False, critic=True)
    episodes, _ = roll(critic, arguments(), n=4)
    args = arguments(critic=True, num_minibatches=1, kl_coef=0.0, max_grad_norm=100.0)
    target = trainer.returns(episodes, args)
    assert target.shape == (sum(len(e.steps) for e in episodes), 5)
    first = episodes[0]
    assert target[0].tolist() == pytest.approx(
        [first.success, *(first.cost_total[k] / getattr(args.budget, k) for k in CHANNELS)], abs=1e-4
    )
    optimizer = torch.optim.AdamW(trainer.trainable(critic), lr=5e-3, weight_decay=0.0)

    def error():
        with torch.no_grad():
            values = trainer.score(critic, [e.ids for e in episodes], [e.spans for e in episodes], 1.0)[2]
        assert values.shape == target.shape
        return float((values - target).square().mean())

    before = error()
    for _ in range(40):
        losses = trainer.update(critic, None, optimizer, episodes, [np.zeros(len(e.steps)) for e in episodes], args, 0)
        assert all(math.isfinite(x) for x in losses.values())
    assert error() < 0.5 * before


# ---- learning ----


def test_warm_start_learns(untrained, warmed, dialogues):
    policy, loss = warmed
    assert 270 < len(dialogues) <= 300  # some waste their turns until the limit
    data = [trainer.tokenized(policy, d) for d in dialogues[:20]]
    with torch.no_grad():
        before, after = (
            -float(trainer.score(p, [x for x, _ in data], [s for _, s in data], 1.0)[0].mean())
            for p in (untrained, policy)
        )
    assert before > 5.0
    assert loss < 1.2
    assert after < 1.2


def test_demonstrations_have_needless_calls_in_the_stated_share(dialogues):
    calls = {0.0: 0.0, 0.75: 0.0}
    for share in calls:
        played = list(trainer.demonstrations(make_env(), arguments(warm={"wasteful": share, "demonstrations": 60})))
        calls[share] = np.mean([len(d.turns) for d in played])
    oracle = []
    env = make_env()
    for i in range(60):
        env.reset(seed=trainer.stream(1, "demonstration task", i))
        oracle.append(len(env.unwrapped.oracle()))
    assert calls[0.0] == np.mean(oracle)
    assert calls[0.75] > calls[0.0] + 0.3


def test_rewarding_an_early_end_shortens_episodes(policy):
    """A bandit's check of the whole chain: +1 for the turn that ends an episode, -1 for the others."""
    args = arguments(num_minibatches=1, kl_coef=0.0)
    optimizer = torch.optim.AdamW(trainer.trainable(policy), lr=3e-3, weight_decay=0.0)
    turns = []
    for iteration in range(8):
        episodes, _ = roll(policy, args, n=16, seed=iteration)
        turns.append(np.mean([len(e.steps) for e in episodes]))
        signs = [np.array([1.0 if s.terminated else -1.0 for s in e.steps]) for e in episodes]
        trainer.update(policy, None, optimizer, episodes, signs, args, iteration)
    assert turns[0] > 2.0
    assert np.mean(turns[-2:]) < 0.7 * turns[0]


# ---- whole runs ----

SMALL_RUN = {
    "total_iterations": 8, "num_episodes": 8, "group_size": 4, "max_new_tokens": 32, "max_context": 320,
    "eval_episodes": 6, "checkpoint_every": 2, "log_every": 3, "seed": 3,
}  # fmt: skip
SMALL_GROUPS = {
    "budget": {"tool_calls": 1.0, "output_tokens": 30.0, "read_tokens": 20.0, "latency_ms": 60.0},
    "dual": {"warmup": 1},
    "credit": {"selection": "random", "most_steps": 3, "success_gate": False},  # so that costs move the policy
}


@pytest.fixture(scope="module")
def checkpoint(warmed, tmp_path_factory):
    """The briefly trained model as a folder to start from."""
    folder = tmp_path_factory.mktemp("init") / "warm"
    trainer.save(folder, warmed[0], arguments(), {})
    return str(folder)


def flags(run_dir, **changes):
    """SMALL_RUN as a command line."""
    line = []
    for name, value in {**SMALL_RUN, "run_dir": run_dir, "env_kwargs": json.dumps(ENV), **changes}.items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    for group, values in SMALL_GROUPS.items():
        for name, value in values.items():
            option = name.replace("_", "-")
            line += [f"--{group}.no-{option}"] if value is False else [f"--{group}.{option}", str(value)]
    return line


def shell():
    """The environment of a subprocess: this checkout, one thread, no network."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def rows(folder):
    """The metrics; neither NaN nor infinity is JSON."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def run(args):
    """``train`` in this process; its run folder."""
    before = set(Path(args.run_dir).glob("*"))
    trainer.train(args)
    (folder,) = set(Path(args.run_dir).glob("*")) - before
    return folder


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """A run that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("finished")
    settings = {"env_kwargs": json.dumps(ENV), "device": "cpu", "init": checkpoint, "run_dir": str(run_dir)}
    groups = {name: getattr(trainer, name.capitalize())(**values) for name, values in SMALL_GROUPS.items()}
    return run(trainer.Args(**settings, **SMALL_RUN, **groups))


def test_run_files(finished):
    for picture in ("dual.png", "credit_map.png"):
        data = (finished / picture).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 10_000
    result = json.loads((finished / "result.json").read_text())
    assert list(result["tables"]) == ["warm start", "final"]
    for table in result["tables"].values():
        assert all(low <= mean <= high for mean, low, high in table.values())
    table = (finished / "table.md").read_text()
    assert table.startswith("| | warm start | final |\n|---|---|---|\n")
    assert len(table.splitlines()) == 2 + len(result["tables"]["final"])
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == ["iteration_000008"]
    assert any((finished / "tensorboard").iterdir())
    history = rows(finished)
    assert [row["iteration"] for row in history] == list(range(8))
    assert all(math.isfinite(x) for row in history for x in row.values())
    assert history[-1]["charts/generated_tokens"] == result["generated_tokens"] > 0


def test_run_trajectories(finished):
    names = [p.name for p in sorted((finished / "trajectories").iterdir())]
    logged = [f"iteration_{i:06d}.jsonl" for i in (0, 3, 6, 7)]
    assert names == [*logged, "test_final.jsonl", "test_warm.jsonl"]
    history = rows(finished)
    for i in (0, 3, 6, 7):
        read = list(agent_gym.read_trajectories(finished / "trajectories" / f"iteration_{i:06d}.jsonl"))
        assert len(read) == 8
        assert len({t.task_id for t in read}) == 2
        assert np.mean([t.cost_total["tool_calls"] for t in read]) == pytest.approx(history[i]["cost/tool_calls"])
        assert np.mean([t.success for t in read]) == pytest.approx(history[i]["charts/success"])
        assert all(len(s.action_ids) == len(s.logprobs) for t in read for s in t.steps)
    warm, final = (
        list(agent_gym.read_trajectories(finished / "trajectories" / f"test_{x}.jsonl")) for x in ("warm", "final")
    )
    assert [t.task_id for t in warm] == [t.task_id for t in final]
    assert all(t.task_id.startswith("test") for t in warm)
    result = json.loads((finished / "result.json").read_text())
    share = np.mean([t.cost_total["tool_calls"] for t in final])
    assert result["tables"]["final"]["mean tool_calls"][0] == pytest.approx(share)


def test_pictures_of_whatever_a_model_writes(tmp_path, recwarn):
    one = {"iteration": 0, "task_id": "train-1", "success": True, "u": [1.0, None], "v": [[1, 2, 3, 4], [None] * 4]}
    trainer.draw_credits([{**one, "steps": ["answer: $x_{$", "a\x01\n\u2026"]}], tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert [str(w.message) for w in recwarn] == []


def test_run_multipliers(finished):
    """The logged multipliers follow from the logged costs."""
    args, state = trainer.read_args(finished / "args.json"), trainer.DualState()
    for row in rows(finished):
        cost = np.array([row[f"cost/{k}"] for k in CHANNELS])
        state.update(cost, np.array([1.0, 30.0, 20.0, 60.0]), row["iteration"], args)
        np.testing.assert_allclose([row[f"lambda/{k}"] for k in CHANNELS], state.lambdas, atol=1e-12)
        assert row["budget/tool_calls"] == 1.0
    assert max(row["lambda/tool_calls"] for row in rows(finished)) > 0.0
    assert all(row["losses/grad_norm"] > 1e-3 for row in rows(finished)[2:])


def test_killed_and_resumed(finished, checkpoint, tmp_path):
    """The script is interrupted after its third row and resumed here: the rows are those of the undisturbed run,
    digit by digit. (What came after the last checkpoint is done again.)"""
    # the signal comes from a thread of the same process: on a busy machine another one may be too late
    interrupted = """
import os, pathlib, runpy, signal, sys, threading, time

def watch():
    while not any(path.read_text().count("\\n") >= 3 for path in pathlib.Path().glob("*/metrics.jsonl")):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    line = [sys.executable, "-c", interrupted, str(SCRIPT), *flags(tmp_path, device="cpu", init=checkpoint)]
    process = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    errors = process.stderr
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted; continue with --resume" in errors
    (folder,) = tmp_path.glob("*/")
    assert 3 <= len(rows(folder)) < 8
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 7, "charts/suc')  # a row that a crash cut off
    before = trainer.read_args(folder / "args.json")
    assert before == replace(trainer.read_args(finished / "args.json"), run_dir=str(tmp_path))

    trainer.train(trainer.Args(resume=str(folder), seed=99, total_iterations=1))
    assert trainer.read_args(folder / "args.json") == before
    assert [row["iteration"] for row in rows(folder)] == list(range(8))
    assert rows(folder) == rows(finished)
    tables = [json.loads((f / "result.json").read_text()) for f in (folder, finished)]
    assert tables[0] == tables[1]


def test_killed_in_the_middle_of_a_checkpoint(finished, checkpoint, tmp_path, monkeypatch):
    """Half a checkpoint is no checkpoint: the run continues from the one before."""
    args = replace(trainer.read_args(finished / "args.json"), run_dir=str(tmp_path))

    def die(state, path):
        if state["iteration"] == 4:
            raise KeyboardInterrupt
        torch_save(state, path)

    torch_save = torch.save
    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(args)
    monkeypatch.undo()
    (folder,) = tmp_path.glob("*/")
    assert len(rows(folder)) == 4
    assert [p.name for p in sorted((folder / "checkpoints").glob("[!.]*"))] == ["iteration_000002"]
    trainer.train(trainer.Args(resume=str(folder)))
    assert rows(folder) == rows(finished)
    assert [p.name for p in sorted((folder / "checkpoints").glob("[!.]*"))] == ["iteration_000008"]


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (rows(finished), (finished / "table.md").read_text())
    trainer.train(trainer.Args(resume=str(finished)))
    assert (rows(finished), (finished / "table.md").read_text()) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lagrangian", "critic": True, "budget": {"latency_ms": math.inf}},
        {"method": "truncation", "loss_norm": "constant", "update_epochs": 2},
        {
            "credit": {
                "interventions": ("delete", "truncate", "swap", "replace"),
                "selection": "uncertain",
                "most_steps": 2,
            }
        },
    ],
    ids=["critic", "truncation", "all interventions"],
)
def test_variants_start_from_a_checkpoint(checkpoint, tmp_path, changes, recwarn):
    settings = {**SMALL_RUN, "total_iterations": 2, "eval_episodes": 2, "device": "cpu", "run_dir": str(tmp_path)}
    folder = run(arguments(init=checkpoint, **{**settings, **changes}))
    history = rows(folder)
    assert len(history) == 2
    assert all(math.isfinite(x) for row in history for x in row.values())
    assert history[0]["losses/ratio"] == pytest.approx(1.0, abs=0.2)
    text = (folder / "args.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["budget"]["read_tokens"] == "inf"
    assert trainer.read_args(folder / "args.json") == arguments(init=checkpoint, **{**settings, **changes})
    bounds = {"tool_calls": 2, "output_tokens": 48} | ({} if changes.get("critic") else {"latency_ms": 200})
    for path in folder.glob("trajectories/*.jsonl"):
        for t in agent_gym.read_trajectories(path):
            assert t.env_kwargs["budget"] == bounds
            options = {"task": t.task_id}
            assert make_env(split=t.env_kwargs["split"]).reset(options=options)[1]["task_hash"] == t.task_hash
    if changes.get("critic"):
        assert [row["budget/latency_ms"] for row in history] == [-1.0, -1.0]
        assert [row["lambda/latency_ms"] for row in history] == [0.0, 0.0]
    if changes.get("method") == "truncation":
        assert all(row["cost/tool_calls"] <= 5.0 for row in history)  # the call that goes over is the last
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_episodes_that_a_wrapper_cuts_are_dropped_and_counted(checkpoint, tmp_path):
    """They have no verdict: neither a failure nor a success."""
    settings = {**SMALL_RUN, "total_iterations": 1, "eval_episodes": 0, "device": "cpu", "run_dir": str(tmp_path)}
    limited = json.dumps({**ENV, "max_episode_steps": 3})
    (row,) = rows(run(arguments(init=checkpoint, env_kwargs=limited, **settings)))
    (path,) = tmp_path.glob("*/trajectories/iteration_000000.jsonl")
    kept = list(agent_gym.read_trajectories(path))
    assert 0 < len(kept) == 8 - row["charts/infra"] < 8
    assert all(t.verdict is not None and t.reward is not None and t.steps[-1].terminated for t in kept)
    assert row["charts/success"] == np.mean([t.success for t in kept])


def test_nothing_but_cut_episodes(policy, monkeypatch, refused, checkpoint):
    """The sentence says what happened to them."""
    look = [*policy.encode(call("get_order", order_id="O2001")), policy.eos]

    def rollout(policy, episodes, args, seed):
        for episode in episodes:
            trainer.advance(policy, episode, look, [-0.5] * len(look), 0.0, 10_000)

    monkeypatch.setattr(trainer, "rollout", rollout)
    text = refused(env_kwargs=json.dumps({**ENV, "max_episode_steps": 1}), init=checkpoint, eval_episodes=0)
    assert text == "iteration 0: no episode reached a verdict (cut by a wrapper)"


def test_a_run_from_before_a_channel_is_refused(finished, checkpoint, tmp_path):
    """Its figures mean something else."""
    old = json.loads((finished / "args.json").read_text())
    del old["budget"]["read_tokens"]
    (tmp_path / "args.json").write_text(json.dumps(old))
    text = sentence(trainer.Args(resume=str(tmp_path)))
    assert text == f"{tmp_path}: this run is from before the cost channel read_tokens and cannot go on; start a new one"
    shutil.copytree(checkpoint, tmp_path / "old")
    state = torch.load(tmp_path / "old" / "trainer.pt", weights_only=False)
    state["values"] = torch.nn.Linear(32, 4).state_dict()
    torch.save(state, tmp_path / "old" / "trainer.pt")
    assert trainer.load(tmp_path / "old", arguments(), torch.device("cpu"))[0].values is None
    with pytest.raises(SystemExit, match="value heads from before there was the cost channel read_tokens"):
        trainer.load(tmp_path / "old", arguments(critic=True), torch.device("cpu"))


def test_bounds_follow_the_environment():
    """A preset's bounds, and none where it has none; what is given stands."""
    for env_id, bounds in [
        ("APIAgent-v0", [2, 48, math.inf, 200]),
        ("CodeAgent-v0", [1.5, 48, 28, 60]),
        ("SomethingElse-v0", [math.inf] * 4),
    ]:
        args = trainer.Args(env_id=env_id)
        trainer.settle(args, torch.device("cpu"))
        assert trainer.bounds_of(args) == dict(zip(CHANNELS, bounds, strict=True))
    args = trainer.Args(env_id="CodeAgent-v0", budget=trainer.Budget(read_tokens=math.inf, tool_calls=9))
    trainer.settle(args, torch.device("cpu"))
    assert list(trainer.bounds_of(args).values()) == [9, 48, math.inf, 60]


def test_a_figure_that_is_not_defined_is_no_number(tmp_path):
    log = trainer.Log(tmp_path, arguments(), [])
    log.add({"iteration": 0, "charts/success": 0.5, "credit/u_mean": math.nan, "losses/kl": math.inf})
    log.close()
    assert rows(tmp_path) == log.rows == [{"iteration": 0, "charts/success": 0.5}]
    table = {"success@1": (math.nan, 0.0, 1.0), "bound": math.inf, "n": [1, True, None, "NaN"]}
    assert trainer.dumps(table) == '{"success@1": [null, 0.0, 1.0], "bound": "inf", "n": [1, true, null, "NaN"]}'


def test_a_run_cut_off_before_its_first_checkpoint_starts_from_its_warm_start(tmp_path):
    """The tiny model from scratch; what the warm start made is kept, and the rest is done again."""
    settings = {**SMALL_RUN, "total_iterations": 1, "eval_episodes": 2, "device": "cpu", "run_dir": str(tmp_path)}
    folder = run(arguments(**settings, warm={"updates": 3, "demonstrations": 40}))
    first, before = rows(folder), json.loads((folder / "result.json").read_text())
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["iteration_000001", "warm"]
    policy, _ = trainer.load(
        folder / "checkpoints" / "warm", trainer.read_args(folder / "args.json"), torch.device("cpu")
    )
    assert 0.9e6 < sum(p.numel() for p in policy.parameters()) < 1.2e6
    shutil.rmtree(folder / "checkpoints" / "iteration_000001")
    (folder / "result.json").unlink()
    trainer.train(trainer.Args(resume=str(folder)))
    assert rows(folder) == first
    assert json.loads((folder / "result.json").read_text()) == before


def test_a_loaded_policy_samples_what_the_saved_one_did(warmed, checkpoint):
    """Digit by digit: weights mapped from a file round differently, unless they are copied."""
    loaded, _ = trainer.load(Path(checkpoint), arguments(), torch.device("cpu"))
    assert {p.data_ptr() % 64 for p in loaded.parameters()} == {0}
    for seed in range(5):
        (one, _), (other, _) = (roll(p, arguments(), n=5, seed=seed) for p in (copy.deepcopy(warmed[0]), loaded))
        assert [e.logprobs for e in one] == [e.logprobs for e in other]
        assert [e.entropies for e in one] == [e.entropies for e in other]


# ---- two processes ----

TWO = """
import hashlib, importlib.util, os, sys
spec = importlib.util.spec_from_file_location("ppo_c3rl", sys.argv.pop(1))
trainer = importlib.util.module_from_spec(spec)
sys.modules["ppo_c3rl"] = trainer
spec.loader.exec_module(trainer)
import torch.distributed as dist
import tyro
torch = trainer.torch
torch.manual_seed(int(os.environ["RANK"]))  # nothing may depend on what the process did before
out = sys.argv.pop(1)
save = trainer.save
def record(folder, policy, args, state):
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in policy.parameters())).hexdigest()
    mean = trainer.all_mean([float(trainer.rank()), float("nan")])[0]
    with open(f"{out}.{trainer.rank()}", "a") as file:
        file.write(f"{folder.name} {digest} {len(trainer.trainable(policy))} {mean}\\n")
    save(folder, policy, args, state)
trainer.save = record
trainer.train(tyro.cli(trainer.Args))
dist.destroy_process_group()
"""


def test_two_processes(untrained, tmp_path):
    """A model from a folder, with adapters and value heads, whose starting values are drawn."""
    model = tmp_path / "model"
    untrained.model.save_pretrained(model)
    untrained.tokenizer.save_pretrained(model)
    (tmp_path / "two.py").write_text(TWO)
    out = tmp_path / "digests"
    line = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(tmp_path / "two.py"), str(SCRIPT), str(out),
        *flags(tmp_path / "runs", device="cpu", model=model, lora_rank=2, total_iterations=2, eval_episodes=2),
        "--critic", "--warm.updates", "3", "--warm.demonstrations", "60",
    ]  # fmt: skip
    done = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ([line.split() for line in Path(f"{out}.{r}").read_text().splitlines()] for r in (0, 1))
    assert [line[0] for line in first] == ["warm", "iteration_000002"]
    assert first == second
    assert first[0][1] != first[1][1]
    assert {line[3] for line in first} == {"0.5"}
    (folder,) = (tmp_path / "runs").glob("*/")
    history = rows(folder)
    assert [row["iteration"] for row in history] == [0, 1]
    assert history[0]["losses/ratio"] == pytest.approx(1.0, abs=0.2)
    (read,) = (list(agent_gym.read_trajectories(p)) for p in folder.glob("trajectories/iteration_000000.jsonl"))
    assert len(read) == 4  # the other four are the other process's


# ---- wrong input ----


def sentence(args):
    """What a run that cannot work ends with: one sentence."""
    with pytest.raises(SystemExit) as ended:
        trainer.train(args)
    text = ended.value.code
    assert text.startswith("ppo_c3rl: ")
    assert "\n" not in text
    return text.removeprefix("ppo_c3rl: ")


@pytest.fixture
def refused(tmp_path):
    def ask(**changes):
        return sentence(arguments(**{"device": "cpu", "run_dir": str(tmp_path / "runs"), "num_episodes": 4, **changes}))

    return ask


def test_wrong_env(refused):
    assert refused(env_kwargs="{difficulty: 1}").startswith("--env-kwargs is not valid JSON: ")
    assert refused(env_kwargs="[1]").startswith("--env-kwargs must be a JSON object")
    assert "has no keyword argument 'colour'" in refused(env_kwargs='{"colour": 1}')
    assert refused(env_kwargs='{"difficulty": 99}').startswith("cannot make APIAgent-v0: difficulty=99")
    assert refused(env_id="Nothing-v0").startswith("cannot make Nothing-v0: ")
    assert refused(env_id="no.such.module:Nothing-v0").startswith("cannot make no.such.module:Nothing-v0: ")


def test_wrong_numbers(refused):
    assert refused(budget={"tool_calls": -1.0}) == "--budget.tool-calls must be 0 or more, not -1.0"
    assert refused(budget={"latency_ms": math.nan}) == "--budget.latency-ms must be 0 or more, not nan"
    assert refused(num_episodes=6) == "--num-episodes 6 is no multiple of --group-size 4 x 1 processes"
    assert refused(num_episodes=0) == "--num-episodes must be 1 or more, not 0"
    assert refused(group_size=0) == "--group-size must be 1 or more, not 0"
    assert refused(temperature=0.0) == "--temperature must be above 0, not 0.0"
    assert refused(budget={"read_tokens": -0.5}) == "--budget.read-tokens must be 0 or more, not -0.5"
    for slack in (0.0, math.inf, math.nan):
        assert refused(truncation_slack=slack) == f"--truncation-slack must be a number above 0, not {slack}"
    text = refused(dual={"channels": ("tool_calls", "euros")})
    assert (
        text
        == "--dual.channels: unknown ['euros']; the channels are tool_calls, output_tokens, read_tokens, latency_ms"
    )


def test_wrong_folders(refused, checkpoint, tmp_path):
    assert "there is no run in this folder" in refused(resume=str(tmp_path / "nothing"))
    assert "there is no run in this folder" in refused(resume=str(tmp_path))
    assert "is not a checkpoint of this trainer" in refused(init=str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(run_dir=str(tmp_path / "file" / "runs"))
    assert "holds --model tiny with --lora-rank 16, not tiny with 8" in refused(init=checkpoint, lora_rank=8)
    assert "holds --model tiny with --lora-rank 16, not smollm2-135m with 16" in refused(
        init=checkpoint, model="smollm2-135m"
    )


def test_wrong_model(refused, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(model="nonexistent/path").startswith("--model nonexistent/path: cannot be loaded (")
    assert refused(model=str(tmp_path / "nothing")).startswith(f"--model {tmp_path}/nothing: cannot be loaded (")


def test_missing_extras(refused, monkeypatch, tmp_path):
    """Said before anything is trained."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert refused(track=True) == "--track needs Weights & Biases: pip install 'agent-gym[wandb]'"
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'agent-gym[smollm2]'" in refused(model="smollm2-135m")
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_no_demonstration_fits(refused):
    text = refused(max_context=20, warm={"updates": 1, "demonstrations": 5})
    assert text.startswith("no demonstration was solved within --max-context 20 tokens")


def test_wrong_input_on_the_command_line(tmp_path):
    line = [sys.executable, str(SCRIPT), *flags(tmp_path), "--budget.tool-calls", "-1"]
    done = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ppo_c3rl: --budget.tool-calls must be 0 or more, not -1.0\n"
    assert list(tmp_path.iterdir()) == []
