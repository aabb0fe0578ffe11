"""What several test files share: random but seeded play in the four environments, odd actions among the sensible."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import gymnasium as gym
from shop_play import call, turn

from agent_gym import state_hash

WALKED = {  # arguments under which there is something to change
    "APIAgent-v0": {"domains": ["shop"], "difficulty": 6},
    "CodeAgent-v0": {"difficulty": 2},
    "SQL-v0": {"difficulty": 1, "kinds": ["change"]},
    "WebLite-v0": {},
}
BROKEN = ["<tool_call>{", '<tool_call>{"name": "get_order"}', "<tool_call>5</tool_call>"]


def api(rng: random.Random, env: gym.Env, seen: list[int]) -> str:
    """Turns of one to four calls in the shop."""
    tables = env.unwrapped.task.world.tables
    draw, orders = rng.random(), [*tables["orders"], "O0"]
    if draw < 0.1:
        return rng.choice(BROKEN)
    if draw < 0.2:
        return rng.choice(["Done.", '{"status": "open"}', call("submit", answer={"status": "open"})])
    calls = []
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        customer, order = rng.choice([*tables["customers"], "C0"]), rng.choice(orders)
        calls += rng.choices(
            [
                ("set_tier", {"customer_id": customer, "tier": rng.choice(["gold", "basic"])}),
                (rng.choice(["get_order", "cancel_order", "refund_order"]), {"order_id": order}),
                ("cancel_orders", {"order_ids": rng.choices(orders, k=rng.randrange(4))}),
                ("customer_orders", {"customer_id": customer}),
                ("list_customers", {}),
                ("unknown", {"x": 1}),
            ],
            weights=[1, 3, 1, 1, 1, 1],
        )
    return turn(*calls)


def code(rng: random.Random, env: gym.Env, seen: list[int]) -> str:
    files = env.unwrapped._world.files
    path, line = rng.choice(sorted(files)), rng.randint(1, 9)
    return rng.choice(
        [
            call("list_files"), call("read_file", path=path), call("search", text="return"), call("edit"),
            call("edit", path=path, old="return", new="return 1 +"), call("write_file", path="new.py", text="x = 1\n"),
            call("write_file", path="new.py", text=f"x = {line}\n"), call("run_test", number=1), "Done.",
            call("edit_lines", path=path, start=line, end=line, new="    pass"), call("read_file", path="gone.py"),
        ]
    )  # fmt: skip


def sql(rng: random.Random, env: gym.Env, seen: list[int]) -> str:
    task = env.unwrapped.task
    table = rng.choice([re.findall(r"\w+", statement)[2] for statement in task.world.database.ddl])
    return rng.choice(
        [
            call("list_tables"), call("describe_table", table=table), call("sample_rows", table=table, count=2),
            call("run_sql", query=task.golds[0]), call("run_sql", query=f"SELECT * FROM {table}"),
            call("run_sql", query="SELECT nothing"), call("run_sql", query=f"DELETE FROM {table} WHERE id % 3 = 0"),
            call("run_sql", query=f"DELETE FROM {table} WHERE id % 3 = 1"),
            call("run_sql", query=f"UPDATE {table} SET id = id + 5000 WHERE id < 2000"), call("submit_sql"), "Done.",
            call("submit_sql", query=f"DELETE FROM {table}"),
        ]
    )  # fmt: skip


def web(rng: random.Random, env: gym.Env, seen: list[int]) -> str:
    """Mostly something that the page offers, now and then something odd."""
    base = env.unwrapped
    elements = base._backend.show(base._world).elements
    element = rng.choice(list(elements.values()))
    earlier = rng.choice(seen or [1])
    seen += elements
    draw = rng.random()
    if draw < 0.06:
        return call("back")
    if draw < 0.1:
        return call("look")
    if draw < 0.16:
        paths = ["/", "/cart", "/mine", "/new", "/nowhere", "/?q=a", "/?page=2", '//x/../?q=<b>&q=é "', "relative"]
        return call("go_to", path=rng.choice([*paths, "/?q=a+b%20c&z=~*'", "/a%2fb/..//c?x"]))
    if draw < 0.2:
        return call("click", element=earlier)
    if draw < 0.21:
        return call("submit", answer="x")
    if element.control.role == "textbox":
        texts = ["é" * 500, "", "a", "Ve lo", "3", ' <i>"x"&amp; ', "漢字 \u2028 \ufeff", "a\nb", "2031-03-09"]
        return call("fill", element=element.number, text=rng.choice(texts))
    if element.control.role == "select":
        return call("select", element=element.number, option=rng.choice([*element.control.options, "none"]))
    return call("click", element=element.number)


STEPS: dict[str, Callable[[random.Random, gym.Env, list[int]], str]] = {
    "APIAgent-v0": api, "CodeAgent-v0": code, "SQL-v0": sql, "WebLite-v0": web,
}  # fmt: skip


def walk(env: gym.Env, seed: int, steps: int) -> list[str]:
    """A walk of that seed: every action and all that it brings, as text. The end of an episode is followed by the next
    episode; a recorder's trajectory of the old one is among the text."""
    rng, trail, seen = random.Random(seed), [], list[int]()
    step = STEPS[env.spec.id]
    for _ in range(steps):
        action = step(rng, env, seen)
        *found, info = env.step(action)
        if "episode" in info:
            info["episode"].pop("t")  # wall time
        trail.append(repr((action, *found, info, state_hash(env))))
        if found[2] or found[3]:
            trail.append(repr((env.get_wrapper_attr("last") if env.has_wrapper_attr("last") else None, env.reset())))
    return trail
