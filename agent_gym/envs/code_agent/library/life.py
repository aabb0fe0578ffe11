"""Conway's game of life on a rectangle whose outside is dead; rows are strings of '#' (alive) and '.'."""


def count_neighbours(board: list[str], row: int, column: int) -> int:
    """Return how many of the up to eight cells around (row, column) are alive."""
    count = 0
    for near_row in range(max(0, row - 1), min(len(board), row + 2)):
        for near_column in range(max(0, column - 1), min(len(board[near_row]), column + 2)):
            if (near_row, near_column) != (row, column) and board[near_row][near_column] == "#":
                count += 1
    return count


def step(board: list[str]) -> list[str]:
    """Return the next board: a living cell stays with 2 or 3 neighbours, a dead one awakes with exactly 3."""
    result = []
    for row, line in enumerate(board):
        new_line = ""
        for column, cell in enumerate(line):
            count = count_neighbours(board, row, column)
            alive = count == 3 or (cell == "#" and count == 2)
            new_line += "#" if alive else "."
        result.append(new_line)
    return result


def generations_until_stable(board: list[str], limit: int) -> int:
    """Return after how many steps the board no longer changes; raise ValueError if it still does after limit steps."""
    for steps in range(limit + 1):
        following = step(board)
        if following == board:
            return steps
        board = following
    raise ValueError("the board keeps changing")


def population(board: list[str]) -> int:
    """Return the number of living cells; raise ValueError for characters other than '#' and '.'."""
    for line in board:
        if line.strip("#."):
            raise ValueError("unknown character")
    return sum(line.count("#") for line in board)
