"""A calendar: events on days, in rooms; cancelling cannot be undone, and a room holds one event a day."""

from __future__ import annotations

from typing import Literal

from agent_gym.envs.api_agent.domain import LOOKUP, SCAN, TWINS, WRITE, Domain, Draft
from agent_gym.envs.api_agent.world import Record, Transaction, new_key
from agent_gym.tools import ToolError


class Event(Record):
    id: str
    title: str
    day: str
    organiser: str
    room: str


class Room(Record):
    id: str
    name: str
    access: Literal["free", "private"] = "free"


calendar = Domain("calendar", events=Event, rooms=Room)

# ---- tools ----


@calendar.tool(reads_only=True, latency=SCAN, group="events")
def list_events(db: Transaction) -> list[Event]:
    """List every event. Slow; events_on and events_of are the quick ways."""
    return db.scan(Event, "events")


@calendar.tool(reads_only=True, latency=LOOKUP, group="events")
def events_on(db: Transaction, day: str) -> list[Event]:
    """List the events of one day.

    Args:
        day: Such as 2031-01-31.
    """
    return db.find(Event, "events", day=day)


@calendar.tool(reads_only=True, latency=LOOKUP, group="events")
def events_of(db: Transaction, email: str) -> list[Event]:
    """List the events of one organiser.

    Args:
        email: The organiser's exact address.
    """
    return db.find(Event, "events", organiser=email)


@calendar.tool(reads_only=True, latency=LOOKUP, group="events")
def get_event(db: Transaction, event_id: str) -> Event:
    """Read one event.

    Args:
        event_id: Such as E1234.
    """
    return db.get(Event, "events", event_id)


@calendar.tool(reads_only=True, latency=LOOKUP, group="events")
def get_events(db: Transaction, event_ids: list[str]) -> list[Event]:
    """Read several events in one call.

    Args:
        event_ids: Their ids.
    """
    return [db.get(Event, "events", event_id) for event_id in event_ids]


@calendar.tool(reads_only=True, latency=LOOKUP)
def get_room(db: Transaction, room_id: str) -> Room:
    """Read one room.

    Args:
        room_id: Such as R1234.
    """
    return db.get(Room, "rooms", room_id)


def _require_empty(db: Transaction, room_id: str, day: str) -> None:
    for event in db.find(Event, "events", room=room_id, day=day):
        raise ToolError("conflict", f"room {room_id} is taken on {day} by event {event.id}")


@calendar.tool(latency=WRITE)
def create_event(db: Transaction, title: str, day: str, room_id: str) -> Event:
    """Create an event of your own in a free room.

    Args:
        title: Its title.
        day: Such as 2031-01-31.
        room_id: Such as R1234.
    """
    if db.get(Room, "rooms", room_id).access == "private":
        raise ToolError("not_permitted", f"room {room_id} is private; choose a room whose access is free")
    _require_empty(db, room_id, day)
    key = new_key("E", title, day, room_id)
    return db.add("events", Event(id=key, title=title, day=day, organiser="me", room=room_id))


@calendar.tool(latency=WRITE)
def move_event(db: Transaction, event_id: str, day: str) -> Event:
    """Move an event to another day; its room must be empty then.

    Args:
        event_id: Such as E1234.
        day: The new day.
    """
    event = db.get(Event, "events", event_id)
    _require_empty(db, event.room, day)
    return db.update("events", event, day=day)


def _cancel(db: Transaction, event_id: str) -> str:
    db.delete("events", db.get(Event, "events", event_id))
    return event_id


@calendar.tool(latency=WRITE, group="cancel")
def cancel_event(db: Transaction, event_id: str) -> str:
    """Cancel an event. This cannot be undone.

    Args:
        event_id: Such as E1234.
    """
    return _cancel(db, event_id)


@calendar.tool(latency=WRITE, group="cancel")
def cancel_events(db: Transaction, event_ids: list[str]) -> list[str]:
    """Cancel several events in one call: all of them, or none if one is missing. This cannot be undone.

    Args:
        event_ids: Their ids.
    """
    return [_cancel(db, event_id) for event_id in event_ids]


@calendar.tool(reads_only=True)
def list_time_zones(db: Transaction) -> list[str]:
    """List the time zones that the calendar knows."""
    return ["UTC", "CET", "EST", "JST"]


# ---- goals ----


def _room(g: Draft) -> Room:
    return g.new("rooms", Room(id=g.id("R"), name=g.word()))


def _event(g: Draft, title: str | None = None, day: str | None = None, organiser: str | None = None) -> Event:
    return g.new(
        "events",
        Event(
            id=g.id("E"),
            title=title or g.word(),
            day=day or g.day(),
            organiser=organiser or g.email(),
            room=_room(g).id,
        ),
    )


def _case(g: Draft) -> tuple[Event, list[Event]]:
    """Some events of one title; each has another event on its day, and another of its organiser."""
    event = _event(g)
    twins = [_event(g, event.title) for _ in range(TWINS)]
    for one in (event, *twins):
        _event(g, day=one.day)
        _event(g, organiser=one.organiser)
    return event, twins


def _reach(g: Draft, by: str, event: Event) -> str:
    """Say which event it is, and make the call that finds it, unless its id is said."""
    if by == "event":
        return f"event {g.refer('event', event.id)}"
    if by == "day":
        who = f"the {event.title} event on the day {g.refer('day', event.day)}"
        g.call("events_on", day=event.day)
    else:
        who = f"the {event.title} event of the organiser with e-mail {g.refer('email', event.organiser)}"
        g.call("events_of", email=event.organiser)
    return who


@calendar.goal(event=1, day=2, email=2)
def cancel(g: Draft, by: str) -> None:
    event, twins = _case(g)
    g.say(f"Cancel {_reach(g, by, event)}.")
    g.call("cancel_event", event_id=event.id)
    for twin in twins:
        g.trap("cancel_event", event_id=twin.id)


@calendar.goal(event=1, day=2, email=2)
def move(g: Draft, by: str) -> None:
    event, twins = _case(g)
    day = g.day()
    g.say(f"Move {_reach(g, by, event)} to {day}.")
    g.call("move_event", event_id=event.id, day=day)
    for twin in twins:
        g.trap("move_event", event_id=twin.id, day=day)


@calendar.goal(day=2, email=2)
def cancel_all(g: Draft, by: str) -> None:
    first, *twins = [_event(g) for _ in range(1 + TWINS)]
    if by == "day":
        second, *_ = [_event(g, day=one.day) for one in (first, *twins)]
        g.say(f"Cancel every event on the day {g.refer('day', first.day)}.")
        g.call("events_on", day=first.day)
    else:
        second, *_ = [_event(g, organiser=one.organiser) for one in (first, *twins)]
        g.say(f"Cancel every event of the organiser with e-mail {g.refer('email', first.organiser)}.")
        g.call("events_of", email=first.organiser)
    g.call("cancel_events", event_ids=sorted([first.id, second.id]))
    for twin in twins:
        g.trap("cancel_event", event_id=twin.id)


@calendar.goal(event=1, day=1)
def organiser(g: Draft, by: str) -> None:
    event, _ = _case(g)
    if by == "event":
        g.say(f"Tell who organises event {g.refer('event', event.id)}.")
        g.call("get_event", event_id=event.id)
    else:
        g.say(f"Tell who organises {_reach(g, by, event)}.")
    g.expect("organiser", event.organiser)


@calendar.goal(event=2, day=2, email=2)
def room_name(g: Draft, by: str) -> None:
    event, _ = _case(g)
    g.say(f"Tell the name of the room of {_reach(g, by, event)}.")
    if by == "event":
        g.call("get_event", event_id=event.id)
    g.call("get_room", room_id=event.room)
    g.expect("room", g.tables["rooms"][event.room].name)  # type: ignore[attr-defined]


@calendar.goal(event=1)
def days(g: Draft, by: str) -> None:
    event, other, *_ = [_event(g) for _ in range(2 + TWINS)]
    g.say(f"Tell the days of event {g.refer('event', event.id)} and event {other.id}.")
    g.call("get_events", event_ids=[event.id, other.id])
    g.expect("day", event.day)
    g.expect("day", other.day)


@calendar.goal(day=1, event=2)
def create(g: Draft, by: str) -> None:
    event, twins = _case(g)
    title, day, room = g.word(), g.day(), event.room
    if by == "day":
        room = _room(g).id
        g.say(f"Create a {title} event in room {room} on the day {g.refer('day', day)}.")
    else:
        g.say(f"Create a {title} event on {day} in the room of event {g.refer('event', event.id)}.")
        g.call("get_event", event_id=event.id)
    g.call("create_event", title=title, day=day, room_id=room)
    for twin in twins:
        g.trap("create_event", title=title, day=day, room_id=twin.room)


# ---- where values stand, and what else is there ----


@calendar.source("email")
def organiser_email(g: Draft, value: str) -> str:
    event = _event(g, organiser=value)
    g.call("get_event", event_id=event.id)
    return f"of the organiser of event {event.id}"


@calendar.source("day")
def event_day(g: Draft, value: str) -> str:
    event = _event(g, day=value)
    g.call("get_event", event_id=event.id)
    return f"of event {event.id}"


@calendar.background
def meetings(g: Draft) -> None:
    _event(g)
    g.new("rooms", Room(id=g.id("R"), name=g.word(), access="private"))
