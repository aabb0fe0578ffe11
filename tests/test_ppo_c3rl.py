"""The trainer: credits, advantages, multipliers, the update in one process and in several, whole runs, wrong input."""

import copy
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from shop_play import REFUND, call, task, turn, write_tasks
from shop_play import TASKS as SHOP_TASKS

torch = pytest.importorskip("torch", reason="the trainer needs the extra 'train'")
pytest.importorskip("transformers", reason="the trainer needs the extra 'train'")

import gymnasium as gym  # noqa: E402
from small_lm import ROOT, Scripted, chat_of, load_trainer, processes, rows, run, shell, small_model  # noqa: E402

import agent_gym  # noqa: E402
from agent_gym import CHANNELS, Step  # noqa: E402
from agent_gym.lm.arguments import model_of  # noqa: E402
from agent_gym.lm.budget import Budget  # noqa: E402
from agent_gym.lm.demonstrations import WarmStart, demonstrations, encoded, warm_start  # noqa: E402
from agent_gym.lm.engine import TorchEngine  # noqa: E402
from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.models import load, token_logprobs  # noqa: E402
from agent_gym.lm.ranks import Ranks  # noqa: E402
from agent_gym.lm.rollout import Episode, Limits, environments, play  # noqa: E402
from agent_gym.lm.runs import arguments as parse  # noqa: E402
from agent_gym.lm.tiny import preset  # noqa: E402

SCRIPT = ROOT / "cleanrl_llm" / "ppo_c3rl.py"
ENV = {"difficulty": [1, 2], "domains": ["shop"], "max_turns": 6}
trainer = load_trainer("ppo_c3rl")
ALONE = Ranks()


pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(**changes):
    """Small settings; ``credit=``, ``dual=``, ``warm=`` and ``budget=`` take dictionaries."""
    warm = {"updates": 150, "demonstrations": 300, "batch_size": 16, "lr": 1e-2} | changes.pop("warm", {})
    groups = {
        "budget": Budget(**changes.pop("budget", {})),
        "credit": trainer.Credit(**changes.pop("credit", {})),
        "dual": trainer.Dual(**changes.pop("dual", {})),
        "warm": WarmStart(**warm),
    }
    small = {
        "model": "tiny",
        "env_kwargs": json.dumps(ENV),
        "max_new_tokens": 40,
        "max_context": 512,
        "num_episodes": 8,
    }
    args = trainer.Args(**{**small, **groups, **changes})
    trainer.settle(args, ALONE)
    return args


@pytest.fixture(scope="module")
def dialogues():
    env = gym.make("APIAgent-v0", split="train", **ENV)
    return demonstrations(env, range(300), wasteful=0.75, waste=0.35)


@pytest.fixture(scope="module")
def untrained(dialogues):
    return small_model(text for dialogue in dialogues for text in dialogue.texts)


@pytest.fixture(scope="module")
def warmed(untrained, dialogues):
    """Briefly trained."""
    model = copy.deepcopy(untrained)
    examples = [encoded(chat_of(model), dialogue) for dialogue in dialogues]
    warm_start(model, examples, arguments().warm, context=512, most_tokens=8192, seed=1, ranks=ALONE)
    return model


@pytest.fixture
def model(warmed):
    return copy.deepcopy(warmed)


def made(chat, count, **changes):
    kwargs = {"split": "train", "bounds": {}, **ENV, **changes}
    if "tasks" in kwargs:
        del kwargs["difficulty"]
    return environments("APIAgent-v0", count, chat=chat, **kwargs)


def roll(model, n=8, seed=5):
    """``n`` episodes on different tasks."""
    chat = chat_of(model)
    seeds = [100 + i for i in range(n)]
    draws = [1000 * seed + i for i in range(n)]
    return play(TorchEngine(model, stops=chat.stops), chat, made(chat, n), seeds, Limits(40, 512), draws=draws)


def scored(model, episodes):
    """The full forward pass, log-probabilities of all model tokens."""
    with torch.no_grad():
        return token_logprobs(model, [e.ids for e in episodes], [e.spans for e in episodes]).logprobs.numpy()


# ---- z, leave-one-out, GAE ----


def z(values):
    return trainer.z(np.array(values, dtype=float), ALONE)


def test_z():
    nan = math.nan
    np.testing.assert_allclose(z([1.0, nan, 3.0, nan]), [-1.0, 0.0, 1.0, 0.0])
    assert z([5.0, 5.0, nan]).tolist() == [0.0, 0.0, 0.0]
    assert z([2.0, 2.0 + 1e-7]).tolist() == [0.0, 0.0]
    assert z([nan, nan]).tolist() == [0.0, 0.0]
    assert z([]).tolist() == []
    far = z([0.0] * 99 + [1000.0])
    assert far[-1] == 3.0  # 9.9 standard deviations
    assert far[0] == pytest.approx(-10.0 / math.sqrt(1e6 / 100 - 100.0))
    assert z([0.0] * 99 + [-1000.0])[-1] == -3.0


def test_relative_is_leave_one_out():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(9, 2)), [1, 1, 2, 2, 2, 1, 3, 4, 1]
    expected = np.zeros_like(values)
    for i, g in enumerate(groups):
        others = [values[j] for j in range(9) if groups[j] == g and j != i]
        if others:
            expected[i] = values[i] - np.mean(others, axis=0)
    np.testing.assert_allclose(trainer.relative(values, groups), expected)
    np.testing.assert_allclose(trainer.relative(np.array([1.0, 0.0, 1.0]), [1, 1, 2]), [1.0, -1.0, 0.0])


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae(lam):
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    following = np.vstack([values[1:], np.zeros((1, 3))])
    delta = rewards + following - values
    expected = [sum(lam**i * delta[t + i] for i in range(5 - t)) for t in range(5)]
    np.testing.assert_allclose(trainer.gae(rewards, values, lam), expected)


# ---- advantages ----


def hand_made(seed, success, costs, terminated=True):
    """An episode of which only verdict and costs are given."""
    steps = [Step("", "", dict(zip(CHANNELS, map(float, cost), strict=True)), [], "") for cost in costs]
    steps[-1] = replace(steps[-1], terminated=terminated)
    total = {k: sum(s.cost[k] for s in steps) for k in CHANNELS}
    verdict = {"status": "pass" if success else "fail", "reason": ""}
    return Episode(0, "", {}, f"task {seed}", "", "", seed, [], total, "", steps=steps, verdict=verdict)


PAIR = [hand_made(1, True, [(1, 10, 30, 100), (1, 20, 0, 200)]), hand_made(1, False, [(1, 10, 5, 50)])]
CREDITS = [([0.0, 1.0], [[1, 7, 4, 9], [3, 8, 0, 2]]), ([math.nan], [[5, 1, 2, 1]])]
BOUNDS = np.array([4.0, 120.0, 60.0, 400.0])


def advantage(args, lambdas=(0.5, 0.0, 0.0, 0.0), episodes=PAIR, bounds=BOUNDS, values=None, states=None):
    credits = [trainer.Credits(np.array(u), np.array(v, dtype=float)) for u, v in CREDITS]
    lambdas, bounds = np.array(lambdas, dtype=float), np.array(bounds)
    found = trainer.advantages(episodes, credits, values, states, lambdas, bounds, args, ALONE)
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


def test_advantage_of_the_whole_episodes_cost():
    """The ablation: u as measured, the episodes' relative calls (1 and -1) in place of v."""
    found = advantage(arguments(credit={"cost": "trajectory"}))
    np.testing.assert_allclose(found, [(1 - 1 - 0.5) / 1.5, (1 + 1 - 0.5) / 1.5, -1 / 1.5])


def test_advantage_step_groups():
    """Steps of one task in one state are compared: of three in state a, one failed; alone in its state, a step has the
    episode's reward only; an equal state of another task is another."""
    episodes = [*PAIR, hand_made(2, True, [(1, 1, 1, 1)]), hand_made(2, False, [(1, 1, 1, 1)])]
    states = [["a", "b"], ["a"], ["a"], ["c"]]
    args = arguments(method="stepgroup", credit={"weight": 0.5})
    found = advantage(args, lambdas=(3, 3, 3, 3), episodes=episodes, states=states)
    z_step = np.array([1.0, 0.0, -1.0, 0.0, 0.0]) / math.sqrt(2 / 5)
    np.testing.assert_allclose(found, np.array([1.0, 1.0, -1.0, 1.0, -1.0]) + 0.5 * z_step)


def test_advantage_penalty():
    """R - 0.3 mean_k C_k / B_k over the bounded channels; multipliers play no part."""
    episodes = [*PAIR, hand_made(2, True, [(2, 10, 10, 10)]), hand_made(2, True, [(4, 10, 10, 10)])]
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
    found_rows = []
    for e, value in zip(PAIR, values, strict=True):
        flow = np.array([[0.0, *(s.cost[k] / b for k, b in zip(CHANNELS, BOUNDS, strict=True))] for s in e.steps])
        flow[-1, 0] = e.success
        delta = flow + np.vstack([value[1:], np.zeros((1, 5))]) - value
        found_rows += [delta[0] + 0.9 * delta[1], delta[1]] if len(delta) == 2 else [delta[0]]
    normal = (np.array(found_rows) - np.mean(found_rows, axis=0)) / np.std(found_rows, axis=0)
    found = advantage(arguments(method="lagrangian", critic=True, gae_lambda=0.9), values=values)
    np.testing.assert_allclose(found, (normal[:, 0] - 0.5 * normal[:, 1]) / 1.5)
    found = advantage(arguments(critic=True, gae_lambda=0.9), values=values)
    np.testing.assert_allclose(found, (normal[:, 0] + [-1, 1, 0] + np.array([0.5 * Z_V, 0, 0])) / 1.5)


# ---- counterfactual credit ----

FIND, ORDERS, REFUNDED = (turn(one) for one in REFUND)
LOOK, PRODUCT = call("get_order", order_id="O2001"), call("get_product", product_id="P3001")
WASTEFUL = [FIND, ORDERS, LOOK, PRODUCT, REFUNDED, "Done."]


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    """Keyword arguments of an environment with one task: find, orders, refund."""
    return {
        "tasks": write_tasks(tmp_path_factory.mktemp("tasks") / "cascade.jsonl", SHOP_TASKS[:1]), "max_turns": 8,
    }  # fmt: skip


def played(model, kwargs, *texts, logprobs=None):
    """Episodes of given turns, of one group."""
    chat = chat_of(model)
    engine = Scripted(chat, texts, logprobs)
    limits = Limits(10_000, 20_000)
    return play(engine, chat, made(chat, len(texts), **kwargs), [0] * len(texts), limits, draws=[0] * len(texts))


BUDGET = dict(zip(CHANNELS, BOUNDS.tolist(), strict=True))


def measured(model, kwargs, episodes, /, seed=3, ways=None, **credit):
    """By leave-one-out, unless another mode is asked for."""
    chat = chat_of(model)
    engine, envs = TorchEngine(model, stops=chat.stops), made(chat, 3, **kwargs)
    args = arguments(credit={"mode": "leave-one-out", **credit})
    return trainer.measure(episodes, envs, engine, chat, BUDGET, {} if ways is None else ways, args, ALONE, seed)


def spent(episode, *steps):
    return [sum(episode.steps[t].cost[k] for t in steps) for k in CHANNELS]


def test_delete_with_grounding(untrained, cascade):
    """A needless read is worth nothing and costs what it cost; a necessary one carries all that hangs on it."""
    (episode,) = played(untrained, cascade, WASTEFUL)
    assert (episode.success, episode.cost_total["tool_calls"]) == (1.0, 5.0)
    (found,), tokens = measured(untrained, cascade, [episode])
    assert tokens == 0
    assert found.u.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    expected = [spent(episode, 0, 1, 2, 4), spent(episode, 1, 2, 4), *(spent(episode, t) for t in (2, 3, 4)), [0.0] * 4]
    np.testing.assert_allclose(found.v, expected, atol=2e-3)


def test_delete_without_grounding(untrained, cascade):
    """Re-issued literally, the suffix knows what it never read, so reads look worthless."""
    (episode,) = played(untrained, cascade, WASTEFUL)
    (found,), _ = measured(untrained, cascade, [episode], grounding=False)
    assert found.u.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    np.testing.assert_allclose(found.v, [*(spent(episode, t) for t in range(5)), [0.0] * 4], atol=2e-3)


def test_delete_in_a_failed_episode(untrained, cascade):
    """Nothing can be lost; the answer is worth the reward, 0, and what it may cost is not known."""
    (found,), _ = measured(untrained, cascade, played(untrained, cascade, [FIND, PRODUCT, "Done."]))
    assert found.u.tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(found.v[-1]).all()


def test_delete_blocks(untrained, cascade):
    """Two neighbours at a time share their block's credit; the last block ends before the answer, which would otherwise
    make needless steps before it look necessary."""
    (episode,) = played(untrained, cascade, [FIND, ORDERS, REFUNDED, LOOK, PRODUCT, "Done."])
    (found,), _ = measured(untrained, cascade, [episode], block=2)
    # blocks: 0-1 (u 1), 1-2 (1), 2-3 (1), 3-4 (0), 4 (0); a step has the mean of its shares
    assert found.u.tolist() == [0.5, 0.5, 0.5, 0.25, 0.0, 1.0]
    np.testing.assert_allclose(found.v[4], spent(episode, 4), atol=2e-3)


def test_blocks_charge_no_more_than_was_spent(untrained, cascade):
    """Five reads of which nothing hangs on another: their credits add up to what they cost, whatever the block."""
    (episode,) = played(untrained, cascade, [LOOK, PRODUCT, FIND, LOOK, PRODUCT, "No."])
    for block in (1, 2, 3):
        (found,), _ = measured(untrained, cascade, [episode], block=block)
        np.testing.assert_allclose(found.v[:-1].sum(axis=0)[:3], spent(episode, *range(5))[:3], atol=1e-6)
    np.testing.assert_allclose(
        trainer.shares(np.array([4.0, 3.0]), np.array([[1.0, 0.0], [3.0, 0.0]])), [[1.0, 1.5], [3.0, 1.5]]
    )


def test_truncate(untrained, cascade):
    """The earliest cut that still passes earns the reward; what follows it was only paid for."""
    (episode,) = played(untrained, cascade, [FIND, ORDERS, REFUNDED, LOOK, PRODUCT, "Done."])
    (found,), _ = measured(untrained, cascade, [episode], interventions=("truncate",))
    np.testing.assert_array_equal(found.u, [math.nan, math.nan, 1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(
        found.v, [*[[math.nan] * 4] * 3, spent(episode, 3), spent(episode, 4), [0.0] * 4], atol=2e-3
    )


def test_swap(untrained, cascade):
    """Looking up somebody else loses the customer, and with her all that followed."""
    other = call("find_customer", email="moe@mail.com")
    episodes = played(untrained, cascade, [FIND, ORDERS, REFUNDED, "Done."], [other, "No."])
    (found, failed), _ = measured(untrained, cascade, episodes, interventions=("swap",))
    np.testing.assert_array_equal(found.u, [1.0, math.nan, math.nan, 1.0])  # no other action of the other tools
    tokens = spent(episodes[0], 0, 1, 2)[1] - chat_of(untrained).count(other)  # the other look-up was paid for
    np.testing.assert_allclose(found.v[0][:2], [2.0, tokens])
    np.testing.assert_array_equal(failed.u, [0.0, 0.0])


def test_calls_that_did_not_run_are_no_calls(untrained, cascade):
    """Neither for a swap, nor on the map."""
    late = turn(("submit", {"answer": "x"}), ("get_order", {"order_id": "O2001"}))
    (episode,) = played(untrained, cascade, [FIND, late])
    step = episode.steps[-1]
    assert [(r["name"], r["error"]) for r in step.tool_results] == [("submit", None), ("get_order", "not_run")]
    assert trainer.first_tool(step) == "submit"
    assert trainer.first_tool(replace(step, tool_results=step.tool_results[1:])) is None
    (found,), _ = measured(untrained, cascade, [episode])
    (env,) = made(chat_of(untrained), 1, **cascade)
    assert trainer.credit_map(0, episode, found.u, found.v, [], env)["steps"][1] == "submit(x)"


def test_selection(untrained, cascade):
    """The chosen steps come first, and with them the replays that the cap lets through."""
    (episode,) = played(untrained, cascade, WASTEFUL, logprobs=[[-0.2, -0.9, -0.1, -1.8, -0.3, -5.0]])

    def chosen(**credit):
        (found,), _ = measured(untrained, cascade, [episode], **credit)
        there = ~np.isnan(found.u)
        assert (there == ~np.isnan(found.v).any(axis=1)).all()
        return np.flatnonzero(there).tolist()

    assert chosen(selection="uncertain", most_steps=2) == [1, 3, 5]  # the answer needs no replay
    assert chosen(selection="uncertain", most_steps=3) == [1, 3, 4, 5]
    assert chosen(selection="all", most_steps=1) == [0, 1, 2, 3, 4, 5]
    assert chosen(selection="uncertain", most_steps=5, most_interventions=1) == [3, 5]
    assert chosen(selection="uncertain", most_steps=5, most_interventions=3) == [1, 3, 4, 5]
    drawn = {tuple(chosen(selection="random", most_steps=2, seed=s)) for s in range(8)}
    assert all(len(steps) == 3 and steps[-1] == 5 for steps in drawn)
    assert len(drawn) > 1


def test_answers_are_measured_against_the_cheapest_that_passed(untrained, cascade):
    """Waste cannot hide in the last step: a long answer and calls before ``submit`` cost what a short one does not."""
    work = [FIND, ORDERS, REFUNDED]
    many = turn(*[("get_order", {"order_id": "O2001"})] * 6, ("submit", {"answer": "Done."}))
    episodes = played(
        untrained, cascade, [*work, "It is done. " * 60], [*work, many], [*work, "Done."], [FIND, "It is done. " * 60]
    )
    assert [e.success for e in episodes] == [1.0, 1.0, 1.0, 0.0]
    found, _ = measured(untrained, cascade, episodes)
    cost = np.array([spent(e, len(e.steps) - 1) for e in episodes])
    v = np.array([c.v[-1] for c in found])
    np.testing.assert_allclose(v, cost - cost[:3].min(axis=0))
    assert v[0, 1] > 100
    assert v[1, 0] == 7
    assert v[2].tolist() == [0.0] * 4
    assert [c.u[-1] for c in found] == [1.0, 1.0, 1.0, 0.0]
    args = arguments()
    a = trainer.advantages(episodes, found, None, None, np.array([2.0, 2.0, 0.0, 0.0]), BOUNDS, args, ALONE)
    assert a[2][-1] > a[0][-1] + 0.3
    assert a[2][-1] > a[1][-1] + 0.3


PEOPLE, POLICY = call("list_customers"), call("return_policy")
SPOIL = call("set_tier", customer_id="C1001", tier="silver")
BOTH = turn(REFUND[0], ("get_product", {"product_id": "P3001"}))


def eliminated(model, kwargs, episodes, /, **more):
    return measured(model, kwargs, episodes, mode="eliminate", **more)[0]


def test_elimination_keeps_one_of_two_equal_steps(untrained, cascade):
    """Left out alone, each of them looks needless."""
    (episode,) = played(untrained, cascade, [FIND, FIND, ORDERS, LOOK, REFUNDED, "Done."])
    (alone,), _ = measured(untrained, cascade, [episode])
    assert alone.u.tolist() == [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    assert (alone.eliminated, alone.left, alone.replays) == ([], None, 5)
    (found,) = eliminated(untrained, cascade, [episode])
    assert found.u.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    assert found.eliminated == [1, 3]
    assert 5 <= found.replays <= 12
    # its own pruned episode is the cheapest there is: what was kept pays nothing
    np.testing.assert_allclose(found.v[[0, 2, 4, 5]], 0.0, atol=1e-9)
    np.testing.assert_allclose(found.v[[1, 3]], [spent(episode, 1), spent(episode, 3)])


def test_kept_steps_pay_the_excess_over_the_cheapest_way(untrained, cascade):
    """Of two ways, the dearer one pays, each step in proportion; the sum is what the episode cost above the best."""
    cheap, dear, failed = played(
        untrained, cascade, [FIND, ORDERS, REFUNDED, "Done."], [PEOPLE, POLICY, ORDERS, REFUNDED, "Done."], ["No."]
    )
    assert [e.success for e in (cheap, dear, failed)] == [1.0, 1.0, 0.0]
    ways = {}
    one, other, none = eliminated(untrained, cascade, [cheap, dear, failed], ways=ways)
    assert other.eliminated == [1]
    assert (none.eliminated, ways) == ([], {})
    totals = np.array([spent(cheap, 0, 1, 2, 3), spent(dear, 0, 2, 3, 4)])
    assert totals[1, 3] > totals[0, 3]
    best = totals.min(axis=0)
    np.testing.assert_allclose(one.v[:-1], [np.array(spent(cheap, t)) * (1 - best / totals[0]) for t in range(3)])
    kept = [np.array(spent(dear, t)) * (1 - best / totals[1]) for t in (0, 2, 3)]
    np.testing.assert_allclose(other.v[:-1], [kept[0], spent(dear, 1), *kept[1:]])
    np.testing.assert_allclose(other.v.sum(axis=0), np.array(list(dear.cost_total.values())) - best)
    # asked for the own cost, or for that of leaving out alone
    one, other, _ = eliminated(untrained, cascade, [cheap, dear, failed], cost="own")
    np.testing.assert_allclose(other.v, [spent(dear, t) for t in range(5)])
    assert other.u.tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]
    _, other, _ = eliminated(untrained, cascade, [cheap, dear, failed], cost="leave-one-out")
    np.testing.assert_allclose(other.v, measured(untrained, cascade, [cheap, dear, failed])[0][1].v)
    assert other.eliminated == [1]


def test_the_best_way_of_a_task_type_is_remembered(untrained, cascade):
    """Also where the group has no cheaper success; nothing is remembered of failures."""
    cheap, dear, failed = played(
        untrained, cascade, [FIND, ORDERS, REFUNDED, "Done."], [PEOPLE, ORDERS, REFUNDED, "Done."], ["No."]
    )
    ways = {}
    eliminated(untrained, cascade, [failed], ways=ways, cost="excess-best")
    assert ways == {}
    (alone,) = eliminated(untrained, cascade, [dear], ways=ways, cost="excess-best")
    assert list(ways) == [dear.task_type]
    np.testing.assert_allclose(alone.v, 0.0, atol=1e-9)
    eliminated(untrained, cascade, [cheap], ways=ways, cost="excess-best")
    (again,) = eliminated(untrained, cascade, [dear], ways=ways, cost="excess-best")
    best = np.minimum(list(cheap.cost_total.values()), list(dear.cost_total.values()))
    np.testing.assert_allclose(ways[dear.task_type], best)
    np.testing.assert_allclose(again.v.sum(axis=0), np.array(list(dear.cost_total.values())) - best)
    dear.task_type = "another"
    (other,) = eliminated(untrained, cascade, [dear], ways=ways, cost="excess-best")
    np.testing.assert_allclose(other.v, 0.0, atol=1e-9)


def test_failures_are_measured_by_leave_one_out(untrained, cascade):
    """A step that spoils the episode is worth -1; and which episodes are measured is a choice."""
    passed, spoilt = played(
        untrained, cascade, [FIND, ORDERS, REFUNDED, "Done."], [FIND, ORDERS, SPOIL, REFUNDED, "Done."]
    )
    assert spoilt.success == 0.0
    found = eliminated(untrained, cascade, [passed, spoilt])
    assert found[1].u.tolist() == [0.0, 0.0, -1.0, 0.0, 0.0]
    assert (found[1].left, found[1].replays) == (None, 4)
    for mode in ("eliminate", "leave-one-out"):
        for score, episodes, counted in (
            (0.9, "successes", False), (0.49, "near-misses", False), (0.5, "near-misses", True), (0.0, "all", True),
        ):  # fmt: skip
            spoilt.verdict = {**spoilt.verdict, "score": score}
            one, other = measured(untrained, cascade, [passed, spoilt], mode=mode, episodes=episodes)[0]
            assert one.u.tolist() == [1.0] * 4
            assert np.isnan(other.u).all() == np.isnan(other.v).all() == (other.replays == 0) == (not counted)


def test_calls_of_a_turn_are_measured_one_by_one(untrained, cascade):
    """The turn is needed if one of its calls is; it bears the cost of each of them."""
    (episode,) = played(untrained, cascade, [BOTH, ORDERS, REFUNDED, "Done."])
    (alone,), _ = measured(untrained, cascade, [episode])
    assert alone.u.tolist() == [1.0] * 4
    assert alone.replays == 4
    assert alone.v[0, 0] == 3 + 1  # without the look-up no order is found and none refunded; the other stands alone
    (found,) = eliminated(untrained, cascade, [episode])
    assert (found.u.tolist(), found.eliminated) == ([1.0] * 4, [])
    assert (found.v[0, 0], found.left[0, 0]) == (1.0, 1.0)
    assert 0 < found.v[0, 1] < episode.steps[0].cost["output_tokens"]
    np.testing.assert_allclose(found.v[1:], 0.0, atol=1e-9)
    (part,), _ = measured(untrained, cascade, [episode], selection="dearest", most_interventions=1, most_steps=3)
    assert np.isnan(part.u[0])  # one of its two calls says nothing of the turn


def test_elimination_of_some_steps(untrained, cascade):
    """The dearest, or those that the policy was least sure of, and no more replays than K."""
    (episode,) = played(untrained, cascade, WASTEFUL, logprobs=[[-0.2, -0.9, -0.1, -1.8, -0.3, -5.0]])

    def some(**credit):
        (found,) = eliminated(untrained, cascade, [episode], **credit)
        assert (np.isnan(found.u) == np.isnan(found.v).any(axis=1)).all()
        return found.u.tolist(), found.replays

    nan = pytest.approx(math.nan, nan_ok=True)
    assert some(selection="uncertain", most_steps=2) == ([nan, 1.0, nan, 0.0, nan, 1.0], 2)
    assert some(selection="uncertain", most_steps=2, most_interventions=1) == ([nan, nan, nan, 0.0, nan, 1.0], 1)
    price = [sum(c / b for c, b in zip(spent(episode, t), BOUNDS, strict=True)) for t in range(5)]
    (dearest,) = eliminated(untrained, cascade, [episode], selection="dearest", most_steps=2)
    assert np.flatnonzero(~np.isnan(dearest.u)).tolist() == [*sorted(np.argsort(price)[-2:].tolist()), 5]
    assert some(selection="all", most_steps=1, most_interventions=1)[0] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


def test_answers_of_pruned_successes(untrained, cascade):
    """An answer is a kept step like others, but bears at least what the cheapest answer did without."""
    work = [FIND, ORDERS, REFUNDED]
    episodes = played(untrained, cascade, [*work, "It is done. " * 60], [*work, "Done."], ["It is done. " * 60])
    found = eliminated(untrained, cascade, episodes)
    cost = np.array([spent(e, len(e.steps) - 1) for e in episodes])
    assert [c.u[-1] for c in found] == [1.0, 1.0, 0.0]
    for c, own in zip(found, cost, strict=True):
        np.testing.assert_allclose(c.v[-1], own - cost[1])
    args = arguments()
    a = trainer.advantages(episodes, found, None, None, np.array([0.0, 2.0, 0.0, 0.0]), BOUNDS, args, ALONE)
    assert a[1][-1] > a[0][-1] + 0.3


def test_states_before_steps(untrained, cascade):
    """Reads leave the state; the refund changes it."""
    one, other = played(untrained, cascade, [FIND, ORDERS, REFUNDED, LOOK, "Done."], [LOOK, "Done."])
    env = made(chat_of(untrained), 1, **cascade)[0]
    first, second = trainer.states_before([one, other], env)
    assert first[0] == first[1] == first[2] == second[0] == second[1]
    assert first[3] == first[4] != first[0]


def test_replace(model, cascade, monkeypatch):
    """Fresh samples from the state before the step, played to the end."""
    (episode,) = played(model, cascade, WASTEFUL, logprobs=[[-0.1, -0.1, -0.1, -1.0, -2.0, -0.1]])
    branches = []
    original = trainer.play

    def watched(engine, chat, envs, starts, limits, *, draws):
        assert [(start.episode, start.t) for start in starts] == [
            (episode, 4),
            (episode, 4),
            (episode, 3),
            (episode, 3),
        ]
        assert len(set(draws)) == 4
        branches.extend(original(engine, chat, envs, starts, limits, draws=draws))
        return branches

    monkeypatch.setattr(trainer, "play", watched)
    (found,), tokens = measured(
        model, cascade, [episode], interventions=("replace",), selection="uncertain", most_steps=2, replace_samples=2
    )
    assert tokens == sum(len(b.logprobs) for b in branches) > 0
    for b, t in zip(branches, (4, 4, 3, 3), strict=True):
        assert b.ids[: b.spans[0][0]] == episode.ids[: episode.spans[t][0]]
        assert b.cost_total["tool_calls"] >= t
    np.testing.assert_array_equal(np.isnan(found.u), [True, True, True, False, False, False])
    for t, own in ((4, branches[:2]), (3, branches[2:])):
        assert found.u[t] == 1.0 - np.mean([b.success for b in own])
        v = [[episode.cost_total[k] - b.cost_total[k] for k in CHANNELS] for b in own]
        np.testing.assert_allclose(found.v[t], np.mean(v, axis=0))


# ---- the multipliers ----


def ascend(costs, bounds=(4.0, 100.0, 50.0, 400.0), start=0, **dual):
    state = trainer.DualState()
    for iteration, cost in enumerate(costs, start=start):
        state.update(np.array(cost, dtype=float), np.array(bounds, dtype=float), iteration, trainer.Dual(**dual))
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


def test_curriculum():
    """The bounds move from the first mean cost to the final ones; a channel below its bound does not move."""
    state, dual = trainer.DualState(), trainer.Dual(curriculum=4)
    final, cost = np.array([2.0, 40.0, math.inf, 100.0]), np.array([6.0, 30.0, 90.0, 300.0])
    seen = [state.bounds(final, cost * (0.5 if i else 1.0), i, dual).tolist() for i in range(6)]
    assert [bound[0] for bound in seen] == [6.0, 5.0, 4.0, 3.0, 2.0, 2.0]
    assert [bound[3] for bound in seen] == [300.0, 250.0, 200.0, 150.0, 100.0, 100.0]
    assert {(bound[1], bound[2]) for bound in seen} == {(40.0, math.inf)}
    assert trainer.DualState().bounds(final, cost, 0, trainer.Dual()).tolist() == final.tolist()


# ---- the loss and the update ----


def improve(model, episodes, signs, lr=1e-3, critic=None, **changes):
    args = arguments(**{"num_minibatches": 1, "update_epochs": 1, "kl_coef": 0.0, **changes})
    optimizer = torch.optim.AdamW(model.trained(), lr=lr, weight_decay=0.0)
    signs = np.broadcast_to(signs, len(episodes))
    steps = [np.full(len(e.steps), float(sign)) for e, sign in zip(episodes, signs, strict=True)]
    return trainer.update(model, critic, optimizer, episodes, steps, BOUNDS, args, ALONE, 0)


def test_update_follows_the_sign(model):
    episodes = roll(model, n=6)
    before = scored(model, episodes).mean()
    for sign in (1.0, -1.0):
        other = copy.deepcopy(model)
        losses = improve(other, episodes, sign)
        assert sign * (scored(other, episodes).mean() - before) > 1e-3
        assert losses["losses/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert losses["losses/policy_loss"] == pytest.approx(-sign, abs=1e-6)
        assert losses["losses/sampler_gap_max"] < 1e-4
        assert losses["losses/clip_fraction"] == 0.0
    still = copy.deepcopy(model)
    losses = improve(still, episodes, 0.0)
    assert losses["losses/grad_norm"] == 0.0
    assert scored(still, episodes).mean() == before


def test_update_reference(model):
    """The KL is that to the remembered policy: none before the first step, later the k3 estimate."""
    episodes = roll(model, n=4)
    model.freeze_reference()
    first = scored(model, episodes)
    same = improve(model, episodes, 1.0, kl_coef=0.1)
    assert same["losses/kl"] == pytest.approx(0.0, abs=1e-6)
    gap = first - scored(model, episodes)
    now = improve(model, episodes, 0.0, kl_coef=0.1)
    assert now["losses/kl"] == pytest.approx(np.mean(np.exp(gap) - gap - 1), rel=1e-2)
    assert now["losses/grad_norm"] > 0.0


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
def test_policy_loss_clips(ratio, sign, loss, gradient):
    """PPO-clip with 0.2 below and 0.28 above, and the dual bound 3 for negative advantages; three equal tokens."""
    logp = torch.full((3,), math.log(ratio) - 1.0, requires_grad=True)
    old, advantage = torch.full((3,), -1.0), torch.full((3,), sign)
    found, sums = trainer.policy_loss(logp, old, None, torch.zeros(3), advantage, arguments())
    found.backward()
    assert float(found.detach()) == pytest.approx(3 * loss, rel=1e-5)
    assert float(sums["policy_loss"]) == pytest.approx(3 * loss, rel=1e-5)
    assert float(logp.grad.abs().sum()) == pytest.approx(3 * gradient, rel=1e-4)
    assert float(sums["clip_fraction"]) == 3 * (not 0.8 <= ratio <= 1.28)


def test_policy_loss_terms():
    """KL and entropy are weighed, and no single token can blow up the KL."""
    logp = torch.tensor([-1.0, -80.0], requires_grad=True)
    ref, entropy = torch.tensor([-1.5, -1.0]), torch.tensor([0.5, 0.25])
    args = arguments(kl_coef=0.1, entropy_coef=0.2)
    found, sums = trainer.policy_loss(logp, logp.detach(), ref, entropy, torch.zeros(2), args)
    kl = (math.exp(-0.5) + 0.5 - 1) + (math.exp(10.0) - 10.0 - 1)
    assert float(sums["kl"]) == pytest.approx(kl, rel=1e-5)
    assert float(found.detach()) == pytest.approx(0.1 * kl - 0.2 * 0.75, rel=1e-5)


def test_update_loss_norm(model):
    """Divided by the model tokens, or by the context of each episode of the minibatch."""
    episodes = roll(model, n=4)
    tokens = sum(len(e.logprobs) for e in episodes)
    norms = {}
    for norm in ("tokens", "constant"):
        norms[norm] = improve(copy.deepcopy(model), episodes, 1.0, loss_norm=norm, max_context=300)
    ratio = norms["constant"]["losses/grad_norm"] / norms["tokens"]["losses/grad_norm"]
    assert ratio == pytest.approx(tokens / (4 * 300), rel=1e-4)


def test_update_target_kl(model, monkeypatch):
    """Passes stop when the policy has moved too far."""
    episodes = roll(model, n=4)
    seen = []
    real = trainer.step
    monkeypatch.setattr(trainer, "step", lambda *a: (seen.append(1), real(*a))[1])
    for target, steps in ((None, 6), (1e-12, 2)):
        seen.clear()
        improve(
            copy.deepcopy(model), episodes, 1.0, target_kl=target, update_epochs=3, num_minibatches=2, num_episodes=4
        )
        assert len(seen) == steps


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(model):
    episodes = roll(model, n=4)
    before = [p.detach().clone() for p in model.trained()]
    losses = improve(model, episodes, [1.0, math.nan, 1.0, 1.0], num_minibatches=2, num_episodes=4)
    assert losses["losses/skipped_steps"] == 1.0
    assert all(p.isfinite().all() for p in model.trained())
    assert any((p != q).any() for p, q in zip(model.trained(), before, strict=True))  # the other step was made


def test_update_with_critics(model):
    """The heads learn the reward and the cost still to come, relative to its bound, and leave the policy's gradient
    alone."""
    episodes = roll(model, n=4)
    args = arguments(critic=True, critic_lr=5e-3)
    critic = trainer.Critic(32, args, torch.device("cpu"))
    with torch.no_grad():
        states = token_logprobs(model, [e.ids for e in episodes], [e.spans for e in episodes]).states
    turns = sum(len(e.steps) for e in episodes)
    assert critic.values(states).shape == (turns, 5)
    came = [[e.success, *(sum(s.cost[k] for s in e.steps[t:]) / b for k, b in zip(CHANNELS, BOUNDS, strict=True))]
            for e in episodes for t in range(len(e.steps))]  # fmt: skip
    expected = float(np.square(came).sum())  # the heads begin at zero
    assert float(critic.loss(states, episodes, BOUNDS).detach()) == pytest.approx(expected, rel=1e-4)
    alone = improve(copy.deepcopy(model), episodes, 1.0)
    for number in range(60):
        losses = improve(copy.deepcopy(model), episodes, 1.0, critic=critic)
        if number == 0:
            assert losses["losses/grad_norm"] == pytest.approx(alone["losses/grad_norm"])
    assert float(critic.loss(states, episodes, BOUNDS).detach()) < 0.5 * expected


def test_rewarding_an_early_end_shortens_episodes(model):
    """A bandit's check of the whole chain: +1 for the turn that ends an episode, -1 for the others."""
    args = arguments(num_minibatches=1, kl_coef=0.0, num_episodes=16)
    optimizer = torch.optim.AdamW(model.trained(), lr=3e-3, weight_decay=0.0)
    turns = []
    for iteration in range(8):
        episodes = roll(model, n=16, seed=iteration)
        turns.append(np.mean([len(e.steps) for e in episodes]))
        signs = [np.array([1.0 if s.terminated else -1.0 for s in e.steps]) for e in episodes]
        trainer.update(model, None, optimizer, episodes, signs, BOUNDS, args, ALONE, iteration)
    assert turns[0] > 2.0
    assert np.mean(turns[-2:]) < 0.7 * turns[0]


WORLD = """
import pickle, sys
import torch
sys.path.insert(0, sys.argv[1])
from small_lm import load_trainer
trainer = load_trainer("ppo_c3rl")
np = trainer.np


def update(ranks, model, episodes, credits, args):
    \"\"\"The part of this process in one update; the trained weights and the figures.\"\"\"
    model.freeze_reference()
    mine = {g * args.group_size + i for g in ranks.share(range(args.num_episodes // args.group_size))
            for i in range(args.group_size)}
    own = [(e, c) for e, c in zip(episodes, credits) if e.index in mine]
    episodes, credits = [e for e, _ in own], [c for _, c in own]
    bound = np.array([2.0, 48.0, 90.0, 200.0])
    cost = np.array([[e.cost_total[k] for k in trainer.CHANNELS] for e in episodes]).reshape(-1, trainer.K)
    dual = trainer.DualState()
    dual.update(ranks.mean(cost, width=trainer.K), bound, 9, trainer.Dual(warmup=0))
    critic, values, parameters = None, None, model.trained()
    if args.critic:
        critic = trainer.Critic(model.net.config.hidden_size, args, ranks.device)
        parameters = [*parameters, *critic.heads.parameters()]
        critic.optimizer = torch.optim.SGD(critic.heads.parameters(), lr=0.01)
        states = [trainer.token_logprobs(model, [e.ids], [e.spans]).states for e in episodes]
        values = [critic.values(one).detach().double().numpy() for one in states]
    found = trainer.advantages(episodes, credits, values, None, dual.lambdas, bound, args, ranks)
    optimizer = torch.optim.SGD(model.trained(), lr=0.1)  # Adam makes much of gradients that are rounding alone
    losses = trainer.update(model, critic, optimizer, episodes, found, bound, args, ranks, 7)
    ranks.check_equal(parameters)
    return [p.detach() for p in parameters], losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = trainer.Ranks.start("cpu")
    with open(sys.argv[2], "rb") as file:
        results = [update(ranks, *case) for case in pickle.load(file)]
    if ranks.first:
        torch.save(results, sys.argv[3])
    ranks.stop()
"""


def test_one_update_in_one_two_and_four_processes(model, tmp_path):
    """The same weights and figures: where processes lost episodes, the last all of them, with value heads, and where
    the updates of an iteration stop early."""
    episodes = [e for seed in range(2) for e in roll(model, n=8, seed=seed)]
    for i, episode in enumerate(episodes):
        episode.index, episode.seed, episode.snapshots = i, i // 4, []
    rng = np.random.default_rng(0)
    credits = [trainer.Credits(rng.normal(size=len(e.steps)), rng.normal(size=(len(e.steps), 4))) for e in episodes]
    own = {"num_episodes": 16, "group_size": 4, "num_minibatches": 3, "update_epochs": 2, "kl_coef": 0.1}
    before = [p.detach().clone() for p in model.trained()]
    cases = [  # of four processes, the last plays 12 to 15
        (model, [episodes[i] for i in left], [credits[i] for i in left], arguments(**own, **changes))
        for left, changes in (
            (range(16), {}), (range(12), {"critic": True}), ((0, 2, 3, 5, 8, 9, 10, 11), {"target_kl": 1e-7}),
        )
    ]  # fmt: skip
    (tmp_path / "cases").write_bytes(pickle.dumps(cases))
    (tmp_path / "world.py").write_text(WORLD)
    script = {"__name__": "world"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", str(ROOT / "tests")])
        exec(WORLD, script)
    alone = [script["update"](ALONE, *case) for case in pickle.loads((tmp_path / "cases").read_bytes())]
    for weights, _ in alone:
        assert max(float((p - q).abs().max()) for p, q in zip(weights, before, strict=False)) > 1e-3
    free = script["update"](ALONE, *copy.deepcopy(cases[2][:3]), replace(cases[2][3], target_kl=None))
    assert free[1]["losses/old_kl"] != alone[2][1]["losses/old_kl"]
    for count in (2, 4):
        processes(count, tmp_path / "world.py", ROOT / "tests", tmp_path / "cases", tmp_path / "out", cwd=tmp_path)
        for (one, losses), (other, theirs) in zip(alone, torch.load(tmp_path / "out"), strict=True):
            for p, q in zip(one, other, strict=True):
                torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
            assert theirs == pytest.approx(losses, abs=1e-5, rel=1e-4)


# ---- whole runs ----

SMALL_RUN = {
    "total_iterations": 8, "num_episodes": 8, "group_size": 4, "max_new_tokens": 32, "max_context": 320,
    "eval_episodes": 6, "checkpoint_every": 2, "log_every": 3, "seed": 3, "eval_every": 4, "keep_best": True,
    "learning_rate": 3e-4, "anneal_lr": False,  # so that a run that is extended is one that was never shorter
}  # fmt: skip
SMALL_GROUPS = {
    "budget": {"tool_calls": 1.0, "output_tokens": 30.0, "read_tokens": 20.0, "latency_ms": 60.0},
    "dual": {"warmup": 1},
    "credit": {"cost": "excess-best", "selection": "random", "most_steps": 3, "success_gate": False},
}


@pytest.fixture(scope="module")
def checkpoint(warmed, tmp_path_factory):
    """The briefly trained model as a folder to start from."""
    folder = tmp_path_factory.mktemp("init") / "start"
    warmed.save(folder)
    return str(folder)


def flags(run_dir, **changes):
    """SMALL_RUN as a command line."""
    line = []
    for name, value in {
        "model": "tiny",
        **SMALL_RUN,
        "run_dir": run_dir,
        "env_kwargs": json.dumps(ENV),
        **changes,
    }.items():
        option = name.replace("_", "-")
        line += [f"--{option}"] if value is True else [f"--no-{option}"] if value is False else [f"--{option}", value]
    for group, values in SMALL_GROUPS.items():
        for name, value in values.items():
            option = name.replace("_", "-")
            line += [f"--{group}.no-{option}"] if value is False else [f"--{group}.{option}", value]
    return [str(word) for word in line]


def resumed(folder, *more):
    """What the command line makes of ``--resume``."""
    extends = ("total_iterations", "total_tokens")
    return parse(trainer.Args, ["--resume", str(folder), *more], extends)


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """A run that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("finished")
    return run(trainer, parse(trainer.Args, flags(run_dir, device="cpu", init=checkpoint)))


def test_run_files(finished):
    for picture in ("dual.png", "credit_map.png"):
        data = (finished / picture).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 10_000
    result = json.loads((finished / "result.json").read_text())
    assert list(result["tables"]) == ["validation", "test"]
    for split in result["tables"].values():
        assert list(split) == ["start", "final"]
        for table in split.values():
            assert all(low <= mean <= high for mean, low, high in table.values())
    table = (finished / "table.md").read_text()
    assert table.startswith("| | validation start | validation final | test start | test final |\n")
    assert len(table.splitlines()) == 2 + len(result["tables"]["test"]["final"])
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == ["best", "iteration_000008", "start"]
    assert any((finished / "tensorboard").iterdir())
    history = rows(finished)
    assert [row["iteration"] for row in history] == list(range(8))
    assert all(math.isfinite(x) for row in history for x in row.values())
    assert history[-1]["charts/generated_tokens"] == result["generated_tokens"] > 0
    assert all(0.0 < row["credit/replays"] <= 4.0 for row in history)
    maps = [json.loads(line) for line in (finished / "credits.jsonl").read_text().splitlines()]
    assert {m["iteration"] for m in maps} == {0, 3, 6, 7}
    for m in maps:
        assert all(m["u"][t] == 0.0 for t in m["eliminated"])
        assert set(m["eliminated"]) | set(m["necessary"]) <= set(range(len(m["steps"])))
    assert any(m["necessary"] for m in maps)
    whole = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("seconds/rollout", "seconds/measure", "seconds/update", "speed/tokens_per_second", "memory/peak_gib"):
        assert whole[name] > 0.0
    key = "validation/in_budget_success"
    tests = {row["iteration"]: row[key] for row in history if key in row}
    assert list(tests) == [3, 7]
    state = torch.load(finished / "checkpoints" / "best" / "state.pt", weights_only=True)["state"]
    assert state["iteration"] == (8 if tests[7] > tests[3] else 4)
    assert state["best"] == max(tests.values())


def test_run_trajectories(finished):
    names = [p.name for p in sorted((finished / "trajectories").iterdir())]
    logged = [f"iteration_{i:06d}.jsonl" for i in (0, 3, 6, 7)]
    tested = [f"{split}_{name}.jsonl" for split in ("test", "validation") for name in ("final", "start")]
    assert names == [*logged, *tested]
    history = rows(finished)
    for i in (0, 3, 6, 7):
        read = list(agent_gym.read_trajectories(finished / "trajectories" / f"iteration_{i:06d}.jsonl"))
        assert len(read) == 8
        assert len({t.task_id for t in read}) == 2
        assert np.mean([t.cost_total["tool_calls"] for t in read]) == pytest.approx(history[i]["cost/tool_calls"])
        assert np.mean([t.success for t in read]) == pytest.approx(history[i]["charts/success"])
        assert all(len(s.action_ids) == len(s.logprobs) for t in read for s in t.steps)
        cut = [not isinstance(s.action, str) for t in read for s in t.steps]
        assert np.mean(cut) == pytest.approx(history[i]["charts/cut_turns"])
    result = json.loads((finished / "result.json").read_text())
    for split in ("validation", "test"):
        start, final = (
            list(agent_gym.read_trajectories(finished / "trajectories" / f"{split}_{x}.jsonl"))
            for x in ("start", "final")
        )
        assert [t.task_id for t in start] == [t.task_id for t in final]
        assert all(t.task_id.startswith(split) for t in start)
        share = np.mean([t.cost_total["tool_calls"] for t in final])
        assert result["tables"][split]["final"]["mean tool_calls"][0] == pytest.approx(share)


def test_run_multipliers(finished):
    """The logged multipliers follow from the logged costs."""
    state = trainer.DualState()
    for row in rows(finished):
        cost = np.array([row[f"cost/{k}"] for k in CHANNELS])
        state.update(cost, np.array([1.0, 30.0, 20.0, 60.0]), row["iteration"], trainer.Dual(warmup=1))
        np.testing.assert_allclose([row[f"lambda/{k}"] for k in CHANNELS], state.lambdas, atol=1e-12)
        assert row["budget/tool_calls"] == 1.0
    assert max(row["lambda/tool_calls"] for row in rows(finished)) > 0.0
    assert all(row["losses/grad_norm"] > 1e-3 for row in rows(finished)[2:])


INTERRUPTED = """
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


def test_killed_and_resumed(finished, checkpoint, tmp_path):
    """The script is interrupted after its third row and resumed here: the rows are those of the undisturbed run,
    digit by digit, although ``--init`` is gone. (What came after the last checkpoint is done again.)"""
    init = shutil.copytree(checkpoint, tmp_path / "init" / "start")
    line = [sys.executable, "-c", INTERRUPTED, str(SCRIPT), *flags(tmp_path, device="cpu", init=init)]
    process = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    errors = process.stderr
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted; continue with --resume" in errors
    shutil.rmtree(init.parent)
    (folder,) = (path.parent for path in tmp_path.glob("*/args.json"))
    assert 3 <= len(rows(folder)) < 8
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 7, "charts/suc')  # a row that a crash cut off
    trainer.train(resumed(folder))
    assert rows(folder) == rows(finished)
    tables = [json.loads((f / "result.json").read_text()) for f in (folder, finished)]
    assert tables[0] == tables[1]


def test_killed_in_the_middle_of_a_checkpoint_and_extended(finished, checkpoint, tmp_path, monkeypatch):
    """Half a checkpoint is no checkpoint: the run continues from the one before. Its end can be moved."""

    def die(state, path):
        if state["state"].get("iteration") == 4:
            raise KeyboardInterrupt
        torch_save(state, path)

    torch_save = torch.save
    monkeypatch.setattr(torch, "save", die)
    shorter = {"total_iterations": 6, "log_every": 100, "keep_best": False}
    with pytest.raises(KeyboardInterrupt):
        trainer.train(parse(trainer.Args, flags(tmp_path, device="cpu", init=checkpoint, **shorter)))
    monkeypatch.undo()
    (folder,) = tmp_path.glob("*/")
    assert len(rows(folder)) == 4
    trainer.train(resumed(folder))
    assert len(rows(folder)) == 6
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["iteration_000006", "start"]
    trainer.train(resumed(folder, "--total-iterations", "8"))
    assert rows(folder) == rows(finished)
    with pytest.raises(Refused, match="--group-size is 4 in this run and cannot change"):
        resumed(folder, "--group-size", "2")


@pytest.mark.parametrize("total_tokens", [None, 1000])
def test_annealing_ends_with_the_iterations_or_the_tokens(checkpoint, tmp_path, monkeypatch, total_tokens):
    rates, step = [], trainer.step
    monkeypatch.setattr(
        trainer,
        "step",
        lambda p, optimizer, *rest: rates.append(optimizer.param_groups[0]["lr"]) or step(p, optimizer, *rest),
    )
    changes = {"total_iterations": 4, "anneal_lr": True, "eval_episodes": 0, "eval_every": 0, "keep_best": False}
    changes |= {} if total_tokens is None else {"total_tokens": total_tokens}
    folder = run(trainer, parse(trainer.Args, flags(tmp_path, device="cpu", init=checkpoint, **changes)))
    spent = [0.0, *(row["charts/generated_tokens"] for row in rows(folder))][:-1]
    peak = json.loads((folder / "args.json").read_text())["learning_rate"]
    done = [max(i / 4, tokens / (total_tokens or math.inf)) for i, tokens in enumerate(spent)]
    assert list(dict.fromkeys(rates)) == pytest.approx([peak * (1.0 - share) for share in done])
    assert rates[0] == peak > rates[-1] > 0.0
    assert (done[1] > 0.25) == (total_tokens is not None)


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (rows(finished), (finished / "table.md").read_text())
    trainer.train(resumed(finished))
    assert (rows(finished), (finished / "table.md").read_text()) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lagrangian", "critic": True, "budget": {"latency_ms": math.inf}, "dual": {"curriculum": 2}},
        {"method": "truncation", "loss_norm": "constant", "update_epochs": 2},
        {
            "credit": {
                "mode": "leave-one-out",
                "interventions": ("delete", "truncate", "swap", "replace"),
                "selection": "uncertain",
                "most_steps": 2,
            }
        },
        {"method": "stepgroup"},
    ],
    ids=["critic", "truncation", "all interventions", "step groups"],
)
def test_variants_start_from_a_checkpoint(checkpoint, tmp_path, changes, recwarn):
    own = {"total_iterations": 2, "eval_episodes": 2, "eval_every": 0, "keep_best": False, "run_dir": str(tmp_path)}
    folder = run(trainer, arguments(init=checkpoint, device="cpu", **{**SMALL_RUN, **own, **changes}))
    history = rows(folder)
    assert len(history) == 2
    assert all(math.isfinite(x) for row in history for x in row.values())
    assert history[0]["losses/ratio"] == pytest.approx(1.0, abs=0.2)
    json.loads((folder / "args.json").read_text(), parse_constant=pytest.fail)
    bounds = {k: b for k, b in preset("APIAgent-v0").budget.items() if k != "latency_ms" or not changes.get("critic")}
    chat = chat_of(load(checkpoint))
    for path in folder.glob("trajectories/*.jsonl"):
        for t in agent_gym.read_trajectories(path):
            assert t.env_kwargs["budget"] == bounds
            (env,) = made(chat, 1, split=t.env_kwargs["split"])
            assert env.reset(options={"task": t.task_id})[1]["task_hash"] == t.task_hash
    if changes.get("critic"):
        assert [row["budget/latency_ms"] for row in history] == [-1.0, -1.0]
        assert [row["lambda/latency_ms"] for row in history] == [0.0, 0.0]
    if changes.get("method") == "truncation":
        assert all(row["cost/tool_calls"] <= 5.0 for row in history)  # the call that goes over is the last
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_the_cheapest_ways_are_part_of_a_checkpoint(checkpoint, tmp_path):
    """A task that asks for nothing: every answer passes, and every call is redundant."""
    tasks = write_tasks(tmp_path / "tasks.jsonl", [task("nothing", "Do nothing.", [])])
    own = {
        "env_kwargs": json.dumps({"tasks": tasks, "max_turns": 6}), "init": checkpoint, "device": "cpu",
        "credit": {"cost": "excess-best"}, "total_iterations": 4, "eval_episodes": 0, "eval_every": 0,
        "keep_best": False, "checkpoint_every": 1, "budget": SMALL_GROUPS["budget"], "dual": {"warmup": 0},
    }  # fmt: skip
    whole = run(trainer, arguments(**{**SMALL_RUN, **own, "run_dir": str(tmp_path / "one")}))
    short = run(trainer, arguments(**{**SMALL_RUN, **own, "total_iterations": 2, "run_dir": str(tmp_path / "two")}))
    trainer.train(resumed(short, "--total-iterations", "4"))
    assert rows(short) == rows(whole)
    assert sum(row["charts/success"] > 0.0 for row in rows(whole)) >= 2
    shares = [row["credit/redundant_share"] for row in rows(whole) if "credit/redundant_share" in row]
    assert 0.8 < min(shares) <= max(shares) == 1.0  # an answer may be a call of submit
    (state,) = whole.glob("checkpoints/iteration_*/state.pt")
    ways = torch.load(state, weights_only=True)["state"]["ways"]
    assert [way[0] for way in ways.values()] == [0.0]


def test_adapters_in_bfloat16_with_checkpointing_killed_and_resumed(untrained, tmp_path):
    """A model from a folder, started from a checkpoint whose adapters are not zero: the KL to the start is zero."""
    untrained.net.save_pretrained(tmp_path / "base")
    untrained.tokenizer.save_pretrained(tmp_path / "base")
    start = load(tmp_path / "base", adapters=2)
    with torch.no_grad():
        for p in start.trained():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    start.save(tmp_path / "init")
    own = {
        "model": str(tmp_path / "base"), "init": str(tmp_path / "init"), "lora_rank": 2, "dtype": "bfloat16",
        "checkpointing": True, "total_iterations": 2, "eval_episodes": 0, "eval_every": 0, "keep_best": False,
        "checkpoint_every": 1, "update_epochs": 1, "num_minibatches": 1, "device": "cpu", "learning_rate": 1e-2,
        "budget": SMALL_GROUPS["budget"], "num_episodes": 4,
        "max_context": 4096, "max_new_tokens": 8, "method": "penalty",
    }  # fmt: skip
    folder = run(trainer, arguments(**{**SMALL_RUN, **own, "run_dir": str(tmp_path / "one")}))
    history = rows(folder)
    assert history[0]["losses/kl"] == pytest.approx(0.0, abs=1e-6)
    assert history[0]["losses/ratio"] == pytest.approx(1.0, abs=1e-6)
    short = run(trainer, arguments(**{**SMALL_RUN, **own, "total_iterations": 1, "run_dir": str(tmp_path / "two")}))
    trainer.train(resumed(short, "--total-iterations", "2"))
    assert rows(short) == history
    assert history[1]["losses/kl"] > 0.0


def test_episodes_that_a_wrapper_cuts_are_dropped_and_counted(checkpoint, tmp_path):
    """They have no verdict: neither a failure nor a success."""
    own = {"total_iterations": 1, "eval_episodes": 0, "eval_every": 0, "keep_best": False, "run_dir": str(tmp_path)}
    limited = json.dumps({**ENV, "max_episode_steps": 3})
    args = arguments(init=checkpoint, device="cpu", **{**SMALL_RUN, **own, "env_kwargs": limited})
    (row,) = rows(run(trainer, args))
    (path,) = tmp_path.glob("*/trajectories/iteration_000000.jsonl")
    kept = list(agent_gym.read_trajectories(path))
    assert 0 < len(kept) == 8 - row["charts/infra"] < 8
    assert all(t.verdict is not None and t.reward is not None and t.steps[-1].terminated for t in kept)
    assert row["charts/success"] == np.mean([t.success for t in kept])


def test_a_run_cut_off_before_its_first_checkpoint_starts_from_its_warm_start(tmp_path):
    """The tiny model from scratch; what the warm start made is kept, and the rest is done again."""
    own = {"total_iterations": 1, "eval_episodes": 2, "eval_every": 0, "keep_best": False, "run_dir": str(tmp_path)}
    folder = run(trainer, arguments(device="cpu", **{**SMALL_RUN, **own}, warm={"updates": 3, "demonstrations": 40}))
    first, before = rows(folder), json.loads((folder / "result.json").read_text())
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["iteration_000001", "start"]
    assert 0.9e6 < sum(p.numel() for p in load(folder / "checkpoints" / "start").parameters()) < 1.2e6
    shutil.rmtree(folder / "checkpoints" / "iteration_000001")
    (folder / "result.json").unlink()
    trainer.train(resumed(folder))
    assert rows(folder) == first
    assert json.loads((folder / "result.json").read_text()) == before


def test_four_processes_play_the_run_of_one(checkpoint, tmp_path):
    """The same tasks, draws and figures, up to rounding; and the same weights in all. Some lose episodes."""
    own = {"total_iterations": 2, "eval_every": 0, "keep_best": False, "device": "cpu", "init": checkpoint}
    own |= {"num_episodes": 16, "env_kwargs": json.dumps({**ENV, "max_episode_steps": 3})}
    one = run(trainer, parse(trainer.Args, flags(tmp_path / "one", **own)))
    processes(4, SCRIPT, *flags(tmp_path / "four", **own), "--critic", "--no-critic", cwd=tmp_path)
    (four,) = (tmp_path / "four").glob("*/")
    first, second = rows(one), rows(four)
    assert [row.keys() for row in first] == [row.keys() for row in second]
    assert all(0 < row["charts/infra"] < 16 for row in first)
    for a, b in zip(first, second, strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name
    final = [list(agent_gym.read_trajectories(f / "trajectories" / "test_final.jsonl")) for f in (one, four)]
    assert len(final[0]) == 6
    for a, b in zip(*final, strict=True):
        assert [s.action_ids for s in a.steps] == [s.action_ids for s in b.steps]


# ---- wrong input ----


@pytest.fixture
def refused(tmp_path):
    """What a run that cannot work ends with: one sentence."""

    def ask(**changes):
        own = {"device": "cpu", "run_dir": str(tmp_path / "runs"), "num_episodes": 4, "warm": {"updates": 1}}
        with pytest.raises(Refused) as ended:
            trainer.train(arguments(**{**own, **changes}))
        assert "\n" not in str(ended.value)
        return str(ended.value)

    return ask


def test_wrong_env(refused):
    assert refused(env_kwargs="{difficulty: 1}").startswith("--env-kwargs is not valid JSON: ")
    assert refused(env_kwargs="[1]").startswith("--env-kwargs must be a JSON object")
    assert refused(env_kwargs='{"split": "test"}').startswith("--env-kwargs: split is set by the trainer")
    assert "has no keyword argument 'colour'" in refused(env_kwargs='{"colour": 1}')
    assert refused(env_kwargs='{"difficulty": 99}').startswith("cannot make APIAgent-v0: difficulty=99")
    assert refused(env_id="Nothing-v0").startswith("cannot make Nothing-v0: ")
    assert refused(env_id="no.such.module:Nothing-v0").startswith("cannot make no.such.module:Nothing-v0: ")


def test_wrong_numbers(refused):
    for name, value in (("tool_calls", -1.0), ("latency_ms", math.nan), ("read_tokens", 0.0)):
        text = refused(budget={name: value})
        end = "above 0: only to do nothing meets it" if value == 0 else f"0 or more, not {value:g}"
        assert text == f"--budget.{name.replace('_', '-')} must be {end}"
    assert refused(num_episodes=6) == "--num-episodes 6 is no multiple of --group-size 4 x 1 processes"
    assert refused(num_episodes=0) == "--num-episodes must be 1 or more, not 0"
    assert refused(group_size=0) == "--group-size must be 1 or more, not 0"
    assert refused(total_iterations=-1) == "--total-iterations must be 0 or more, not -1"
    assert refused(total_tokens=-1) == "--total-tokens must be 0 or more, not -1"
    assert refused(penalty_alpha=-0.1) == "--penalty-alpha must be 0 or more, not -0.1"
    assert refused(group_size=1).startswith("--group-size 1 leaves nothing to compare an episode with")
    assert refused(temperature=0.0) == "--temperature must be a number above 0, not 0.0"
    for slack in (0.0, math.inf, math.nan):
        assert refused(truncation_slack=slack) == f"--truncation-slack must be a number above 0, not {slack}"
    text = refused(dual={"channels": ("tool_calls", "euros")})
    channels = "tool_calls, output_tokens, read_tokens, latency_ms"
    assert text == f"--dual.channels: unknown ['euros']; the channels are {channels}"
    assert refused(keep_best=True).startswith("--keep-best needs --eval-every")
    text = "--credit.interventions and --credit.block are for --credit.mode leave-one-out"
    assert refused(credit={"interventions": ("swap",)}) == refused(credit={"block": 2}) == text
    text = refused(credit={"mode": "leave-one-out", "cost": "own"})
    assert text == "--credit.cost own needs --credit.mode eliminate"


def test_what_is_not_given_follows():
    """The measure of v from the mode, the model from the environment."""
    assert arguments().credit.cost == "excess-group"
    assert arguments(credit={"mode": "leave-one-out"}).credit.cost == "leave-one-out"
    assert arguments(credit={"mode": "leave-one-out", "cost": "trajectory"}).credit.cost == "trajectory"
    assert arguments(model=None).model == model_of(None, "APIAgent-v0")


def test_nothing_but_cut_episodes(refused, checkpoint):
    """The sentence says what happened to them."""
    text = refused(
        env_kwargs=json.dumps({**ENV, "max_episode_steps": 1}), init=checkpoint, eval_episodes=0, group_size=2
    )
    assert re.fullmatch(r"iteration \d: no episode reached a verdict \(cut by a wrapper\)", text)


def test_a_prompt_that_does_not_fit(checkpoint, tmp_path):
    """Fails its episode, not the run; where none fits, there is nothing to learn, and that is said."""
    own = {"total_iterations": 1, "eval_episodes": 2, "eval_every": 0, "keep_best": False, "run_dir": str(tmp_path)}
    args = arguments(init=checkpoint, device="cpu", **{**SMALL_RUN, **own, "max_context": 4})
    with pytest.raises(Refused, match="iteration 0: no episode has a turn"):
        trainer.train(args)


def test_wrong_input_on_the_command_line(tmp_path):
    line = [sys.executable, str(SCRIPT), *flags(tmp_path), "--budget.tool-calls", "-1"]
    done = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ppo_c3rl: --budget.tool-calls must be 0 or more, not -1\n"
    assert list(tmp_path.iterdir()) == []
