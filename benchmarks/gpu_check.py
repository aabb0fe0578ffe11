"""What a GPU does with this code: one table and one JSON file, in a few minutes, without a network.

Models are made from configs, with random weights and adapters of rank 16. Of each shape:

    agreement    log-probabilities of the sampler (bfloat16) against those of the trainer, for the same tokens, and
                 against those in float32 where the model is small enough
    checkpoints  log-probabilities and gradients with checkpointing against those without
    memory       the most that an update allocates beside weights, gradients and moments, against `agent_gym.lm.plan`
    speed        tokens a second of a rollout and of an update, and the share of the device's arithmetic that the update
                 uses (MFU: what is computed twice is not counted)

Then each trainer runs two iterations with a ready-made small policy. Without a GPU the same code runs on small shapes;
memory is then that of the CPU's allocator, as torch's profiler sees it, and MFU is of a measured matrix product.

    python benchmarks/gpu_check.py --out gpu.json
"""

import argparse
import copy
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agent_gym.lm  # isort: skip  # noqa: F401  (before torch)
import torch
from transformers import AutoConfig

from agent_gym.files import write
from agent_gym.lm.engine import TorchEngine
from agent_gym.lm.models import Model, token_logprobs
from agent_gym.lm.plan import GIB, Args, config_of, counts, plan, shaped
from agent_gym.lm.runs import dumps

ROOT = Path(__file__).parent.parent
RANK = 16
DENSE = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # bfloat16, by the data sheets
ON_GPU = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B")
ON_CPU = {"0.9M": (128, 512, 4), "2.6M": (192, 768, 5), "5.5M": (256, 1024, 6)}  # width, that of the MLP, layers
SIZES = {  # rows of a rollout, tokens of a prompt, tokens written, tokens of an update's row, rows of an update
    "cuda": (64, 512, 128, 2048, 4),
    "cpu": (8, 48, 16, 256, 2),
}
TRAINERS = {
    "ppo_c3rl": ("--total-iterations", "2", "--num-episodes", "16", "--eval-episodes", "8"),
    "grpo_pcgrad": (
        "--total-iterations", "2", "--num-episodes", "16", "--pool-tasks", "8", "--calibration-samples", "1",
        "--eval-tasks", "4", "--eval-samples", "2",
    ),
    "rft": ("--rounds", "2", "--tasks-per-round", "8", "--eval-episodes", "8", "--pass-tasks", "4"),
}  # fmt: skip


def config(shape: str) -> Any:
    if shape not in ON_CPU:
        return config_of(shape)
    width, inner, layers = ON_CPU[shape]
    return AutoConfig.for_model(
        "qwen2", hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=2048, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: torch.device, times: int = 3) -> float:
    """The fastest of a few runs, after one that warms up."""
    found = []
    for _ in range(times + 1):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def most_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes that are allocated at most while it runs, above those at its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def arithmetic(device: torch.device, name: str) -> float:
    """Operations a second that the device has in bfloat16: of its data sheet, else measured."""
    known = [speed for part, speed in DENSE.items() if part in name]
    if known:
        return known[0]
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ a, device)


def backward(model: Model, rows: list[list[int]]) -> torch.Tensor:
    """An update's passes; the log-probabilities."""
    scores = token_logprobs(model, rows, [[(1, len(row))] for row in rows])
    (-scores.logprobs.mean()).backward()
    return scores.logprobs.detach()


def gradient(model: Model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.trained() if p.grad is not None])


def apart(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    difference = (a - b).abs()
    return {"mean": float(difference.mean()), "max": float(difference.max())}


def check(shape: str, device: torch.device, speed: float) -> dict[str, Any]:
    """Everything about one shape."""
    rows, prompt, written, length, count = SIZES[device.type]
    shape_of = config(shape)
    torch.manual_seed(0)
    model = shaped(shape_of, RANK, torch.bfloat16, False, device)
    for name, p in model.net.named_parameters():
        if "lora_B" in name:  # as after some updates
            torch.nn.init.normal_(p, std=0.02)
    found: dict[str, Any] = {"parameters": counts(shape_of, RANK).all}

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, model.vocabulary, (rows, prompt), generator=generator).tolist()
    engine = TorchEngine(model, stops=())
    turns: dict[int, Any] = {}

    def roll_out() -> None:
        for key, ids in enumerate(prompts):
            engine.submit(key, ids, written, key)
        while len(turns) < rows:
            turns.update({turn.key: turn for turn in engine.step()})
        engine.release(range(rows))

    def again() -> None:
        turns.clear()
        roll_out()

    found["rollout tokens a second"] = rows * written / seconds(again, device, times=1)
    most = min(rows, 8)
    played = [prompts[key] + turns[key].ids for key in range(most)]
    sampled = torch.tensor([logprob for key in range(most) for logprob in turns[key].logprobs])

    def scored(one: Model) -> torch.Tensor:
        with torch.no_grad():
            spans = [[(prompt, prompt + written)]]
            return torch.cat([token_logprobs(one, [row], spans).logprobs.cpu() for row in played])

    found["sampler against trainer"] = apart(sampled, scored(model))
    if found["parameters"] < 1e9:
        exact = copy.deepcopy(model)
        exact.net.float()
        found["sampler against float32"] = apart(sampled, scored(exact))
        del exact

    batch = torch.randint(1, model.vocabulary, (count, length), generator=generator).tolist()
    optimizer = torch.optim.AdamW(model.trained(), lr=1e-5)

    def update() -> None:
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    small = [row[: length // 4] for row in batch[:1]]
    logprobs = [backward(model, small)]
    gradients = [gradient(model)]
    optimizer.zero_grad(set_to_none=False)
    enable = getattr(model.net, "activation_checkpointing_enable", None) or model.net.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    logprobs.append(backward(model, small))
    gradients.append(gradient(model))
    found["checkpointing, log-probabilities"] = apart(*logprobs)
    found["checkpointing, gradients"] = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    del logprobs, gradients

    took = seconds(update, device, times=2)
    tokens = count * length
    heads = shape_of.num_attention_heads * (shape_of.hidden_size // shape_of.num_attention_heads)
    tied = shape_of.tie_word_embeddings
    multiplied = found["parameters"] - (0 if tied else shape_of.vocab_size * shape_of.hidden_size)
    operations = 4 * multiplied + 6 * length * heads * shape_of.num_hidden_layers  # below adapters no weight's gradient
    found["update tokens a second"] = tokens / took
    found["MFU of an update"] = tokens / took * operations / speed
    planned = plan(Args(micro_batch_tokens=tokens, max_context=length, lora_rank=RANK, reference=False), shape_of)
    for _ in range(2):  # the first has Adam's moments, and kernels that are chosen by trying
        measured = most_memory(lambda: backward(model, batch), device)
    found["memory of an update, GiB"] = measured / GIB
    found["planned, GiB"] = sum(planned.training.values()) / GIB
    found["planned / measured"] = found["planned, GiB"] / found["memory of an update, GiB"]
    if device.type == "cuda":
        found["all that is allocated, GiB"] = torch.cuda.max_memory_allocated(device) / GIB
        found["all that is planned, GiB"] = planned.allocated / GIB
    return found


def trained(trainer: str, device: torch.device) -> dict[str, Any]:
    """Two iterations of a trainer."""
    with tempfile.TemporaryDirectory() as folder:
        line = [
            sys.executable, str(ROOT / "cleanrl_llm" / f"{trainer}.py"), "--run-dir", folder, "--device", device.type,
            "--no-eval-start", *TRAINERS[trainer],
        ]  # fmt: skip
        begun = time.perf_counter()
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=600)
        took = time.perf_counter() - begun
        logs = [json.loads(row) for path in Path(folder).glob("*/metrics.jsonl") for row in path.open()]
    if done.returncode:
        return {"exit": done.returncode, "said": done.stderr.strip().splitlines()[-1:]}
    finite = all(math.isfinite(value) for row in logs for value in row.values() if isinstance(value, float))
    return {"exit": 0, "rows": len(logs), "finite": finite, "seconds": took}


def flat(found: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names as one."""
    lines: dict[str, Any] = {}
    for name, value in found.items():
        lines |= flat(value, f"{prefix}{name}, ") if isinstance(value, dict) else {prefix + name: value}
    return lines


def table(columns: dict[str, dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{title:>16}" for title in columns)]
    for name in names:
        cells = (column.get(name, "") for column in columns.values())
        texts = (f"{cell:.4g}" if isinstance(cell, float) else f"{cell}" for cell in cells)
        lines.append(name.ljust(width) + "".join(f"{text:>16}" for text in texts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", help="names of agent_gym.lm.plan.SHAPES")
    parser.add_argument("--trainers", nargs="*", default=list(TRAINERS), choices=list(TRAINERS))
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    device, begun = torch.device(options.device), time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    speed = arithmetic(device, name)
    result: dict[str, Any] = {
        "device": name, "torch": torch.__version__, "threads": torch.get_num_threads(), "TFLOP/s": speed / 1e12,
        "shapes": {}, "trainers": {},
    }  # fmt: skip
    for shape in options.shapes or (ON_GPU if device.type == "cuda" else ON_CPU):
        result["shapes"][shape] = check(shape, device, speed)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for trainer in options.trainers:
        result["trainers"][trainer] = trained(trainer, device)
    result["seconds"] = time.perf_counter() - begun
    print(f"{name}, {speed / 1e12:.3g} TFLOP/s in bfloat16, {result['seconds']:.0f} s\n")
    print(table({shape: flat(found) for shape, found in result["shapes"].items()}))
    if result["trainers"]:
        print(f"\n{table(result['trainers'])}")
    if options.out:
        write(options.out, dumps(result, indent=1) + "\n")


def processor() -> str:
    """The CPU's name."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
