"""The small model that a laptop trains in minutes: 1 M parameters, its tokenizer, and what it is asked to do."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agent_gym.lm.models import Model

__all__ = ["PRESETS", "TEMPLATE", "Preset", "begin_with_copying", "fresh", "preset", "tokenizer"]


@dataclass(frozen=True)
class Preset:
    """What the small model can learn of an environment in minutes.

    Args:
        env_kwargs: Of ``gym.make``: tasks of a fitting size.
        budget: Bounds of an episode's mean cost by channel, in this model's own tokens; the others are free.
        demonstrations: Played for the warm start.
        updates: Of the warm start.
    """

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)
    demonstrations: int = 6000
    updates: int = 900


PRESETS: dict[str, Preset] = {
    "APIAgent-v0": Preset(
        {"difficulty": [1, 4], "domains": ["shop", "calendar", "mail"], "max_turns": 16},
        {"tool_calls": 4, "output_tokens": 100, "latency_ms": 400},
    ),
    "CodeAgent-v0": Preset(
        {"difficulty": 1, "max_turns": 8},
        {"tool_calls": 1.5, "output_tokens": 48, "read_tokens": 28, "latency_ms": 60},
    ),
    "SQL-v0": Preset(
        {"difficulty": [1, 2], "max_turns": 8},
        {"tool_calls": 2, "output_tokens": 60, "read_tokens": 60, "latency_ms": 100},
    ),
    "WebLite-v0": Preset(
        {"difficulty": [1, 2], "sites": ["booking"], "max_turns": 8},
        {"tool_calls": 2, "output_tokens": 48, "latency_ms": 320},
    ),
}  # fmt: skip


def preset(env_id: str) -> Preset:
    """The preset of an environment; one without bounds and of the usual length for any other."""
    return PRESETS.get(env_id, Preset())


TEMPLATE = (  # no room for tool schemas: the small model knows the tools from the demonstrations
    "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The chat template of the small model's tokenizer."""

PIECES = (
    r"""[\[\]{},"]*"[A-Za-z_]+":[\[{"]*|" \[|"[A-Z][a-z]+ |"""
    r"""@[a-z.]+| [a-z]+(?![A-Za-z_@])|[A-Za-z_]+|\d\d?| |[^A-Za-z_\d ]+"""
)


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 1,024 tokens and a chat template.

    What must be copied (names, digits) is cut off from what stands around it, so that it has the same tokens in a
    request, in a result and in a call. What is always the same (a JSON key with its punctuation; what stands between an
    element's label and its number, and before its name) becomes one token, so that what belongs together is near.

    Args:
        texts: What the model will read and write.
    """
    bpe = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|tool|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((re.sub("</?tool_call>", " ", text) for text in texts), trainer)
    bpe.add_tokens(["<tool_call>", "</tool_call>"])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    made.chat_template = TEMPLATE
    return made


def fresh(texts: Iterable[str], seed: int) -> Model:
    """A small model that has learnt nothing yet, on the CPU.

    Args:
        texts: What it will read and write; its tokenizer is made from them.
        seed: Of its weights.
    """
    made = tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True, initializer_range=0.06,
        attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 1e7}, bos_token_id=None,
        eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LlamaForCausalLM(config)
        begin_with_copying(net)
    return Model(net, made, name="tiny", adapters=0)


@torch.no_grad()
def begin_with_copying(net: LlamaForCausalLM) -> None:
    """Set the attention of a fresh model so that it can copy from its context before it has learnt anything.

    Copying needs two layers that agree (induction heads: Olsson et al. 2022), which from random weights comes late and
    suddenly. Here they agree from the start, in the manner of mimetic initialisation (Trockman and Kolter 2023). Three
    heads of the first layer look one, two and three tokens back and note what they saw; the heads of the layers between
    the first and the last look for a place where what was noted is what stands here, and write what stands there.

    Args:
        net: With biases in its attention, tied embeddings, three layers and four heads or more.
    """
    size, heads = net.config.hidden_size, net.config.num_attention_heads
    width = size // heads  # of a head; what a head notes of a token is as wide
    angle = net.model.rotary_emb.inv_freq  # turned from one position to the next, shape [width / 2]
    scale = net.config.initializer_range
    basis = torch.linalg.qr(torch.randn(size, size))[0]
    seen, noted = basis[:width], basis[width:].split(width)  # where a token's features are read, and where notes are

    for layer in net.model.layers:  # quiet at first, or their noise drowns the notes
        layer.mlp.down_proj.weight *= 0.1
        layer.self_attn.o_proj.weight *= 0.1

    first = net.model.layers[0].self_attn
    loud = torch.where(angle > 0.04, 6.5, 0.0)  # fast rotations tell positions that are near each other
    for head, note in enumerate(noted):
        rows, back = slice(head * width, (head + 1) * width), (head + 1) * angle
        first.q_proj.weight[rows] *= 0.1
        first.k_proj.weight[rows] *= 0.1
        first.q_proj.bias[rows] = torch.cat([loud * back.cos(), -loud * back.sin()])
        first.k_proj.bias[rows] = torch.cat([loud, torch.zeros_like(loud)])
        first.v_proj.weight[rows] = seen
        first.o_proj.weight[:, rows] = note.T * 2.0 * scale

    slow = torch.nonzero(angle < 0.005)[:, 0]  # rotations that hardly change over an episode can compare content
    compared = torch.cat([slow, slow + width // 2])
    for layer in net.model.layers[1:-1]:
        attention, copied = layer.self_attn, torch.linalg.qr(torch.randn(size, size))[0]
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            mixed = torch.linalg.qr(torch.randn(width, width))[0][: len(compared)]
            attention.q_proj.weight[rows] *= 0.3
            attention.k_proj.weight[rows] *= 0.3
            one = len(compared) if head < heads // 2 else len(compared) // 2  # the other heads compare two tokens
            attention.q_proj.weight[rows][compared] += 2.5 * mixed @ seen
            attention.k_proj.weight[rows][compared] += 2.5 * mixed @ noted[0]
            attention.q_proj.weight[rows][compared[one:]] += 2.5 * mixed[one:] @ (noted[0] - seen)
            attention.k_proj.weight[rows][compared[one:]] += 2.5 * mixed[one:] @ (noted[1] - noted[0])
            attention.v_proj.weight[rows] = copied[rows]
            attention.o_proj.weight[:, rows] = copied[rows].T * 2.0 * scale


if __name__ == "__main__":
    from agent_gym.lm.making import main

    main()
