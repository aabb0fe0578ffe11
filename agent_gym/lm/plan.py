"""Does it fit? The memory of a GPU that a training takes, from a model's config alone, before a GPU is there.

    python -m agent_gym.lm.plan --model Qwen/Qwen2.5-7B-Instruct --gpus 4 --gpu-gib 80

Weights, gradients and moments are counted. What a pass keeps is found by running it: the trainers' own forward and
backward pass, over a few layers of the model, on tensors that have shapes but no memory. Each further layer adds the
same, so two depths give all of them.
"""

import json
import sys
import weakref
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model, token_logprobs

__all__ = ["SHAPES", "Args", "Plan", "advice", "config_of", "counts", "plan", "shaped"]

GIB = 2**30
CONTEXT = GIB  # of CUDA: its kernels and the workspaces of its libraries, about
FRAGMENTS = 0.05  # of what comes and goes, lost between blocks, about
FOUR_BIT = 0.5 + 4 / 64  # bytes a weight: nf4, and a float32 for each block of 64
DEPTHS = (2, 4)  # layers of the passes that are run
SAMPLED = 24  # bytes a logit that is sampled from: bfloat16, two in float32, a sum in float64, and what the sort needs

# width, width of the MLP, layers, heads, heads of keys and values, vocabulary, whether head and embedding are one
_QWEN: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11_008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "14B": (5120, 13_824, 48, 40, 8, 152_064, False),
    "32B": (5120, 27_648, 64, 40, 8, 152_064, False),
}
SHAPES: dict[str, dict[str, Any]] = {
    f"Qwen2.5-{size}": {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "vocab_size": vocabulary, "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    }
    for size, (width, inner, layers, heads, kv, vocabulary, tied) in _QWEN.items()
}  # fmt: skip
"""Shapes that are known without a hub, by name."""


@dataclass
class Args:
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    """a config.json, a folder that has one, a name in SHAPES (Qwen/ and -Instruct may stand around it), or what
    transformers finds by its name"""
    gpus: int = 1
    """GPUs, each with a process of its own, over all nodes"""
    gpu_gib: float = 80.0
    """memory of one of them, in GiB"""
    lora_rank: int = 16
    """rank of the adapters; 0 trains all parameters"""
    load_in_4bit: bool = False
    """the base quantised"""
    fsdp: bool = False
    """all parameters sharded over the GPUs (FSDP2: fully_shard, in bfloat16 with float32 masters)"""
    checkpointing: bool = True
    """keep the layers' inputs only, and compute the rest again in the backward pass"""
    micro_batch_tokens: int = 8192
    """padded tokens of one forward pass in training"""
    max_context: int = 8192
    """tokens of one episode, at most"""
    episodes: int = 32
    """episodes that one GPU plays side by side"""
    engine: Literal["torch", "vllm"] = "torch"
    """what samples"""
    gpu_share: float = 0.3
    """of vLLM: its share of the GPU, for weights and cache"""
    async_rollouts: bool = False
    """the next rollout runs beside the update, with a copy of what is trained"""
    reference: bool = True
    """the policy as it was at the start is kept, for the KL term"""
    entropy: bool = False
    """the loss has an entropy term"""
    groups: int = 0
    """task groups of which a trainer keeps two gradients each, as surgery does"""


class Pass(NamedTuple):
    """Bytes beside weights and gradients."""

    kept: int
    """when the last layer's forward pass has ended: what the backward pass needs of the layers"""
    peak: int
    """at most"""


class Counts(NamedTuple):
    """Numbers of parameters."""

    all: int
    trained: int
    layer: int
    """of one layer"""
    linear: int
    """in layers that bitsandbytes quantises"""


@dataclass
class Plan:
    """Bytes of one GPU.

    Args:
        held: What stays from the first update on, by name.
        training: What else an update takes, by name.
        rollout: What else a rollout takes, by name.
        gpu: What there is.
        rows: Episodes of full length whose keys and values fit beside the rest.
        kv_token: Keys and values of one token.
        notes: Lines of text.
        together: Whether an update and a rollout run at a time.
    """

    held: dict[str, float]
    training: dict[str, float]
    rollout: dict[str, float]
    gpu: float
    rows: int
    kv_token: int
    notes: list[str] = field(default_factory=list)
    together: bool = False

    @property
    def allocated(self) -> float:
        """The most that an update allocates, without what the driver and fragments take."""
        return sum(self.held.values()) + sum(self.training.values())

    @property
    def needed(self) -> dict[str, float]:
        """The most that is needed, by phase."""
        sums = {"training": sum(self.training.values()), "rollout": sum(self.rollout.values())}
        if self.together:
            sums = {"training beside a rollout": sum(sums.values())}
        return {phase: CONTEXT + sum(self.held.values()) + (1 + FRAGMENTS) * more for phase, more in sums.items()}

    @property
    def fits(self) -> bool:
        return max(self.needed.values()) <= self.gpu

    def __str__(self) -> str:
        lines = []
        for title, items in (("held", self.held), ("training", self.training), ("rollout", self.rollout)):
            lines += [f"{title:<9} {name:<44} {size / GIB:8.2f} GiB" for name, size in items.items()]
        lines += [
            f"{'needed':<9} {f'{phase}, with {CONTEXT / GIB:.0f} GiB of CUDA and {FRAGMENTS:.0%} lost':<44} "
            f"{size / GIB:8.2f} GiB of {self.gpu / GIB:g}: {'fits' if size <= self.gpu else 'does not fit'}"
            for phase, size in self.needed.items()
        ]
        return "\n".join([*lines, *self.notes])


# ---------------------------------------------------------------------------------------------------------------------
# Passes on tensors without memory


class _Live(TorchDispatchMode):
    """Follows the bytes of the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.peak = max(self.peak, self.now)
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self.note(one)
        if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled():
            self.peak = max(self.peak, self.now)
        return found  # in the backward pass gradients are added in place, but not those of tensors without memory

    def note(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key not in self.known:
            self.known[key] = weakref.finalize(storage, self.free, key, size)
            self.now += size

    def free(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size


def _cut(config: Any, layers: int) -> Any:
    """The config with fewer layers."""
    cut = type(config).from_dict(config.to_dict())
    cut.num_hidden_layers = layers
    if getattr(cut, "layer_types", None):
        cut.layer_types = cut.layer_types[:layers]
    return cut


def shaped(
    config: Any, rank: int, dtype: torch.dtype, checkpointing: bool, device: str | torch.device = "meta"
) -> Model:
    """A model of a config, made as ``load`` makes one, with random weights and no tokenizer.

    Args:
        config: Of transformers.
        rank: Of its adapters; 0 trains all parameters.
        dtype: Of the weights; adapters are float32.
        checkpointing: Whether the layers are checkpointed.
        device: Where; ``"meta"`` is nowhere.
    """
    from peft import LoraConfig, get_peft_model

    with torch.device(device):
        net: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if rank:
            net.requires_grad_(False)
            net = get_peft_model(net, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    if checkpointing:
        enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
        enable({"use_reentrant": False, "preserve_rng_state": False})  # what is nowhere has no generator
    return Model(net, SimpleNamespace(eos_token_id=0, pad_token_id=0), "shape", adapters=rank, autocast=False)


@cache
def _counts(config: str, layers: int, rank: int) -> tuple[int, int, int]:
    """Parameters, trained ones, and those in linear layers that bitsandbytes quantises."""
    model = shaped(_cut(_parsed(config), layers), rank, torch.bfloat16, False)
    linear = {
        id(module.weight): module.weight.numel() for name, module in model.net.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    }  # fmt: skip
    return (
        sum(p.numel() for name, p in model.net.named_parameters() if "lora_" not in name),
        sum(p.numel() for p in model.trained()),
        sum(linear.values()),
    )


@cache
def _passes(
    config: str, layers: int, rank: int, mixed: bool, dtype: torch.dtype, checkpointing: bool, rows: int, tokens: int,
    entropy: bool, train: bool,
) -> Pass:  # fmt: skip
    """One pass over a few layers.

    Args:
        config: As JSON.
        layers: How many.
        rank: Of the adapters.
        mixed: In float32, computed with in bfloat16 by autocast.
        dtype: Of the weights.
        checkpointing: Whether the layers are checkpointed.
        rows: How many.
        tokens: Of each.
        entropy: Whether the entropies carry a gradient.
        train: Whether there is a backward pass.
    """
    live, mode = _Live(), FakeTensorMode()
    model = shaped(_cut(_parsed(config), layers), rank, dtype, checkpointing)
    _pretend(model, mode)
    if mixed:
        model._precision = partial(torch.autocast, "cpu", torch.bfloat16)  # type: ignore[method-assign]
    # no tensor without memory can say that its rows are not packed, and masks would be made for them
    with mode, mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None):
        for p in model.net.parameters():
            live.note(p, counted=False)
            if p.requires_grad:
                p.grad = torch.zeros_like(p)  # as in all micro-batches but the first
                live.note(p.grad, counted=False)
        kept, hidden = [], model.hidden

        def watched(*args: Any, **inputs: Any) -> Tensor:
            found = hidden(*args, **inputs)
            kept.append(live.now)
            return found

        model.hidden = watched  # type: ignore[method-assign]
        with live, torch.set_grad_enabled(train):
            if train:
                scores = token_logprobs(model, [[0] * tokens] * rows, [[(1, tokens)]] * rows, entropy_grad=entropy)
                (scores.logprobs.sum() + scores.entropies.sum()).backward()
            else:
                watched(input_ids=torch.zeros(rows, tokens, dtype=torch.long))
    return Pass(kept[0], live.peak)


def _pretend(model: Model, mode: FakeTensorMode) -> None:
    """Let shapes pass for tensors of the CPU, whose attention keeps what that of CUDA keeps."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is not None and id(old) not in made:
                    new = FakeTensor(mode, old.detach(), torch.device("cpu"))
                    trained = isinstance(old, torch.nn.Parameter)
                    made[id(old)] = (torch.nn.Parameter(new, old.requires_grad) if trained else new, old)
                held[name] = None if old is None else made[id(old)][0]


def _grown(low: float, high: float, layers: int) -> float:
    """The value at so many layers, of those at ``DEPTHS``."""
    return low + (high - low) * (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])


def _pass(config: Any, *more: Any) -> Pass:
    low, high = (_passes(config.to_json_string(use_diff=False), depth, *more) for depth in DEPTHS)
    return Pass(*(int(_grown(*pair, config.num_hidden_layers)) for pair in zip(low, high, strict=True)))


def counts(config: Any, rank: int) -> Counts:
    """The numbers of a model's parameters.

    Args:
        config: Of transformers.
        rank: Of its adapters; 0 for none.
    """
    low, high = (_counts(config.to_json_string(use_diff=False), depth, rank) for depth in DEPTHS)
    every, trained, linear = (int(_grown(*pair, config.num_hidden_layers)) for pair in zip(low, high, strict=True))
    return Counts(every, trained, (high[0] - low[0]) // (DEPTHS[1] - DEPTHS[0]), linear)


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def config_of(name: str) -> Any:
    """A model's config.

    Args:
        name: See :class:`Args`.

    Raises:
        Refused: There is none.
    """
    short = name.removeprefix("Qwen/").removesuffix("-Instruct")
    if short in SHAPES:
        return AutoConfig.for_model("qwen2", **SHAPES[short])
    try:
        found = AutoConfig.from_pretrained(Path(name) if Path(name).exists() else name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise Refused(f"{name} has no config to be read ({said}); known without one: {', '.join(SHAPES)}") from error
    return found.get_text_config()


def _parsed(config: str) -> Any:
    values = json.loads(config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def plan(args: Args, config: Any = None) -> Plan:
    """The memory of one GPU.

    Args:
        args: What is trained, and how.
        config: Of the model; by default that of its name.

    Raises:
        Refused: The model has no config, or the arguments do not go together.
    """
    config = config or config_of(args.model)
    _check(args)
    rank, share = args.lora_rank, 1 / args.gpus if args.fsdp else 1.0
    found = counts(config, rank)
    mixed = not rank and not args.fsdp
    dtype = torch.float32 if mixed else torch.bfloat16
    length = min(args.max_context, args.micro_batch_tokens)
    rows = max(1, args.micro_batch_tokens // length)
    train = _pass(config, rank, mixed, dtype, args.checkpointing, rows, length, args.entropy, True)
    read = _pass(config, rank, mixed, dtype, False, 1, 8192, False, False)
    held: dict[str, float]
    if rank:
        quantised = found.linear * FOUR_BIT + (found.all - found.linear) * 2
        held = {
            "weights, 4 bits" if args.load_in_4bit else "weights, bfloat16": quantised if args.load_in_4bit
            else found.all * 2,
            f"adapters of rank {rank}, float32": found.trained * 4,
        }  # fmt: skip
    else:
        held = {"weights, float32": found.all * 4 * share}
        if args.fsdp:
            held["the whole policy to sample with, bfloat16"] = found.all * 2
    if args.reference:
        held["reference policy, float32"] = (found.trained * 4) * share
    if args.async_rollouts:
        held["the trained weights that play ahead, float32"] = found.trained * 4
    held |= {
        "gradients, float32": found.trained * 4 * share,
        "moments of Adam, float32": found.trained * 8 * share,
    }
    training: dict[str, float] = {}
    if args.fsdp:  # two layers gathered in bfloat16, one with gradients, and the embeddings all along
        outer = found.all - found.layer * config.num_hidden_layers
        training["gathered weights and gradients, bfloat16"] = 2 * (2 * outer + 3 * found.layer)
    if args.groups:
        training[f"gradients of {args.groups} groups, twice"] = 2 * args.groups * found.trained * 4 * share
    training |= {
        f"activations of {rows} x {length} tokens": train.kept,
        "logits, and what the backward pass needs": train.peak - train.kept,
    }
    if args.load_in_4bit:
        training["a weight in bfloat16"] = 2 * config.hidden_size * config.intermediate_size
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_token = 2 * config.num_hidden_layers * heads * size * 2
    gpu, row = args.gpu_gib * GIB, kv_token * args.max_context
    if args.engine == "vllm":
        rollout = {f"vLLM, {args.gpu_share:.0%} of the GPU": args.gpu_share * gpu}
        free = args.gpu_share * gpu - (found.all * 2) - GIB
    else:
        rollout = {
            f"keys and values of {args.episodes} x {args.max_context} tokens": float(args.episodes * row),
            "what a pass of 8192 tokens computes": float(read.peak),
            "logits that are sampled from": float(args.episodes * config.vocab_size * SAMPLED),
        }
        beside = read.peak + rollout["logits that are sampled from"]
        beside += sum(training.values()) if args.async_rollouts else 0.0
        free = gpu - CONTEXT - sum(held.values()) - (1 + FRAGMENTS) * beside
    fit = max(0, int(free / (1 + FRAGMENTS) / row))
    notes = [f"keys and values take {kv_token / 1024:g} KiB a token; {fit} episodes of full length fit at a time"]
    return Plan(held, training, rollout, gpu, fit, kv_token, notes, args.async_rollouts)


def _check(args: Args) -> None:
    if args.load_in_4bit and not args.lora_rank:
        raise Refused("--load-in-4bit needs adapters: weights of 4 bits cannot be trained")
    if args.fsdp and (args.lora_rank or args.gpus < 2):
        raise Refused("--fsdp is for all parameters (--lora-rank 0) on 2 GPUs or more")
    if args.fsdp and args.async_rollouts:
        raise Refused("--async-rollouts does not go with --fsdp: what plays ahead would need weights of its own")
    for name in ("gpus", "gpu_gib", "micro_batch_tokens", "max_context", "episodes"):
        if not getattr(args, name) > 0:
            raise Refused(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")


def advice(args: Args, config: Any = None) -> list[str]:
    """What to change where a plan does not fit: for each single change that helps, the flag and what it leads to; all
    of them together if none is enough.

    Args:
        args: Of the plan.
        config: See :func:`plan`.
    """
    changes: list[dict[str, Any]] = [
        {} if args.checkpointing else {"checkpointing": True},
        {"micro_batch_tokens": max(1024, args.micro_batch_tokens // 4)},
        {"episodes": max(1, min(args.episodes, plan(args, config).rows))},
        {} if args.load_in_4bit or not args.lora_rank else {"load_in_4bit": True},
        {"fsdp": True} if not args.lora_rank and args.gpus > 1 and not args.fsdp else {},
        {} if args.lora_rank else {"lora_rank": 16, "fsdp": False},
    ]
    lines, before = [], max(plan(args, config).needed.values())
    for change in changes:
        if all(getattr(args, name) == value for name, value in change.items()):
            continue
        after = plan(replace(args, **change), config)
        most = max(after.needed.values())
        if most < before:
            flags = " ".join(
                f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in change.items()
                if value is not False
            )  # fmt: skip
            lines.append(f"{flags}: {most / GIB:.1f} GiB, {'fits' if after.fits else 'still does not fit'}")
    return lines


def main() -> None:
    import tyro

    args = tyro.cli(Args, description=__doc__)
    try:
        config = config_of(args.model)
        found = plan(args, config)
        print(found)
        if not found.fits:
            print("\n".join(["lower it by one of", *advice(args, config)]))
            sys.exit(1)
    except Refused as refusal:
        sys.exit(str(refusal))


if __name__ == "__main__":
    main()
