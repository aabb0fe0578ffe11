"""The folder of a run: its arguments, figures and checkpoints, and how a killed or finished run goes on.

A trainer ends with ``command(Args, train, __doc__, "name")``. Files are written under a temporary name and renamed.
"""

import json
import math
import resource
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from pydantic import TypeAdapter, ValidationError

from agent_gym import Trajectory, write_trajectories
from agent_gym.files import write
from agent_gym.lm.errors import Refused
from agent_gym.lm.ranks import Ranks

__all__ = ["Run", "arguments", "command", "dumps", "peak_memory", "read_lines", "write"]

A = TypeVar("A")
_PLAIN = (type(None), bool, int, float, str, bytes)


def dumps(data: Any, indent: int | None = None) -> str:
    """Strict JSON: a figure that is not defined is null, and no bound is the text "inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None if math.isnan(value) else str(value)
        return value

    return json.dumps(plain(data), indent=indent, allow_nan=False)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, up to the first line that a crash cut off."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def peak_memory(device: torch.device) -> float:
    """GiB that this process has held at most: on a GPU of its memory, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Run:
    """A run's folder, the same in all processes; only the first one writes.

    Every process makes a ``Run`` and calls its methods; ``save`` waits for all.

    Args:
        args: The trainer's arguments: a dataclass with ``run_dir``, ``resume``, ``track`` and ``wandb_project``.
        name: The beginning of a new folder's name.
        ranks: The processes.

    Attributes:
        folder: Where everything is written.
        rows: What metrics.jsonl holds.
        fresh: Whether the run begins here, and is not resumed.

    Raises:
        Refused: If the folder to resume holds no run, or a new one cannot be written, or ``track`` lacks its package.
    """

    def __init__(self, args: Any, name: str, ranks: Ranks) -> None:
        if args.track and find_spec("wandb") is None:
            raise Refused("--track needs Weights & Biases: pip install 'agent-gym[wandb]'")
        self.args, self.ranks, self.fresh = args, ranks, not args.resume
        folder = Path(args.resume or Path(args.run_dir) / f"{name}__{int(1000 * time.time())}")
        rows: list[dict[str, Any]] = []
        refusal = ""
        if ranks.first:
            try:
                rows = self._open(folder)
            except OSError as error:
                other = "; choose another with --run-dir" if self.fresh else ""
                refusal = f"the run folder {folder} cannot be written ({error.strerror}){other}"
        self.folder, self.rows, refusal = ranks.gather((folder, rows, refusal))[0]
        if refusal:
            raise Refused(refusal)
        if ranks.first:
            print(f"run folder: {self.folder}")
        self._writer: Any = None
        self._wandb: Any = None

    def _open(self, folder: Path) -> list[dict[str, Any]]:
        """Make the folder, or tidy up behind a killed run. Returns the rows of metrics.jsonl."""
        for inner in ("checkpoints", "trajectories"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        for old in folder.glob("checkpoints/.*.old"):  # killed between the two renames of a save
            place = old.with_name(old.name[1:].removesuffix(".old"))
            shutil.rmtree(old) if place.exists() else old.rename(place)
        for left in list(folder.rglob(".*.tmp")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        write(folder / "args.json", dumps(asdict(self.args) | {"resume": None}, indent=1))
        rows = read_lines(folder / "metrics.jsonl")
        write(folder / "metrics.jsonl", "".join(dumps(row) + "\n" for row in rows))
        return rows

    # ---- figures ----

    def keep(self, before: int) -> None:
        """Forget the rows from iteration ``before`` on, which a resumed run plays again."""
        self.rows = [row for row in self.rows if row["iteration"] < before]
        self.lines("metrics.jsonl", self.rows)

    def log(self, row: dict[str, float]) -> None:
        """Add a row to metrics.jsonl, TensorBoard and wandb. What is not finite has no key.

        Args:
            row: Figures by name, and ``iteration`` among them.
        """
        row = {name: value for name, value in row.items() if math.isfinite(value)}
        step = int(row["iteration"])
        if self.ranks.first:
            self._start_writers()
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(dumps(row) + "\n")
        self.rows.append(row)
        self.scalars(step, row)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Show figures in TensorBoard and wandb alone."""
        if not self.ranks.first:
            return
        self._start_writers()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def _start_writers(self) -> None:
        if self._writer is not None:
            return
        from torch.utils.tensorboard import SummaryWriter

        config = asdict(self.args)
        # what a killed run wrote after the checkpoint that it is resumed from shall not be seen any more
        onwards = None if self.fresh else int(self.rows[-1]["iteration"]) + 1 if self.rows else 0
        self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=onwards)
        self._writer.add_text("arguments", f"```json\n{dumps(config, indent=1)}\n```")
        if self.args.track:
            import wandb

            name = self.folder.name
            self._wandb = wandb.init(project=self.args.wandb_project, name=name, id=name, resume="allow", config=config)

    # ---- files ----

    def text(self, name: str, text: str) -> None:
        """Write a file of the folder."""
        if self.ranks.first:
            write(self.folder / name, text)

    def json(self, name: str, data: Any) -> None:
        """Write a file of the folder as JSON."""
        self.text(name, dumps(data, indent=1))

    def path(self, name: str) -> Path:
        """Where a file of the folder stands, or would."""
        return self.folder / name

    def lines(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a file of the folder as JSON lines; :func:`read_lines` reads it."""
        self.text(name, "".join(dumps(row) + "\n" for row in rows))

    def trajectories(self, name: str, trajectories: Iterable[Trajectory]) -> None:
        """Write trajectories/``name``.jsonl."""
        if self.ranks.first:
            write_trajectories(self.folder / "trajectories" / f"{name}.jsonl", trajectories)

    # ---- checkpoints ----

    def save(self, name: str, model: Any, state: dict[str, Any], keep: int = 1) -> None:
        """Write checkpoints/``name``: ``model.save`` and state.pt. All processes wait until it is there.

        Args:
            name: Such as ``iteration_000010``: of the checkpoints with the same beginning (up to ``_``) the ``keep``
                newest by name stay. A name without ``_`` (``start``, ``best``) is only ever replaced by itself.
            model: Has ``save(folder)`` and ``sharded``: whether the other processes call it too, with None.
            state: Plain data and tensors; numpy arrays and numbers must be turned into lists or tensors.
            keep: How many to keep.

        Raises:
            TypeError: If the state holds anything else.
        """
        if self.ranks.first:
            _check_plain(state, "state")
            folder = self.folder / "checkpoints" / name
            temporary, old = folder.with_name(f".{name}.tmp"), folder.with_name(f".{name}.old")
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir(parents=True)
            model.save(temporary)
            torch.save({"world": self.ranks.world, "state": state}, temporary / "state.pt")
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
            if "_" in name:
                for one in self._checkpoints(name.split("_")[0])[:-keep]:
                    shutil.rmtree(one)
        elif model.sharded:
            model.save(None)
        self.ranks.barrier()

    def _checkpoints(self, prefix: str) -> list[Path]:
        return sorted(self.folder.glob(f"checkpoints/{prefix}_*"))

    def newest(self, prefix: str) -> Path | None:
        """The last checkpoint, by name, of those that begin with ``prefix`` and ``_``."""
        return max(self._checkpoints(prefix), default=None)

    def state(self, path: Path | str) -> dict[str, Any]:
        """The state of a checkpoint; says so if other processes than these wrote it.

        Raises:
            Refused: If the folder is no checkpoint, or its state cannot be read.
        """
        path = Path(path)
        if not (path / "state.pt").is_file():
            raise Refused(f"{path} is not a checkpoint: it has no state.pt; name one under runs/*/checkpoints")
        try:
            found = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            world, state = found["world"], found["state"]
        except Exception:  # the reader of foreign bytes stumbles in every way there is
            raise Refused(f"{path}/state.pt cannot be read: it is cut off, or no trainer's state") from None
        if world != self.ranks.world and self.ranks.first:
            print(
                f"{path} was written by {world} processes and goes on with {self.ranks.world}: tasks and draws stay "
                "what they are, but sums are rounded in another order",
                file=sys.stderr,
            )
        return state

    def close(self) -> None:
        """Finish the logs and say what was written."""
        if not self.ranks.first:
            return
        if self._writer is not None:
            self._writer.close()
        if self._wandb:
            self._wandb.finish()
        print(f"written to {self.folder}: {', '.join(sorted(path.name for path in self.folder.iterdir()))}")


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, one in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(one, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, one in enumerate(value):
            _check_plain(one, f"{where}[{i}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds plain data and tensors only")


# ---- arguments ----

_FREE = ("resume", "track", "wandb_project", "device")


def arguments(Args: type[A], argv: Sequence[str], extends: Sequence[str] = (), description: str | None = None) -> A:
    """Read a trainer's flags. With ``--resume`` the run's own arguments are the defaults.

    Args:
        Args: The dataclass of the arguments.
        argv: The command line, without the program.
        extends: Fields that may differ when a run is resumed.
        description: For ``--help``.

    Raises:
        Refused: If there is no run to resume, or it is another version's, or a flag is not that of the run.
    """
    args: Any = tyro.cli(Args, args=argv, description=description)
    if not args.resume:
        return args
    stored = _read_arguments(Args, Path(args.resume))
    args = tyro.cli(Args, args=argv, description=description, default=stored)
    for name, was in _differences(stored, args):
        if name not in (*_FREE, *extends):
            flag = name.replace("_", "-")
            raise Refused(f"--{flag} is {_shown(was)} in this run and cannot change; start a new one")
    return args


def _read_arguments(Args: type[A], folder: Path) -> A:
    if not (folder / "args.json").is_file():
        raise Refused(f"--resume {folder}: there is no run in this folder (args.json is missing)")
    try:
        data = json.loads((folder / "args.json").read_text(encoding="utf-8"))
        args = TypeAdapter(Args).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "args.json"
        raise Refused(_old(folder, f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}")) from None
    except ValueError:
        raise Refused(f"--resume {folder}: args.json is no JSON, so the run cannot go on; start a new one") from None
    known, found = _names(asdict(args)), _names(data)  # type: ignore[call-overload]
    if known != found:
        more, less = sorted(found - known), sorted(known - found)
        raise Refused(_old(folder, f"{more[0]} is unknown" if more else f"{less[0]} is missing"))
    return args


def _old(folder: Path, why: str) -> str:
    return f"--resume {folder}: this run is another version's ({why}) and cannot go on; start a new one"


def _names(data: dict[str, Any], before: str = "") -> set[str]:
    inner = [_names(value, f"{before}{key}.") for key, value in data.items() if isinstance(value, dict)]
    return {f"{before}{key}" for key in data}.union(*inner)


def _differences(was: Any, now: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(was):
        one, other = getattr(was, field.name), getattr(now, field.name)
        if is_dataclass(one) and type(one) is type(other):
            yield from _differences(one, other, f"{before}{field.name}.")
        elif one != other:
            yield f"{before}{field.name}", one


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "empty"
    return "not set" if value is None else str(value)


def command(
    Args: type[A],
    train: Callable[[A], None],
    description: str | None,
    name: str,
    extends: Sequence[str] = ("total_iterations", "total_tokens", "eval_episodes"),
) -> None:
    """Run a trainer from the command line.

    What the user got wrong is one sentence behind the trainer's name; an interrupt says how to go on.

    Args:
        Args: The dataclass of the trainer's arguments.
        train: Is called with them.
        description: For ``--help``.
        name: The trainer's name.
        extends: Fields that may differ when a run is resumed.
    """
    torch.set_flush_denormal(True)
    try:
        train(arguments(Args, sys.argv[1:], extends, description))
    except Refused as refused:
        raise SystemExit(f"{name}: {refused}") from None
    except KeyboardInterrupt:
        print("\ninterrupted; continue with --resume and the run folder above", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        torch.set_flush_denormal(False)  # a caller's numbers are not ours to round
        Ranks.stop()
