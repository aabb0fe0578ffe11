"""The built-in domains: what they offer, that their tasks are sound, and that the splits share no entity."""

import itertools
import json
import pickle
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

import agent_gym
from agent_gym.env import Outcome
from agent_gym.envs.api_agent import APIAgentEnv, Domain
from agent_gym.envs.api_agent.domain import (
    DOMAINS,
    MOST_CALLS,
    TWINS,
    APITask,
    _atoms,
    compose,
    composition_split,
    run_tool,
)
from agent_gym.envs.api_agent.domains import NAMES
from agent_gym.envs.api_agent.domains.calendar import Event, Room
from agent_gym.envs.api_agent.domains.files import File, Share
from agent_gym.envs.api_agent.domains.mail import Mail, Sent
from agent_gym.envs.api_agent.domains.shop import Customer, Order, _case
from agent_gym.envs.api_agent.domains.travel import Booking, Flight
from agent_gym.envs.api_agent.guesses import gambles
from agent_gym.envs.api_agent.world import Record, Transaction, World, new_key
from agent_gym.envs.splits import SPLITS, split_of
from agent_gym.gate import blind_passes, gate_task, main
from agent_gym.tools import Call, ToolError

LEVELS = range(1, MOST_CALLS + 1)
DAY = re.compile(r"2031-\d\d-\d\d")


def drawn(split: str, count: int) -> list[APITask]:
    return [compose(split, 1 + seed % MOST_CALLS, seed, NAMES) for seed in range(count)]


@pytest.fixture(scope="module")
def many() -> dict[str, list[APITask]]:
    return {split: drawn(split, 1000) for split in SPLITS}


@pytest.fixture(scope="module")
def env() -> gym.Env:
    return gym.make("APIAgent-v0", disable_env_checker=True)


def play(env: gym.Env, task_id: str) -> agent_gym.Trajectory:
    observation, _ = env.reset(seed=0, options={"task": task_id})
    steps, reward, info = [], 0.0, {}
    for action in env.unwrapped.oracle():
        before = observation
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append(
            agent_gym.Step(
                before, action, info["cost"], info["tool_results"], info["state_hash"], terminated, truncated
            )
        )
    return agent_gym.Trajectory(
        task_id, "APIAgent-v0", {}, 0, tuple(steps), reward, info["verdict"], info["cost_total"]
    )


# ---- what there is ----


def test_names_and_counts() -> None:
    assert NAMES == ("shop", "calendar", "mail", "files", "travel")
    tools = [name for domain in NAMES for name in DOMAINS[domain].tools]
    tables = [name for domain in NAMES for name in DOMAINS[domain].tables]
    assert len(tools) == len(set(tools)) >= 46
    assert len(tables) == len(set(tables))
    for name in NAMES:
        assert any(tool.startswith("list_") for tool in DOMAINS[name].tools)
        assert 5 <= len(DOMAINS[name].goals) <= 7


def test_schemas(env: gym.Env) -> None:
    for domain in NAMES:
        for tool in DOMAINS[domain].tools.values():
            schema = json.loads(tool.schema_json)["function"]
            assert schema["name"] == tool.name
            assert schema["description"].endswith(".")
            parameters = schema["parameters"]
            assert parameters["type"] == "object"
            assert parameters["additionalProperties"] is False
            properties = parameters["properties"]
            assert parameters.get("required", []) == [*properties]
            for entry in properties.values():
                assert entry["type"] in ("string", "array")
                assert entry["description"].endswith(".")


def test_every_difficulty_goal_and_naming(many: dict[str, list[APITask]]) -> None:
    ways = {f"{d}.{goal.build.__name__}:{by}" for d in NAMES for goal in DOMAINS[d].goals for by in goal.by}
    sources = {f"{d}.{source.build.__name__}" for d in NAMES for source in DOMAINS[d].sources}
    for split in SPLITS:
        assert {len(task.calls) for task in many[split]} == {*LEVELS}
        atoms = {atom for task in many[split] for atom in task.composition}
        assert {atom.split("<")[0] for atom in atoms} == ways
        assert {atom.split("<")[1] for atom in atoms if "<" in atom} == sources
        assert {name for task in many[split] for name in task.domains} == {*NAMES}


def test_some_tools_are_never_needed(many: dict[str, list[APITask]]) -> None:
    used = {call.name for split in SPLITS for task in many[split] for call in task.calls}
    for name in NAMES:
        idle = {*DOMAINS[name].tools} - used
        assert any(not tool.startswith("list_") or tool == "list_time_zones" for tool in idle)
        assert any(tool.startswith("list_") for tool in idle)


# ---- the domains argument ----

OWN = ("auction", "zoo")  # of the user, registered in the other order


@pytest.fixture(scope="module")
def own_domains():
    with pytest.MonkeyPatch.context() as patch:
        for name in reversed(OWN):
            patch.setitem(DOMAINS, name, Domain(name))
        yield


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*NAMES, *OWN]), min_size=1, max_size=9), st.randoms(), st.integers(0, 2**31))
def test_the_order_of_domains_counts_for_nothing(own_domains, names: list[str], random, seed: int) -> None:
    other = [*names, *random.sample(names, len(names) // 2)]
    random.shuffle(other)
    if not {*names} & {*NAMES}:
        return  # own domains without a goal have no task
    first, second = APIAgentEnv(domains=names), APIAgentEnv(domains=other)
    assert first.domains == second.domains == tuple(name for name in (*NAMES, *OWN) if name in names)
    assert first.levels == second.levels
    assert first.reset(seed=seed) == second.reset(seed=seed)  # the tools' order, the request and the task's id
    one, two = first.task, second.task
    assert (one.world.hash, one.domains, one.calls, one.answer) == (two.world.hash, two.domains, two.calls, two.answer)
    assert first.reset(options={"task": one.id}) == second.reset(options={"task": one.id})
    assert second.task.calls == one.calls


def test_all_domains_in_any_order_are_the_default() -> None:
    default, turned = APIAgentEnv(), APIAgentEnv(domains=NAMES[::-1])
    assert default.domains == turned.domains == NAMES
    for task_id in ("train-3-42", "train-8-7"):
        assert default.reset(options={"task": task_id}) == turned.reset(options={"task": task_id})


def test_one_domain_may_stand_alone() -> None:
    alone, listed = APIAgentEnv(domains="shop"), APIAgentEnv(domains=["shop"])
    assert alone.domains == listed.domains == ("shop",)
    assert alone.reset(seed=3) == listed.reset(seed=3)


@pytest.mark.parametrize(
    ("domains", "says"),
    [
        ([], r"domains=\[\]: one name or a list of names; there are shop, calendar, mail, files, travel"),
        ((), r"domains=\(\): one name or a list of names; there are shop"),
        ("", r"domains: '' is not registered; there are shop"),
        ("bank", r"domains: 'bank' is not registered; there are shop"),
        ("shop,mail", r"domains: 'shop,mail' is not registered"),
        (["shop", "bank"], r"domains: 'bank' is not registered"),
        (5, r"domains=5: one name or a list of names"),
        ([5], r"domains=\[5\]: one name or a list of names"),
        (["shop", None], r"domains=\['shop', None\]: one name or a list"),
        ([["shop"]], r"domains=\[\['shop'\]\]: one name or a list"),
        (b"shop", r"domains=b'shop': one name or a list"),
        (True, r"domains=True: one name or a list"),
    ],
)
def test_wrong_domains_are_named(domains, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        APIAgentEnv(domains=domains)


# ---- the gate, and necessity ----


@pytest.mark.parametrize("split", SPLITS)
def test_gate(split: str) -> None:
    env = gym.make("APIAgent-v0", split=split, disable_env_checker=True)
    faults = {task.id: gate_task(env, task.id, 0) for task in drawn(split, 152)}
    assert not {task_id: found for task_id, found in faults.items() if found}


def test_gate_reports_faults(env: gym.Env, monkeypatch: pytest.MonkeyPatch) -> None:
    base = type(env.unwrapped)
    task_id = "train-3-5"
    monkeypatch.setattr(base, "oracle", lambda self: ["no idea"])
    assert [fault.split(":")[0] for fault in gate_task(env, task_id, 0)] == ["oracle", "necessity"]
    monkeypatch.undo()
    monkeypatch.setattr(base, "cheats", lambda self: [self.oracle()])
    assert [fault.split(":")[0] for fault in gate_task(env, task_id, 0)] == ["cheat"]


def as_line(task: APITask) -> dict:
    """A generated task in the form of a task file."""
    tables = {name: [r.model_dump(mode="json") for r in table.values()] for name, table in task.world.tables.items()}
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in task.calls]
    return {
        "id": f"own {task.id}", "request": task.request, "domains": list(task.domains), "tables": tables,
        "calls": calls, "answer": task.answer,
    }  # fmt: skip


def test_gate_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(["--env-id", "APIAgent-v0", "--env-kwargs", '{"split":"test"}', "--n", "10"]) == 0
    assert "10 tasks, 10 sound, 0 broken" in capsys.readouterr().out
    for wrong in (
        ["--env-id", "Nope-v0"],
        ["--env-id", "CartPole-v1"],
        ["--env-id", "APIAgent-v0", "--env-kwargs", "["],
        ["--env-id", "APIAgent-v0", "--env-kwargs", "[]"],
        ["--env-id", "APIAgent-v0", "--env-kwargs", '{"split":"dev"}'],
        ["--env-id", "APIAgent-v0", "--tasks", "no-such-file"],
        ["--env-id", "APIAgent-v0", "--n", "0"],
    ):
        assert main(wrong) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("gate: ")
        assert err.count("\n") == 1
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(as_line(compose("train", 2, seed, ("shop",)))) + "\n" for seed in (1, 2)))
    assert main(["--env-id", "APIAgent-v0", "--tasks", str(path), "--n", "10"]) == 0
    assert "2 tasks, 2 sound, 0 broken" in capsys.readouterr().out
    monkeypatch.setattr(agent_gym.envs.api_agent.APIAgentEnv, "oracle", lambda self: ["no idea"])
    assert main(["--env-id", "APIAgent-v0", "--n", "2"]) == 1
    assert "oracle: fail" in capsys.readouterr().out


def test_declared_calls_are_the_oracles(many: dict[str, list[APITask]]) -> None:
    for split in SPLITS:
        for task in many[split]:
            assert len(task.calls) == int(task.id.split("-")[1])


def test_no_call_can_do_the_work_of_two(many: dict[str, list[APITask]]) -> None:
    """Listings and batch calls stand in for the other calls of their group, and no task has two of a group."""
    groups = {tool: group for name in NAMES for tool, group in DOMAINS[name].groups.items()}
    for split in SPLITS:
        for task in many[split]:
            count = Counter(groups[call.name] for call in task.calls if call.name in groups)
            assert not count or max(count.values()) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_every_call_is_necessary_by_replay(split: str) -> None:
    env = gym.make("APIAgent-v0", split=split, disable_env_checker=True)
    for task in drawn(split, 40):
        trajectory = play(env, task.id)
        assert trajectory.success
        deleted = [agent_gym.Delete(t) for t in range(len(task.calls))]
        for replay in agent_gym.counterfactuals(env, trajectory, deleted, grounding=True):
            assert replay.reward == 0.0, (task.request, replay.intervention)
            assert replay.success_credit == 1.0


def test_writes_have_a_trap(many: dict[str, list[APITask]]) -> None:
    for task in many["train"]:
        writes = sum(not task.tools[call.name].reads_only for call in task.calls)
        assert len(task.traps) == TWINS * writes
        for trap in task.traps:
            assert run_tool(task.tools[trap.name], task.tools[trap.name].validate(trap.arguments), task.goal).delta


# ---- guesses ----


def reader_of_one_listing(env: gym.Env, task: APITask, listing: str, tool: str, argument: str) -> bool:
    """Take the first record of a listing with a word of the request and a state that the write takes, and write."""
    env.reset(seed=0, options={"task": task.id})
    rows = json.loads(env.step(env.unwrapped.parser.render("", [Call(listing)]))[0])
    words = re.findall(r"\w+", task.request)
    fitting = [row for row in rows if {*map(str, row.values())} & {*words}]
    for row in random.Random(task.id).sample(fitting, len(fitting)):
        key = next(iter(row.values()))
        *_, info = env.step(env.unwrapped.parser.render("", [Call(tool, {argument: key})]))
        if info["tool_results"][0]["error"] is None:
            break
    return env.step("Done.")[1] == 1.0


@pytest.mark.parametrize(
    ("domain", "level", "goal", "listing", "tool", "argument"),
    [
        ("shop", 3, "shop.refund:email", "list_orders", "refund_order", "order_id"),
        ("shop", 3, "shop.cancel:email", "list_orders", "cancel_order", "order_id"),
        ("mail", 3, "mail.delete:person", "list_mails", "delete_mail", "mail_id"),
    ],
)
def test_one_scan_and_a_coin_seldom_pass(domain, level, goal, listing, tool, argument) -> None:
    tasks = [compose(split, level, seed, (domain,)) for split in ("train", "test") for seed in range(1000)]
    alone = [task for task in tasks if task.composition == (goal,)][:100]
    split = alone[0].id.split("-")[0]  # one goal is one composition
    env = gym.make("APIAgent-v0", domains=[domain], split=split, disable_env_checker=True)
    assert len(alone) >= 60
    passed = sum(reader_of_one_listing(env, task, listing, tool, argument) for task in alone)
    assert 0 < passed < len(alone) * 0.3  # 1 of 5 by chance


def test_the_gate_finds_what_can_be_guessed(env: gym.Env, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one namesake, as the tasks once had, a listing and a coin pass every second time."""
    monkeypatch.setitem(_case.__globals__, "TWINS", 1)
    tasks = [compose("train", 3, seed, ("shop",)) for seed in range(200)]
    task = next(task for task in tasks if task.composition == ("shop.refund:email",))
    shop = gym.make("APIAgent-v0", domains=["shop"], disable_env_checker=True)
    assert gate_task(shop, task.id, 0) == [
        "guess: list_orders and a guess passes 1 of 2 times, with fewer calls than the oracle"
    ]


def test_every_cheap_way_is_among_the_gates_guesses(many: dict[str, list[APITask]]) -> None:
    """Every goal whose look-ups are two calls or more, or behind a source, is tried with a listing."""
    tried = {name for split in SPLITS for task in many[split][:200] for name, _ in gambles(task)}
    assert {
        f"list_{what} and a guess" for what in ("orders", "customers", "events", "mails", "files", "flights")
    } <= tried
    assert not any(name.startswith("leaving out") for name in tried)


def test_the_most_frequent_answer_seldom_passes(env: gym.Env, many: dict[str, list[APITask]]) -> None:
    tasks = many["train"][:400]
    answers = [(task.id, 0, "any", json.dumps(task.answer)) for task in tasks if task.answer]
    assert len(answers) > 150
    assert len(blind_passes(env, answers)) < 0.05 * len(tasks)


# ---- splits ----


def entities(task: APITask) -> set[str]:
    """Every string of the world that is not of an enumeration, without the days."""
    records = [record for table in task.world.tables.values() for record in table.values()]
    found = {
        getattr(record, name)
        for record in records
        for name, field in type(record).model_fields.items()
        if field.annotation is str
    }
    return {value for value in found if not DAY.fullmatch(value)}


def test_splits_share_no_entity(many: dict[str, list[APITask]]) -> None:
    found = [{entity for task in many[split][:300] for entity in entities(task)} for split in SPLITS]
    assert min(map(len, found)) > 1000
    assert all(not here & there for here, there in itertools.combinations(found, 2))


def test_train_keeps_most_entities() -> None:
    """Of every kind of name, so that the names of each split stay many."""
    for kind in ("O{}", "{} Bado", "/ba/{}.txt", "ba{}@mail.org"):
        count = Counter(split_of(kind.format(number)) for number in range(1000, 10_000))
        assert 0.6 < count["train"] / 9000 < 0.65
        assert 0.1 < count["validation"] / 9000 < 0.15


def test_only_test_has_compositions_of_its_own(many: dict[str, list[APITask]]) -> None:
    found = {split: {task.composition for task in many[split]} for split in SPLITS}
    atoms = {atom.name: atom for atoms in _atoms(NAMES).values() for atom in atoms}
    for split, compositions in found.items():
        assert len(compositions) > 100
        of = {composition_split([atoms[name] for name in composition]) for composition in compositions}
        assert of == {"test" if split == "test" else "train"}
    assert len(found["validation"] & found["train"]) > 50
    assert not found["test"] & (found["validation"] | found["train"])


# ---- costs ----


def results(task: APITask, call: Call) -> tuple[Outcome, float]:
    tool = task.tools[call.name]
    outcome = run_tool(tool, tool.validate(call.arguments), task.world)
    return outcome, tool.latency.milliseconds(outcome.units, task.latency_seed, call.name)


def test_scans_are_slower_and_longer_than_lookups(many: dict[str, list[APITask]]) -> None:
    compared = set()
    for task in many["train"][:400]:
        groups = {tool: group for name in task.domains for tool, group in DOMAINS[name].groups.items()}
        for call in task.calls:
            scan = next((t for t, g in groups.items() if g == groups.get(call.name) and t.startswith("list_")), None)
            if scan is None:
                continue
            (looked, quick), (scanned, slow) = results(task, call), results(task, Call(scan))
            assert slow > 3 * quick
            assert len(scanned.content) > len(looked.content)
            compared.add(call.name)
    assert len(compared) >= 15


@pytest.mark.parametrize(
    ("goal", "single", "many_at_once", "one", "several"),
    [
        ("shop.cancel_all:customer", "cancel_order", "cancel_orders", "order_id", "order_ids"),
        ("calendar.days:event", "get_event", "get_events", "event_id", "event_ids"),
        ("mail.senders:mail", "read_mail", "read_mails", "mail_id", "mail_ids"),
        ("files.notes:file", "stat_file", "stat_files", "path", "paths"),
        ("travel.passengers:booking", "get_booking", "get_bookings", "booking_id", "booking_ids"),
    ],
)
def test_batches_are_cheaper(
    many: dict[str, list[APITask]], goal: str, single: str, many_at_once: str, one: str, several: str
) -> None:
    task = next(task for split in SPLITS for task in many[split] if goal in task.composition)
    batch = next(call for call in task.calls if call.name == many_at_once)
    alone = sum(results(task, Call(single, {one: key}))[1] for key in batch.arguments[several])
    assert results(task, batch)[1] < alone


# ---- refusals ----

WORLD = World.of(
    {
        "customers": [Customer(id="C1", name="Ba Du", email="a@b.c", tier="gold")],
        "orders": [Order(id="O1", customer="C1", item="Bo", status="sent")],
        "products": [],
        "events": [Event(id="E1", title="Bo", day="2031-01-01", organiser="a@b.c", room="R1")],
        "rooms": [Room(id="R1", name="Bo"), Room(id="R2", name="Da", access="private")],
        "mails": [Mail(id="M1", sender="a@b.c", subject="Bo", folder="archive")],
        "contacts": [],
        "sent": [Sent(id=new_key("S", "a@b.c", "Bo"), to="a@b.c", subject="Bo")],
        "files": [
            File(path="/a/b.txt", owner="a@b.c", note="Bo", mode="locked"),
            File(path="/a/c.txt", owner="a@b.c", note="Bo"),
        ],
        "shares": [Share(id="H1", path="/a/b.txt", reader="a@b.c")],
        "flights": [
            Flight(id="F1", to="Bo", day="2031-01-01"),
            Flight(id="F2", to="Bo", day="2031-01-02", seats="none"),
        ],
        "bookings": [
            Booking(id="B1", passenger="a@b.c", flight="F1"),
            Booking(id="B2", passenger="a@b.c", flight="F2", cabin="crew"),
        ],
    }
)


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        ("not_found", "cancel_orders", {"order_ids": ["O9"]}),
        ("not_found", "find_customer", {"email": "x@y.z"}),
        ("conflict", "cancel_order", {"order_id": "O1"}),
        ("not_permitted", "set_tier", {"customer_id": "C1", "tier": "silver"}),
        ("not_found", "cancel_events", {"event_ids": ["E1", "E9"]}),
        ("conflict", "create_event", {"title": "Da", "day": "2031-01-01", "room_id": "R1"}),
        ("conflict", "move_event", {"event_id": "E1", "day": "2031-01-01"}),
        ("not_permitted", "create_event", {"title": "Da", "day": "2031-01-01", "room_id": "R2"}),
        ("not_found", "find_contact", {"name": "Ba Du"}),
        ("conflict", "send_mail", {"to": "a@b.c", "subject": "Bo"}),
        ("conflict", "move_mail", {"mail_id": "M1", "folder": "archive"}),
        ("not_permitted", "delete_mails", {"mail_ids": ["M1"]}),
        ("not_found", "shares_of", {"path": "/x"}),
        ("conflict", "share_file", {"path": "/a/b.txt", "email": "a@b.c"}),
        ("conflict", "move_file", {"path": "/a/c.txt", "new_path": "/a/b.txt"}),
        ("not_permitted", "delete_files", {"paths": ["/a/c.txt", "/a/b.txt"]}),
        ("not_found", "get_flight", {"flight_id": "F9"}),
        ("conflict", "book_flight", {"flight_id": "F1", "email": "a@b.c"}),
        ("conflict", "set_cabin", {"booking_id": "B1", "cabin": "economy"}),
        ("not_permitted", "book_flight", {"flight_id": "F2", "email": "x@y.z"}),
        ("not_permitted", "cancel_bookings", {"booking_ids": ["B1", "B2"]}),
    ],
)
def test_a_refusal_changes_nothing(env: gym.Env, kind: str, name: str, arguments: dict) -> None:
    task = APITask("refusals", "", WORLD, NAMES, ())
    with pytest.raises(ToolError) as refusal:
        run_tool(task.tools[name], task.tools[name].validate(arguments), WORLD)
    assert refusal.value.kind == kind
    env.reset(seed=0)
    base = env.unwrapped
    base.task, base._world = task, WORLD
    _, _, _, _, info = env.step(base.parser.render("", [Call(name, arguments)]))
    assert info["tool_results"][0]["error"] == kind
    assert info["state_hash"] == WORLD.hash


def test_created_records_do_not_remember_the_order() -> None:
    tools = APITask("created", "", WORLD, NAMES, ()).tools
    calls = [
        Call("send_mail", {"to": "x@y.z", "subject": "Da"}),
        Call("create_event", {"title": "Da", "day": "2031-02-01", "room_id": "R1"}),
        Call("book_flight", {"flight_id": "F1", "email": "x@y.z"}),
        Call("share_file", {"path": "/a/b.txt", "email": "x@y.z"}),
    ]
    hashes = set()
    for order in (calls, calls[::-1]):
        world = WORLD
        for call in order:
            world = world.apply(run_tool(tools[call.name], tools[call.name].validate(call.arguments), world).delta)
            with pytest.raises(ToolError) as refusal:
                run_tool(tools[call.name], tools[call.name].validate(call.arguments), world)
            assert refusal.value.kind == "conflict"
        hashes.add(world.hash)
    assert len(hashes) == 1


def test_a_moved_or_deleted_file_ends_its_shares() -> None:
    tools = APITask("shares", "", WORLD, NAMES, ()).tools
    world = WORLD.apply(run_tool(tools["share_file"], {"path": "/a/c.txt", "email": "x@y.z"}, WORLD).delta)
    for name, arguments in (
        ("move_file", {"path": "/a/c.txt", "new_path": "/d"}),
        ("delete_file", {"path": "/a/c.txt"}),
    ):
        after = world.apply(run_tool(tools[name], arguments, world).delta)
        assert [share.key for share in after.tables["shares"].values()] == ["H1"]
        assert "/a/c.txt" not in after.tables["files"]


# ---- worlds ----


def test_a_world_of_the_same_hash_is_not_the_goal(env: gym.Env, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records whose digests add up to the goal's sum can be found in minutes; here all digests are the same."""
    monkeypatch.setattr("agent_gym.envs.api_agent.world._digest", lambda table, record: 1)
    task = next(
        task for task in drawn("train", 50) if task.writes and not task.answer and task.goal.hash == task.world.hash
    )
    assert task.world.differences(task.goal) != {}
    env.reset(seed=0, options={"task": task.id})
    _, reward, _, _, info = env.step("Done.")
    assert (reward, info["verdict"]["reason"]) == (0.0, "wrong_state")
    assert info["state_hash"] == task.goal.hash


class Line(BaseModel):
    item: str
    count: int


class Basket(Record):
    id: str
    lines: list[Line]
    prices: dict[str, float] = Field(default_factory=dict)
    more: Any = None


LAMP = {"item": "Lamp", "count": 1}


def basket(**changes: Any) -> World:
    given = {"id": "B1", "lines": [{"item": "Vase", "count": 2}, LAMP], **changes}
    return World.of({"baskets": [Basket(**given)]})


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ({"prices": {"a": 1.0, "b": 2.0}}, {"prices": {"b": 2.0, "a": 1.0}}, {}),
        ({"prices": {"a": 1.0}}, {"prices": {"a": 1.5}}, {"baskets.B1.prices.a": (1.0, 1.5)}),
        ({"prices": {"a": 1.0}}, {"prices": {}}, {"baskets.B1.prices.a": (1.0, None)}),
        ({"lines": []}, {"lines": [LAMP]}, {"baskets.B1.lines": ([], [LAMP])}),
        (
            {"lines": [{"item": "Cup", "count": 1}]},
            {"lines": [{"item": "Cup", "count": 3}]},
            {"baskets.B1.lines.0.count": (1, 3)},
        ),
        ({"more": {"a": [1, {"b": None}]}}, {"more": {"a": [1, {}]}}, {"baskets.B1.more.a.1.b": (None, None)}),
        ({"more": True}, {"more": 1}, {"baskets.B1.more": (True, 1)}),
        ({"more": [1]}, {"more": [1.0]}, {"baskets.B1.more.0": (1, 1.0)}),
        ({"more": "{"}, {"more": "{"}, {}),
    ],
)  # fmt: skip
def test_nested_records_differ_where_their_content_does(one: dict, other: dict, found: dict) -> None:
    here, there = basket(**one), basket(**other)
    assert here.differences(there) == found
    assert (here.hash == there.hash) is (found == {})
    assert pickle.loads(pickle.dumps(here)).differences(there) == found


def test_what_a_tool_changes_in_place_is_its_own() -> None:
    """The world before stays as it was; the change counts once the tool returns."""
    before = basket()
    db = Transaction(before)
    found = db.get(Basket, "baskets", "B1")
    found.lines[0].count = 9
    found.lines.pop()
    assert db.get(Basket, "baskets", "B1") is found
    assert db.scan(Basket, "baskets") == [found]
    assert db.find(Basket, "baskets", id="B1") == [found]
    after = before.apply(db.delta)
    assert [line.count for line in before.tables["baskets"]["B1"].lines] == [2, 1]
    assert [line.count for line in after.tables["baskets"]["B1"].lines] == [9]
    again = Transaction(after)
    again.update("baskets", again.get(Basket, "baskets", "B1"), prices={"a": 1.0})
    assert after.apply(again.delta).differences(after) == {"baskets.B1.prices.a": (1.0, None)}
    looked = Transaction(after)
    looked.scan(Basket, "baskets")
    assert looked.delta == {}
