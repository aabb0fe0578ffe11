"""What the three trainers and the sweeps over them share: text decoded as it was sampled, tables of no verdict."""

import importlib.util
import math
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainers need the extra train")
pytest.importorskip("transformers", reason="the trainers need the extra train")
pytest.importorskip("matplotlib", reason="the trainers need the extra train")

from agent_gym import CHANNELS, Group, Step, Trajectory, write_trajectories  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def load(path):
    name = f"figures_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


TRAINERS = {name: load(ROOT / "cleanrl_llm" / f"{name}.py") for name in ("ppo_c3rl", "grpo_pcgrad", "rft")}


@pytest.fixture(params=TRAINERS)
def trainer(request):
    return TRAINERS[request.param]


# ---- text ----------------------------------------------------------------------------------------------------------

TEXTS = ["if x != y : return 'a , b .'", "do n't I 'm we 've ? no ! \" a \"", "  two  blanks \n , and a line"]


def test_what_was_sampled_is_played_character_by_character(trainer):
    tokenizer = trainer.tiny_tokenizer(iter(TEXTS))
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert tokenizer.decode(tokenizer.encode("x != y")) == "x!= y"  # the tokenizer tidies unless it is told not to
    options = {"critic": False} if trainer is TRAINERS["ppo_c3rl"] else {}
    policy = trainer.Policy(trainer.tiny_model(tokenizer, 0), tokenizer, sees_tools=False, **options)
    for text in TEXTS:
        for end in ([], [policy.eos]):
            env = gym.make("APIAgent-v0", domains=["shop"], difficulty=1, disable_env_checker=True)
            episode = trainer.start(policy, env, 1)
            ids = [*policy.encode(text), *end]
            numbers = [[0.0] * len(ids), 0.0][: 1 if trainer is TRAINERS["rft"] else 2]
            trainer.advance(policy, episode, ids, *numbers, 4096)
            (step,) = episode.steps
            assert step.action == text
            assert step.action_ids == ids
            if trainer is TRAINERS["rft"]:
                assert trainer.sampled_here(policy, step)


# ---- tables --------------------------------------------------------------------------------------------------------


def unjudged(task, seed, status="infra"):
    """An episode without a verdict."""
    cost = dict.fromkeys(CHANNELS, 1.0)
    verdict = {"status": status, "reason": status, "score": 0.0, "diagnostics": ["lost"], "trust": "strong"}
    steps = (Step("", "x", cost, [], "", action_ids=[1, 2], logprobs=[-1.0, -1.0]),)
    return Trajectory(task, "APIAgent-v0", {}, seed, steps, None, verdict, cost, Group("a"))


NOTHING = [unjudged(f"train-1-{i // 2}", i) for i in range(4)]


def is_nan(interval):
    return all(math.isnan(x) for x in interval)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_table_of_nothing_but_infra(tmp_path):
    budget = {"tool_calls": 2.0, "output_tokens": 48.0, "read_tokens": math.inf, "latency_ms": 200.0}
    for name, trainer in TRAINERS.items():
        args = trainer.Args(device="cpu")
        if name != "grpo_pcgrad":
            args.budget = trainer.Budget(**budget)
        else:
            trainer.settle(args, torch.device("cpu"))
        found = trainer.summary(NOTHING, *([NOTHING[:2]] if name == "rft" else []), args)
        if name == "grpo_pcgrad":
            assert list(found) == ["pass@1"]
            assert is_nan(found["pass@1"])
            trainer.draw_diversity({"warm start": found, "final": found}, tmp_path / "none.png")
            assert not (tmp_path / "none.png").exists()
            text = trainer.show({"warm start": found, "final": found})
        else:
            shares = ["success@1", "in-budget success", "violation any", *(f"violation {k}" for k in CHANNELS)]
            assert all(math.isnan(found[key][0]) and found[key][1:] == (0.0, 1.0) for key in shares)
            means = [key for key in found if key not in shares]
            assert len(means) == len(CHANNELS) + (name == "rft")
            assert all(is_nan(found[key]) for key in means)
            counts = [{"final": {}}] if name == "rft" else []
            text = trainer.show({"final": found}, *counts)
        assert "nan [nan, nan]" in text


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_round_of_nothing_but_infra_can_be_drawn(tmp_path):
    rft = TRAINERS["rft"]
    keys = [f"charts/{key}{end}" for key in ("pass_at_k", "pass_at_1", "in_budget_success")
            for end in ("", "_low", "_high")] + [f"cost/{k}" for k in CHANNELS]  # fmt: skip
    history = [{"iteration": 0, **dict.fromkeys(keys, math.nan)}, {"iteration": 1, **dict.fromkeys(keys, 0.5)}]
    args = rft.Args(device="cpu", budget=rft.Budget(2.0, 48.0, math.inf, 200.0))
    rft.draw_rounds(history, tmp_path / "rounds.png", args)
    assert (tmp_path / "rounds.png").stat().st_size > 1000


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_sweeps_of_nothing_but_infra(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    passk, budget = (load(ROOT / "benchmarks" / f"{name}.py") for name in ("grpo_passk", "rft_budget"))
    values = passk.figures(NOTHING)
    assert values.shape == (2, len(passk.FIGURES))
    assert np.isnan(values).all()
    assert is_nan(passk.interval(np.stack([values[:, 0], values[:, 0]])))
    mixed = np.array([[0.5, np.nan], [np.nan, np.nan]])
    mean, low, high = passk.interval(mixed)
    assert (mean, low, high) == (0.5, 0.5, 0.5)
    assert "nan [nan, nan]" in passk.cells({"pass@1": passk.interval(values[:1])}, ".2f")

    folder = tmp_path / "runs" / "one"
    (folder / "trajectories").mkdir(parents=True)
    (folder / "result.json").write_text('{"generated_tokens": 7}')
    write_trajectories(folder / "trajectories" / "test_final.jsonl", NOTHING)
    figures = budget.tested(tmp_path)
    assert figures.pop("generated tokens") == 7
    assert set(figures) == set(budget.KEYS)
    assert all(math.isnan(one[0]) for one in figures.values())
    rows = {"warm start": [figures], "grpo": [figures, figures]}
    assert budget.cell([one["success@1"][0] for one in rows["grpo"]]) == "nan (nan nan)"
    budget.draw(rows, tmp_path / "budget.png")
    assert (tmp_path / "budget.png").stat().st_size > 1000
