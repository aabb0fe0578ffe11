"""Vectors as a dict from index to value, without zeros."""


def from_dense(values: list[int]) -> dict[int, int]:
    """Return the sparse form of a list."""
    return {index: value for index, value in enumerate(values) if value != 0}


def to_dense(vector: dict[int, int], size: int) -> list[int]:
    """Return the list of size values; raise IndexError if an index is outside it."""
    if any(not 0 <= index < size for index in vector):
        raise IndexError("index out of range")
    return [vector.get(index, 0) for index in range(size)]


def plus(left: dict[int, int], right: dict[int, int], factor: int = 1) -> dict[int, int]:
    """Return left + factor * right without zeros."""
    result = dict(left)
    for index, value in right.items():
        result[index] = result.get(index, 0) + factor * value
    return {index: value for index, value in result.items() if value != 0}


def dot(left: dict[int, int], right: dict[int, int]) -> int:
    """Return the scalar product."""
    return sum(value * right[index] for index, value in left.items() if index in right)


def shift_indices(vector: dict[int, int], offset: int) -> dict[int, int]:
    """Return the vector with every index moved by offset; raise IndexError if one would become negative."""
    if any(index + offset < 0 for index in vector):
        raise IndexError("negative index")
    return {index + offset: value for index, value in vector.items()}
