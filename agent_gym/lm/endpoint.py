"""Agents behind an endpoint that speaks OpenAI's chat completions: a teacher, a model to be compared."""

import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.formats import Turn
from agent_gym.lm.errors import Refused
from agent_gym.lm.rollout import Episode, answers
from agent_gym.tools import dump

__all__ = ["Endpoint", "EndpointError", "play_endpoint"]


class EndpointError(Refused):
    """What was wrong with the endpoint's answers, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible server. A key is taken from the variable OPENAI_API_KEY.

    Args:
        url: Up to the version, such as ``http://localhost:8000/v1``.
        model: Its name there.
        timeout: Seconds without a byte of an answer, at most.
        temperature: Of the sampling.
        max_tokens: Of one turn.

    Raises:
        Refused: For arguments that cannot work.
    """

    url: str
    model: str
    timeout: float = 60.0
    temperature: float = 1.0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise Refused(f"the endpoint's address {self.url} must begin with http:// or https://")
        if not self.model:
            raise Refused(f"the endpoint {self.url} needs a model, by its name there")
        if not self.timeout > 0:
            raise Refused(f"the endpoint's timeout must be above 0 seconds, not {self.timeout:g}")

    def ask(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], seed: int
    ) -> tuple[dict[str, Any], int | None]:
        """The assistant message that follows.

        Up to three tries, with a pause between them: servers that are down or busy (5xx, 429), connections that break
        and answers that cannot be read are asked again, a refusal (other 4xx) is not.

        Args:
            messages: The conversation, as chat completions hold it.
            tools: Schemas of the tools.
            seed: Of the sampling, where the server heeds it.

        Returns:
            The message as an action of an environment, and the tokens that the server says it took, if it says so. A
            message cut at ``max_tokens`` has ``"finish_reason": "length"``.

        Raises:
            EndpointError: After the last try.
        """
        body = {
            "model": self.model, "messages": list(messages), "tools": list(tools), "temperature": self.temperature,
            "max_tokens": self.max_tokens, "seed": seed % 2**31,
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        fault = ""
        for pause in (0.0, 1.0, 2.0):
            time.sleep(pause)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return _message(json.loads(answer.read()))
            except urllib.error.HTTPError as error:
                fault = f"HTTP status {error.code} {error.reason}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, http.client.HTTPException) as error:
                late = isinstance(getattr(error, "reason", error), TimeoutError)
                fault = f"no answer within {self.timeout:g} s" if late else f"the connection failed ({error})"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                fault = f"the body is no chat completion ({type(error).__name__}: {error})"
        raise EndpointError(f"{self.url}: {' '.join(fault.split())}")


SAID = ("content", "tool_calls", "reasoning_content", "reasoning")
"""What an environment reads of a message; servers add more, and null for what there is not."""


def _message(data: Any) -> tuple[dict[str, Any], int | None]:
    """The message of a chat completion, and its tokens."""
    choice = data["choices"][0]
    given = choice["message"]
    message = {"role": "assistant", "content": ""} | {k: given[k] for k in SAID if given.get(k) is not None}
    if choice.get("finish_reason") == "length":
        message["finish_reason"] = "length"
    return message, (data.get("usage") or {}).get("completion_tokens")


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
        message, tokens = endpoint.ask(messages, tools, draw)
        turn = tool_env(env).read(message)
        over = episode.note(message, env.step(message))
        step = episode.steps[-1]
        spent += int(step.cost["output_tokens"]) if tokens is None else tokens
        if over:
            return episode, spent
        messages += _exchange(turn, step.tool_results, episode.observation, len(episode.steps))


def _exchange(turn: Turn, results: Sequence[Mapping[str, Any]], observation: str, number: int) -> list[dict[str, Any]]:
    """What was said and what came back, as chat completions want it: a result for each call, under its own id. A call
    without a name, which could not be read at all, is words to a server, and its result is the user's."""
    said, calls, told, heard = [turn.text], [], [], []
    for i, (call, result) in enumerate(zip(turn.calls, results, strict=True)):
        if call.name:
            id = call.id or f"call_{number}_{i}"
            calls.append(
                {"id": id, "type": "function", "function": {"name": call.name, "arguments": dump(call.arguments)}}
            )
            told.append({"role": "tool", "tool_call_id": id, "content": result["content"]})
        else:
            said.append(call.written)
            heard.append(result["content"])
    heard += [message["content"] for message in answers(observation, results) if message["role"] == "user"]
    words, reply = ("\n".join(filter(None, part)) for part in (said, heard))
    asked = {"role": "assistant", "content": words, **({"tool_calls": calls} if calls else {})}
    return [asked, *told, *([{"role": "user", "content": reply}] if reply else [])]
