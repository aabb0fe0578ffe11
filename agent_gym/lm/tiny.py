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

__all__ = ["PRESETS", "TEMPLATE", "Preset", "fresh", "preset", "tokenizer"]


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
        {"difficulty": [1, 2], "domains": ["shop"], "max_turns": 10},
        {"tool_calls": 2, "output_tokens": 48, "latency_ms": 200},
    ),
    "CodeAgent-v0": Preset(
        {"difficulty": 1, "max_turns": 8},
        {"tool_calls": 1.5, "output_tokens": 48, "read_tokens": 28, "latency_ms": 60}, 3000, 1500,
    ),
    "SQL-v0": Preset(
        {"difficulty": 1, "max_turns": 4},
        {"tool_calls": 1.2, "output_tokens": 40, "read_tokens": 5, "latency_ms": 50}, 4000, 2000,
    ),
    "WebLite-v0": Preset(
        {"difficulty": 1, "sites": ["booking"], "max_turns": 4},
        {"tool_calls": 1.2, "output_tokens": 32, "latency_ms": 160}, 4000, 450,
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

PIECES = r"""[\[\]{},"]*"[A-Za-z_]+":[\[{"]*|@[a-z.]+| [a-z]+(?![A-Za-z_@])|[A-Za-z_]+|\d| |[^A-Za-z_\d ]+"""


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 1,024 tokens and a chat template.

    What must be copied (names, digits) is cut off from what stands around it, so that it has the same tokens in a
    request, in a result and in a call. What is always the same (a JSON key with its punctuation) becomes one token.

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
        bos_token_id=None, eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LlamaForCausalLM(config)
    return Model(net, made, name="tiny", adapters=0)
