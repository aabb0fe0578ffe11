"""An elevator that serves calls to floors, 0 being the lowest."""


def serve_in_order(start: int, calls: list[int]) -> int:
    """Return how many floors the elevator passes when it serves the calls one after the other from start."""
    travelled = 0
    floor = start
    for call in calls:
        travelled += abs(call - floor)
        floor = call
    return travelled


def sweep(start: int, calls: list[int], upwards: bool) -> list[int]:
    """Return the distinct stops when all calls in the given direction are served first, then those on the way back.

    A call at start itself is served first.
    """
    above = sorted({call for call in calls if call > start})
    below = sorted({call for call in calls if call < start}, reverse=True)
    here = [start] if start in calls else []
    return here + (above + below if upwards else below + above)


def nearest_first(start: int, calls: list[int]) -> list[int]:
    """Return the calls in the order in which always the nearest is served next, the lower of two equally near."""
    waiting = list(calls)
    floor = start
    stops = []
    while waiting:
        floor = min(waiting, key=lambda call: (abs(call - floor), call))
        waiting.remove(floor)
        stops.append(floor)
    return stops


def loads(trips: list[tuple[int, int]], floors: int) -> list[int]:
    """Return for each floor 0..floors-1 the people aboard when the elevator leaves it on one way up.

    A trip (from, to) takes one person. Raises ValueError if a trip does not go up or leaves the building.
    """
    changes = [0] * floors
    for origin, target in trips:
        if not 0 <= origin < target < floors:
            raise ValueError("not a trip upwards")
        changes[origin] += 1
        changes[target] -= 1
    aboard = []
    people = 0
    for change in changes:
        people += change
        aboard.append(people)
    return aboard
