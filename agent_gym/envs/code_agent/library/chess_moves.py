"""Moves on an 8 x 8 chess board; squares are written 'a1' to 'h8'."""

KNIGHT_STEPS = [(1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2)]


def to_square(name: str) -> tuple[int, int]:
    """Return (column, row), both from 0; raise ValueError if there is no such square."""
    if len(name) != 2 or name[0] not in "abcdefgh" or name[1] not in "12345678":
        raise ValueError("no such square")
    return ("abcdefgh".index(name[0]), int(name[1]) - 1)


def knight_targets(name: str) -> list[str]:
    """Return, sorted, the squares that a knight reaches in one move."""
    column, row = to_square(name)
    targets = []
    for across, up in KNIGHT_STEPS:
        if 0 <= column + across < 8 and 0 <= row + up < 8:
            targets.append(f"{'abcdefgh'[column + across]}{row + up + 1}")
    return sorted(targets)


def knight_distance(start: str, goal: str) -> int:
    """Return the least number of knight moves from start to goal."""
    to_square(goal)
    reached = {start}
    moves = 0
    while goal not in reached:
        reached |= {target for name in sorted(reached) for target in knight_targets(name)}
        moves += 1
    return moves


def queen_attacks(queen: str, other: str) -> bool:
    """Return whether a queen could move to the other square on an empty board; not to its own."""
    across = abs(to_square(queen)[0] - to_square(other)[0])
    up = abs(to_square(queen)[1] - to_square(other)[1])
    return queen != other and (across == 0 or up == 0 or across == up)


def square_color(name: str) -> str:
    """Return 'dark' or 'light'; a1 is dark."""
    column, row = to_square(name)
    return "dark" if (column + row) % 2 == 0 else "light"
