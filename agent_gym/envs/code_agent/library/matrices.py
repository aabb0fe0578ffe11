"""Matrices of numbers as lists of rows."""


def shape(matrix: list[list[int]]) -> tuple[int, int]:
    """Return (rows, columns), with (0, 0) for no rows; raise ValueError if the rows differ in length."""
    if not matrix:
        return (0, 0)
    width = len(matrix[0])
    for row in matrix:
        if len(row) != width:
            raise ValueError("rows differ in length")
    return (len(matrix), width)


def transpose(matrix: list[list[int]]) -> list[list[int]]:
    """Return the matrix with rows and columns exchanged; raise ValueError if the rows differ in length."""
    rows, columns = shape(matrix)
    return [[matrix[i][j] for i in range(rows)] for j in range(columns)]


def multiply(left: list[list[int]], right: list[list[int]]) -> list[list[int]]:
    """Return the matrix product; raise ValueError if left's column count is not right's row count."""
    rows, inner = shape(left)
    other, columns = shape(right)
    if inner != other:
        raise ValueError("shapes do not fit")
    return [[sum(left[i][k] * right[k][j] for k in range(inner)) for j in range(columns)] for i in range(rows)]


def determinant(matrix: list[list[int]]) -> int:
    """Return the determinant by expansion along the first row, 1 for the empty matrix.

    Raises ValueError if the matrix is not square.
    """
    rows, columns = shape(matrix)
    if rows != columns:
        raise ValueError("not square")
    if rows == 0:
        return 1
    total = 0
    for j in range(columns):
        minor = [row[:j] + row[j + 1 :] for row in matrix[1:]]
        sign = 1 if j % 2 == 0 else -1
        total += sign * matrix[0][j] * determinant(minor)
    return total
