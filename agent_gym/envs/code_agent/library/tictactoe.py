"""Tic-tac-toe on a board of three strings of 'X', 'O' and ' '; X moves first."""


def lines(board: list[str]) -> list[str]:
    """Return the eight lines: rows from the top, columns from the left, the diagonal, the anti-diagonal."""
    columns = ["".join(row[i] for row in board) for i in range(3)]
    diagonal = "".join(board[i][i] for i in range(3))
    anti = "".join(board[i][2 - i] for i in range(3))
    return [*board, *columns, diagonal, anti]


def winner(board: list[str]) -> str | None:
    """Return 'X' or 'O' if that player fills a line, else None; raise ValueError if both do."""
    winners = [player for player in "XO" if player * 3 in lines(board)]
    if len(winners) == 2:
        raise ValueError("both have won")
    return winners[0] if winners else None


def to_move(board: list[str]) -> str:
    """Return whose turn it is, 'X' with equally many marks; raise ValueError if the counts are impossible."""
    marks = "".join(board)
    ahead = marks.count("X") - marks.count("O")
    if ahead not in (0, 1):
        raise ValueError("impossible board")
    return "X" if ahead == 0 else "O"


def winning_moves(board: list[str], player: str) -> list[tuple[int, int]]:
    """Return, in reading order, the empty squares (row, column) that complete a line for player."""
    moves = []
    for row in range(3):
        for column in range(3):
            if board[row][column] != " ":
                continue
            changed = list(board)
            changed[row] = board[row][:column] + player + board[row][column + 1 :]
            if player * 3 in lines(changed):
                moves.append((row, column))
    return moves
