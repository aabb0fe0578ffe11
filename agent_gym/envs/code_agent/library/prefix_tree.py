"""Prefix trees: nested dicts from a letter to a subtree, in which the key '' marks the end of a word."""

from typing import Any


def build_tree(vocabulary: list[str]) -> dict[str, Any]:
    """Return the tree of the words."""
    root: dict[str, Any] = {}
    for entry in vocabulary:
        node = root
        for letter in entry:
            node = node.setdefault(letter, {})
        node[""] = True
    return root


def words_in(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Return all words of the tree in alphabetical order, with prefix put before each."""
    found = []
    for letter in sorted(tree):
        if letter == "":
            found.append(prefix)
        else:
            found.extend(words_in(tree[letter], prefix + letter))
    return found


def complete(tree: dict[str, Any], prefix: str) -> list[str]:
    """Return the words of the tree that start with prefix in alphabetical order, [] if there are none."""
    node = tree
    for letter in prefix:
        if letter not in node:
            return []
        node = node[letter]
    return words_in(node, prefix)


def shortest_prefix(tree: dict[str, Any], entry: str) -> str:
    """Return the shortest non-empty start of the word entry that no other word of the tree has, or else entry.

    Raises KeyError if entry is not in the tree.
    """
    if entry not in words_in(tree):
        raise KeyError(entry)
    for length in range(1, len(entry)):
        if len(complete(tree, entry[:length])) == 1:
            return entry[:length]
    return entry
