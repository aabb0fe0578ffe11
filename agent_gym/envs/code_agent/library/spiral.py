"""Walking through rectangular grids."""


def spiral_order(grid: list[list[int]]) -> list[int]:
    """Return the values along the clockwise inward spiral that starts at the upper left corner."""
    values: list[int] = []
    top, left = 0, 0
    bottom = len(grid) - 1
    right = len(grid[0]) - 1 if grid else -1
    while top <= bottom and left <= right:
        values.extend(grid[top][left : right + 1])
        values.extend(grid[row][right] for row in range(top + 1, bottom + 1))
        if top < bottom and left < right:
            values.extend(grid[bottom][column] for column in range(right - 1, left - 1, -1))
            values.extend(grid[row][left] for row in range(bottom - 1, top, -1))
        top, bottom, left, right = top + 1, bottom - 1, left + 1, right - 1
    return values


def spiral_square(size: int) -> list[list[int]]:
    """Return a size x size grid holding 1, 2, 3, ... along the same spiral; raise ValueError for a negative size."""
    if size < 0:
        raise ValueError("size is negative")
    grid = [[0] * size for _ in range(size)]
    row, column, down, across = 0, 0, 0, 1
    for count in range(1, size * size + 1):
        grid[row][column] = count
        next_row, next_column = row + down, column + across
        inside = 0 <= next_row < size and 0 <= next_column < size
        if not inside or grid[next_row][next_column]:
            down, across = across, -down
        row, column = row + down, column + across
    return grid


def diagonals(grid: list[list[int]]) -> list[list[int]]:
    """Return the anti-diagonals from the upper left to the lower right, each read from its upper end downwards."""
    height = len(grid)
    width = len(grid[0]) if grid else 0
    lines = []
    for total in range(height + width - 1):
        first_row = max(0, total - width + 1)
        lines.append([grid[row][total - row] for row in range(first_row, min(total, height - 1) + 1)])
    return lines
