"""Weights that make up for an engine whose arithmetic is not that of the training pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["importance"]


def importance(
    trained: Tensor, sampled: Tensor, lengths: Sequence[int], cap: float, mask: float | None = None
) -> tuple[Tensor, Tensor]:
    """Truncated importance weights: of each token, its probability in training over that in sampling, at most ``cap``.

    Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025).

    Args:
        trained: Log-probabilities by a training pass with the weights that sampled, shape [tokens].
        sampled: As the engine gave them, shape [tokens].
        lengths: Tokens of each episode.
        cap: Bound of a weight.
        mask: An episode weighs 0 if the geometric mean of its ratios is further than this from 1. None masks none.

    Returns:
        The weights, shape [tokens], and figures for the log, shape [3, tokens]: the absolute difference of the
        log-probabilities, the weight, and 1 where it was cut or masked.
    """
    apart = trained - sampled
    ratio = apart.exp()
    weight = ratio.clamp(max=cap)
    if mask is not None:
        means = torch.stack([part.mean() for part in apart.split(list(lengths))]).exp()
        kept = (means - 1.0).abs() <= mask
        weight = weight * kept.repeat_interleave(torch.tensor(lengths, device=kept.device))
    return weight, torch.stack([apart.abs(), weight, (weight != ratio).to(weight)])
