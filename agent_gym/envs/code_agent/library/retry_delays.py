"""Waiting times between attempts, in milliseconds."""


def exponential_delays(first: int, factor: int, limit: int, attempts: int) -> list[int]:
    """Return the delays after each attempt but the last: first, then factor times more each, none above limit.

    Raises ValueError if attempts is below 1.
    """
    if attempts < 1:
        raise ValueError("at least one attempt is needed")
    delays = []
    delay = first
    for _ in range(attempts - 1):
        delays.append(min(delay, limit))
        delay *= factor
    return delays


def attempt_times(delays: list[int], duration: int) -> list[int]:
    """Return when each attempt starts, the first at 0, if an attempt lasts duration and a delay follows it."""
    times = [0]
    for delay in delays:
        times.append(times[-1] + duration + delay)
    return times


def attempts_within(delays: list[int], duration: int, deadline: int) -> int:
    """Return how many of the attempts end at the deadline or before."""
    return sum(1 for start in attempt_times(delays, duration) if start + duration <= deadline)


def first_success(outcomes: list[str], retryable: list[str]) -> int:
    """Return the index of the first 'ok'; raise LookupError if there is none.

    Raises ValueError if an outcome that is neither 'ok' nor retryable comes before it.
    """
    for index, outcome in enumerate(outcomes):
        if outcome == "ok":
            return index
        if outcome not in retryable:
            raise ValueError("not retryable")
    raise LookupError("never successful")
