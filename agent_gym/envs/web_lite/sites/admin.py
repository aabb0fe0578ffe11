"""An admin table: users in pages, a search box, one user's form, deletion with a second question."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from agent_gym.envs.api_agent.world import Record, Transaction, new_key
from agent_gym.envs.web_lite.draft import Draft
from agent_gym.envs.web_lite.site import (
    Site,
    address,
    asking,
    button,
    checkbox,
    form,
    found_by,
    link,
    listing,
    select,
    textbox,
)
from agent_gym.envs.web_lite.world import Tables

ROLES = ("reader", "editor", "owner")


class User(Record):
    """A user."""

    id: str
    name: str
    email: str
    role: str = "reader"
    active: bool = True
    news: bool = False


admin = Site("admin", "Users", {"Users": "/", "New user": "/new"}, users=User)

# ---- pages ---------------------------------------------------------------------------------------------------------


@admin.page("/", "q", "page")
def users(tables: Tables, query: Mapping[str, str]) -> str:
    wanted = query.get("q", "")
    found = [u for u in tables.tables["users"].values() if isinstance(u, User) and found_by(wanted, u.name)]

    def row(u: User) -> str:
        switch = form(f"/switch/{u.id}", button("Suspend" if u.active else "Resume", u.name), hidden=query)
        return f"{link(u.name, tables, f'/user/{u.id}')} {u.role} {switch}"

    search = asking(tables, "/", textbox("Search", "q", wanted), button("Search"))
    return f"<div>{search}</div>{listing(found, row, tables, query)}"


@admin.page("/user/*")
def user(tables: Tables, query: Mapping[str, str], key: str) -> str | None:
    u = tables.tables["users"].get(key)
    if not isinstance(u, User):
        return None
    change = form(
        f"/change/{key}",
        f"<p>{textbox('E-mail', 'email', u.email)}</p>",
        f"<p>{select('Role', 'role', ROLES, u.role)} {checkbox('Newsletter', 'news', u.news)}</p>",
        f"<p>{button('Save')}</p>",
    )
    return f"<h1>{escape(u.name)}</h1>{change}<p>{link('Delete', tables, f'/user/{key}/delete')}</p>"


@admin.page("/user/*/delete")
def sure(tables: Tables, query: Mapping[str, str], key: str) -> str | None:
    u = tables.tables["users"].get(key)
    if not isinstance(u, User):
        return None
    name = escape(u.name)
    yes, no = form(f"/delete/{key}", button("Yes")), link("No", tables, f"/user/{key}")
    return f"<h1>Delete {name}?</h1><div>{yes} {no}</div>"


@admin.page("/new")
def new(tables: Tables, query: Mapping[str, str]) -> str:
    making = form(
        "/create",
        f"<p>{textbox('Name', 'name')}</p>",
        f"<p>{select('Role', 'role', ROLES, 'reader')}</p>",
        f"<p>{button('Create')}</p>",
    )
    return f"<h1>New user</h1>{making}"


# ---- actions -------------------------------------------------------------------------------------------------------


@admin.action("/switch/*")
def switch(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    u = db.get(User, "users", key)
    db.update("users", u, active=not u.active)
    return address("/", sent)


@admin.action("/change/*")
def change_user(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    u = db.get(User, "users", key)
    if sent.get("role") in ROLES:
        db.update("users", u, email=sent.get("email", ""), role=sent["role"], news="news" in sent)
    return f"/user/{key}"


@admin.action("/delete/*")
def delete_user(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.delete("users", db.get(User, "users", key))
    return "/"


@admin.action("/create")
def create_user(db: Transaction, sent: Mapping[str, str]) -> str:
    if not sent.get("name") or sent.get("role") not in ROLES:
        return "/new"
    key = new_key("U", sent["name"])
    if any(u.id == key for u in db.scan(User, "users")):
        return "/new"
    db.add("users", User(id=key, name=sent["name"], email="", role=sent["role"]))
    return "/"


# ---- goals ---------------------------------------------------------------------------------------------------------


def _new(g: Draft, where: str = "any", like: str = "") -> User:
    u = User(id=g.place(where), name=g.word(like), email=f"{g.word().lower()}@post.net", role=g.rng.choice(ROLES[:2]))
    g.new("users", u)
    return u


def _open(g: Draft, where: str) -> User:
    u = _new(g, where)
    g.find(where, u.name)
    g.click(u.name)
    return u


@admin.background
def fill(g: Draft) -> None:
    _new(g)


@admin.goal(here=1, far=3)
def suspend(g: Draft, where: str) -> None:
    u = _new(g, where)
    other = _new(g, like=u.name)
    g.say(f'Suspend the user "{u.name}".', f'Suspend "{u.name}".')
    g.find(where, u.name)
    g.click(f"Suspend {u.name}")
    g.trap(f"/?q={other.name}", f"Suspend {other.name}")


@admin.goal(here=1, far=3)
def email(g: Draft, where: str) -> None:
    u = _open(g, where)
    other = _new(g, like=u.name)
    g.say(f'What is the e-mail of the user "{u.name}"?', f'Tell the e-mail of "{u.name}".')
    g.expect(u.email, other.email, u.name)


@admin.goal(here=3, far=5)
def set_role(g: Draft, where: str) -> None:
    u = _open(g, where)
    role = next(r for r in g.rng.sample(ROLES, 3) if r != u.role)
    g.say(f'Make the user "{u.name}" {role}.')
    g.select("Role", role)
    g.click("Save")
    g.trap(f"/user/{u.id}/delete", "Yes")


@admin.goal(here=3, far=5)
def set_email(g: Draft, where: str) -> None:
    u, address = _open(g, where), f"{g.word().lower()}@post.net"
    g.say(f'Set the e-mail of the user "{u.name}" to "{address}".')
    g.fill("E-mail", address)
    g.click("Save")
    g.trap(f"/user/{u.id}", "Newsletter", "Save")


@admin.goal(here=3, far=5)
def subscribe(g: Draft, where: str) -> None:
    u = _open(g, where)
    other = _new(g, like=u.name)
    g.say(f'Subscribe the user "{u.name}" to the newsletter.')
    g.click("Newsletter")
    g.click("Save")
    g.trap(f"/user/{other.id}", "Newsletter", "Save")


@admin.goal(here=3, far=5)
def delete(g: Draft, where: str) -> None:
    u = _open(g, where)
    other = _new(g, like=u.name)
    g.say(f'Delete the user "{u.name}".')
    g.click("Delete")
    g.click("Yes")
    g.trap(f"/?q={other.name}", f"Suspend {other.name}")


@admin.goal(new=4)
def create(g: Draft, where: str) -> None:
    name, role = g.word(), g.rng.choice(ROLES[1:])
    g.say(f'Create the user "{name}" as {role}.')
    g.click("New user")
    g.fill("Name", name)
    g.select("Role", role)
    g.click("Create")
    other = _new(g)
    g.trap(f"/user/{other.id}/delete", "Yes")
