"""The tables: every cell is a command line that its trainer takes, a sweep goes on where it was, and the report says
what the result files hold."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Timer

import numpy as np
import pytest

pytest.importorskip("torch", reason="the trainers need the extra 'train'")
pytest.importorskip("scipy", reason="the report needs the extra 'bench'")

from small_lm import ROOT, load_trainer

sys.path.insert(0, str(ROOT))
from agent_gym import CHANNELS
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.runs import arguments
from benchmarks.tables import cells, report, sweep
from benchmarks.tables.cells import BASELINES, ENVS, METHODS, Cell

TASKS = 40


# ---- cells ----


def test_every_cell_has_a_file_of_its_own_and_no_table_has_the_tuning_seed():
    every = list(cells.cells())
    assert len({cell.path for cell in every}) == len(every)
    assert {cell.seed for cell in every if cell.table != "tune"} == set(cells.SEEDS)
    assert {cell.seed for cell in every if cell.table == "tune"} == {cells.TUNING_SEED}
    tried = {name: [c.setting for c in every if c.table == "tune" and c.method == name] for name in METHODS}
    assert {name: len(set(settings)) for name, settings in tried.items()} == {
        name: 0 if name == "sft" else 3 for name in METHODS
    }
    assert all(method.chosen in method.trials for method in METHODS.values() if method.knob)


def test_the_most_valuable_cells_come_first():
    order = [(cell.table, cell.env, cell.budget) for cell in cells.cells()]
    firsts = list(dict.fromkeys(order))
    assert firsts[:7] == [
        ("tune", ENVS[0], "medium"), ("wasteful", "APIAgent-v0", "medium"), ("wasteful", "SQL-v0", "medium"),
        ("wasteful", "WebLite-v0", "medium"), ("wasteful", "CodeAgent-v0", "medium"), ("main", ENVS[0], "medium"),
        ("modes", ENVS[0], "medium"),
    ]  # fmt: skip
    assert order.count(("main", ENVS[0], "medium")) == 5 * len(METHODS)


def test_what_starts_from_the_wasteful_policy_says_so():
    for cell in cells.cells():
        assert ("--init" in cell.command()) == (cell.table in ("tune", "wasteful", "ablations"))
        if cell.start:
            assert cell.command()[-2:] == ["--init", f"runs/tables/starts/{cell.env}"]


def test_the_wasteful_start_is_made_once(tmp_path, monkeypatch):
    made = []

    def run(line, *, cwd, **options):
        made.append(line)
        assert cwd == tmp_path
        (Path(line[line.index("--run-dir") + 1]) / "run" / "checkpoints" / "start").mkdir(parents=True)

    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep.subprocess, "run", run)
    for _ in range(2):
        sweep.make_start(ENVS[0], tmp_path / "runs")
    assert [line[1:-2] for line in made] == [cells.wasteful_start(ENVS[0])]
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").rglob("*")] == [
        "runs/tables", "runs/tables/starts", f"runs/tables/starts/{ENVS[0]}"
    ]  # fmt: skip


def test_a_wasteful_start_that_another_sweep_has_made_meanwhile_stays(tmp_path, monkeypatch):
    theirs = tmp_path / "runs" / "tables" / "starts" / ENVS[0] / "theirs"

    def run(line, **options):
        theirs.mkdir(parents=True)
        (Path(line[line.index("--run-dir") + 1]) / "run" / "checkpoints" / "start").mkdir(parents=True)

    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep.subprocess, "run", run)
    sweep.make_start(ENVS[0], tmp_path / "runs")
    assert theirs.is_dir()
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / "runs" / "tables"]  # nothing of ours is left


@pytest.mark.parametrize("name", cells.COMMON)
def test_the_trainers_take_the_flags_of_every_cell(name):
    trainer = load_trainer(name)
    commands = {
        tuple(cell.command(smoke)) for cell in cells.cells() for smoke in (False, True) if cell.of.trainer == name
    }
    seen = set()
    for script, *flags in sorted(commands):
        assert script == f"cleanrl_llm/{name}.py"
        apart = tuple(f for f, before in zip(flags, ["", *flags], strict=False) if before not in ("--seed", "--env-id"))
        if apart not in seen:
            seen.add(apart)
            args = arguments(trainer.Args, flags)
            trainer.settle(args, Ranks())  # refuses what does not go together
            assert args.total_tokens == cells.TOKENS[flags[flags.index("--env-id") + 1]]


# ---- sweep ----

FAKE = """
import json, sys, time
from pathlib import Path
what, run = sys.argv[1], Path(sys.argv[sys.argv.index("--run-dir") + 1]) / "run"
if what == "crash":
    sys.exit("this cannot work")
if what == "hang":
    Path(sys.argv[2]).touch()
    time.sleep(600)
from agent_gym import Trajectory, write_trajectories
import gymnasium as gym
from agent_gym.wrappers import RecordTrajectory
(run / "trajectories").mkdir(parents=True)
for split in ("validation", "test"):
    kwargs = {"split": split, "difficulty": 1, "budget": {"tool_calls": 1.0}}
    env = RecordTrajectory(gym.make("APIAgent-v0", disable_env_checker=True, **kwargs))
    for seed in range(3):
        env.reset(seed=seed)
        for action in env.unwrapped.oracle() if seed else ["I do not know."]:
            env.step(action)
    write_trajectories(run / "trajectories" / f"{split}_final.jsonl", env.trajectories)
(run / "args.json").write_text(json.dumps({"seed": 1, "run_dir": str(run)}))
(run / "result.json").write_text(json.dumps({"generated_tokens": 1234}))
rows = [{"iteration": i, "charts/success": 0.123456789, "losses/kl": 1.0} for i in range(2)]
rows[1]["cost/tool_calls"] = 2.0
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
"""


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Runs cells whose trainer is a fake one; ``what`` it does, by method."""
    if not (ROOT / ".git").exists():
        pytest.skip("a result names the commit that made it, and this is no checkout")
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(what: dict[str, str], stop: Event | None = None) -> list[Cell]:
        monkeypatch.setattr(
            Cell, "command", lambda self, smoke: [str(tmp_path / "fake.py"), what[self.method], str(tmp_path / "begun")]
        )
        todo = [Cell("main", ENVS[0], method, "medium", 1) for method in what]
        options = {"keep": False, "smoke": False, "stop": stop or Event()}
        sweep.sweep(todo, 2, tmp_path / "results", tmp_path / "runs", **options)
        return todo

    return run


def files(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_cell_leaves_a_small_file_and_no_run_folder(played, tmp_path):
    (cell,) = played({"ppo": "work"})
    path = tmp_path / "results" / f"{cell.path}.json"
    text = path.read_text()
    found = json.loads(text)
    assert text.count("\n") == 1
    assert len(text) < 60_000
    assert str(tmp_path) not in json.dumps({name: one for name, one in found.items() if name != "command"})
    assert list((tmp_path / "runs").iterdir()) == []
    assert len(found["commit"].rstrip("+")) == 40
    assert {"python", "torch", "agent-gym"} <= found["versions"].keys()
    assert found["series"] == {"charts/success": [0.12346, 0.12346], "cost/tool_calls": [None, 2]}
    tested = found["tested"]["validation"]
    assert tested["passed"] == [0, 1, 1]
    assert tested["costs"]["tool_calls"][1:] == tested["oracle"][1:]
    assert tested["within"][1:] == [int(calls <= 1) for calls in tested["oracle"][1:]]
    assert found["tested"]["test"]["tasks"] != tested["tasks"]


def test_what_fails_is_recorded_and_stops_nothing(played, tmp_path):
    played({"ppo": "crash", "penalty": "work"})
    results = tmp_path / "results" / "main" / ENVS[0]
    assert [path.name for path in sorted(results.iterdir())] == [
        "penalty__medium__seed1.json", "ppo__medium__seed1.failed.json"
    ]  # fmt: skip
    assert json.loads((results / "ppo__medium__seed1.failed.json").read_text())["error"] == "this cannot work"
    assert report.Found.read(tmp_path / "results").rows.keys() == {("main", ENVS[0], "penalty", "medium")}
    played({"ppo": "work"})
    assert sorted(path.name for path in results.iterdir())[1] == "ppo__medium__seed1.json"


def test_a_sweep_that_is_stopped_leaves_nothing_behind(played, tmp_path):
    stop = Event()

    def when_begun():
        stop.set() if (tmp_path / "begun").exists() else wait()

    def wait():
        Timer(0.1, when_begun).start()

    wait()
    played({"ppo": "hang"}, stop)
    assert list(files(tmp_path / "results")) == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_only_what_is_asked_for_and_not_there_is_run(tmp_path, monkeypatch):
    before, asked = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr(sweep, "sweep", lambda todo, *_, **options: asked.append((todo, options["stop"])))

    def todo(*more: str) -> list[str]:
        flags = ["--table", "main", "--env", ENVS[0], "--budget", "medium", "--seeds", "1", "2", "--only", "c3", "ppo"]
        sweep.main([*flags, "--results", str(tmp_path), *more])
        return [f"{cell.method} {cell.seed}" for cell in asked[-1][0]]

    try:
        assert todo() == ["c3 1", "ppo 1", "c3 2", "ppo 2"]
        folder = tmp_path / "main" / ENVS[0]
        folder.mkdir(parents=True)
        (folder / "c3__medium__seed1.json").write_text("{}")
        (folder / "ppo__medium__seed2.failed.json").write_text("{}")
        assert todo() == ["ppo 1", "c3 2"]
        assert todo("--retry") == ["ppo 1", "c3 2", "ppo 2"]
        signal.raise_signal(signal.SIGTERM)
        assert asked[-1][1].is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("method", ["c3", "grpo"])
def test_a_real_run_gives_what_the_report_needs(method, tmp_path):
    cell = Cell("main", ENVS[0], method, "medium", 1)
    options = {"keep": False, "smoke": True, "stop": Event()}
    sweep.sweep([cell], 1, tmp_path / "results", tmp_path / "runs", **options)
    assert list(files(tmp_path / "results")) == [f"{cell.path}.json"]
    found = json.loads((tmp_path / "results" / f"{cell.path}.json").read_text())
    assert found["generated_tokens"] > 0
    assert len(found["tested"]["validation"]["passed"]) == len(found["tested"]["test"]["passed"]) >= 4
    assert {"charts/generated_tokens", "charts/in_budget_success"} <= found["series"].keys()
    assert found["bounds"].keys() == set(CHANNELS)
    report.report(tmp_path / "results", tmp_path / "docs")


def test_a_run_that_its_trainer_refuses_is_no_result(tmp_path):
    cell = Cell("main", ENVS[0], "rft_pruned", "medium", 1)
    options = {"keep": False, "smoke": True, "stop": Event()}
    sweep.sweep([cell], 1, tmp_path, tmp_path / "runs", **options)
    assert list(files(tmp_path)) == [f"{cell.path}.failed.json"]
    assert "none of 8 episodes can be kept" in json.loads((tmp_path / f"{cell.path}.failed.json").read_text())["error"]


# ---- report ----


def result(results: Path, cell: Cell, rate: float, over: float, slow: float = 1.0) -> None:
    """A result file: so many of the tasks pass, so many are over budget, and learning takes ``slow`` of the tokens."""
    rng = np.random.default_rng(cell.seed)
    luck, care = rng.random(TASKS), rng.random(TASKS)  # the same for all methods, as tasks are
    steps = np.arange(1, 41) / 40
    success = np.clip(steps / slow, 0.0, 1.0)
    tested = {
        "tasks": "same", "samples": 1, "passed": [int(x < rate) for x in luck],
        "within": [int(x >= over) for x in care], "costs": {k: [3] * TASKS for k in CHANNELS},
        "oracle": [2] * TASKS, "ways": [1] * TASKS, "solutions": [1] * TASKS,
    }  # fmt: skip
    tokens = cells.TOKENS[cell.env]
    credit = {"iteration": 9, "success": True, "u": [1, 0, 1], "v": [[0] * 4, [1] * 4, [0] * 4]}
    data = {
        "cell": vars(cell), "commit": 40 * "a", "versions": {"python": "3"}, "wall_seconds": 60,
        "bounds": {"tool_calls": 2}, "generated_tokens": tokens, "tested": {"validation": tested, "test": tested},
        "credits": [credit | {"necessary": [0, 2]}],
        "series": {
            "charts/generated_tokens": (steps * tokens).tolist(), "charts/in_budget_success": success.tolist(),
            "seconds/rollout": [8] * 40, "seconds/measure": [1] * 40, "seconds/update": [1] * 40,
            **{f"lambda/{k}": [0.5] * 40 for k in CHANNELS},
        },
    }  # fmt: skip
    if cell.method == "sft":  # nothing was trained
        data |= {"series": {}, "credits": [], "generated_tokens": 0}
    sweep.keep(results / f"{cell.path}.json", data)


def full(
    results: Path, rate: float, over: float, slow: float, envs: tuple[str, ...] = ENVS[:2], table: str = "main"
) -> None:
    """A table in which every baseline has 0.7 and 0.3 over budget, and C3-RL what is given."""
    for env in envs:
        for seed in (1, 2, 3):
            for name in (*BASELINES, "c3_loo", "rft_pruned", "sft"):
                result(results, Cell(table, env, name, "medium", seed), 0.7, 0.3)
            result(results, Cell(table, env, "c3", "medium", seed), rate, over, slow)


def verdicts(tmp_path: Path) -> list[str]:
    return [claim.verdict for own in report.report(tmp_path, tmp_path / "docs").values() for claim in own]


def test_nothing_is_claimed_before_it_is_measured(tmp_path):
    assert verdicts(tmp_path) == ["NOT MEASURED"] * 8
    page = (tmp_path / "docs" / "results.md").read_text()
    assert f"Not run: {ENVS[0]} medium, {ENVS[0]} tight" in page
    assert f"Not run: {', '.join(f'{env} medium' for env in ENVS)}." in page  # from the wasteful policies
    assert "Not run: C3-RL, global cost only" in page
    assert "literally" not in page
    assert "squeezes" not in page
    assert "One level" not in page
    full(tmp_path, 0.95, 0.05, 0.3, ENVS[:1], "wasteful")
    result(tmp_path, Cell("ablations", ENVS[0], "global_cost", "medium", 1), 0.7, 0.3)
    assert verdicts(tmp_path) == [*["NOT MEASURED"] * 6, "HOLDS", "NOT MEASURED"]
    for name, rate in (("no_success_credit", 0.6), ("no_success_global_cost", 0.7)):
        result(tmp_path, Cell("ablations", ENVS[0], name, "medium", 1), rate, 0.3)
    assert verdicts(tmp_path) == [*["NOT MEASURED"] * 6, "HOLDS", "DOES NOT HOLD"]
    full(tmp_path, 0.95, 0.05, 0.3, ENVS[1:2], "wasteful")
    assert verdicts(tmp_path) == [*["NOT MEASURED"] * 3, *["HOLDS"] * 4, "DOES NOT HOLD"]


def test_a_baseline_that_cannot_begin_is_named_and_leaves_no_claim_open(tmp_path):
    full(tmp_path, 0.95, 0.05, 0.3)
    for path in (tmp_path / "main" / ENVS[1]).glob("rft_in_budget__*"):
        path.unlink()
    page = tmp_path / "docs" / "results.md"
    assert verdicts(tmp_path)[:3] == ["NOT MEASURED"] * 3
    assert "Not run: RFT, success in budget." in page.read_text()
    failed = {"cell": vars(Cell("main", ENVS[1], "rft_in_budget", "medium", 1)), "error": "none can be kept"}
    sweep.keep(tmp_path / "main" / ENVS[1] / "rft_in_budget__medium__seed1.failed.json", failed)
    assert verdicts(tmp_path)[:3] == ["HOLDS"] * 3
    assert "RFT, success in budget failed: none can be kept." in page.read_text()
    assert "Not run: RFT, success in budget." not in page.read_text()


@pytest.mark.parametrize(
    ("rate", "over", "slow", "expected"),
    [
        (0.95, 0.05, 0.3, ["HOLDS", "HOLDS", "HOLDS"]),
        (0.95, 0.3, 1.0, ["HOLDS", "DOES NOT HOLD", "DOES NOT HOLD"]),
        (0.7, 0.3, 1.0, ["DOES NOT HOLD"] * 3),
        (0.2, 0.05, 0.3, ["DOES NOT HOLD", "HOLDS", "HOLDS"]),
    ],
)
def test_claims_hold_or_not_by_their_numbers(rate, over, slow, expected, tmp_path):
    full(tmp_path, rate, over, slow)
    stated = report.claims(report.Found.read(tmp_path))
    assert [claim.verdict for claim in stated] == expected


def test_the_page_and_the_summary_say_what_the_files_hold(tmp_path):
    full(tmp_path, 0.95, 0.05, 0.3)
    report.report(tmp_path, tmp_path / "docs")
    first = {path: path.read_bytes() for path in tmp_path.glob("docs/*")}
    page = (tmp_path / "docs" / "results.md").read_text()
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    mean, low, high = rows[f"main/{ENVS[0]}/c3/medium"]["test"]["success"]
    luck = np.concatenate([np.random.default_rng(seed).random(TASKS) for seed in (1, 2, 3)])
    assert mean == pytest.approx((luck < 0.95).mean(), abs=1e-3)
    assert low < mean < high
    assert "| C3-RL | 3 | " in page
    assert "0.33 [0.33, 0.33]" in page  # needless calls: 3 where the oracle needs 2
    assert "| 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in page  # truth of the credit
    assert "10%" in page  # replay's share of the time
    assert "The oracle's calls are within the budget in 1.00 to 1.00 of the validation tasks" in page
    assert {path.name for path in first} == {
        f"results{end}" for end in (".md", "_curves.png", "_pareto.png", "_credit.png")
    }
    report.report(tmp_path, tmp_path / "docs")
    assert first == {path: path.read_bytes() for path in tmp_path.glob("docs/*")}


def test_the_readme_holds_the_committed_tables():
    text = report.README.read_text(encoding="utf-8")
    assert report.readme(report.Found.read(report.RESULTS), text) == text
    for table in ("wasteful", "main"):
        assert f"<!-- table: {table} -->\n\n| method | {ENVS[0]}: validation (seeds) | test |" in text
    assert "| cannot begin |" in text  # RFT on episodes in budget, of which a wasteful policy has none


def test_the_interval_is_over_seeds_and_tasks():
    rng = np.random.default_rng(0)
    seeds = np.repeat(rng.normal(size=(5, 1)), 200, axis=1)
    tasks = np.repeat(rng.normal(size=(1, 200)), 5, axis=0)
    for of, spread in ((seeds, seeds[:, 0].std() / np.sqrt(5)), (tasks, tasks[0].std() / np.sqrt(200))):
        mean, low, high = report.interval(of)
        assert mean == pytest.approx(of.mean())
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    holes = np.where(rng.random((5, 200)) < 0.1, np.nan, seeds)
    assert report.interval(holes)[0] == pytest.approx(np.nanmean(holes))


def test_differences_are_paired_and_need_the_same_tasks(tmp_path):
    for seed in (1, 2, 3):
        result(tmp_path, Cell("main", ENVS[0], "c3", "medium", seed), 0.9, 0.0)
        result(tmp_path, Cell("main", ENVS[0], "ppo", "medium", seed), 0.6, 0.0)
    found = report.Found.read(tmp_path)
    pair = [found.main(ENVS[0], name) for name in ("c3", "ppo")]
    mean, low, high = report.ahead(*pair, "test", "success")
    assert 0 < low < mean < high
    assert report.ahead(pair[0], pair[0], "test", "success") == (0.0, 0.0, 0.0)
    pair[1][2]["tested"]["test"]["tasks"] = "other"
    assert np.isnan(report.ahead(*pair, "test", "success")[0])
