"""Many checks at once: a bounded queue, warm sandboxes with spares, retries, and a journal that survives a crash."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from agent_gym.sandbox import owned
from agent_gym.sandbox.backends import Docker, Killed, Limits, Lost, Sandbox, choose
from agent_gym.sandbox.errors import Starved
from agent_gym.sandbox.grader import Asserts, Cases, Meter, Request, Scripts, Suite, Test, grade
from agent_gym.verdict import InfraError, Verdict

__all__ = ["Answer", "Pool", "Tests", "check", "shared_pool"]

Tests = Iterable[tuple[tuple[Any, ...], Any] | Test] | Cases | Scripts | Asserts | Suite
"""``(args, expected)`` pairs or :class:`Test` objects; or programs with their input and output; or assert statements;
or test files."""

ATTEMPTS = 6
BACKOFF_S = 0.1
CONTROL = Request.of("def same(x):\n    return x\n", "same", Cases((Test((1,), 1),)), Limits())
"""A program that every healthy sandbox passes."""


class Answer(Future[Verdict]):
    """A verdict to come. Once it is there, ``cpu_s`` are the CPU seconds of the run that gave it, and ``outcomes`` what
    :class:`~agent_gym.sandbox.grader.Calls` asked for; nothing of these where a journal remembered it."""

    cpu_s: float = 0.0
    outcomes: tuple[tuple[str, Any], ...] = ()


class Pool:
    """Checks programs in ``slots`` sandboxes at a time.

    A sandbox that dies is our fault until the contrary is shown: the request is repeated on fresh ones, with growing
    pauses, and if none stays up there is no verdict (``status="infra"``). A program that takes two sandboxes down
    right after each passed a control, while another one passes it again, is the cause: ``reason="error"``.

    Args:
        backend: ``"auto"`` (Docker where it works, else bubblewrap), ``"docker"``, ``"bubblewrap"`` or ``"process"``.
        slots: Sandboxes at work at a time; by default as many as there are cores.
        limits: Default of every check, and the most that one may ask for.
        pending: Requests that wait before ``submit`` blocks.
        journal: JSONL file of what was accepted and what was answered. A pool opened on it later answers again
            without running again, and :meth:`recover` runs what a crash left unanswered.
        runtime: Container runtime, e.g. ``"runsc"``; Docker only.
        executor: Whose workers have the sandboxes, instead of this process: a check runs in the :func:`shared_pool` of
            one of them. ``slots`` should then be as many as it has workers.

    Raises:
        SandboxUnavailable: If the backend cannot be had on this machine.
        ValueError: For an unknown backend, a runtime that it does not take, or a journal that is not one.
    """

    def __init__(
        self,
        backend: str = "auto",
        *,
        slots: int | None = None,
        limits: Limits | None = None,
        pending: int = 1024,
        journal: str | os.PathLike[str] | None = None,
        runtime: str | None = None,
        executor: Executor | None = None,
    ) -> None:
        for name, value in (("slots", slots), ("pending", pending)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: must be a whole number of 1 or more")
        self.kind = choose(backend) if executor is None else None
        self.backend, self.limits, self.slots = backend, limits or Limits(), slots or os.cpu_count() or 1
        self.executor = executor
        if runtime is not None and self.kind is not Docker:
            raise ValueError(f"runtime={runtime!r} is for the Docker backend of this process")
        self._options: dict[str, Any] = {} if runtime is None else {"runtime": runtime}
        self._lock = threading.Lock()
        self._asked: dict[str, Answer] = {}  # accepted, not yet answered
        self._answers: dict[str, Verdict] = {}  # of the journal
        self._unanswered: dict[str, Request] = {}
        self._journal = self._open(Path(journal)) if journal is not None else None
        self._queue: queue.Queue[tuple[str, Request] | None] = queue.Queue(pending)
        self._spares: queue.Queue[Sandbox | Lost] = queue.Queue(1)
        self._workers: list[threading.Thread] = []
        self._closing = self._closed = False
        self._spare_maker: threading.Thread | None = None
        owned.reap()

    # ---- asking ----------------------------------------------------------------------------------------------------

    def submit(
        self, source: str | Mapping[str, str], entry_point: str, tests: Tests, limits: Limits | None = None
    ) -> Answer:
        """Queue a check. Blocks while the queue is full. A request that is already in flight is not run twice.

        Args:
            source: The program, or its files by path.
            entry_point: The function; ``"module:function"`` where there are several files.
            tests: See :data:`Tests`.
            limits: Of this check.

        Raises:
            ValueError: For tests that are not plain data, a path outside the workspace, or limits above the pool's.
            RuntimeError: If the pool is closed.
        """
        body: Any = tests
        if not isinstance(tests, Cases | Scripts | Asserts | Suite):
            body = Cases(tuple(_test(number, test) for number, test in enumerate(tests, start=1)))
        limits = limits or self.limits
        for name in ("memory_mb", "disk_mb", "processes"):
            if getattr(limits, name) > getattr(self.limits, name):
                raise ValueError(
                    f"limits.{name}={getattr(limits, name)} is above the pool's {getattr(self.limits, name)}"
                )
        return self._accept(Request.of(source, entry_point, body, limits))

    def check(
        self, source: str | Mapping[str, str], entry_point: str, tests: Tests, limits: Limits | None = None
    ) -> Verdict:
        """:meth:`submit`, and wait for the verdict."""
        return self.submit(source, entry_point, tests, limits).result()

    async def acheck(
        self, source: str | Mapping[str, str], entry_point: str, tests: Tests, limits: Limits | None = None
    ) -> Verdict:
        """:meth:`check` for a coroutine: neither a full queue nor the verdict blocks the event loop."""
        future = await asyncio.to_thread(self.submit, source, entry_point, tests, limits)
        return await asyncio.wrap_future(future)

    def recover(self) -> dict[str, Answer]:
        """Run what the journal shows as accepted but not answered; the futures by the requests' keys."""
        left, self._unanswered = self._unanswered, {}
        return {key: self._accept(request) for key, request in left.items()}

    def _accept(self, request: Request) -> Answer:
        key = request.key
        with self._lock:
            if self._closing:
                raise RuntimeError("the pool is closed")
            if key in self._asked:
                return self._asked[key]
            future = Answer()
            future.set_running_or_notify_cancel()  # others may wait for it: nobody can cancel it
            if key in self._answers:
                future.set_result(self._answers[key])
                return future
            self._asked[key] = future
            if len(self._workers) < min(self.slots, len(self._asked)):
                worker = threading.Thread(target=self._work, name="agent_gym sandbox", daemon=True)
                self._workers.append(worker)
                worker.start()
            if self._spare_maker is None and self.kind is not None:
                self._spare_maker = threading.Thread(target=self._make_spares, name="agent_gym spares", daemon=True)
                self._spare_maker.start()
        if self._journal is not None:
            self._note({"accepted": key, "request": request.to_json()})
        self._queue.put((key, request))
        return future

    # ---- answering -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """One slot's life."""
        slot = _Slot(self) if self.executor is None else _FarSlot(self, self.executor)
        while True:
            item = self._queue.get()
            if item is None:
                break
            key, request = item
            meter = Meter()
            error: BaseException | None = None
            verdict: Any = None
            try:
                verdict = slot.answer(replace(request, meter=meter))
            except BaseException as fault:  # a fault of the tests or of ours: the asker hears of it, the slot lives on
                error = fault
                slot.discard()
            if verdict is not None and verdict.status != "infra":
                self._note({"answered": key, "verdict": verdict.to_dict()})
            with self._lock:
                future = self._asked.pop(key)
                future.cpu_s, future.outcomes = meter.cpu_s, meter.outcomes
                if verdict is not None and verdict.status != "infra" and self._journal is not None:
                    self._answers[key] = verdict
            future.set_exception(error) if error is not None else future.set_result(verdict)
        slot.discard()

    def _make_spares(self) -> None:
        """Keep one warm sandbox ready for the slot that needs it next."""
        assert self.kind is not None
        while not self._closed:
            try:
                spare: Sandbox | Lost = self.kind(self.limits, **self._options)
            except Exception as error:  # whatever it is, a slot waits for an answer, and this thread has to live on
                spare = error if isinstance(error, Lost) else Lost(f"no sandbox: {type(error).__name__}: {error}")
            while not self._closed:
                with contextlib.suppress(queue.Full):
                    self._spares.put(spare, timeout=0.2)
                    break
            else:
                if isinstance(spare, Sandbox):
                    spare.close()

    def _fresh(self) -> Sandbox:
        spare = self._spares.get()
        if isinstance(spare, Lost):
            raise spare
        return spare

    def close(self) -> None:
        """Answer what was accepted, then take every sandbox down."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            accepted = list(self._asked.values())
        wait(accepted)
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join()
        self._closed = True
        if self._spare_maker is not None:
            self._spare_maker.join()
            with contextlib.suppress(queue.Empty):
                spare = self._spares.get_nowait()
                if isinstance(spare, Sandbox):
                    spare.close()
        if self._journal is not None:
            os.close(self._journal)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- the journal -----------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> int:
        data = path.read_bytes() if path.exists() else b""
        whole, _, _ = data.rpartition(b"\n")  # a crash may have cut the last line
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                if "accepted" in entry:
                    self._unanswered[entry["accepted"]] = Request.from_json(entry["request"])
                else:
                    verdict = entry["verdict"]
                    self._answers[entry["answered"]] = Verdict(
                        **{**verdict, "diagnostics": tuple(verdict["diagnostics"])}
                    )
                    self._unanswered.pop(entry["answered"], None)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not a line of a journal: {error}") from error
        journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.ftruncate(journal, len(whole) + 1 if whole else 0)
        return journal

    def _note(self, entry: dict[str, Any]) -> None:
        if self._journal is not None:
            os.write(self._journal, json.dumps(entry).encode() + b"\n")


def _test(number: int, test: Any) -> Test:
    """A test in either of its forms."""
    if isinstance(test, Test):
        return test
    if not isinstance(test, tuple | list) or len(test) != 2 or not isinstance(test[0], tuple | list):
        raise ValueError(f"test {number}: must be (args, expected) with a tuple of arguments, not {test!r:.100}")
    return Test(tuple(test[0]), test[1])


class _Slot:
    """One worker's sandbox."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.sandbox: Sandbox | None = None

    def discard(self) -> None:
        """Take the sandbox down; the next request gets a fresh one."""
        if self.sandbox is not None:
            self.sandbox.close()
            self.sandbox = None

    def grade(self, request: Request) -> Verdict:
        """One attempt.

        Raises:
            Lost: If there is no sandbox, or it died.
        """
        if self.sandbox is None:
            self.sandbox = self.pool._fresh()
        try:
            verdict = grade(self.sandbox, request)
        except Lost as error:
            if not isinstance(error, Killed) or self.sandbox.worn:
                self.discard()
            raise
        if self.sandbox.worn:
            self.discard()
        return verdict

    def answer(self, request: Request) -> Verdict:
        """The verdict, after as many attempts as it takes; together they have the time of one check."""
        last, convictions = "", 0
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(BACKOFF_S * 2 ** (attempt - 1))
                try:
                    self.grade(CONTROL)
                except Lost as error:
                    last = str(error)
                    continue
                if convictions == 2:
                    return Verdict(
                        "fail", "error", 0.0, ("the program, or the sandbox under it, is killed every time it runs",)
                    )
            try:
                return self.grade(request)
            except Lost as error:
                last = str(error)
                spent = request.meter is not None and request.meter.wall_s >= request.limits.wall_s
                if spent and not isinstance(error, Killed):  # the run and then the sandbox did not answer in time
                    break
                # only a sandbox that has just passed the control was surely healthy
                convictions += attempt > 0 and not isinstance(error, Starved)
        return Verdict("infra", "infra", 0.0, (last,))


class _FarSlot:
    """One call at a time of a worker that has sandboxes."""

    def __init__(self, pool: Pool, executor: Executor) -> None:
        self.pool, self.executor = pool, executor

    def discard(self) -> None:
        """The worker sees to its own."""

    def answer(self, request: Request) -> Verdict:
        """The worker's verdict; none where workers died at it."""
        meter, pool = request.meter or Meter(), self.pool
        try:
            job = self.executor.submit(_answered, pool.backend, pool.limits, replace(request, meter=None))
            verdict, meter.cpu_s, meter.outcomes = job.result()
        except InfraError as error:
            return Verdict("infra", "infra", 0.0, (str(error),))
        return verdict


def _answered(backend: str, limits: Limits, request: Request) -> tuple[Verdict, float, tuple[tuple[str, Any], ...]]:
    """A verdict of this process's pool, with what its run used and gave."""
    answer = shared_pool(backend, limits)._accept(request)
    return answer.result(), answer.cpu_s, answer.outcomes


_shared: dict[tuple[int, str, Limits], Pool] = {}
_shared_lock = threading.Lock()


def shared_pool(backend: str = "auto", limits: Limits | None = None) -> Pool:
    """This process's pool for a backend and limits, made on first use and closed at exit.

    Raises:
        SandboxUnavailable: If the backend cannot be had on this machine.
    """
    key = (os.getpid(), backend, limits or Limits())  # a forked child has none of its parent's threads
    with _shared_lock:
        if key not in _shared:
            _shared[key] = Pool(backend, limits=limits)
        return _shared[key]


@atexit.register
def _close_shared() -> None:
    for (pid, *_), pool in _shared.items():
        if pid == os.getpid():
            pool.close()


def check(
    source: str | Mapping[str, str],
    entry_point: str,
    tests: Tests,
    backend: str = "auto",
    limits: Limits | None = None,
) -> Verdict:
    """Run a program against tests it cannot see.

    Args:
        source: The program, or its files by path.
        entry_point: The function to call; ``"module:function"`` where there are several files.
        tests: ``(args, expected)`` pairs; also :class:`Test` objects, :class:`Scripts`, :class:`Asserts` or a
            :class:`Suite`.
        backend: ``"auto"``, ``"docker"``, ``"bubblewrap"`` or ``"process"``.
        limits: CPU, wall clock, memory, files and processes.

    Returns:
        ``status`` pass, fail, or infra when there is no verdict; ``reason`` passed, wrong_answer, error, timeout,
        memory, output_limit or infra; ``score`` the share of tests that passed.

    Raises:
        SandboxUnavailable: If the sandbox that was asked for is not there.
        ValueError: For tests that are not plain data.
    """
    return shared_pool(backend, limits).check(source, entry_point, tests)
