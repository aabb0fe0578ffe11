"""Pictures and tables of a run, also of one in which hardly anything happened."""

import importlib.util
import math
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("agent_gym.lm", reason="needs the extra 'train'", exc_type=ImportError)
pytest.importorskip("matplotlib", reason="needs the extra 'train'")

from agent_gym import CHANNELS, Group, Step, Trajectory
from agent_gym.lm import figures
from agent_gym.lm.rollout import Episode

ROOT = Path(__file__).resolve().parents[1]
NAN = (math.nan, math.nan, math.nan)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw a picture. Returns the figure, or None if there is no file; nothing else may be left in the folder."""
    kept = []
    save = figures._save
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure) or save(figure, path))

    def draw(function, *data):
        kept.clear()
        path = tmp_path / "picture.png"
        path.unlink(missing_ok=True)
        function(*data, path)
        assert [p.name for p in tmp_path.iterdir()] == ["picture.png"] * len(kept)
        assert all(path.read_bytes().startswith(b"\x89PNG") for _ in kept)
        return kept[0] if kept else None

    return draw


def lines(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def texts(axis):
    return [text.get_text() for text in axis.texts]


def ticks(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


# ---- the table ----


def test_a_table():
    tables = {
        "start": {"success@1": (0.5, 0.25, 0.75), "mean latency_ms": (120.0, 99.96, 140.0)},
        "final": {"success@1": NAN, "in-budget success": (math.nan, 0.0, 1.0), "pass@4": (9.9996, 1.0, 12.0)},
    }
    counts = {"start": {"kept": 0}, "final": {"kept": 12, "generated tokens": 34567}}
    assert figures.table(tables, counts).splitlines() == [
        "| | start | final |",
        "|---|---|---|",
        "| success@1 | 0.500 [0.250, 0.750] | nan [nan, nan] |",
        "| mean latency_ms | 120.0 [100.0, 140.0] |  |",
        "| in-budget success |  | nan [0.0, 1.0] |",
        "| pass@4 |  | 10.000 [1.000, 12.000] |",
        "| kept | 0 | 12 |",
        "| generated tokens |  | 34567 |",
    ]
    assert figures.table({"final": {"a": (1.0, 1.0, 1.0)}}) == ("| | final |\n|---|---|\n| a | 1.000 [1.000, 1.000] |")


# ---- the pictures ----


def test_dual(drawn):
    rows = [
        {"iteration": i, **{f"lambda/{k}": i * 0.1 for k in CHANNELS}, "charts/success": 0.5, "violation/any": 0.9}
        for i in range(4)
    ]
    del rows[2]["charts/success"]
    top, bottom = drawn(figures.draw_dual, rows).axes
    assert list(lines(top)) == ["tool calls", "output tokens", "read tokens", "latency ms"]
    assert lines(top)["tool calls"] == ([0, 1, 2, 3], [0.0, 0.1, 0.2, pytest.approx(0.3)])
    assert lines(bottom)["success"] == ([0, 1, 3], [0.5] * 3)
    assert lines(bottom)["in-budget success"] == ([], [])
    top, _ = drawn(figures.draw_dual, rows[:1]).axes
    assert all(line.get_marker() == "o" for line in top.get_lines())  # one iteration is seen as well


def episode(iteration, number, steps=3, **changes):
    return {
        "iteration": iteration, "task_id": f"shop:{number}", "success": number == 0,
        "steps": [f"find_orders({i})" for i in range(steps - 1)] + ["answer: $x_{$\n\x00 10"],
        "eliminated": [], "necessary": [steps - 1],
        "u": [1.0] * (steps - 1) + [None], "v": [[1.0, 20.0, 0.0, -60.0]] * (steps - 1) + [[None] * len(CHANNELS)],
        **changes,
    }  # fmt: skip


def test_credits(drawn):
    """The first three episodes of the first and of the last iteration."""
    maps = [episode(i, number, 2 + number) for i in (0, 20, 39) for number in range(4)]
    axes = drawn(figures.draw_credits, maps).axes
    assert [axis.get_title() for axis in axes] == [
        f"iteration {i}: shop:{number} ({'failed' if number else 'passed'})" for i in (0, 39) for number in range(3)
    ]
    shown = texts(axes[0])
    assert shown == ["+1.0", "1", "20", "0", "-60", *["not measured"] * (1 + len(CHANNELS))]
    assert ticks(axes[0]) == ["0  find_orders(0)", "1  answer: $x_{$?? 10"]
    nothing = episode(0, 1, u=[math.nan] * 3, v=[[math.nan] * len(CHANNELS)] * 3)
    (axis,) = drawn(figures.draw_credits, [nothing]).axes
    assert set(texts(axis)) == {"not measured"}


def test_credits_mark_eliminated_and_necessary_steps(drawn):
    (axis, *_) = drawn(figures.draw_credits, [episode(0, 0, 4, eliminated=[0, 2], necessary=[1, 3])]).axes
    marks = [(label.get_color(), label.get_weight()) for label in axis.get_yticklabels()]
    assert marks == [("grey", "normal"), ("black", "bold")] * 2


def test_necessary_steps_are_the_oracles():
    """Its calls where they are first made, in any order of their arguments, and the answer."""
    env = gym.make("APIAgent-v0", difficulty=2)
    _, info = env.reset(seed=3)
    base = env.unwrapped
    oracle = [base.write(base.read(action)) for action in base.oracle()]
    first = oracle[0]
    noise = '<tool_call>{"name": "nothing", "arguments": {}}</tool_call>'
    observation, info = env.reset(seed=3)
    played = Episode.begun(0, env, 3, observation, info)
    for action in (noise, first, first, *oracle[1:]):
        played.note(action, env.step(action))
    assert played.success
    env.reset(seed=9)
    assert figures.necessary(played, env) == [1, *range(3, len(played.steps))]
    row = figures.credit_map(7, played, np.zeros(len(played.steps)), np.zeros((len(played.steps), 4)), [0, 2], env)
    assert (row["eliminated"], row["necessary"]) == ([0, 2], figures.necessary(played, env))


def test_conflict(drawn):
    rows = [{"iteration": 5, "cosine/1_0": 0.5}, {"iteration": 6, "cosine/1_0": -1.0, "cosine/2_0": 0.75}]
    names = ["shop", "a group of a very long name indeed", "$x_{$"]
    left, right, _ = drawn(figures.draw_conflict, rows, names).axes
    assert ticks(left) == ["0 and 1", "0 and 2", "1 and 2"]
    over = left.get_images()[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(over, np.nan), [[0.5, -1.0], [np.nan, 0.75], [np.nan, np.nan]])
    assert left.get_images()[0].get_extent() == [4.5, 6.5, 2.5, -0.5]
    assert texts(right) == ["", "-0.25", "0.75", "-0.25", "", "", "0.75", "", ""]
    assert ticks(right) == ["0: shop", "1: a group of a very long name\u2026", "2: $x_{$"]
    assert drawn(figures.draw_conflict, rows, names[:1]) is None


def test_passk(drawn):
    tested = [{"iteration": 0, "pass@1": 0.2, "pass@4": 0.5}, {"iteration": 9, "pass@1": 0.4, "pass@16": 0.9}]
    rows = [{"iteration": i, "conflict/rate": float(i % 2)} for i in range(7)] + [{"iteration": 7}]
    (axis,) = drawn(figures.draw_passk, tested, rows).axes
    found = lines(axis)
    assert found["pass@1, unseen tasks"] == ([0, 9], [0.2, 0.4])
    assert found["pass@16, unseen tasks"] == ([9], [0.9])
    assert list(found)[:3] == [f"pass@{k}, unseen tasks" for k in (1, 4, 16)]
    assert found["mean of five updates"] == (list(range(7)), [0, 0.5, pytest.approx(1 / 3), 0.5, 0.4, 0.6, 0.4])
    (axis,) = drawn(figures.draw_passk, [{"iteration": 0}], []).axes
    assert lines(axis) == {}


def test_diversity(drawn):
    few, many = "different call sequences a task", "distinct-2 of a task's tokens"
    tables = {
        "start": {"pass@1": (0.1, 0.0, 0.2), few: (3.0, 2.5, 3.5)},
        "final": {few: (2.0, 1.5, 2.5), many: (0.25, 0.2, 0.3)},
    }
    left, right = drawn(figures.draw_diversity, tables).axes
    assert texts(left) == ["3.00", "2.00"]
    assert texts(right) == ["none", "0.25"]
    assert [patch.get_height() for patch in left.patches] == [3.0, 2.0]
    assert drawn(figures.draw_diversity, {"start": {"pass@1": NAN}, "final": {"pass@1": NAN}}) is None


def test_groups(drawn):
    rows = [{"iteration": i, "group/0_success": float(i > 2)} for i in range(5)]
    tables = {"start": {"success, shop": (0.2, 0.1, 0.3)}, "final": {"success, $x_{$": (0.7, 0.6, 0.8)}}
    left, right = drawn(figures.draw_groups, rows, ["shop", "$x_{$"], tables).axes
    assert lines(left) == {"0": ([0, 1, 2, 3, 4], [0, 0, 0, 0.25, 0.4]), "1": ([], [])}
    assert [patch.get_height() for patch in right.patches] == [0.2, 0.7]
    assert right.patches[0].get_x() < 0 < right.patches[1].get_x()
    assert right.get_title() == "unseen tasks: start, final (left to right)"
    drawn(figures.draw_groups, [], ["shop"], {})


def test_rounds(drawn):
    """A round of nothing but infra has no figures; a channel without a bound is relative to the first round."""
    bounds = {"tool_calls": 2.0, "output_tokens": 0.0, "read_tokens": math.inf, "latency_ms": 0.5}
    rft = load("cleanrl_llm", "rft")
    keys = rft.row_of(rft.summary(NOTHING, bounds, 4), 4)  # what it logs
    rows = [
        {"iteration": 0, **dict.fromkeys(keys, math.nan)},
        {"iteration": 1, **dict.fromkeys(keys, 0.5)},
        {"iteration": 2, **dict.fromkeys(keys, 0.25)},
        {"iteration": 3},
    ]
    top, bottom = drawn(figures.draw_rounds, rows, bounds, 4).axes
    assert list(lines(top)) == ["pass@4", "success", "in-budget success"]
    for _, share in lines(top).values():
        np.testing.assert_array_equal(share, [math.nan, 0.5, 0.25, math.nan])
    found = lines(bottom)
    assert found["tool calls"] == ([1, 2], [0.25, 0.125])
    assert found["output tokens (no bound: relative to the first)"] == ([1, 2], [1.0, 0.5])
    assert found["read tokens (no bound: relative to the first)"] == ([1, 2], [1.0, 0.5])
    assert found["latency ms"] == ([1, 2], [1.0, 0.5])
    drawn(figures.draw_rounds, rows[:1], bounds, 4)


def test_a_picture_is_replaced_whole(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "dual.png"
    path.write_bytes(b"old")

    def half(self, file, **options):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        figures.draw_dual([{"iteration": 0}], path)
    assert path.read_bytes() == b"old"


def test_no_window_system_is_asked_for(drawn, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    drawn(figures.draw_groups, [{"iteration": 0}], ["a"], {})
    assert "matplotlib.pyplot" not in sys.modules


# ---- runs and sweeps without a verdict ----


def unjudged(task, seed):
    """An episode without a verdict."""
    cost = dict.fromkeys(CHANNELS, 1.0)
    verdict = {"status": "infra", "reason": "infra", "score": 0.0, "diagnostics": ["lost"], "trust": "strong"}
    steps = (Step("", "x", cost, [], "", action_ids=[1, 2], logprobs=[-1.0, -1.0]),)
    return Trajectory(task, "APIAgent-v0", {}, seed, steps, None, verdict, cost, Group("a"))


def load(folder, name):
    spec = importlib.util.spec_from_file_location(f"figures_{name}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def is_nan(interval):
    return all(math.isnan(x) for x in interval)


NOTHING = [unjudged(f"train-1-{i // 2}", i) for i in range(4)]


@pytest.mark.parametrize("name", ["ppo_c3rl", "grpo_pcgrad", "rft"])
def test_a_table_of_nothing_but_infra(name, drawn):
    trainer = load("cleanrl_llm", name)
    bounds = {"tool_calls": 2.0, "output_tokens": 48.0, "read_tokens": math.inf, "latency_ms": 200.0}
    found = trainer.summary(NOTHING, bounds, *([4] if name == "rft" else []))
    if name == "grpo_pcgrad":
        assert list(found) == ["pass@1", "in-budget success"]
        assert is_nan(found["pass@1"])
        assert drawn(figures.draw_diversity, {"start": found, "final": found}) is None
    else:
        shares = ["success@1", "in-budget success", "violation any", *(f"violation {k}" for k in CHANNELS)]
        assert all(math.isnan(found[key][0]) and found[key][1:] == (0.0, 1.0) for key in shares)
        means = [key for key in found if key not in shares]
        assert len(means) == len(CHANNELS) + (name == "rft")
        assert all(is_nan(found[key]) for key in means)
    assert "nan [nan, nan]" in figures.table({"final": found}, {"final": {}})


def test_a_sweep_of_nothing_but_infra(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    passk = load("benchmarks", "grpo_passk")
    values = passk.figures(NOTHING)
    assert values.shape == (2, len(passk.FIGURES))
    assert np.isnan(values).all()
    assert is_nan(passk.interval(np.stack([values[:, 0], values[:, 0]])))
    mixed = np.array([[0.5, np.nan], [np.nan, np.nan]])
    assert passk.interval(mixed) == (0.5, 0.5, 0.5)
    assert "nan [nan, nan]" in passk.cells({"pass@1": passk.interval(values[:1])}, ".2f")
