"""What writes the turns: rows of ids go in, sampled turns come out, as many rows side by side as memory allows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model

__all__ = ["Engine", "TorchEngine", "Turn"]


class Turn(NamedTuple):
    """A turn that was written.

    Args:
        key: Of the row.
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
            key: Names the row. After its turn it is submitted again with all of its ids, and only what is new is fed.
            ids: The conversation so far.
            most: Ids of the turn, at most.
            seed: Of its draws.

        Raises:
            Refused: The row alone does not fit into memory.
        """

    def step(self) -> list[Turn]:
        """Write on; the turns that ended."""

    def update(self, model: Model) -> None:
        """Write with these weights from now on. What was computed with the old ones is dropped."""

    def release(self, keys: Iterable[int]) -> None:
        """Forget rows; keys that are not known are left alone."""


ROWS = 4  # the rows of a pass are a multiple of it, and so are the tokens of each: CPU kernels sum by fours
COLUMNS = 64  # the cache grows by so many; a row needs so many ahead of it to be admitted beside others
FEED = 1024, 8192  # tokens of a pass that reads, padding included, on the CPU and elsewhere


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _wide(columns: int) -> int:
    """Width of a pass that reads. CPU kernels sum over blocks of 512 columns, and within a block by 192, but would cut
    one of 192 to 384 in halves."""
    columns = _up(columns, COLUMNS)
    return columns + 384 - columns % 512 if 192 < columns % 512 < 384 else columns


@dataclass
class _Place:
    """Where a pass stands in the cache."""

    slots: int = 0  # of the cache
    columns: int = 0
    rows: Any = None  # slots of the pass
    first: bool = True  # whether they are the first ones, in their order
    at: Any = None  # columns of its tokens, shape [rows, tokens]
    width: int = 0  # columns that it sees


class _Layer(DynamicLayer):
    """Keys and values of one layer, written in place: token t of a row stands in column t of its slot, whatever the
    other rows hold."""

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self.place = place
        self.held: list[Tensor] = []  # keys and values, shape [slots, heads, columns, size of a head]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        place, seen = self.place, []
        if not self.held:
            for new in (key_states, value_states):
                self.held.append(new.new_zeros(place.slots, new.shape[1], place.columns, new.shape[3]))
        for held, new in zip(self.held, (key_states, value_states), strict=True):
            held[place.rows[:, None], :, place.at] = new.transpose(1, 2)
            mine = held[:, :, : place.width]
            mine = mine[: len(new)] if place.first else mine.index_select(0, place.rows)
            lacking = place.width - mine.shape[2]
            seen.append(torch.nn.functional.pad(mine, (0, 0, 0, lacking)) if lacking else mine)
        return seen[0], seen[1]

    def resize(self, slots: int, columns: int) -> None:
        """Keep what fits into so many slots and columns."""
        for i, old in enumerate(self.held):
            kept = old[:slots, :, :columns]
            self.held[i] = old.new_zeros(slots, old.shape[1], columns, old.shape[3])
            self.held[i][: kept.shape[0], :, : kept.shape[2]] = kept


@dataclass(eq=False)
class _Row:
    """A row: ``ids[:fed]`` are in the cache."""

    key: int
    ids: list[int] = field(default_factory=list)
    begin: int = 0  # of the turn that is being written
    most: int = 0
    draws: Any = None
    logprobs: list[float] = field(default_factory=list)
    prompt: tuple[int, ...] = ()  # what is read first
    alone: set[int] = field(default_factory=set)  # columns that were fed token by token, and have to be so again
    fed: int = 0
    slot: int = -1  # where; -1 is nowhere

    def readable(self) -> int:
        """Where the ids end that can be read in one pass; the last id is left for the pass that samples."""
        return next((i for i in range(self.fed, len(self.ids) - 1) if i in self.alone), len(self.ids) - 1)


class TorchEngine:
    """The engine on a transformers model in this process.

    A step reads what is new in the rows that it admits, then feeds one token of every row that writes, and samples the
    next. The cache is in place, a slot a row, and those that write are kept in the first slots. A prompt that another
    row has read is copied. Rows are admitted in the order of their submission, and wait until they are an eighth of
    those that write: to read them one by one takes longer. Where the cache would outgrow its bound, first rows between
    two turns leave it, those that wait longest first, then the row that was admitted last. They are read again later,
    and what was sampled stays. No row left, no memory held.

    On the CPU with one thread, ids and log-probabilities of a row are bit for bit the same whatever rows are beside it,
    whenever it is admitted and whether it had to leave. With more threads, and on GPUs, the size of a pass decides how
    sums are split: log-probabilities differ in their last digits, and an id where its draw falls that close to the
    border between two.
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
            Refused: The model cannot be fed through such a cache, or a value is out of range.
        """
        if not temperature > 0:
            raise Refused(f"the temperature must be above 0, not {temperature}")
        if kv_gib is not None and not kv_gib > 0:
            raise Refused(f"the cache of keys and values must be above 0 GiB, not {kv_gib}")
        self.model, self.stops, self.temperature = model, frozenset(stops), temperature
        self.on_cpu = model.device.type == "cpu"
        self.rows: dict[int, _Row] = {}
        self.queue: list[_Row] = []  # in the order of submission
        self.writing: list[_Row] = []  # in the order of admission
        self.idle: list[_Row] = []  # in the cache, their turns ended, in that order
        self._forget()
        self._inspect()
        self.limit = math.inf if kv_gib is None else kv_gib * 2**30
        if kv_gib is None and model.device.type == "cuda":
            unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
            self.limit = (torch.cuda.mem_get_info(model.device)[0] + unused) / 2

    def submit(self, key: int, ids: Sequence[int], most: int, seed: int) -> None:
        if not ids or most < 1:
            raise ValueError(f"row {key} has {len(ids)} ids and {most} to write; there must be at least one of each")
        row = self.rows.get(key) or _Row(key)
        if row in self.queue or row in self.writing:
            raise ValueError(f"row {key} is submitted again before its turn has ended")
        if self._bytes(1, len(ids) + most) > self.limit:
            raise Refused(
                f"a row of {len(ids) + most} tokens takes {self._bytes(1, len(ids) + most) / 2**30:.2g} GiB of keys "
                f"and values, and the cache has {self.limit / 2**30:.2g}: give it more, or bound the rows"
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
        self.model = model
        self.queue, self.writing = [*self.writing, *self.queue], []
        for row in self.rows.values():
            self._drop(row)
        self._forget()

    def release(self, keys: Iterable[int]) -> None:
        for key in keys:
            if row := self.rows.pop(key, None):
                self._drop(row)
                for group in (self.queue, self.writing):
                    if row in group:
                        group.remove(row)
        if not any(self.slots):
            self._forget()

    # -----------------------------------------------------------------------------------------------------------------
    # The cache

    def _forget(self) -> None:
        self.place, self.slots = _Place(), list[_Row | None]()
        self.cache: Any = Cache(layer_class_to_replicate=partial(_Layer, self.place))  # type: ignore[arg-type]

    @torch.inference_mode()
    def _inspect(self) -> None:
        """Find out how many bytes a token takes, and whether passes through the cache agree with a whole one."""
        model, config = self.model, self.model.net.config.get_text_config()
        other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if other or getattr(model.net, "_is_stateful", False):
            kind = min(other, default="recurrent").replace("_", " ")
            raise Refused(f"{model.name} has {kind} layers: the cache holds keys and values of every token, no states")
        self.window = getattr(config, "sliding_window", None)
        self.kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if self.window else ""])
        self.dtype = model.net.get_input_embeddings().weight.dtype
        ids = [[i % model.vocabulary for i in range(ROWS + 1)]] * ROWS
        self._resize(ROWS, COLUMNS)
        self._pass([*range(ROWS)], [row[:-1] for row in ids], [[*range(ROWS)]] * ROWS, COLUMNS)
        found = self._pass(range(ROWS), [row[-1:] for row in ids], [[ROWS]] * ROWS, COLUMNS)[:, -1].float()
        right = model.hidden(input_ids=torch.tensor(ids, device=model.device))[:, -1].float()
        if not (found - right).norm() < 0.1 * right.norm():
            raise Refused(f"{model.name} cannot be sampled: fed token by token, it says something else")
        held = [side for layer in self.cache.layers for side in layer.held]
        self.dtype = held[0].dtype
        self.token_bytes = sum(side.shape[1] * side.shape[3] * side.element_size() for side in held)
        self._forget()

    def _bytes(self, rows: int, columns: int) -> int:
        return _up(rows, ROWS) * _up(columns, COLUMNS) * self.token_bytes

    def _drop(self, row: _Row) -> None:
        """Take a row out of the cache."""
        if row.slot >= 0:
            self.slots[row.slot] = None
        row.slot, row.fed = -1, 0
        if row in self.idle:
            self.idle.remove(row)

    def _admit(self) -> None:
        longest = max((len(row.ids) for row in self.writing), default=0)
        while self.queue:
            longest = max(longest, len(self.queue[0].ids))
            if self.writing and self._bytes(len(self.writing) + 1, longest + COLUMNS) > self.limit:
                return
            self.writing.append(self.queue.pop(0))

    def _make_room(self) -> None:
        """Give every row that writes a slot, and a column for its last id."""
        spare = [*self.idle, *(row for row in reversed(self.queue) if row.slot >= 0)]
        while True:
            rows = len(self.writing) + len(spare)
            columns = max([len(row.ids) for row in self.writing] + [row.fed + 1 for row in spare])
            if self._bytes(rows, columns) <= self.limit:
                break
            if not spare:
                self.queue.insert(0, self.writing.pop())
            self._drop(spare.pop(0) if spare else self.queue[0])
        rows, columns = _up(rows, ROWS), _up(columns, COLUMNS)
        if rows > self.place.slots or columns > self.place.columns:
            ample = max(rows, self.place.slots), max(columns + COLUMNS, self.place.columns)
            self._resize(*(ample if self._bytes(*ample) <= self.limit else (rows, columns)))
        free = (i for i, row in enumerate(self.slots) if row is None)
        for row in self.writing:
            if row.slot < 0:
                row.slot = next(free)
                self.slots[row.slot] = row

    def _resize(self, slots: int, columns: int) -> None:
        free = [i for i, row in enumerate(self.slots[:slots]) if row is None]
        self._exchange(list(zip([row for row in self.slots[slots:] if row], free, strict=False)))
        self.slots = [*self.slots[:slots], *[None] * (slots - len(self.slots))]
        self.place.slots, self.place.columns = slots, columns
        for layer in self.cache.layers:
            layer.resize(slots, columns)

    def _exchange(self, pairs: Sequence[tuple[_Row, int]]) -> None:
        """Put each row into the slot beside it, and what is there into the row's."""
        copies = []
        for row, slot in pairs:
            other = self.slots[slot]
            copies.append((row.slot, slot, row.fed))
            if other is not None:
                copies.append((slot, row.slot, other.fed))
                other.slot = row.slot
            self.slots[row.slot], self.slots[slot], row.slot = other, row, slot
        self._copy(copies)

    def _copy(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copy from slots to slots, all at once, so many columns."""
        if copies:
            source, to, columns = zip(*copies, strict=True)
            places = torch.tensor([source, to], device=self.model.device)
            for layer in self.cache.layers:
                for held in layer.held:
                    kept = held[:, :, : max(columns)]
                    kept[places[1]] = kept[places[0]]

    # -----------------------------------------------------------------------------------------------------------------
    # Passes

    def _pass(self, rows: Sequence[int], ids: list[list[int]], at: list[list[int]], width: int) -> Tensor:
        """Feed ``ids`` to the slots ``rows`` at the columns ``at``; the hidden states."""
        device, place = self.model.device, self.place
        columns = torch.tensor(at, device=device)
        place.rows, place.first = torch.tensor(rows, device=device), rows == range(len(rows))
        place.at, place.width = columns, width
        seen, own, least = torch.arange(width, device=device), columns[:, None, :, None], torch.finfo(self.dtype).min
        mask: Any = torch.zeros(len(at), 1, columns.shape[1], width, dtype=self.dtype, device=device)
        mask.masked_fill_(seen > own, least)
        if self.window and self.window < width and "sliding_attention" in self.kinds:
            near = mask.masked_fill(seen <= own - self.window, least)
            mask = {"full_attention": mask, "sliding_attention": near} if len(self.kinds) > 1 else near
        return self.model.hidden(
            self.cache, input_ids=torch.tensor(ids, device=device), attention_mask=mask, position_ids=columns
        )

    def _read(self) -> None:
        """Feed what is known of the rows that write, but for their last ids."""
        while new := [row for row in self.writing if row.readable() > row.fed]:
            read = {row.prompt: row for row in self.slots if row and row.fed >= len(row.prompt)}
            todo: dict[Any, _Row] = {}
            copies: list[Any] = []
            for row in new:
                if row.fed == 0 and row.prompt in read:
                    row.fed = len(row.prompt)
                    copies.append((read[row.prompt].slot, row.slot, row.fed))
                if row.readable() > row.fed:
                    todo.setdefault(row.prompt if row.fed == 0 else row, row)
            self._copy(copies)
            rows = sorted(todo.values(), key=lambda row: row.readable() - row.fed)
            while rows:
                size, count = 0, 0
                for row in rows:
                    longer = _up(row.readable() - row.fed, ROWS)
                    if count and (2 * longer > 3 * size or (count + 1) * longer > FEED[not self.on_cpu]):
                        break
                    size, count = longer if not count else size, count + 1
                part, rows = rows[:count], rows[count:]
                self._read_together(part)

    def _read_together(self, rows: list[_Row]) -> None:
        ends = [row.readable() for row in rows]
        size = _up(max(end - row.fed for row, end in zip(rows, ends, strict=True)), ROWS)
        at = [[min(row.fed + i, end - 1) for i in range(size)] for row, end in zip(rows, ends, strict=True)]
        ids = [[row.ids[i] for i in columns] for row, columns in zip(rows, at, strict=True)]
        self._pass([row.slot for row in rows], ids, at, _wide(max(ends)))
        for row, end in zip(rows, ends, strict=True):
            row.fed = end

    def _close_up(self) -> None:
        """Bring the rows that write to the first slots, where it makes a pass smaller."""
        count = len(self.writing)
        if _up(count, ROWS) <= max(row.slot for row in self.writing):
            there = {row.slot for row in self.writing}
            late = [row for row in self.writing if row.slot >= count]
            self._exchange(list(zip(late, (i for i in range(count) if i not in there), strict=True)))

    def _write(self) -> list[Turn]:
        """One token of every row that writes; the turns that end with it. Other rows in between are fed theirs, too,
        to a column that is written again before it is read."""
        live = self.slots[: _up(max(row.slot for row in self.writing) + 1, ROWS)]
        at = [[row.fed if row else 0] for row in live]
        ids = [[row.ids[row.fed] if row else self.model.pad] for row in live]
        hidden = self._pass(range(len(live)), ids, at, _up(max(at)[0] + 1, 32))
        logp = torch.log_softmax(self.model.logits(hidden[:, 0], self.temperature), -1)
        uniforms = [0.0] * len(live)
        for row in self.writing:
            if row.fed == len(row.ids) - 1:
                uniforms[row.slot] = row.draws.random()
        sums = logp.exp().cumsum(-1, dtype=torch.float64)
        drawn = torch.tensor(uniforms, dtype=torch.float64, device=sums.device)[:, None] * sums[:, -1:]
        tokens = torch.searchsorted(sums, drawn, right=True)
        found = torch.cat([tokens.double(), logp.gather(1, tokens).double()], 1).tolist()
        turns = []
        for row in list(self.writing):
            if self.on_cpu:
                row.alone.add(row.fed)
            row.fed += 1
            if row.fed < len(row.ids):
                continue  # what was sampled before the row had to leave the cache
            token = int(found[row.slot][0])
            row.ids.append(token)
            row.logprobs.append(found[row.slot][1])
            if token in self.stops or len(row.ids) - row.begin == row.most:
                self.writing.remove(row)
                self.idle.append(row)
                turns.append(Turn(row.key, row.ids[row.begin :], row.logprobs, token in self.stops))
        return turns
