"""vLLM as the engine: in the process and on the GPU of the training, whose weights it follows."""

import copy
import gc
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from agent_gym.lm.chat import Chat
from agent_gym.lm.engine import GIB, Engine, TorchEngine, Turn
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import TRAINED, Model

__all__ = ["VLLMEngine", "engine_of"]


def engine_of(model: Model, chat: Chat, args: Any) -> Engine:
    """The engine that a trainer's arguments ask for.

    Args:
        model: Writes.
        chat: Knows the ids that end a turn.
        args: ``engine``, ``temperature``, ``kv_gib``, ``gpu_share`` and ``max_context``.

    Raises:
        Refused: It cannot serve this model.
    """
    if args.engine == "torch":
        return TorchEngine(model, stops=chat.stops, temperature=args.temperature, kv_gib=args.kv_gib)
    return VLLMEngine(
        model, stops=chat.stops, context=args.max_context, temperature=args.temperature, kv_gib=args.kv_gib,
        gpu_share=args.gpu_share,
    )  # fmt: skip


class VLLMEngine:
    """The engine on vLLM, one in each process.

    A row is a request, added when it is submitted. Prefixes are cached in blocks, over turns and between rows. Weights
    are handed over in memory; adapters as a folder with a new name at each update, since vLLM keys its caches by that.
    On a GPU, weights and cache leave it when no row is left, and come back with the next row or update.

    A row's draws depend on its seed alone, but they are not those of :class:`TorchEngine`, and the last digits of
    log-probabilities depend on the rows beside it.
    """

    def __init__(
        self,
        model: Model,
        *,
        stops: Iterable[int],
        context: int,
        temperature: float = 1.0,
        kv_gib: float | None = None,
        gpu_share: float = 0.3,
    ) -> None:
        """
        Args:
            model: Writes.
            stops: Ids that end a turn.
            context: Tokens of a row, at most.
            temperature: Logits are divided by it.
            kv_gib: Memory of the cache in GiB. None is what ``gpu_share`` leaves on CUDA, and 1 on the CPU.
            gpu_share: Share of the GPU's memory for weights and cache.

        Raises:
            Refused: vLLM cannot serve the model.
        """
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where the weights are
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        model = model.whole()
        self.context, self.cuda = context, model.device.type == "cuda"
        self.rows: dict[int, tuple[list[int], int, int] | None] = {}  # ids, most, seed; None between two turns
        self.awake, self.version, self.adapter = True, 0, None
        self.folder = tempfile.TemporaryDirectory(prefix="agent-gym-vllm-")
        self._request = LoRARequest
        self._sampling = partial(
            SamplingParams, temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, logprobs=0, ignore_eos=True,
            stop_token_ids=sorted(stops), detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        base = model.net.get_base_model() if model.adapters else model.net
        dtype = torch.bfloat16 if self.cuda and model.autocast else base.get_input_embeddings().weight.dtype
        memory = kv_gib or (None if self.cuda else 1.0)
        shape = Path(self.folder.name, "base")  # its config, but no weights
        config = copy.deepcopy(base.config)
        config.architectures = [type(base).__name__]
        config.__dict__.pop("quantization_config", None)  # of a file whose weights are floats here
        config.save_pretrained(shape)
        place: dict[str, Any] = {"model": str(shape), "load_format": "dummy"}
        if not self.cuda:  # of a prompt in pieces, vLLM turns back the draws, which a CPU's generator cannot do
            place |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(context, 8192)}
        if model.four_bit:
            place |= {"model": model.name, "load_format": "bitsandbytes", "quantization": "bitsandbytes"}
        try:
            self.llm = LLMEngine.from_engine_args(
                EngineArgs(
                    **place, skip_tokenizer_init=True, generation_config="vllm", max_model_len=context,
                    dtype=str(dtype).removeprefix("torch."), logprobs_mode="processed_logprobs",
                    enable_prefix_caching=True, enforce_eager=not self.cuda, disable_log_stats=True,
                    enable_lora=model.adapters > 0, max_lora_rank=max(8, 1 << (model.adapters - 1).bit_length()),
                    distributed_executor_backend="external_launcher" if dist.is_initialized() else None,
                    gpu_memory_utilization=gpu_share, kv_cache_memory_bytes=memory and int(memory * GIB),
                    enable_sleep_mode=self.cuda,
                )
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise Refused(f"vLLM cannot serve {model.name}: {str(error).strip().splitlines()[0]}") from error
        gc.unfreeze()  # what vLLM has frozen, or it would outlive the engine
        self.llm.engine_core._finalizer.atexit = False  # at exit the processes have left their group already
        if not model.four_bit:
            self._load(base)
        if model.adapters:
            self._adapt(model)

    def submit(self, key: int, ids: Sequence[int], most: int, seed: int) -> None:
        if not ids or most < 1:
            raise ValueError(f"row {key} has {len(ids)} ids and may write {most}; both must be 1 or more")
        if self.rows.get(key):
            raise ValueError(f"row {key} is submitted again before its turn has ended")
        if len(ids) + most > self.context:
            raise Refused(f"a row of {len(ids) + most} tokens is longer than the context of {self.context}")
        self._wake()
        self.rows[key] = list(ids), most, seed
        self._add(key)

    def step(self) -> list[Turn]:
        turns = []
        for answer in self.llm.step():
            key, found = int(answer.request_id), answer.outputs[0]
            ids = list(found.token_ids)
            logprobs = [among[i].logprob for i, among in zip(ids, found.logprobs, strict=True)]
            turns.append(Turn(key, ids, logprobs, found.finish_reason == "stop"))
            self.rows[key] = None
        return turns

    def update(self, model: Model) -> None:
        self._wake()
        writing = [key for key, row in self.rows.items() if row]
        self.llm.abort_request([str(key) for key in writing])
        if model.adapters:
            self._adapt(model)
        else:
            self._load(model.whole().net)
        for key in writing:
            self._add(key)

    def release(self, keys: Iterable[int]) -> None:
        self.llm.abort_request([str(key) for key in keys if self.rows.pop(key, None)])
        if self.cuda and self.awake and not self.rows:
            self.llm.sleep(level=1)
            self.awake = False

    def _wake(self) -> None:
        if not self.awake:
            torch.cuda.empty_cache()
            self.llm.wake_up()
            self.awake = True

    def _add(self, key: int) -> None:
        row = self.rows[key]
        assert row is not None
        ids, most, seed = row
        prompt, sampling = {"prompt_token_ids": ids}, self._sampling(max_tokens=most, seed=seed % 2**63)
        self.llm.add_request(str(key), prompt, sampling, lora_request=self.adapter)

    def _load(self, base: Any) -> None:
        """Take over all weights but the adapters'."""
        weights = ((name.replace(".base_layer.", "."), value) for name, value in base.state_dict().items()
                   if "lora_" not in name)  # fmt: skip
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()

    def _adapt(self, model: Model) -> None:
        """Take over the adapters; those before are dropped."""
        self.version += 1
        path = Path(self.folder.name, f"policy-v{self.version}")
        temporary = path.with_name(f".{path.name}.tmp")
        model.net.save_pretrained(temporary, selected_adapters=[TRAINED], save_embedding_layers=False)
        temporary.rename(path)
        if self.adapter is not None:
            self.llm.remove_lora(self.adapter.lora_int_id)
            shutil.rmtree(self.adapter.lora_path)
        self.adapter = self._request(path.name, self.version, str(path))
        self.llm.add_lora(self.adapter)
