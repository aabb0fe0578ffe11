"""A run's folder: what is written, what a kill leaves, how a run goes on, and what is said when it cannot."""

import json
import math
import os
import pickle
import subprocess
import sys
import types
from dataclasses import asdict, dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("agent_gym.lm", reason="needs the extra 'train'", exc_type=ImportError)
import torch

from agent_gym.files import write
from agent_gym.lm import runs
from agent_gym.lm.errors import Refused
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.runs import Run, arguments, command, dumps, read_lines


@dataclass
class Bounds:
    tool_calls: float | None = None
    latency_ms: float | None = 200.0


@dataclass
class Dual:
    channels: tuple[str, ...] = ("tool_calls", "latency_ms")
    pid: bool = False


@dataclass
class Args:
    method: Literal["plain", "fancy"] = "plain"
    difficulty: tuple[int, ...] = (1, 2)
    kwargs: str | None = None
    budget: Bounds = field(default_factory=Bounds)
    dual: Dual = field(default_factory=Dual)
    group_size: int = 4
    rate: float = 3e-4
    total_iterations: int = 3
    total_tokens: int | None = None
    run_dir: str = "runs"
    resume: str | None = None
    track: bool = False
    wandb_project: str = "agent-gym"
    device: str = "cpu"


class Model:
    """Saves one number."""

    sharded = False

    def __init__(self, number=0):
        self.number = number

    def save(self, folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "number").write_text(str(self.number))


class Many(Ranks):
    """Several processes of which one is here; a gather gives what the first one had."""

    def __init__(self, rank, shared):
        super().__init__(rank, 2)
        self.shared = shared

    def gather(self, value):
        self.shared.setdefault("first", value)
        return [self.shared["first"], value]

    def all_reduce(self, values):
        return values


def new(tmp_path, ranks=None, **changes):
    return Run(Args(run_dir=str(tmp_path / "runs"), **changes), "toy", ranks or Ranks())


def again(folder, ranks=None):
    return Run(arguments(Args, ["--resume", str(folder)]), "toy", ranks or Ranks())


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- text ----


def test_strict_json():
    data = {"a": math.nan, "b": (math.inf, [-math.inf, 1.5]), "c": {"d": None, "e": True}}
    assert json.loads(dumps(data)) == {"a": None, "b": ["inf", ["-inf", 1.5]], "c": {"d": None, "e": True}}
    assert dumps([1], indent=1) == "[\n 1\n]"


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write(path, "old")
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        write(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write(path, "n\u00ebw")
    assert path.read_bytes() == "n\u00ebw".encode()
    assert files(tmp_path) == ["a.txt"]


def test_lines_up_to_what_a_crash_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


# ---- the folder and its figures ----


def test_a_new_run(tmp_path, capsys):
    run = new(tmp_path, total_iterations=7)
    run.log({"iteration": 0, "x": 0.5, "undefined": math.nan, "unbounded": math.inf})
    run.log({"iteration": 1, "x": 0.25})
    run.text("table.md", "| |\n")
    run.json("result.json", {"x": math.nan})
    run.lines("lines.jsonl", [{"a": 1}, {"a": math.inf}])
    run.close()
    assert run.fresh
    assert run.folder.parent == tmp_path / "runs"
    assert run.folder.name.startswith("toy__")
    assert json.loads((run.folder / "args.json").read_text()) == json.loads(dumps(asdict(run.args)))
    rows = [{"iteration": 0, "x": 0.5}, {"iteration": 1, "x": 0.25}]
    assert run.rows == rows == read_lines(run.folder / "metrics.jsonl")
    assert (run.folder / "table.md").read_text() == "| |\n"
    assert json.loads((run.folder / "result.json").read_text()) == {"x": None}
    assert read_lines(run.path("lines.jsonl")) == [{"a": 1}, {"a": "inf"}]
    written = "args.json, checkpoints, lines.jsonl, metrics.jsonl, result.json, table.md, tensorboard, trajectories"
    assert capsys.readouterr().out == f"run folder: {run.folder}\nwritten to {run.folder}: {written}\n"


def shown(folder, name):
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_rows_after_the_checkpoint_are_forgotten(tmp_path):
    """A run is killed after its fifth row, in the middle of writing it, and goes on from its third iteration."""
    run = new(tmp_path)
    for i in range(5):
        run.log({"iteration": i, "x": float(i)})
        run.scalars(i, {"seconds": 1.0})
    run.close()
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    resumed = again(run.folder)
    assert not resumed.fresh
    assert resumed.folder == run.folder
    assert [row["iteration"] for row in resumed.rows] == [0, 1, 2, 3] == [r["iteration"] for r in read_lines(path)]
    resumed.keep(3)
    assert [row["iteration"] for row in resumed.rows] == [0, 1, 2] == [r["iteration"] for r in read_lines(path)]
    resumed.scalars(1, {"late": 7.0})  # an early step does not make anything else be forgotten
    resumed.log({"iteration": 3, "x": 30.0})
    resumed.close()
    assert [row["x"] for row in read_lines(path)] == [0.0, 1.0, 2.0, 30.0]
    assert shown(run.folder, "x") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    assert shown(run.folder, "seconds") == [(i, 1.0) for i in range(3)]


def test_nothing_is_kept_of_a_run_without_a_checkpoint(tmp_path):
    run = new(tmp_path)
    run.log({"iteration": 0, "x": 1.0})
    run.close()
    resumed = again(run.folder)
    resumed.keep(0)
    resumed.log({"iteration": 0, "x": 2.0})
    resumed.close()
    assert read_lines(run.folder / "metrics.jsonl") == [{"iteration": 0, "x": 2.0}]
    assert shown(run.folder, "x") == [(0, 2.0)]


def test_only_the_first_process_writes(tmp_path, capsys):
    shared = {}
    first, second = new(tmp_path, Many(0, shared)), new(tmp_path, Many(1, shared))
    assert first.folder == second.folder
    before = files(first.folder)
    capsys.readouterr()
    second.log({"iteration": 0, "x": 1.0})
    second.scalars(0, {"y": 1.0})
    second.text("a.txt", "a")
    second.lines("a.jsonl", [{}])
    second.trajectories("test", [])
    second.save("iteration_000001", Model(), {})
    second.keep(0)
    second.close()
    assert files(first.folder) == before
    assert capsys.readouterr().out == ""
    first.trajectories("test", [])
    assert (first.folder / "trajectories" / "test.jsonl").read_text() == ""


def test_all_processes_hear_that_the_folder_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file")
    shared = {}
    for rank in range(2):
        with pytest.raises(Refused) as refused:
            new(tmp_path, Many(rank, shared))
        assert str(refused.value).startswith(f"the run folder {tmp_path / 'runs' / 'toy__'}")
        assert str(refused.value).endswith("cannot be written (Not a directory); choose another with --run-dir")


def test_tracking(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"^--track needs Weights & Biases: pip install 'agent-gym\[wandb\]'$"):
        new(tmp_path, track=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()

    calls = []
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.log = lambda row, step: calls.append((step, row))
    wandb.finish = lambda: calls.append("finish")
    wandb.init = lambda **options: calls.append(options) or wandb
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = new(tmp_path, track=True, wandb_project="mine")
    run.log({"iteration": 0, "x": 1.0, "no": math.nan})
    run.scalars(0, {"seconds": 2.0})
    run.close()
    options, *rest = calls
    assert (options["project"], options["id"], options["resume"]) == ("mine", run.folder.name, "allow")
    assert options["config"]["group_size"] == 4
    assert rest == [(0, {"iteration": 0, "x": 1.0}), (0, {"seconds": 2.0}), "finish"]


# ---- checkpoints ----


def names(run):
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def number(folder):
    return int((folder / "inner" / "number").read_text())


def test_the_newest_checkpoints_stay(tmp_path):
    run = new(tmp_path)
    assert run.newest("iteration") is None
    run.save("start", Model(7), {})
    run.save("best", Model(8), {})
    for i in (5, 10, 15):
        run.save(f"iteration_{i:06d}", Model(i), {"iteration": i}, keep=2)
    run.save("round_01", Model(1), {})
    assert names(run) == ["best", "iteration_000010", "iteration_000015", "round_01", "start"]
    assert run.newest("iteration").name == "iteration_000015"
    assert number(run.newest("iteration")) == run.state(run.newest("iteration"))["iteration"] == 15
    run.save("iteration_000020", Model(20), {})
    run.save("best", Model(9), {})
    assert names(run) == ["best", "iteration_000020", "round_01", "start"]
    assert number(run.folder / "checkpoints" / "best") == 9


def test_state_of_plain_data_and_tensors(tmp_path):
    run = new(tmp_path)
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    state = {"iteration": 3, "rates": [0.1, math.inf], "at": (1, None), "on": True, "name": "x", 4: torch.arange(3)}
    run.save("start", Model(), state | {"optimizer": optimizer.state_dict()})
    found = run.state(run.folder / "checkpoints" / "start")
    assert str(found.pop("optimizer")) == str(optimizer.state_dict())
    assert found.pop(4).tolist() == state.pop(4).tolist()
    assert found == state


@pytest.mark.parametrize(
    ("value", "kind"), [(np.zeros(2), "ndarray"), (np.float64(1.0), "float64"), (Bounds(), "Bounds"), ({1}, "set")]
)
def test_what_could_not_be_read_again_is_not_written(value, kind, tmp_path):
    run = new(tmp_path)
    with pytest.raises(TypeError) as error:
        run.save("start", Model(), {"rates": [1.0, value]})
    assert str(error.value) == f"state['rates'][1] is a {kind}; a checkpoint holds plain data and tensors only"
    assert names(run) == []


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


def test_folders_that_are_no_checkpoint(tmp_path):
    run = new(tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(Refused) as refused:
        run.state(str(folder))
    assert str(refused.value) == (
        f"{folder} is not a checkpoint: it has no state.pt; name one under runs/*/checkpoints"
    )
    run.save("start", Model(), {"weights": torch.ones(1000)})
    whole = (run.folder / "checkpoints" / "start" / "state.pt").read_bytes()
    torch.save([1, 2], folder / "list.pt")
    torch.save({"world": 1, "state": Evil(tmp_path / "mark")}, folder / "evil.pt")
    for data in (
        b"", b"text", whole[:-500], (folder / "list.pt").read_bytes(), (folder / "evil.pt").read_bytes(),
        pickle.dumps({"world": 1, "state": Evil(tmp_path / "mark")}, 2),
    ):  # fmt: skip
        (folder / "state.pt").write_bytes(data)
        with pytest.raises(Refused) as refused:
            run.state(folder)
        assert str(refused.value) == f"{folder}/state.pt cannot be read: it is cut off, or no trainer's state"
    assert not (tmp_path / "mark").exists()


def test_another_number_of_processes_is_said(tmp_path, capsys):
    shared = {}
    run = new(tmp_path, Many(0, shared))
    run.save("start", Model(), {})
    capsys.readouterr()
    run.state(run.folder / "checkpoints" / "start")
    assert capsys.readouterr().err == ""
    again(run.folder).state(run.folder / "checkpoints" / "start")
    assert "/start was written by 2 processes and goes on with 1" in capsys.readouterr().err


class Killed(BaseException):
    pass


def killed(*args, **kwargs):
    raise Killed


POINTS = {
    "in the model": (Model, "save", 0),
    "in the state": (torch, "save", 0),
    "before the old one goes": (Path, "rename", 0),
    "between the two": (Path, "rename", 1),
    "before the old one is removed": (runs.shutil, "rmtree", 2),
}


@pytest.mark.parametrize("name", ["best", "iteration_000002"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_of_a_save(point, name, tmp_path, monkeypatch):
    """The folder holds the old checkpoint or the new one, whole, and a resumed run finds nothing else."""
    run = new(tmp_path)
    run.save("iteration_000001", Model(1), {"number": 1})
    run.save(name, Model(2), {"number": 2})
    owner, attribute, calls = POINTS[point]
    true = getattr(owner, attribute)

    def stop(*args, **kwargs):
        nonlocal calls
        calls -= 1
        return killed() if calls < 0 else true(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, stop)
    with pytest.raises(Killed):
        run.save(name, Model(3), {"number": 3})
    monkeypatch.undo()
    (run.folder / ".args.json.tmp").write_text("half")
    (run.folder / "trajectories" / ".test.jsonl.7.tmp").write_text("half")

    resumed = again(run.folder)
    kept = resumed.folder / "checkpoints" / name
    assert number(kept) == resumed.state(kept)["number"] == (3 if point == "before the old one is removed" else 2)
    assert not list(resumed.folder.rglob(".*"))
    resumed.save(name, Model(4), {"number": 4})
    assert number(kept) == resumed.state(kept)["number"] == 4
    assert names(resumed) == sorted({"iteration_000001", name} if name == "best" else {name})


# ---- arguments ----


def started(tmp_path, **changes):
    """The folder of a run with these arguments."""
    return new(tmp_path, **changes).folder


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=True)
everything = st.builds(
    Args,
    method=st.sampled_from(["plain", "fancy"]),
    difficulty=st.lists(st.integers(-9, 9)).map(tuple),
    kwargs=st.none() | st.text(),
    budget=st.builds(Bounds, tool_calls=numbers, latency_ms=numbers),
    dual=st.builds(Dual, channels=st.lists(st.text(), max_size=3).map(tuple), pid=st.booleans()),
    rate=st.floats(allow_nan=False),
    total_tokens=st.none() | st.integers(),
)


@settings(max_examples=60, deadline=None)
@given(args=everything)
def test_a_resumed_run_has_the_arguments_it_was_started_with(args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("args")
    write(folder / "args.json", dumps(asdict(args), indent=1))
    assert runs._read_arguments(Args, folder) == args


def test_flags(tmp_path):
    line = ["--group-size", "8", "--budget.tool-calls", "2", "--dual.channels", "a", "b", "--dual.pid"]
    args = arguments(Args, line)
    assert args == Args(group_size=8, budget=Bounds(2.0), dual=Dual(("a", "b"), True))
    folder = started(tmp_path, **{k: getattr(args, k) for k in ("group_size", "budget", "dual")})
    resumed = arguments(Args, ["--resume", str(folder)], ("total_iterations",))
    assert resumed == replace(args, resume=str(folder), run_dir=str(tmp_path / "runs"))
    same = ["--resume", str(folder), *line, "--total-iterations", "9", "--device", "cuda:1", "--track"]
    extended = arguments(Args, same, ("total_iterations",))
    assert extended == replace(resumed, total_iterations=9, device="cuda:1", track=True)

    extended.track = False
    Run(extended, "toy", Ranks())
    assert arguments(Args, ["--resume", str(folder)]) == extended  # where it went on, it goes on again


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        (["--group-size", "8"], "--group-size is 4"),
        (["--method", "fancy"], "--method is plain"),
        (["--budget.latency-ms", "5"], "--budget.latency-ms is 200.0"),
        (["--budget.tool-calls", "5"], "--budget.tool-calls is inf"),
        (["--dual.channels", "tool_calls"], "--dual.channels is tool_calls latency_ms"),
        (["--difficulty", "1"], "--difficulty is 1 2"),
        (["--kwargs", "{}"], "--kwargs is not set"),
        (["--total-tokens", "5"], "--total-tokens is not set"),
        (["--run-dir", "elsewhere"], "--run-dir is RUNS"),
    ],
)
def test_a_flag_that_cannot_change(line, flag, tmp_path):
    folder = started(tmp_path, budget=Bounds(math.inf))
    with pytest.raises(Refused) as refused:
        arguments(Args, ["--resume", str(folder), *line], ("total_iterations",))
    expected = f"{flag} in this run and cannot change; start a new one".replace("RUNS", str(tmp_path / "runs"))
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data.pop("rate"), "rate is missing"),
        (lambda data: data["budget"].pop("tool_calls"), "budget.tool_calls is missing"),
        (lambda data: data.update(beta=1), "beta is unknown"),
        (lambda data: data["dual"].update(kp=1), "dual.kp is unknown"),
        (lambda data: data.update(method="old"), "method: input should be 'plain' or 'fancy'"),
        (lambda data: data.update(group_size=None), "group_size: input should be a valid integer"),
    ],
)
def test_another_version_s_run(change, why, tmp_path):
    folder = started(tmp_path)
    data = json.loads((folder / "args.json").read_text())
    change(data)
    (folder / "args.json").write_text(json.dumps(data))
    with pytest.raises(Refused) as refused:
        again(folder)
    assert str(refused.value) == (
        f"--resume {folder}: this run is another version's ({why}) and cannot go on; start a new one"
    )


def test_a_folder_without_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(Refused) as refused:
            again(folder)
        assert str(refused.value) == f"--resume {folder}: there is no run in this folder (args.json is missing)"
    (tmp_path / "args.json").write_text('{"rate": ')
    with pytest.raises(Refused) as refused:
        again(tmp_path)
    assert str(refused.value) == (
        f"--resume {tmp_path}: args.json is no JSON, so the run cannot go on; start a new one"
    )


# ---- the command ----


def train(args):
    """A trainer that counts."""
    ranks = Ranks.start(args.device)
    if args.group_size < 1:
        raise Refused(f"--group-size must be 1 or more, not {args.group_size}")
    run = Run(args, "toy", ranks)
    newest = run.newest("iteration")
    first = run.state(newest)["iteration"] if newest else 0
    run.keep(first)
    for i in range(first, args.total_iterations):
        run.log({"iteration": i, "square": float(i * i)})
        if i == 1 and args.kwargs == "interrupt" and run.fresh:
            raise KeyboardInterrupt
        run.save(f"iteration_{i + 1:06d}", Model(i), {"iteration": i + 1})
    run.close()


def call(monkeypatch, *line):
    monkeypatch.setattr(sys, "argv", ["toy.py", *map(str, line)])
    command(Args, train, "Counts.", "toy")


def test_a_finished_run_is_extended(tmp_path, monkeypatch):
    call(monkeypatch, "--run-dir", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert [row["square"] for row in read_lines(folder / "metrics.jsonl")] == [0, 1, 4]
    call(monkeypatch, "--resume", folder, "--total-iterations", 5)
    assert [row["square"] for row in read_lines(folder / "metrics.jsonl")] == [0, 1, 4, 9, 16]
    call(monkeypatch, "--resume", folder)  # there is nothing more to do
    assert [row["square"] for row in read_lines(folder / "metrics.jsonl")] == [0, 1, 4, 9, 16]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, "--run-dir", tmp_path, "--kwargs", "interrupt")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted; continue with --resume and the run folder above\n"
    (folder,) = tmp_path.iterdir()
    call(monkeypatch, "--resume", folder)
    assert read_lines(folder / "metrics.jsonl") == [{"iteration": i, "square": float(i * i)} for i in range(3)]


def test_the_group_is_left_whatever_happens(monkeypatch):
    stopped = []
    monkeypatch.setattr(Ranks, "stop", staticmethod(lambda: stopped.append(True)))
    with pytest.raises(SystemExit):
        call(monkeypatch, "--group-size", 0)
    assert stopped == [True]


def test_one_sentence_for_what_is_wrong(tmp_path):
    line = [sys.executable, __file__, "--group-size", "-1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "toy: --group-size must be 1 or more, not -1\n"
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    command(Args, train, "Counts.", "toy")
