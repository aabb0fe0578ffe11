"""What a model has read of many rows: keys and values, side by side and in place."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model

__all__ = ["COLUMNS", "ROWS", "KeyValues", "rounded"]

ROWS = 4  # slots come by so many, and so should the tokens of a pass: CPU kernels sum by fours
COLUMNS = 64  # columns come by so many


def rounded(number: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-number // step) * step


class KeyValues:
    """A slot a row, a column a token: token ``t`` of a row stands in column ``t`` of its slot, whatever the other rows
    hold. To copy all keys and values for every token, as a cache that grows by one column does, takes longer than the
    rest of a pass.

    Layers of full attention and of sliding windows are held alike.

    Attributes:
        model: Reads.
        slots: How many there are.
        columns: How many each of them has.
        token_bytes: Memory of one token of one row.
    """

    @torch.inference_mode()
    def __init__(self, model: Model) -> None:
        """
        Args:
            model: Reads.

        Raises:
            Refused: It keeps something else than keys and values of every token.
        """
        self.model, config = model, model.net.config.get_text_config()
        self._kinds, window = model.layer_kinds, getattr(config, "sliding_window", None)
        self._window: int | None = window if "sliding_attention" in self._kinds else None
        other = self._kinds - {"full_attention", "sliding_attention"}
        if other or getattr(model.net, "_is_stateful", False):
            kind = min(other, default="recurrent").replace("_", " ")
            raise Refused(f"{model.name} has {kind} layers; only full and sliding attention can be sampled from here")
        self._dtype: torch.dtype = model.net.get_input_embeddings().weight.dtype
        self.resize(0, 0)
        self.resize(ROWS, COLUMNS)
        ids = [[i % model.vocabulary for i in range(ROWS + 1)]] * ROWS
        self.feed([*range(ROWS)], [row[:ROWS] for row in ids], [[*range(ROWS)]] * ROWS, COLUMNS)
        found = self.feed(range(ROWS), [row[ROWS:] for row in ids], [[ROWS]] * ROWS, COLUMNS)[:, -1].float()
        right = model.hidden(input_ids=torch.tensor(ids, device=model.device))[:, -1].float()
        if not (found - right).norm() < 0.1 * right.norm():
            raise Refused(f"{model.name} cannot be sampled from: fed token by token, it says something else")
        held = [side for layer in self._cache.layers for side in layer.held]
        self._dtype = held[0].dtype  # under autocast another one than the weights'
        self.token_bytes = sum(side.shape[1] * side.shape[3] * side.element_size() for side in held)
        self.resize(0, 0)

    def bytes(self, rows: int, columns: int) -> int:
        """Memory of so many rows, so long."""
        return rounded(rows, ROWS) * rounded(columns, COLUMNS) * self.token_bytes

    def resize(self, slots: int, columns: int) -> None:
        """Keep what fits into so many slots and columns, layer by layer: two copies of one layer are the most."""
        self.slots, self.columns = slots, columns
        if not slots:
            self._cache: Any = Cache(layer_class_to_replicate=partial(_Layer, self))  # type: ignore[arg-type]
        for layer in self._cache.layers:
            for i, old in enumerate(layer.held):
                kept = old[:slots, :, :columns]
                layer.held[i] = old.new_zeros(slots, old.shape[1], columns, old.shape[3])
                layer.held[i][: kept.shape[0], :, : kept.shape[2]] = kept

    def copy(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copy, all at once.

        Args:
            copies: From which slot, into which, how many columns.
        """
        if copies:
            source, to, columns = zip(*copies, strict=True)
            places = torch.tensor([source, to], device=self.model.device)
            for layer in self._cache.layers:
                for held in layer.held:
                    kept = held[:, :, : max(columns)]
                    kept[places[1]] = kept[places[0]]

    def feed(self, slots: Sequence[int], ids: list[list[int]], at: list[list[int]], width: int) -> Tensor:
        """A pass.

        Args:
            slots: Of the rows. A range from 0 on is looked at in place, other slots are gathered, a layer at a time.
            ids: Of each row, equally many.
            at: Their columns.
            width: Columns that the pass sees.

        Returns:
            Hidden states, shape [rows, tokens, size].
        """
        device = self.model.device
        self._at, self._width = torch.tensor(at, device=device), width
        self._slots, self._first = torch.tensor(slots, device=device), isinstance(slots, range)
        seen, own, least = torch.arange(width, device=device), self._at[:, None, :, None], torch.finfo(self._dtype).min
        mask: Any = torch.zeros(len(ids), 1, len(ids[0]), width, dtype=self._dtype, device=device)
        mask.masked_fill_(seen > own, least)
        if self._window and self._window < width:
            near = mask.masked_fill(seen <= own - self._window, least)
            mask = {"full_attention": mask, "sliding_attention": near} if len(self._kinds) > 1 else near
        return self.model.hidden(
            self._cache, input_ids=torch.tensor(ids, device=device), attention_mask=mask, position_ids=self._at
        )


class _Layer(DynamicLayer):
    """One layer of it."""

    def __init__(self, kv: KeyValues) -> None:
        super().__init__()
        self.kv = kv
        self.held: list[Tensor] = []  # keys and values, shape [slots, heads, columns, size of a head]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kv, seen = self.kv, []
        if not self.held:
            for new in (key_states, value_states):
                self.held.append(new.new_zeros(kv.slots, new.shape[1], kv.columns, new.shape[3]))
        for held, new in zip(self.held, (key_states, value_states), strict=True):
            held[kv._slots[:, None], :, kv._at] = new.transpose(1, 2)
            mine = held[:, :, : kv._width]
            mine = mine[: len(new)] if kv._first else mine.index_select(0, kv._slots)
            lacking = kv._width - mine.shape[2]
            seen.append(torch.nn.functional.pad(mine, (0, 0, 0, lacking)) if lacking else mine)
        return seen[0], seen[1]
