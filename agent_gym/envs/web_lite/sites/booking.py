"""A booking calendar: rooms and their days, requests to accept, one's own bookings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from html import escape

from agent_gym.envs.api_agent.world import Record, Transaction, new_key
from agent_gym.envs.web_lite.draft import Draft
from agent_gym.envs.web_lite.site import Site, asking, button, form, link, select, textbox
from agent_gym.envs.web_lite.world import Tables

HOURS = ("09:00", "11:00", "14:00", "16:00")
FIRST = date(2031, 3, 3)


class Room(Record):
    """A room."""

    id: str
    name: str


class Booking(Record):
    """An hour of a room; ``mine`` for those of the user."""

    id: str
    room: str
    day: str
    hour: str
    title: str
    mine: bool = False


class Asked(Record):
    """Somebody else asks for a room."""

    id: str
    title: str
    status: str = "open"


booking = Site("booking", "Rooms", {"Rooms": "/", "My bookings": "/mine"}, rooms=Room, bookings=Booking, requests=Asked)


def _bookings(tables: Tables) -> list[Booking]:
    return [b for b in tables.tables["bookings"].values() if isinstance(b, Booking)]


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        return None


# ---- pages ---------------------------------------------------------------------------------------------------------


@booking.page("/")
def rooms(tables: Tables, query: Mapping[str, str]) -> str:
    names = [r.name for r in tables.tables["rooms"].values() if isinstance(r, Room)]
    asked = [a for a in tables.tables["requests"].values() if isinstance(a, Asked) and a.status == "open"]
    rows = "".join(
        f"<tr><td>{a.title} {form(f'/accept/{a.id}', button('Accept', a.title))}"
        f"{form(f'/decline/{a.id}', button('Decline', a.title))}</td></tr>"
        for a in asked
    )
    lines = "".join(f"<p>room {link(name, tables, f'/room/{name}')}</p>" for name in names)
    return f"{lines}<h1>Requests</h1><table>{rows}</table>"


@booking.page("/room/*", "day")
def room(tables: Tables, query: Mapping[str, str], name: str) -> str | None:
    if not any(isinstance(r, Room) and r.name == name for r in tables.tables["rooms"].values()):
        return None
    day = _day(query.get("day", "")) or FIRST
    taken = {b.hour: b.title for b in _bookings(tables) if (b.room, b.day) == (name, str(day))}
    rows = "".join(
        f"<tr><td>{hour} "
        + (escape(taken[hour]) if hour in taken else form(f"/book/{name}/{day}/{hour}", button("Book", hour)))
        + "</td></tr>"
        for hour in HOURS
    )
    jump = asking(tables, f"/room/{name}", textbox("Day", "day"), button("Go"))
    around = "".join(
        link(label, tables, f"/room/{name}", {"day": str(day + timedelta(days=n))})
        for label, n in (("Previous day", -1), ("Next day", 1))
        if date.min < day < date.max
    )
    return f"<h1>{name} {day}</h1><table>{rows}</table><p>{around}</p><div>{jump}</div>"


@booking.page("/mine")
def mine(tables: Tables, query: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{link(b.title, tables, f'/booking/{b.id}')} {b.room} {b.day} {b.hour} "
        f"{form(f'/cancel/{b.id}', button('Cancel', b.title))}</td></tr>"
        for b in _bookings(tables)
        if b.mine
    )
    return f"<h1>My bookings</h1><table>{rows}</table>"


@booking.page("/booking/*", "taken")
def one(tables: Tables, query: Mapping[str, str], key: str) -> str | None:
    b = tables.tables["bookings"].get(key)
    if not isinstance(b, Booking) or not b.mine:
        return None
    taken = "<p>That hour is taken.</p>" if "taken" in query else ""
    change = form(
        f"/change/{key}",
        f"<p>{textbox('Title', 'title', b.title)}</p>",
        f"<p>{select('Hour', 'hour', HOURS, b.hour)}</p>",
        f"<p>{button('Save')}</p>",
    )
    return f"<h1>{escape(b.title)}</h1><p>{b.room} {b.day}</p>{taken}{change}"


# ---- actions -------------------------------------------------------------------------------------------------------


@booking.action("/accept/*")
def accept_request(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.update("requests", db.get(Asked, "requests", key), status="accepted")
    return "/"


@booking.action("/decline/*")
def decline_request(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.update("requests", db.get(Asked, "requests", key), status="declined")
    return "/"


@booking.action("/book/*/*/*")
def book_hour(db: Transaction, sent: Mapping[str, str], name: str, day: str, hour: str) -> str:
    free = hour in HOURS and _day(day) and not _taken(db, name, day, hour)
    if free and any(r.name == name for r in db.scan(Room, "rooms")):
        key = new_key("B", name, day, hour)
        db.add("bookings", Booking(id=key, room=name, day=day, hour=hour, title="Me", mine=True))
    return f"/room/{name}?day={day}"


@booking.action("/cancel/*")
def cancel_booking(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.delete("bookings", db.get(Booking, "bookings", key))
    return "/mine"


@booking.action("/change/*")
def change_booking(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    b, hour = db.get(Booking, "bookings", key), sent.get("hour", "")
    if hour not in HOURS or (hour != b.hour and _taken(db, b.room, b.day, hour)):
        return f"/booking/{key}?taken=hour"
    db.update("bookings", b, hour=hour, title=sent.get("title") or b.title)
    return "/mine"


def _taken(db: Transaction, name: str, day: str, hour: str) -> bool:
    return any((b.room, b.day, b.hour) == (name, day, hour) for b in db.scan(Booking, "bookings"))


# ---- goals ---------------------------------------------------------------------------------------------------------


def _room(g: Draft) -> str:
    name = g.word()
    g.new("rooms", Room(id=g.place("here"), name=name))
    return name


def _asked(g: Draft, like: str = "") -> Asked:
    asked = Asked(id=g.code("R"), title=g.word(like))
    g.new("requests", asked)
    return asked


def _booked(g: Draft, name: str, days: int, hour: str, like: str = "", mine: bool = True) -> Booking:
    day = str(FIRST + timedelta(days=days))
    b = Booking(id=g.code("B"), room=name, day=day, hour=hour, title=g.word(like), mine=mine)
    g.new("bookings", b)
    return b


def _hours(g: Draft) -> list[str]:
    return g.rng.sample(HOURS, len(HOURS))


def _open(g: Draft, where: str, name: str) -> int:
    """Open a room's day: the first (``here``), or one that is far from it. Returns how far."""
    g.click(name)
    if where == "here":
        return 0
    days = g.rng.randrange(4, 28)
    g.fill("Day", str(FIRST + timedelta(days=days)))
    g.click("Go")
    return days


@booking.background
def fill(g: Draft) -> None:
    g.place()
    if len(g.tables["rooms"]) < 2:
        name = g.word()
        g.new("rooms", Room(id=f"x{len(g.tables['rooms'])}", name=name))
        _booked(g, name, 0, g.rng.choice(HOURS))
    if len(g.tables["requests"]) < g.rows - 1:
        _asked(g)


@booking.goal(here=1)
def accept(g: Draft, where: str) -> None:
    asked = _asked(g)
    other = _asked(g, asked.title)
    g.say(f'Accept the request "{asked.title}".')
    g.click(f"Accept {asked.title}")
    g.trap("/", f"Accept {other.title}")


@booking.goal(here=1)
def decline(g: Draft, where: str) -> None:
    asked = _asked(g)
    other = _asked(g, asked.title)
    g.say(f'Decline the request "{asked.title}".', f'Say no to the request "{asked.title}".')
    g.click(f"Decline {asked.title}")
    g.trap("/", f"Accept {other.title}")


@booking.goal(here=2, far=4)
def book(g: Draft, where: str) -> None:
    name, hours = _room(g), _hours(g)
    days = _open(g, where, name)
    day = FIRST + timedelta(days=days)
    _booked(g, name, days, hours[1], mine=False)
    g.say(f'Book the room "{name}" at {hours[0]}' + (f" on {day}." if days else "."))
    g.click(f"Book {hours[0]}")
    g.trap(f"/room/{name}?day={day}", f"Book {hours[2]}")


@booking.goal(mine=2)
def cancel(g: Draft, where: str) -> None:
    name, hours = _room(g), _hours(g)
    b = _booked(g, name, g.rng.randrange(28), hours[0])
    other = _booked(g, name, g.rng.randrange(28, 50), hours[1], b.title)
    g.say(f'Cancel my booking "{b.title}".')
    g.click("My bookings")
    g.click(f"Cancel {b.title}")
    g.trap("/mine", f"Cancel {other.title}")


@booking.goal(mine=4)
def rename(g: Draft, where: str) -> None:
    name, title = _room(g), g.word()
    b = _booked(g, name, g.rng.randrange(28), g.rng.choice(HOURS))
    g.say(f'Rename my booking "{b.title}" to "{title}".')
    g.click("My bookings")
    g.click(b.title)
    g.fill("Title", title)
    g.click("Save")
    g.trap("/mine", f"Cancel {title}")


@booking.goal(mine=4)
def shift(g: Draft, where: str) -> None:
    name, hours = _room(g), _hours(g)
    b = _booked(g, name, g.rng.randrange(28), hours[0])
    g.say(f'Move my booking "{b.title}" to {hours[1]}.')
    g.click("My bookings")
    g.click(b.title)
    g.select("Hour", hours[1])
    g.click("Save")
    g.trap("/mine", f"Cancel {b.title}")


@booking.goal(here=1, far=3)
def who(g: Draft, where: str) -> None:
    name, hours = _room(g), _hours(g)
    days = _open(g, where, name)
    b = _booked(g, name, days, hours[0], mine=False)
    other = _booked(g, name, days, hours[1], mine=False)
    day = f" on {FIRST + timedelta(days=days)}" if days else ""
    g.say(f'Who has booked the room "{name}" at {hours[0]}{day}?')
    g.expect(b.title, other.title, name)
