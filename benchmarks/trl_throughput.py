"""Tokens a second of grpo_pcgrad.py and of TRL's GRPOTrainer, side by side in one process.

Both get the same model (the tiny one, in float32, from the same weights), the same single-turn prompts, the same number
of episodes of each, the same longest answer, AdamW, no KL, no dropout, no gradient checkpointing, and the same number
of threads. Rewards are coin flips, so that every group has something to compare. The two take turns, block by block;
the first step of each block is left out, and the ratio is that of the medians. Tokens are the sampled ones.

The training step is everything after the rollout: loss, backward pass, clipping, optimiser. The whole iteration adds
the rollout: sampling, and what comes after it, which is a step of the environment here and the reward function there.

    pip install trl
    python benchmarks/trl_throughput.py      # writes benchmarks/trl_throughput.json
    python benchmarks/trl_throughput.py --device cuda --engine vllm --model Qwen/Qwen2.5-0.5B-Instruct

On a GPU both train all parameters, in float32 with bfloat16 autocast; with vLLM both sample with it, in this process.
"""

import argparse
import copy
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent_gym.lm import tiny
from agent_gym.lm.chat import Chat
from agent_gym.lm.demonstrations import demonstrations
from agent_gym.lm.models import load
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import Limits, environments
from agent_gym.lm.vllm_engine import engine_of

ROOT = Path(__file__).parent.parent
TRAINER = ROOT / "cleanrl_llm" / "grpo_pcgrad.py"
TASK: dict[str, Any] = {"difficulty": [1, 2], "domains": ["shop"], "max_turns": 1}


def load_trainer() -> Any:
    spec = importlib.util.spec_from_file_location("grpo_pcgrad", TRAINER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grpo_pcgrad"] = module
    spec.loader.exec_module(module)
    return module


trainer = load_trainer()
timer = time.perf_counter


def clock() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return timer()


ALONE = Ranks()


def settings(options: argparse.Namespace, surgery: str) -> Any:
    args = trainer.Args(
        env_kwargs=(json.dumps(TASK),), num_episodes=options.episodes, group_size=options.group_size,
        max_new_tokens=options.tokens, kl_coef=0.0, surgery=surgery, device=options.device,
        engine=options.engine,
    )  # fmt: skip
    trainer.settle(args, ALONE)
    return args


def staged(model: Any, chat: Chat, args: Any) -> Any:
    """What plays our episodes."""
    pool = environments("APIAgent-v0", args.num_episodes, chat=chat, split="train", bounds={}, **TASK)
    return trainer.Stage(engine_of(model, chat, args), chat, [pool], Limits(args.max_new_tokens, args.max_context))


def ours(model: Any, chat: Chat, tasks: list[Any], args: Any, steps: int) -> list[tuple[float, float, int]]:
    """Seconds of the rollout, seconds of the training step, and sampled tokens, of each step but the first."""
    model = copy.deepcopy(model)
    stage = staged(model, chat, args)
    optimizer = torch.optim.AdamW(model.trained(), lr=args.learning_rate, weight_decay=0.0)
    rng, found = np.random.default_rng(0), []
    chosen = [i for i in range(len(tasks)) for _ in range(args.group_size)]
    for step in range(steps):
        began = clock()
        stage.engine.update(model)
        draws = [1000 * step + i for i in range(len(chosen))]
        episodes = trainer.roll_out(stage, tasks, chosen, draws)
        samples = [
            trainer.Sample(e, task, task, task % args.groups, e.trajectory())
            for e, task in zip(episodes, chosen, strict=True)
        ]
        flips = rng.integers(0, 2, len(episodes)).astype(float).reshape(-1, args.group_size)
        flips[:, 0], flips[:, 1] = 0.0, 1.0
        advantage = np.concatenate([trainer.grpo(row) for row in flips])
        rolled = clock()
        trainer.update(model, optimizer, samples, advantage, args.groups, args, step, ALONE)
        done = clock()
        found.append((rolled - began, done - rolled, sum(len(e.logprobs) for e in episodes)))
    return found[1:]


def theirs(model: Any, prompts: list[str], options: argparse.Namespace) -> list[tuple[float, float, int]]:
    """The same of TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rng = np.random.default_rng(0)
    sampled: list[int] = []
    preparing: list[float] = []
    ends: list[float] = []

    def flip(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        sampled.append(sum(map(len, completion_ids)))
        flips = rng.integers(0, 2, len(completions)).astype(float).reshape(-1, options.group_size)
        flips[:, 0], flips[:, 1] = 0.0, 1.0
        return list(flips.flatten().tolist())

    class Timed(GRPOTrainer):
        def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
            began = clock()
            result = super()._prepare_inputs(*args, **kwargs)
            preparing.append(clock() - began)
            return result

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(clock())

    cuda, vllm = options.device == "cuda", options.engine == "vllm"
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)  # vLLM reads it there
        config = GRPOConfig(
            output_dir=folder, use_cpu=not cuda, bf16=cuda, fp16=False, use_vllm=vllm, vllm_mode="colocate",
            vllm_gpu_memory_utilization=0.3, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, max_steps=options.steps, beta=0.0, num_iterations=1,
            per_device_train_batch_size=options.episodes, num_generations=options.group_size, steps_per_generation=1,
            gradient_accumulation_steps=1, max_completion_length=options.tokens, temperature=1.0, top_k=0, top_p=1.0,
            learning_rate=5e-4, lr_scheduler_type="constant", max_grad_norm=1.0, gradient_checkpointing=False,
            loss_type="bnpo", shuffle_dataset=False, seed=1,
        )  # fmt: skip
        timed = Timed(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), reward_funcs=flip, args=config,
            processing_class=model.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompts * options.steps}), callbacks=[Clock()],
        )  # fmt: skip
        timed.train()
    assert len(preparing) == len(ends) == len(sampled) == options.steps
    whole = np.diff(ends)
    return [(p, w - p, n) for p, w, n in zip(preparing[1:], whole.tolist(), sampled[1:], strict=True)]


def main(options: argparse.Namespace) -> None:
    global timer
    timer = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    args = settings(options, "none")
    (env,) = environments("APIAgent-v0", 1, chat=None, split="train", bounds={}, **TASK)
    if options.model:
        model = load(options.model, adapters=0, device=options.device, checkpointing=False)
    else:
        dialogues = demonstrations(env, range(400), wasteful=0.75, waste=0.35)
        model = tiny.fresh((text for dialogue in dialogues for text in dialogue.texts), 1).to(options.device)
    chat = Chat(model.tokenizer, stops=model.stops, sees_tools=bool(options.model))
    count = options.episodes // options.group_size
    tasks = trainer.find_tasks(staged(model, chat, args), list(range(count)), [0] * count, args)
    prompts = []
    for task in tasks:
        _, info = env.reset(seed=task.seed)
        with_tools: dict[str, Any] = {"tools": info["tools"]} if options.model else {}
        prompts.append(
            model.tokenizer.apply_chat_template(
                info["messages"], tokenize=False, add_generation_prompt=True, **with_tools
            )
        )

    measured: dict[str, list[tuple[float, float, int]]] = {"grpo_pcgrad none": [], "grpo_pcgrad pcgrad": [], "trl": []}
    for _ in range(options.rounds):
        for surgery in ("none", "pcgrad"):
            own = settings(options, surgery)
            measured[f"grpo_pcgrad {surgery}"] += ours(model, chat, tasks, own, options.steps)
        measured["trl"] += theirs(model, prompts, options)

    speed: dict[str, dict[str, float]] = {}
    for name, rows in measured.items():
        speed[name] = {
            "training step": float(np.median([n / update for _, update, n in rows])),
            "whole iteration": float(np.median([n / (rollout + update) for rollout, update, n in rows])),
            "tokens a step": float(np.mean([n for *_, n in rows])),
        }
    parts = ("training step", "whole iteration")
    ratio = {name: {part: speed[name][part] / speed["trl"][part] for part in parts} for name in speed if name != "trl"}
    import transformers
    import trl

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    result = {"settings": vars(options), "versions": versions, "tokens_per_second": speed, "ratio_to_trl": ratio}
    target = ROOT / "benchmarks" / "trl_throughput.json"
    target.with_suffix(".tmp").write_text(json.dumps(result, indent=1) + "\n")
    target.with_suffix(".tmp").replace(target)
    for name, values in speed.items():
        shown = ", ".join(f"{part} {values[part]:.0f} tokens/s" for part in parts)
        print(f"{name}: {shown}", *(f"{ratio[name][part]:.2f} x TRL's {part}" for part in parts if name in ratio))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=64, help="episodes a step")
    parser.add_argument("--group-size", type=int, default=8, help="episodes of one prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer, at most")
    parser.add_argument("--steps", type=int, default=5, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=4, help="blocks of each")
    parser.add_argument("--model", help="a transformers name or folder; by default the tiny model, untrained")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--engine", choices=["torch", "vllm"], default="torch", help="what samples, on both sides")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: with one thread, on a busy machine"
    )
    main(parser.parse_args())
