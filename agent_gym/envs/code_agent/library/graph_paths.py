"""Unweighted directed graphs as a dict from node to the list of its successors."""


def hop_counts(graph: dict[str, list[str]], start: str) -> dict[str, int]:
    """Return the least number of edges from start to each node that can be reached, start itself included.

    Raises KeyError if start is not a key of the graph; a node without a key has no successors.
    """
    if start not in graph:
        raise KeyError(start)
    hops = {start: 0}
    queue = [start]
    for node in queue:
        for following in graph.get(node, []):
            if following not in hops:
                hops[following] = hops[node] + 1
                queue.append(following)
    return hops


def shortest_path(graph: dict[str, list[str]], start: str, goal: str) -> list[str]:
    """Return a path with the fewest edges from start to goal, both included; successors are tried in list order.

    Returns [] if goal cannot be reached.
    """
    previous: dict[str, str] = {}
    queue = [start]
    for node in queue:
        if node == goal:
            break
        for following in graph.get(node, []):
            if following != start and following not in previous:
                previous[following] = node
                queue.append(following)
    if goal != start and goal not in previous:
        return []
    path = [goal]
    while path[-1] != start:
        path.append(previous[path[-1]])
    return path[::-1]


def reversed_graph(graph: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the graph with every edge turned round; every node is a key and successor lists are sorted."""
    result: dict[str, list[str]] = {node: [] for node in graph}
    for node, successors in graph.items():
        for following in successors:
            result.setdefault(following, []).append(node)
    return {node: sorted(sources) for node, sources in result.items()}
