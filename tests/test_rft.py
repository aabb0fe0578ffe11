"""rft.py: packing, masks, selection, trajectory files, a teacher over HTTP, whole runs, killed runs, wrong input."""

import ast
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop_play import TASKS, call, turn, write_tasks

torch = pytest.importorskip("torch", reason="the trainer needs the extra 'train'")
pytest.importorskip("transformers", reason="the trainer needs the extra 'train'")

import gymnasium as gym  # noqa: E402

import agent_gym  # noqa: E402
from agent_gym import PARSERS, Step, Trajectory  # noqa: E402
from agent_gym.metrics import call_sequence  # noqa: E402
from agent_gym.wrappers import RecordTrajectory  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "cleanrl_llm" / "rft.py"
SOURCE = SCRIPT.read_text(encoding="utf-8")
PAGE = ROOT / "docs" / "rft.md"


def load_module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "cleanrl_llm" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


trainer = load_module("rft")


def small_model(tokenizer, seed):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.06,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@pytest.fixture(scope="module", autouse=True)
def small():
    """One thread, since sums depend on their number and weights are compared digit by digit; and a smaller model."""
    before, threads = trainer.tiny_model, torch.get_num_threads()
    torch.set_num_threads(1)
    trainer.tiny_model = small_model
    yield
    trainer.tiny_model = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kwargs(tmp_path_factory):
    """Four easy tasks from a file, which a small model soon knows by heart."""
    return {"tasks": write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", TASKS[1:5]), "max_turns": 5}


@pytest.fixture(scope="module")
def arguments(kwargs, tmp_path_factory):
    def make(**changes):
        warm = {"updates": 150, "demonstrations": 40, "batch_size": 8, "lr": 1e-2, "wasteful": 0.5}
        warm |= changes.pop("warm", {})
        settings = {
            "env_kwargs": json.dumps(kwargs), "keep": "success", "rounds": 2, "tasks_per_round": 4, "parallel": 8,
            "epochs": 2, "batch_size": 4, "max_new_tokens": 32, "eval_episodes": 6, "pass_k": 2,
            "pass_tasks": 3, "device": "cpu", "run_dir": str(tmp_path_factory.mktemp("runs")),
            "seed": 3,
            "budget": trainer.Budget(**changes.pop("budget", {"tool_calls": 2.0, "output_tokens": 60.0})),
            "warm": trainer.WarmStart(**warm),
        }  # fmt: skip
        return trainer.Args(**{**settings, **changes})

    return make


def run(args):
    """``train`` in this process; its run folder."""
    before = set(Path(args.run_dir).glob("*"))
    trainer.train(args)
    (folder,) = set(Path(args.run_dir).glob("*")) - before
    return folder


def settled(args):
    trainer.settle(args, torch.device("cpu"))
    return args


def rows(folder):
    """The metrics; neither NaN nor infinity is JSON."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def kept(folder, number):
    return list(agent_gym.read_trajectories(folder / "trajectories" / f"round_{number:02d}_kept.jsonl"))


def data_files(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "trajectories").iterdir())}


def weights(folder, args):
    policy, _ = trainer.load(max((folder / "checkpoints").glob("round_*")), settled(args), torch.device("cpu"))
    return dict(policy.model.named_parameters())


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """A run that nobody disturbed."""
    return run(arguments(run_dir=str(tmp_path_factory.mktemp("finished"))))


@pytest.fixture(scope="module")
def policy(finished, arguments):
    """The warm start of that run."""
    return trainer.load(finished / "checkpoints" / "warm", settled(arguments()), torch.device("cpu"))[0]


@pytest.fixture(scope="module")
def episodes(policy, kwargs, arguments):
    envs = [gym.make("APIAgent-v0", on_budget="record", split="train", **kwargs) for _ in range(10)]
    for env in envs:
        env.unwrapped.token_counter = policy.count
    found = [trainer.start(policy, env, 100 + i) for i, env in enumerate(envs)]
    trainer.rollout(policy, found, settled(arguments()), 5)
    return found


# ---- packing and masks ----


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 400))
def test_packs_hold_every_dialogue_once_within_the_limit(lengths, most):
    parts = trainer.packs(lengths, most)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or sum(lengths[i] for i in part) <= most for part in parts)
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert all(a + b > most for n, a in enumerate(loads) for b in loads[n + 1 :])  # no two rows would fit into one


@pytest.mark.parametrize("row", [1, 300, 10_000])
def test_packed_losses_are_those_of_each_dialogue_alone(policy, episodes, row):
    """Values and gradients, in one row and in several; and the check can fail: without restarting positions they
    differ."""
    ids, spans = [e.ids for e in episodes], [e.spans for e in episodes]
    packed = trainer.score(policy, ids, spans, row)
    packed.sum().backward()
    together = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    alone, unpacked = [], []
    for e in episodes:
        logp = trainer.score(policy, [e.ids], [e.spans], row)
        logp.sum().backward()
        alone.append(logp.detach())
        with torch.no_grad():
            table = torch.log_softmax(policy.model(input_ids=torch.tensor([e.ids])).logits[0].float(), -1)
        unpacked += [float(table[c - 1, e.ids[c]]) for begin, end in e.spans for c in range(begin, end)]
    torch.testing.assert_close(packed.detach(), torch.cat(alone), atol=1e-5, rtol=0)
    np.testing.assert_allclose(packed.detach().numpy(), unpacked, atol=1e-5)
    for one, p in zip(together, policy.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, atol=1e-4, rtol=1e-4)
    policy.zero_grad()
    joined = [token for one in ids for token in one]
    shifted = [(b + at, e + at) for at, own in zip(np.cumsum([0, *map(len, ids)]), spans, strict=False) for b, e in own]
    with torch.no_grad():
        assert float((trainer.score(policy, [joined], [shifted], row) - packed).abs().max()) > 0.01


def test_the_loss_touches_no_other_token(policy, episodes, monkeypatch):
    """The gradient of the last hidden states is zero but where a model token is predicted."""
    states = []
    original = trainer.Policy.hidden

    def hidden(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        found.retain_grad()
        states.append(found)
        return found

    monkeypatch.setattr(trainer.Policy, "hidden", hidden)
    episodes = sorted(episodes, key=lambda e: -len(e.ids))  # as they lie in the one row
    logp = trainer.score(policy, [e.ids for e in episodes], [e.spans for e in episodes], 10_000)
    assert len(logp) == sum(len(e.logprobs) for e in episodes)
    logp.sum().backward()
    policy.zero_grad()
    touched = (states[0].grad[0].abs().sum(-1) > 0).tolist()
    at, predicting = 0, set()
    for e in episodes:
        predicting |= {at + c - 1 for begin, end in e.spans for c in range(begin, end)}
        at += len(e.ids)
    assert [c for c, hit in enumerate(touched) if hit and c not in predicting] == []
    assert sum(touched) >= 0.9 * len(predicting)  # a token of probability 1 has gradient 0


def test_a_file_gives_back_the_sampled_tokens(policy, episodes, arguments, tmp_path):
    """What is trained on is, id by id, what was sampled: prompt, turns and answers."""
    path = tmp_path / "episodes.jsonl"
    agent_gym.write_trajectories(path, (e.trajectory() for e in episodes))
    dialogues = trainer.reopened(trainer.read(path), path, arguments())
    assert len({len(e.steps) for e in episodes}) > 1
    for e, dialogue in zip(episodes, dialogues, strict=True):
        ids, spans = trainer.tokenized(policy, dialogue)
        assert ids == e.ids[: len(ids)]
        assert (ids[-1], spans) == (e.ids[e.spans[-1][1] - 1], e.spans)


def test_ids_of_another_tokenizer_give_way_to_the_text(policy, episodes, arguments, tmp_path, capsys):
    path = tmp_path / "episodes.jsonl"
    one = episodes[0].trajectory()
    shifted = [replace(s, action_ids=[i + 1 for i in s.action_ids]) for s in one.steps]
    huge = [replace(s, action_ids=[10**6]) for s in one.steps]
    plain = [replace(s, action_ids=None, logprobs=None) for s in one.steps]
    agent_gym.write_trajectories(path, (replace(one, steps=tuple(steps)) for steps in (shifted, huge, plain)))
    dialogues = trainer.reopened(trainer.read(path), path, arguments())
    data = trainer.encoded(policy, dialogues, settled(arguments()))
    assert data[0] == data[1] == data[2]
    for (begin, end), step in zip(data[0][1], one.steps, strict=True):
        assert data[0][0][begin:end] == [*policy.encode(step.action), policy.eos]
    n = len(one.steps)
    said = f"{2 * n} of {2 * n} turns with ids were sampled with another tokenizer: their text is used\n"
    assert capsys.readouterr().out == said


# ---- selection ----


def made(task, calls, passed=True, cost=(1.0, 10.0, 20.0, 50.0), words="", infra=False):
    """A hand-made trajectory; ``calls`` are order numbers that are looked at."""
    results = [{"name": "get_order", "arguments": {"order_id": c}} for c in calls]
    total = dict(zip(agent_gym.CHANNELS, cost, strict=True))
    step = Step("", words, total, results, "", terminated=True)
    status = "infra" if infra else "pass" if passed else "fail"
    verdict = {"status": status, "reason": status, "score": 0.0, "diagnostics": [], "trust": "strong"}
    return Trajectory(task, "APIAgent-v0", {}, 0, (step,), None if infra else float(passed), verdict, total)


BUDGET = {"budget": {"tool_calls": 2.0, "output_tokens": 60.0, "read_tokens": 100.0, "latency_ms": math.inf}}


def test_only_what_passed_within_every_bound_is_kept(arguments):
    good, bound = made("a", "1"), made("b", "1", cost=(2.0, 60.0, 100.0, 1e9))
    calls, tokens = made("c", "1", cost=(3.0, 1.0, 1.0, 1.0)), made("d", "1", cost=(1.0, 61.0, 1.0, 1.0))
    reading = made("g", "1", cost=(1.0, 1.0, 101.0, 1.0))
    rest = [made("e", "1", passed=False), made("f", "1", infra=True)]
    everything = [good, calls, *rest, bound, tokens, reading]
    chosen, counts = trainer.select(everything, arguments(keep="success-in-budget", **BUDGET))
    assert chosen == [good, bound]
    assert counts == {"eligible": 2, "distinct": 2, "kept": 2, "tasks_kept": 2}
    assert trainer.select(everything, arguments(keep="success", **BUDGET))[0] == [good, calls, bound, tokens, reading]


def test_equal_calls_count_once_and_the_cap_holds(arguments):
    first, twin, other = made("a", "1", words="so"), made("a", "1", words="and so"), made("a", "12")
    third, elsewhere = made("a", "2"), made("b", "1")
    samples = [first, twin, other, third, elsewhere]
    chosen, counts = trainer.select(samples, arguments(most_per_task=2, **BUDGET))
    assert chosen == [first, other, elsewhere]
    assert counts == {"eligible": 5, "distinct": 4, "kept": 3, "tasks_kept": 2}
    assert trainer.select(samples, arguments(most_per_task=9, **BUDGET))[0] == [first, other, third, elsewhere]


def test_the_order_of_arguments_is_no_difference():
    one, other = made("a", "1"), made("a", "1")
    one.steps[0].tool_results[0]["arguments"] = {"x": 1, "y": 2}
    other.steps[0].tool_results[0]["arguments"] = {"y": 2, "x": 1}
    assert call_sequence(one) == call_sequence(other)


def test_cheapest_is_relative_to_the_bounds(arguments):
    """3 calls of 2, 6 tokens of 60 and 50 of 100 are dearer than 1 call and 60 tokens; over the budget may still be
    cheapest."""
    calls, tokens = made("a", "111", cost=(3.0, 6.0, 50.0, 0.0)), made("a", "1", cost=(1.0, 60.0, 0.0, 9e9))
    only = made("b", "1", cost=(5.0, 500.0, 0.0, 1.0))
    failed = made("b", "2", passed=False, cost=(0.0, 1.0, 0.0, 0.0))
    args = arguments(keep="cheapest-per-task", **BUDGET)
    assert trainer.price(calls, args) == pytest.approx(2.1)
    assert trainer.price(tokens, args) == pytest.approx(1.5)
    chosen, counts = trainer.select([calls, tokens, only, failed], args)
    assert chosen == [tokens, only]
    assert counts == {"eligible": 3, "distinct": 3, "kept": 2, "tasks_kept": 2}
    free = arguments(keep="cheapest-per-task", budget=dict.fromkeys(agent_gym.CHANNELS, math.inf))
    assert trainer.select([calls, tokens], free)[0] == [calls]  # fewer tokens


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "1", "2", "12"]), st.booleans()), max_size=20))
def test_selection_in_general(drawn):
    args = trainer.Args(keep="success", most_per_task=2, budget=trainer.Budget(*[math.inf] * 4))
    samples = [made(task, calls, passed) for task, calls, passed in drawn]
    chosen, counts = trainer.select(samples, args)
    keys = [(t.task_id, call_sequence(t)) for t in chosen]
    assert len(set(keys)) == len(keys) == counts["kept"]
    assert all(t.success and t in samples for t in chosen)
    for task in "ab":
        ways = {call_sequence(t) for t in samples if t.success and t.task_id == task}
        assert sum(t.task_id == task for t in chosen) == min(2, len(ways))


# ---- whole runs ----


def test_run_files(finished, arguments):
    assert (finished / "rounds.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == ["round_02", "warm"]
    names = [f"round_{n:02d}_{what}" for n in (1, 2) for what in ("kept.jsonl", "samples.jsonl", "tokens.json")]
    tests = [f"{kind}_{when}.jsonl" for kind in ("pass", "test") for when in ("round_1", "round_2", "start")]
    assert sorted(data_files(finished)) == sorted([*names, *tests])
    result = json.loads((finished / "result.json").read_text())
    assert list(result["tables"]) == list(result["counts"]) == ["start", "round 1", "final"]
    for table in result["tables"].values():
        assert {"success@1", "pass@2", "in-budget success", "mean tool_calls"} <= set(table)
        assert all(low <= mean <= high for mean, low, high in table.values())
    table = (finished / "table.md").read_text()
    assert table.startswith("| | start | round 1 | final |\n|---|---|---|---|\n")
    for name in ("kept", "distinct", "generated tokens"):
        shown = " | ".join(str(count[name]) for count in result["counts"].values())
        assert f"| {name} | {shown} |\n" in table


def test_run_figures(finished):
    """The metrics follow from the trajectory files."""
    history = rows(finished)
    assert [row["iteration"] for row in history] == [0, 1, 2]
    assert all(math.isfinite(x) for row in history for x in row.values())
    spent, pool = 0, []
    for number in (1, 2):
        samples = list(agent_gym.read_trajectories(finished / "trajectories" / f"round_{number:02d}_samples.jsonl"))
        assert len(samples) == 16
        assert len({t.seed for t in samples}) == 4  # four tasks, four episodes each
        assert not pool or not {t.seed for t in samples} & {t.seed for t in pool}  # fresh ones
        pool += samples
        spent += sum(len(s.action_ids) for t in samples for s in t.steps)
        row, chosen = history[number], kept(finished, number)
        assert row["charts/generated_tokens"] == spent
        assert row["charts/samples"] == 16
        assert row["charts/sample_success"] == np.mean([t.success for t in samples])
        assert row["charts/kept"] == len(chosen) > 0
        assert row["charts/eligible"] == sum(t.success for t in pool) >= row["charts/distinct"] >= row["charts/kept"]
        assert all(t in pool and t.success for t in chosen)
        test = list(agent_gym.read_trajectories(finished / "trajectories" / f"test_round_{number}.jsonl"))
        more = list(agent_gym.read_trajectories(finished / "trajectories" / f"pass_round_{number}.jsonl"))
        assert (len(test), len(more)) == (6, 3)
        assert [t.seed for t in more] == [t.seed for t in test[:3]]
        assert row["charts/pass_at_1"] == np.mean([t.success for t in test])
        both = [a.success or b.success for a, b in zip(test, more, strict=False)]
        assert row["charts/pass_at_k"] == np.mean(both)
        assert row["charts/in_budget_success"] == np.mean(
            [
                t.success and not t.violates({"tool_calls": 2.0, "output_tokens": 60.0, "latency_ms": 200.0})
                for t in test
            ]
        )


def test_refits_raise_the_likelihood_of_what_was_kept(finished, policy, arguments):
    args = settled(arguments())
    after = trainer.load(finished / "checkpoints" / "round_02", args, torch.device("cpu"))[0]
    path = finished / "trajectories" / "round_02_kept.jsonl"
    data = trainer.encoded(policy, trainer.reopened(trainer.read(path), path, args), args)
    with torch.no_grad():
        before_, after_ = (
            float(trainer.score(p, [x for x, _ in data], [s for _, s in data], 256).mean()) for p in (policy, after)
        )
    assert after_ > before_
    assert rows(finished)[2]["losses/refit"] > 0


def test_ppo_c3rl_takes_the_checkpoint(finished):
    """Weights, tokenizer and rank; value heads are new."""
    ppo = load_module("ppo_c3rl")
    for name in ("warm", "round_02"):
        folder = finished / "checkpoints" / name
        own = trainer.load(folder, trainer.Args(), torch.device("cpu"))[0]
        for critic in (False, True):
            other, _ = ppo.load(folder, ppo.Args(critic=critic), torch.device("cpu"))
            assert same_weights(dict(own.model.named_parameters()), dict(other.model.named_parameters()))
            assert other.encode("Refund order O2001.") == own.encode("Refund order O2001.")


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (rows(finished), (finished / "table.md").read_text(), data_files(finished))
    trainer.train(trainer.Args(resume=str(finished)))
    assert (rows(finished), (finished / "table.md").read_text(), data_files(finished)) == before


def test_sampling_ends_with_the_token_limit(finished, arguments):
    """After the batch that reaches it; the round goes on with what there is, and no further round begins."""
    limit = rows(finished)[1]["charts/generated_tokens"] / 4
    settings = {"init": str(finished / "checkpoints" / "warm"), "rounds": 5, "eval_episodes": 0}
    folder = run(arguments(total_tokens=int(limit), **settings))
    (row,) = rows(folder)
    assert row["charts/samples"] == 8
    whole = (finished / "trajectories" / "round_01_samples.jsonl").read_text().splitlines()
    assert (folder / "trajectories" / "round_01_samples.jsonl").read_text().splitlines() == whole[:8]


def test_fitting_the_oracle_or_its_file_is_the_same(arguments):
    """The demonstrations that a run wrote give, as --data, the same tokenizer, weights and test."""
    settings = {"stage": "sft", "warm": {"updates": 15, "demonstrations": 20}, "eval_start": False}
    first = run(arguments(**settings))
    path = first / "trajectories" / "round_01_kept.jsonl"
    second = run(arguments(data=(str(path),), exp_name="from_file", **settings))
    assert same_weights(weights(first, arguments()), weights(second, arguments()))
    assert data_files(first) == data_files(second)
    assert 10 < len(kept(first, 1)) <= 20  # some waste their turns until the limit
    table = json.loads((first / "result.json").read_text())
    assert list(table["tables"]) == ["final"]
    assert table["generated_tokens"] == 0


def test_fitting_a_checkpoint_to_a_file_trains_on_what_passed(finished, arguments, capsys, tmp_path):
    sampled = list(agent_gym.read_trajectories(finished / "trajectories" / "round_01_samples.jsonl"))
    failed = replace(sampled[0], reward=0.0, verdict=agent_gym.Verdict("fail", "wrong_state", 0.0).to_dict())
    path = tmp_path / "samples.jsonl"
    agent_gym.write_trajectories(path, [*sampled, failed])
    read = list(agent_gym.read_trajectories(path))
    passed = [t for t in read if t.success]
    assert 0 < len(passed) < len(read)
    settings = {"init": str(finished / "checkpoints" / "warm"), "eval_episodes": 0}
    folder = run(arguments(stage="sft", data=(str(path),), **settings))
    assert f"{path}: {len(passed)} of {len(read)} episodes passed\n" in capsys.readouterr().out
    assert kept(folder, 1) == passed
    assert not same_weights(weights(folder, arguments()), weights(finished, arguments()))


def test_adapters_on_a_model_from_a_folder(policy, finished, arguments, tmp_path):
    """Adapters that start at zero, and a checkpoint that holds them alone; ppo_c3rl takes it."""
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    path = str(finished / "trajectories" / "round_01_samples.jsonl")
    args = arguments(
        stage="sft", data=(path,), model=str(tmp_path / "model"), lora_rank=2, eval_episodes=2, pass_tasks=1,
        max_context=3000, learning_rate=1e-2,
    )  # fmt: skip
    folder = run(args)
    checkpoint = folder / "checkpoints" / "round_01"
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not (checkpoint / "model.safetensors").exists()
    ppo = load_module("ppo_c3rl")
    other, _ = ppo.load(checkpoint, ppo.Args(model=args.model, lora_rank=2), torch.device("cpu"))
    assert any(float(p.detach().abs().max()) > 0 for n, p in other.named_parameters() if "lora_B" in n)


# ---- killed runs ----


def killed_after(calls):
    """A stand-in that lets ``calls`` calls pass and kills the process in the next, as ``kill -9`` does."""

    def wrap(original):
        left = [calls]

        def counted(*args, **kwargs):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(*args, **kwargs)

        return counted

    return wrap


KILLS = {
    "warm start": ("apply_gradients", 10),
    "warm checkpoint": ("torch.save", 0),
    "test of the start": ("advance", 5),
    "first batch": ("rollout", 2),
    "second batch": ("part", 1),
    "batches put together": ("write", 5),
    "selection": ("agent_gym.write_trajectories", 2),
    "first refit": ("apply_gradients", 151),
    "first checkpoint": ("torch.save", 1),
    "second test": ("agent_gym.write_trajectories", 4),
    "second round": ("rollout", 7),
    "second checkpoint": ("torch.save", 2),
    "end": ("draw_rounds", 0),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("point", list(KILLS))
def test_killed_and_resumed(point, finished, arguments, tmp_path):
    """SIGKILL, then --resume: the same files, byte by byte, the same rows, and the same weights."""
    args = arguments(run_dir=str(tmp_path))
    name, calls = KILLS[point]
    child = os.fork()
    if not child:
        wrap = killed_after(calls)
        if name == "torch.save":
            torch.save = wrap(torch.save)
        elif name == "agent_gym.write_trajectories":
            agent_gym.write_trajectories = wrap(agent_gym.write_trajectories)
        elif name == "part":  # half a batch's file is written when the process dies
            replaced = Path.replace
            dies = wrap(replaced)
            Path.replace = lambda self, to: (dies if ".txt" in self.name else replaced)(self, to)
        else:
            setattr(trainer, name, wrap(getattr(trainer, name)))
        try:
            trainer.train(args)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert not (folder / "result.json").exists()
    trainer.train(trainer.Args(resume=str(folder), seed=99))
    assert data_files(folder) == data_files(finished)
    assert rows(folder) == rows(finished)
    assert same_weights(weights(folder, args), weights(finished, args))
    assert (folder / "table.md").read_text() == (finished / "table.md").read_text()


# ---- a teacher ----


class Teacher(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that plays the oracle, and misbehaves as ``server.faults`` says, a request each."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, body, self.headers.get("Authorization")))
            fault = server.faults.pop(0) if server.faults else None
        if fault == "slow":
            threading.Event().wait(1.5)
        if isinstance(fault, int):
            return self.send_error(fault)
        messages = body["messages"]
        said = sum(m["role"] == "assistant" for m in messages)
        actions = server.oracle[messages[1]["content"]]
        spoken = PARSERS["hermes"].parse(actions[said] if said < len(actions) else "Done.")
        message = json.loads(PARSERS["openai"].render(spoken.text, spoken.calls))
        answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
        if server.usage:
            answer["usage"] = {"completion_tokens": server.usage}
        data = b"[]" if fault == "nonsense" else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "half" else data)

    def log_message(self, *_):
        pass


@contextmanager
def teacher(kwargs, faults=(), usage=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    server.handle_error = lambda *_: None  # who was too slow finds nobody to answer
    server.faults, server.usage, server.seen, server.lock = list(faults), usage, [], threading.Lock()
    env, server.oracle = gym.make("APIAgent-v0", **kwargs), {}
    for task in TASKS[1:5]:
        observation, _ = env.reset(options={"task": task["id"]})
        server.oracle[observation] = env.unwrapped.oracle()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def quick(monkeypatch):
    """No pause between attempts."""
    monkeypatch.setattr(trainer.time, "sleep", lambda seconds: None)


@pytest.fixture
def lessons(finished, arguments, tmp_path):
    def make(url, **changes):
        settings = {
            "teacher_url": url, "teacher_model": "oracle", "rounds": 1, "samples_per_task": 2, "parallel": 4,
            "init": str(finished / "checkpoints" / "warm"), "eval_episodes": 0, "run_dir": str(tmp_path / "runs"),
        }  # fmt: skip
        return arguments(**{**settings, **changes})

    return make


def test_a_teacher_is_asked_in_the_protocol_and_its_episodes_replay(kwargs, lessons, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with teacher(kwargs, usage=7) as (server, url):
        folder = run(lessons(url, temperature=0.5))
    samples = list(agent_gym.read_trajectories(folder / "trajectories" / "round_01_samples.jsonl"))
    assert len(samples) == 8
    assert all(t.success and s.action_ids is None for t in samples for s in t.steps)
    assert all("<tool_call>" in t.steps[0].action for t in samples)
    for trajectory in samples:  # the file replays in the environment
        env = gym.make("APIAgent-v0", **trajectory.env_kwargs)
        env.reset(options={"task": trajectory.task_id})
        for step in trajectory.steps:
            info = env.step(step.action)[4]
            assert info["tool_results"] == step.tool_results
        assert info["verdict"] == trajectory.verdict
    (row,) = rows(folder)
    assert row["charts/generated_tokens"] == 7 * sum(len(t.steps) for t in samples) == 7 * len(server.seen)
    assert row["charts/kept"] == len({t.task_id for t in samples})
    for path, body, key in server.seen:
        assert (path, key) == ("/v1/chat/completions", "Bearer secret")
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("oracle", 0.5, 32)
        assert {"get_order", "submit"} <= {tool["function"]["name"] for tool in body["tools"]}
        asked = [c["id"] for m in body["messages"] for c in m.get("tool_calls", ())]
        assert asked == [m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"]
    assert any(m["role"] == "tool" for _, body, _ in server.seen for m in body["messages"])


def test_tokens_are_counted_where_the_teacher_does_not_say(kwargs, lessons, policy):
    with teacher(kwargs) as (_, url):
        folder = run(lessons(url))
    samples = agent_gym.read_trajectories(folder / "trajectories" / "round_01_samples.jsonl")
    (row,) = rows(folder)
    assert row["charts/generated_tokens"] == sum(policy.count(s.action) for t in samples for s in t.steps)


def test_passing_faults_of_an_endpoint_are_asked_again(kwargs, lessons, quick):
    with teacher(kwargs) as (_, url):
        undisturbed = run(lessons(url))
    with teacher(kwargs, faults=[500, "half", None, "nonsense", None, None, 429]) as (server, url):
        folder = run(lessons(url, exp_name="disturbed", parallel=1))
        assert not server.faults
    assert data_files(folder) == data_files(undisturbed)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (500, "HTTP status 500 Internal Server Error"),
        (404, "HTTP status 404 Not Found"),
        ("half", "the connection failed (IncompleteRead("),
        ("nonsense", "the body is no chat completion (TypeError: list indices must be integers"),
        ("slow", "no answer within 0.5 s"),
    ],
)
def test_lasting_faults_end_in_a_sentence_and_a_rerun_goes_on(fault, said, kwargs, lessons, quick, tmp_path):
    """One episode after the other: the first two are finished, then the endpoint breaks down."""
    with teacher(kwargs) as (server, url):
        args = lessons(url, parallel=1, teacher_timeout=0.5 if fault == "slow" else 60.0)
        undisturbed = run(args)
        asked = len(server.seen)
        two = sum(len(t.steps) for t in trainer.read(undisturbed / "trajectories" / "round_01_samples.jsonl")[:2])
        server.faults[:] = [None] * two + [fault] * 3
        broken = replace(args, exp_name="broken")
        with pytest.raises(SystemExit) as ended:
            trainer.train(broken)
        text = ended.value.code
        assert text.startswith(f"rft: --teacher-url {url}: {said}")
        assert text.endswith("the finished samples are kept: go on with --resume and the run folder above")
        assert "\n" not in text
        (folder,) = (tmp_path / "runs").glob("*broken*")
        assert len(list((folder / "trajectories" / "round_01").glob("*.txt"))) == 2
        server.faults.clear()
        server.seen.clear()
        trainer.train(trainer.Args(resume=str(folder)))
        assert len(server.seen) == asked - two  # what was finished is not asked again
    assert data_files(folder) == data_files(undisturbed)
    assert same_weights(weights(folder, args), weights(undisturbed, args))


def test_no_endpoint(lessons, quick):
    with pytest.raises(SystemExit) as ended:
        trainer.train(lessons("http://127.0.0.1:9/v1"))
    assert "--teacher-url http://127.0.0.1:9/v1: the connection failed (" in ended.value.code


def test_a_teachers_broken_call_stays_broken():
    function = {"name": "get_order", "arguments": '{"order_id": '}
    message = {"role": "assistant", "content": "so", "tool_calls": [{"id": "1", "function": function}]}
    parsed = PARSERS["hermes"].parse(trainer.spelled(message, PARSERS["hermes"]))
    assert parsed.text == "so"
    assert "not valid JSON" in parsed.calls[0].error
    whole = {**message, "tool_calls": [{"id": "1", "function": {**function, "arguments": '{"order_id": "O1"}'}}]}
    assert trainer.spelled(whole, PARSERS["hermes"]) == f"so\n{call('get_order', order_id='O1')}"
    text = {"role": "assistant", "content": turn(("get_order", {"order_id": "O1"}))}  # a server without a parser
    assert trainer.spelled(text, PARSERS["hermes"]) == text["content"]


def answered(kwargs, *messages):
    """Messages of a teacher played one after the other; what each adds to the conversation."""
    env = gym.make("APIAgent-v0", **kwargs)
    observation, info = env.reset(seed=0)
    episode, base = trainer.Episode(env, info["task_id"], 0, [], observation), env.unwrapped
    added = []
    for message in messages:
        action = trainer.spelled(message, base.parser)
        results = trainer.play(episode, action)["tool_results"]
        added.append(trainer.exchange(message, base.read(action), results, episode))
    return added, episode


def asks(*calls, content=""):
    entries = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": text}} for id, name, text in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": entries}


def test_every_call_of_a_teacher_has_one_result_under_its_own_id(kwargs):
    two = asks(("x7", "get_order", '{"order_id": "O0"}'), ("y8", "get_order", "{broken"), content="Look.")
    (added,), episode = answered(kwargs, two)
    said, *results = added
    assert [(c["id"], c["function"]["name"]) for c in said["tool_calls"]] == [("x7", "get_order"), ("y8", "get_order")]
    assert said["content"] == "Look."
    assert [(m["role"], m["tool_call_id"]) for m in results] == [("tool", "x7"), ("tool", "y8")]
    assert [m["content"] for m in results] == [r["content"] for r in episode.steps[0].tool_results]
    assert "not valid JSON" in results[1]["content"]


def test_a_teachers_call_that_did_not_run_has_a_result_that_says_so(kwargs):
    """After submit nothing runs; the history is whole all the same, and nobody hears of it twice."""
    late = asks(("a", "submit", '{"answer": "x"}'), ("b", "get_order", '{"order_id": "O0"}'))
    ((said, *results),), episode = answered(kwargs, late)
    assert [m["tool_call_id"] for m in results] == ["a", "b"] == [c["id"] for c in said["tool_calls"]]
    assert [r["error"] for r in episode.steps[0].tool_results] == [None, "not_run"]
    assert '"not_run"' in results[1]["content"]


def test_a_teachers_words_that_hold_an_unreadable_call(kwargs):
    """No tool is named, so that an endpoint would refuse the history with it: it stays words, answered by the user."""
    garbled = {"role": "assistant", "content": "So.\n<tool_call>get_order O0</tool_call>"}
    foreign = {"role": "assistant", "content": '[TOOL_CALLS][{"name": "get_order", "arguments": {}}]'}
    written = {"role": "assistant", "content": f"So.\n{call('get_order', order_id='O0')}"}
    (first, second, third), episode = answered(kwargs, garbled, foreign, written)
    for (said, heard), words in ((first, "So.\nget_order O0"), (second, foreign["content"])):
        assert said == {"role": "assistant", "content": words}
        assert heard["role"] == "user"
    assert [first[1]["content"], second[1]["content"]] == [s.tool_results[0]["content"] for s in episode.steps[:2]]
    said, result = third  # a server without a parser has no ids
    assert said["tool_calls"][0]["id"] == result["tool_call_id"] == "call_3_0"


def test_episodes_played_as_messages_are_learnt_as_text(policy, kwargs, arguments, tmp_path):
    """A recorded agent of an endpoint: the file holds its messages, the student's turns are in its own format."""
    env = RecordTrajectory(gym.make("APIAgent-v0", **kwargs))
    env.reset(options={"task": TASKS[1]["id"]})
    for action in (actions := env.unwrapped.oracle()):
        spoken = PARSERS["hermes"].parse(action)
        env.step(json.loads(PARSERS["openai"].render(spoken.text, spoken.calls)))
    assert env.last.success
    assert all(isinstance(step.action, dict) for step in env.last.steps)
    path = tmp_path / "messages.jsonl"
    agent_gym.write_trajectories(path, [env.last])
    (dialogue,) = trainer.reopened(trainer.given(arguments(stage="sft", data=(str(path),))), path, arguments())
    assert [step.action for step in dialogue.trajectory.steps] == actions
    ids, spans = trainer.tokenized(policy, dialogue)
    assert [ids[b:e] for b, e in spans] == [[*policy.encode(a), policy.eos] for a in actions]


def test_what_a_wrapper_cuts_has_no_verdict(policy, kwargs, arguments):
    env = gym.make("APIAgent-v0", **kwargs, max_episode_steps=1)
    env.unwrapped.token_counter = policy.count
    episode = trainer.start(policy, env, 1)
    trainer.play(episode, call("get_order", order_id="O0"))
    assert (episode.done, episode.infra, episode.reward, episode.verdict) == (True, True, None, None)
    assert trainer.select([episode.trajectory()], settled(arguments()))[0] == []


def test_files_hold_strict_json(finished):
    for name in ("args.json", "result.json"):
        found = json.loads((finished / name).read_text(), parse_constant=pytest.fail)
        if name == "args.json":
            assert found["budget"] == {"tool_calls": 2, "output_tokens": 60, "read_tokens": "inf", "latency_ms": 200}
    read = trainer.read_args(finished / "args.json")
    assert read.budget.read_tokens == math.inf
    for t in kept(finished, 2):
        assert t.env_kwargs["budget"] == {"tool_calls": 2, "output_tokens": 60, "latency_ms": 200}
        assert re.fullmatch("[0-9a-f]{32}", t.task_hash)


# ---- two processes ----

TWO = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("rft", sys.argv.pop(1))
trainer = importlib.util.module_from_spec(spec)
sys.modules["rft"] = trainer
spec.loader.exec_module(trainer)
trainer.train(trainer.read_args(trainer.Path(sys.argv[1])))
trainer.dist.destroy_process_group()
"""


def test_two_processes_end_as_one_does(finished, arguments, tmp_path):
    """Batches of samples are the same whoever plays them; gradients are summed in another order."""
    init = str(finished / "checkpoints" / "warm")
    args = settled(arguments(init=init, rounds=1, eval_episodes=2, pass_tasks=1, run_dir=str(tmp_path / "two")))
    (tmp_path / "two.py").write_text(TWO)
    (tmp_path / "args.json").write_text(json.dumps(trainer.asdict(args)))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    shell = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(tmp_path / "two.py"), str(SCRIPT), str(tmp_path / "args.json"),
    ]  # fmt: skip
    done = subprocess.run(line, env=shell, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (two,) = (tmp_path / "two").iterdir()
    one = run(replace(args, run_dir=str(tmp_path / "one")))
    name = "round_01_samples.jsonl"
    assert (two / "trajectories" / name).read_bytes() == (one / "trajectories" / name).read_bytes()
    assert kept(two, 1) == kept(one, 1)
    begin = trainer.load(Path(init), args, torch.device("cpu"))[0].model.named_parameters()
    first, second = weights(one, args), weights(two, args)
    moved = sum(float((first[name] - p).detach().abs().sum()) for name, p in begin)
    apart = sum(float((first[name] - second[name]).abs().sum()) for name in first)
    assert apart < 0.01 * moved
    assert rows(two)[1]["losses/refit"] == pytest.approx(rows(one)[1]["losses/refit"], abs=1e-3)


# ---- wrong input ----


def sentence(args):
    """What a run that cannot work ends with: one sentence."""
    with pytest.raises(SystemExit) as ended:
        trainer.train(args)
    text = ended.value.code
    assert text.startswith("rft: ")
    assert "\n" not in text
    return text.removeprefix("rft: ")


@pytest.fixture
def refused(arguments, tmp_path):
    return lambda **changes: sentence(arguments(**{"run_dir": str(tmp_path / "runs"), **changes}))


def test_wrong_data_files(refused, finished, episodes, tmp_path):
    good = episodes[0].trajectory()
    path = tmp_path / "some.jsonl"

    def asked(*lines):
        path.write_text("".join(line if isinstance(line, str) else line.to_json() + "\n" for line in lines))
        return refused(stage="sft", data=(str(path),))

    other = asked(good, replace(good, env_id="SQL-v0"))
    assert other == f"{path}, line 2: an episode of SQL-v0, not of --env-id APIAgent-v0"
    assert asked(replace(good, task_id="x")).startswith(
        f"{path}, line 1: its task 'x' cannot be opened: unknown task id"
    )
    assert asked(replace(good, env_kwargs={"colour": 1})).startswith(f"{path}, line 1: its task ")
    held_out = asked(replace(good, env_kwargs={**good.env_kwargs, "split": "test"}))
    assert held_out.startswith(f"{path}, line 1: an episode of the test split")
    changed = replace(good, steps=(replace(good.steps[0], observation="Dance."), *good.steps[1:]))
    assert "does not begin as the file says" in asked(changed)
    other = asked(replace(good, task_hash="0" * 32))
    assert other.endswith("has other content than the file's; another version made it")
    assert asked("nonsense\n", good).startswith(f"{path}, line 1: not a trajectory: ")
    assert asked(replace(good, reward=0.0, verdict={**good.verdict, "status": "fail"})) == (
        "none of the 1 episodes in --data passed, so there is nothing to learn from"
    )
    missing = refused(stage="sft", data=(str(tmp_path / "none.jsonl"),))
    assert missing == f"{tmp_path}/none.jsonl cannot be read: No such file or directory"


def test_a_cut_off_data_file_is_used_up_to_the_cut(finished, arguments, tmp_path, capsys):
    whole = (finished / "trajectories" / "round_02_kept.jsonl").read_text()
    path = tmp_path / "cut.jsonl"
    path.write_text(whole[:-40])
    settings = {"init": str(finished / "checkpoints" / "warm"), "eval_episodes": 0, "run_dir": str(tmp_path / "runs")}
    folder = run(arguments(stage="sft", data=(str(path),), **settings))
    lines = len(whole.splitlines())
    assert f"rft: {path}, line {lines} is cut off and was skipped" in capsys.readouterr().err
    assert kept(folder, 1) == kept(finished, 2)[:-1]


def test_nothing_to_keep(refused, finished):
    text = refused(
        init=str(finished / "checkpoints" / "warm"),
        keep="success-in-budget",
        eval_episodes=0,
        budget={"tool_calls": 0.0},
    )
    assert text.startswith("round 1: none of 16 episodes can be kept with --keep success-in-budget (passed: ")
    assert text.endswith("; start from a better policy or sample more")


def test_wrong_numbers_and_combinations(refused):
    assert refused(rounds=-1) == "--rounds must be 0 or more, not -1"
    assert refused(pass_k=1) == "--pass-k must be 2 or more, not 1"
    assert refused(parallel=0) == "--parallel must be 1 or more, not 0"
    assert refused(budget={"tool_calls": -1.0}) == "--budget.tool-calls must be 0 or more, not -1.0"
    assert refused(temperature=0.0) == "--temperature must be above 0, not 0.0"
    assert refused(data=("x",)).startswith("--data belongs to --stage sft")
    assert refused(stage="sft", teacher_url="http://x").startswith("--teacher-url belongs to --stage rft")
    assert refused(teacher_url="localhost:8000") == "--teacher-url localhost:8000 must begin with http:// or https://"
    assert refused(teacher_url="http://x").startswith("--teacher-url needs --teacher-model")
    assert refused(env_kwargs="[1]").startswith("--env-kwargs must be a JSON object")
    assert refused(env_id="Nothing-v0").startswith("cannot make Nothing-v0: ")
    assert refused(max_context=4).endswith(" episodes to learn from is within --max-context 4 tokens")


def test_wrong_folders(refused, tmp_path):
    assert "there is no run in this folder" in refused(resume=str(tmp_path / "nothing"))
    old = trainer.asdict(trainer.Args())
    del old["budget"]["read_tokens"]
    (tmp_path / "args.json").write_text(json.dumps(old))
    assert "this run is from before the cost channel read_tokens" in refused(resume=str(tmp_path))
    assert "is not a checkpoint of this trainer" in refused(init=str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(run_dir=str(tmp_path / "file" / "runs"))


# ---- the page ----

GROUPS = {"Args": "", "Budget": "budget.", "WarmStart": "warm."}


def test_flag_table_follows_the_code():
    listed = re.findall(r"^\| `--([\w.-]+)` \| (.*?) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = []
    for node in ast.parse(SOURCE).body:
        if not isinstance(node, ast.ClassDef) or node.name not in GROUPS:
            continue
        for field, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.value).startswith("field("):
                default = ast.unparse(field.value)
                default = {"None": "none", "()": "none"}.get(default, f"`{default}`")
                name = GROUPS[node.name] + field.target.id.replace("_", "-")
                found.append((name, default, " ".join(doc.value.value.split())))
    assert sorted(listed) == sorted(found)


def test_every_logged_metric_is_explained(finished):
    page = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    explained = {n for row in listed for n in re.findall(r"`((?:charts|cost|violation|losses)/\w+)`", row)}
    assert explained == {name for row in rows(finished) for name in row} - {"iteration"}
