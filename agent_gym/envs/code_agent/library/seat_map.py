"""Seats in rows of 'x' (taken) and '.' (free); seat '2C' is the third place of the second row."""


def parse_seat(seat: str) -> tuple[int, int]:
    """Return (row, column), both from 0, of a seat name; the letter may be small.

    Raises ValueError unless the name is a number of at least 1 and one letter A-Z.
    """
    number, letter = seat[:-1], seat[-1:].upper()
    if not number.isdigit() or int(number) < 1 or not "A" <= letter <= "Z":
        raise ValueError("not a seat")
    return (int(number) - 1, ord(letter) - ord("A"))


def book(rows: list[str], seat: str) -> list[str]:
    """Return the rows after taking the seat.

    Raises IndexError if there is no such seat and ValueError if it is taken.
    """
    row, column = parse_seat(seat)
    if row >= len(rows) or column >= len(rows[row]):
        raise IndexError("no such seat")
    if rows[row][column] == "x":
        raise ValueError("the seat is taken")
    changed = list(rows)
    changed[row] = rows[row][:column] + "x" + rows[row][column + 1 :]
    return changed


def adjacent_seats(rows: list[str], people: int) -> str | None:
    """Return the first seat, from the front and the left, of people free seats side by side in a row, or None."""
    for row, line in enumerate(rows):
        column = line.find("." * people)
        if column != -1:
            return f"{row + 1}{chr(ord('A') + column)}"
    return None


def fullest_row(rows: list[str]) -> int:
    """Return the number (from 1) of the row with the most taken seats, the frontmost of several.

    Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("no rows")
    taken = [line.count("x") for line in rows]
    return taken.index(max(taken)) + 1
