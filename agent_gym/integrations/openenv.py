"""The environments behind OpenEnv's protocol (extra ``openenv``; docs/openenv.md).

A WebSocket at ``/ws`` is OpenEnv's own session, with an environment of its own. OpenEnv's HTTP ``/reset`` and ``/step``
make a new environment for every request and so cannot play an episode; those here keep it, by a session id. A client
sees only an observation's fields, which is why costs, budgets and verdict are fields and not metadata.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import gymnasium as gym
from pydantic import ConfigDict, Field, JsonValue, ValidationError

import agent_gym  # noqa: F401  # registers the environments

try:
    from fastapi import Body, FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from openenv.core.env_server import serialization, types
    from openenv.core.env_server.http_server import HTTPEnvServer
    from openenv.core.env_server.interfaces import Environment
except ImportError as error:
    raise ImportError("agent_gym.integrations.openenv needs OpenEnv: pip install 'agent-gym[openenv]'") from error

__all__ = ["AgentAction", "AgentObservation", "AgentState", "ServedEnv", "create_app"]

FAULTS = (TypeError, ValueError, RuntimeError, gym.error.Error)
"""What an environment raises for a wrong reset or action."""


class AgentAction(types.Action):
    """One assistant turn: ``text`` or ``message``."""

    text: str | None = Field(None, description="the turn: free text, and tool calls in the format of the parser")
    message: dict[str, JsonValue] | None = Field(None, description="the turn as an assistant message of OpenAI's API")

    @classmethod
    def model_validate(cls, obj: Any, **kwargs: Any) -> AgentAction:
        """Of a ValidationError, OpenEnv tells a client only that there was one.

        Raises:
            ValueError: In one sentence.
        """
        try:
            action = super().model_validate(obj, **kwargs)
        except ValidationError as error:
            raise ValueError(_sentence("the action", error.errors())) from None
        if (action.text is None) == (action.message is None):
            raise ValueError("the action: give either text, the turn as text, or message, an assistant message")
        return action


class AgentObservation(types.Observation):
    """What ``reset`` and ``step`` tell, and everything in their ``info``. ``reward`` is None where there is no verdict
    although the episode has ended (``verdict["status"] == "infra"``)."""

    model_config = ConfigDict(extra="allow")  # an environment's info may hold more

    text: str = Field("", description="the request at reset, the results of the tools after a step")
    messages: list[dict[str, Any]] | None = Field(None, description="at reset: system and user message")
    tools: list[dict[str, Any]] | None = Field(None, description="at reset: JSON schemas, as OpenAI's API takes them")
    task_id: str | None = Field(None, description="at reset")
    task_hash: str | None = Field(None, description="at reset: fingerprint of the task's content")
    task_type: str | None = Field(None, description="at reset: what the task asks for")
    cost: dict[str, float] = Field({}, description="of this step, by channel")
    cost_total: dict[str, float] = Field({}, description="of the episode so far, by channel")
    budget_left: dict[str, float] = Field({}, description="of the channels that have a bound")
    state_hash: str = Field("", description="of the world")
    tool_results: list[dict[str, Any]] = Field([], description="one a call of this turn")
    terminated: bool = Field(False, description="the answer was given")
    truncated: bool = Field(False, description="a budget or the turn limit ran out")
    verdict: dict[str, Any] | None = Field(None, description="at the end: status, reason, score, diagnostics, trust")


class AgentState(types.State):
    """Where a session stands."""

    env_id: str = Field("", description="Gymnasium id")
    task_id: str | None = Field(None, description="None before the first reset")


class ServedEnv(Environment):
    """An environment of agent_gym as OpenEnv's server wants one.

    Args:
        env_id: Gymnasium id, such as ``"APIAgent-v0"``.
        kwargs: Of ``gym.make``, which is called at the first reset.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, env_id: str, kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self._env_id, self._kwargs = env_id, kwargs
        self._env: gym.Env | None = None
        self._state = AgentState(env_id=env_id)

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, task: str | None = None, **unknown: Any
    ) -> AgentObservation:
        """Start an episode.

        Args:
            seed: Draws the task.
            episode_id: A name, which ``state`` shows.
            task: The id of the task to play, instead of a drawn one.

        Raises:
            ValueError: For an unknown option or task id.
        """
        if unknown:
            raise ValueError(
                f"reset has no option {', '.join(map(repr, sorted(unknown)))}, only seed, task and episode_id"
            )
        if self._env is None:
            self._env = gym.make(self._env_id, **self._kwargs)
        text, info = self._env.reset(seed=seed, options=None if task is None else {"task": task})
        self._state = AgentState(episode_id=episode_id or uuid4().hex, env_id=self._env_id, task_id=info["task_id"])
        return AgentObservation(text=text, **info)

    def step(self, action: AgentAction, timeout_s: float | None = None, **kwargs: Any) -> AgentObservation:
        """Play one turn.

        Raises:
            RuntimeError: If no episode is running.
        """
        if self._env is None:
            raise RuntimeError("no episode is running: call reset() before step()")
        turn = action.message if action.text is None else action.text
        text, reward, terminated, truncated, info = self._env.step(turn)
        self._state.step_count += 1
        judged = info.get("verdict", {}).get("status") != "infra"
        return AgentObservation(
            text=text, reward=reward if judged else None, done=terminated or truncated, terminated=terminated,
            truncated=truncated, **info,
        )  # fmt: skip

    @property
    def state(self) -> AgentState:
        """The episode's name, its task and how many turns were played."""
        return self._state

    def get_metadata(self) -> types.EnvironmentMetadata:
        """Name and version."""
        about = f"{self._env_id} of agent_gym: tool use with costs, budgets and a verdict"
        return types.EnvironmentMetadata(name=self._env_id, description=about, version=version("agent-gym"))

    def close(self) -> None:
        """End the episode."""
        if self._env is not None:
            self._env.close()
            self._env = None


def create_app(
    env_id: str,
    *,
    max_sessions: int = 64,
    idle_s: float = 600.0,
    max_request_kib: int = 1024,
    token: str | None = None,
    **kwargs: Any,
) -> FastAPI:
    """A server for one environment, as an ASGI application: ``uvicorn.run(create_app("APIAgent-v0"))``.

    Args:
        env_id: Gymnasium id.
        max_sessions: WebSocket and HTTP sessions at a time; each has an environment of its own.
        idle_s: Seconds after which a session that sends nothing ends.
        max_request_kib: The longest request or message.
        token: If given, every request but ``GET /health`` must have the header ``Authorization: Bearer TOKEN``. Without
            one, requests from web pages are refused.
        **kwargs: Of ``gym.make``.

    Raises:
        gymnasium.error.Error, ImportError, TypeError, ValueError: If the environment cannot be made, or a limit is not
            positive.
    """
    for name, limit in (("max_sessions", max_sessions), ("idle_s", idle_s), ("max_request_kib", max_request_kib)):
        if not limit > 0:
            raise ValueError(f"{name}={limit!r}: must be more than 0")
    gym.make(env_id, **kwargs).close()  # what is wrong shows here, not at a client
    make = partial(ServedEnv, env_id, kwargs)
    app = FastAPI(title=env_id, version=version("agent-gym"))
    sessions = _Sessions(make, max_sessions, idle_s)
    _episodes_over_http(app, sessions)
    server = HTTPEnvServer(
        make, AgentAction, AgentObservation, max_concurrent_envs=max_sessions, env_name=env_id, state_cls=AgentState
    )
    server.register_routes(app, mode=types.ServerMode.PRODUCTION)  # without its /reset, /step and /state
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != "/mcp"]
    app.router.on_shutdown.append(sessions.end_all)
    app.add_middleware(_Door, sessions=sessions, most_bytes=max_request_kib * 1024, token=token)
    return app


# ---- HTTP ------------------------------------------------------------------------------------------------------------


@dataclass
class _Session:
    """An episode over HTTP. Its environment is used in one thread alone."""

    env: ServedEnv
    thread: ThreadPoolExecutor
    timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """It is not idle."""
        if self.timer is not None:
            self.timer.cancel()


class _Sessions:
    """The sessions that are open; ``sockets`` counts the others, which OpenEnv keeps."""

    def __init__(self, make: Callable[[], ServedEnv], most: int, idle_s: float) -> None:
        self.make, self.most, self.idle_s = make, most, idle_s
        self.sockets = 0
        self._open: dict[str, _Session] = {}

    @property
    def refusal(self) -> str:
        """Why no other session can begin, or nothing."""
        full = self.sockets + len(self._open) >= self.most
        return f"the server has its {self.most} sessions, and no other can begin before one ends" if full else ""

    @property
    def idle(self) -> str:
        """Why a session ended."""
        return f"the session ended because it sent nothing for {self.idle_s:g} seconds"

    def begin(self) -> str:
        """Open a session and return its id."""
        if self.refusal:
            raise HTTPException(503, self.refusal)
        session_id = uuid4().hex
        self._open[session_id] = _Session(self.make(), ThreadPoolExecutor(1))
        return session_id

    def find(self, session_id: str) -> _Session:
        """An open session."""
        if session_id not in self._open:
            raise HTTPException(404, f"there is no session {session_id[:64]!r}: it never began, has ended or was idle")
        return self._open[session_id]

    async def call(self, session_id: str, method: str, *args: Any, **kwargs: Any) -> AgentObservation:
        """Call the environment of a session, which ends when its episode does."""
        session, loop = self.find(session_id), asyncio.get_running_loop()
        session.wake()
        done = method == "reset"  # a session whose reset fails is none
        try:
            found = await loop.run_in_executor(session.thread, partial(getattr(session.env, method), *args, **kwargs))
            done = found.done
        finally:
            session.wake()
            if done:
                self.end(session_id)
            else:
                session.timer = loop.call_later(self.idle_s, self.end, session_id)
        return found

    def end(self, session_id: str) -> None:
        """Close a session's environment, after what it is at."""
        session = self._open.pop(session_id, None)
        if session is not None:
            session.wake()
            session.thread.submit(session.env.close)
            session.thread.shutdown(wait=False)

    def end_all(self) -> None:
        """Close them all."""
        for session_id in list(self._open):
            self.end(session_id)


class _Step(types.StepRequest):
    session_id: str = Field(description="as /reset gave it")


def _episodes_over_http(app: FastAPI, sessions: _Sessions) -> None:
    """Routes that play an episode over HTTP."""

    @app.post("/reset", summary="Begin a session of one episode")
    async def reset(request: types.ResetRequest = Body(default_factory=types.ResetRequest)) -> dict[str, Any]:  # noqa: B008
        session_id = sessions.begin()
        found = await sessions.call(session_id, "reset", **request.model_dump(exclude_unset=True))
        return {"session_id": session_id, **serialization.serialize_observation(found)}

    @app.post("/step", summary="Play a turn; the session ends with the episode")
    async def step(request: _Step) -> dict[str, Any]:
        sessions.find(request.session_id)
        action = AgentAction.model_validate(request.action)
        found = await sessions.call(request.session_id, "step", action)
        return {"session_id": request.session_id, **serialization.serialize_observation(found)}

    @app.get("/state", summary="Where a session stands")
    async def state(session_id: str) -> AgentState:
        return sessions.find(session_id).env.state

    async def fault(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": " ".join(str(error).split())}, 400)

    async def unreadable(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": _sentence("the request", error.errors())}, 422)

    for kind in FAULTS:
        app.add_exception_handler(kind, fault)
    app.add_exception_handler(RequestValidationError, unreadable)


def _sentence(what: str, errors: Sequence[Any]) -> str:
    """What pydantic found."""
    return f"{what}: " + "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in errors)


# ---- limits ----------------------------------------------------------------------------------------------------------


class _Door:
    """Middleware: who may come in, and how much may be brought."""

    def __init__(self, app: Any, sessions: _Sessions, most_bytes: int, token: str | None) -> None:
        self.app, self.sessions, self.most, self.token = app, sessions, most_bytes, token
        self.too_large = f"the request is longer than {most_bytes // 1024} KiB, the most that is read"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif why := self._stranger(scope):
            await JSONResponse({"detail": why}, 401 if self.token else 403)(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    def _stranger(self, scope: Any) -> str:
        """Why a client may not come in, or nothing."""
        headers = dict(scope["headers"])
        if scope["path"] == "/health":
            return ""
        if self.token:
            given = headers.get(b"authorization", b"")
            known = hmac.compare_digest(given, f"Bearer {self.token}".encode())
            return "" if known else "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
        # any page that is open in a browser reaches a server of the same machine
        return "requests from web pages are refused" if b"origin" in headers else ""

    async def _request(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on with its whole body, or answer that it is too long."""
        body, more = b"", True
        while more and len(body) <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > self.most:
            await JSONResponse({"detail": self.too_large}, 413)(scope, receive, send)
            return
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> Any:
            return whole.pop() if whole else await receive()

        await self.app(scope, receive_whole, send)

    async def _socket(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a session's messages on. One that is too long is answered here; one that never comes ends it."""

        async def refuse(message: str, code: str) -> None:
            frame = types.WSErrorResponse(data={"message": message, "code": code})
            await send({"type": "websocket.send", "text": frame.model_dump_json()})

        async def receive_in_time() -> Any:
            while True:
                try:
                    message = await asyncio.wait_for(receive(), self.sessions.idle_s)
                except TimeoutError:
                    await refuse(self.sessions.idle, "SESSION_ERROR")
                    await send({"type": "websocket.close", "code": 1001, "reason": self.sessions.idle})
                    return {"type": "websocket.disconnect", "code": 1001}
                if len((message.get("text") or "").encode()) <= self.most:
                    return message
                await refuse(self.too_large, "VALIDATION_ERROR")

        if why := self.sessions.refusal:
            await receive()
            await send({"type": "websocket.accept"})
            await refuse(why, "CAPACITY_REACHED")
            await send({"type": "websocket.close", "code": 1013, "reason": why})
            return
        self.sessions.sockets += 1
        try:
            await self.app(scope, receive_in_time, send)
        finally:
            self.sessions.sockets -= 1
