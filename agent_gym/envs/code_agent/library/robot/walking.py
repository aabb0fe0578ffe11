"""A robot on a floor of squares; it looks to N, E, S or W, and y grows to the north."""

from commands import expand

DIRECTIONS = "NESW"
STEPS = {"N": (0, 1), "E": (1, 0), "S": (0, -1), "W": (-1, 0)}


def turn(direction: str, command: str) -> str:
    """Return the direction after turning 'L' or 'R'; raise ValueError for an unknown direction."""
    change = 1 if command == "R" else -1
    return DIRECTIONS[(DIRECTIONS.index(direction) + change) % 4]


def walk(program: str, x: int, y: int, direction: str) -> tuple[int, int, str]:
    """Return where the robot stands and looks after the program; raise ValueError as expand and turn do."""
    for command in expand(program):
        if command == "F":
            step_x, step_y = STEPS[direction]
            x, y = x + step_x, y + step_y
        else:
            direction = turn(direction, command)
    return (x, y, direction)


def visited(program: str, walls: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the squares in order of first visit, starting at (0, 0) to the north; a step into a wall is left out."""
    x, y, direction = 0, 0, "N"
    squares = [(x, y)]
    for command in expand(program):
        new_x, new_y, direction = walk(command, x, y, direction)
        if (new_x, new_y) in walls:
            continue
        x, y = new_x, new_y
        if (x, y) not in squares:
            squares.append((x, y))
    return squares


def returns_home(program: str) -> bool:
    """Return whether the robot ends where it started, whatever the direction."""
    return walk(program, 0, 0, "N")[:2] == (0, 0)
