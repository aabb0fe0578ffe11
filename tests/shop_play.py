"""What several test files share: a hand-made shop task, and short ways to write actions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_gym import Call
from agent_gym.formats import HermesParser
from agent_gym.wrappers import RecordTrajectory

CUSTOMERS = [
    {"id": "C1001", "name": "Ana Lee", "email": "ana@mail.com", "tier": "basic"},
    {"id": "C1002", "name": "Ana Moe", "email": "moe@mail.com", "tier": "gold"},
]
ORDERS = [
    {"id": "O2001", "customer": "C1001", "item": "Lamp", "status": "delivered"},
    {"id": "O2002", "customer": "C1002", "item": "Lamp", "status": "delivered"},
    {"id": "O2003", "customer": "C1001", "item": "Vase", "status": "sent"},
]
PRODUCTS = [{"id": "P3001", "name": "Lamp", "stock": 17}]
TABLES = {"customers": CUSTOMERS, "orders": ORDERS, "products": PRODUCTS}


def task(name: str, request: str, calls: list[tuple[str, dict[str, Any]]], answer: Any = None) -> dict[str, Any]:
    """A line of a task file over the three small tables."""
    spelled = [{"name": n, "arguments": a} for n, a in calls]
    return {"id": name, "request": request, "domains": ["shop"], "tables": TABLES, "calls": spelled, "answer": answer}


REFUND = [
    ("find_customer", {"email": "ana@mail.com"}),
    ("customer_orders", {"customer_id": "C1001"}),
    ("refund_order", {"order_id": "O2001"}),
]
TASKS = [
    task("cascade", "Refund the Lamp order of the customer with e-mail ana@mail.com.", REFUND),
    task("named", "Refund order O2001.", REFUND[2:]),
    task("question", "Tell the status of order O2003.", [("get_order", {"order_id": "O2003"})], {"status": "sent"}),
    task("told", "Was order O2003 sent? Tell its status.", [("get_order", {"order_id": "O2003"})], {"status": "sent"}),
    task("stock", "Tell the stock of product P3001.", [("get_product", {"product_id": "P3001"})], {"stock": 17}),
    task("product", f"Look at P3001. {'Refund the Lamp order of the customer with e-mail ana@mail.com.'}", REFUND),
]


def write_tasks(path: Path, tasks: list[dict[str, Any]] = TASKS) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in tasks), encoding="utf-8")
    return str(path)


def turn(*calls: tuple[str, dict[str, Any]], text: str = "") -> str:
    """An action in the Hermes form."""
    return HermesParser().render(text, [Call(name, arguments) for name, arguments in calls])


def call(name: str, **arguments: Any) -> str:
    return turn((name, arguments))


def make(**kwargs: Any) -> gym.Env:
    return gym.make("APIAgent-v0", **{"domains": ["shop"], **kwargs})


def play(env: gym.Env, task_id: str | None, actions: list[str], seed: int | None = 0):
    """Record one episode; the environment is a RecordTrajectory."""
    assert isinstance(env, RecordTrajectory)
    env.reset(seed=seed, options={"task": task_id} if task_id else None)
    for action in actions:
        env.step(action)
    return env.last
