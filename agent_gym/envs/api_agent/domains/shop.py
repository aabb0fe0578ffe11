"""A shop: customers, their orders, products; cancelling and refunding cannot be undone."""

from __future__ import annotations

from typing import Literal

from agent_gym.envs.api_agent.domain import LOOKUP, SCAN, TWINS, WRITE, Domain, Draft
from agent_gym.envs.api_agent.world import Record, Transaction
from agent_gym.tools import ToolError

Status = Literal["open", "sent", "delivered", "cancelled", "refunded"]
Tier = Literal["basic", "silver", "gold"]


class Customer(Record):
    id: str
    name: str
    email: str
    tier: Tier = "basic"


class Order(Record):
    id: str
    customer: str
    item: str
    status: Status


class Product(Record):
    id: str
    name: str
    stock: int


shop = Domain("shop", customers=Customer, orders=Order, products=Product)

# ---- tools ----


@shop.tool(reads_only=True, latency=SCAN, group="customers")
def list_customers(db: Transaction) -> list[Customer]:
    """List every customer. Slow; find_customer is the quick way."""
    return db.scan(Customer, "customers")


@shop.tool(reads_only=True, latency=SCAN, group="orders")
def list_orders(db: Transaction) -> list[Order]:
    """List every order of the shop. Slow; customer_orders is the quick way."""
    return db.scan(Order, "orders")


@shop.tool(reads_only=True, latency=LOOKUP, group="customers")
def find_customer(db: Transaction, email: str) -> Customer:
    """Find a customer by e-mail address.

    Args:
        email: The exact address.
    """
    for customer in db.find(Customer, "customers", email=email):
        return customer
    raise ToolError("not_found", f"no customer has the address {email!r}")


@shop.tool(reads_only=True, latency=LOOKUP, group="customers")
def get_customer(db: Transaction, customer_id: str) -> Customer:
    """Read one customer.

    Args:
        customer_id: Such as C1234.
    """
    return db.get(Customer, "customers", customer_id)


@shop.tool(reads_only=True, latency=LOOKUP, group="orders")
def customer_orders(db: Transaction, customer_id: str) -> list[Order]:
    """List the orders of one customer.

    Args:
        customer_id: Such as C1234.
    """
    db.get(Customer, "customers", customer_id)
    return db.find(Order, "orders", customer=customer_id)


@shop.tool(reads_only=True, latency=LOOKUP, group="orders")
def get_order(db: Transaction, order_id: str) -> Order:
    """Read one order.

    Args:
        order_id: Such as O1234.
    """
    return db.get(Order, "orders", order_id)


@shop.tool(reads_only=True, latency=LOOKUP, group="orders")
def get_orders(db: Transaction, order_ids: list[str]) -> list[Order]:
    """Read several orders in one call.

    Args:
        order_ids: Their ids.
    """
    return [db.get(Order, "orders", order_id) for order_id in order_ids]


def _cancel(db: Transaction, order_id: str) -> Order:
    order = db.get(Order, "orders", order_id)
    if order.status != "open":
        raise ToolError("conflict", f"order {order_id} is {order.status}; only an open order can be cancelled")
    return db.update("orders", order, status="cancelled")


@shop.tool(latency=WRITE, group="cancel")
def cancel_order(db: Transaction, order_id: str) -> Order:
    """Cancel an open order. This cannot be undone.

    Args:
        order_id: Such as O1234.
    """
    return _cancel(db, order_id)


@shop.tool(latency=WRITE, group="cancel")
def cancel_orders(db: Transaction, order_ids: list[str]) -> list[Order]:
    """Cancel several open orders in one call: all of them, or none if one is not open. This cannot be undone.

    Args:
        order_ids: Their ids.
    """
    return [_cancel(db, order_id) for order_id in order_ids]


@shop.tool(latency=WRITE)
def refund_order(db: Transaction, order_id: str) -> Order:
    """Refund a delivered order. This cannot be undone.

    Args:
        order_id: Such as O1234.
    """
    order = db.get(Order, "orders", order_id)
    if order.status != "delivered":
        raise ToolError("conflict", f"order {order_id} is {order.status}; only a delivered order can be refunded")
    return db.update("orders", order, status="refunded")


@shop.tool(latency=WRITE)
def set_tier(db: Transaction, customer_id: str, tier: Tier) -> Customer:
    """Move a customer to another tier. Gold customers are managed elsewhere.

    Args:
        customer_id: Such as C1234.
        tier: The new tier.
    """
    customer = db.get(Customer, "customers", customer_id)
    if customer.tier == "gold":
        raise ToolError("not_permitted", f"customer {customer_id} is gold; only headquarters may change that")
    return db.update("customers", customer, tier=tier)


@shop.tool(reads_only=True, latency=LOOKUP)
def get_product(db: Transaction, product_id: str) -> Product:
    """Read one product and its stock.

    Args:
        product_id: Such as P1234.
    """
    return db.get(Product, "products", product_id)


@shop.tool(reads_only=True)
def return_policy(db: Transaction) -> str:
    """Read the shop's return policy."""
    return "Delivered orders can be refunded within 30 days."


# ---- goals ----


def _customer(g: Draft, name: str | None = None) -> Customer:
    return g.new("customers", Customer(id=g.id("C"), name=name or g.person(), email=g.email()))


def _order(g: Draft, customer: Customer, item: str, status: Status) -> Order:
    return g.new("orders", Order(id=g.id("O"), customer=customer.id, item=item, status=status))


def _case(g: Draft, *statuses: Status) -> tuple[Customer, Order, list[Order]]:
    """A customer with two orders, and namesakes with two each, one of the same item: the table of orders does not tell
    which is meant. Each of these orders has one of the statuses."""
    customer, item = _customer(g), g.word()
    people = [customer, *(_customer(g, g.person(customer.name.split()[0])) for _ in range(TWINS))]
    order, *twins = [_order(g, someone, item, g.rng.choice(statuses)) for someone in people]
    for someone in people:
        _order(g, someone, g.word(), "sent")
    return customer, order, twins


def _reach(g: Draft, by: str, customer: Customer) -> str:
    """Say whose order it is, and make the calls that lead to the customer's orders."""
    if by == "email":
        who = f"the customer with e-mail {g.refer('email', customer.email)}"
        g.call("find_customer", email=customer.email)
    else:
        who = f"customer {g.refer('customer', customer.id)}"
    g.call("customer_orders", customer_id=customer.id)
    return who


def _settle(g: Draft, by: str, tool: str, verb: str, status: Status) -> None:
    customer, order, twins = _case(g, status)
    if by == "order":
        g.say(f"{verb} order {g.refer('order', order.id)}.")
    else:
        g.say(f"{verb} the {order.item} order of {_reach(g, by, customer)}.")
    g.call(tool, order_id=order.id)
    for twin in twins:
        g.trap(tool, order_id=twin.id)


@shop.goal(order=1, customer=2, email=3)
def cancel(g: Draft, by: str) -> None:
    _settle(g, by, "cancel_order", "Cancel", "open")


@shop.goal(order=1, customer=2, email=3)
def refund(g: Draft, by: str) -> None:
    _settle(g, by, "refund_order", "Refund", "delivered")


@shop.goal(customer=2, email=3)
def cancel_all(g: Draft, by: str) -> None:
    customer, order, twins = _case(g, "open")
    second, *_ = (_order(g, g.tables["customers"][one.customer], g.word(), "open") for one in (order, *twins))  # type: ignore[arg-type]
    g.say(f"Cancel every open order of {_reach(g, by, customer)}.")
    g.call("cancel_orders", order_ids=sorted([order.id, second.id]))
    for twin in twins:
        g.trap("cancel_order", order_id=twin.id)


@shop.goal(order=1, customer=1, email=2)
def order_status(g: Draft, by: str) -> None:
    told: tuple[Status, ...] = ("open", "delivered")  # too easily guessed to be all that is asked
    if by == "order":
        order, *_ = [_order(g, _customer(g), g.word(), g.rng.choice(told)) for _ in range(1 + TWINS)]
        g.say(f"Tell the item and the status of order {g.refer('order', order.id)}.")
        g.call("get_order", order_id=order.id)
        g.expect("item", order.item)
    else:
        customer, order, _ = _case(g, *told)
        g.say(f"Tell the id and the status of the {order.item} order of {_reach(g, by, customer)}.")
        g.expect("id", order.id)
    g.expect("status", order.status)


@shop.goal(order=1)
def compare(g: Draft, by: str) -> None:
    order, other, *_ = [_order(g, _customer(g), g.word(), "sent") for _ in range(2 + TWINS)]
    g.say(f"Tell which items were ordered with order {g.refer('order', order.id)} and order {other.id}.")
    g.call("get_orders", order_ids=[order.id, other.id])
    g.expect("item", order.item)
    g.expect("item", other.item)


@shop.goal(customer=1, email=2)
def promote(g: Draft, by: str) -> None:
    customer = _customer(g)
    twins = [_customer(g, g.person(customer.name.split()[0])) for _ in range(TWINS)]
    for someone in (customer, *twins):
        _order(g, someone, g.word(), "sent")
    if by == "email":
        g.say(f"Make the customer with e-mail {g.refer('email', customer.email)} silver.")
        g.call("find_customer", email=customer.email)
    else:
        g.say(f"Make customer {g.refer('customer', customer.id)} silver.")
    g.call("set_tier", customer_id=customer.id, tier="silver")
    for twin in twins:
        g.trap("set_tier", customer_id=twin.id, tier="silver")


# ---- where values stand, and what else is there ----


@shop.source("email")
def customer_email(g: Draft, value: str) -> str:
    customer = g.new("customers", Customer(id=g.id("C"), name=g.person(), email=value))
    g.call("get_customer", customer_id=customer.id)
    return f"of customer {customer.id}"


@shop.background
def stock(g: Draft) -> None:
    _order(g, _customer(g), g.word(), g.rng.choice(("open", "sent", "delivered")))
    g.new("products", Product(id=g.id("P"), name=g.word(), stock=g.rng.randrange(100)))
