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

__all__ = ["Scores", "micro_batches", "token_logprobs"]

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
    rows: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    temperature: float = 1.0,
    *,
    entropy_grad: bool = False,
) -> Scores:
    """Log-probabilities and entropies of the tokens in ``spans``, in the order of rows, then of columns.

    The head is applied to as many tokens at once as memory allows. Where these are not all and gradients are taken,
    the logits are computed again in the backward pass.

    Args:
        model: The model.
        rows: Ids of each row. Without any the pass is made nevertheless.
        spans: Of each row, the [begin, end) of what is scored; begin is at least 1.
        temperature: The logits are divided by it, as they are when tokens are sampled.
        entropy_grad: Let the entropies carry a gradient.
    """
    return model(partial(_scored, model, rows or [[model.pad]], spans, temperature, entropy_grad))


def _scored(
    model: "Model",
    rows: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    temperature: float,
    entropy_grad: bool,
) -> Scores:
    device = model.device
    padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=model.pad).to(device)
    hidden = model.hidden(input_ids=padded)  # no mask: padding stands to the right, where no token looks
    places = [(r, begin, end) for r, row in enumerate(spans) for begin, end in row]
    row = torch.tensor([r for r, begin, end in places for _ in range(begin, end)], dtype=torch.long, device=device)
    column = torch.tensor([c for _, begin, end in places for c in range(begin, end)], dtype=torch.long, device=device)
    states, targets = hidden[row, column - 1], padded[row, column]

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
    before = hidden[[r for r, _, _ in places], [begin - 1 for _, begin, _ in places]]
    return Scores(logprobs, entropies, before.detach().float())


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
