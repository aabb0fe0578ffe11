"""Differences between flat dicts."""

from typing import Any


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Return the changes from old to new, sorted by key, as ('add', key, value), ('remove', key, old value)
    or ('set', key, new value)."""
    changes: list[tuple[str, str, Any]] = []
    for key in sorted(set(old) | set(new)):
        if key not in old:
            changes.append(("add", key, new[key]))
        elif key not in new:
            changes.append(("remove", key, old[key]))
        elif old[key] != new[key]:
            changes.append(("set", key, new[key]))
    return changes


def apply(data: dict[str, Any], changes: list[tuple[str, str, Any]]) -> dict[str, Any]:
    """Return data after the changes; data itself stays as it is.

    Raises KeyError if a key to remove or set is missing or a key to add exists, ValueError for an unknown change.
    """
    result = dict(data)
    for kind, key, value in changes:
        if kind not in ("add", "remove", "set"):
            raise ValueError("unknown change")
        if (kind == "add") == (key in result):
            raise KeyError(key)
        if kind == "remove":
            del result[key]
        else:
            result[key] = value
    return result


def conflicts(first: list[tuple[str, str, Any]], second: list[tuple[str, str, Any]]) -> list[str]:
    """Return, sorted, the keys that both lists change in different ways."""
    known = {key: (kind, value) for kind, key, value in first}
    return sorted(key for kind, key, value in second if key in known and known[key] != (kind, value))
