"""Bookings of rooms: a dict from room to the sorted list of its slots."""

from time_slots import clash, parse_slot, slot_text


def is_free(bookings: dict[str, list[tuple[int, int]]], room: str, slot: tuple[int, int]) -> bool:
    """Return whether no booking of the room clashes with the slot; raise KeyError for an unknown room."""
    return not any(clash(slot, taken) for taken in bookings[room])


def book_room(bookings: dict[str, list[tuple[int, int]]], room: str, text: str) -> dict[str, list[tuple[int, int]]]:
    """Return the bookings with the slot given as text added; the argument is not changed.

    Raises KeyError for an unknown room and ValueError for a bad slot or a clash.
    """
    slot = parse_slot(text)
    if not is_free(bookings, room, slot):
        raise ValueError("the room is taken")
    return {**bookings, room: sorted([*bookings[room], slot])}


def free_rooms(bookings: dict[str, list[tuple[int, int]]], text: str) -> list[str]:
    """Return, sorted, the rooms that are free in the slot given as text; raise ValueError for a bad slot."""
    slot = parse_slot(text)
    return sorted(room for room in bookings if is_free(bookings, room, slot))


def free_times(bookings: dict[str, list[tuple[int, int]]], room: str, opening: tuple[int, int]) -> list[str]:
    """Return as texts the stretches of the opening slot in which the room is free, in order."""
    texts = []
    moment, closing = opening
    for start, end in sorted(bookings[room]):
        if start > moment and moment < closing:
            texts.append(slot_text((moment, min(start, closing))))
        moment = max(moment, end)
    if moment < closing:
        texts.append(slot_text((moment, closing)))
    return texts


def used_minutes(bookings: dict[str, list[tuple[int, int]]]) -> dict[str, int]:
    """Return the booked minutes of each room."""
    return {room: sum(end - start for start, end in slots) for room, slots in bookings.items()}
