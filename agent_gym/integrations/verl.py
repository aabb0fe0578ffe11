"""The environments in verl's trainer: an agent loop, a data set and a reward function (docs/verl.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import gymnasium as gym

import agent_gym  # noqa: F401  # registers the environments
from agent_gym.integrations.conversation import check_verdict, scores
from agent_gym.integrations.rows import write_rows
from agent_gym.lm.chat import Chat
from agent_gym.messages import Message, answers

try:
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
except ImportError as error:
    packages = "verl cachetools fastapi uvicorn"  # of which verl's own package names the first alone
    raise ImportError(f"agent_gym.integrations.verl needs verl: pip install {packages} ({error})") from error

__all__ = ["AgentGymLoop", "compute_score", "write_dataset"]

LOOP = "agent_gym"
"""The name of the loop in a row of the data set, and in the file that ``agent_loop_config_path`` names."""

_chat = cache(Chat)  # of a tokenizer; verl makes a loop an episode


class AgentGymLoop(AgentLoopBase):
    """Plays an episode of an environment: verl's servers write the turns, the environment answers them and gives the
    reward.

    The ids are those of :class:`agent_gym.lm.chat.Chat`: what was sampled is appended as it was, and the answers are
    encoded apart. The environment reads the format that the model's template teaches, and counts the model's tokens.
    The row of the data set names the task in ``extra_info``, as :func:`write_dataset` writes it.

    Args:
        env_id: Gymnasium id, such as ``"APIAgent-v0"``.
        env_kwargs: Of ``gym.make``.
    """

    def __init__(self, *args: Any, env_id: str, env_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.chat = _chat(self.tokenizer)
        given: Any = OmegaConf.to_container(OmegaConf.create(dict(env_kwargs or {})))  # hydra gives kinds of its own
        self._make = partial(
            gym.make, env_id, **{"parser": self.chat.parser, "token_counter": self.chat.count, **given}
        )

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Play one episode.

        Args:
            sampling_params: Of the servers.
            **row: Of the data set.

        Returns:
            The ids, which of them the model wrote, and the reward; in ``reward_extra_info`` the episode in numbers. An
            episode that outgrows ``rollout.response_length`` ends there, with the reward 0.

        Raises:
            ValueError: If the task is not what the row says, or its prompt is longer than ``rollout.prompt_length``.
            InfraError: There is no verdict, as what runs the environment failed. verl cannot leave an episode out.
        """
        env = await _aside(self._make)
        try:
            return await self._played(env, sampling_params, row["extra_info"])
        finally:
            await _aside(env.close)

    async def _played(self, env: gym.Env, sampling_params: dict[str, Any], task: Mapping[str, Any]) -> AgentLoopOutput:
        chat, most, request = self.chat, self.rollout_config.response_length, uuid4().hex
        _, info = await _aside(env.reset, options={"task": task["task"]})
        if task["task_hash"] != info["task_hash"]:
            raise ValueError(
                f"the task {task['task']!r} has the content {info['task_hash']} here, the data set says "
                f"{task['task_hash']}: give the loop the arguments that it was written with"
            )
        prompt = await _aside(chat.prompt, info["messages"], info["tools"])
        if len(prompt) > self.rollout_config.prompt_length:
            raise ValueError(
                f"the prompt of the task {task['task']!r} has {len(prompt)} tokens, more than rollout.prompt_length, "
                f"{self.rollout_config.prompt_length}"
            )
        ids, mask, logprobs = list[int](), list[int](), list[float]()
        spent = {"generate_sequences": 0.0, "tool_calls": 0.0}
        turns, reward, fields = 0, 0.0, dict[str, Any]()
        while len(ids) < most:
            begun = time.perf_counter()
            room = min(sampling_params.get("max_tokens") or most, most - len(ids))
            stops = sorted(chat.stops.union(sampling_params.get("stop_token_ids") or ()))
            turn = await self.server_manager.generate(
                request_id=request, prompt_ids=prompt + ids,
                sampling_params={**sampling_params, "max_tokens": room, "stop_token_ids": stops},
            )  # fmt: skip
            spent["generate_sequences"] += time.perf_counter() - begun
            first = {name: fields[name] for name in ("min_global_steps",) if name in fields}
            fields = {**turn.extra_fields, **first}
            ids += turn.token_ids
            mask += [1] * len(turn.token_ids)
            logprobs += turn.log_probs or []
            closed = bool(turn.token_ids) and turn.token_ids[-1] in chat.stops
            if not closed and len(ids) >= most:
                break
            turns, begun = turns + 1, time.perf_counter()
            text = chat.text(turn.token_ids)
            cut = {"role": "assistant", "content": text, "finish_reason": "length"}
            observation, earned, terminated, truncated, info = await _aside(env.step, text if closed else cut)
            spent["tool_calls"] += time.perf_counter() - begun
            if terminated or truncated:
                check_verdict(info)
                reward = float(earned)
                break
            reply = await _aside(chat.reply, answers(observation, info["tool_results"]), closed)
            ids += reply
            mask += [0] * len(reply)
            logprobs += [0.0] * len(reply) if logprobs else []
        return AgentLoopOutput(
            prompt_ids=prompt, response_ids=ids[:most], response_mask=mask[:most],
            response_logprobs=logprobs[:most] or None, reward_score=reward, num_turns=2 * turns, metrics=spent,
            extra_fields={
                **fields, "turn_scores": [], "tool_rewards": [],
                "reward_extra_info": {**scores(info), "turns": float(turns)},
            },
        )  # fmt: skip


async def _aside(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what takes its time in a thread."""
    return await asyncio.to_thread(function, *args, **kwargs)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any], **env_kwargs: Any
) -> dict[str, float]:
    """A reward function for verl's own loop of a single turn: the turn is played, and is the whole episode.

    Args:
        data_source: Gymnasium id.
        solution_str: The turn: calls, of which one ends the episode, or the final answer.
        ground_truth: Not used: the environment's verifier judges.
        extra_info: With ``task``, the id of the task.
        **env_kwargs: Of ``gym.make``; verl's ``reward_kwargs``.

    Returns:
        ``score``, the reward, and the episode in numbers.

    Raises:
        InfraError: There is no verdict, as what runs the environment failed.
    """
    env = gym.make(data_source, **{**env_kwargs, "max_turns": 1})
    try:
        env.reset(options={"task": extra_info["task"]})
        *_, reward, _, _, info = env.step(solution_str)
    finally:
        env.close()
    check_verdict(info)
    return {"score": float(reward), **scores(info)}


def write_dataset(path: str | Path, env_id: str, n: int, seed: int = 0, **kwargs: Any) -> None:
    """Write a data set for verl (``data.train_files``): one JSON line a task.

    Args:
        path: Ends with ``.jsonl``.
        env_id: Gymnasium id.
        n: How many tasks: the first of a set, or as the seeds from ``seed`` on draw them; see ``task_list``.
        seed: The first seed.
        **kwargs: Of ``gym.make``.

    Raises:
        gymnasium.error.Error, ImportError, TypeError, ValueError: If the path ends otherwise, or the environment cannot
            be made.
    """

    def row(prompt: list[Message], task: str, task_hash: str) -> dict[str, Any]:
        return {
            "prompt": prompt, "data_source": env_id, "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": task, "task": task, "task_hash": task_hash}, "agent_name": LOOP,
        }  # fmt: skip

    write_rows(path, env_id, kwargs, n, seed, row)
