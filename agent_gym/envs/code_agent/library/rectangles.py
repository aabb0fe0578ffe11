"""Rectangles as (left, bottom, right, top) with left < right and bottom < top."""


def area(box: tuple[int, int, int, int]) -> int:
    """Return the area; raise ValueError if the rectangle has no positive width and height."""
    left, bottom, right, top = box
    if left >= right or bottom >= top:
        raise ValueError("not a rectangle")
    return (right - left) * (top - bottom)


def overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """Return the common rectangle, or None if there is none; touching edges have nothing in common."""
    left = max(first[0], second[0])
    bottom = max(first[1], second[1])
    right = min(first[2], second[2])
    top = min(first[3], second[3])
    if left < right and bottom < top:
        return (left, bottom, right, top)
    return None


def bounding_box(boxes: list[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """Return the smallest rectangle that holds all boxes; raise ValueError if there are none."""
    if not boxes:
        raise ValueError("no rectangles")
    lefts, bottoms, rights, tops = zip(*boxes, strict=True)
    return (min(lefts), min(bottoms), max(rights), max(tops))


def union_area(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> int:
    """Return the area that the two rectangles cover together."""
    common = overlap(first, second)
    return area(first) + area(second) - (area(common) if common else 0)


def holds_point(box: tuple[int, int, int, int], x: int, y: int) -> bool:
    """Return whether the point is inside; the left and bottom edges belong to the rectangle, the others do not."""
    return box[0] <= x < box[2] and box[1] <= y < box[3]
