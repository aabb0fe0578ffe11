"""The trainer: advantages, groups, conflict, surgery, updates on one and two processes, whole runs, wrong input."""

import copy
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the trainer needs the extra 'train'")
pytest.importorskip("transformers", reason="the trainer needs the extra 'train'")

import agent_gym  # noqa: E402
from agent_gym import CHANNELS, Step  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "cleanrl_llm" / "grpo_pcgrad.py"
DEMO = ROOT / "benchmarks" / "conflict_demo.py"
COMMON, RARE, MIXED = (f"conflict_demo:Send{kind}-v0" for kind in ("Common", "Rare", "Mixed"))


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


load_module(DEMO.with_name("first_light.py"))  # what it imports
demo = load_module(DEMO)  # a small environment of two task types, whose module gym.make finds again by its name
trainer = load_module(SCRIPT)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of floats depend on the number of threads, and runs are compared digit by digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL = {
    "max_new_tokens": 12, "max_context": 96, "num_episodes": 32, "group_size": 4, "pool_tasks": 24, "device": "cpu",
    "eval_tasks": 4, "eval_samples": 4, "eval_every": 2, "eval_every_samples": 2, "calibration_samples": 2, "seed": 3,
    "total_iterations": 4, "checkpoint_every": 2, "log_every": 2, "learning_rate": 1e-3, "kl_coef": 0.0,
}  # fmt: skip


def arguments(**changes):
    """Small settings; ``warm=`` and ``budget=`` take dictionaries."""
    warm = {"updates": 150, "demonstrations": 300, "wasteful": 0.0, "lr": 1e-2} | changes.pop("warm", {})
    budget = trainer.Budget(**changes.pop("budget", {}))
    ids = changes.pop("env_id", (COMMON, RARE))
    kwargs = changes.pop("env_kwargs", ('{"max_turns": 4}',) * len(ids) if any("Send" in one for one in ids) else ())
    args = trainer.Args(
        env_id=ids, env_kwargs=kwargs, warm=trainer.WarmStart(**warm), budget=budget, **{**SMALL, **changes}
    )
    trainer.settle(args, torch.device("cpu"))
    return args


def small_model(tokenizer, seed):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.06,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def warmed():
    """A small policy that packs as it should, and takes road and air equally often."""
    args = arguments(env_id=(MIXED,))
    envs = trainer.Stage(args, "train").take([0], len)
    dialogues = list(trainer.demonstrations(envs, args))
    tokenizer = trainer.tiny_tokenizer(t for d in dialogues for t in (d.messages[1]["content"], *sum(d.turns, ())))
    policy = trainer.Policy(small_model(tokenizer, 1), tokenizer, sees_tools=False)
    trainer.warm_start(policy, dialogues, args)
    return policy


@pytest.fixture
def policy(warmed):
    return copy.deepcopy(warmed)


@pytest.fixture(scope="module")
def checkpoint(warmed, tmp_path_factory):
    """The warmed policy as a folder to start from."""
    folder = tmp_path_factory.mktemp("init") / "warm"
    trainer.save(folder, warmed, arguments(), {})
    return str(folder)


# ---- advantages ----


def test_grpo():
    np.testing.assert_allclose(trainer.grpo(np.array([1.0, 0, 0, 0])), np.array([3, -1, -1, -1]) / math.sqrt(3))
    assert trainer.grpo(np.ones(4)).tolist() == [0.0] * 4


def test_dr_grpo_has_no_standard_deviation():
    np.testing.assert_allclose(trainer.dr_grpo(np.array([1.0, 0, 0, 0])), [0.75, -0.25, -0.25, -0.25])


@given(st.lists(st.booleans(), min_size=2, max_size=7), st.data())
def test_pass_at_k_gain_is_the_mean_over_all_subsets(passed, data):
    """Against enumeration: what the episode adds to the best of each subset of k that contains it."""
    n = len(passed)
    k = data.draw(st.integers(2, n))
    success = np.array(passed, dtype=float)
    expected = [
        k / n * np.mean([max(success[list(s)]) - max(success[[j for j in s if j != i]])
                         for s in itertools.combinations(range(n), k) if i in s])
        for i in range(n)
    ]  # fmt: skip
    np.testing.assert_allclose(trainer.pass_at_k_gain(success, k), expected, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_pass_at_k_gain_is_an_unbiased_gradient(p, k):
    """Over all outcomes of five tries at success rate p = sigmoid(theta): E[sum_i gain_i d log prob_i] is the
    derivative of 1 - (1 - p)^k."""
    mean = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=5):
        probability = math.prod(p if x else 1 - p for x in outcome)
        score = np.array([(1 - p) if x else -p for x in outcome])  # d log prob / d theta
        mean += probability * float(trainer.pass_at_k_gain(np.array(outcome), k) @ score)
    assert mean == pytest.approx(k * (1 - p) ** (k - 1) * p * (1 - p))


def test_unique_weighs_rare_successes():
    success = np.array([1.0, 1, 1, 0, 0, 1])
    plain = trainer.grpo(success)
    found = trainer.unique(success, ["a", "a", "a", "a", "c", "b"])
    np.testing.assert_allclose(found[3:5], plain[3:5])
    assert found[5] / found[0] == pytest.approx(3.0)
    assert np.mean(found[[0, 1, 2, 5]] / plain[[0, 1, 2, 5]]) == pytest.approx(1.0)
    np.testing.assert_allclose(trainer.unique(success, list("abcdef")), plain)


def test_methods_set_their_defaults():
    assert arguments().clip_high == arguments(method="unique").clip_high == 0.2
    assert arguments(method="clip-higher").clip_high == 0.28
    assert arguments(method="clip-higher", clip_high=0.5).clip_high == 0.5
    assert (arguments().loss_norm, arguments(method="dr-grpo").loss_norm) == ("tokens", "constant")
    assert arguments(method="dr-grpo", loss_norm="tokens").loss_norm == "tokens"


# ---- surgery ----


def explicit_pcgrad(vectors, orders, tau=0.0):
    """Algorithm 1 of the paper on the vectors themselves; the mean of the projected gradients."""
    projected = [v.clone() for v in vectors]
    for i, order in enumerate(orders):
        for j in order:
            if j == i:
                continue
            dot = projected[i] @ vectors[j]
            if dot < -tau * projected[i].norm() * vectors[j].norm():
                projected[i] = projected[i] - dot / (vectors[j] @ vectors[j]) * vectors[j]
    return torch.stack(projected).mean(0)


def drawn_vectors(seed, n, size, zeros):
    vectors = torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors -= 0.4 * vectors.mean(0)  # so that conflicts are not rare
    vectors[list(zeros)] = 0.0
    return vectors


def pcgrad(vectors, tau, seed, worst=0):
    generator = torch.Generator().manual_seed(seed)
    coefficients, made = trainer.project(trainer.gram(vectors), tau, worst, generator)
    return coefficients, made


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.3]), st.data())
def test_pcgrad_is_the_projection_of_each_pair(n, seed, tau, data):
    zeros = data.draw(st.sets(st.integers(0, n - 1), max_size=n))
    vectors = drawn_vectors(seed, n, data.draw(st.sampled_from([3, 40])), zeros)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(n)]
    coefficients, _ = pcgrad(vectors, tau, seed)
    torch.testing.assert_close(
        (coefficients @ vectors).mean(0), explicit_pcgrad(vectors, orders, tau), atol=1e-6, rtol=1e-6
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(0, 10_000), st.data())
def test_pcgrad_is_that_of_torchjd(n, seed, data):
    """As a sum, with the order that torchjd draws from the global generator."""
    aggregation = pytest.importorskip("torchjd.aggregation", reason="the comparison needs torchjd")
    zeros = data.draw(st.sets(st.integers(0, n - 1), max_size=n))
    vectors = drawn_vectors(seed, n, data.draw(st.sampled_from([3, 40])), zeros)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = aggregation.PCGrad()(vectors)
    coefficients, _ = pcgrad(vectors, 0.0, seed)
    torch.testing.assert_close((coefficients @ vectors).sum(0), expected, atol=1e-6, rtol=1e-6)


def test_pcgrad_on_two_gradients_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    coefficients, made = pcgrad(vectors, 0.0, 0)
    torch.testing.assert_close(coefficients @ vectors.double(), torch.tensor([[0.5, 0.5], [0.0, 1.0]]).double())
    assert made == 2
    coefficients, made = pcgrad(vectors, 0.75, 0)  # their cosine is -0.71
    assert made == 0
    torch.testing.assert_close(coefficients, torch.eye(2).double())


def test_only_the_worst_pairs():
    """Cosines of 0 and 1 about -0.99, of 2 and 3 about -0.2; pairs across are orthogonal."""
    vectors = torch.tensor([[1.0, 0, 0, 0], [-1, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, -0.2, 1]])
    one, made = pcgrad(vectors, 0.05, 0, worst=1)
    assert made == 2
    assert one[2:].tolist() == torch.eye(4)[2:].tolist()
    assert float((one @ vectors.double())[0] @ vectors[1].double()) == pytest.approx(0.0, abs=1e-12)
    assert pcgrad(vectors, 0.05, 0, worst=2)[1] == 4 == pcgrad(vectors, 0.05, 0)[1]
    assert pcgrad(vectors, 0.5, 0, worst=2)[1] == 2  # the second is above the threshold


def test_the_seed_decides_the_order():
    vectors = drawn_vectors(0, 6, 4, set())
    first, second = pcgrad(vectors, 0.0, 1)[0], pcgrad(vectors, 0.0, 1)[0]
    assert torch.equal(first, second)
    assert any(not torch.equal(first, pcgrad(vectors, 0.0, seed)[0]) for seed in range(2, 8))


# ---- conflict ----


def halves_of(seed, signals, noise, size=400, weights=None):
    """Sums over the halves of groups whose true gradients are ``signals``; noise falls with the weight."""
    count = len(signals)
    weights = torch.full((count, 2), 10.0, dtype=torch.float64) if weights is None else weights
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        for h in (0, 1):
            w = float(weights[i, h])
            error = noise * torch.randn(size, generator=generator, dtype=torch.float64) / math.sqrt(w or 1.0)
            rows.append(w * (torch.as_tensor(signals[i], dtype=torch.float64) + error))
    return torch.stack(rows), weights


def test_measure_against_the_vectors():
    weights = torch.tensor([[10.0, 30.0], [5.0, 5.0], [0.0, 0.0], [8.0, 0.0]], dtype=torch.float64)
    halves, _ = halves_of(0, [np.ones(6), -np.ones(6), np.zeros(6), np.arange(6)], 1.0, 6, weights)
    found = trainer.measure(trainer.gram(halves), weights)
    mean = [(halves[2 * i] + halves[2 * i + 1]) / weights[i].sum() for i in (0, 1, 3)]
    cosine = torch.nn.functional.cosine_similarity
    for (a, i), (b, j) in itertools.product(zip(mean, (0, 1, 3), strict=True), repeat=2):
        assert found.cosine[i, j] == pytest.approx(float(cosine(a, b, dim=0)))
        assert found.dot[i, j] == pytest.approx(float(a @ b))
    assert np.isnan(found.cosine[2]).all()
    assert np.isnan(found.dot[:, 2]).all()
    assert len(found.pairs()) == 3
    assert found.split_half[0] == pytest.approx(float(cosine(halves[0], halves[1], dim=0)))
    assert np.isnan(found.split_half[2:]).all()
    n = [(halves[0] / 10 - halves[1] / 30) * math.sqrt(300) / 40, (halves[2] - halves[3]) / 5 / 2]
    scale = float((mean[0] @ mean[0]) * (mean[1] @ mean[1]))
    assert found.cross == pytest.approx(float((n[0] @ mean[1]) ** 2 + (n[1] @ mean[0]) ** 2) / scale)
    assert found.noise == pytest.approx(float(n[0] @ n[1]) ** 2 / scale)


def test_zero_gradients_have_cosine_zero():
    found = trainer.measure(torch.zeros(4, 4, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64))
    assert found.cosine.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert found.pairs().tolist() == [0.0]


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_noise_alone_crosses_the_floor_in_a_fortieth_of_cases(shared, uneven):
    """Four groups without conflict: either pure noise, or orthogonal signals of the size of the noise. The floor is
    pooled over ten updates, as in a run."""
    weights = torch.tensor([[10.0, 30.0]] * 4, dtype=torch.float64) if uneven else None
    signals = [shared * np.eye(400)[i] * 4.0 for i in range(4)]
    below = total = 0
    cross, noise = [], []
    for seed in range(300):
        found = trainer.measure(*(lambda h, w: (trainer.gram(h), w))(*halves_of(seed, signals, 1.0, weights=weights)))
        cross, noise = [*cross[-9:], found.cross], [*noise[-9:], found.noise]
        if len(cross) == 10:
            below += int((found.pairs() < trainer.noise_floor(cross, noise)).sum())
            total += 6
    assert 0.005 < below / total < 0.05


def test_a_conflict_is_below_the_floor_that_noise_would_hide_from_the_sign():
    signals = [np.eye(400)[0] * 4.0, np.eye(400)[0] * -4.0]
    below = 0
    cross, noise = [], []
    for seed in range(40):
        found = trainer.measure(*(lambda h, w: (trainer.gram(h), w))(*halves_of(seed, signals, 1.0)))
        cross, noise = [*cross[-9:], found.cross], [*noise[-9:], found.noise]
        below += bool(found.pairs()[0] < trainer.noise_floor(cross, noise))
    assert below >= 35
    assert math.isnan(trainer.noise_floor([], []))


# ---- the update ----


def episodes_of(policy, args, n=16, seed=0):
    """``n`` episodes in slots of four, the first half of the common type."""
    stage = trainer.Stage(args, "train")
    which = [0] * (n // 2) + [1] * (n // 2)
    envs = stage.take(which, policy.count)
    episodes = [trainer.start(policy, env, 50 + i // 4) for i, env in enumerate(envs)]
    trainer.rollout(policy, episodes, args, seed)
    for i, e in enumerate(episodes):
        e.slot, e.group_index = i // 4, which[i]
    return episodes


ADVANTAGE = np.random.default_rng(0).normal(size=16)


def improved(policy, surgery, episodes, iterations=1, groups=3, **changes):
    """A copy of ``policy`` after updates with fixed advantages, and what the last one reported."""
    policy = copy.deepcopy(policy)
    args = arguments(surgery=surgery, **changes)
    optimizer = torch.optim.SGD(trainer.trainable(policy), lr=1.0)
    for iteration in range(iterations):
        reported = trainer.update(
            policy, None, optimizer, episodes, ADVANTAGE[: len(episodes)], groups, args, iteration
        )
    return policy, reported


def flat(policy):
    return torch.cat([p.detach().flatten() for p in trainer.trainable(policy)])


def loss_gradient(policy, episodes, advantage):
    """Mean policy-gradient loss a token, by one plain backward pass."""
    policy = copy.deepcopy(policy)
    logp, _ = trainer.score(policy, [e.ids for e in episodes], [e.spans for e in episodes], 1.0)
    weight = torch.from_numpy(np.repeat(advantage, [len(e.logprobs) for e in episodes])).to(logp)
    (-(logp * weight).sum() / len(logp)).backward()
    return torch.cat([p.grad.flatten() for p in trainer.trainable(policy)])


@pytest.fixture(scope="module")
def batch(warmed):
    return episodes_of(warmed, arguments())


UNCLIPPED = {"max_grad_norm": 1e9}


def step_of(policy, surgery, episodes, **changes):
    after, reported = improved(policy, surgery, episodes, **{**UNCLIPPED, **changes})
    return flat(policy) - flat(after), reported


def test_none_is_the_plain_gradient(policy, batch):
    step, (losses, conflict) = step_of(policy, "none", batch)
    expected = loss_gradient(policy, batch, ADVANTAGE)
    torch.testing.assert_close(step, expected, atol=2e-6, rtol=1e-3)
    assert conflict is None
    assert losses["losses/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert losses["losses/grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert losses["losses/sampler_gap_max"] < 1e-4


def test_stats_changes_no_bit(policy, batch):
    for changes in ({}, {"update_epochs": 2, "num_minibatches": 2, "kl_coef": 0.0, "micro_batch_tokens": 100}):
        one, _ = improved(policy, "none", batch, 3, **changes)
        other, (_, conflict) = improved(policy, "stats", batch, 3, **changes)
        assert torch.equal(flat(one), flat(other))
        assert not torch.equal(flat(one), flat(policy))
        assert conflict is not None


def test_balanced_is_the_mean_of_the_groups(policy, batch):
    """The third group is not there, and does not count."""
    step, (_, conflict) = step_of(policy, "balanced", batch)
    own = [loss_gradient(policy, batch[:8], ADVANTAGE[:8]), loss_gradient(policy, batch[8:], ADVANTAGE[8:])]
    torch.testing.assert_close(step, (own[0] + own[1]) / 2, atol=2e-6, rtol=1e-3)
    assert conflict.cosine[1, 0] == pytest.approx(float(torch.nn.functional.cosine_similarity(*own, dim=0)), abs=1e-4)
    assert np.isnan(conflict.cosine[2]).all()


def opposed(batch):
    """Advantages for which the two groups want opposite things of the same episodes."""
    return [*batch[:4], *(replace(e, slot=7, group_index=1) for e in batch[:4])]


def test_pcgrad_projects(policy, batch):
    episodes = opposed(batch)
    advantage = np.array([1.0, 0.5, 0.2, 0.9, -1.0, -0.4, -0.3, -0.5])
    own = [loss_gradient(policy, episodes[:4], advantage[:4]), loss_gradient(policy, episodes[4:], advantage[4:])]
    orders = [[0, 1], [0, 1]]
    expected = explicit_pcgrad([g.double() for g in own], orders)
    for surgery, wanted in (("pcgrad", expected), ("balanced", (own[0] + own[1]).double() / 2)):
        other = copy.deepcopy(policy)
        optimizer = torch.optim.SGD(trainer.trainable(other), lr=1.0)
        args = arguments(surgery=surgery, tau=0.05, **UNCLIPPED)
        losses, conflict = trainer.update(other, None, optimizer, episodes, advantage, 2, args, 0)
        torch.testing.assert_close((flat(policy) - flat(other)).double(), wanted, atol=2e-6, rtol=1e-3)
        assert conflict.cosine[1, 0] < -0.5
        assert losses.get("losses/projections", 0) == (2 if surgery == "pcgrad" else 0)


def test_every_and_scope(policy, batch):
    episodes, advantage = opposed(batch), np.array([1.0, 0.5, 0.2, 0.9, -1.0, -0.4, -0.3, -0.5])

    def after(iteration, **changes):
        other = copy.deepcopy(policy)
        optimizer = torch.optim.SGD(trainer.trainable(other), lr=1.0)
        trainer.update(other, None, optimizer, episodes, advantage, 2, arguments(**UNCLIPPED, **changes), iteration)
        return dict(other.named_parameters())

    projected, balanced = after(1, surgery="pcgrad"), after(1, surgery="balanced")
    skipped, part = after(1, surgery="pcgrad", every=2), after(1, surgery="pcgrad", scope="adapters")
    for name in projected:
        assert torch.equal(skipped[name], balanced[name])
        inside = ".layers." in name and projected[name].ndim == 2
        assert torch.equal(part[name], balanced[name]) == (not inside)
    assert any(not torch.equal(projected[name], balanced[name]) for name in projected if ".layers." not in name)


def test_measuring_costs_no_further_backward_pass(policy, batch, monkeypatch):
    """Every episode is scored with gradient once, whatever the surgery, and so is every token."""
    scored = []
    original = trainer.score

    def score(policy, ids, spans, *args):
        scored.append(sum(map(len, ids)))
        return original(policy, ids, spans, *args)

    monkeypatch.setattr(trainer, "score", score)
    passes = {}
    for surgery in ("none", "stats", "balanced", "pcgrad"):
        scored.clear()
        improved(policy, surgery, batch)
        passes[surgery] = list(scored)
    assert sum(passes["none"]) == sum(len(e.ids) for e in batch)
    assert passes["none"] == passes["stats"] == passes["balanced"] == passes["pcgrad"]


def test_tasks_without_advantage_leave_the_batch(policy, batch):
    advantage = np.where(np.arange(16) < 4, 0.0, ADVANTAGE)
    other = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(trainer.trainable(other), lr=1.0)
    trainer.update(other, None, optimizer, batch, advantage, 2, arguments(surgery="none", **UNCLIPPED), 0)
    expected = loss_gradient(policy, batch[4:], advantage[4:])
    torch.testing.assert_close(flat(policy) - flat(other), expected, atol=2e-6, rtol=1e-3)
    losses, conflict = trainer.update(other, None, optimizer, batch, 0 * advantage, 2, arguments(surgery="stats"), 0)
    assert conflict is None
    assert losses["losses/grad_norm"] == 0.0


def test_a_task_is_never_parted(policy, batch):
    args = arguments(num_minibatches=2)
    placed = trainer.halved(batch, args, 5)
    assert len(placed) == 2
    for e, *both in zip(batch, *placed, strict=True):
        assert sorted(one == (-1, -1) for one in both) == [False, True]
        assert {max(both)[0]} == {e.group_index}
    for slot in range(4):
        assert len({max(pair) for e, *pair in zip(batch, *placed, strict=True) if e.slot == slot}) == 1
    (once,) = trainer.halved(batch, arguments(), 5)
    assert sorted(set(once)) == [(0, 0), (0, 1), (1, 0), (1, 1)]  # each group has both halves


TWO = """
import importlib.util, os, sys
sys.path.insert(0, sys.argv[1])
import test_grpo_pcgrad as t
torch, trainer = t.torch, t.trainer
torch.set_num_threads(1)
if "WORLD_SIZE" in os.environ:
    trainer.dist.init_process_group("gloo")
args = t.arguments(init=sys.argv[2], surgery="pcgrad", max_grad_norm=1e9)
policy, _ = trainer.load(trainer.Path(args.init), args, torch.device("cpu"))
before = t.flat(policy)
batch = t.episodes_of(policy, args)
world, rank = trainer.world(), trainer.rank()
own = range(16) if world == 1 else range(4) if rank == 0 else range(4, 16)  # the first process lacks a group
optimizer = torch.optim.SGD(trainer.trainable(policy), lr=1.0)
losses, conflict = trainer.update(
    policy, None, optimizer, [batch[i] for i in own], t.ADVANTAGE[list(own)], 3, args, 0
)
torch.save((before - t.flat(policy), losses, conflict.cosine), f"{sys.argv[3]}.{world}.{rank}")
if world > 1:
    trainer.dist.destroy_process_group()
"""


def test_two_processes_make_the_update_of_one(checkpoint, tmp_path):
    """The same batch, unevenly shared out: one process lacks a group, and a third group is nowhere."""
    (tmp_path / "two.py").write_text(TWO)
    rest = [str(tmp_path / "two.py"), str(ROOT / "tests"), checkpoint, str(tmp_path / "out")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for line in ([sys.executable, *rest], [sys.executable, *launch, *rest]):
        done = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    (one, losses, cosine), *both = (
        torch.load(tmp_path / f"out.{x}", weights_only=False) for x in ("1.0", "2.0", "2.1")
    )
    assert torch.equal(both[0][0], both[1][0])
    assert float((both[0][0] - one).norm() / one.norm()) < 1e-5
    assert float(one.norm()) > 1e-3
    np.testing.assert_allclose(both[0][2], cosine, atol=1e-5)
    for name in ("losses/policy_loss", "losses/ratio", "losses/entropy", "losses/grad_norm"):
        assert both[0][1][name] == both[1][1][name] == pytest.approx(losses[name], rel=1e-5, abs=1e-7)


# ---- groups ----


def task(rate, logp, env=0, kind="a"):
    return trainer.Task(env, 0, "t", kind, rate, logp)


def test_difficulty_groups_are_quantiles():
    """Ties of the success rate are broken by the log-probability."""
    pool = [task(r, lp) for r, lp in [(1, -1), (1, -2), (0.5, -1), (0.5, -2), (0, -1), (0, -2), (0, -3), (0, -4)]]
    grouping = trainer.form_groups(pool, [], [], arguments(group_by="difficulty", groups=4))
    assert [grouping.index(one, "") for one in pool] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert grouping.names[0] == "difficulty 1 of 4"
    assert grouping.index(task(0.75, -9), "") == 1  # another task, by the same edges
    assert grouping.index(task(1, 0), "") == 0
    assert grouping.index(task(0, -99), "") == 3


@given(st.lists(st.tuples(st.sampled_from([0, 0.25, 0.5, 1]), st.floats(-5, 0)), min_size=8, max_size=40, unique=True),
       st.integers(2, 8))  # fmt: skip
def test_difficulty_groups_are_of_equal_size(features, groups):
    pool = [task(r, lp) for r, lp in features]
    grouping = trainer.form_groups(pool, [], [], arguments(group_by="difficulty", groups=groups))
    sizes = np.bincount([grouping.index(one, "") for one in pool], minlength=groups)
    assert sizes.max() - sizes.min() <= 1


def test_type_groups():
    pool = [task(0, 0, kind=k) for k in "aaabbcd"]
    args = arguments(group_by="task-type", groups=3)
    grouping = trainer.form_groups(pool, [], [], args)
    assert grouping.names == ["a", "b", "other"]
    assert [grouping.index(one, "") for one in pool] == [0, 0, 0, 1, 1, 2, 2]
    assert trainer.form_groups(pool, [], [], replace(args, groups=4)).names == ["a", "b", "c", "d"]
    unseen = [task(0, 0, kind="e")]  # a test task of another type needs a place
    assert trainer.form_groups(pool, unseen, [], replace(args, groups=4)).names == ["a", "b", "c", "other"]


def finished_episode(*calls):
    cost = dict.fromkeys(CHANNELS, 1.0)
    results = [{"name": name, "arguments": arguments} for name, arguments in calls]
    spec = type("Spec", (), {"id": "E-v0", "kwargs": {}})
    env = type("Env", (), {"unwrapped": type("Base", (), {"spec": spec})})
    return trainer.Episode(env, "t", 0, [], "", steps=[Step("", "", cost, results, "")], cost_total=cost)


def test_pattern_groups():
    read, write = ("read_file", {"path": "a"}), ("write_file", {"path": "a", "text": "x = 1"})
    episodes = [finished_episode(*calls) for calls in ([], [read], [read, read], [read] * 3, [write, read])]
    ways = [trainer.pattern(e) for e in episodes]
    assert ways == [
        "short: no call", "short: read_file", "short: read_file", "long: read_file",
        "code, short: read_file+write_file",
    ]  # fmt: skip
    args = arguments(group_by="pattern", groups=3)
    grouping = trainer.form_groups([task(0, 0)], [], list(enumerate(ways)), args)
    assert grouping.names == ["short: read_file", "code, short: read_file+write_file", "other"]
    for e in episodes:
        grouping.place(e, task(0, 0))
    assert [e.group_index for e in episodes] == [2, 0, 0, 2, 1]
    late = finished_episode(read)  # then a call that did not run
    late.steps[0].tool_results.append({"name": "list_files", "arguments": {}, "error": "not_run"})
    assert (trainer.tools_of(late), trainer.pattern(late)) == (["read_file"], "short: read_file")
    grouping.place(late, task(0, 0))
    assert late.group.features == {"calls": 1.0, "tools": 1.0, "code": 0.0}
    assert episodes[4].trajectory().group == agent_gym.Group(grouping.names[1], {"calls": 2, "tools": 2, "code": 1})


def test_environments_have_their_share():
    args = arguments(env_weights=(9.0, 1.0))
    for offset in np.linspace(0, 0.99, 12):
        assert trainer.dealt(100, args, offset, args.env_weights).count(1) == 10
        assert trainer.dealt(12, args, offset, args.env_weights).count(1) in (1, 2)
        assert trainer.dealt(12, args, offset).count(1) == 6


def test_draws(monkeypatch):
    args = arguments(env_weights=(3.0, 1.0), num_episodes=32, method="resample")
    pool = [task(0, 0, env=int(i >= 20)) for i in range(40)]
    rates = np.where(np.arange(40) % 2, 0.5, 1.0)
    drawn = [trainer.draw(pool, rates, args, iteration) for iteration in range(200)]
    assert drawn[0] == trainer.draw(pool, rates, args, 0) != drawn[1]
    for chosen in drawn:
        assert len(chosen) == len(set(chosen)) == 8
        assert sum(i >= 20 for i in chosen) == 2
    half = np.mean([i % 2 for chosen in drawn for i in chosen])
    assert half > 0.8  # there is nothing to learn from what always succeeds
    plain = [trainer.draw(pool, rates, replace(args, method="grpo"), iteration) for iteration in range(200)]
    assert np.mean([i % 2 for chosen in plain for i in chosen]) == pytest.approx(0.5, abs=0.04)
    monkeypatch.setattr(trainer, "world", lambda: 2)
    shares = [trainer.draw(pool, rates, args, 0)]
    monkeypatch.setattr(trainer, "rank", lambda: 1)
    shares.append(trainer.draw(pool, rates, args, 0))
    assert [len(s) for s in shares] == [4, 4]
    assert sum(i >= 20 for s in shares for i in s) == 2


def test_success_rates_follow():
    episodes = [
        replace(finished_episode(), task=i, verdict={"status": s}) for i, s in [(0, "pass"), (0, "fail"), (2, "fail")]
    ]
    np.testing.assert_allclose(trainer.follow(np.array([1.0, 1.0, 1.0]), episodes), [0.75, 1.0, 0.5])


# ---- whole runs ----


def shell():
    """The environment of a subprocess: this checkout, one thread, no network."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(paths)}


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
    return run(arguments(init=checkpoint, groups=3, surgery="stats", run_dir=str(tmp_path_factory.mktemp("runs"))))


def test_run_files(finished):
    for picture in ("conflict.png", "passk.png", "diversity.png", "groups.png"):
        data = (finished / picture).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 10_000
    result = json.loads((finished / "result.json").read_text())
    assert list(result["tables"]) == ["warm start", "final"]
    for table in result["tables"].values():
        assert all(low <= mean <= high for mean, low, high in table.values())
        assert {"pass@1", "pass@4", "mean tool_calls", "different solutions a task"} <= set(table)
        assert "pass@8" not in table  # four episodes a task
        assert "violation any" not in table  # no budget
    assert (finished / "table.md").read_text().startswith("| | warm start | final |\n|---|---|---|\n")
    assert [p.name for p in (finished / "checkpoints").iterdir()] == ["iteration_000004"]
    tested = [json.loads(line) for line in (finished / "tests.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in tested] == [0, 2, 4]
    final = list(agent_gym.read_trajectories(finished / "trajectories" / "test_final.jsonl"))
    assert len(final) == 16
    assert tested[-1]["pass@1"] == pytest.approx(np.mean([t.success for t in final]))
    assert result["tables"]["final"]["pass@1"][0] == pytest.approx(np.mean([t.success for t in final]))


def test_run_metrics(finished):
    history = rows(finished)
    assert [row["iteration"] for row in history] == [0, 1, 2, 3]
    assert all(math.isfinite(x) for row in history for x in row.values())
    assert any("cosine/1_0" in row for row in history)
    for row in history:
        assert sum(row[f"group/{i}_share"] for i in range(3)) == pytest.approx(1.0)
        assert row["losses/ratio"] == pytest.approx(1.0, abs=1e-5)
        if "cosine/1_0" in row:
            assert row["cosine/1_0"] == pytest.approx(
                row["dot/1_0"] / row["group/0_norm"] / row["group/1_norm"], abs=1e-6
            )
    assert 0.2 < history[0]["charts/success"] < 0.8


def test_every_logged_metric_is_explained(finished):
    """The page has the keys of this run, and beside them only what other flags log."""
    page = (
        (ROOT / "docs" / "grpo_pcgrad.md")
        .read_text(encoding="utf-8")
        .split("## Logged metrics")[1]
        .split("## The run")[0]
    )
    explained = {
        key for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for key in re.findall(r"`([\w/]+)`", cell)
    }
    logged = {re.sub(r"\d+_\d+$", "I_J", re.sub(r"group/\d+", "group/I", key)) for row in rows(finished) for key in row}
    assert explained == logged | {"losses/projections"}


def test_groups_are_in_the_trajectories(finished):
    groups = json.loads((finished / "groups.json").read_text())
    assert groups["names"] == [f"difficulty {i} of 3" for i in (1, 2, 3)]
    assert len(groups["edges"]) == 2
    assert len(groups["pool"]) == 24
    (first, *_), history = sorted((finished / "trajectories").glob("iteration_*")), rows(finished)
    known = {t["id"]: t for t in groups["pool"]}
    read = list(agent_gym.read_trajectories(first))
    for i, name in enumerate(groups["names"]):
        mine = [t for t in read if t.group.name == name]
        assert len(mine) / len(read) == history[0][f"group/{i}_share"]
        if mine:
            assert np.mean([t.success for t in mine]) == pytest.approx(history[0][f"group/{i}_success"])
        for t in mine:
            assert t.group.features["reference_success"] == known[t.task_id]["rate"]
            assert t.group.features["reference_logp"] == known[t.task_id]["logp"]
    assert history[0]["charts/generated_tokens"] == groups["tokens"] + sum(
        len(s.action_ids) for t in read for s in t.steps
    )


def test_none_and_stats_leave_the_same_checkpoint(finished, checkpoint, tmp_path):
    """Every file of it, to the bit."""
    args = replace(trainer.read_args(finished / "args.json"), surgery="none", run_dir=str(tmp_path))
    other = run(args)
    one, two = (f / "checkpoints" / "iteration_000004" for f in (finished, other))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert not (other / "conflict.png").exists()
    start = Path(checkpoint) / "model.safetensors"
    assert (one / "model.safetensors").read_bytes() != start.read_bytes()


def test_files_hold_strict_json(finished):
    """No bound is the text inf, and read back as none."""
    for name in ("args.json", "groups.json", "result.json"):
        found = json.loads((finished / name).read_text(), parse_constant=pytest.fail)
        if name == "args.json":
            assert found["budget"] == dict.fromkeys(CHANNELS, "inf")
    assert set(trainer.bounds_of(trainer.read_args(finished / "args.json")).values()) == {math.inf}
    for path in finished.glob("trajectories/*.jsonl"):
        for t in agent_gym.read_trajectories(path):
            assert t.env_kwargs["budget"] == {}
            assert re.fullmatch("[0-9a-f]{32}", t.task_hash)


def test_what_a_wrapper_cuts_has_no_verdict(policy, checkpoint, tmp_path, monkeypatch):
    """It is neither a failure nor a success, and a run of nothing else says so."""
    short = ('{"max_turns": 4, "max_episode_steps": 1}',) * 2
    args = arguments(env_kwargs=short, init=checkpoint, run_dir=str(tmp_path), group_by="task-type", eval_tasks=0)
    pack = [*policy.encode('<tool_call>{"name":"pack","arguments":{}}</tool_call>'), policy.eos]

    def rollout(policy, episodes, args, seed):
        for episode in episodes:
            trainer.advance(policy, episode, pack, [-0.5] * len(pack), 0.0, 10_000)

    monkeypatch.setattr(trainer, "rollout", rollout)
    one = trainer.find_tasks(trainer.Stage(args, "train"), [1], [0], args)
    ((episode,),) = trainer.play(policy, trainer.Stage(args, "train"), one, [0], args, 1)
    assert (episode.infra, episode.reward, episode.verdict, episode.success) == (True, None, None, 0.0)
    with pytest.raises(SystemExit, match=r"iteration 0: no episode reached a verdict \(cut by a wrapper\)"):
        trainer.train(args)


def test_a_run_from_before_a_channel_is_refused(finished, tmp_path):
    old = json.loads((finished / "args.json").read_text())
    del old["budget"]["read_tokens"]
    (tmp_path / "args.json").write_text(json.dumps(old))
    with pytest.raises(SystemExit, match="this run is from before the cost channel read_tokens and cannot go on"):
        trainer.train(trainer.Args(resume=str(tmp_path)))


def test_killed_in_the_middle_of_a_checkpoint(finished, tmp_path, monkeypatch):
    """Half a checkpoint is no checkpoint: the run continues from the one before, digit by digit."""
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
    assert [p.name for p in (folder / "checkpoints").glob("[!.]*")] == ["iteration_000002"]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "charts/suc')  # a row that a crash cut off
    trainer.train(trainer.Args(resume=str(folder), seed=99, total_iterations=1))
    assert trainer.read_args(folder / "args.json") == replace(args, run_dir=str(tmp_path))
    for name in ("metrics.jsonl", "tests.jsonl", "result.json", "groups.json"):
        assert (folder / name).read_text() == (finished / name).read_text(), name
    for path in (finished / "checkpoints" / "iteration_000004").iterdir():
        assert path.read_bytes() == (folder / "checkpoints" / "iteration_000004" / path.name).read_bytes()


@pytest.mark.parametrize("method", ["dr-grpo", "resample", "pass-at-k", "unique"])
def test_methods_run(method, checkpoint, tmp_path):
    kind = {"dr-grpo": "pattern", "pass-at-k": "task-type"}.get(method, "difficulty")
    settings = {"total_iterations": 2, "eval_tasks": 2, "eval_every": 0, "run_dir": str(tmp_path), "log_every": 1}
    folder = run(arguments(init=checkpoint, method=method, group_by=kind, kl_coef=0.01, groups=4, **settings))
    history = rows(folder)
    assert len(history) == 2
    assert history[0]["losses/kl"] == pytest.approx(0.0, abs=1e-5)
    assert history[1]["losses/kl"] > 1e-6
    names = json.loads((folder / "groups.json").read_text())["names"]
    if kind == "task-type":
        assert names == ["SendCommon-v0", "SendRare-v0"]
    if kind == "pattern":
        assert names[-1] == "other"
        assert any(name.startswith("short: ") for name in names)
    if method == "resample":
        state = torch.load(next(folder.glob("checkpoints/*/trainer.pt")), weights_only=False)
        assert state["rates"] != [t["rate"] for t in json.loads((folder / "groups.json").read_text())["pool"]]


def test_several_environments_from_scratch(tmp_path):
    """The tiny model; what the warm start made is kept when the run is cut off before its first checkpoint."""
    settings = {
        "env_id": ("APIAgent-v0", "SQL-v0"),
        "env_kwargs": ('{"domains": ["shop"], "difficulty": 1}', '{"difficulty": 1}'),
        "total_iterations": 1, "num_episodes": 8, "pool_tasks": 8, "eval_tasks": 2, "eval_samples": 2, "eval_every": 0,
        "max_context": 1024, "group_by": "task-type", "run_dir": str(tmp_path),
    }  # fmt: skip
    folder = run(arguments(**settings, warm={"updates": 2, "demonstrations": 20}))
    assert json.loads((folder / "groups.json").read_text())["names"] == ["APIAgent-v0", "SQL-v0"]
    read = list(agent_gym.read_trajectories(folder / "trajectories" / "iteration_000000.jsonl"))
    assert [t.env_id for t in read] == ["APIAgent-v0"] * 4 + ["SQL-v0"] * 4
    assert {t.env_id: t.group.name for t in read} == {"APIAgent-v0": "APIAgent-v0", "SQL-v0": "SQL-v0"}
    first = rows(folder)
    shutil.rmtree(folder / "checkpoints" / "iteration_000001")
    trainer.train(trainer.Args(resume=str(folder)))
    assert rows(folder) == first


def test_the_constructed_conflict_is_seen(checkpoint, tmp_path):
    """Two types that differ in the first call, one nine times as frequent: their gradients point away from each other,
    further than noise would take them."""
    settings = {
        "env_weights": (9.0, 1.0), "num_episodes": 320, "group_size": 8, "pool_tasks": 80, "total_iterations": 4,
        "eval_tasks": 0, "eval_every": 0, "group_by": "task-type", "surgery": "stats", "run_dir": str(tmp_path),
    }  # fmt: skip
    folder = run(arguments(init=checkpoint, **settings))
    cosine, floor = demo.conflict(folder)
    assert cosine < floor < 0.0


def test_two_processes_train(warmed, tmp_path):
    """A model from a folder, with adapters, grouped by difficulty: the processes share the calibration."""
    model = tmp_path / "model"
    warmed.model.save_pretrained(model)
    warmed.tokenizer.save_pretrained(model)
    line = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT),
        "--env-id", COMMON, RARE, "--env-kwargs", '{"max_turns": 4}', '{"max_turns": 4}', "--model", str(model),
        "--lora-rank", "2", "--run-dir", str(tmp_path / "runs"), "--groups", "2",
    ]  # fmt: skip
    changes = {"total_iterations": 2, "eval_tasks": 2, "eval_every": 0, "kl_coef": 0.01, "max_context": 512}
    for name, value in {**SMALL, **changes}.items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").glob("*/")
    assert [row["iteration"] for row in rows(folder)] == [0, 1]
    pool = json.loads((folder / "groups.json").read_text())["pool"]
    assert all(t["rate"] is not None for t in pool)
    assert (folder / "checkpoints" / "iteration_000002" / "adapter_model.safetensors").is_file()


# ---- wrong input ----


@pytest.fixture
def refused(tmp_path):
    """What a run that cannot work ends with: one sentence."""

    def ask(**changes):
        with pytest.raises(SystemExit) as ended:
            trainer.train(arguments(**{"run_dir": str(tmp_path / "runs"), **changes}))
        text = ended.value.code
        assert text.startswith("grpo_pcgrad: ")
        assert "\n" not in text
        return text.removeprefix("grpo_pcgrad: ")

    return ask


def test_wrong_environments(refused):
    one = {"env_id": ("APIAgent-v0",)}
    assert refused(**one, env_kwargs=("{difficulty: 1}",)).startswith("--env-kwargs is not valid JSON: ")
    assert refused(**one, env_kwargs=("[1]",)).startswith("--env-kwargs must be JSON objects")
    assert refused(**one, env_kwargs=('{"split": "test"}',)).startswith("--env-kwargs: split is set by this script")
    assert refused(**one, env_kwargs=("{}", "{}")) == "--env-kwargs must be one JSON object an environment: 1, not 2"
    assert "has no keyword argument 'colour'" in refused(**one, env_kwargs=('{"colour": 1}',))
    assert refused(env_id=("Nothing-v0",)).startswith("cannot make Nothing-v0: ")
    assert refused(env_id=()) == "--env-id must name at least one environment"
    assert refused(env_weights=(1.0,)) == "--env-weights must be 2 numbers above 0, one an environment"
    assert refused(env_weights=(1.0, 0.0)) == "--env-weights must be 2 numbers above 0, one an environment"


def test_wrong_numbers(refused):
    assert refused(groups=1) == "--groups must be from 2 to 8, not 1"
    assert refused(groups=9) == "--groups must be from 2 to 8, not 9"
    assert refused(tau=-0.1) == "--tau must be 0 or more, not -0.1"
    assert refused(tau=math.nan) == "--tau must be 0 or more, not nan"
    assert refused(every=0) == "--every must be 1 or more, not 0"
    assert refused(pool_tasks=3) == "--pool-tasks 3 is fewer than the groups or environments"
    assert refused(method="pass-at-k", pass_k=5) == "--pass-k must be from 2 to --group-size 4, not 5"
    assert refused(group_size=1).startswith("--group-size must be 2 or more, not 1")
    assert refused(num_episodes=6) == "--num-episodes 6 is no multiple of --group-size 4 x 1 processes"
    assert refused(temperature=0.0) == "--temperature must be above 0, not 0.0"
    assert refused(budget={"tool_calls": -1.0}) == "--budget.tool-calls must be 0 or more, not -1.0"


def test_wrong_folders(refused, checkpoint, tmp_path):
    assert "there is no run in this folder" in refused(resume=str(tmp_path / "nothing"))
    assert "is not a checkpoint of this trainer" in refused(init=str(tmp_path))
    assert "holds --model tiny with --lora-rank 16, not tiny with 8" in refused(init=checkpoint, lora_rank=8)


def test_wrong_input_on_the_command_line(tmp_path):
    line = [sys.executable, str(SCRIPT), "--groups", "20", "--run-dir", str(tmp_path / "runs")]
    done = subprocess.run(line, env=shell(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "grpo_pcgrad: --groups must be from 2 to 8, not 20\n"
    assert list(tmp_path.iterdir()) == []
