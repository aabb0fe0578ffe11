"""A model behind an endpoint as a teacher: its episodes, side by side."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import gymnasium as gym

from agent_gym import Verdict, tool_env
from agent_gym.evaluation import endpoint as client
from agent_gym.evaluation.endpoint import ContextExceeded
from agent_gym.lm.errors import Refused
from agent_gym.lm.rollout import Episode
from agent_gym.messages import exchange

__all__ = ["Endpoint", "EndpointError", "play_endpoint"]


class EndpointError(Refused, client.EndpointError):
    """What was wrong with the endpoint or its answers, in one sentence."""


class Endpoint(client.Endpoint):
    """As :class:`agent_gym.evaluation.endpoint.Endpoint`; what is wrong is Refused."""

    error = EndpointError


def play_endpoint(
    endpoint: Endpoint,
    envs: Sequence[gym.Env],
    seeds: Sequence[int],
    draws: Sequence[int],
    on_done: Callable[[int, Episode, int], None],
) -> None:
    """Let an endpoint play an episode on each task. Its messages are the actions; there are no ids.

    Each episode goes on by itself in a thread of its own, as many at a time as there are environments.

    Args:
        endpoint: Who plays.
        envs: Made alike; an episode takes a free one.
        seeds: One a task.
        draws: One an episode, for the sampling of its requests.
        on_done: Told of each episode as it ends, in the caller's thread: its place, itself, and the tokens it took (by
            the server's count, or else by the environment's).

    Raises:
        EndpointError: If a request failed for good. Its episode is dropped, no other is begun, and those that are being
            played go on to their end first.
    """
    free: queue.SimpleQueue[gym.Env] = queue.SimpleQueue()
    for env in envs:
        free.put(env)
    halt, fault = threading.Event(), None

    def play(index: int) -> tuple[Episode, int] | None:
        if halt.is_set():
            return None
        env = free.get()
        try:
            return _played(endpoint, env, index, seeds[index], draws[index])
        except EndpointError:
            halt.set()
            raise
        finally:
            free.put(env)

    with ThreadPoolExecutor(max(1, len(envs))) as pool:
        futures = {pool.submit(play, index): index for index in range(len(seeds))}
        try:
            for future in as_completed(futures):
                try:
                    played = future.result()
                except EndpointError as error:
                    fault = fault or error
                    continue
                if played is not None:
                    on_done(futures[future], *played)
        except BaseException:
            halt.set()
            raise
    if fault:
        raise fault


def _played(endpoint: Endpoint, env: gym.Env, index: int, seed: int, draw: int) -> tuple[Episode, int]:
    """An episode from its reset to its end, and the tokens it took."""
    observation, info = env.reset(seed=seed)
    episode = Episode.begun(index, env, seed, observation, info)
    messages, tools, spent = list(info["messages"]), info["tools"], 0
    while True:
        try:
            message, usage = endpoint.ask(messages, tools, draw)
        except ContextExceeded:
            episode.reward, episode.verdict = 0.0, Verdict("fail", "context", 0.0).to_dict()
            return episode, spent
        turn = tool_env(env).read(message)
        over = episode.note(message, env.step(message))
        step = episode.steps[-1]
        spent += int(step.cost["output_tokens"]) if usage is None else usage["completion_tokens"]
        if over:
            return episode, spent
        messages += exchange(turn, step.tool_results, episode.observation, messages)
