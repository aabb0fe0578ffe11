"""Cheapest ways in a network of two-way roads, given as (town, town, cost) triples."""

import heapq


def neighbours(roads: list[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    """Return town -> {neighbouring town: cost of the cheapest direct road}; raise ValueError on a negative cost."""
    network: dict[str, dict[str, int]] = {}
    for first, second, cost in roads:
        if cost < 0:
            raise ValueError("negative cost")
        for here, there in ((first, second), (second, first)):
            known = network.setdefault(here, {})
            known[there] = min(cost, known.get(there, cost))
    return network


def costs_from(roads: list[tuple[str, str, int]], start: str) -> dict[str, int]:
    """Return the least cost from start to each town in reach, start itself included at 0.

    Raises KeyError if no road touches start.
    """
    network = neighbours(roads)
    if start not in network:
        raise KeyError(start)
    final: dict[str, int] = {}
    heap = [(0, start)]
    while heap:
        cost, town = heapq.heappop(heap)
        if town in final:
            continue
        final[town] = cost
        for other, step in network[town].items():
            if other not in final:
                heapq.heappush(heap, (cost + step, other))
    return final


def farthest(roads: list[tuple[str, str, int]], start: str) -> str:
    """Return the town in reach with the highest least cost, the alphabetically first of several."""
    costs = costs_from(roads, start)
    return min(costs, key=lambda town: (-costs[town], town))
