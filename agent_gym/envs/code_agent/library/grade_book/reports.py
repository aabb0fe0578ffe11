"""Reports on a class: a dict from student to a list of points in percent."""

from scores import drop_lowest, grade


def average(points: list[int]) -> int:
    """Return the mean without the lowest, rounded down; raise ValueError if there are no points."""
    if not points:
        raise ValueError("no points")
    kept = drop_lowest(points, 1)
    return sum(kept) // len(kept)


def report(students: dict[str, list[int]]) -> list[str]:
    """Return a line like 'ann: 84 (B)' for each student, the best first, equal ones by name, no points being '-'."""
    graded = sorted((name for name in students if students[name]), key=lambda name: (-average(students[name]), name))
    lines = [f"{name}: {average(students[name])} ({grade(average(students[name]))})" for name in graded]
    return lines + [f"{name}: -" for name in sorted(students) if not students[name]]


def distribution(students: dict[str, list[int]]) -> dict[str, int]:
    """Return how many students with points have each grade; grades that nobody has are left out."""
    counts: dict[str, int] = {}
    for points in students.values():
        if points:
            letter = grade(average(points))
            counts[letter] = counts.get(letter, 0) + 1
    return counts


def improved(students: dict[str, list[int]]) -> list[str]:
    """Return, sorted, the students whose last points are above the mean of all those before them."""
    names = []
    for name, points in students.items():
        if len(points) > 1 and points[-1] * (len(points) - 1) > sum(points[:-1]):
            names.append(name)
    return sorted(names)
