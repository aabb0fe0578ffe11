"""Log-probabilities of the tokens of many rows, and how rows are put together in forward passes."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from agent_gym.lm.models import Model

__all__ = ["Scores", "micro_batches", "passes", "token_logprobs"]

Rows = Sequence[Sequence[int]]
Spans = Sequence[Sequence[tuple[int, int]]]

CHUNK = 2**26  # logits of one application of the head, at most: 256 MiB in float32, of which up to six are alive


class Scores(NamedTuple):
    """What a forward pass says about the tokens of its rows."""

    logprobs: Tensor
    """log-probability of every token, shape [tokens]"""
    entropies: Tensor
    """entropy of the distribution that it comes from, shape [tokens]"""
    states: Tensor
    """last hidden state before each span begins, float32 without gradient, shape [spans, size]"""


def token_logprobs(
    model: "Model",
    rows: Rows,
    spans: Spans,
    temperature: float = 1.0,
    *,
    entropy_grad: bool = False,
) -> Scores:
    """Log-probabilities and entropies of the tokens in ``spans``, in the order of rows, then of columns.

    A prompt that several rows begin with is read once, see :func:`bundles`. The head is applied to as many tokens at
    once as memory allows. Where these are not all and gradients are taken, the logits are computed again in the
    backward pass.

    Args:
        model: The model.
        rows: Ids of each row. Without any the pass is made nevertheless.
        spans: Of each row, the [begin, end) of what is scored; begin is at least 1.
        temperature: The logits are divided by it, as they are when tokens are sampled.
        entropy_grad: Let the entropies carry a gradient.
    """
    return model(partial(_scored, model, rows or [[model.pad]], spans or [[]], temperature, entropy_grad))


def _scored(model: "Model", rows: Rows, spans: Spans, temperature: float, entropy_grad: bool) -> Scores:
    device, padding = model.device, partial(pad_sequence, batch_first=True)
    joint = [Bundle(rows, spans, members) for members in bundles(model, rows, spans)]
    padded = padding([torch.tensor(one.ids) for one in joint], padding_value=model.pad).to(device)
    seen: dict[str, Tensor] = {}  # nothing: padding stands to the right, where no token looks
    if len(joint) < len(rows):
        part = padding([torch.tensor(one.parts) for one in joint], padding_value=-1).to(device)
        own = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
        seen["attention_mask"] = (own & own.new_ones(own.shape[1:]).tril())[:, None]  # [bundles, 1, tokens, tokens]
        seen["position_ids"] = padding([torch.tensor(one.positions) for one in joint]).to(device)
    hidden = model.hidden(input_ids=padded, **seen)
    at = {r: (b, columns) for b, one in enumerate(joint) for r, columns in one.columns.items()}

    def places(tokens: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Where the tokens, each a row and a column there, stand in the bundles."""
        found = [(at[r][0], at[r][1][c]) for r, c in tokens]
        bundle, column = torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 2).unbind(1)
        return bundle, column

    begins = [(r, begin) for r, row in enumerate(spans) for begin, _ in row]
    scored = [(r, c) for r, row in enumerate(spans) for begin, end in row for c in range(begin, end)]
    states, targets = hidden[places([(r, c - 1) for r, c in scored])], padded[places(scored)]

    def head(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = model.logits(states, temperature).log_softmax(-1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropies = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[:, None]).sum(-1), entropies  # of one column each, and no view

    size = max(1, CHUNK // model.vocabulary)
    if len(targets) <= size:
        logprobs, entropies = head(states, targets)
    else:
        parts = zip(states.split(size), targets.split(size), strict=True)
        found = [checkpoint(head, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        logprobs, entropies = (torch.cat(kind) for kind in zip(*found, strict=True))
    before = hidden[places([(r, begin - 1) for r, begin in begins])]
    return Scores(logprobs, entropies, before.detach().float())


class Bundle:
    """Rows that begin with one prompt, as one row: the prompt, then what is each one's own.

    Attributes:
        ids: Of the whole bundle, shape [tokens].
        parts: 0 for the prompt, and 1, 2, ... for the members' own.
        positions: Of each token in the row it is of.
        columns: By member, where the tokens of its row stand.
    """

    def __init__(self, rows: Rows, spans: Spans, members: Sequence[int]) -> None:
        prompt = _prompt(rows[members[0]], spans[members[0]])
        first = range(len(prompt))
        self.ids, self.parts, self.positions = list(prompt), [0 for _ in first], list(first)
        self.columns: dict[int, list[int]] = {}
        for part, r in enumerate(members, start=1):
            own = rows[r][len(prompt) :]
            self.columns[r] = [*first, *range(len(self.ids), len(self.ids) + len(own))]
            self.ids += own
            self.parts += [part] * len(own)
            self.positions += range(len(prompt), len(rows[r]))


def bundles(model: "Model", rows: Rows, spans: Spans) -> list[list[int]]:
    """Which rows share a pass over their prompt, so that it is read once: those of a group's episodes, or of several
    episodes of a task. A row is alone where its prompt is less than a quarter of it, or the model has no mask for more.

    Args:
        model: Whose pass it is.
        rows: Ids of each row.
        spans: Of each row; the prompt is what stands before the first.

    Returns:
        Indices of rows, in their order.
    """
    found: list[list[int]] = []
    newest: dict[tuple[int, ...], tuple[list[int], int]] = {}  # by prompt: its last bundle, and the tokens of that
    for i, (row, own) in enumerate(zip(rows, spans, strict=True)):
        prompt = _prompt(row, own)
        members, tokens = newest.get(prompt, ([], 0))
        tokens += len(row) - len(prompt)
        if members and tokens <= model.longest_bundle and 4 * len(prompt) >= len(row):
            members.append(i)
        else:
            found.append(members := [i])
            tokens = len(row)
        newest[prompt] = members, tokens
    return found


def _prompt(row: Sequence[int], spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(row[: spans[0][0]] if spans else row)


def passes(model: "Model", rows: Rows, spans: Spans, most_tokens: int) -> list[list[int]]:
    """Indices of rows in parts of similar length for a forward pass each, rows that share one next to each other.

    Args:
        model: Whose passes they are.
        rows: Ids of each row.
        spans: Of each row, see :func:`token_logprobs`.
        most_tokens: Padded tokens of a part, at most; a longer row or bundle is a part of its own.
    """
    units = bundles(model, rows, spans)
    lengths = [len(Bundle(rows, spans, unit).ids) for unit in units]
    return [[i for unit in part for i in units[unit]] for part in micro_batches(lengths, most_tokens)]


def micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices of rows in parts of similar length, the shortest first.

    Args:
        lengths: Tokens of each row.
        most_tokens: Padded tokens of a part, at most; a longer row is a part of its own.

    Returns:
        Parts in which at most a quarter is padding.
    """
    parts: list[list[int]] = []
    held = 0  # tokens of the last part without its padding
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = (len(parts[-1]) + 1) * lengths[i] if parts else math.inf
        if padded <= most_tokens and 4 * (held + lengths[i]) >= 3 * padded:
            parts[-1].append(i)
            held += lengths[i]
        else:
            parts.append([i])
            held = lengths[i]
    return parts
