"""The processes of a run: what they share out, add up and agree on. One process behaves like many.

Started by ``torchrun``, every process calls the same methods in the same order, with any amount of work of its own
(none included): whoever has nothing to add takes part with nothing.
"""

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from agent_gym.lm.errors import Refused

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """This process among those of its run.

    Attributes:
        rank: The number of this process.
        world: How many there are.
        device: Where this process computes.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, torch.device(device)
        self._places: list[tuple[str, int]] = []  # machine and process id of each

    @classmethod
    def start(cls, device: str = "auto", timeout: float = 600.0) -> "Ranks":
        """Find the place of this process in what ``torchrun`` set (nothing set: one process), and join the others.

        Call it before anything is loaded, so that nothing lands on another process's GPU.

        Args:
            device: A torch device; ``auto`` is the GPU of this process where there is one, else the CPU.
            timeout: Seconds that a collective waits for a process that does not come, before it fails.

        Raises:
            Refused: If the device is not there.
        """
        rank, world, local = (int(os.environ.get(name, n)) for name, n in _PLACE)
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            place = torch.device(f"cuda:{local}" if name == "cuda" else name)
        except RuntimeError:
            raise Refused(f"--device {device} is no torch device; name one such as cpu or cuda:0") from None
        if place.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if place.index >= count:
                raise Refused(f"--device {device}: process {rank} needs {place}, and there are {count} GPUs here")
            torch.cuda.set_device(place)
        if world > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        ranks = cls(rank, world, place)
        ranks._places = ranks.gather((platform.node(), os.getpid()))
        return ranks

    @staticmethod
    def stop() -> None:
        """Leave the group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The part of some work that is this process's."""
        return items[self.rank :: self.world]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.world > 1:
            with self._together():
                dist.all_reduce(values)
        return values

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over the processes, in float64; the shape is the same in all."""
        return self.all_reduce(torch.tensor(np.asarray(values), dtype=torch.float64)).numpy()

    def mean(self, rows: Sequence[Any] | np.ndarray, width: int = 1) -> np.ndarray:
        """Mean of the rows of all processes, each row with the same weight.

        Args:
            rows: Numbers or rows of numbers; entries of NaN are left out. A process may have none.
            width: Length of a row, which an empty list does not show.

        Returns:
            One mean a column, shape [width]; NaN where no process has an entry.
        """
        table = np.asarray(rows, dtype=np.float64)
        table = table.reshape(len(table), -1) if table.size else table.reshape(0, width)
        there = ~np.isnan(table)
        sums = self.sum(np.stack([np.where(there, table, 0.0).sum(0), there.sum(0)]))
        return sums[0] / np.where(sums[1] > 0, sums[1], np.nan)

    def gather(self, value: T) -> list[T]:
        """Every process's object, in the order of ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with self._together():
            dist.all_gather_object(found, value)
        return found

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Say who is missing in a collective that fails, where it is a process of this machine that has ended."""
        try:
            yield
        except RuntimeError as error:
            here = [(rank, pid) for rank, (node, pid) in enumerate(self._places) if node == platform.node()]
            for _ in range(20):  # its sockets close before it is gone
                if ended := ", ".join(str(rank) for rank, pid in here if _ended(pid)):
                    raise Refused(
                        f"process {ended} of {self.world} has ended, and process {self.rank} cannot go on alone; start "
                        "the run again with --resume"
                    ) from error
                time.sleep(0.1)
            raise

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sum(np.zeros(1))

    def all_reduce_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients over the processes, with one flat all-reduce in float32.

        A parameter without a gradient counts as zeros, and has zeros afterwards where nobody has one, so that an
        optimiser does the same in one process and in many.
        """
        trained = list(parameters)
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        trained = [p for p in trained if not isinstance(p, DTensor)]  # gradients of shards are sums already
        if self.world == 1 or not trained:
            return
        flat = self.all_reduce(torch.cat([p.grad.flatten().float() for p in trained if p.grad is not None]))
        for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = grad.view_as(p).to(p.dtype)

    def check_equal(self, parameters: Iterable[Tensor]) -> None:
        """Make sure that all processes hold the same weights, byte by byte.

        Raises:
            Refused: In every process, if one differs from the first.
        """
        if self.world == 1:
            return
        digest = hashlib.blake2b()
        for p in parameters:
            if isinstance(p, DTensor):  # every process holds another part
                continue
            digest.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digests = self.gather(digest.hexdigest())
        if other := [str(rank) for rank, found in enumerate(digests) if found != digests[0]]:
            raise Refused(
                f"the processes do not hold the same weights: process {', '.join(other)} differs from process 0; start "
                "all of them with the same arguments and the same versions of the packages"
            )


def _ended(pid: int) -> bool:
    """Whether a process of this machine is no more, be it that nobody has asked yet how it ended."""
    stat = Path(f"/proc/{pid}/stat")
    return sys.platform == "linux" and (not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")


_PLACE = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
