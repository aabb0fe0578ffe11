"""The batches of episodes that a training loop learns from: played when they are asked for, or one batch ahead."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from agent_gym.lm.engine import Engine
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model
from agent_gym.lm.rollout import Episode

__all__ = ["Rollouts"]


class Rollouts:
    """What each iteration of a training loop learns from.

    A batch is played when it is asked for, by the policy as it is then. With ``ahead`` it is played in a thread while
    the batch before it is learnt from, by a copy of the policy that is one update older than the one it will train:
    batch ``i`` by the policy after ``i - 1`` updates, batch 0 by that of the start. The copy is made when a batch is
    handed over, between two updates, so that no clock decides what is played.

    Attributes:
        stop: Is set when the loop ends; ``roll_out`` hands it to :func:`~agent_gym.lm.rollout.play`, which gives up.
        seconds: How long the batch took that was handed over last.
    """

    def __init__(
        self, engine: Engine, model: Model, roll_out: Callable[[int], list[Episode]], end: int, *, ahead: bool
    ) -> None:
        """
        Args:
            engine: Writes the turns; which weights it writes with is decided in here alone.
            model: Is trained.
            roll_out: Plays the batch of an iteration. It makes no collective call, which could meet one of the update
                that runs beside it.
            end: The first iteration without a batch.
            ahead: Play one batch ahead.

        Raises:
            Refused: The model is sharded, and played ahead.
        """
        if ahead and model.sharded:
            raise Refused("--async-rollouts does not go with --fsdp: what plays ahead would need weights of its own")
        self.engine, self.model, self.roll_out, self.end = engine, model, roll_out, end
        self.stop, self.seconds = threading.Event(), 0.0
        self._sampler = model.twin() if ahead else None
        self._stream = torch.cuda.Stream(model.device) if ahead and model.device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "rollout")
        self._next: Future[tuple[list[Episode], float]] | None = None

    def over(self, iterations: Iterable[int]) -> Iterator[int]:
        """The iterations of a ``for`` loop. However it ends, with an error or an interrupt too, the thread ends."""
        try:
            yield from iterations
        finally:
            self.stop.set()
            self._thread.shutdown()
            self._next = None

    def take(self, iteration: int) -> list[Episode]:
        """The batch of an iteration; from the first call on, of one after the other.

        Raises:
            Exception: What ``roll_out`` raised.
        """
        if self._sampler is None:
            played, self.seconds = self._play(iteration)
            return played
        if self._next is None:
            self._next = self._begin(iteration, self._sampler)
        played, self.seconds = self._next.result()
        self._sampler.follow(self.model.trained())
        self._next = self._begin(iteration + 1, self._sampler) if iteration + 1 < self.end else None
        return played

    def updated(self) -> None:
        """The model has changed."""
        if self._sampler is None:
            self.engine.update(self.model)

    def settle(self) -> None:
        """Before a test: wait until nothing is played, and let the engine write with the policy as it is now."""
        if self._next is not None:
            self._next.result()
        if self._sampler is not None:
            self.engine.update(self.model)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to play the batch ahead again: the weights that played it."""
        return {} if self._sampler is None else {"sampler": [p.detach() for p in self._sampler.trained()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint that holds :meth:`state`; the model goes on from it already."""
        self.updated()
        if self._sampler is not None:
            self._sampler.follow(state["sampler"])

    def _begin(self, iteration: int, sampler: Model) -> Future[tuple[list[Episode], float]]:
        self.engine.update(sampler)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.model.device))
        return self._thread.submit(self._play, iteration)

    def _play(self, iteration: int) -> tuple[list[Episode], float]:
        begin = time.perf_counter()
        with torch.cuda.stream(self._stream):  # None is the one that is current
            played = self.roll_out(iteration)
        if self._stream is not None:
            self._stream.synchronize()
        return played, time.perf_counter() - begin
