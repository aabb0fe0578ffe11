"""Slots of a day as (start, end) in minutes since midnight, with start < end."""


def parse_slot(text: str) -> tuple[int, int]:
    """Return the slot of a text like '9:30-11:00'; raise ValueError if it is none or does not end after its start."""
    start_text, _, end_text = text.partition("-")
    ends = []
    for clock in (start_text, end_text):
        hours, _, minutes = clock.partition(":")
        if not hours.isdigit() or not minutes.isdigit() or int(minutes) > 59 or int(hours) > 24:
            raise ValueError("not a slot")
        ends.append(int(hours) * 60 + int(minutes))
    if ends[0] >= ends[1]:
        raise ValueError("the slot is empty")
    return (ends[0], ends[1])


def clash(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether the slots share time; one may start when the other ends."""
    return first[0] < second[1] and second[0] < first[1]


def slot_text(slot: tuple[int, int]) -> str:
    """Return the text of the slot like '9:30-11:00'."""
    return "-".join(f"{minutes // 60}:{minutes % 60:02d}" for minutes in slot)
