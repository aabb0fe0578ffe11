"""What writes the turns: rows of ids go in, sampled turns come out, as many rows side by side as memory allows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from agent_gym.lm.errors import Refused
from agent_gym.lm.kv import COLUMNS, ROWS, KeyValues, rounded
from agent_gym.lm.models import Model

__all__ = ["Engine", "TorchEngine", "Turn"]

GIB = 2**30


class Turn(NamedTuple):
    """A turn that was written.

    Attributes:
        key: Of its row.
        ids: The sampled ids, the one that ended it included.
        logprobs: Of each id, under the distribution that it was sampled from: at the engine's temperature, untruncated.
        stopped: False where it was cut for its length.
    """

    key: int
    ids: list[int]
    logprobs: list[float]
    stopped: bool


class Engine(Protocol):
    """Writes turns. What a row draws depends on its seed alone, not on the rows beside it."""

    def submit(self, key: int, ids: Sequence[int], most: int, seed: int) -> None:
        """Let a turn be written.

        Args:
            key: Names the row. When its turn has ended it may be submitted again: of what it has in common with the
                ids before, nothing is fed twice.
            ids: The conversation so far.
            most: Ids of the turn, at most.
            seed: Of its draws.

        Raises:
            Refused: The row does not fit into memory.
        """

    def step(self) -> list[Turn]:
        """Write on.

        Returns:
            The turns that ended.
        """

    def update(self, model: Model) -> None:
        """Write with these weights from now on; whatever was computed with others is dropped."""

    def release(self, keys: Iterable[int]) -> None:
        """Forget rows; keys that are not known are left alone."""


@dataclass(eq=False)
class _Row:
    """A row, of which ``ids[:fed]`` are held."""

    key: int
    ids: list[int] = field(default_factory=list)
    begin: int = 0  # of the turn that is being written
    most: int = 0
    draws: Any = None
    logprobs: list[float] = field(default_factory=list)
    prompt: tuple[int, ...] = ()  # what is read first
    alone: set[int] = field(default_factory=set)  # columns that were fed one by one, and must be so again
    fed: int = 0
    slot: int = -1  # -1 is none

    def readable(self) -> int:
        """Where the ids end that one pass can read; the last id is left to the pass that samples."""
        return next((i for i in range(self.fed, len(self.ids) - 1) if i in self.alone), len(self.ids) - 1)


class TorchEngine:
    """The engine on a transformers model in this process.

    A step reads what is new in the rows that it admits, then feeds one token of every row that writes, and samples the
    next. Rows that write are kept in the first slots, so that this pass works in place. A prompt that another row has
    read is copied. Rows are admitted in the order of their submission, and wait until they are an eighth of those that
    write, because to read them one by one takes longer. Where the cache would outgrow its bound, first rows between two
    turns leave it, those that have waited longest first, then the row that was admitted last; they are read again
    later, and what was sampled stays. When no row is left, no memory is held.

    On the CPU with one thread, a row's ids and log-probabilities are bit for bit the same whatever rows are beside it,
    whenever it is admitted and whether it had to leave. With more threads, and on GPUs, the size of a pass may decide
    how sums are split (with two threads, not for the model of lm.tiny, but for wider ones): log-probabilities then
    differ in their last digits, and an id where its draw falls that close to the border between two.
    """

    def __init__(
        self, model: Model, *, stops: Iterable[int], temperature: float = 1.0, kv_gib: float | None = None
    ) -> None:
        """
        Args:
            model: Writes.
            stops: Ids that end a turn.
            temperature: Logits are divided by it.
            kv_gib: Bound on the cache in GiB. None is no bound on the CPU, and on CUDA half of what is free now.

        Raises:
            Refused: The model cannot be fed token by token, or a value is out of range.
        """
        if not temperature > 0:
            raise Refused(f"the sampling temperature must be above 0, not {temperature}")
        if kv_gib is not None and not kv_gib > 0:
            raise Refused(f"the cache of keys and values must have more than {kv_gib} GiB")
        model = model.whole()
        self.kv = KeyValues(model)
        self.model, self.stops, self.temperature = model, frozenset(stops), temperature
        self.slots: list[_Row | None] = []
        self.rows: dict[int, _Row] = {}
        self.queue: list[_Row] = []  # in the order of submission
        self.writing: list[_Row] = []  # in the order of admission
        self.idle: list[_Row] = []  # held, in the order in which their turns ended
        self.exact = model.device.type == "cpu"
        self.feed = 1024 if self.exact else 8192  # tokens of a pass that reads, padding included
        self.limit = math.inf if kv_gib is None else kv_gib * GIB
        if kv_gib is None and model.device.type == "cuda":
            unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
            self.limit = (torch.cuda.mem_get_info(model.device)[0] + unused) / 2

    def submit(self, key: int, ids: Sequence[int], most: int, seed: int) -> None:
        if not ids or most < 1:
            raise ValueError(f"row {key} has {len(ids)} ids and may write {most}; both must be 1 or more")
        row = self.rows.get(key) or _Row(key)
        if row in self.queue or row in self.writing:
            raise ValueError(f"row {key} is submitted again before its turn has ended")
        if self.kv.bytes(1, len(ids) + most) > self.limit:
            raise Refused(
                f"a row of {len(ids) + most} tokens takes {self.kv.bytes(1, len(ids) + most) / GIB:.2g} GiB of keys "
                f"and values, and {self.limit / GIB:.2g} are allowed: allow more, or shorten the rows"
            )
        pairs = enumerate(zip(row.ids, ids, strict=False))
        same = next((i for i, (old, new) in pairs if old != new), min(len(row.ids), len(ids)))
        row.fed = min(row.fed, same, len(ids) - 1)
        row.alone = {i for i in row.alone if i < min(same, len(ids) - 1)}
        if not row.prompt or same < len(row.prompt):
            row.prompt = tuple(ids[: min(row.alone, default=len(ids) - 1)])
        row.ids, row.begin, row.most, row.logprobs = list(ids), len(ids), most, []
        row.draws = np.random.default_rng(seed)
        self.rows[key] = row
        if row in self.idle:
            self.idle.remove(row)
        self.queue.append(row)

    @torch.inference_mode()
    def step(self) -> list[Turn]:
        if len(self.queue) >= len(self.writing) / 8:
            self._admit()
        if not self.writing:
            return []
        self._make_room()
        self._read()
        self._close_up()
        return self._write()

    def update(self, model: Model) -> None:
        self.model = self.kv.model = model.whole()
        self.queue, self.writing = [*self.writing, *self.queue], []
        for row in self.rows.values():
            self._drop(row)
            row.alone.clear()
        self._tidy()

    def release(self, keys: Iterable[int]) -> None:
        for key in keys:
            if row := self.rows.pop(key, None):
                self._drop(row)
                for group in (self.queue, self.writing):
                    if row in group:
                        group.remove(row)
        self._tidy()

    def _drop(self, row: _Row) -> None:
        if row.slot >= 0:
            self.slots[row.slot] = None
        row.slot, row.fed = -1, 0
        if row in self.idle:
            self.idle.remove(row)

    def _tidy(self) -> None:
        if not any(self.slots):
            self.slots = []
            self.kv.resize(0, 0)

    def _admit(self) -> None:
        longest = max((len(row.ids) for row in self.writing), default=0)
        while self.queue:
            longest = max(longest, len(self.queue[0].ids))
            if self.writing and self.kv.bytes(len(self.writing) + 1, longest + COLUMNS) > self.limit:
                return
            self.writing.append(self.queue.pop(0))

    def _make_room(self) -> None:
        """Give every row that writes a slot, and columns up to its last id."""
        spare = [*self.idle, *(row for row in reversed(self.queue) if row.slot >= 0)]
        while True:
            slots = len(self.writing) + len(spare)
            columns = max([len(row.ids) for row in self.writing] + [row.fed + 1 for row in spare])
            if self.kv.bytes(slots, columns) <= self.limit:
                break
            if not spare:
                self.queue.insert(0, self.writing.pop())
            self._drop(spare.pop(0) if spare else self.queue[0])
        if slots > self.kv.slots or columns > self.kv.columns:
            wanted = max(slots, self.kv.slots), max(columns + COLUMNS, self.kv.columns)
            slots, columns = wanted if self.kv.bytes(*wanted) <= self.limit else (slots, columns)
            self._resize(rounded(slots, ROWS), rounded(columns, COLUMNS))
        free = (i for i, row in enumerate(self.slots) if row is None)
        for row in self.writing:
            if row.slot < 0:
                row.slot = next(free)
                self.slots[row.slot] = row

    def _resize(self, slots: int, columns: int) -> None:
        free = [i for i, row in enumerate(self.slots[:slots]) if row is None]
        self._exchange([row for row in self.slots[slots:] if row], free)
        self.slots = [*self.slots[:slots], *[None] * (slots - len(self.slots))]
        self.kv.resize(slots, columns)

    def _exchange(self, rows: Iterable[_Row], slots: Iterable[int]) -> None:
        """Put each row into the slot beside it, and what is there into the row's."""
        copies = []
        for row, slot in zip(rows, slots, strict=False):
            other = self.slots[slot]
            copies.append((row.slot, slot, row.fed))
            if other:
                copies.append((slot, row.slot, other.fed))
                other.slot = row.slot
            self.slots[row.slot], self.slots[slot], row.slot = other, row, slot
        self.kv.copy(copies)

    def _read(self) -> None:
        """Feed what is known of the rows that write, but for their last ids."""
        while new := [row for row in self.writing if row.readable() > row.fed]:
            read = {row.prompt: row for row in self.slots if row and row.fed >= len(row.prompt)}
            copies, todo = [], dict[Any, _Row]()
            for row in new:
                if row.fed == 0 and row.prompt in read:
                    row.fed = len(row.prompt)
                    copies.append((read[row.prompt].slot, row.slot, row.fed))
                if row.readable() > row.fed:  # of those with the same prompt, the first
                    todo.setdefault(row.prompt if row.fed == 0 else row, row)
            self.kv.copy(copies)
            sizes = {row: row.readable() - row.fed for row in todo.values()}
            parts: list[list[_Row]] = []
            for row in sorted(sizes, key=sizes.__getitem__):
                size = sizes[row]
                if (
                    not parts
                    or (len(parts[-1]) + 1) * rounded(size, ROWS) > self.feed
                    or 2 * size > 3 * sizes[parts[-1][0]] + ROWS  # better another pass than so much padding
                ):
                    parts.append([])
                parts[-1].append(row)
            for part in parts:
                self._read_together(part)

    def _read_together(self, rows: list[_Row]) -> None:
        """Feed rows in one pass. A shorter one has its last id fed again, to the same place."""
        ends = [row.readable() for row in rows]
        size = rounded(max(end - row.fed for row, end in zip(rows, ends, strict=True)), ROWS)
        at = [[min(row.fed + i, end - 1) for i in range(size)] for row, end in zip(rows, ends, strict=True)]
        ids = [[row.ids[i] for i in columns] for row, columns in zip(rows, at, strict=True)]
        width = rounded(max(ends), COLUMNS)
        if 192 < width % 512 < 384:  # CPU kernels sum by 512 columns, within them by 192, and would halve such a block
            width += 384 - width % 512
        self.kv.feed([row.slot for row in rows], ids, at, width)
        for row, end in zip(rows, ends, strict=True):
            row.fed = end

    def _close_up(self) -> None:
        """Bring the rows that write to the first slots, where it makes their pass smaller."""
        count = len(self.writing)
        if rounded(count, ROWS) <= max(row.slot for row in self.writing):
            there = {row.slot for row in self.writing}
            late = [row for row in self.writing if row.slot >= count]
            self._exchange(late, (i for i in range(count) if i not in there))

    def _write(self) -> list[Turn]:
        """Feed and sample. Other rows among the first slots are fed, too: to a column that is not read before it is
        written again."""
        first = self.slots[: rounded(max(row.slot for row in self.writing) + 1, ROWS)]
        ids = [[row.ids[row.fed] if row else self.model.pad] for row in first]
        at = [[row.fed if row else 0] for row in first]
        hidden = self.kv.feed(range(len(first)), ids, at, rounded(max(at)[0] + 1, 32))
        logp = torch.log_softmax(self.model.logits(hidden[:, 0], self.temperature), -1)
        uniforms = [0.0] * len(first)
        for row in self.writing:
            if row.fed == len(row.ids) - 1:
                uniforms[row.slot] = row.draws.random()
        sums = logp.exp().cumsum(-1, dtype=torch.float64)
        drawn = torch.tensor(uniforms, dtype=torch.float64, device=sums.device)[:, None] * sums[:, -1:]
        tokens = torch.searchsorted(sums, drawn, right=True)
        found = torch.cat([tokens.double(), logp.gather(1, tokens).double()], 1).tolist()
        turns = []
        for row in list(self.writing):
            if self.exact:
                row.alone.add(row.fed)
            row.fed += 1
            if row.fed < len(row.ids):
                continue  # sampled before the row had to leave
            token, logprob = found[row.slot]
            row.ids.append(int(token))
            row.logprobs.append(logprob)
            if token in self.stops or len(row.ids) - row.begin == row.most:
                self.writing.remove(row)
                self.idle.append(row)
                turns.append(Turn(row.key, row.ids[row.begin :], row.logprobs, token in self.stops))
        return turns
