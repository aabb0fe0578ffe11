"""A cache that evicts the least recently used page."""


def simulate(requests: list[str], capacity: int) -> tuple[int, int]:
    """Return (hits, misses) of an initially empty cache of capacity pages.

    Raises ValueError if capacity is below 1.
    """
    if capacity < 1:
        raise ValueError("capacity must be positive")
    hits = 0
    for index, page in enumerate(requests):
        if page in cache_after(requests[:index], capacity):
            hits += 1
    return (hits, len(requests) - hits)


def cache_after(requests: list[str], capacity: int) -> list[str]:
    """Return the cached pages after all requests, the least recently used first."""
    cache: list[str] = []
    for page in requests:
        if page in cache:
            cache.remove(page)
        elif len(cache) >= capacity:
            cache.pop(0)
        cache.append(page)
    return cache


def evictions(requests: list[str], capacity: int) -> list[str]:
    """Return the pages in the order in which they are evicted; a page may be evicted more than once."""
    last_use: dict[str, int] = {}
    evicted = []
    for moment, page in enumerate(requests):
        if page not in last_use and len(last_use) == capacity:
            oldest = min(last_use, key=lambda name: last_use[name])
            evicted.append(oldest)
            del last_use[oldest]
        last_use[page] = moment
    return evicted
