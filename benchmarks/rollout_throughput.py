"""Tokens a second of a whole rollout: sampling, environments and all, from the first reset to the last verdict.

The small model plays training tasks of an environment's preset, in groups of four episodes as the trainers do. Rounds
have different tasks. With ``--against`` an older checkout of this repository, whose cleanrl_llm/ppo_c3rl.py held the
rollout, plays the same tasks with the same weights, in turns. Tokens are the sampled ones. The processor's seconds are
given beside the clock's: on a machine with other work they say more.

    python benchmarks/rollout_throughput.py APIAgent-v0 --episodes 48 --rounds 7 --model runs/RUN/checkpoints/start
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent_gym.lm.chat import Chat
from agent_gym.lm.demonstrations import WarmStart, demonstrations, encoded, warm_start
from agent_gym.lm.engine import TorchEngine
from agent_gym.lm.models import Model, load
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import Limits, environments, play
from agent_gym.lm.seeds import stream
from agent_gym.lm.tiny import fresh, preset

GROUP = 4
LIMITS = Limits(new_tokens=48, context=512)

Rollout = Callable[[int], int]  # a round, to the tokens that were sampled in it


def warmed(env_id: str, updates: int) -> Model:
    """The small model after a warm start."""
    (env,) = environments(env_id, 1, chat=None, split="train", bounds={}, **preset(env_id).env_kwargs)
    dialogues = demonstrations(env, range(preset(env_id).demonstrations), wasteful=0.75, waste=0.35)
    model = fresh((text for dialogue in dialogues for text in dialogue.texts), 0)
    chat = Chat(model.tokenizer, stops=model.stops, sees_tools=False)
    warm_start(
        model, [encoded(chat, dialogue) for dialogue in dialogues], WarmStart(updates=updates),
        context=LIMITS.context, most_tokens=8192, seed=0, ranks=Ranks.start("cpu"),
    )  # fmt: skip
    return model


def tasks(number: int, episodes: int) -> list[int]:
    return [stream("task", number, i // GROUP) for i in range(episodes)]


def ours(model: Model, env_id: str, episodes: int) -> Rollout:
    chat = Chat(model.tokenizer, stops=model.stops, sees_tools=False)
    envs = environments(env_id, episodes, chat=chat, split="train", bounds={}, **preset(env_id).env_kwargs)
    engine = TorchEngine(model, stops=chat.stops)

    def rollout(number: int) -> int:
        draws = [stream("draw", number, i) for i in range(episodes)]
        played = play(engine, chat, envs, tasks(number, episodes), LIMITS, draws=draws)
        return sum(len(episode.logprobs) for episode in played)

    return rollout


def theirs(checkout: Path, folder: str, env_id: str, episodes: int) -> Rollout:
    """The rollout of an older version, whose trainer held all of it."""
    spec = importlib.util.spec_from_file_location("older", checkout / "cleanrl_llm" / "ppo_c3rl.py")
    assert spec is not None
    assert spec.loader is not None
    older: Any = importlib.util.module_from_spec(spec)
    sys.modules["older"] = older  # its dataclasses look themselves up there
    spec.loader.exec_module(older)
    args = older.Args(env_id=env_id, max_new_tokens=LIMITS.new_tokens, max_context=LIMITS.context)
    net, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    policy = older.Policy(net, tokenizer, False, False)
    kwargs = preset(env_id).env_kwargs | {"split": "train", "token_counter": policy.count}
    envs = [gym.make(env_id, disable_env_checker=True, **kwargs) for _ in range(episodes)]

    def rollout(number: int) -> int:
        played = [older.start(policy, env, seed) for env, seed in zip(envs, tasks(number, episodes), strict=True)]
        older.rollout(policy, played, args, number)
        return sum(len(episode.logprobs) for episode in played)

    return rollout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("env_id", nargs="?", default="APIAgent-v0")
    parser.add_argument("--episodes", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", help="folder of a checkpoint; by default one is warm-started first")
    parser.add_argument("--updates", type=int, help="of that warm start; by default the preset's")
    parser.add_argument("--against", type=Path, help="an older checkout of this repository")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            warmed(options.env_id, options.updates or preset(options.env_id).updates).save(folder)
            options.model = folder
        sides = {"this": ours(load(options.model, adapters=0), options.env_id, options.episodes)}
        if options.against:
            sides["older"] = theirs(options.against, options.model, options.env_id, options.episodes)
    rounds: dict[str, list[tuple[int, float, float]]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):  # the first one warms up
        for name, rollout in list(sides.items())[:: 1 if number % 2 else -1]:
            clock, processor = time.perf_counter(), time.process_time()
            tokens = rollout(number)
            rounds[name].append((tokens, time.perf_counter() - clock, time.process_time() - processor))
    result: dict[str, Any] = {"env_id": options.env_id, "episodes": options.episodes, "threads": options.threads}
    for name, measured in rounds.items():
        result[name] = {
            "tokens": median(tokens for tokens, _, _ in measured[1:]),
            "tokens a second": median(tokens / clock for tokens, clock, _ in measured[1:]),
            "tokens a processor second": median(tokens / processor for tokens, _, processor in measured[1:]),
        }
    for unit in ("tokens a second", "tokens a processor second") if options.against else ():
        result[f"ratio of {unit}"] = result["this"][unit] / result["older"][unit]
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
