"""A model behind a server that speaks OpenAI's chat completions: what is asked, how often, and what comes back."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from agent_gym.messages import Message, in_words, listing

__all__ = ["ContextExceeded", "Endpoint", "EndpointError", "Reply"]


class EndpointError(ValueError):
    """What was wrong with the endpoint or its answers, in one sentence."""


class ContextExceeded(Exception):
    """The conversation has outgrown what the model reads: the agent's failure, not the server's."""


class Reply(NamedTuple):
    """What an endpoint answered.

    Args:
        message: An action of an environment; ``"finish_reason": "length"`` where it was cut at ``max_tokens``.
        usage: ``{"prompt_tokens", "completion_tokens"}`` by the server's count; None where it does not say.
    """

    message: str | Mapping[str, Any]
    usage: dict[str, int] | None


class _Pace:
    """Lets requests begin no closer together than the rate allows, whatever the thread."""

    def __init__(self, per_minute: float | None) -> None:
        self.gap, self.next, self.lock = 60.0 / per_minute if per_minute else 0.0, 0.0, threading.Lock()

    def wait(self) -> None:
        with self.lock:
            now = time.monotonic()
            begins = max(now, self.next)
            self.next = begins + self.gap
        if begins > now:
            time.sleep(begins - now)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible server. A key is taken from the variable OPENAI_API_KEY.

    Args:
        url: Up to the version, such as ``http://localhost:8000/v1``.
        model: Its name there.
        timeout: Seconds without a byte of an answer, at most.
        temperature: Of the sampling.
        max_tokens: Of one turn.
        tries: Times that a request is sent, at most.
        per_minute: Requests a minute, at most, those sent again among them; None for any number.
        native: Give the tools as ``tools`` and read ``tool_calls``. False writes them into the system's message, the
            calls and results into words: for a server that reads no calls.

    Raises:
        EndpointError: For arguments that cannot work.
    """

    url: str
    model: str
    timeout: float = 60.0
    temperature: float = 1.0
    max_tokens: int = 512
    tries: int = 3
    per_minute: float | None = None
    native: bool = True
    error: ClassVar[type[EndpointError]] = EndpointError
    _pace: _Pace = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise self.error(f"the endpoint's address {self.url} must begin with http:// or https://")
        if not self.model:
            raise self.error(f"the endpoint {self.url} needs a model, by its name there")
        for name, value in (("timeout", self.timeout), ("per_minute", self.per_minute)):
            if value is not None and not value > 0:
                raise self.error(f"the endpoint's {name} must be above 0, not {value:g}")
        object.__setattr__(self, "_pace", _Pace(self.per_minute))

    def ask(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], seed: int) -> Reply:
        """The assistant message that follows.

        Servers that are down or busy (5xx, 408, 429), connections that break and answers that cannot be read are asked
        again, a refusal (other 4xx) is not. The pause before the n-th time is 2^(n-2) seconds, give or take a half by a
        draw from ``seed``, or what the server's ``Retry-After`` says where that is longer; at most a minute.

        Args:
            messages: The conversation, as chat completions hold it.
            tools: Schemas of the tools.
            seed: Of the sampling, where the server heeds it.

        Raises:
            EndpointError: After the last try.
            ContextExceeded: The server refused the conversation for its length.
        """
        talk = (
            {"messages": list(messages), "tools": list(tools)} if self.native else {"messages": _told(messages, tools)}
        )
        drawn = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": seed % 2**31}
        body = {"model": self.model, **talk, **drawn}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        fault, after, chance = "", 0.0, random.Random(seed)
        for number in range(self.tries):
            if number:
                time.sleep(min(60.0, max(after, 2.0 ** (number - 1) * chance.uniform(0.5, 1.5))))
            self._pace.wait()
            after = 0.0
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return _reply(json.loads(answer.read()))
            except urllib.error.HTTPError as error:
                said = _said(error)
                if error.code in (400, 413) and "context" in said.lower():
                    raise ContextExceeded(said) from None
                fault = f"HTTP status {error.code} {error.reason}{f': {said}' if said else ''}"
                if error.code < 500 and error.code not in (408, 429):
                    break
                after = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                late = isinstance(getattr(error, "reason", error), TimeoutError)
                fault = f"no answer within {self.timeout:g} s" if late else f"the connection failed ({error})"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                fault = f"the body is no chat completion ({type(error).__name__}: {error})"
        raise self.error(f"{self.url}: {' '.join(fault.split())}")


SAID = ("content", "tool_calls", "reasoning_content", "reasoning")
"""What an environment reads of a message; servers add more, and null for what there is not."""


USED = ("prompt_tokens", "completion_tokens")


def _reply(data: Any) -> Reply:
    """The message of a chat completion. A refusal is what the model says."""
    choice = data["choices"][0]
    given = choice["message"]
    message = {"role": "assistant", "content": ""} | {k: given[k] for k in SAID if given.get(k) is not None}
    message["content"] = message["content"] or given.get("refusal") or ""
    if choice.get("finish_reason") == "length":
        message["finish_reason"] = "length"
    usage = data.get("usage") or None
    return Reply(message, usage and {k: int(usage.get(k) or 0) for k in USED})


def _said(error: urllib.error.HTTPError) -> str:
    """What the body of an error says, if it says it as chat completions do."""
    try:
        data = json.loads(error.read(65536))
        return str(data.get("error", data).get("message", ""))[:200]
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return ""


def _seconds(after: str | None) -> float:
    """Of a Retry-After: a number, or a date."""
    if after is None:
        return 0.0
    try:
        return float(after)
    except ValueError:
        date = email.utils.parsedate_tz(after)
        return email.utils.mktime_tz(date) - time.time() if date else 0.0


# ---- the conversation ------------------------------------------------------------------------------------------------


def _told(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation in words alone, the tools in the system's message."""
    return [
        {**message, "content": f"{message['content']}\n\n{listing(tools)}"} if message["role"] == "system" else message
        for message in in_words(messages)
    ]
