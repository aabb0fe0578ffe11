"""The environments behind OpenEnv's protocol, played through OpenEnv's own client. Without the package openenv these
tests are skipped, unless AGENT_GYM_REQUIRE_OPENENV=1."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gymnasium as gym
import pytest
from adapters import adapter
from sandbox_backends import require

import agent_gym
from agent_gym.cli import main

ROOT = Path(__file__).parents[1]
TOLD = ("cost", "cost_total", "budget_left", "state_hash", "tool_results")  # on every step
ONCE = ("messages", "tools", "task_id", "task_hash", "task_type")  # at reset
READ = '<tool_call>{"name":"return_policy","arguments":{}}</tool_call>'


@pytest.fixture(scope="module")
def openenv():
    return adapter("openenv", "openenv")


@contextmanager
def running(app):
    """The URL of an application, in a thread of this process."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture
def serve(openenv):
    """Serves one environment as long as the test runs."""
    with ExitStack() as stack:
        yield lambda env_id="APIAgent-v0", **kwargs: stack.enter_context(running(openenv.create_app(env_id, **kwargs)))


def client(url, **kwargs):
    from openenv.core.generic_client import GenericEnvClient

    return GenericEnvClient(base_url=url, **kwargs)


def plain(value):
    """As it comes out of JSON."""
    return json.loads(json.dumps(value))


def played(env, seed, actions=None):
    """What an episode is to say, as (action, observation as the client has it, reward, done)."""
    text, info = env.reset(seed=seed)
    told = [(None, {"text": text, **{name: info[name] for name in (*TOLD, *ONCE)}}, None, False)]
    for action in env.unwrapped.oracle() if actions is None else actions:
        text, reward, terminated, truncated, info = env.step(action)
        after = {"text": text, "terminated": terminated, "truncated": truncated, "verdict": info.get("verdict")}
        told.append((action, {**after, **{name: info[name] for name in TOLD}}, reward, terminated or truncated))
    return plain(told)


def same(result, observation, reward, done):
    """Whether a client was told exactly this."""
    assert {name: result.observation[name] for name in observation} == observation
    assert (result.reward, result.done) == (reward, done)


def http(url, body=None, **headers):
    """The status and the answer of a request."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def said(call, *args, **kwargs):
    """What the server said of a mistake."""
    with pytest.raises(RuntimeError) as found:
        call(*args, **kwargs)
    return str(found.value)


# ---- the same episodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("APIAgent-v0", {"budget": {"tool_calls": 20, "latency_ms": 5000}}),
        ("SQL-v0", {"split": "test"}),
        ("WebLite-v0", {}),
        ("CodeAgent-v0", {"sandbox": "bubblewrap"}),
    ],
)
def test_the_oracle_is_told_what_the_environment_tells(serve, env_id, kwargs):
    if env_id == "WebLite-v0":
        pytest.importorskip("selectolax")
    if env_id == "CodeAgent-v0":
        require("bubblewrap")
    direct = gym.make(env_id, **kwargs)
    with client(serve(env_id, **kwargs)).sync() as remote:
        for seed in (0, 1):
            (_, *begin), *steps = played(direct, seed)
            same(remote.reset(seed=seed), *begin)
            for action, *told in steps:
                result = remote.step({"text": action})
                same(result, *told)
            assert (result.reward, result.observation["verdict"]["status"]) == (1.0, "pass")
            state = remote.state()
            assert (state["env_id"], state["task_id"]) == (env_id, begin[0]["task_id"])
            assert state["step_count"] == len(steps)
    direct.close()


def test_the_task_can_be_named_and_a_turn_can_be_a_message(serve):
    direct = gym.make("APIAgent-v0")
    _, info = direct.reset(seed=5)
    call = {"id": "a", "type": "function", "function": {"name": "list_customers", "arguments": "{}"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "assistant", "content": "Done."}]
    _, *steps = played(direct, 5, messages)
    with client(serve()).sync() as remote:
        result = remote.reset(task=info["task_id"], episode_id="mine")
        assert (result.observation["task_id"], result.observation["task_hash"]) == (info["task_id"], info["task_hash"])
        assert remote.state()["episode_id"] == "mine"
        for message, *told in steps:
            result = remote.step({"message": message})
            same(result, *told)
        assert (result.done, result.reward, result.observation["verdict"]["status"]) == (True, 0.0, "fail")


def test_a_budget_ends_the_episode(serve):
    with client(serve(budget={"tool_calls": 1})).sync() as remote:
        assert remote.reset(seed=0).observation["budget_left"] == {"tool_calls": 1.0}
        assert not remote.step({"text": READ}).done
        result = remote.step({"text": READ})
        assert (result.done, result.observation["truncated"]) == (True, True)
        assert (result.observation["verdict"]["reason"], result.observation["budget_left"]["tool_calls"]) == (
            "budget", -1.0,
        )  # fmt: skip


def test_no_verdict_is_no_reward(openenv, monkeypatch):
    env = openenv.ServedEnv("APIAgent-v0", {})
    env.reset(seed=0)

    def broken(answer):
        raise agent_gym.InfraError("the machinery failed")

    monkeypatch.setattr(env._env.unwrapped, "_verify", broken)
    found = env.step(openenv.AgentAction(text="Done."))
    assert (found.done, found.reward, found.verdict["status"]) == (True, None, "infra")


def test_many_sessions_are_not_mixed_up(serve):
    sessions, direct = 64, gym.make("APIAgent-v0")
    expected = [played(direct, seed) for seed in range(sessions)]
    url = serve(max_sessions=sessions)

    async def one(told, everyone):
        async with client(url, connect_timeout_s=60) as remote:
            same(await remote.reset(task=told[0][1]["task_id"]), *told[0][1:])
            await everyone.wait()  # until all of them are in the middle of an episode
            for action, *rest in told[1:]:
                result = await remote.step({"text": action})
                same(result, *rest)
            return result.reward

    async def all_of_them():
        everyone = asyncio.Barrier(sessions)
        return await asyncio.gather(*(one(told, everyone) for told in expected))

    assert asyncio.run(all_of_them()) == [1.0] * sessions
    assert len({told[0][1]["task_id"] for told in expected}) > sessions // 2


def test_over_http_a_session_is_an_episode(serve):
    url, direct = serve(), gym.make("APIAgent-v0")
    (_, observation, reward, done), *steps = played(direct, 2)
    status, begun = http(f"{url}/reset", {"seed": 2})
    assert (status, begun["reward"], begun["done"]) == (200, reward, done)
    assert {name: begun["observation"][name] for name in observation} == observation
    other = http(f"{url}/reset", b"")[1]["session_id"]
    assert other != begun["session_id"]
    for turn, (action, observation, reward, done) in enumerate(steps, 1):
        status, found = http(f"{url}/step", {"session_id": begun["session_id"], "action": {"text": action}})
        assert (status, found["reward"], found["done"]) == (200, reward, done)
        assert {name: found["observation"][name] for name in observation} == observation
        if not done:
            assert http(f"{url}/state?session_id={begun['session_id']}")[1]["step_count"] == turn
    assert reward == 1.0
    assert http(f"{url}/state?session_id={other}")[1]["step_count"] == 0
    assert http(f"{url}/step", {"session_id": begun["session_id"], "action": {"text": READ}})[0] == 404


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_end_in_a_sentence_and_not_the_session(serve):
    with client(serve()).sync() as remote:
        assert "no episode is running: call reset() before step()" in said(remote.step, {"text": READ})
        for options, sentence in (
            ({"tsk": "x", "split": "test"}, "reset has no option 'split', 'tsk', only seed, task and episode_id"),
            ({"task": "nope"}, "unknown task id 'nope'"),
            ({"seed": "a"}, "Seed must be a python integer"),
        ):
            assert sentence in said(remote.reset, **options)
        remote.reset(seed=0)
        for action, sentence in (
            ({"txt": READ}, "the action: txt: Extra inputs are not permitted"),
            ({"text": 3}, "the action: text: Input should be a valid string"),
            ({}, "the action: give either text, the turn as text, or message, an assistant message"),
            ({"text": READ, "message": {}}, "the action: give either text"),
        ):
            assert sentence in said(remote.step, action)
        assert remote.state()["step_count"] == 0
        assert remote.step({"text": READ}).observation["cost_total"]["tool_calls"] == 1.0


def test_an_unknown_session_over_websocket(serve):
    url = serve()
    remote = client(url)
    remote._ws_url += "?session_id=nope"
    with remote.sync() as remote:
        assert "Unknown session_id: nope" in said(remote.reset)


def test_mistakes_over_http(serve):
    url = serve()
    session = http(f"{url}/reset", {})[1]["session_id"]
    for path, body, status, sentence in (
        ("reset", {"task": "nope"}, 400, "unknown task id 'nope'"),
        ("reset", {"seed": -1}, 422, "the request: body.seed: Input should be greater than or equal to 0"),
        ("step", {"session_id": session, "action": {"txt": READ}}, 400, "the action: txt: Extra inputs"),
        ("step", {"action": {"text": READ}}, 422, "the request: body.session_id: Field required"),
        ("step", {"session_id": "nope", "action": {"text": READ}}, 404, "there is no session 'nope'"),
        ("step", b"{", 422, "JSON decode error"),
        ("state?session_id=nope", None, 404, "there is no session 'nope'"),
        ("mcp", {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"}, 404, "Not Found"),
    ):
        found = http(f"{url}/{path}", body)
        assert found[0] == status, found
        assert sentence in found[1]["detail"]
        assert "\n" not in found[1]["detail"]
    assert http(f"{url}/step", {"session_id": session, "action": {"text": READ}})[0] == 200


@pytest.mark.parametrize("limit", ["max_sessions", "idle_s", "max_request_kib"])
def test_a_limit_is_positive_and_the_environment_can_be_made(openenv, limit):
    with pytest.raises(ValueError, match=f"{limit}=0: must be more than 0"):
        openenv.create_app("APIAgent-v0", **{limit: 0})
    with pytest.raises(TypeError, match="has no keyword argument 'dificulty'"):
        openenv.create_app("APIAgent-v0", dificulty=2)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_there_are_only_so_many_sessions(serve):
    url = serve(max_sessions=2)
    full = "the server has its 2 sessions, and no other can begin before one ends"
    with client(url).sync() as first:
        first.reset()
        session = http(f"{url}/reset", {})[1]["session_id"]
        with client(url).sync() as third:
            refused = said(third.reset)
        assert full in refused
        assert "CAPACITY_REACHED" in refused
        assert http(f"{url}/reset", {}) == (503, {"detail": full})
        assert http(f"{url}/step", {"session_id": session, "action": {"text": "Done."}})[1]["done"]
        with client(url).sync() as fourth:  # a place is free
            assert not fourth.reset().done
    assert http(f"{url}/reset", {"task": "nope"})[0] == 400
    assert [http(f"{url}/reset", {})[0] for _ in range(3)] == [200, 200, 503]


def test_an_idle_session_ends(serve):
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    url = serve(idle_s=1.0, max_sessions=2)
    session = http(f"{url}/reset", {})[1]["session_id"]
    with connect(f"{url.replace('http', 'ws')}/ws", proxy=None) as socket_:
        told = json.loads(socket_.recv(60))  # though it sent nothing at all
        assert told["type"] == "error"
        assert told["data"]["message"] == "the session ended because it sent nothing for 1 seconds"
        with pytest.raises(ConnectionClosed):
            socket_.recv(60)
        assert socket_.close_code == 1001
    time.sleep(1.5)
    assert http(f"{url}/step", {"session_id": session, "action": {"text": READ}})[0] == 404
    assert [http(f"{url}/reset", {})[0] for _ in range(3)] == [200, 200, 503]  # their places are free again


def test_a_session_that_sends_is_not_idle(serve):
    from websockets.sync.client import connect

    url = serve(idle_s=3.0)
    session = http(f"{url}/reset", {})[1]["session_id"]
    with connect(f"{url.replace('http', 'ws')}/ws", proxy=None) as socket_:
        begun = last = time.monotonic()
        while time.monotonic() < begun + 4.5:
            time.sleep(1)
            socket_.send(json.dumps({"type": "reset"}))
            told = json.loads(socket_.recv(60))["type"]
            status = http(f"{url}/step", {"session_id": session, "action": {"text": READ}})[0]
            if time.monotonic() - last > 3:
                pytest.skip("the machine was too busy to send in time")
            assert (told, status) == ("observation", 200)
            last = time.monotonic()


def test_a_request_is_only_so_long(serve):
    url = serve(max_request_kib=4)
    sentence = "the request is longer than 4 KiB, the most that is read"
    with client(url).sync() as remote:
        remote.reset(seed=0)
        assert sentence in said(remote.step, {"text": "x" * 5000})
        assert sentence in said(remote.step, {"text": "é" * 2100})  # six bytes each in this client's JSON
        assert not remote.step({"text": READ + " " * 3000}).done  # the session goes on
    assert http(f"{url}/reset", {"task": "x" * 5000}) == (413, {"detail": sentence})
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:  # its length is not told before
        raw.sendall(b"POST /reset HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.sendall(b"800\r\n" + b" " * 0x800 + b"\r\n")
        raw.sendall(b"801\r\n" + b" " * 0x801 + b"\r\n")  # one byte too many, and no end
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_a_token_is_asked_for(serve):
    url = serve(token="sésame")
    sentence = "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
    right = "Bearer sésame".encode().decode("latin-1")
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}, {"Authorization": "sésame"}):
        assert http(f"{url}/reset", {}, **headers) == (401, {"detail": sentence})
        with pytest.raises(ConnectionError, match="401"), client(url, headers=headers).sync() as remote:
            remote.reset()
    assert http(f"{url}/reset", {}, Authorization=right)[0] == 200
    assert http(f"{url}/health") == (200, {"status": "healthy"})


def test_a_token_lets_in(serve):
    with client(serve(token="sesame"), headers={"Authorization": "Bearer sesame"}).sync() as remote:
        assert remote.reset(seed=0).observation["task_id"]


def test_a_web_page_does_not_reach_a_server_without_a_token(serve):
    url, origin = serve(), {"Origin": "http://evil.example"}
    assert http(f"{url}/reset", {}, **origin) == (403, {"detail": "requests from web pages are refused"})
    with pytest.raises(ConnectionError, match="403"), client(url, headers=origin).sync() as remote:
        remote.reset()


# ---- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def command(*arguments, **environment):
    """The URL that ``agent-gym serve`` prints, and its process."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "agent_gym", "serve", *arguments, "--port", "0"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield re.search(r"http://\S+\d", process.stdout.readline())[0], process
    finally:
        process.kill()
        process.communicate()


def test_the_command_serves_until_it_is_interrupted(openenv):
    with command("SQL-v0", "--tasks", "SQL-mini-v1", "--budget", "tool_calls=9", "--max-sessions", "1") as (
        url,
        server,
    ):
        assert url.startswith("http://127.0.0.1:")
        with client(url).sync() as remote:
            found = remote.reset(seed=0).observation
            assert found["budget_left"] == {"tool_calls": 9.0}
            assert found["task_id"] in {task["task_id"] for task in agent_gym.tasks("SQL-mini-v1")}
            assert http(f"{url}/reset", {})[0] == 503
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130


def test_the_command_takes_the_token_from_the_environment(openenv):
    with command("APIAgent-v0", "--env-kwargs", '{"domains": ["shop"]}', AGENT_GYM_TOKEN="t") as (url, _):
        assert http(f"{url}/reset", {})[0] == 401
        assert http(f"{url}/reset", {}, Authorization="Bearer t")[0] == 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["APIAgent-v0", "--host", "0.0.0.0"], "others can reach 0.0.0.0: give them a token with --token"),
        (["APIAgent-v0", "--host", "0.0.0.0", "--token", ""], "others can reach 0.0.0.0"),
        (["APIAgent-v0", "--port", "70000"], "cannot listen at 127.0.0.1, port 70000"),
        (["APIAgent-v0", "--host", "192.0.2.1", "--token", "t"], "cannot listen at 192.0.2.1, port 8000"),
        (["APIAgent-v0", "--max-sessions", "0"], "max_sessions=0: must be more than 0"),
        (["APIAgent-v1"], "APIAgent-v1"),
        (["APIAgent-v0", "--env-kwargs", '{"dificulty": 2}'], "has no keyword argument 'dificulty'"),
        (["APIAgent-v0", "--tasks", "SQL-mini-v1"], "SQL-mini-v1"),
    ],
)
def test_the_command_says_what_is_wrong(openenv, capsys, monkeypatch, arguments, sentence):
    monkeypatch.delenv("AGENT_GYM_TOKEN", raising=False)
    assert main(["serve", *arguments]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert sentence in found.err
    assert found.err.count("\n") == 1


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openenv", None)
    for name in [name for name in sys.modules if name.startswith(("openenv.", "agent_gym.integrations.openenv"))]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve", "APIAgent-v0"]) == 1
    assert capsys.readouterr().err == (
        "agent-gym: agent_gym.integrations.openenv needs OpenEnv: pip install 'agent-gym[openenv]'\n"
    )


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "openenv.md").read_text(encoding="utf-8")


def test_the_client_of_the_page_prints_what_it_shows(serve, tmp_path):
    sample = r"^```python\n(# a client.*?)^```\n+```text\n(.*?)^```"
    code, shown = re.search(sample, PAGE, re.MULTILINE | re.DOTALL).groups()
    (tmp_path / "client.py").write_text(code.replace("http://127.0.0.1:8000", serve(budget={"tool_calls": 6})))
    done = subprocess.run([sys.executable, "client.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == shown, done.stderr


def test_the_requests_of_the_page_are_answered(serve):
    url, session = serve(), ""
    lines = re.findall(r"^curl \S+/(\w+)(?: -H \S+ \S+)? -d '(.*)'$", PAGE, re.MULTILINE)
    assert [path for path, _ in lines] == ["reset", "step"]
    for path, body in lines:
        status, found = http(f"{url}/{path}", json.loads(body.replace("SESSION_ID", session)))
        assert status == 200
        session = found["session_id"]


def test_the_page_lists_the_fields_of_an_observation(openenv):
    table = PAGE.split("## What an observation holds")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(openenv.AgentObservation.model_fields) - {
        "metadata"
    }
