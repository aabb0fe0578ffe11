"""Connected areas of equal characters in a picture given as a list of equally long strings."""


def region(picture: list[str], row: int, column: int) -> list[tuple[int, int]]:
    """Return, sorted, the (row, column) cells joined to the given one over edges through equal characters.

    Raises IndexError if the cell is outside the picture.
    """
    if not (0 <= row < len(picture) and 0 <= column < len(picture[0])):
        raise IndexError("outside the picture")
    colour = picture[row][column]
    cells = [(row, column)]
    for r, c in cells:
        for near in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            inside = 0 <= near[0] < len(picture) and 0 <= near[1] < len(picture[0])
            if inside and near not in cells and picture[near[0]][near[1]] == colour:
                cells.append(near)
    return sorted(cells)


def paint(picture: list[str], row: int, column: int, colour: str) -> list[str]:
    """Return the picture after giving the cell's region another colour; raise IndexError as region does."""
    lines = [list(line) for line in picture]
    for r, c in region(picture, row, column):
        lines[r][c] = colour
    return ["".join(line) for line in lines]


def count_regions(picture: list[str], colour: str) -> int:
    """Return the number of separate regions of that colour."""
    seen: list[tuple[int, int]] = []
    count = 0
    for row, line in enumerate(picture):
        for column, char in enumerate(line):
            if char == colour and (row, column) not in seen:
                seen.extend(region(picture, row, column))
                count += 1
    return count


def perimeter(picture: list[str], colour: str) -> int:
    """Return the number of cell edges between that colour and other colours or the outside."""
    edges = 0
    for line in [*picture, *("".join(column) for column in zip(*picture, strict=True))]:
        previous = ""
        for char in line:
            if (char == colour) != (previous == colour):
                edges += 1
            previous = char
        if previous == colour:
            edges += 1
    return edges
