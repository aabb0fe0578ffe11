"""The trainer: groups, advantages, conflict, surgery, the update in one process and in several, whole runs."""

import copy
import itertools
import json
import math
import os
import pickle
import re
import runpy
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the trainer needs the extra 'train'")
pytest.importorskip("transformers", reason="the trainer needs the extra 'train'")

from small_lm import ROOT, chat_of, load_trainer, processes, rows, run, small_model  # noqa: E402

import agent_gym  # noqa: E402
from agent_gym import CHANNELS, Step, Trajectory  # noqa: E402
from agent_gym.lm.budget import Budget  # noqa: E402
from agent_gym.lm.chat import Chat  # noqa: E402
from agent_gym.lm.demonstrations import WarmStart, demonstrations, encoded, warm_start  # noqa: E402
from agent_gym.lm.engine import TorchEngine  # noqa: E402
from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.models import load, token_logprobs  # noqa: E402
from agent_gym.lm.ranks import Ranks  # noqa: E402
from agent_gym.lm.rollout import Limits, environments, play  # noqa: E402
from agent_gym.lm.runs import arguments as parse  # noqa: E402

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # a small environment of two task types is there, and gym.make finds it by name
import conflict_demo as demo  # noqa: E402

SCRIPT = ROOT / "cleanrl_llm" / "grpo_pcgrad.py"
COMMON, RARE, MIXED = demo.COMMON, demo.RARE, demo.MIXED
ALONE = Ranks()
trainer = load_trainer("grpo_pcgrad")


pytestmark = pytest.mark.usefixtures("one_thread")


SMALL = {
    "max_new_tokens": 12, "max_context": 96, "num_episodes": 32, "group_size": 4, "pool_tasks": 24, "device": "cpu",
    "eval_tasks": 4, "eval_samples": 4, "eval_every": 2, "eval_every_samples": 2, "calibration_samples": 2, "seed": 3,
    "total_iterations": 4, "checkpoint_every": 2, "log_every": 2, "learning_rate": 1e-3, "kl_coef": 0.0,
}  # fmt: skip


def arguments(**changes):
    """Small settings; ``warm=`` and ``budget=`` take dictionaries."""
    warm = {"updates": 150, "demonstrations": 300, "wasteful": 0.0, "lr": 1e-2} | changes.pop("warm", {})
    budget = Budget(**changes.pop("budget", {}))
    ids = changes.pop("env_id", (COMMON, RARE))
    kwargs = changes.pop("env_kwargs", ('{"max_turns": 4}',) * len(ids) if any("Send" in one for one in ids) else ())
    args = trainer.Args(env_id=ids, env_kwargs=kwargs, warm=WarmStart(**warm), budget=budget, **{**SMALL, **changes})
    trainer.settle(args, ALONE)
    return args


def resumed(folder, *more):
    """What the command line makes of ``--resume``."""
    return parse(trainer.Args, ["--resume", str(folder), *more], ("total_iterations", "total_tokens"))


@pytest.fixture(scope="module")
def dialogues():
    (env,) = environments(MIXED, 1, chat=None, split="train", bounds={}, max_turns=4)
    return demonstrations(env, range(300), wasteful=0.0, waste=0.0)


def learn(model, chat, dialogues, updates):
    warm, examples = replace(arguments().warm, updates=updates), [encoded(chat, dialogue) for dialogue in dialogues]
    warm_start(model, examples, warm, context=128, most_tokens=8192, seed=1, ranks=ALONE)


@pytest.fixture(scope="module")
def warmed(dialogues):
    """A small policy that packs as it should, and takes road and air equally often."""
    model = small_model(text for dialogue in dialogues for text in dialogue.texts)
    learn(model, chat_of(model), dialogues, 150)
    return model


@pytest.fixture
def policy(warmed):
    return copy.deepcopy(warmed)


@pytest.fixture(scope="module")
def checkpoint(warmed, tmp_path_factory):
    """The warmed policy as a folder to start from."""
    folder = tmp_path_factory.mktemp("init") / "start"
    warmed.save(folder)
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


@pytest.mark.parametrize(("left", "expected"), [([1.0, 0.0], [1.0, 0.0]), ([1.0], [0.0]), ([0.0], [0.0])])
def test_pass_at_k_of_fewer_episodes_than_k(left, expected):
    """Some were lost: k is what is there, and one alone has nothing to compare with."""
    assert trainer.pass_at_k_gain(np.array(left), 4).tolist() == expected


def test_settings_follow_the_method_and_the_size(monkeypatch):
    assert arguments().clip_high == arguments(method="unique").clip_high == 0.2
    assert arguments(method="clip-higher").clip_high == 0.28
    assert arguments(method="clip-higher", clip_high=0.5).clip_high == 0.5
    assert (arguments().loss_norm, arguments(method="dr-grpo").loss_norm) == ("tokens", "constant")
    assert arguments(method="dr-grpo", loss_norm="tokens").loss_norm == "tokens"
    unset = dict.fromkeys(("max_new_tokens", "max_context", "learning_rate", "eval_tasks"))
    for count, model, expected in (
        (0, "tiny", (96, 1024, 2e-4, 32)),
        (0, "tiny:APIAgent-v0", (96, 1024, 2e-4, 32)),
        (10**8, "a", (256, 4096, 1e-4, 4)),
        (10**10, "b", (1024, 8192, 2e-5, 4)),
    ):
        monkeypatch.setattr("agent_gym.lm.arguments.parameters_of", lambda name, count=count: count)
        args = arguments(model=model, **unset)
        assert (args.max_new_tokens, args.max_context, args.learning_rate, args.eval_tasks) == expected
    given = arguments(model="b", learning_rate=1.0, eval_tasks=0)
    assert (given.learning_rate, given.eval_tasks) == (1.0, 0)
    assert arguments(model="b", lora_rank=0, learning_rate=None).learning_rate == pytest.approx(2e-6)


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


def samples_of(model, n=16, seed=0):
    """``n`` episodes in slots of four, the first half of the common type."""
    chat = chat_of(model)
    engine, limits, found = TorchEngine(model, stops=chat.stops), Limits(12, 96), []
    for env, env_id in enumerate((COMMON, RARE)):
        pool = environments(env_id, 8, chat=chat, split="train", bounds={}, max_turns=4)
        own = range(env * n // 2, (env + 1) * n // 2)
        draws = [1000 * seed + i for i in own]
        for i, e in zip(own, play(engine, chat, pool, [50 + i // 4 for i in own], limits, draws=draws), strict=True):
            e.snapshots = []
            found.append(trainer.Sample(e, i // 4, i // 4, env, e.trajectory()))
    return found


ADVANTAGE = np.random.default_rng(0).normal(size=16)


def improved(policy, surgery, samples, iterations=1, groups=3, advantage=ADVANTAGE, **changes):
    """A copy of ``policy`` after updates with fixed advantages, and what the last one reported."""
    policy = copy.deepcopy(policy)
    args = arguments(surgery=surgery, **{"max_grad_norm": 1e9, **changes})
    policy.freeze_reference()
    optimizer = torch.optim.SGD(policy.trained(), lr=1.0)
    for iteration in range(iterations):
        reported = trainer.update(policy, optimizer, samples, advantage, groups, args, iteration, ALONE)
    return policy, reported


def flat(policy):
    return torch.cat([p.detach().flatten() for p in policy.trained()])


def step_of(policy, surgery, samples, **changes):
    after, reported = improved(policy, surgery, samples, **changes)
    return flat(policy) - flat(after), reported


def loss_gradient(policy, samples, advantage, weight=None):
    """Policy-gradient loss summed over the tokens, by one backward pass, divided by ``weight`` or their number."""
    policy = copy.deepcopy(policy)
    scores = token_logprobs(policy, [s.episode.ids for s in samples], [s.episode.spans for s in samples])
    a = np.repeat(advantage, [len(s.episode.logprobs) for s in samples])
    a = torch.from_numpy(a).to(scores.logprobs)
    (-(scores.logprobs * a).sum() / (weight or len(a))).backward()
    return torch.cat([p.grad.flatten() for p in policy.trained()])


@pytest.fixture(scope="module")
def batch(warmed):
    return samples_of(warmed)


def test_none_is_the_plain_gradient(policy, batch):
    step, (losses, conflict) = step_of(policy, "none", batch)
    expected = loss_gradient(policy, batch, ADVANTAGE)
    torch.testing.assert_close(step, expected, atol=2e-6, rtol=1e-3)
    assert conflict is None
    assert losses["losses/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert losses["losses/grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert losses["losses/sampler_gap_mean"] <= losses["losses/sampler_gap_max"] < 1e-4
    assert losses["losses/skipped_steps"] == 0


def test_the_constant_is_the_context_of_every_episode(policy, batch):
    """Dr. GRPO: an episode's tokens count the same, however many it has."""
    step, _ = step_of(policy, "none", batch, loss_norm="constant")
    expected = loss_gradient(policy, batch, ADVANTAGE, weight=16 * 96)
    torch.testing.assert_close(step, expected, atol=2e-7, rtol=1e-3)
    step, _ = step_of(policy, "balanced", batch, loss_norm="constant")
    own = [loss_gradient(policy, batch[i : i + 8], ADVANTAGE[i : i + 8], weight=8 * 96) for i in (0, 8)]
    torch.testing.assert_close(step, (own[0] + own[1]) / 2, atol=2e-7, rtol=1e-3)


def test_minibatches_are_steps(policy, batch):
    """Two minibatches are two plain steps on their slots, the second from where the first one led."""
    args = arguments(num_minibatches=2, seed=3)
    place = trainer.placed({s.slot: s.group for s in batch}, 2, trainer.stream("halves", args.seed, 0))
    expected = copy.deepcopy(policy)
    for b in (0, 1):
        mine = [i for i, s in enumerate(batch) if place[s.slot][0] == b]
        assert mine
        gradient = loss_gradient_of_ratio(expected, policy, [batch[i] for i in mine], ADVANTAGE[mine])
        with torch.no_grad():
            for p, g in zip(expected.trained(), gradient, strict=True):
                p -= 0.01 * g
    other = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(other.trained(), lr=0.01)
    trainer.update(
        other, optimizer, batch, ADVANTAGE, 2, arguments(num_minibatches=2, surgery="none", max_grad_norm=1e9), 0, ALONE
    )
    torch.testing.assert_close(flat(other), flat(expected), atol=2e-6, rtol=0)
    assert float((flat(other) - flat(policy)).norm()) > 1e-3


def loss_gradient_of_ratio(policy, old, samples, advantage):
    """Gradient of the unclipped surrogate at ``policy``, for samples of ``old``."""
    rows, spans = [s.episode.ids for s in samples], [s.episode.spans for s in samples]
    a = torch.from_numpy(np.repeat(advantage, [len(s.episode.logprobs) for s in samples])).float()
    with torch.no_grad():
        before = token_logprobs(old, rows, spans).logprobs
    ratio = (token_logprobs(policy, rows, spans).logprobs - before).exp()
    return torch.autograd.grad(-(ratio * a).sum() / len(a), policy.trained())


@pytest.mark.parametrize(
    ("ratio", "sign", "loss", "gradient"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.5, 1.0, -1.2, 0.0),  # above the clip, and wanted
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),  # below the clip, and unwanted
        (1.5, -1.0, 1.5, 1.5),
        (9.0, -1.0, 3.0, 0.0),  # the bound on negative advantages
        (1e20, -1.0, 3.0, 0.0),  # whatever the ratio
        (1e20, 1.0, -1.2, 0.0),
    ],
)
def test_policy_loss_clips(ratio, sign, loss, gradient):
    logp = torch.tensor([math.log(ratio) - 2.0], requires_grad=True)
    old = torch.tensor([-2.0])
    found, _ = trainer.policy_loss(logp, old, None, torch.zeros(1), torch.tensor([sign]), arguments())
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert logp.grad.item() == pytest.approx(gradient, rel=1e-5)


def test_policy_loss_terms():
    """KL, entropy and what is logged; a token that is far from the reference does not blow the loss up."""
    logp = torch.tensor([-1.0, -2.0, -90.0], requires_grad=True)
    old, ref = torch.tensor([-1.1, -2.0, -90.0]), torch.tensor([-1.5, -1.0, -1.0])
    entropy, a = torch.tensor([0.5, 1.0, 2.0]), torch.zeros(3)
    args = arguments(kl_coef=0.1, entropy_coef=0.01)
    loss, logged = trainer.policy_loss(logp, old, ref, entropy, a, args)
    kl = math.exp(-0.5) + 0.5 - 1 + math.exp(1.0) - 1.0 - 1 + math.exp(10.0) - 10.0 - 1
    assert loss.item() == pytest.approx(0.1 * kl - 0.01 * 3.5, rel=1e-5)
    figures = dict(zip(trainer.LOGGED, logged.tolist(), strict=True))
    assert figures["kl"] == pytest.approx(kl, rel=1e-5)
    assert figures["entropy"] == pytest.approx(3.5)
    assert figures["ratio"] == pytest.approx(math.exp(0.1) + 2)
    assert figures["old_kl"] == pytest.approx(math.exp(-0.1) + 0.1 - 1, abs=1e-6)
    loss.backward()
    assert torch.isfinite(logp.grad).all()


def test_stats_changes_no_bit(policy, batch):
    for changes in ({}, {"update_epochs": 2, "num_minibatches": 2, "kl_coef": 0.01, "micro_batch_tokens": 100}):
        one, _ = improved(policy, "none", batch, 3, **{"max_grad_norm": 1.0, **changes})
        other, (_, conflict) = improved(policy, "stats", batch, 3, **{"max_grad_norm": 1.0, **changes})
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


OPPOSED = np.array([1.0, 0.5, 0.2, 0.9, -1.0, -0.4, -0.3, -0.5])


def opposed(batch):
    """With the advantages above, two groups that want opposite things of the same episodes."""
    return [*batch[:4], *(s._replace(slot=7, group=1) for s in batch[:4])]


def test_pcgrad_projects(policy, batch):
    samples = opposed(batch)
    own = [loss_gradient(policy, samples[:4], OPPOSED[:4]), loss_gradient(policy, samples[4:], OPPOSED[4:])]
    expected = explicit_pcgrad([g.double() for g in own], [[0, 1], [0, 1]])
    for surgery, wanted in (("pcgrad", expected), ("balanced", (own[0] + own[1]).double() / 2)):
        step, (losses, conflict) = step_of(policy, surgery, samples, groups=2, advantage=OPPOSED, tau=0.05)
        torch.testing.assert_close(step.double(), wanted, atol=2e-6, rtol=1e-3)
        assert conflict.cosine[1, 0] < -0.5
        assert losses.get("losses/projections", 0) == (2 if surgery == "pcgrad" else 0)


def test_every(policy, batch):
    """In the first iteration both project, in the second one only what projects in every."""
    samples, own = opposed(batch), {"groups": 2, "advantage": OPPOSED}
    step = {name: step_of(policy, surgery, samples, **own, **changes)[0] for name, surgery, changes in (
        ("always", "pcgrad", {}), ("every second", "pcgrad", {"every": 2}), ("never", "balanced", {}))}  # fmt: skip
    assert torch.equal(step["always"], step["every second"])
    assert not torch.equal(step["always"], step["never"])
    later = {}
    for every in (1, 2):
        other = copy.deepcopy(policy)
        args = arguments(surgery="pcgrad", every=every, max_grad_norm=1e9)
        optimizer = torch.optim.SGD(other.trained(), lr=1.0)
        trainer.update(other, optimizer, samples, OPPOSED, 2, args, 1, ALONE)
        later[every] = flat(policy) - flat(other)
    assert torch.equal(later[2], step["never"])
    assert not torch.equal(later[1], step["never"])


def test_measuring_costs_no_further_backward_pass(policy, batch, monkeypatch):
    """Every episode is scored with gradient once, whatever the surgery, and so is every token."""
    scored = []

    def scores(policy, rows, spans, *args, **more):
        scored.append(sum(map(len, rows)))
        return token_logprobs(policy, rows, spans, *args, **more)

    monkeypatch.setattr(trainer, "token_logprobs", scores)
    passes = {}
    for surgery in ("none", "stats", "balanced", "pcgrad"):
        scored.clear()
        improved(policy, surgery, batch)
        passes[surgery] = list(scored)
    assert sum(passes["none"]) == sum(len(s.episode.ids) for s in batch)
    assert passes["none"] == passes["stats"] == passes["balanced"] == passes["pcgrad"]


def test_tasks_without_advantage_leave_the_batch(policy, batch):
    step, _ = step_of(policy, "none", batch, advantage=np.where(np.arange(16) < 4, 0.0, ADVANTAGE))
    expected = loss_gradient(policy, batch[4:], ADVANTAGE[4:])
    torch.testing.assert_close(step, expected, atol=2e-6, rtol=1e-3)
    step, (losses, conflict) = step_of(policy, "stats", batch, advantage=0 * ADVANTAGE)
    assert not step.any()
    assert conflict is None
    assert losses == {"losses/skipped_steps": 0.0, "losses/sampler_gap_max": 0.0}


@pytest.mark.parametrize("surgery", ["none", "pcgrad"])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(policy, batch, surgery):
    step, (losses, conflict) = step_of(
        policy, surgery, batch, advantage=np.where(np.arange(16) == 3, np.inf, ADVANTAGE)
    )
    assert not step.any()
    assert losses["losses/skipped_steps"] == 1
    if conflict is not None:
        row = trainer.conflict_row(conflict, [], 0.05)
        assert all(not math.isinf(x) for name, x in row.items() if name.startswith("cosine/"))


def test_target_kl_stops_an_iterations_updates(policy, batch):
    _, (free, _) = improved(policy, "none", batch, num_minibatches=2, update_epochs=3)
    _, (stopped, _) = improved(policy, "none", batch, num_minibatches=2, update_epochs=3, target_kl=1e-9)
    assert stopped["losses/old_kl"] != free["losses/old_kl"]
    two, _ = improved(policy, "none", batch, num_minibatches=2, update_epochs=1)
    few, _ = improved(policy, "none", batch, num_minibatches=2, update_epochs=3, target_kl=1e-9)
    assert torch.equal(flat(two), flat(few))  # the first step moves from the sampling policy, the second sees it


def test_a_task_is_never_parted():
    homes = {slot: slot % 2 for slot in range(8)}
    place = trainer.placed(homes, 2, 5)
    assert place == trainer.placed(dict(reversed(homes.items())), 2, 5)  # whoever named it first
    assert place != trainer.placed(homes, 2, 6)
    for group in (0, 1):  # each group's tasks in both halves of both minibatches
        assert sorted(place[slot] for slot in homes if homes[slot] == group) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def updates(model, cases, ranks):
    """Two updates of each case on this process's share of the slots: weights, figures, cosines, success rates."""
    start, results = {name: value.clone() for name, value in model.state_dict().items()}, []
    model.freeze_reference()
    for samples, advantage, args in cases:
        model.load_state_dict(start)
        own = [i for i, s in enumerate(samples) if s.slot in ranks.share(range(4))]
        mine, optimizer = [samples[i] for i in own], torch.optim.SGD(model.trained(), lr=0.5)
        for iteration in range(2):
            losses, conflict = trainer.update(model, optimizer, mine, advantage[own], 3, args, iteration, ranks)
        ranks.check_equal(model.trained())
        rates = trainer.follow(np.full(4, 0.5), mine, ranks).tolist()
        results.append((flat(model), losses, conflict and torch.tensor(conflict.cosine), rates))
    return results


WORLD = """
import pickle, sys
sys.path[:0] = sys.argv[1:3]
import test_grpo_pcgrad as t

t.torch.set_num_threads(1)
ranks = t.Ranks.start("cpu")
with open(sys.argv[3], "rb") as file:
    model, cases, args = pickle.load(file)
results = t.updates(model, cases, ranks)
if ranks.first:
    t.torch.save(results, sys.argv[3] + str(ranks.world))
if ranks.world == 4:
    t.trainer.train(args)
ranks.stop()
"""


@pytest.fixture(scope="module")
def worlds(warmed, batch, checkpoint, tmp_path_factory):
    """What one, two and four processes make of the same cases; and the folders of a run by one and by four."""
    several = {"num_minibatches": 2, "update_epochs": 2, "kl_coef": 0.1}
    cases = [  # of four processes, the last plays 12 to 15, and the first two the first group
        (batch, ADVANTAGE, arguments(surgery="pcgrad", tau=0.0)),
        (batch, ADVANTAGE, arguments(surgery="stats", loss_norm="constant", **several)),
        (batch[:12], ADVANTAGE[:12], arguments(surgery="balanced", **several)),
        (batch[2:3] + batch[4:12], ADVANTAGE[[2, *range(4, 12)]], arguments(surgery="none", target_kl=1e-5, **several)),
    ]
    folder = tmp_path_factory.mktemp("worlds")
    own = {"total_iterations": 2, "eval_tasks": 3, "eval_every": 1, "kl_coef": 0.01, "groups": 2, "init": checkpoint}
    runs = {1: run(trainer, arguments(**own, run_dir=str(folder / "one")))}
    found = {1: updates(copy.deepcopy(warmed), cases, ALONE)}
    data = folder / "cases"
    data.write_bytes(pickle.dumps((warmed, cases, arguments(**own, run_dir=str(folder / "four")))))
    (folder / "world.py").write_text(WORLD)
    for count in (2, 4):
        processes(count, folder / "world.py", ROOT / "tests", BENCHMARKS, data, cwd=folder)
        found[count] = torch.load(folder / f"cases{count}")
    (runs[4],) = (folder / "four").glob("*/")
    return found, runs


def test_one_two_and_four_processes_make_the_same_update(warmed, worlds):
    """Also where the last of four lost all its episodes, where a group is on one process alone, and one is nowhere."""
    found, _ = worlds
    for count in (2, 4):
        for (weights, losses, cosine, rates), (w, l, c, r) in zip(found[1], found[count], strict=True):
            assert float((weights - flat(warmed)).abs().max()) > 1e-3
            torch.testing.assert_close(w, weights, atol=1e-5, rtol=0)
            assert l == pytest.approx(losses, abs=1e-5, rel=1e-4)
            assert r == rates
            assert (c is None) == (cosine is None)
            if c is not None:
                torch.testing.assert_close(c, cosine, atol=1e-4, rtol=0, equal_nan=True)


def test_four_processes_play_the_run_of_one(worlds):
    """The same tasks, draws and figures, up to rounding; they share the calibration and the tests."""
    _, runs = worlds
    first, second = rows(runs[1]), rows(runs[4])
    assert [row.keys() for row in first] == [row.keys() for row in second]
    for a, b in zip(first, second, strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-3), name
    for name in ("validation_start", "test_start", "iteration_000000"):
        paths = [folder / "trajectories" / f"{name}.jsonl" for folder in runs.values()]
        ids = [[[s.action_ids for s in t.steps] for t in agent_gym.read_trajectories(path)] for path in paths]
        assert ids[0] == ids[1]


def test_group_gradients_that_no_memory_holds_are_refused(policy, monkeypatch):
    count = sum(p.numel() for p in policy.trained())
    pages = {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": 2 * 4 * count}  # eight vectors of float32
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    trainer.check_memory(policy, arguments(groups=4))
    trainer.check_memory(policy, arguments(groups=5, surgery="none"))
    pages["SC_PHYS_PAGES"] -= 1
    with pytest.raises(
        Refused, match=f"two float32 gradients of {count} parameters for each of 4 groups, .*--lora-rank"
    ):
        trainer.check_memory(policy, arguments(groups=4))


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


def finished_trajectory(*calls):
    cost = dict.fromkeys(CHANNELS, 1.0)
    results = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return Trajectory("t", "E-v0", {}, 0, (Step("", "", cost, results, ""),), 0.0, None, cost)


def test_pattern_groups():
    read, write = ("read_file", {"path": "a"}), ("write_file", {"path": "a", "text": "x = 1"})
    played = [finished_trajectory(*calls) for calls in ([], [read], [read, read], [read] * 3, [write, read])]
    ways = [trainer.pattern(t) for t in played]
    assert ways == [
        "short: no call", "short: read_file", "short: read_file", "long: read_file",
        "code, short: read_file+write_file",
    ]  # fmt: skip
    args = arguments(group_by="pattern", groups=3)
    grouping = trainer.form_groups([task(0, 0)], [], ways, args)
    assert grouping.names == ["short: read_file", "code, short: read_file+write_file", "other"]
    found = [grouping.of(task(0, 0), t) for t in played]
    assert [grouping.names.index(group.name) for group in found] == [2, 0, 0, 2, 1]
    late = finished_trajectory(read)  # then a call that did not run
    late.steps[0].tool_results.append({"name": "list_files", "arguments": {}, "error": "not_run"})
    assert (trainer.tools_of(late), trainer.pattern(late)) == (["read_file"], "short: read_file")
    assert grouping.of(task(0, 0), late).features == {"calls": 1.0, "tools": 1.0, "code": 0.0}
    assert found[4] == agent_gym.Group(grouping.names[1], {"calls": 2, "tools": 2, "code": 1})


def test_calibration_counts_what_has_a_verdict():
    step = Step("", "", dict.fromkeys(CHANNELS, 1.0), [], "", action_ids=[1, 2], logprobs=[-1.0, -3.0])
    passed = {"status": "pass", "reason": "passed", "score": 1.0, "diagnostics": [], "trust": "strong"}
    one = replace(finished_trajectory(), steps=(step,))
    played = [replace(one, verdict=passed, reward=1.0), one, replace(one, reward=None), one]
    tasks = [task(math.nan, math.nan), task(math.nan, math.nan)]
    trainer.calibrate(tasks, [*played, *[replace(one, reward=None)] * 4])
    assert (tasks[0].rate, tasks[0].logp) == (pytest.approx(1 / 3), -2.0)
    assert math.isnan(tasks[1].rate)
    assert math.isnan(tasks[1].logp)
    with pytest.raises(Refused, match="no episode of the calibration reached a verdict"):
        trainer.form_groups(tasks[1:], [], [], arguments())


def test_environments_have_their_share():
    for offset in np.linspace(0, 0.99, 12):
        assert trainer.dealt(100, [9.0, 1.0], offset).count(1) == 10
        assert trainer.dealt(12, [9.0, 1.0], offset).count(1) in (1, 2)
        assert trainer.dealt(12, [1.0, 1.0], offset).count(1) == 6


def test_draws():
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


def test_success_rates_follow():
    ends = [(0, 1.0), (0, 0.0), (2, 0.0)]
    samples = [trainer.Sample(SimpleNamespace(success=x), i, i, 0, None) for i, x in ends]
    np.testing.assert_allclose(trainer.follow(np.array([1.0, 1.0, 1.0]), samples, ALONE), [0.75, 1.0, 0.5])


# ---- whole runs ----


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """A run that nobody disturbed."""
    return run(trainer, arguments(
        init=checkpoint, groups=3, surgery="stats", keep_best=True, run_dir=str(tmp_path_factory.mktemp("runs"))
    ))  # fmt: skip


def test_run_files(finished):
    splits = ("validation", "test")
    pictures = [f"{kind}_{split}.png" for kind in ("passk", "diversity", "groups") for split in splits]
    for picture in ("conflict.png", *pictures):
        data = (finished / picture).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 10_000
    result = json.loads((finished / "result.json").read_text())
    assert list(result["tables"]) == ["validation", "test"]
    assert [list(tables) for tables in result["tables"].values()] == [["start", "final"]] * 2
    for table in (table for tables in result["tables"].values() for table in tables.values()):
        assert all(low <= mean <= high for mean, low, high in table.values())
        assert {"pass@1", "pass@4", "mean tool_calls", "different solutions a task"} <= set(table)
        assert table["in-budget success"] == table["pass@1"]
        assert "pass@8" not in table  # four episodes a task
        assert "violation any" not in table  # no budget
    assert (
        (finished / "table.md")
        .read_text()
        .startswith("| | validation: start | validation: final | test: start | test: final |\n|---|---|---|---|---|\n")
    )
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["best", "iteration_000004", "start"]
    for split in splits:
        start, final = (
            list(agent_gym.read_trajectories(finished / "trajectories" / f"{split}_{name}.jsonl"))
            for name in ("start", "final")
        )
        assert {t.env_kwargs["split"] for t in final} == {split}
        assert [t.task_hash for t in start] == [t.task_hash for t in final]
        assert len(final) == 16
        assert result["tables"][split]["final"]["pass@1"][0] == pytest.approx(np.mean([t.success for t in final]))


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
    assert [i for i, row in enumerate(history) if "validation/pass@1" in row] == [1]
    assert history[1]["validation/success"] == history[1]["validation/in_budget_success"]  # without a budget
    assert history[1]["validation/success"] == pytest.approx(history[1]["validation/pass@1"])
    with (finished / "metrics.jsonl").open() as file:
        timed = [json.loads(line) for line in file]
    for row in timed:
        assert row["memory/peak_gib"] > 0 < row["seconds/rollout"]
        assert row["speed/tokens_per_second"] > 0


def test_every_logged_metric_is_explained(finished):
    """The page has the keys of this run, and beside them only what other flags log."""
    page = (ROOT / "docs" / "grpo_pcgrad.md").read_text(encoding="utf-8")
    page = page.split("## Logged metrics")[1].split("## The run")[0]
    explained = {
        key for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for key in re.findall(r"`([\w/@]+)`", cell)
    }
    with (finished / "metrics.jsonl").open() as file:
        keys = {key for line in file for key in json.loads(line)}
    logged = {re.sub(r"\d+_\d+$", "I_J", re.sub(r"group/\d+", "group/I", re.sub(r"@\d+", "@K", key))) for key in keys}
    assert explained == logged | {"losses/projections"}


def test_groups_are_in_the_trajectories(finished):
    groups = json.loads((finished / "groups.json").read_text())
    assert groups["names"] == [f"difficulty {i} of 3" for i in (1, 2, 3)]
    assert len(groups["edges"]) == 2
    assert len(groups["pool"]) == 24
    (first, *_), history = sorted((finished / "trajectories").glob("iteration_*")), rows(finished)
    known = {t["id"]: t for t in groups["pool"]}
    read = list(agent_gym.read_trajectories(first))
    assert len(read) == 32
    for i, name in enumerate(groups["names"]):
        mine = [t for t in read if t.group.name == name]
        assert len(mine) / len(read) == history[0][f"group/{i}_share"]
        if mine:
            assert np.mean([t.success for t in mine]) == pytest.approx(history[0][f"group/{i}_success"])
        for t in mine:
            assert t.group.features["reference_success"] == known[t.task_id]["rate"]
            assert t.group.features["reference_logp"] == known[t.task_id]["logp"]
    written = [s for t in read for s in t.steps]
    assert history[0]["charts/generated_tokens"] == groups["tokens"] + sum(len(s.action_ids) for s in written)
    assert history[0]["charts/cut_turns"] == np.mean([isinstance(s.action, dict) for s in written])
    surprise = -np.mean([logp for s in written for logp in s.logprobs])
    assert history[0]["charts/entropy"] == pytest.approx(surprise, rel=1e-6)


def test_none_and_stats_leave_the_same_checkpoint(finished, checkpoint, tmp_path):
    """Every file of it, to the bit."""
    args = replace(resumed(finished), resume=None, surgery="none", keep_best=False, run_dir=str(tmp_path), eval_every=0,
                   eval_start=False, eval_samples=1)  # fmt: skip
    other = run(trainer, args)
    one, two = (f / "checkpoints" / "iteration_000004" for f in (finished, other))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for path in one.iterdir():
        if path.name != "state.pt":  # a zip, compared below
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    states = [torch.load(folder / "state.pt")["state"] for folder in (one, two)]
    assert states[0].pop("best") > states[1].pop("best") == -1.0  # of tests, which only the first one had
    assert repr(states[0]) == repr(states[1])
    assert not (other / "conflict.png").exists()
    assert not (other / "checkpoints" / "best").exists()
    start, kept = (other / "checkpoints" / "start" / "model.safetensors").read_bytes(), one / "model.safetensors"
    assert start == (tmp_path.parent / checkpoint / "model.safetensors").read_bytes() != kept.read_bytes()


def test_files_hold_strict_json(finished):
    for name in ("args.json", "groups.json", "result.json"):
        json.loads((finished / name).read_text(), parse_constant=pytest.fail)
    for path in finished.glob("trajectories/*.jsonl"):
        for t in agent_gym.read_trajectories(path):
            assert t.env_kwargs["budget"] == {}
            assert re.fullmatch("[0-9a-f]{32}", t.task_hash)


def test_killed_in_the_middle_of_a_checkpoint_and_extended(finished, tmp_path, monkeypatch):
    """A finished run goes on. Half a checkpoint is no checkpoint: the run continues from the one before, digit by
    digit; what it started from may be gone."""
    init = tmp_path / "init"
    shutil.copytree(resumed(finished).init, init)
    own = {"resume": None, "init": str(init), "total_iterations": 2, "eval_samples": 1, "keep_best": False}
    folder = run(trainer, replace(resumed(finished), **own, run_dir=str(tmp_path / "runs")))
    assert len(rows(folder)) == 2
    torch_save = torch.save

    def die(data, path):
        if data["state"].get("iteration") == 4:
            raise KeyboardInterrupt
        torch_save(data, path)

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resumed(folder, "--total-iterations", "4"))
    monkeypatch.undo()
    kept = [p.name for p in (folder / "checkpoints").glob("[!.]*")]
    assert sorted(kept) == ["iteration_000002", "start"]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "charts/suc')  # a row that a crash cut off
    shutil.rmtree(init)
    trainer.train(resumed(folder))
    found, expected = rows(folder), rows(finished)
    for name in [
        name for name in expected[1] if name.startswith("validation/")
    ]:  # the end of the shorter run had another
        del expected[1][name]
    assert found == expected
    assert (folder / "groups.json").read_text() == (finished / "groups.json").read_text()
    one, two = (f / "checkpoints" / "iteration_000004" / "model.safetensors" for f in (folder, finished))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(Refused, match="--seed is 3 in this run and cannot change"):
        resumed(folder, "--seed", "99")


@pytest.mark.parametrize("method", ["dr-grpo", "resample", "pass-at-k", "unique"])
def test_methods_run(method, checkpoint, tmp_path):
    kind = {"dr-grpo": "pattern", "pass-at-k": "task-type"}.get(method, "difficulty")
    own = {"total_iterations": 2, "eval_tasks": 0, "run_dir": str(tmp_path)}
    folder = run(
        trainer, arguments(init=checkpoint, method=method, pass_k=2, group_by=kind, kl_coef=0.01, groups=4, **own)
    )
    history = rows(folder)
    assert len(history) == 2
    assert history[0]["losses/kl"] == pytest.approx(0.0, abs=1e-5)
    assert history[1]["losses/kl"] > history[0]["losses/kl"]
    names = json.loads((folder / "groups.json").read_text())["names"]
    if kind == "task-type":
        assert names == ["SendCommon-v0", "SendRare-v0"]
    if kind == "pattern":
        assert names[-1] == "other"
        assert any(name.startswith("short: ") for name in names)
    if method == "resample":
        state = torch.load(folder / "checkpoints" / "iteration_000002" / "state.pt")["state"]
        assert state["rates"] != [t["rate"] for t in json.loads((folder / "groups.json").read_text())["pool"]]


def test_several_environments_from_scratch(tmp_path):
    """The tiny model; what the warm start made is kept when the run is cut off before its first checkpoint."""
    own = {
        "env_id": ("APIAgent-v0", "SQL-v0"),
        "env_kwargs": ('{"domains": ["shop"], "difficulty": 1, "max_turns": 2}', '{"difficulty": 1, "max_turns": 2}'),
        "total_iterations": 1, "num_episodes": 8, "pool_tasks": 8, "eval_tasks": 2, "eval_samples": 2, "eval_every": 0,
        "max_context": 1024, "group_by": "task-type", "run_dir": str(tmp_path),
    }  # fmt: skip
    folder = run(trainer, arguments(**own, warm={"updates": 2, "demonstrations": 20}))
    assert json.loads((folder / "groups.json").read_text())["names"] == ["APIAgent-v0", "SQL-v0"]
    read = list(agent_gym.read_trajectories(folder / "trajectories" / "iteration_000000.jsonl"))
    assert [t.env_id for t in read] == ["APIAgent-v0"] * 4 + ["SQL-v0"] * 4
    assert {t.env_id: t.group.name for t in read} == {"APIAgent-v0": "APIAgent-v0", "SQL-v0": "SQL-v0"}
    first = rows(folder)
    shutil.rmtree(folder / "checkpoints" / "iteration_000001")
    trainer.train(resumed(folder))
    assert rows(folder) == first


def test_adapters_in_bfloat16_with_checkpointing_killed_and_resumed(policy, dialogues, tmp_path):
    """A model from a folder, started from a checkpoint whose adapters are not zero: the KL to the start is zero."""
    taught = '{% if tools %}<tool_call>{"name": "x", "arguments": {}}</tool_call>{% endif %}'  # no room for more
    policy.tokenizer.chat_template = taught + policy.tokenizer.chat_template
    learn(policy, Chat(policy.tokenizer, stops=policy.stops), dialogues[:100], 30)
    policy.net.save_pretrained(tmp_path / "base")
    policy.tokenizer.save_pretrained(tmp_path / "base")
    start = load(tmp_path / "base", adapters=2)
    with torch.no_grad():
        for p in start.trained():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    start.save(tmp_path / "init")
    own = {
        "model": str(tmp_path / "base"), "init": str(tmp_path / "init"), "lora_rank": 2, "dtype": "bfloat16",
        "checkpointing": True, "total_iterations": 2, "checkpoint_every": 1, "eval_tasks": 0, "kl_coef": 0.1,
        "learning_rate": 1e-2, "group_by": "task-type", "pool_tasks": 8, "warm": {"updates": None},
        "max_context": 128,
    }  # fmt: skip
    folder = run(trainer, arguments(**own, run_dir=str(tmp_path / "one")))
    history = rows(folder)
    assert history[0]["losses/kl"] == pytest.approx(0.0, abs=1e-6)
    assert history[0]["losses/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert history[1]["losses/kl"] > 0.0
    short = run(trainer, arguments(**{**own, "total_iterations": 1}, run_dir=str(tmp_path / "two")))
    shutil.rmtree(tmp_path / "init")
    trainer.train(resumed(short, "--total-iterations", "2"))
    assert rows(short) == history
    ends = [
        (f / "checkpoints" / "iteration_000002" / "adapter_model.safetensors").read_bytes() for f in (folder, short)
    ]
    assert ends[0] == ends[1]


def test_what_a_wrapper_cuts_has_no_verdict(checkpoint, tmp_path):
    """It is neither a failure nor a success, and a run of nothing else says so."""
    short = ('{"max_turns": 4, "max_episode_steps": 1}',) * 2
    args = arguments(env_kwargs=short, init=checkpoint, run_dir=str(tmp_path), group_by="task-type", eval_tasks=0)
    with pytest.raises(Refused, match=r"iteration 0: no episode reached a verdict \(cut by a wrapper\)"):
        trainer.train(args)
    two = ('{"max_turns": 4, "max_episode_steps": 2}', '{"max_turns": 4}')
    changes = {"env_kwargs": two, "total_tokens": 1, "run_dir": str(tmp_path / "two"), "method": "pass-at-k"}
    folder = run(trainer, replace(args, **changes))
    (row,) = rows(folder)  # one iteration is more than one token, and the end of the run
    assert (folder / "checkpoints" / "iteration_000001").is_dir()
    kept = list(agent_gym.read_trajectories(folder / "trajectories" / "iteration_000000.jsonl"))
    assert 16 <= len(kept) == 32 - row["charts/infra"] < 32
    assert row["charts/success"] == np.mean([t.success for t in kept])


def test_the_constructed_conflict_is_seen(checkpoint, tmp_path):
    """Two types that differ in the first call, one nine times as frequent: their gradients point away from each other,
    further than noise would take them."""
    own = {
        "env_weights": (9.0, 1.0), "num_episodes": 320, "group_size": 8, "pool_tasks": 80, "total_iterations": 3,
        "eval_tasks": 0, "eval_every": 0, "group_by": "task-type", "surgery": "stats", "run_dir": str(tmp_path),
    }  # fmt: skip
    folder = run(trainer, arguments(init=checkpoint, **own))
    cosine, floor = demo.conflict(folder)
    assert cosine < floor < 0.0


# ---- wrong input ----


@pytest.fixture
def refused(tmp_path):
    """What a run that cannot work ends with: one sentence."""

    def ask(**changes):
        with pytest.raises(Refused) as ended:
            trainer.train(arguments(**{"run_dir": str(tmp_path / "runs"), **changes}))
        text = str(ended.value)
        assert "\n" not in text
        return text

    return ask


def test_wrong_environments(refused):
    one = {"env_id": ("APIAgent-v0",)}
    assert refused(**one, env_kwargs=("{difficulty: 1}",)).startswith("--env-kwargs is not valid JSON: ")
    assert refused(**one, env_kwargs=("[1]",)).startswith("--env-kwargs must be a JSON object")
    assert refused(**one, env_kwargs=('{"split": "test"}',)).startswith("--env-kwargs: split is set by the trainer")
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
    assert refused(tau=7.0) == "--tau must be below 1: no cosine is below -1; not 7.0"
    assert refused(tau=math.nan) == "--tau must be 0 or more, not nan"
    assert refused(every=0) == "--every must be 1 or more, not 0"
    assert refused(total_iterations=-1) == "--total-iterations must be 0 or more, not -1"
    assert refused(max_new_tokens=0) == "--max-new-tokens must be 1 or more, not 0"
    assert refused(pool_tasks=3) == "--pool-tasks 3 is fewer than the groups or environments"
    assert refused(method="pass-at-k", pass_k=5) == "--pass-k must be from 2 to --group-size 4, not 5"
    assert refused(group_size=1).startswith("--group-size must be 2 or more: ")
    assert refused(num_episodes=6) == "--num-episodes 6 is no multiple of --group-size 4"
    assert refused(temperature=0.0) == "--temperature must be a number above 0, not 0.0"
    assert refused(keep_best=True, eval_every=0).startswith("--keep-best needs --eval-every")
    assert refused(budget={"relative": 1.3}).startswith("--budget.relative needs a single environment")
    assert "--budget.tool-calls" in refused(budget={"tool_calls": -1.0}, env_id=(COMMON,), init=None)


def test_wrong_folders(refused, tmp_path):
    assert str(tmp_path / "nothing") in refused(init=str(tmp_path / "nothing"))
    with pytest.raises(Refused, match="there is no run in this folder"):
        resumed(tmp_path / "nothing")


def test_wrong_input_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grpo_pcgrad.py", "--groups", "20", "--run-dir", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == "grpo_pcgrad: --groups must be from 2 to 8, not 20"
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
