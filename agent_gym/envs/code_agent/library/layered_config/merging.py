"""Merging layers of settings, later ones over earlier ones."""

from typing import Any

from settings import get_setting, set_setting


def merge_two(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of both; dicts are merged in depth, else upper wins, and None in upper removes the name."""
    result = dict(lower)
    for name, value in upper.items():
        known = result.get(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(known, dict) and isinstance(value, dict):
            result[name] = merge_two(known, value)
        else:
            result[name] = value
    return result


def merge_layers(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the layers merged in order, {} for none."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge_two(merged, layer)
    return merged


def apply_overrides(settings: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return settings after texts like 'log.level=3'; a value of digits becomes an int, 'true' and 'false' a bool.

    Raises ValueError for a text without '=' or without a name.
    """
    for text in overrides:
        path, equals, word = text.partition("=")
        if not equals or not path:
            raise ValueError("not an override")
        value: Any = word
        if word.isdigit():
            value = int(word)
        elif word in ("true", "false"):
            value = word == "true"
        settings = set_setting(settings, path, value)
    return settings


def origin(layers: list[dict[str, Any]], path: str) -> int:
    """Return the index of the last layer that has a value other than None at path; raise KeyError if none has."""
    for index in range(len(layers) - 1, -1, -1):
        if get_setting(layers[index], path) is not None:
            return index
    raise KeyError(path)
