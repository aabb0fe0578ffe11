"""All parameters shared out to the processes: torch's fully sharded data parallelism (FSDP2, ``fully_shard``).

Weights, gradients, moments and the reference are held in shards. In training, a pass gathers the weights layer by
layer, which all processes do together. What samples is a copy of the whole policy, taken after each update.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from agent_gym.lm.ranks import Ranks
from agent_gym.lm.scores import token_logprobs

if TYPE_CHECKING:
    from agent_gym.lm.models import Model

__all__ = ["clip", "exchange", "in_step", "joined", "local", "part_like", "parted", "shard"]


T = TypeVar("T")


def shard(model: "Model", ranks: Ranks) -> None:
    """Share a model's parameters out, in place, before an optimiser is made.

    On CUDA the shards are float32; passes compute in bfloat16, and gradients are summed in float32. On the CPU all is
    float32.

    Args:
        model: Loaded on the CPU, the same in all processes.
        ranks: The processes; the shards go to their devices.
    """
    device, mesh = ranks.device, dist.init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if device.type == "cuda" else MixedPrecisionPolicy()
    model.split(device, policy.param_dtype)
    layers = [module for module in model.net.modules() if type(module).__name__ in (model.net._no_split_modules or ())]
    for module in (*layers, model):
        part: Any = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        part.set_gradient_divide_factor(1.0)  # what is summed over the processes are parts of one loss
        part.set_force_sum_reduction_for_comms(True)


def in_step(model: "Model", ranks: Ranks, parts: Sequence[T]) -> Iterator[T]:
    """The parts of a loop that makes a pass of each. All processes gather a sharded model together, pass by pass: at
    the end of the loop, whoever has fewer parts than others makes empty passes.

    Args:
        model: Computes.
        ranks: The processes, which begin the loop together.
        parts: Of this process. A pass goes backward too where gradients are taken.
    """
    most = max(ranks.gather(len(parts))) if model.sharded else 0
    yield from parts
    for _ in range(most - len(parts)):
        scores = token_logprobs(model, [], [])
        if torch.is_grad_enabled():
            scores.logprobs.sum().backward()


def local(tensor: Tensor) -> Tensor:
    """This process's shard, of which a change is one of the tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as ``like`` is held: in shards, or whole."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def exchange(ones: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    """Let tensors of equal shapes swap what they hold."""
    for one, other in zip(map(local, ones), map(local, others), strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def clip(parameters: Iterable[Tensor], most: float) -> float:
    """Clip the gradients to a norm. Returns what it was before, over all shards."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def joined(state: Any, first: bool) -> Any:
    """Nested dictionaries and lists in which each tensor in shards is put together, on the CPU. All processes call it.

    Args:
        state: Of a model or an optimiser.
        first: Whether this process wants it; in others None stands for those tensors.
    """
    if isinstance(state, dict):
        return {name: joined(value, first) for name, value in state.items()}
    if isinstance(state, list):
        return [joined(value, first) for value in state]
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if first else None
    return state


def parted(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser, which :func:`joined` put together, as its parameters are held."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {name: part_like(value, parameters[i]) if value.shape == parameters[i].shape else value
            for name, value in own.items()}
        for i, own in state["state"].items()
    }  # fmt: skip
    return {**state, "state": moments}
