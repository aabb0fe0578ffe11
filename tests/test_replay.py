"""Counterfactual credits on tasks small enough to work them out by hand (the tasks stand in shop_play.py)."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import ClassVar

import gymnasium as gym
import pytest
from shop_play import REFUND, call, make, play, turn, write_tasks

from agent_gym import (
    CHANNELS,
    Call,
    Delete,
    Drift,
    Outcome,
    Perturb,
    Swap,
    Tool,
    ToolCache,
    ToolEnv,
    Truncate,
    Verdict,
    counterfactuals,
)  # fmt: skip
from agent_gym.envs.api_agent.domains.shop import SCAN
from agent_gym.replay import atoms
from agent_gym.tools import canonical
from agent_gym.wrappers import RecordTrajectory

FIND, ORDERS, REFUNDED = (turn(one) for one in REFUND)
LOOK = call("get_order", order_id="O2001")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl")


@pytest.fixture
def env(tasks):
    return RecordTrajectory(make(tasks=tasks))


def sole(env, trajectory, intervention, **kwargs):
    (found,) = counterfactuals(env, trajectory, [intervention], **kwargs)
    assert found.base is trajectory
    assert found.intervention == intervention
    return found


def spent(trajectory, *steps):
    """What the given steps cost, by channel."""
    return {name: sum(trajectory.steps[t].cost[name] for t in steps) for name in CHANNELS}


def outcome(found):
    return found.success_credit, found.validity


# ---- delete ----


def test_cascade(env):
    """Without the customer's id no orders, without the orders no refund: only "Done." can still be said."""
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    assert base.reward == 1.0
    found = sole(env, base, Delete(0))
    assert outcome(found) == (1.0, ("ungrounded", "ungrounded", "executed"))
    assert found.verdict["reason"] == "wrong_state"
    assert found.cost_credit == pytest.approx(spent(base, 0, 1, 2))
    assert found.cost["tool_calls"] == 0.0
    found = sole(env, base, Delete(1))
    assert outcome(found) == (1.0, ("ungrounded", "executed"))
    assert found.cost_credit == pytest.approx(spent(base, 1, 2))
    assert outcome(sole(env, base, Delete(2))) == (1.0, ("executed",))


def test_literal_replay_hides_what_a_read_was_for(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    found = sole(env, base, Delete(0), grounding=False)
    assert outcome(found) == (0.0, ("executed",) * 3)
    assert found.cost_credit == pytest.approx(spent(base, 0))
    assert outcome(sole(env, base, Delete(0, 2), grounding=False)) == (0.0, ("executed",) * 2)
    assert outcome(sole(env, base, Delete(2), grounding=False)) == (1.0, ("executed",))


@pytest.mark.parametrize("grounding", [True, False])
def test_value_in_the_request_needs_no_read(env, grounding):
    base = play(env, "named", [LOOK, REFUNDED, "Done."])
    found = sole(env, base, Delete(0), grounding=grounding)
    assert outcome(found) == (0.0, ("executed",) * 2)
    assert found.cost_credit == pytest.approx(spent(base, 0))


@pytest.mark.parametrize("grounding", [True, False])
def test_value_in_another_kept_observation_needs_no_second_read(env, grounding):
    base = play(env, "cascade", [FIND, FIND, ORDERS, REFUNDED, "Done."])
    for t in (0, 1):
        found = sole(env, base, Delete(t), grounding=grounding)
        assert found.success_credit == 0.0
        assert set(found.validity) == {"executed"}
        assert found.cost_credit == pytest.approx(spent(base, t))
    both = sole(env, base, Delete(0, 2), grounding=grounding)
    assert both.success_credit == (1.0 if grounding else 0.0)


def test_redundant_check_is_worth_nothing_and_costs_what_it_cost(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, LOOK, "Done."])
    found = sole(env, base, Delete(3))
    assert outcome(found) == (0.0, ("executed",))
    assert found.cost_credit == pytest.approx(spent(base, 3))
    assert found.cost_credit["tool_calls"] == 1.0
    assert found.cost_credit["latency_ms"] > 0.0


def test_without_the_final_answer_nothing_is_submitted(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    found = sole(env, base, Delete(3))
    assert (found.success_credit, found.validity, found.reward, found.verdict) == (1.0, (), 0.0, None)
    assert found.cost_credit == pytest.approx(spent(base, 3))
    failed = play(env, "cascade", ["Done."])
    assert sole(env, failed, Delete(0)).success_credit == 0.0


def test_blocks(env):
    base = play(env, "cascade", [FIND, ORDERS, LOOK, LOOK, REFUNDED, "Done."])
    found = sole(env, base, Delete(2, 2))
    assert outcome(found) == (0.0, ("executed", "executed"))
    assert found.cost_credit == pytest.approx(spent(base, 2, 3))
    found = sole(env, base, Delete(0, 4))
    assert outcome(found) == (1.0, ("ungrounded", "executed"))
    assert sole(env, base, Delete(0, 6)).validity == ()


# ---- truncate, swap, perturb ----


def test_truncate_finds_the_earliest_passing_end(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, LOOK, ORDERS, "Done."])
    found = counterfactuals(env, base, [Truncate(t) for t in range(5)])
    assert [one.success_credit for one in found] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert [one.validity for one in found] == [("executed",)] * 5
    assert found[2].cost_credit == pytest.approx(spent(base, 3, 4))
    assert found[3].cost_credit == pytest.approx(spent(base, 4))
    assert found[4].cost_credit == pytest.approx(dict.fromkeys(CHANNELS, 0.0))
    whole = sole(env, base, Truncate(5))
    assert (whole.success_credit, whole.validity, whole.verdict) == (0.0, (), base.verdict)


def test_truncate_before_the_read_takes_the_answer_with_it(env):
    base = play(env, "question", [LOOK, call("get_order", order_id="O2003"), '{"status": "sent"}'])
    found = counterfactuals(env, base, [Truncate(0), Truncate(1)])
    assert [outcome(one) for one in found] == [(1.0, ("ungrounded",)), (0.0, ("executed",))]
    assert found[0].verdict is None
    assert outcome(sole(env, base, Truncate(0), grounding=False)) == (0.0, ("executed",))


def test_truncate_without_a_recorded_answer_submits_nothing(tasks):
    env = RecordTrajectory(make(tasks=tasks, max_turns=4))
    base = play(env, "cascade", [FIND, ORDERS, ORDERS, REFUNDED])
    assert base.verdict["reason"] == "turn_limit"
    found = sole(env, base, Truncate(1))
    assert (found.reward, found.verdict, found.validity) == (0.0, None, ())


def test_swap_with_the_wrong_record(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    found = sole(env, base, Swap(2, call("refund_order", order_id="O2002")))
    assert outcome(found) == (1.0, ("executed",))
    assert found.cost_credit["tool_calls"] == 0.0
    found = sole(env, base, Swap(0, call("get_customer", customer_id="C1002")))
    assert outcome(found) == (1.0, ("ungrounded", "ungrounded", "executed"))


def test_swap_with_the_scan_still_passes_and_costs_more(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    found = sole(env, base, Swap(0, call("list_customers")))
    assert outcome(found) == (0.0, ("executed",) * 3)
    scan = SCAN.milliseconds(2, 0, canonical(Call("list_customers")))
    assert found.cost_credit["latency_ms"] == pytest.approx(base.steps[0].cost["latency_ms"] - scan)
    assert found.cost_credit["latency_ms"] < 0.0
    assert found.cost_credit["tool_calls"] == 0.0


def test_swap_that_ends_the_episode_leaves_the_suffix_invalid(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    found = sole(env, base, Swap(0, "I give up."))
    assert outcome(found) == (1.0, ("invalid",) * 3)
    assert found.verdict["status"] == "fail"


def test_call_that_fails_in_the_replay_is_invalid(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    found = sole(env, base, Swap(0, REFUNDED), grounding=False)
    assert outcome(found) == (0.0, ("executed", "invalid", "executed"))


def test_perturb(env):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    found = sole(env, base, Perturb(0, lambda seen: seen.replace("C1001", "C????")))
    assert outcome(found) == (1.0, ("ungrounded", "ungrounded", "executed"))
    found = sole(env, base, Perturb(0, lambda seen: seen.replace("Ana Lee", "Bob Roe")))
    assert outcome(found) == (0.0, ("executed",) * 3)
    assert found.cost_credit == pytest.approx(dict.fromkeys(CHANNELS, 0.0))
    assert outcome(sole(env, base, Perturb(3, str.upper))) == (0.0, ())


# ---- several calls a turn, answers ----


def test_turn_of_which_one_call_is_ungrounded(env):
    product = ("get_product", {"product_id": "P3001"})
    base = play(env, "product", [FIND, turn(REFUND[1], product), REFUNDED, "Done."])
    found = sole(env, base, Delete(0))
    assert outcome(found) == (1.0, ("ungrounded", "ungrounded", "executed"))
    assert found.cost["tool_calls"] == 1.0  # get_product is named in the request and still made
    base = play(env, "product", [turn(REFUND[0], product), turn(REFUND[1], product), REFUNDED, "Done."])
    assert sole(env, base, Delete(0)).cost["tool_calls"] == 1.0


def test_answer_that_was_read_is_ungrounded_without_the_read(env):
    base = play(env, "question", [call("get_order", order_id="O2003"), '{"status": "sent"}'])
    assert base.reward == 1.0
    found = sole(env, base, Delete(0))
    assert (found.success_credit, found.validity, found.verdict) == (1.0, ("ungrounded",), None)
    assert outcome(sole(env, base, Delete(0), grounding=False)) == (0.0, ("executed",))
    told = play(env, "told", [call("get_order", order_id="O2003"), '{"status": "sent"}'])
    assert outcome(sole(env, told, Delete(0))) == (0.0, ("executed",))


@pytest.mark.parametrize("answer", ['{"stock": 17}', call("submit", answer={"stock": 17})])
def test_number_that_was_read(env, answer):
    base = play(env, "stock", [call("get_product", product_id="P3001"), answer])
    assert base.reward == 1.0
    assert outcome(sole(env, base, Delete(0))) == (1.0, ("ungrounded",))


@pytest.mark.parametrize(
    ("answer", "validity"),
    [
        ("Done.", "executed"),
        ("Refunded it.", "executed"),
        ("Refunded O2001.", "ungrounded"),
        ("Told ana@mail.com.", "executed"),
        ("It is this one:\n```\nO2001\n```", "ungrounded"),
        ("It was O2001:\n```\nDone.\n```", "executed"),
        ('{"note": ""}', "executed"),
        ("", "executed"),
    ],
)
def test_answers_in_plain_text(env, answer, validity):
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, answer])
    assert sole(env, base, Delete(0, 2)).validity == ("ungrounded", validity)


def test_atoms():
    assert atoms({"a": "O1234", "b": [5, 2.5, True, None], "c": {"d": "see 'x y' at a@b.org, /etc/x1"}}) == {
        "O1234", "5", "2.5", "see 'x y' at a@b.org, /etc/x1", "x y", "a@b.org", "/etc/x1",
    }  # fmt: skip
    assert atoms({"a": "", "b": {}}) == frozenset()


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 6])
def test_every_step_of_an_oracle_is_necessary(calls):
    """Of the tasks judged by their state alone: an answer such as "open" may also stand in what was kept."""
    env, done = RecordTrajectory(make(difficulty=calls)), 0
    for seed in range(40):
        env.reset(seed=seed)
        if env.unwrapped.task.answer is not None:
            continue
        done += 1
        base = play(env, None, env.unwrapped.oracle(), seed=seed)
        found = counterfactuals(env, base, [Delete(t) for t in range(len(base.steps))])
        assert [one.success_credit for one in found] == [1.0] * len(base.steps), base.task_id
    assert done >= 5


# ---- budgets ----


def test_budget_ends_a_replay(tasks):
    env = RecordTrajectory(make(tasks=tasks, budget={"tool_calls": 3}))
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    assert base.reward == 1.0
    found = sole(env, base, Swap(0, turn(REFUND[0], ("list_orders", {}))))
    assert outcome(found) == (1.0, ("executed", "invalid", "invalid"))
    assert found.verdict["reason"] == "budget"
    assert found.cost["tool_calls"] == 4.0


# ---- cache, workers, the running episode ----


def test_cache_merges_histories_that_meet_in_one_state(env):
    base = play(env, "cascade", [LOOK, FIND, ORDERS, REFUNDED, "Done."])
    cache = ToolCache()
    counterfactuals(env, base, [Delete(0)], cache=cache)
    assert (cache.hits, cache.misses) == (3, 4)
    assert cache.hit_rate == 3 / 7
    assert env.unwrapped.tool_cache is None


def test_workers_give_the_same(tasks):
    env = RecordTrajectory(make(tasks=tasks, token_counter=len))
    base = play(env, "cascade", [FIND, LOOK, ORDERS, REFUNDED, "Done."])
    wanted = [Delete(t) for t in range(5)] + [Swap(0, call("list_customers")), Perturb(0, str.lower)]
    plain = counterfactuals(env, base, wanted)
    assert counterfactuals(env, base, wanted, workers=2) == plain
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert counterfactuals(env, base, wanted, cache=ToolCache(), workers=pool) == plain
        assert counterfactuals(env, base, wanted, grounding=False, workers=pool) == counterfactuals(
            env, base, wanted, grounding=False
        )
    with pytest.raises(ValueError, match=r"gym\.make"):
        counterfactuals(env.unwrapped.__class__(tasks=tasks), base, wanted, workers=2)


def test_running_episode_goes_on_untouched(tasks):
    env, twin = RecordTrajectory(make(tasks=tasks)), RecordTrajectory(make(tasks=tasks))
    base = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    play(twin, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    for one in (env, twin):
        one.reset(seed=7, options={"task": "question"})
        one.step(call("get_order", order_id="O2003"))
    counterfactuals(env, base, [Delete(0), Swap(3, REFUNDED)])
    with pytest.raises(Drift):
        counterfactuals(env, replace(base, task_id="named"), [Delete(0)])
    for action in ('<tool_call>{"name"', '{"status": "sent"}'):
        assert env.step(action) == twin.step(action)
    assert env.trajectories == twin.trajectories
    assert env.reset() == twin.reset()


def test_interventions_must_fit(env):
    base = play(env, "cascade", [FIND, "Done."])
    for bad in (Delete(2), Delete(-1), Delete(0, 3), Delete(0, 0), Truncate(2), Swap(5, "x"), Perturb(2, str)):
        with pytest.raises(ValueError, match="does not fit a trajectory of 2 steps"):
            counterfactuals(env, base, [bad])


# ---- what the agent knows ----


class Clue(ToolEnv):
    """A vault whose word changes with every turn of its wheel; the task is to tell the word after one turn."""

    @dataclass(frozen=True)
    class State:
        turns: int = 0
        words: tuple[str, ...] = ("V4821", "V7310", "V9052")

        @property
        def hash(self):
            return repr(self)

        def apply(self, delta):
            return replace(self, turns=delta)

    @dataclass(frozen=True)
    class Job:
        id: str
        world: object
        wanted: str
        request: str = "Turn the red wheel once and tell the word."
        latency_seed: int = 0

    def turn(world):
        """Turn the wheel."""
        return Outcome("Turned.", world.turns + 1)

    def word(world):
        """Read the word."""
        return Outcome(f"The word is {world.words[world.turns]}, page 12 of 40, wheels: steel_wheel, Brass crank.")

    def take(world, what: str = "", page: int = 0):
        """Take something."""
        return Outcome(f"Taken: {len(what)}.")

    def echo(world, text: str):
        """Say something."""
        return Outcome(f"You said '{text}'.")

    def select(world, names: str):
        """Name some wheels, in capital or small letters."""
        return Outcome("Selected.")

    TOOLS: ClassVar = {
        "turn": Tool(turn, context=True),
        "word": Tool(word, context=True, reads_only=True),
        "take": Tool(take, context=True, reads_only=True),
        "echo": Tool(echo, context=True, reads_only=True),
        "select": Tool(select, context=True, reads_only=True, atoms=lambda a: frozenset(a["names"].split())),
    }

    def _make_task(self, task_id):
        return self.Job(task_id or "7", self.State(), {"7": "V7310", "small": "12"}.get(task_id or "7", ""))

    def _tools(self):
        return self.TOOLS

    def _execute(self, tool, arguments):
        return tool.fn(self._world, **arguments)

    def _verify(self, answer):
        right = (self._world.turns == 1 and str(answer).strip(".") == self.task.wanted) or not self.task.wanted
        return Verdict("pass" if right else "fail", "passed" if right else "wrong_answer", float(right))

    def oracle(self):
        return [turn(("turn", {})), turn(("word", {})), "V7310"]


gym.register("Clue-v0", Clue, disable_env_checker=True)
TURN, WORD = call("turn"), call("word")


def first_credit(task_id, *actions):
    """u of the first step, and what became of the later ones."""
    env = RecordTrajectory(gym.make("Clue-v0"))
    base = play(env, task_id, list(actions))
    assert base.success
    return outcome(sole(env, base, Delete(0)))


def test_what_an_action_no_longer_shows_is_removed():
    """Without the turn of the wheel the same reading shows another word."""
    assert first_credit("7", TURN, WORD, "V7310") == (1.0, ("executed", "ungrounded"))


def test_a_short_final_text_is_one_atom():
    env = RecordTrajectory(gym.make("Clue-v0"))
    base = play(env, "free", [WORD, "Brass crank."])
    assert outcome(sole(env, base, Delete(0))) == (1.0, ("ungrounded",))
    assert outcome(sole(env, play(env, "free", [WORD, "Done."]), Delete(0))) == (0.0, ("executed",))


def test_the_agents_own_words_are_known():
    """It invents V4821 before anything shows it: the reading that shows it, too, is not what it came from."""
    env = RecordTrajectory(gym.make("Clue-v0"))
    base = play(env, "free", [call("take", what="V4821"), WORD, call("take", what="V4821"), "Done."])
    assert outcome(sole(env, base, Delete(1))) == (0.0, ("executed", "executed"))
    assert outcome(sole(env, base, Delete(0))) == (0.0, ("executed", "executed", "executed"))
    base = play(env, "free", [WORD, call("take", what="V4821"), call("take", what="V4821"), "Done."])
    assert sole(env, base, Delete(0)).validity == ("ungrounded", "ungrounded", "executed")


def test_small_numbers_are_copies_in_answers_alone():
    env = RecordTrajectory(gym.make("Clue-v0"))
    base = play(env, "free", [WORD, call("take", page=12), "Done."])
    assert sole(env, base, Delete(0)).validity == ("executed", "executed")
    for answer in ("12", call("submit", answer=12), '{"page": 12}'):
        assert sole(env, play(env, "free", [WORD, answer]), Delete(0)).validity == ("ungrounded",)


@pytest.mark.parametrize("names", ["STEEL_WHEEL", "steel_wheel", "Steel_Wheel"])
def test_names_are_known_in_either_case(names):
    env = RecordTrajectory(gym.make("Clue-v0"))
    base = play(env, "free", [WORD, call("select", names=names), "Done."])
    assert sole(env, base, Delete(0)).validity == ("ungrounded", "executed")


def test_words_of_a_composed_string_are_copies():
    env = RecordTrajectory(gym.make("Clue-v0"))
    base = play(env, "free", [WORD, call("take", what="red crank"), call("take", what="red wheel"), "Done."])
    assert sole(env, base, Delete(0)).validity == ("ungrounded", "executed", "executed")


def test_the_echo_of_a_left_out_call_is_no_source():
    """An answer that repeats the agent's own words does not make them a copy; words that it had from elsewhere are."""
    env = RecordTrajectory(gym.make("Clue-v0"))
    echo, again = call("echo", text="no such text"), call("take", what="no such luck")
    assert sole(env, play(env, "free", [echo, again, "Done."]), Delete(0)).validity == ("executed", "executed")
    both = turn(("echo", {"text": "no such text"}), ("take", {}))
    one = sole(env, play(env, "free", [both, again, "Done."]), Delete(0, call=0))
    assert one.validity == ("executed", "executed")
    base = play(env, "free", [WORD, call("echo", text="V4821"), call("take", what="V4821"), "Done."])
    assert sole(env, base, Delete(0, 2)).validity == ("ungrounded", "executed")
