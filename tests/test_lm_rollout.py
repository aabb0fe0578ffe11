import json
import threading
import time
import traceback
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import pytest
from small_lm import chat_of, small_model

import agent_gym
from agent_gym import PARSERS, Call, InfraError, Outcome, Tool, ToolEnv, Verdict, snapshot
from agent_gym.lm.engine import TorchEngine, Turn
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import token_logprobs
from agent_gym.lm.rollout import Branch, Limits, answers, environments, evaluate, play
from agent_gym.lm.seeds import stream
from agent_gym.wrappers import RecordTrajectory

END = 0
WIDE = Limits(new_tokens=10_000, context=100_000)


class Letters:
    """A codec whose ids are characters."""

    parser = PARSERS["hermes"]

    def encode(self, text):
        return [ord(one) for one in text]

    def prompt(self, messages, tools):
        return self.encode("".join(f"<{one['role']}>{one['content']}\n" for one in messages) + "<assistant>")

    def reply(self, messages, closed):
        said = "".join(f"<{one['role']}>{one['content']}\n" for one in messages)
        return [*([] if closed else [END]), *self.encode(f"\n{said}<assistant>")]

    def text(self, ids):
        return "".join(map(chr, ids)).rstrip(chr(END))

    def count(self, text):
        return len(text) + 1


class Scripted:
    """An engine that writes what ``script(key, turn, ids)`` says, ``pace`` characters a step, and never recounts."""

    def __init__(self, script, pace=10_000):
        self.script, self.pace = script, pace
        self.rows, self.turns, self.log, self.released = {}, {}, [[]], []

    def submit(self, key, ids, most, seed):
        assert key not in self.rows
        turn = self.turns[key] = self.turns.get(key, -1) + 1
        full = [ord(one) for one in self.script(key, turn, list(ids))] + [END]
        self.rows[key] = [full[:most], len(full) <= most, seed, 0]
        self.log[-1].append((key, list(ids), most, seed))

    def step(self):
        assert self.rows, "nothing to write"
        self.log.append([])
        done = []
        for key, row in list(self.rows.items()):
            row[3] += self.pace
            if row[3] >= len(row[0]):
                ids, stopped, seed, _ = self.rows.pop(key)
                done.append(Turn(key, ids, [-stream(seed, i) / 2**57 for i in range(len(ids))], stopped))
        return done

    def update(self, model):
        pass

    def release(self, keys):
        self.released += keys

    @property
    def first(self):
        """What came with each step, by key."""
        return [[key for key, *_ in step] for step in self.log if step]


class Alone:
    """One process, or one of several whose results are already known."""

    def __init__(self, rank=0, world=1):
        self.rank, self.world, self.first, self.others = rank, world, rank == 0, {}

    def share(self, items):
        return items[self.rank :: self.world]

    def gather(self, mine):
        return [mine if rank == self.rank else self.others[rank] for rank in range(self.world)]


@dataclass(frozen=True)
class Book:
    pages: tuple = ()

    @property
    def hash(self):
        return json.dumps(self.pages)

    def apply(self, delta):
        return replace(self, pages=(*self.pages, delta))


@dataclass(frozen=True)
class Work:
    id: str
    world: Book
    latency_seed: int
    request: str


def note(book: Book, word: str):
    """Write a word down.

    Args:
        word: What to write.
    """
    return Outcome(f"noted {word}", delta=word)


class BookEnv(ToolEnv):
    """Write words down; some of them have a meaning."""

    gate = threading.Event()

    def _make_task(self, task_id):
        number = int(self.np_random.integers(10**6)) if task_id is None else int(task_id)
        return Work(str(number), Book(), number, f"Write down {number}.")

    def _tools(self):
        return {"note": Tool(note, context=True)}

    def _execute(self, tool, arguments):
        match arguments["word"]:
            case "wait":
                assert self.gate.wait(60)
            case "nap":
                time.sleep(0.02)
            case "break":
                raise ZeroDivisionError("the book is torn")
            case "infra":
                raise InfraError("the library burns")
        return tool.fn(self._world, **arguments)

    def _verify(self, answer):
        if self.task.id in self._world.pages:
            return Verdict("pass", "passed", 1.0)
        return Verdict("fail", "wrong_state", 0.0)

    def oracle(self):
        return [self.parser.render("", [Call("note", {"word": self.task.id})]), self.parser.render("Done.", [])]


gym.register("Book-v0", BookEnv, disable_env_checker=True)


def call(word, *more):
    return PARSERS["hermes"].render("", [Call("note", {"word": one}) for one in (word, *more)])


def books(count, **kwargs):
    return [gym.make("Book-v0", **kwargs) for _ in range(count)]


def listed(*plans):
    """A script: the actions of each episode."""
    return lambda key, turn, ids: plans[key % len(plans)][turn]


def solved(env_id, seeds, **kwargs):
    """The oracle's actions on each seed."""
    env, plans = gym.make(env_id, **kwargs), []
    for seed in seeds:
        env.reset(seed=seed)
        plans.append(env.unwrapped.oracle())
    return plans


def plain(episodes):
    return [
        (e.index, e.seed, e.ids, e.spans, e.logprobs, e.cut, e.observation, e.trajectory().to_json()) for e in episodes
    ]


def test_ids_are_those_that_were_written_and_those_in_between():
    chat, env = Letters(), gym.make("Book-v0")
    word = str(env.reset(seed=7)[1]["task_id"])
    plan = [call("x", "y") + "  ", call(word), "Done."]  # two blanks that a second encoding might lose
    engine = Scripted(listed(plan))
    (episode,) = play(engine, chat, [env], [7], WIDE, draws=[99])
    _, info = gym.make("Book-v0").reset(seed=7)
    expected, spans = chat.prompt(info["messages"], info["tools"]), []
    for action, said in zip(plan, ["<tool>noted x\n<tool>noted y\n", f"<tool>noted {word}\n", None], strict=True):
        spans.append((len(expected), len(expected) + len(action) + 1))
        expected += [*chat.encode(action), END]
        expected += chat.encode(f"\n{said}<assistant>") if said else []
    assert (episode.ids, episode.spans) == (expected, spans)
    assert len(episode.logprobs) == sum(end - begin for begin, end in spans)
    assert episode.logprobs == [lp for step in episode.steps for lp in step.logprobs]
    assert [step.action_ids for step in episode.steps] == [expected[b:e] for b, e in spans]
    assert [step.action for step in episode.steps] == plan
    assert [one[3] for (one,) in engine.log[:3]] == [stream(99, t) for t in range(3)]
    assert (episode.success, episode.reward, episode.infra, episode.cut) == (1.0, 1.0, False, 0)
    assert (episode.task_id, episode.env_id, episode.task_type) == (word, "Book-v0", "task")
    assert engine.released == [0]


def test_an_episode_is_the_trajectory_that_the_environment_gives():
    kwargs = {"domains": ["shop"], "budget": {"tool_calls": 40.0}, "on_budget": "record"}
    env = RecordTrajectory(gym.make("APIAgent-v0", **kwargs))
    plans = solved("APIAgent-v0", [3, 4], **kwargs)
    episodes = play(Scripted(listed(*plans)), Letters(), [env], [3, 4], WIDE, draws=[1, 2])
    for episode, recorded in zip(episodes, env.trajectories, strict=True):
        own = episode.trajectory(agent_gym.Group("g"))
        assert own.group == agent_gym.Group("g")
        bare = [replace(step, action_ids=None, logprobs=None) for step in own.steps]
        assert replace(own, steps=tuple(bare), group=None) == recorded
        assert agent_gym.Trajectory.from_json(own.to_json()) == own
        assert own.success


def test_a_turn_that_is_cut_is_invalid_and_goes_on():
    env = books(1)
    script = listed(["x" * 50, "y" * 49, "Done."])
    engine = Scripted(script)
    (episode,) = play(engine, Letters(), env, [7], Limits(50, 10_000), draws=[0])
    long, fits, last = episode.steps[0], episode.steps[1], episode.steps[-1]
    assert long.action == {"role": "assistant", "content": "x" * 50, "finish_reason": "length"}
    assert (len(long.action_ids), len(long.logprobs), episode.cut) == (50, 50, 1)
    begin, end = episode.spans[0]
    assert episode.ids[begin:end] == [ord("x")] * 50
    assert episode.ids[end] == END  # what was not written stands outside the span
    assert fits is last  # 49 letters and the end of the turn: an answer
    assert episode.trajectory().to_json().count('"finish_reason": "length"') == 1
    assert long.cost["tool_calls"] == 1.0
    assert long.tool_results[0]["error"] == "invalid"


def test_an_overlong_prompt_fails_its_own_episode():
    env = gym.make("Book-v0")
    lengths = {}
    for seed in range(200):
        _, info = env.reset(seed=seed)
        lengths[seed] = len(Letters().prompt(info["messages"], info["tools"]))
    long = max(lengths, key=lengths.get)
    short = min(lengths, key=lengths.get)
    assert lengths[short] < lengths[long]
    engine = Scripted(lambda key, turn, ids: "")
    done = []
    episodes = play(
        engine, Letters(), books(2), [short, long, short], Limits(10, lengths[long]), draws=[0, 0, 0],
        on_done=lambda episode: done.append(episode.index),
    )  # fmt: skip
    assert [e.verdict["reason"] for e in episodes] == ["wrong_state", "context", "wrong_state"]
    assert (episodes[1].steps, episodes[1].spans, episodes[1].reward) == ([], [], 0.0)
    assert not episodes[1].infra
    assert sorted(done) == [0, 1, 2]
    assert sorted(engine.released) == [0, 2]  # the engine never heard of the other
    assert {most for step in engine.log for _, _, most, _ in step} == {min(10, lengths[long] - lengths[short])}


def test_an_episode_that_outgrows_the_context_fails():
    engine = Scripted(lambda key, turn, ids: call("w" * 100))
    (episode,) = play(engine, Letters(), books(1), [7], Limits(300, 1000), draws=[0])
    assert (episode.verdict["status"], episode.verdict["reason"], episode.reward) == ("fail", "context", 0.0)
    assert not episode.steps[-1].terminated
    assert not episode.steps[-1].truncated
    assert len(episode.steps) == len(episode.spans) == len(episode.snapshots) > 1
    for begin, end in episode.spans:
        assert end - begin <= 300
        assert end <= 1000
    assert len(episode.ids) == episode.spans[-1][1]  # the answer that did not fit is not there
    assert episode.cost_total["tool_calls"] == len(episode.steps)


def test_an_episode_without_a_verdict_is_infra():
    episodes = play(Scripted(listed([call("infra")], ["Done."])), Letters(), books(2), [1, 2], WIDE, draws=[0, 1])
    assert [e.infra for e in episodes] == [True, False]
    assert [e.reward for e in episodes] == [None, 0.0]
    assert episodes[0].verdict["status"] == "infra"
    assert episodes[0].success == 0.0
    cut = [gym.wrappers.TimeLimit(env, 1) for env in books(1)]
    (episode,) = play(Scripted(listed([call("x")])), Letters(), cut, [1], WIDE, draws=[0])
    assert (episode.infra, episode.reward, episode.verdict) == (True, None, None)


def test_more_starts_than_environments():
    seeds = list(range(23))
    plans = solved("Book-v0", seeds)
    engine = Scripted(listed(*plans), pace=3)
    ended = []
    episodes = play(engine, Letters(), books(4), seeds, WIDE, draws=seeds, patience=30, on_done=ended.append)
    assert [e.index for e in episodes] == seeds
    assert [e.seed for e in episodes] == seeds
    assert all(e.success for e in episodes)
    assert sorted(e.index for e in ended) == seeds
    assert sorted(engine.released) == seeds
    assert engine.first[0] == [0, 1, 2, 3]
    assert play(engine, Letters(), [], [], WIDE, draws=[]) == []


def test_starts_must_fit():
    with pytest.raises(ValueError, match="1 draws for 2 starts"):
        play(Scripted(None), Letters(), books(1), [1, 2], WIDE, draws=[1])
    with pytest.raises(ValueError, match="no environment"):
        play(Scripted(None), Letters(), [], [1], WIDE, draws=[1])


def test_equal_starts_are_submitted_in_one_step():
    seeds = [5] * 4 + [6] * 4 + [7] * 4 + [7, 8]
    texts = {key: "a" * (3 + 7 * (key % 3)) for key in range(len(seeds))}
    engine = Scripted(lambda key, turn, ids: texts[key], pace=1)
    episodes = play(engine, Letters(), books(6), seeds, WIDE, draws=list(range(14)), patience=30)
    assert engine.first[0] == [0, 1, 2, 3]
    by_seed = {}
    for step in engine.log:
        for key, ids, *_ in step:
            by_seed.setdefault(seeds[key], []).append((step[0][0], ids))
    for first in by_seed.values():
        assert len({at for at, _ in first}) == 1, "a group was torn apart"
        assert all(ids == first[0][1] for _, ids in first)
    assert episodes[0].ids is not episodes[1].ids


def test_branches_go_on_from_their_step():
    seeds = [11, 12]
    plans = [[call("a"), call("b"), *plan] for plan in solved("Book-v0", seeds)]
    chat, envs = Letters(), books(2)
    episodes = play(Scripted(listed(*plans)), chat, envs, seeds, WIDE, draws=[0, 1])
    starts = [Branch(e, t) for e in episodes for t in range(4) for _ in range(2)]
    engine = Scripted(lambda key, turn, ids: plans[key // 8][(key // 2) % 4 + turn])
    before = plain(episodes)
    branches = play(engine, chat, envs, starts, WIDE, draws=range(16), patience=30)
    assert plain(episodes) == before
    for branch, start in zip(branches, starts, strict=True):
        origin, t = start.episode, start.t
        assert branch.ids == origin.ids
        assert branch.spans == origin.spans[t:]
        assert branch.cost_total == origin.cost_total
        assert branch.snapshots == origin.snapshots[t:]
        assert branch.before == tuple(origin.steps[:t])
        assert len(branch.steps) == 4 - t
        assert len(branch.logprobs) == sum(end - begin for begin, end in branch.spans)
        strip = [[replace(s, logprobs=None) for s in e.trajectory().steps] for e in (branch, origin)]
        assert strip[0] == strip[1]
        assert (branch.seed, branch.task_hash, branch.success) == (origin.seed, origin.task_hash, 1.0)
    assert {len(step) for step in engine.log if step} == {2}
    (again,) = play(
        Scripted(lambda key, turn, ids: plans[0][3]), chat, envs, [Branch(branches[2], 2)], WIDE, draws=[0]
    )  # a branch of a branch
    assert (again.ids, again.success, len(again.trajectory().steps)) == (episodes[0].ids, 1.0, 4)
    short = Limits(10, len(branches[6].ids) - 20)
    (late,) = play(engine, chat, envs, [Branch(episodes[0], 3)], short, draws=[0])
    assert late.verdict["reason"] == "context"


def test_what_an_environment_raises_comes_to_the_caller():
    for pace in (1, 10_000):
        engine = Scripted(listed([call("x"), call("y"), "Done."], [call("break")]), pace)
        with pytest.raises(ZeroDivisionError, match="the book is torn") as caught:
            play(engine, Letters(), books(2), [1, 2], WIDE, draws=[0, 1], patience=30)
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert "_execute" in names
        assert sorted(set(engine.released)) == [0, 1]


def test_a_failure_does_not_wait_for_others():
    BookEnv.gate.clear()
    try:
        with pytest.raises(ZeroDivisionError):
            play(Scripted(listed([call("wait")], [call("break")])), Letters(), books(2), [1, 2], WIDE, draws=[0, 1])
    finally:
        BookEnv.gate.set()


def test_an_engine_that_fails_comes_to_the_caller():
    def script(key, turn, ids):
        raise LookupError("no such word")

    with pytest.raises(LookupError, match="no such word"):
        play(Scripted(script), Letters(), books(2), [1, 2], WIDE, draws=[0, 1])


@pytest.mark.parametrize("group", [1, 4])
def test_nobody_waits_for_the_slowest(group):
    seeds = [s for s in range(20) for _ in range(group)]
    plans = [[call("wait"), "Done."], *([[call("x"), "Done."]] * (len(seeds) - 1))]
    BookEnv.gate.clear()
    ended = []

    def on_done(episode):
        ended.append(episode.index)
        if len(ended) == len(seeds) - 1:
            BookEnv.gate.set()

    try:
        episodes = play(
            Scripted(listed(*plans), pace=5), Letters(), books(4), seeds, WIDE, draws=seeds, workers=2, patience=0.01,
            on_done=on_done,
        )  # fmt: skip
    finally:
        BookEnv.gate.set()
    assert ended[-1] == 0
    assert [e.index for e in episodes] == list(range(len(seeds)))
    assert len(episodes[0].steps) == 2


@pytest.mark.parametrize("script", ["quick", "naps"])
def test_threads_do_not_show(script):
    seeds = [s for s in range(6) for _ in range(3)]
    words = ["x", "nap" if script == "naps" else "y"]
    plans = [[call(words[(key + t) % 2]) for t in range(key % 4)] + ["Done."] for key in range(len(seeds))]
    runs = []
    for workers in (8, 8, 1):
        engine = Scripted(listed(*plans), pace=7)
        episodes = play(engine, Letters(), books(6), seeds, WIDE, draws=seeds, workers=workers, patience=5.0)
        runs.append((plain(episodes), engine.log, engine.released))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("APIAgent-v0", {}),
        ("CodeAgent-v0", {"difficulty": 1, "sandbox": "process"}),
        ("SQL-v0", {}),
        ("WebLite-v0", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:sandbox='process'")
def test_environments_play_alike_in_any_thread(env_id, kwargs):
    seeds = [s for s in range(4) for _ in range(2)]
    plans = solved(env_id, seeds, **kwargs)
    runs = []
    for workers in (6, 1):
        envs = [gym.make(env_id, **kwargs) for _ in range(4)]
        episodes = play(
            Scripted(listed(*plans), pace=200), Letters(), envs, seeds, WIDE, draws=seeds, workers=workers, patience=30
        )
        assert [e.verdict["reason"] for e in episodes] == ["passed"] * len(seeds)
        for env in envs:  # in this thread, which has not been there
            agent_gym.restore(env, episodes[0].snapshots[-1])
            *_, info = env.step(plans[0][-1])
            assert info["verdict"] == episodes[0].verdict
            assert info["cost_total"] == episodes[0].cost_total
            env.close()
        runs.append(plain(episodes))
    assert runs[0] == runs[1]


def test_answers_are_one_message_a_result():
    result = {"name": "note", "error": None}
    two = [{**result, "content": "a\nb"}, {**result, "content": "", "name": "other"}]
    tool = {"role": "tool", "name": "note", "content": "a\nb"}
    other = {"role": "tool", "name": "other", "content": ""}
    user = {"role": "user", "content": "And now\nthis."}
    assert answers("a\nb\n", two) == [tool, other]
    assert answers("a\nb\n\nAnd now\nthis.", two) == [tool, other, user]
    assert answers("And now\nthis.", []) == [user]
    assert answers("", two[1:]) == [other]
    unheard = {**result, "content": "never", "error": "not_run"}
    assert answers("a\nb", [two[0], unheard]) == [tool]
    assert answers("And now\nthis.", [unheard]) == [user]
    assert answers("a\nb\nAnd now\nthis.", [two[0], unheard]) == [tool, user]


def test_answers_of_an_observation_that_was_cut():
    result = {"name": "note", "error": None}
    three = [{**result, "content": letter * 9} for letter in "abc"]
    observation = "aaaaaaaaa\nbbb... (cut)"
    said = answers(observation, three)
    assert [one["content"] for one in said] == ["aaaaaaaaa", "bbb... (cut)"]
    assert [one["content"] for one in answers("something else", three)] == ["something else"]
    assert "\n".join(one["content"] for one in answers("aaaaaaaaa\n", three)) == "aaaaaaaaa\n"


def test_answers_put_together_are_what_the_environment_said():
    """On real episodes, broken calls among them."""
    env = gym.make("APIAgent-v0")
    for seed in range(8):
        env.reset(seed=seed)
        for action in [call("x", "y"), "<tool_call>", *env.unwrapped.oracle()]:
            observation, _, terminated, truncated, info = env.step(action)
            said = answers(observation, info["tool_results"])
            assert "\n".join(one["content"] for one in said) == observation
            assert [one["role"] for one in said].count("tool") == len(info["tool_results"])
            if terminated or truncated:
                break


def test_environments_read_the_format_and_count_the_tokens():
    chat = Letters()
    bounds = {"tool_calls": 3.0, "read_tokens": float("inf")}
    envs = environments("APIAgent-v0", 2, chat=chat, split="test", bounds=bounds, domains=["shop"])
    assert len({id(env.unwrapped) for env in envs}) == 2
    base = envs[0].unwrapped
    assert base.parser is chat.parser
    assert base.token_counter("four") == 5
    assert (base.budget, base.on_budget) == ({"tool_calls": 3.0}, "record")
    assert base.reset(seed=0)[1]["task_id"]
    (episode,) = play(Scripted(listed(["Done."])), chat, envs, [0], Limits(100, 10**6), draws=[0])
    assert episode.cost_total["output_tokens"] == 6.0
    assert episode.env_kwargs == {
        "parser": "hermes", "split": "test", "budget": {"tool_calls": 3.0}, "on_budget": "record", "domains": ["shop"],
    }  # fmt: skip

    class Own:
        def parse(self, text):
            return PARSERS["hermes"].parse(text)

        def render(self, text, calls):
            return PARSERS["hermes"].render(text, calls)

    chat.parser = Own()
    (env,) = environments("APIAgent-v0", 1, chat=chat, split="train", bounds={}, on_budget="truncate")
    assert env.unwrapped.parser is chat.parser
    (episode,) = play(Scripted(listed(["Done."])), chat, [env], [0], Limits(100, 10**6), draws=[0])
    assert json.loads(episode.trajectory().to_json())["env_kwargs"] == {
        "split": "train", "budget": {}, "on_budget": "truncate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("env_id", "kwargs", "said"),
    [
        ("Nothing-v0", {}, "cannot make Nothing-v0: .*doesn't exist"),
        ("APIAgent-v0", {"domains": ["moon"]}, "cannot make APIAgent-v0: .*moon"),
        ("APIAgent-v0", {"colour": 1}, "cannot make APIAgent-v0: .*colour"),
        ("APIAgent-v0", {"tasks": "/no/such/file"}, "cannot make APIAgent-v0: .*/no/such/file"),
        ("no_such_module:Env-v0", {}, "cannot make no_such_module:Env-v0: .*no_such_module"),
    ],
)
def test_environments_that_cannot_be_made_are_refused(env_id, kwargs, said):
    with pytest.raises(Refused, match=said):
        environments(env_id, 1, chat=Letters(), split="train", bounds={}, **kwargs)


@pytest.mark.parametrize(("tasks", "world"), [(5, 1), (5, 2), (5, 4), (2, 4), (0, 2)])
def test_evaluation_is_shared_and_the_same_everywhere(tasks, world):
    seeds, samples = list(range(100, 100 + tasks)), 2
    plans = dict(zip(seeds, solved("Book-v0", seeds), strict=True))
    heard = {}

    def run(rank):
        ranks, own = Alone(rank, world), seeds[rank::world]
        gathered = []
        ranks.gather = lambda mine: gathered.append(mine) or [heard.get(at, mine) for at in range(world)]
        engine = Scripted(lambda key, turn, ids: plans[own[key // samples]][turn])
        found = evaluate(engine, Letters(), books(3), seeds, WIDE, ranks, draw=9, samples=samples)
        return gathered[0], found

    for rank in range(world):
        heard[rank] = run(rank)[0]
    lists = [run(rank)[1] for rank in range(world)]
    assert all(one == lists[0] for one in lists)
    assert [t.seed for t in lists[0]] == [seed for seed in seeds for _ in range(samples)]
    assert all(t.success for t in lists[0])
    alone = Scripted(lambda key, turn, ids: plans[seeds[key // samples]][turn])
    assert lists[0] == evaluate(alone, Letters(), books(3), seeds, WIDE, Alone(), draw=9, samples=samples)
    if tasks:
        first, second = lists[0][:2]
        assert first.steps[0].logprobs != second.steps[0].logprobs


def test_snapshots_are_those_before_each_step():
    env, chat = gym.make("Book-v0"), Letters()
    plan = [call("a"), call("b"), "Done."]
    (episode,) = play(Scripted(listed(plan)), chat, [env], [3], WIDE, draws=[0])
    env.reset(seed=3)
    for action, before in zip(plan, episode.snapshots, strict=True):
        assert snapshot(env) == before
        env.step(action)


def test_a_model_plays():
    """Its log-probabilities are those of the ids where they stand, threads change nothing, and no id is lost."""
    env = gym.make("APIAgent-v0", domains=["shop"])
    texts = [env.reset(seed=seed)[0] for seed in range(50)]
    model = small_model([*texts, *(action for plan in solved("APIAgent-v0", range(20)) for action in plan)])
    chat = chat_of(model)
    bounds = {"tool_calls": 3.0}
    envs = environments("APIAgent-v0", 4, chat=chat, split="train", bounds=bounds, domains=["shop"], max_turns=3)
    runs = []
    for workers in (8, 1):
        engine = TorchEngine(model, stops=chat.stops, temperature=0.7)
        limits, seeds = Limits(9, 2000), [1, 1, 2, 3, 4, 4]
        runs.append(play(engine, chat, envs, seeds, limits, draws=range(6), workers=workers, patience=30))
    assert plain(runs[0]) == plain(runs[1])
    for episode in runs[0]:
        scores = token_logprobs(model, [episode.ids], [episode.spans], 0.7)
        np.testing.assert_allclose(scores.logprobs.detach().numpy(), episode.logprobs, atol=2e-4)
        for t, (step, after) in enumerate(zip(episode.steps, episode.steps[1:], strict=False)):
            said = chat.reply(answers(after.observation, step.tool_results), closed=isinstance(step.action, str))
            assert episode.ids[episode.spans[t][1] : episode.spans[t + 1][0]] == said
    assert runs[0][0].ids != runs[0][1].ids  # the same task, other draws
    assert sum(episode.cut for episode in runs[0]) > 0
