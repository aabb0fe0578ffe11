"""Counting votes; a ballot lists candidates, the favourite first."""


def first_choices(ballots: list[list[str]], excluded: list[str]) -> dict[str, int]:
    """Return how many ballots have each candidate as the first that is not excluded; others have no entry."""
    counts: dict[str, int] = {}
    for ballot in ballots:
        remaining = [name for name in ballot if name not in excluded]
        if remaining:
            counts[remaining[0]] = counts.get(remaining[0], 0) + 1
    return counts


def plurality(ballots: list[list[str]]) -> str | None:
    """Return the candidate with the most first choices, or None if several have as many or nobody has any."""
    counts = first_choices(ballots, [])
    most = max(counts.values(), default=0)
    leaders = [name for name, count in counts.items() if count == most]
    return leaders[0] if len(leaders) == 1 else None


def borda(ballots: list[list[str]]) -> dict[str, int]:
    """Return the points of each candidate: a place earns as many points as candidates stand below it."""
    points: dict[str, int] = {}
    for ballot in ballots:
        for place, name in enumerate(ballot):
            points[name] = points.get(name, 0) + len(ballot) - 1 - place
    return points


def instant_runoff(ballots: list[list[str]]) -> str:
    """Return who first holds more than half of the counted first choices.

    While nobody does, the candidate with the fewest first choices, of several the alphabetically last, is excluded.
    Raises ValueError if no ballot names anybody.
    """
    excluded: list[str] = []
    while True:
        counts = first_choices(ballots, excluded)
        if not counts:
            raise ValueError("no votes")
        leader = max(counts, key=lambda name: counts[name])
        if counts[leader] * 2 > sum(counts.values()):
            return leader
        fewest = min(counts.values())
        excluded.append(max(name for name, count in counts.items() if count == fewest))
