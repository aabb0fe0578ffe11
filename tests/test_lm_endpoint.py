"""agent_gym.lm.endpoint: what is asked, what is asked again, the messages of an episode, and episodes side by side."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from shop_play import TASKS, call, write_tasks

pytest.importorskip("torch", reason="agent_gym.lm needs the extra 'train'")
pytest.importorskip("transformers", reason="agent_gym.lm needs the extra 'train'")

import gymnasium as gym

from agent_gym import PARSERS
from agent_gym.evaluation import endpoint as module
from agent_gym.lm.endpoint import Endpoint, EndpointError, play_endpoint
from agent_gym.lm.errors import Refused
from agent_gym.messages import exchange

SEEDS = list(range(8))


@pytest.fixture(scope="module")
def kwargs(tmp_path_factory):
    return {"tasks": write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", TASKS[1:5]), "max_turns": 5}


@pytest.fixture
def quick(monkeypatch):
    """No pause between tries."""
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


class Oracle(BaseHTTPRequestHandler):
    """A server that plays the oracle, and misbehaves as ``server.faults`` says, a request each."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, body, self.headers.get("Authorization")))
            fault = server.faults.pop(0) if server.faults else None
        if fault == "slow":
            threading.Event().wait(1.0)
        if isinstance(fault, int):
            return self.send_error(fault)
        messages = body["messages"]
        request = messages[1]["content"]
        said = sum(m["role"] == "assistant" for m in messages)
        if server.gate is not None and not said:  # answers only when so many ask at the same time
            server.gate.wait(timeout=20)
        if request in server.banned:
            return self.send_error(404)
        actions = server.oracle[request]
        spoken = PARSERS["hermes"].parse(actions[said] if said < len(actions) else "Done.")
        message = json.loads(PARSERS["openai"].render(spoken.text, spoken.calls)) | {"refusal": None, "audio": None}
        answer = {"choices": [{"message": message, "finish_reason": "length" if fault == "cut" else "stop"}]}
        if server.usage:
            answer["usage"] = {"completion_tokens": server.usage}
        data = b"[]" if fault == "nonsense" else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "half" else data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(kwargs, faults=(), usage=None, gate=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Oracle)
    server.handle_error = lambda *_: None  # who was too slow finds nobody to answer
    server.faults, server.usage, server.gate, server.banned = list(faults), usage, gate, set()
    server.seen, server.lock, server.oracle = [], threading.Lock(), {}
    env = gym.make("APIAgent-v0", **kwargs)
    for task in TASKS[1:5]:
        observation, _ = env.reset(options={"task": task["id"]})
        server.oracle[observation] = env.unwrapped.oracle()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def played(kwargs, url, parallel=4, seeds=SEEDS, **settings):
    """Episodes and tokens by place; what was told of before a fault too."""
    envs = [gym.make("APIAgent-v0", **kwargs) for _ in range(parallel)]
    found = {}
    endpoint = Endpoint(url=url, model="oracle", **settings)
    try:
        play_endpoint(endpoint, envs, seeds, seeds, lambda index, *rest: found.update({index: rest}))
    except EndpointError as error:
        return found, str(error)
    return found, None


def lines(found):
    return {index: episode.trajectory().to_json() for index, (episode, _) in found.items()}


def test_episodes_are_asked_for_in_the_protocol_and_replay(kwargs, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(kwargs, usage=7) as (server, url):
        found, fault = played(kwargs, url, temperature=0.5, max_tokens=32)
    assert fault is None
    assert sorted(found) == SEEDS
    for index, (episode, tokens) in found.items():
        assert (episode.index, episode.seed, episode.success, episode.reward) == (index, index, 1.0, 1.0)
        assert tokens == 7 * len(episode.steps)
        trajectory = episode.trajectory()
        env = gym.make("APIAgent-v0", **trajectory.env_kwargs)  # the file replays in the environment
        env.reset(options={"task": trajectory.task_id})
        for step in trajectory.steps:
            assert step.action_ids is None
            info = env.step(step.action)[4]
            assert info["tool_results"] == step.tool_results
        assert info["verdict"] == trajectory.verdict
        assert info["cost_total"] == trajectory.cost_total
    for path, body, key in server.seen:
        assert (path, key) == ("/v1/chat/completions", "Bearer secret")
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("oracle", 0.5, 32)
        assert {"get_order", "submit"} <= {tool["function"]["name"] for tool in body["tools"]}
        asked = [c["id"] for m in body["messages"] for c in m.get("tool_calls", ())]
        assert asked == [m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"]
    assert any(m["role"] == "tool" for _, body, _ in server.seen for m in body["messages"])


def test_the_environment_counts_where_the_server_does_not(kwargs):
    with serving(kwargs) as (_, url):
        found, _ = played(kwargs, url)
    assert all(tokens == episode.cost_total["output_tokens"] for episode, tokens in found.values())


def test_the_number_of_environments_changes_nothing(kwargs):
    with serving(kwargs) as (_, url):
        assert lines(played(kwargs, url, parallel=1)[0]) == lines(played(kwargs, url, parallel=5)[0])


def test_requests_of_all_episodes_run_side_by_side(kwargs):
    """The server answers when four ask at the same time: episodes that took turns would never be answered."""
    seeds = [SEEDS[0]] * 4  # of equal length
    with serving(kwargs, gate=threading.Barrier(4)) as (_, url):
        found, fault = played(kwargs, url, seeds=seeds)
    assert fault is None
    assert len(found) == 4


def test_passing_faults_are_asked_again(kwargs, quick):
    with serving(kwargs) as (_, url):
        undisturbed, _ = played(kwargs, url)
    with serving(kwargs, faults=[500, "half", None, "nonsense", None, None, 429]) as (server, url):
        disturbed, fault = played(kwargs, url, parallel=1)
        assert not server.faults
    assert fault is None
    assert lines(disturbed) == lines(undisturbed)


@pytest.mark.parametrize(
    ("fault", "said", "tries"),
    [
        (500, "HTTP status 500 Internal Server Error", 3),
        (429, "HTTP status 429 Too Many Requests", 3),
        (404, "HTTP status 404 Not Found", 1),
        ("half", "the connection failed (IncompleteRead(", 3),
        ("nonsense", "the body is no chat completion (TypeError: list indices must be integers", 3),
        ("slow", "no answer within 0.2 s", 3),
    ],
)
def test_lasting_faults_end_in_a_sentence(fault, said, tries, kwargs, quick):
    """One episode after the other: the first two are finished, then the server breaks down."""
    with serving(kwargs) as (server, url):
        undisturbed, _ = played(kwargs, url, parallel=1)
        two = sum(len(undisturbed[i][0].steps) for i in range(2))
        server.faults[:] = [None] * two + [fault] * 30
        server.seen.clear()
        found, sentence = played(kwargs, url, parallel=1, timeout=0.2 if fault == "slow" else 60.0)
        assert len(server.seen) == two + tries
    assert sentence.startswith(f"{url}: {said}")
    assert "\n" not in sentence
    assert lines(found) == {index: lines(undisturbed)[index] for index in range(2)}


def test_episodes_that_have_begun_go_on_when_one_fails(kwargs, quick):
    """All begin, then the requests of one task are refused."""
    with serving(kwargs, gate=threading.Barrier(len(SEEDS))) as (server, url):
        undisturbed, _ = played(kwargs, url, parallel=len(SEEDS))
        lost = undisturbed[0][0].task_id
        server.banned = {undisturbed[0][0].steps[0].observation}
        found, sentence = played(kwargs, url, parallel=len(SEEDS))
    assert sentence == f"{url}: HTTP status 404 Not Found"
    kept = {index: line for index, line in lines(undisturbed).items() if undisturbed[index][0].task_id != lost}
    assert kept
    assert lines(found) == kept


def test_no_server(kwargs, quick):
    found, sentence = played(kwargs, "http://127.0.0.1:9/v1")
    assert not found
    assert sentence.startswith("http://127.0.0.1:9/v1: the connection failed (")


def test_what_is_told_of_an_episode_may_raise(kwargs):
    def stop(*_):
        raise OSError("disk full")

    envs = [gym.make("APIAgent-v0", **kwargs) for _ in range(2)]
    with serving(kwargs) as (server, url):
        with pytest.raises(OSError, match="disk full"):
            play_endpoint(Endpoint(url=url, model="oracle"), envs, SEEDS, SEEDS, stop)
        requests = len(server.seen)
    assert requests < sum(len(actions) for actions in server.oracle.values()) * 2  # what had not begun never does


def test_a_message_cut_at_its_most_tokens_is_no_answer(kwargs):
    with serving(kwargs, faults=["cut"]) as (server, url):
        found, _ = played(kwargs, url, parallel=1, seeds=[0])
    episode, _ = found[0]
    assert episode.cut == 1
    assert episode.steps[0].action["finish_reason"] == "length"
    assert "cut before its end" in episode.steps[0].tool_results[0]["content"]
    assert server.seen[1][1]["messages"][-1]["role"] == "user"


def asks(*calls, content=""):
    entries = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": text}} for id, name, text in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": entries}


class Script:
    """An endpoint that says what is written, and remembers what it was shown."""

    def __init__(self, *messages):
        self.messages, self.shown = list(messages), []

    def ask(self, messages, tools, seed):
        self.shown.append(list(messages))
        return self.messages.pop(0), None


def added(kwargs, *messages):
    """What each message adds to the conversation, and the episode."""
    script, found = Script(*messages, {"role": "assistant", "content": "Done."}), []
    env = gym.make("APIAgent-v0", **kwargs)
    play_endpoint(script, [env], [0], [0], lambda index, episode, tokens: found.append(episode))
    return [b[len(a) :] for a, b in zip(script.shown, script.shown[1:], strict=False)], found[0]


def test_every_call_has_one_result_under_its_own_id(kwargs):
    two = asks(("x7", "get_order", '{"order_id": "O0"}'), ("y8", "get_order", "{broken"), content="Look.")
    ((said, *results),), episode = added(kwargs, two)
    assert [(c["id"], c["function"]["name"]) for c in said["tool_calls"]] == [("x7", "get_order"), ("y8", "get_order")]
    assert said["content"] == "Look."
    assert [(m["role"], m["tool_call_id"]) for m in results] == [("tool", "x7"), ("tool", "y8")]
    assert [m["content"] for m in results] == [r["content"] for r in episode.steps[0].tool_results]
    assert "not valid JSON" in results[1]["content"]
    assert episode.steps[0].action == two


def test_a_call_that_did_not_run_has_a_result_that_says_so(kwargs):
    """After submit nothing runs; the history is whole all the same, and nobody hears of it twice."""
    env = gym.make("APIAgent-v0", **kwargs)
    env.reset(seed=0)
    late = asks(("a", "submit", '{"answer": "x"}'), ("b", "get_order", '{"order_id": "O0"}'))
    turn = env.unwrapped.read(late)
    observation, *_, info = env.step(late)
    said, *results = exchange(turn, info["tool_results"], observation, [])
    assert [m["tool_call_id"] for m in results] == ["a", "b"] == [c["id"] for c in said["tool_calls"]]
    assert [r["error"] for r in info["tool_results"]] == [None, "not_run"]
    assert '"not_run"' in results[1]["content"]


def test_words_that_hold_an_unreadable_call(kwargs):
    """No tool is named, so that a server would refuse the history with it: it stays words, answered by the user."""
    garbled = {"role": "assistant", "content": "So.\n<tool_call>get_order O0</tool_call>"}
    foreign = {"role": "assistant", "content": '[TOOL_CALLS][{"name": "get_order", "arguments": {}}]'}
    written = {"role": "assistant", "content": f"So.\n{call('get_order', order_id='O0')}"}
    (first, second, third), episode = added(kwargs, garbled, foreign, written)
    for (said, heard), words in ((first, "So.\nget_order O0"), (second, foreign["content"])):
        assert said == {"role": "assistant", "content": words}
        assert heard["role"] == "user"
    assert [first[1]["content"], second[1]["content"]] == [s.tool_results[0]["content"] for s in episode.steps[:2]]
    said, result = third  # a server without a parser has no ids
    assert said["tool_calls"][0]["id"] == result["tool_call_id"] == "call00000"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000", "model": "m"}, "address localhost:8000 must begin with http:// or https://"),
        ({"url": "http://x", "model": ""}, "http://x needs a model"),
        ({"url": "http://x", "model": "m", "timeout": 0.0}, "timeout must be above 0, not 0"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused(settings, said):
    with pytest.raises(Refused, match=said):
        Endpoint(**settings)
