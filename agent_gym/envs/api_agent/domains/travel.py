"""A travel office: flights and the bookings on them; booking and cancelling cannot be undone."""

from __future__ import annotations

from typing import Literal

from agent_gym.envs.api_agent.domain import LOOKUP, SCAN, TWINS, WRITE, Domain, Draft
from agent_gym.envs.api_agent.world import Record, Transaction, new_key
from agent_gym.tools import ToolError

Cabin = Literal["economy", "business", "crew"]


class Flight(Record):
    id: str
    to: str
    day: str
    seats: Literal["some", "none"] = "some"


class Booking(Record):
    id: str
    passenger: str
    flight: str
    cabin: Cabin = "economy"


travel = Domain("travel", flights=Flight, bookings=Booking)

# ---- tools ----


@travel.tool(reads_only=True, latency=SCAN, group="flights")
def list_flights(db: Transaction) -> list[Flight]:
    """List every flight. Slow; flights_on is the quick way."""
    return db.scan(Flight, "flights")


@travel.tool(reads_only=True, latency=LOOKUP, group="flights")
def flights_on(db: Transaction, day: str) -> list[Flight]:
    """List the flights of one day.

    Args:
        day: Such as 2031-01-31.
    """
    return db.find(Flight, "flights", day=day)


@travel.tool(reads_only=True, latency=LOOKUP, group="flights")
def get_flight(db: Transaction, flight_id: str) -> Flight:
    """Read one flight.

    Args:
        flight_id: Such as F1234.
    """
    return db.get(Flight, "flights", flight_id)


@travel.tool(reads_only=True, latency=LOOKUP)
def bookings_of(db: Transaction, email: str) -> list[Booking]:
    """List the bookings of one passenger.

    Args:
        email: The passenger's exact address.
    """
    return db.find(Booking, "bookings", passenger=email)


@travel.tool(reads_only=True, latency=LOOKUP, group="bookings")
def get_booking(db: Transaction, booking_id: str) -> Booking:
    """Read one booking.

    Args:
        booking_id: Such as B1234.
    """
    return db.get(Booking, "bookings", booking_id)


@travel.tool(reads_only=True, latency=LOOKUP, group="bookings")
def get_bookings(db: Transaction, booking_ids: list[str]) -> list[Booking]:
    """Read several bookings in one call.

    Args:
        booking_ids: Their ids.
    """
    return [db.get(Booking, "bookings", booking_id) for booking_id in booking_ids]


@travel.tool(latency=WRITE)
def book_flight(db: Transaction, flight_id: str, email: str) -> Booking:
    """Book an economy seat. This cannot be undone.

    Args:
        flight_id: Such as F1234.
        email: The passenger's address.
    """
    if db.get(Flight, "flights", flight_id).seats == "none":
        raise ToolError("not_permitted", f"flight {flight_id} has no seats; choose another flight")
    if db.find(Booking, "bookings", flight=flight_id, passenger=email):
        raise ToolError("conflict", f"{email} is booked on flight {flight_id} already")
    return db.add("bookings", Booking(id=new_key("B", flight_id, email), passenger=email, flight=flight_id))


@travel.tool(latency=WRITE)
def set_cabin(db: Transaction, booking_id: str, cabin: Literal["economy", "business"]) -> Booking:
    """Move a booking to the other cabin.

    Args:
        booking_id: Such as B1234.
        cabin: The new cabin.
    """
    booking = db.get(Booking, "bookings", booking_id)
    if booking.cabin == cabin:
        raise ToolError("conflict", f"booking {booking_id} is in {cabin} already")
    return db.update("bookings", booking, cabin=cabin)


def _cancel(db: Transaction, booking_id: str) -> str:
    booking = db.get(Booking, "bookings", booking_id)
    if booking.cabin == "crew":
        raise ToolError("not_permitted", f"booking {booking_id} is of the crew; only the airline may cancel it")
    db.delete("bookings", booking)
    return booking_id


@travel.tool(latency=WRITE, group="cancel")
def cancel_booking(db: Transaction, booking_id: str) -> str:
    """Cancel a booking. This cannot be undone.

    Args:
        booking_id: Such as B1234.
    """
    return _cancel(db, booking_id)


@travel.tool(latency=WRITE, group="cancel")
def cancel_bookings(db: Transaction, booking_ids: list[str]) -> list[str]:
    """Cancel several bookings in one call: all of them, or none if one cannot be. This cannot be undone.

    Args:
        booking_ids: Their ids.
    """
    return [_cancel(db, booking_id) for booking_id in booking_ids]


@travel.tool(reads_only=True)
def baggage_rules(db: Transaction) -> str:
    """Read what a passenger may carry."""
    return "One bag of 8 kg in the cabin, one of 20 kg in the hold."


# ---- goals ----


def _flight(g: Draft, to: str | None = None, day: str | None = None) -> Flight:
    return g.new("flights", Flight(id=g.id("F"), to=to or g.word(), day=day or g.day()))


def _booking(g: Draft, passenger: str | None = None, flight: str | None = None) -> Booking:
    return g.new("bookings", Booking(id=g.id("B"), passenger=passenger or g.email(), flight=flight or _flight(g).id))


def _case(g: Draft) -> tuple[Booking, list[Booking]]:
    """Some passengers with two bookings each, of which one is on the same flight."""
    booking = _booking(g)
    twins = [_booking(g, flight=booking.flight) for _ in range(TWINS)]
    for one in (booking, *twins):
        _booking(g, one.passenger)
    return booking, twins


def _reach(g: Draft, by: str, booking: Booking) -> str:
    """Say which booking it is, and make the call that finds it, unless its id is said."""
    if by == "booking":
        return f"booking {g.refer('booking', booking.id)}"
    who = f"the flight {booking.flight} booking of the passenger with e-mail {g.refer('email', booking.passenger)}"
    g.call("bookings_of", email=booking.passenger)
    return who


@travel.goal(booking=1, email=2)
def cancel(g: Draft, by: str) -> None:
    booking, twins = _case(g)
    g.say(f"Cancel {_reach(g, by, booking)}.")
    g.call("cancel_booking", booking_id=booking.id)
    for twin in twins:
        g.trap("cancel_booking", booking_id=twin.id)


@travel.goal(booking=1, email=2)
def upgrade(g: Draft, by: str) -> None:
    booking, twins = _case(g)
    g.say(f"Move {_reach(g, by, booking)} to the business cabin.")
    g.call("set_cabin", booking_id=booking.id, cabin="business")
    for twin in twins:
        g.trap("set_cabin", booking_id=twin.id, cabin="business")


@travel.goal(email=2)
def cancel_all(g: Draft, by: str) -> None:
    booking, twins = _case(g)
    ids = sorted(b.key for b in g.tables["bookings"].values() if b.passenger == booking.passenger)  # type: ignore[attr-defined]
    g.say(f"Cancel every booking of the passenger with e-mail {g.refer('email', booking.passenger)}.")
    g.call("bookings_of", email=booking.passenger)
    g.call("cancel_bookings", booking_ids=ids)
    for twin in twins:
        g.trap("cancel_booking", booking_id=twin.id)


@travel.goal(flight=1, booking=2, email=2)
def city(g: Draft, by: str) -> None:
    flight, *_ = flights = [_flight(g) for _ in range(1 + TWINS)]
    booking, *_ = [_booking(g, flight=one.id) for one in flights]
    if by == "flight":
        g.say(f"Tell the city of flight {g.refer('flight', flight.id)}.")
    elif by == "booking":
        g.say(f"Tell the city of the flight of booking {g.refer('booking', booking.id)}.")
        g.call("get_booking", booking_id=booking.id)
    else:
        g.say(f"Tell the city of the flight of the passenger with e-mail {g.refer('email', booking.passenger)}.")
        g.call("bookings_of", email=booking.passenger)
    g.call("get_flight", flight_id=flight.id)
    g.expect("city", flight.to)


@travel.goal(flight=1, email=1, day=2)
def book(g: Draft, by: str) -> None:
    flight, email = _flight(g), g.email()
    twins = [_flight(g, flight.to) for _ in range(TWINS)]
    for one in (flight, *twins):
        _flight(g, day=one.day)
    if by == "flight":
        g.say(f"Book flight {g.refer('flight', flight.id)} for {email}.")
    elif by == "email":
        g.say(f"Book flight {flight.id} for the passenger with e-mail {g.refer('email', email)}.")
    else:
        g.say(f"Book for {email} the flight to {flight.to} on the day {g.refer('day', flight.day)}.")
        g.call("flights_on", day=flight.day)
    g.call("book_flight", flight_id=flight.id, email=email)
    for twin in twins:
        g.trap("book_flight", flight_id=twin.id, email=email)


@travel.goal(booking=2)
def join(g: Draft, by: str) -> None:
    booking, _ = _case(g)
    email = g.email()
    g.say(f"Book for {email} the flight of booking {g.refer('booking', booking.id)}.")
    g.call("get_booking", booking_id=booking.id)
    g.call("book_flight", flight_id=booking.flight, email=email)
    for _ in range(TWINS):
        g.trap("book_flight", flight_id=_flight(g).id, email=email)


@travel.goal(booking=1)
def passengers(g: Draft, by: str) -> None:
    booking, (twin, *_) = _case(g)
    g.say(f"Tell the passengers of booking {g.refer('booking', booking.id)} and booking {twin.id}.")
    g.call("get_bookings", booking_ids=[booking.id, twin.id])
    g.expect("passenger", booking.passenger)
    g.expect("passenger", twin.passenger)


# ---- where values stand, and what else is there ----


@travel.source("email")
def passenger(g: Draft, value: str) -> str:
    booking = _booking(g, value)
    g.call("get_booking", booking_id=booking.id)
    return f"of the passenger of booking {booking.id}"


@travel.source("day")
def departure(g: Draft, value: str) -> str:
    flight = _flight(g, day=value)
    g.call("get_flight", flight_id=flight.id)
    return f"of flight {flight.id}"


@travel.background
def traffic(g: Draft) -> None:
    flight = g.new("flights", Flight(id=g.id("F"), to=g.word(), day=g.day(), seats=g.rng.choice(("some", "none"))))
    g.new("bookings", Booking(id=g.id("B"), passenger=g.email(), flight=flight.id, cabin="crew"))
