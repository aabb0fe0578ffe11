"""Values deep inside nested dicts and lists, addressed by paths such as 'users[0].name'."""

from typing import Any


def split_path(path: str) -> list[str | int]:
    """Return the steps of a path: names are separated by dots, list indices stand in brackets; '' has no steps.

    Raises ValueError for an empty name, or an index that is not made of digits or is not closed.
    """
    steps: list[str | int] = []
    for part in path.split(".") if path else []:
        name, bracket, rest = part.partition("[")
        if name:
            steps.append(name)
        elif not bracket:
            raise ValueError("empty name")
        while bracket:
            number, closed, rest = rest.partition("]")
            if not closed or not number.isdigit():
                raise ValueError("bad index")
            steps.append(int(number))
            if rest and not rest.startswith("["):
                raise ValueError("text after an index")
            bracket, rest = rest[:1], rest[1:]
    return steps


def lookup(data: Any, path: str) -> Any:
    """Return the value at path; raise KeyError for a missing key, IndexError for a missing index."""
    for step in split_path(path):
        data = data[step]
    return data


def leaf_paths(data: Any, prefix: str = "") -> list[str]:
    """Return the paths of all values that are neither dict nor list, in order; prefix is put before each."""
    if isinstance(data, dict):
        paths = []
        for key, value in data.items():
            paths.extend(leaf_paths(value, f"{prefix}.{key}" if prefix else key))
        return paths
    if isinstance(data, list):
        return [path for i, value in enumerate(data) for path in leaf_paths(value, f"{prefix}[{i}]")]
    return [prefix]


def lookup_all(data: Any, paths: list[str], default: Any) -> list[Any]:
    """Return the value at each path, or default where a key or an index is missing."""
    values = []
    for path in paths:
        try:
            values.append(lookup(data, path))
        except (KeyError, IndexError):
            values.append(default)
    return values
