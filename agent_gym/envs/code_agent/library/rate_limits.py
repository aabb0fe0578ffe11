"""Limiting how often something is allowed; times are whole seconds in rising order."""


def sliding_window(times: list[int], limit: int, window: int) -> list[bool]:
    """Return for each request whether it is allowed: at most limit allowed ones within any window seconds.

    A request exactly window seconds old no longer counts. Raises ValueError if limit or window is below 1.
    """
    if limit < 1 or window < 1:
        raise ValueError("limit and window must be positive")
    allowed: list[int] = []
    answers = []
    for time in times:
        recent = [earlier for earlier in allowed if time - earlier < window]
        if len(recent) < limit:
            allowed.append(time)
            answers.append(True)
        else:
            answers.append(False)
    return answers


def token_bucket(times: list[int], capacity: int, per_second: int) -> list[bool]:
    """Return for each request whether it gets one of the tokens of a bucket that starts full.

    per_second tokens flow in each second, up to capacity.
    """
    tokens = capacity
    last = times[0] if times else 0
    answers = []
    for time in times:
        tokens = min(capacity, tokens + (time - last) * per_second)
        last = time
        answers.append(tokens >= 1)
        if tokens >= 1:
            tokens -= 1
    return answers


def next_allowed(times: list[int], limit: int, window: int, now: int) -> int:
    """Return the earliest time from now on at which fewer than limit of the given times are within window seconds.

    Raises ValueError if limit is below 1.
    """
    if limit < 1:
        raise ValueError("limit must be positive")
    moment = now
    while sum(1 for time in times if 0 <= moment - time < window) >= limit:
        moment += 1
    return moment
