"""rft.py: selection, the refit against a plain one and in two processes, rounds, killed and extended runs, files, a
teacher, adapters, wrong input."""

import json
import math
import os
import re
import shutil
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop_play import TASKS, turn, write_tasks

torch = pytest.importorskip("torch", reason="the trainer needs the extra 'train'")
pytest.importorskip("transformers", reason="the trainer needs the extra 'train'")

import gymnasium as gym  # noqa: E402
from small_lm import ROOT, Scripted, chat_of, load_trainer, processes, rows, run, small_model, torchrun  # noqa: E402

import agent_gym  # noqa: E402
from agent_gym import PARSERS, Call, Step, Trajectory  # noqa: E402
from agent_gym.lm import tiny  # noqa: E402
from agent_gym.lm.budget import Budget  # noqa: E402
from agent_gym.lm.demonstrations import WarmStart  # noqa: E402
from agent_gym.lm.engine import TorchEngine  # noqa: E402
from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.models import Model, load, token_logprobs  # noqa: E402
from agent_gym.lm.ranks import Ranks  # noqa: E402
from agent_gym.lm.rollout import Limits, environments, play  # noqa: E402
from agent_gym.lm.runs import Run  # noqa: E402
from agent_gym.lm.runs import arguments as parse  # noqa: E402
from agent_gym.lm.seeds import stream  # noqa: E402
from agent_gym.metrics import call_sequence  # noqa: E402
from agent_gym.wrappers import RecordTrajectory  # noqa: E402

SCRIPT = ROOT / "cleanrl_llm" / "rft.py"
PAGE = ROOT / "docs" / "rft.md"
ALONE = Ranks()
trainer = load_trainer("rft")


@pytest.fixture(scope="module", autouse=True)
def small():
    """One thread, since sums depend on their number and weights are compared digit by digit; and a smaller model."""
    before, threads = tiny.fresh, torch.get_num_threads()
    torch.set_num_threads(1)
    tiny.fresh = small_model
    yield
    tiny.fresh = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kwargs(tmp_path_factory):
    """Four easy tasks from a file, which a small model soon knows by heart."""
    return {"tasks": write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", TASKS[1:5]), "max_turns": 4}


@pytest.fixture(scope="module")
def arguments(kwargs, tmp_path_factory):
    def make(**changes):
        warm = {"updates": 160, "demonstrations": 40, "batch_size": 8, "lr": 1e-2, "wasteful": 0.5}
        warm |= changes.pop("warm", {})
        settings = {
            "env_kwargs": json.dumps(kwargs), "model": "tiny", "keep": "success", "rounds": 2, "tasks_per_round": 4,
            "parallel": 8, "learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "held_out": 0.5, "max_new_tokens": 32,
            "eval_episodes": 6, "pass_k": 2,
            "pass_tasks": 3, "device": "cpu", "run_dir": str(tmp_path_factory.mktemp("runs")), "seed": 3,
            "budget": Budget(**changes.pop("budget", {"tool_calls": 2.0, "output_tokens": 60.0})),
            "warm": WarmStart(**warm),
        }  # fmt: skip
        return trainer.Args(**{**settings, **changes})

    return make


def resumed(folder, *flags):
    """What the command line makes of ``--resume``."""
    return parse(trainer.Args, ["--resume", str(folder), *flags], ("rounds", "total_tokens"))


def kept(folder, number):
    return list(agent_gym.read_trajectories(folder / "trajectories" / f"round_{number:02d}_kept.jsonl"))


def data_files(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "trajectories").iterdir())}


def weights(folder):
    model = load(max((folder / "checkpoints").glob("round_*")))
    return {name: p.detach() for name, p in model.net.named_parameters()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def unfinished(folder):
    """Take back all but the start."""
    shutil.rmtree(folder / "checkpoints" / "round_01")
    (folder / "metrics.jsonl").write_text("")
    for split in trainer.SPLITS:
        for path in folder.glob(f"trajectories/{split}_*"):
            path.unlink()


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """A run that nobody disturbed."""
    return run(trainer, arguments(run_dir=str(tmp_path_factory.mktemp("finished"))))


@pytest.fixture(scope="module")
def start(finished):
    """The checkpoint that run started from."""
    return str(finished / "checkpoints" / "start")


@pytest.fixture
def model(start):
    return load(start)


@pytest.fixture(scope="module")
def episodes(start, kwargs):
    """Ten of its episodes."""
    model = load(start)
    chat = chat_of(model)
    envs = environments("APIAgent-v0", 10, chat=chat, split="train", bounds={}, **kwargs)
    seeds = [100 + i for i in range(10)]
    return play(TorchEngine(model, stops=chat.stops), chat, envs, seeds, Limits(32, 512), draws=seeds)


@pytest.fixture(scope="module")
def examples(episodes):
    return [(e.ids, e.spans) for e in episodes]


# ---- selection ----


def made(task, calls, passed=True, cost=(1.0, 10.0, 20.0, 50.0), words="", infra=False):
    """A hand-made trajectory; ``calls`` are order numbers that are looked at."""
    results = [{"name": "get_order", "arguments": {"order_id": c}} for c in calls]
    total = dict(zip(agent_gym.CHANNELS, cost, strict=True))
    step = Step("", words, total, results, "", terminated=True)
    status = "infra" if infra else "pass" if passed else "fail"
    verdict = {"status": status, "reason": status, "score": 0.0, "diagnostics": [], "trust": "strong"}
    return Trajectory(task, "APIAgent-v0", {}, 0, (step,), None if infra else float(passed), verdict, total)


BOUNDS = {"tool_calls": 2.0, "output_tokens": 60.0, "read_tokens": 100.0, "latency_ms": math.inf}
FREE = dict.fromkeys(agent_gym.CHANNELS, math.inf)


def test_only_what_passed_within_every_bound_is_kept():
    good, bound = made("a", "1"), made("b", "1", cost=(2.0, 60.0, 100.0, 1e9))
    calls, tokens = made("c", "1", cost=(3.0, 1.0, 1.0, 1.0)), made("d", "1", cost=(1.0, 61.0, 1.0, 1.0))
    reading = made("g", "1", cost=(1.0, 1.0, 101.0, 1.0))
    rest = [made("e", "1", passed=False), made("f", "1", infra=True)]
    everything = [good, calls, *rest, bound, tokens, reading]
    chosen, counts = trainer.select(everything, "success-in-budget", BOUNDS, 2)
    assert chosen == [good, bound]
    assert counts == {"eligible": 2, "distinct": 2, "kept": 2, "tasks_kept": 2}
    assert trainer.select(everything, "success", BOUNDS, 2)[0] == [good, calls, bound, tokens, reading]


def test_equal_calls_count_once_and_the_cap_holds():
    first, twin, other = made("a", "1", words="so"), made("a", "1", words="and so"), made("a", "12")
    third, elsewhere = made("a", "2"), made("b", "1")
    samples = [first, twin, other, third, elsewhere]
    chosen, counts = trainer.select(samples, "success-in-budget", BOUNDS, 2)
    assert chosen == [first, other, elsewhere]
    assert counts == {"eligible": 5, "distinct": 4, "kept": 3, "tasks_kept": 2}
    assert trainer.select(samples, "success-in-budget", BOUNDS, 9)[0] == [first, other, third, elsewhere]


def test_cheapest_is_relative_to_the_bounds():
    """3 calls of 2, 6 tokens of 60 and 50 of 100 are dearer than 1 call and 60 tokens; over the budget may still be
    cheapest."""
    calls, tokens = made("a", "111", cost=(3.0, 6.0, 50.0, 0.0)), made("a", "1", cost=(1.0, 60.0, 0.0, 9e9))
    only = made("b", "1", cost=(5.0, 500.0, 0.0, 1.0))
    failed = made("b", "2", passed=False, cost=(0.0, 1.0, 0.0, 0.0))
    assert trainer.price(calls, BOUNDS) == pytest.approx(2.1)
    assert trainer.price(tokens, BOUNDS) == pytest.approx(1.5)
    chosen, counts = trainer.select([calls, tokens, only, failed], "cheapest-per-task", BOUNDS, 2)
    assert chosen == [tokens, only]
    assert counts == {"eligible": 3, "distinct": 3, "kept": 2, "tasks_kept": 2}
    assert trainer.select([calls, tokens], "cheapest-per-task", FREE, 2)[0] == [calls]  # fewer tokens


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "1", "2", "12"]), st.booleans()), max_size=20))
def test_selection_in_general(drawn):
    samples = [made(task, calls, passed) for task, calls, passed in drawn]
    chosen, counts = trainer.select(samples, "success", FREE, 2)
    keys = [(t.task_id, call_sequence(t)) for t in chosen]
    assert len(set(keys)) == len(keys) == counts["kept"]
    assert all(t.success and t in samples for t in chosen)
    for task in "ab":
        ways = {call_sequence(t) for t in samples if t.success and t.task_id == task}
        assert sum(t.task_id == task for t in chosen) == min(2, len(ways))


def test_of_pruned_samples_the_last_of_a_task_are_kept():
    """Within the budgets, or wherever; in the order in which they were sampled."""
    first, other, twin, dear = made("a", "1"), made("a", "2"), made("a", "1"), made("a", "3", cost=(3.0, 1.0, 1.0, 1.0))
    elsewhere = made("b", "1")
    samples = [first, other, elsewhere, twin, dear, made("a", "4", passed=False)]
    assert trainer.select(samples, "pruned", BOUNDS, 1)[0] == [elsewhere, twin]
    chosen, counts = trainer.select(samples, "pruned", BOUNDS, 2)
    assert [id(t) for t in chosen] == [id(t) for t in (other, elsewhere, twin)]
    assert counts == {"eligible": 4, "distinct": 3, "kept": 3, "tasks_kept": 2}
    assert trainer.select(samples, "pruned-any", BOUNDS, 2)[0] == [elsewhere, twin, dear]


# ---- pruning ----


def test_a_pruned_success_is_a_real_episode_of_what_it_needed(start, kwargs, tmp_path, arguments):
    """Needless turns go; kept turns keep their sampled ids; a turn that lost a call is text; failures stay."""
    chat = chat_of(load(start))
    (env,) = environments("APIAgent-v0", 1, chat=chat, split="train", bounds={"tool_calls": 2.0}, **kwargs)
    seed = next(s for s in range(100) if env.reset(seed=s)[1]["task_id"] == "question")
    needed, submit = ("get_order", {"order_id": "O2003"}), ("submit", {"answer": {"status": "sent"}})
    needless = ("get_order", {"order_id": "O2001"})
    scripts = {
        0: [turn(needless), turn(needed), turn(submit)],
        1: [turn(needless, needed, text="So"), turn(submit)],
        2: [turn(("submit", {"answer": {"status": "lost"}}))],
        3: [turn(needed), turn(submit)],
    }
    played = play(Scripted(chat, scripts), chat, [env], [seed] * 4, Limits(96, 512), draws=[0] * 4)
    samples = [episode.trajectory() for episode in played]
    assert [t.success for t in samples] == [True, True, False, True]
    shorter = trainer.pruned(samples, env, {**FREE, "tool_calls": 2.0}, ALONE)
    assert shorter[2:] == samples[2:]
    assert [t.cost_total["tool_calls"] for t in shorter] == [2.0, 2.0, 1.0, 2.0]  # submit is one
    assert [[r["name"] for s in t.steps for r in s.tool_results] for t in shorter[:2]] == [["get_order", "submit"]] * 2
    assert [s.action for s in shorter[0].steps] == scripts[0][1:]
    assert [s.action_ids for s in shorter[0].steps] == [s.action_ids for s in samples[0].steps[1:]]
    assert shorter[1].steps[0].action == chat.parser.render("So", [Call(*needed)])
    assert shorter[1].steps[0].action_ids is None
    assert shorter[1].steps[1].action_ids == samples[1].steps[1].action_ids

    path = tmp_path / "pruned.jsonl"
    agent_gym.write_trajectories(path, shorter)
    found = trainer.opened(trainer.read(path), path, chat, arguments(max_context=512), ALONE)
    plain = played[3]
    assert found[0] == found[2] == (plain.ids[: plain.spans[-1][1]], plain.spans)  # as if nothing else had been done
    ids, spans = found[1]
    assert [ids[b:e] for b, e in spans] == [chat.spelled(s.action) for s in shorter[1].steps]


def test_costs_are_weighed_by_their_bounds_or_else_tokens_count():
    assert trainer.units(FREE) == {"output_tokens": 1.0}
    assert trainer.units(BOUNDS) == {"tool_calls": 2.0, "output_tokens": 60.0, "read_tokens": 100.0}


@pytest.fixture(scope="module")
def pruned_run(arguments, start):
    return run(trainer, arguments(init=start, keep="pruned-any", rounds=1))


def test_a_run_on_pruned_samples(pruned_run, finished):
    """The refit sees episodes that are no dearer than the samples of their task; the samples are those of any rule."""
    name = "round_01_samples.jsonl"
    assert data_files(pruned_run)[name] == data_files(finished)[name]
    samples, chosen = trainer.read(pruned_run / "trajectories" / name), kept(pruned_run, 1)
    (_, row) = rows(pruned_run)
    assert 0 < row["charts/pruned_calls"] < 1
    for t in chosen:
        assert t.success
        assert t not in samples or len(t.steps) == min(len(s.steps) for s in samples if s.seed == t.seed and s.success)
        assert t.cost_total["tool_calls"] <= max(s.cost_total["tool_calls"] for s in samples if s.seed == t.seed)
    assert any(t not in samples for t in chosen)
    assert row["charts/kept"] == len(chosen)


def test_a_run_on_pruned_samples_is_extended(start, arguments, pruned_run, tmp_path):
    """The samples of earlier rounds are pruned again, alike; and the kept file alone makes the refit again."""
    whole = run(trainer, arguments(init=start, keep="pruned-any", eval_episodes=0))
    folder = tmp_path / "run"
    shutil.copytree(pruned_run, folder)
    trainer.train(resumed(folder, "--rounds", "2"))
    assert kept(folder, 2) == kept(whole, 2)
    assert same_weights(weights(folder), weights(whole))
    data = (str(whole / "trajectories" / "round_02_kept.jsonl"),)
    settings = {"init": start, "stage": "sft", "data": data, "batch_size": 1, "held_out": 0.0, "eval_episodes": 0}
    again = [run(trainer, arguments(seed=seed, **settings)) for seed in (3, 4)]
    assert [kept(one, 1) for one in again] == [kept(whole, 2)] * 2
    assert not same_weights(*map(weights, again))


# ---- the refit ----


def plain_refit(model, examples, args, seed):
    """The same in the plainest words: an episode at a time, a loss over all its positions, a mask; the weights after
    each step, whose average is taken at the end."""
    import random

    def loss_of(i):
        ids, spans = examples[i]
        logits = model.net(input_ids=torch.tensor([ids])).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:]), reduction="none")
        own = torch.zeros(len(ids), dtype=torch.bool)
        for begin, end in spans:
            own[begin:end] = True
        return each[own[1:]]

    rng, parameters = random.Random(seed), list(model.net.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    n, size, number = len(examples), args.batch_size, 0
    trail = [[p.detach().clone() for p in parameters]]
    for _ in range(args.epochs):
        order, losses = rng.sample(range(n), n), []
        for at in range(0, n, size):
            number += 1
            optimizer.param_groups[0]["lr"] = args.learning_rate * min(1.0, number / 10)
            terms = torch.cat([loss_of(i) for i in order[at : at + size]])
            terms.mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses += terms.tolist()
            trail.append([p.detach().clone() for p in parameters])
    shares = [(1 - args.ema) * args.ema ** (number - i) if i else args.ema**number for i in range(number + 1)]
    with torch.no_grad():
        for p, *values in zip(parameters, *trail, strict=True):
            p.copy_(sum(share * value for share, value in zip(shares, values, strict=True)))
    return float(np.mean(losses))


@pytest.mark.parametrize(("most", "ema"), [(1, 0.8), (300, 0.0), (8192, 0.8)])
def test_the_refit_is_that_of_each_episode_alone(start, examples, arguments, most, ema):
    """Whatever rows a batch is cut into; 10 episodes in batches of 4 leave a smaller one."""
    args = arguments(learning_rate=1e-3, micro_batch_tokens=most, ema=ema, held_out=0.0)
    one, other = load(start), load(start)
    fit = trainer.refit(one, examples, args, ALONE, 7)
    assert fit["losses/refit"] == pytest.approx(plain_refit(other, examples, args, 7), abs=1e-5)
    assert (fit["losses/skipped_steps"], fit["losses/epochs"]) == (0, 2)
    assert math.isnan(fit["losses/held_out"])
    before = dict(load(start).net.named_parameters())
    for (name, p), q in zip(one.net.named_parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
        assert not torch.equal(p, before[name])


def test_held_out_are_whole_tasks_whatever_the_order_within():
    """Every second, every third task in the order in which they occur; few tasks leave none out."""
    prompts = [1, 1, 2, 3, 2, 4, 5]
    data = [([prompt, 0, 7 + i], [(2, 3)]) for i, prompt in enumerate(prompts)]

    def held(share):
        fitted, apart = trainer.set_apart(data, share)
        assert sorted(fitted + apart) == sorted(data)
        found = {ids[0] for ids, _ in apart}
        assert not found & {ids[0] for ids, _ in fitted}
        return found

    assert [held(share) for share in (0.5, 1 / 3, 0.2, 0.1, 0.0)] == [{2, 4}, {3}, {5}, set(), set()]


def mean_loss(model, examples):
    with torch.no_grad():
        return -float(token_logprobs(model, [x for x, _ in examples], [s for _, s in examples]).logprobs.mean())


def test_a_refit_ends_before_the_held_out_loss_rises(start, examples, arguments):
    """What is left are the weights of the epoch before; the next one's are worse."""
    args = arguments(learning_rate=1e-2, epochs=30, ema=0.5)
    fitted, held = trainer.set_apart(examples, args.held_out)

    def after(epochs):
        model = load(start)
        trainer.refit(model, fitted, replace(args, epochs=epochs, held_out=0.0), ALONE, 7)
        return model

    model = load(start)
    fit = trainer.refit(model, examples, args, ALONE, 7)
    epochs = int(fit["losses/epochs"])
    assert 1 <= epochs < 30
    assert fit["losses/held_out"] == pytest.approx(mean_loss(model, held), abs=1e-5)
    assert same_weights(*(dict(one.net.named_parameters()) for one in (model, after(epochs))))
    assert mean_loss(after(epochs + 1), held) > fit["losses/held_out"]


def test_the_average_is_steadier_than_the_last_weights(start, examples, arguments):
    """Refits of other seeds end nearer to each other."""

    def spread(ema):
        ends = []
        for seed in (1, 2):
            model = load(start)
            args = arguments(learning_rate=3e-3, epochs=4, ema=ema, held_out=0.0)
            trainer.refit(model, examples, args, ALONE, seed)
            ends.append(torch.cat([p.detach().flatten() for p in model.net.parameters()]))
        return float((ends[0] - ends[1]).norm())

    assert spread(0.9) < 0.7 * spread(0.0)


def test_no_pass_has_more_padded_tokens_than_asked(model, examples, arguments, monkeypatch):
    shapes, original = [], Model.hidden
    monkeypatch.setattr(Model, "hidden", lambda self, **inputs: shapes.append(inputs["input_ids"].shape) or
                        original(self, **inputs))  # fmt: skip
    trainer.refit(model, examples, arguments(learning_rate=1e-3, micro_batch_tokens=400, epochs=1), ALONE, 7)
    assert len(shapes) > 3
    assert all(rows == 1 or rows * columns <= 400 for rows, columns in shapes)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(model, start, examples, arguments, monkeypatch):
    """One batch of three is spoilt: the other two train, and the loss is theirs."""
    passes = []

    def spoilt(*args, **kwargs):
        scores = token_logprobs(*args, **kwargs)
        passes.append(1)
        return scores._replace(logprobs=scores.logprobs * math.inf) if len(passes) == 1 else scores

    monkeypatch.setattr(trainer, "token_logprobs", spoilt)
    args = arguments(learning_rate=1e-3, epochs=1, held_out=0.0)
    fit = trainer.refit(model, examples, args, ALONE, 7)
    assert fit["losses/skipped_steps"] == 1
    assert math.isfinite(fit["losses/refit"])
    for p, q in zip(model.net.parameters(), load(start).net.parameters(), strict=True):
        assert torch.isfinite(p).all()
        assert not torch.equal(p, q)


MANY = """
import json, sys
sys.path.insert(0, {tests!r})
from small_lm import load_trainer
trainer = load_trainer("rft")
from agent_gym.lm.models import load
ranks = trainer.Ranks.start("cpu")
with open({data!r}) as file:
    examples = json.load(file)
for size in (1, 4):
    model = load({start!r})
    args = trainer.Args(batch_size=size, learning_rate=1e-3, epochs=2, held_out=0.3)
    fit = trainer.refit(model, examples, args, ranks, 7)
    ranks.check_equal(model.trained())
    if ranks.first:
        model.save({out!r} + str(size))
        print("fit", size, *fit.values())
ranks.stop()
"""


def test_two_and_four_processes_refit_as_one_does(start, examples, tmp_path):
    """Also where only the first has a part of any batch."""
    data = [(list(ids), [list(span) for span in spans]) for ids, spans in examples[:6]]
    (tmp_path / "data.json").write_text(json.dumps(data))
    out, alone = str(tmp_path / "out"), {}
    text = MANY.format(tests=str(ROOT / "tests"), start=start, data=str(tmp_path / "data.json"), out=out)
    (tmp_path / "many.py").write_text(text)
    for size in (1, 4):
        one, args = load(start), trainer.Args(batch_size=size, learning_rate=1e-3, epochs=2, held_out=0.3)
        alone[size] = [*trainer.refit(one, data, args, ALONE, 7).values()], list(one.net.parameters())
    for count in (2, 4):
        said = re.findall(r"fit (\d) (.*)", processes(count, tmp_path / "many.py", cwd=tmp_path).stdout)
        for (size, (fit, parameters)), (name, values) in zip(alone.items(), said, strict=True):
            assert (int(name), [*map(float, values.split())]) == (size, pytest.approx(fit, abs=1e-5))
            for p, q in zip(parameters, load(f"{out}{size}").net.parameters(), strict=True):
                torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


# ---- whole runs ----


def test_run_files(finished):
    assert (finished / "rounds.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == ["round_02", "start"]
    names = [f"round_{n:02d}_{what}" for n in (1, 2) for what in ("kept.jsonl", "samples.jsonl", "tokens.json")]
    tests = [f"{split}_{when}.jsonl" for split in ("validation", "test") for when in ("start", "final")]
    assert sorted(data_files(finished)) == sorted([*names, *tests])
    result = json.loads((finished / "result.json").read_text(), parse_constant=pytest.fail)
    assert list(result["tables"]) == ["validation", "test"]
    for tables in result["tables"].values():
        assert list(tables) == ["start", "final"]
        for table in tables.values():
            assert {"success@1", "pass@2", "in-budget success", "mean tool_calls"} <= set(table)
            assert all(low <= mean <= high for mean, low, high in table.values())
    assert result["generated_tokens"] == rows(finished)[-1]["charts/generated_tokens"] > 0
    table = (finished / "table.md").read_text()
    assert table.startswith(
        "| | validation, start | validation, final | test, start | test, final |\n|---|---|---|---|---|\n"
    )
    for name in ("kept", "distinct", "generated tokens"):
        assert f"| {name} |  | {result['counts'][name]} |  |  |\n" in f"{table}\n"


def test_run_figures(finished, model):
    """The metrics follow from the trajectory files."""
    history, stops = rows(finished), chat_of(model).stops
    assert [row["iteration"] for row in history] == [0, 1, 2]
    spent, pool = 0, []
    for number in (1, 2):
        samples = list(agent_gym.read_trajectories(finished / "trajectories" / f"round_{number:02d}_samples.jsonl"))
        assert len(samples) == 16
        assert [t.seed for t in samples] == [s for s in dict.fromkeys(t.seed for t in samples) for _ in range(4)]
        assert not pool or not {t.seed for t in samples} & {t.seed for t in pool}  # fresh ones
        pool += samples
        turns = [s for t in samples for s in t.steps]
        spent += sum(len(s.action_ids) for s in turns)
        row, chosen = history[number], kept(finished, number)
        assert row["charts/generated_tokens"] == spent
        assert row["charts/samples"] == 16
        assert row["charts/sample_success"] == np.mean([t.success for t in samples])
        assert row["charts/cut_turns"] == np.mean([s.action_ids[-1] not in stops for s in turns])
        assert row["charts/kept"] == len(chosen) > 0
        assert row["charts/eligible"] == sum(t.success for t in pool) >= row["charts/distinct"] >= row["charts/kept"]
        assert all(t in pool and t.success for t in chosen)
    tables = json.loads((finished / "result.json").read_text())["tables"]
    for split, when in ((split, when) for split in ("validation", "test") for when in ("start", "final")):
        tested = list(agent_gym.read_trajectories(finished / "trajectories" / f"{split}_{when}.jsonl"))
        once, more = tested[:6], tested[6:]
        assert [t.seed for t in more] == [t.seed for t in once[:3]]
        assert {t.env_kwargs["split"] for t in tested} == {split}
        bounds = {"tool_calls": 2.0, "output_tokens": 60.0, "latency_ms": 200.0}
        expected = {
            "success": np.mean([t.success for t in once]),
            "pass_at_k": np.mean([a.success or b.success for a, b in zip(once, more, strict=False)]),
            "in_budget_success": np.mean([t.success and not t.violates(bounds) for t in once]),
        }  # fmt: skip
        found = (tables[split][when][name][0] for name in ("success@1", "pass@2", "in-budget success"))
        assert list(found) == pytest.approx(list(expected.values()))
        if split == "validation":
            row = history[0 if when == "start" else 2]
            assert {name: row[f"validation/{name}"] for name in expected} == expected


def test_samples_of_a_task_differ_and_tests_are_those_of_every_run(finished):
    samples = list(agent_gym.read_trajectories(finished / "trajectories" / "round_01_samples.jsonl"))
    drawn = {t.seed: {str([s.action_ids for s in u.steps]) for u in samples if u.seed == t.seed} for t in samples}
    assert max(map(len, drawn.values())) > 1
    for split in ("validation", "test"):
        for path in finished.glob(f"trajectories/{split}_*.jsonl"):
            seeds = [t.seed for t in agent_gym.read_trajectories(path)]
            assert seeds[:6] == [stream(split, i) for i in range(6)]


def test_refits_raise_the_likelihood_of_what_was_kept(finished, start, arguments):
    path = finished / "trajectories" / "round_02_kept.jsonl"
    before, after = load(start), load(finished / "checkpoints" / "round_02")
    data = trainer.opened(trainer.read(path), path, chat_of(before), arguments(max_context=512), ALONE)
    with torch.no_grad():
        one, other = (
            float(token_logprobs(m, [x for x, _ in data], [s for _, s in data]).logprobs.mean())
            for m in (before, after)
        )
    assert other > one
    assert rows(finished)[2]["losses/refit"] > 0


def test_a_file_gives_back_the_sampled_tokens(episodes, start, arguments, tmp_path):
    """What is trained on is, id by id, what was sampled: prompt, turns and answers."""
    path = tmp_path / "episodes.jsonl"
    passed = [e for e in episodes if e.success]
    assert 0 < len(passed) < len(episodes)
    agent_gym.write_trajectories(path, (e.trajectory() for e in episodes))
    found = trainer.opened(trainer.read(path), path, chat_of(load(start)), arguments(max_context=512), ALONE)
    assert [(ids, spans) for ids, spans in found] == [(e.ids[: e.spans[-1][1]], e.spans) for e in passed]


def test_the_end_of_a_summary(finished):
    """pass@k needs k episodes with a verdict; a task that infra left with fewer is out, and its first still counts."""
    ok, bad, none = made("a", "1"), made("a", "1", passed=False), made("a", "1", infra=True)
    tested = [replace(t, seed=seed) for seed, t in ((0, ok), (1, bad), (2, bad), (0, bad), (1, ok), (2, none))]
    found = trainer.summary(tested, BOUNDS, 2)
    assert found["success@1"][0] == pytest.approx(1 / 3)
    assert found["pass@2"][0] == 1.0
    assert trainer.summary([replace(none, seed=s) for s in (0, 1)], BOUNDS, 2)["success@1"][0] != 0.0  # not a number


def test_sampling_ends_with_the_token_limit(finished, start, arguments):
    """After the batch that reaches it; the round goes on with what there is, and no further round begins."""
    limit = rows(finished)[1]["charts/generated_tokens"] / 4
    folder = run(trainer, arguments(total_tokens=int(limit), init=start, rounds=5, eval_episodes=0))
    (row,) = rows(folder)
    assert row["charts/samples"] == 8
    whole = (finished / "trajectories" / "round_01_samples.jsonl").read_text().splitlines()
    assert (folder / "trajectories" / "round_01_samples.jsonl").read_text().splitlines() == whole[:8]


def test_the_best_round_is_kept(finished, start, arguments):
    folder = run(trainer, arguments(init=start, keep_best=True))
    history = [row["validation/in_budget_success"] for row in rows(folder)]
    best = load(folder / "checkpoints" / "best")
    number = history.index(max(history))
    assert Run(resumed(folder), "", ALONE).state(folder / "checkpoints" / "best")["round"] == number
    if number == 2:
        assert same_weights(dict(best.net.named_parameters()), weights(folder))


# ---- runs that go on ----


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (rows(finished), (finished / "table.md").read_text(), data_files(finished))
    trainer.train(resumed(finished))
    assert (rows(finished), (finished / "table.md").read_text(), data_files(finished)) == before


def test_a_finished_run_is_extended(finished, arguments, tmp_path):
    """One round and then another are two rounds; the checkpoint it started from may be gone by then."""
    (tmp_path / "init").mkdir()
    load(finished / "checkpoints" / "start").save(tmp_path / "init")
    folder = run(trainer, arguments(init=str(tmp_path / "init"), rounds=1, run_dir=str(tmp_path / "runs")))
    for file in (tmp_path / "init").iterdir():
        file.unlink()
    trainer.train(resumed(folder, "--rounds", "2"))
    assert data_files(folder) == data_files(finished)
    assert rows(folder) == rows(finished)
    assert same_weights(weights(folder), weights(finished))
    assert (folder / "table.md").read_text() == (finished / "table.md").read_text()
    with pytest.raises(Refused, match="--seed is 3 in this run and cannot change"):
        resumed(folder, "--seed", "4")


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
    "warm start": ("Ranks.all_reduce_gradients", 10),
    "test of the start": ("Step", 5),
    "an episode's file": ("part", 5),
    "episodes put together": ("write", 17),
    "selection": ("Run.trajectories", 2),
    "first refit": ("Ranks.all_reduce_gradients", 1),
    "first checkpoint": ("torch.save", 1),
    "tests of the start": ("Run.trajectories", 1),
    "tests of the end": ("Run.trajectories", 5),
    "first row": ("Run.log", 1),
    "second round": ("write", 25),
    "second checkpoint": ("torch.save", 2),
    "end": ("draw_rounds", 0),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("point", list(KILLS))
def test_killed_and_resumed(point, finished, arguments, tmp_path):
    """SIGKILL, then --resume: the same files, byte by byte, the same rows, and the same weights."""
    name, calls = KILLS[point]
    init = None if point == "warm start" else str(finished / "checkpoints" / "start")
    args = arguments(run_dir=str(tmp_path), init=init)
    child = os.fork()
    if not child:
        wrap = killed_after(calls)
        if name == "part":  # half an episode's file is written when the process dies
            replaced = Path.replace
            dies = wrap(replaced)
            Path.replace = lambda self, to: (dies if ".txt" in self.name else replaced)(self, to)
        elif name == "torch.save":
            torch.save = wrap(torch.save)
        elif name == "Step":
            agent_gym.lm.rollout.Step = wrap(agent_gym.lm.rollout.Step)
        else:
            owner, _, last = name.rpartition(".")
            owner = getattr(trainer, owner) if owner else trainer
            setattr(owner, last, wrap(getattr(owner, last)))
        try:
            trainer.train(args)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert not (folder / "result.json").exists()
    trainer.train(resumed(folder))
    assert data_files(folder) == data_files(finished)
    assert rows(folder) == rows(finished)
    assert same_weights(weights(folder), weights(finished))
    assert (folder / "table.md").read_text() == (finished / "table.md").read_text()


def test_four_processes_sample_prune_and_test_as_one_does(kwargs, start, arguments, tmp_path):
    """Episodes have draws of their own, and some of them no verdict; gradients are summed in another order."""
    own = {
        "init": start, "keep": "pruned-any", "rounds": 1, "env_kwargs": json.dumps({**kwargs, "max_episode_steps": 3}),
        "run_dir": str(tmp_path / "four"),
    }  # fmt: skip
    args = arguments(**own)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(args).items()
             if not isinstance(value, dict | tuple | bool | None)]  # fmt: skip
    processes(4, SCRIPT, *flags, "--budget.tool-calls=2", "--budget.output-tokens=60", cwd=tmp_path)
    (four,) = (tmp_path / "four").iterdir()
    alone = run(trainer, arguments(**own | {"run_dir": str(tmp_path / "one")}))
    mine, theirs = data_files(alone), data_files(four)
    names = ("round_01_samples.jsonl", "round_01_kept.jsonl", "round_01_tokens.json")
    for name in (*names, "validation_start.jsonl", "test_start.jsonl"):
        assert theirs[name] == mine[name], name
    one, other = rows(alone)[1], rows(four)[1]
    assert 0 < one["charts/infra"] < one["charts/samples"]
    assert other["losses/refit"] == pytest.approx(one["losses/refit"], abs=1e-4)
    assert other["charts/infra"] == one["charts/infra"]


DYING = """
import os, runpy, signal, sys
import agent_gym.lm.ranks

class Dying(agent_gym.lm.ranks.Ranks):
    left = 1

    def all_reduce_gradients(self, parameters):
        if self.rank == 1 and not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        super().all_reduce_gradients(parameters)

agent_gym.lm.ranks.Ranks = Dying
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_process_that_dies_ends_the_run_which_is_resumed(finished, start, arguments, tmp_path):
    """SIGKILL in the middle of a refit, under torchrun: both end, and who is missing is said, by the other one if it
    comes to it before torchrun ends it."""
    (tmp_path / "dying.py").write_text(DYING)
    args = arguments(init=start, run_dir=str(tmp_path / "runs"))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(args).items()
             if not isinstance(value, dict | tuple | bool | None)]  # fmt: skip
    said = r"rft: process 1 of 2 has ended, and process 0 cannot|rank +: 1 \(local_rank: 1\)\s+exitcode +: -9"
    with pytest.raises(AssertionError, match=said):
        torchrun(2, tmp_path / "dying.py", SCRIPT, *flags, "--budget.tool-calls=2", "--budget.output-tokens=60",
                 cwd=tmp_path)  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["start"]
    processes(2, SCRIPT, "--resume", folder, cwd=tmp_path)
    assert [row["losses/refit"] for row in rows(folder)[1:]] == pytest.approx(
        [row["losses/refit"] for row in rows(finished)[1:]], abs=1e-4
    )


# ---- one fit ----


def test_the_warm_start_alone(arguments, finished, start):
    """As a run of rounds makes it."""
    folder = run(trainer, arguments(stage="sft", keep="success-in-budget"))
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["start"]
    own, theirs = (dict(load(path).net.named_parameters()) for path in (folder / "checkpoints" / "start", start))
    assert same_weights(own, theirs)
    assert rows(folder) == rows(finished)[:1]
    result = json.loads((folder / "result.json").read_text())
    assert (list(result["tables"]["validation"]), result["generated_tokens"]) == (["start"], 0)


def test_fitting_a_checkpoint_to_a_file_trains_on_what_passed(finished, start, arguments, capsys, tmp_path):
    sampled = list(agent_gym.read_trajectories(finished / "trajectories" / "round_01_samples.jsonl"))
    failed = replace(sampled[0], reward=0.0, verdict=agent_gym.Verdict("fail", "wrong_state", 0.0).to_dict())
    path = tmp_path / "samples.jsonl"
    agent_gym.write_trajectories(path, [*sampled, failed])
    passed = [t for t in agent_gym.read_trajectories(path) if t.success]
    assert 0 < len(passed) < len(sampled) + 1
    folder = run(trainer, arguments(stage="sft", data=(str(path),), init=start, eval_episodes=0))
    assert f"--data: {len(passed)} of {len(sampled) + 1} episodes passed\n" in capsys.readouterr().out
    assert kept(folder, 1) == passed
    assert rows(folder)[0]["charts/kept"] == len(passed)
    assert not same_weights(weights(folder), dict(load(start).net.named_parameters()))
    before = weights(folder)
    path.unlink()
    unfinished(folder)
    trainer.train(resumed(folder))  # the run has a copy
    assert same_weights(weights(folder), before)


def test_a_cut_off_data_file_is_used_up_to_the_cut(finished, start, arguments, tmp_path):
    whole = (finished / "trajectories" / "round_02_kept.jsonl").read_text()
    path = tmp_path / "cut.jsonl"
    path.write_text(whole[:-40])
    with pytest.warns(UserWarning, match=f"line {len(whole.splitlines())} is cut off and was skipped"):
        folder = run(trainer, arguments(stage="sft", data=(str(path),), init=start, eval_episodes=0))
    assert kept(folder, 1) == kept(finished, 2)[:-1]


def test_episodes_played_as_messages_are_learnt_as_text(start, kwargs, arguments, tmp_path):
    """A recorded agent of an endpoint: the file holds its messages, the student's turns are in its own format."""
    env = RecordTrajectory(gym.make("APIAgent-v0", **kwargs))
    env.reset(options={"task": TASKS[1]["id"]})
    for action in (actions := env.unwrapped.oracle()):
        spoken = PARSERS["hermes"].parse(action)
        env.step(json.loads(PARSERS["openai"].render(spoken.text, spoken.calls)))
    assert env.last.success
    path, chat = tmp_path / "messages.jsonl", chat_of(load(start))
    agent_gym.write_trajectories(path, [env.last])
    ((ids, spans),) = trainer.opened(trainer.read(path), path, chat, arguments(max_context=512), ALONE)
    assert [ids[b:e] for b, e in spans] == [chat.spelled(a) for a in actions]


# ---- adapters, other trainers' checkpoints ----


def test_adapters_in_bfloat16_with_checkpointing_from_a_checkpoint(start, finished, arguments, tmp_path, monkeypatch):
    """The checkpoints hold the adapters alone, the refit starts from those of --init, and a run that was killed after
    it began, and whose --init is gone, ends as an undisturbed one."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    base = load(start)
    base.net.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    settings = {
        "stage": "sft", "model": str(tmp_path / "base"), "lora_rank": 2, "dtype": "bfloat16", "checkpointing": True,
        "learning_rate": 1e-2, "epochs": 1, "max_context": 4096, "eval_episodes": 1, "pass_tasks": 1,
        "budget": {"relative": 9.0},
    }  # fmt: skip
    first = run(trainer, arguments(warm={"demonstrations": 4, "updates": 2, "batch_size": 2}, **settings))
    init = first / "checkpoints" / "start"
    assert (init / "adapter_model.safetensors").exists()
    assert not (init / "model.safetensors").exists()
    before = {n: p.detach().clone() for n, p in load(init, dtype=torch.bfloat16).net.named_parameters()}
    assert {p.dtype for n, p in before.items() if "lora" in n} == {torch.float32}
    assert {p.dtype for n, p in before.items() if "lora" not in n} == {torch.bfloat16}
    assert any(float(p.abs().max()) > 0 for n, p in before.items() if "lora_B" in n)

    again, forward = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *a, **k: again.append(
        torch._C._current_graph_task_id() != -1) or forward(*a, **k))  # fmt: skip
    data = tmp_path / "three.jsonl"
    agent_gym.write_trajectories(data, kept(finished, 2)[:3])
    begun = run(trainer, arguments(init=str(init), data=(str(data),), **settings))
    assert any(again)  # layers are computed again in the backward pass
    shutil.rmtree(first)
    started = load(begun / "checkpoints" / "start", dtype=torch.bfloat16)
    assert same_weights(dict(started.net.named_parameters()), before)
    one, files, history = weights(begun), data_files(begun), rows(begun)
    assert any(not torch.equal(one[n], p) for n, p in before.items() if "lora" in n)
    unfinished(begun)
    trainer.train(resumed(begun))
    assert same_weights(weights(begun), one)
    assert (data_files(begun), rows(begun)) == (files, history)


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "sprung")


def test_an_older_folder_of_transformers_is_taken(start, arguments, tmp_path):
    """Weights, config and tokenizer, without what describes a checkpoint here; no object beside them is unpickled."""
    model = load(start)
    model.net.save_pretrained(tmp_path / "warm")
    model.tokenizer.save_pretrained(tmp_path / "warm")
    torch.save({"trap": Trap(tmp_path / "trap")}, tmp_path / "warm" / "trainer.pt")
    folder = run(trainer, arguments(init=str(tmp_path / "warm"), rounds=0, eval_episodes=2, pass_tasks=1))
    own = dict(load(folder / "checkpoints" / "start").net.named_parameters())
    assert same_weights(own, dict(model.net.named_parameters()))
    assert [row["iteration"] for row in rows(folder)] == [0]
    assert not (tmp_path / "trap").exists()


def test_the_next_trainer_takes_the_checkpoint(finished, arguments, tmp_path):
    """And this one takes what another saved: weights and tokenizer, whatever state lies beside."""
    model = load(finished / "checkpoints" / "round_02")
    Run(arguments(run_dir=str(tmp_path)), "other", ALONE).save("iteration_000001", model, {"iteration": 1})
    (saved,) = tmp_path.glob("*/checkpoints/iteration_000001")
    folder = run(trainer, arguments(init=str(saved), rounds=0, eval_episodes=2, pass_tasks=1))
    own = load(folder / "checkpoints" / "start")
    assert same_weights(dict(own.net.named_parameters()), dict(model.net.named_parameters()))
    text = "Refund order O2001."
    assert chat_of(own).encode(text) == chat_of(model).encode(text)


def settled(**changes):
    args = trainer.Args(**changes)
    trainer.settle(args, ALONE)
    return args


def test_settings_follow_the_models_size(tmp_path):
    tiny_one = settled(model="tiny:APIAgent-v0")
    assert (tiny_one.max_new_tokens, tiny_one.max_context, tiny_one.learning_rate) == (96, 1024, 5e-4)
    assert settled().model.startswith("tiny")
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2).save_pretrained(tmp_path)
    small_one = settled(model=str(tmp_path))
    assert (small_one.max_new_tokens, small_one.max_context, small_one.learning_rate) == (256, 4096, 2e-4)
    assert small_one.eval_episodes == 48  # on a CPU
    assert settled(model=str(tmp_path), lora_rank=0).learning_rate == pytest.approx(2e-5)
    assert settled(model=str(tmp_path), epochs=7).epochs == 7


# ---- a teacher ----


class Teacher(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that plays the oracle, and is down for as many requests as ``server.down`` says
    once ``server.up`` have been answered."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            server.up -= 1
            if server.up < 0 < server.down:
                server.down -= 1
                return self.send_error(500)
        messages = body["messages"]
        said = sum(m["role"] == "assistant" for m in messages)
        actions = server.oracle[messages[1]["content"]]
        spoken = PARSERS["hermes"].parse(actions[said] if said < len(actions) else "Done.")
        message = json.loads(PARSERS["openai"].render(spoken.text, spoken.calls))
        answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 7}}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def teacher(kwargs, up=10**9, down=0):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    server.up, server.down, server.seen, server.lock = up, down, [], threading.Lock()
    env, server.oracle = gym.make("APIAgent-v0", **kwargs), {}
    for task in TASKS[1:5]:
        observation, _ = env.reset(options={"task": task["id"]})
        server.oracle[observation] = env.unwrapped.oracle()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_a_teachers_episodes_are_learnt_and_a_broken_round_goes_on(kwargs, start, arguments, tmp_path, monkeypatch):
    """The endpoint breaks down after some requests; what was finished is not asked again, and the end is the same."""
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # no pause between attempts
    settings = {
        "teacher_model": "oracle", "rounds": 1, "samples_per_task": 2, "init": start, "eval_episodes": 0, "parallel": 1,
    }  # fmt: skip
    with teacher(kwargs) as (server, url):
        folder = run(trainer, arguments(teacher_url=url, **settings))
        asked = len(server.seen)
        samples = trainer.read(folder / "trajectories" / "round_01_samples.jsonl")
        assert len(samples) == 8
        assert all(t.success and s.action_ids is None for t in samples for s in t.steps)
        (row,) = rows(folder)
        assert row["charts/generated_tokens"] == 7 * sum(len(t.steps) for t in samples) == 7 * asked
        assert row["charts/kept"] == len({t.task_id for t in samples})
        assert {"get_order", "submit"} <= {tool["function"]["name"] for tool in server.seen[0]["tools"]}
        before = weights(folder)
        assert not same_weights(before, dict(load(start).net.named_parameters()))

        two = sum(len(t.steps) for t in samples[:2])
        server.up, server.down = two, 3
        args = arguments(teacher_url=url, run_dir=str(tmp_path), **settings)
        with pytest.raises(Refused, match=f"{url}: HTTP status 500 Internal Server Error"):
            trainer.train(args)
        (broken,) = tmp_path.iterdir()
        assert len(list((broken / "trajectories" / "round_01").glob("*.txt"))) == 2
        server.seen.clear()
        trainer.train(resumed(broken))
        assert len(server.seen) == asked - two
    assert data_files(broken) == data_files(folder)
    assert same_weights(weights(broken), before)


# ---- wrong input ----


@pytest.fixture
def refused(arguments, tmp_path):
    """What a run that cannot work ends with: one sentence."""

    def ask(**changes):
        with pytest.raises(Refused) as ended:
            trainer.train(arguments(**{"run_dir": str(tmp_path / "runs"), **changes}))
        assert "\n" not in str(ended.value)
        return str(ended.value)

    return ask


def test_wrong_data_files(refused, start, episodes, tmp_path):
    good = next(e.trajectory() for e in episodes if e.success)
    path = tmp_path / "some.jsonl"

    def asked(*lines):
        path.write_text("".join(line if isinstance(line, str) else line.to_json() + "\n" for line in lines))
        return refused(stage="sft", data=(str(path),), init=start)

    other = asked(good, replace(good, env_id="SQL-v0"))
    assert other == f"{path}, line 2: an episode of SQL-v0, not of --env-id APIAgent-v0"
    assert asked(replace(good, task_id="x")).startswith(
        f"{path}, line 1: its task 'x' cannot be opened: unknown task id"
    )
    assert asked(replace(good, env_kwargs={"colour": 1})).startswith(f"{path}, line 1: ")
    held_out = asked(replace(good, env_kwargs={**good.env_kwargs, "split": "test"}))
    assert held_out.startswith(f"{path}, line 1: an episode of the test split")
    assert asked("nonsense\n", good).startswith(f"{path}, line 1: not a trajectory: ")
    assert asked(replace(good, reward=0.0, verdict={**good.verdict, "status": "fail"})) == (
        "round 1: no episode has passed and is within --max-context 1024"
    )
    missing = refused(stage="sft", data=(str(tmp_path / "none.jsonl"),), init=start)
    assert missing == f"{tmp_path}/none.jsonl cannot be read: No such file or directory"


def test_nothing_to_keep(refused, start):
    text = refused(init=start, keep="success-in-budget", eval_episodes=0, budget={"tool_calls": 0.0})
    assert re.fullmatch(
        r"round 1: none of 16 episodes can be kept with --keep success-in-budget \(\d+ passed\); start from a better "
        "policy or sample more", text
    )  # fmt: skip


def test_wrong_numbers_and_combinations(refused, start, finished):
    assert refused(rounds=-1) == "--rounds must be 0 or more, not -1"
    assert refused(total_tokens=-1) == "--total-tokens must be 0 or more, not -1"
    assert refused(pass_k=1) == "--pass-k must be 2 or more, not 1"
    assert refused(parallel=0) == "--parallel must be 1 or more, not 0"
    assert refused(temperature=0.0) == "--temperature must be a number above 0, not 0.0"
    assert refused(data=("x",)).startswith("--data belongs to --stage sft")
    assert refused(stage="sft", teacher_url="http://x").startswith("--teacher-url belongs to --stage rft")
    assert "localhost:8000 must begin with http://" in refused(teacher_url="localhost:8000", teacher_model="x")
    assert "http://x needs a model" in refused(teacher_url="http://x")
    assert refused(keep_best=True, eval_episodes=0).startswith("--keep-best compares tests")
    assert refused(ema=1.0) == "--ema must be below 1, not 1.0: nothing would be learnt"
    assert refused(held_out=0.6) == "--held-out must be 0.5 or less, not 0.6"
    assert refused(held_out=-0.1) == "--held-out must be 0 or more, not -0.1"
    assert refused(env_kwargs="[1]").startswith("--env-kwargs must be a JSON object")
    assert refused(init=start, budget={"tool_calls": -1.0}) == "--budget.tool-calls must be 0 or more, not -1"
    assert refused(stage="sft", init=start).startswith("--stage sft needs --data, or a warm start to make")
    data = (str(finished / "trajectories" / "round_01_samples.jsonl"),)
    long = refused(init=start, stage="sft", data=data, max_context=4, eval_episodes=0)
    assert long == "round 1: no episode has passed and is within --max-context 4"


# ---- the page ----


def test_every_logged_metric_is_explained(finished):
    page = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    explained = {n for row in listed for n in re.findall(r"`(\w+/\w+)`", row)}
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert explained == {name for line in lines for name in json.loads(line)} - {"iteration"}


def test_the_table_of_sizes_follows_the_code():
    listed = re.findall(r"^\| (tiny|small|large) .*?\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [
        (size, " | ".join(f"{value:g}" for value in values.values())) for size, values in trainer.SIZES.items()
    ]
