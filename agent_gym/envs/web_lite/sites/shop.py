"""A shop: a list of articles with a search box and a filter, one article, a cart and its checkout."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from agent_gym.envs.api_agent.world import Record, Transaction, new_key
from agent_gym.envs.web_lite.draft import Draft
from agent_gym.envs.web_lite.site import Site, address, asking, button, form, found_by, link, listing, select, textbox
from agent_gym.envs.web_lite.world import Tables

COLORS = ("red", "green", "blue", "black")
SHIPPING = ("standard", "express")


class Article(Record):
    """Something to buy; ``price`` in euros."""

    id: str
    name: str
    price: int
    color: str
    material: str
    saved: bool = False


class Line(Record):
    """An article in the cart."""

    article: str
    quantity: int = 1


class Order(Record):
    """What was ordered."""

    id: str
    name: str
    shipping: str
    lines: tuple[tuple[str, int], ...]


shop = Site("shop", "Shop", {"Shop": "/", "Cart": "/cart"}, articles=Article, cart=Line, orders=Order)


def _articles(tables: Tables) -> list[Article]:
    return [a for a in tables.tables["articles"].values() if isinstance(a, Article)]


def _cart(tables: Tables) -> list[tuple[Article, int]]:
    lines = [line for line in tables.tables["cart"].values() if isinstance(line, Line)]
    return [(tables.tables["articles"][line.article], line.quantity) for line in lines]  # type: ignore[misc]


# ---- pages ---------------------------------------------------------------------------------------------------------


@shop.page("/", "q", "color", "page")
def articles(tables: Tables, query: Mapping[str, str]) -> str:
    wanted, color = query.get("q", ""), query.get("color", "any")
    found = [a for a in _articles(tables) if found_by(wanted, a.name) and color in ("any", a.color)]

    def row(a: Article) -> str:
        adding = form(f"/add/{a.id}", button("Add", a.name), hidden=query)
        return f"{link(a.name, tables, f'/article/{a.id}')} {a.color} {a.price} EUR {adding}"

    search = asking(tables, "/", textbox("Search", "q", wanted), button("Search"))
    narrow = asking(tables, "/", select("Color", "color", ("any", *COLORS), color), button("Filter"))
    return f"<div>{search}</div><div>{narrow}</div>{listing(found, row, tables, query)}"


@shop.page("/article/*")
def article(tables: Tables, query: Mapping[str, str], key: str) -> str | None:
    a = tables.tables["articles"].get(key)
    if not isinstance(a, Article):
        return None
    saving = form(f"/save/{a.id}", button("Forget" if a.saved else "Save"))
    adding = form(f"/add/{a.id}", button("Add to cart"))
    return f"<h1>{a.name}</h1><p>{a.color} {a.price} EUR</p><p>made of {a.material}</p><div>{adding}{saving}</div>"


@shop.page("/cart")
def cart(tables: Tables, query: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{a.name} "
        f"{form(f'/quantity/{a.id}', textbox(f'Quantity of {a.name}', 'n', str(n)), button('Update', a.name))}"
        f"{form(f'/remove/{a.id}', button('Remove', a.name))}</td></tr>"
        for a, n in _cart(tables)
    )
    if not rows:
        return "<h1>Cart</h1><p>The cart is empty.</p>"
    total = sum(a.price * n for a, n in _cart(tables))
    return f"<h1>Cart</h1><table>{rows}</table><p>total {total} EUR {link('Checkout', tables, '/checkout')}</p>"


@shop.page("/checkout", "missing")
def checkout(tables: Tables, query: Mapping[str, str]) -> str:
    missing = "<p>Please give a name.</p>" if "missing" in query else ""
    ordering = form(
        "/order",
        f"<p>{textbox('Name', 'name')}</p>",
        f"<p>{select('Shipping', 'shipping', SHIPPING, 'standard')}</p>",
        f"<p>{button('Place order')}</p>",
    )
    return f"<h1>Checkout</h1>{missing}{ordering}"


@shop.page("/order/*")
def order(tables: Tables, query: Mapping[str, str], key: str) -> str | None:
    o = tables.tables["orders"].get(key)
    if not isinstance(o, Order):
        return None
    return f"<h1>Thank you</h1><p>{escape(o.name)}, your {o.shipping} order is placed.</p>"


# ---- actions -------------------------------------------------------------------------------------------------------


@shop.action("/add/*")
def add_article(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.get(Article, "articles", key)
    line = next((x for x in db.scan(Line, "cart") if x.article == key), None)
    if line is None:
        db.add("cart", Line(article=key))
    else:
        db.update("cart", line, quantity=line.quantity + 1)
    return address("/", sent)


@shop.action("/save/*")
def save_article(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    a = db.get(Article, "articles", key)
    db.update("articles", a, saved=not a.saved)
    return f"/article/{key}"


@shop.action("/quantity/*")
def set_quantity(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    line, asked = db.get(Line, "cart", key), sent.get("n", "")
    if asked.isascii() and asked.isdecimal() and 0 < int(asked[:9]) < 100:
        db.update("cart", line, quantity=int(asked[:9]))
    return "/cart"


@shop.action("/remove/*")
def remove_article(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.delete("cart", db.get(Line, "cart", key))
    return "/cart"


@shop.action("/order")
def place_order(db: Transaction, sent: Mapping[str, str]) -> str:
    if not sent.get("name"):
        return "/checkout?missing=name"
    lines = db.scan(Line, "cart")
    if not lines or sent.get("shipping") not in SHIPPING:
        return "/cart"
    content = tuple((line.article, line.quantity) for line in lines)
    key = new_key("O", sent["name"], sent["shipping"], content, len(db.scan(Order, "orders")))
    db.add("orders", Order(id=key, name=sent["name"], shipping=sent["shipping"], lines=content))
    for line in lines:
        db.delete("cart", line)
    return f"/order/{key}"


# ---- goals ---------------------------------------------------------------------------------------------------------


def _new(g: Draft, where: str = "any", like: str = "", color: str = "", price: int = 0) -> Article:
    a = Article(
        id=g.place(where), name=g.word(like), price=price or g.rng.randrange(20, 100),
        color=color or g.rng.choice(COLORS), material=g.word().lower(),
    )  # fmt: skip
    g.new("articles", a)
    return a


@shop.background
def fill(g: Draft) -> None:
    # never the color and price of the goal `cheapest`
    _new(g, color=g.rng.choice(COLORS[1:]))


@shop.goal(here=1, far=3)
def add(g: Draft, where: str) -> None:
    a = _new(g, where)
    other = _new(g, like=a.name)
    g.say(f'Add "{a.name}" to the cart.', f'Put "{a.name}" into the cart.')
    g.find(where, a.name)
    g.click(f"Add {a.name}")
    g.trap(f"/article/{other.id}", "Add to cart")


@shop.goal(cart=2)
def remove(g: Draft, where: str) -> None:
    a, other = _new(g), _new(g)
    for one in (a, other):
        g.new("cart", Line(article=one.id))
    g.say(f'Remove "{a.name}" from the cart.', f'Take "{a.name}" out of the cart.')
    g.click("Cart")
    g.click(f"Remove {a.name}")
    g.trap("/cart", f"Remove {other.name}")


@shop.goal(cart=3)
def quantity(g: Draft, where: str) -> None:
    a, n = _new(g), g.rng.randrange(2, 10)
    g.new("cart", Line(article=a.id))
    g.say(f'Set the quantity of "{a.name}" in the cart to {n}.')
    g.click("Cart")
    g.fill(f"Quantity of {a.name}", str(n))
    g.click(f"Update {a.name}")
    g.trap("/cart", f"Remove {a.name}")


@shop.goal(here=5, far=7)
def buy(g: Draft, where: str) -> None:
    g.alone()
    a, name = _new(g, where), g.word()
    other = _new(g, like=a.name)
    g.say(f'Buy "{a.name}" in the name of "{name}".')
    g.find(where, a.name)
    g.click(f"Add {a.name}")
    g.click("Cart")
    g.click("Checkout")
    g.fill("Name", name)
    g.click("Place order")
    g.trap(f"/article/{other.id}", "Add to cart")


@shop.goal(here=6, far=8)
def buy_express(g: Draft, where: str) -> None:
    g.alone()
    a, name = _new(g, where), g.word()
    g.say(f'Buy "{a.name}" with express shipping in the name of "{name}".')
    g.find(where, a.name)
    g.click(f"Add {a.name}")
    g.click("Cart")
    g.click("Checkout")
    g.fill("Name", name)
    g.select("Shipping", "express")
    g.click("Place order")
    g.trap(f"/article/{a.id}", "Add to cart")


@shop.goal(here=2, far=4)
def save(g: Draft, where: str) -> None:
    a = _new(g, where)
    other = _new(g, like=a.name)
    g.say(f'Save "{a.name}" for later.')
    g.find(where, a.name)
    g.click(a.name)
    g.click("Save")
    g.trap(f"/article/{other.id}", "Save")


@shop.goal(here=1, far=3)
def material(g: Draft, where: str) -> None:
    a = _new(g, where)
    other = _new(g, like=a.name)
    g.say(f'What is "{a.name}" made of?', f'Tell what "{a.name}" is made of.')
    g.find(where, a.name)
    g.click(a.name)
    g.expect(a.material, other.material, a.name)


@shop.goal(far=3)
def cheapest(g: Draft, where: str) -> None:
    g.alone()
    a = _new(g, where, color="red", price=g.rng.randrange(5, 10))
    other = _new(g, color="red", price=g.rng.randrange(10, 20))
    g.say("Add the cheapest red article to the cart.")
    g.select("Color", "red")
    g.click("Filter")
    g.click(f"Add {a.name}")
    g.trap(f"/article/{other.id}", "Add to cart")
