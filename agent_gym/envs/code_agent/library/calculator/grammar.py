"""From tokens to a tree: a number, a name, ('neg', tree) or (operator, left tree, right tree)."""

from typing import Any

from lexing import tokenize


def parse_sum(tokens: list[tuple[str, Any]], start: int) -> tuple[Any, int]:
    """Return the tree of the products joined by + and - from start on, grouped to the left, and the next position."""
    tree, position = parse_product(tokens, start)
    while position < len(tokens) and tokens[position] in (("symbol", "+"), ("symbol", "-")):
        operator = tokens[position][1]
        right, position = parse_product(tokens, position + 1)
        tree = (operator, tree, right)
    return tree, position


def parse_product(tokens: list[tuple[str, Any]], start: int) -> tuple[Any, int]:
    """Return the tree of the factors joined by * and / from start on, grouped to the left, and the next position."""
    tree, position = parse_factor(tokens, start)
    while position < len(tokens) and tokens[position] in (("symbol", "*"), ("symbol", "/")):
        operator = tokens[position][1]
        right, position = parse_factor(tokens, position + 1)
        tree = (operator, tree, right)
    return tree, position


def parse_factor(tokens: list[tuple[str, Any]], start: int) -> tuple[Any, int]:
    """Return the tree of a number, a name, a bracketed sum or a negated factor at start, and the next position.

    Raises ValueError if there is none of them or a bracket is not closed.
    """
    if start >= len(tokens):
        raise ValueError("unexpected end")
    kind, value = tokens[start]
    if kind != "symbol":
        return value, start + 1
    if value == "-":
        inner, position = parse_factor(tokens, start + 1)
        return ("neg", inner), position
    if value != "(":
        raise ValueError("unexpected symbol")
    tree, position = parse_sum(tokens, start + 1)
    if position >= len(tokens) or tokens[position] != ("symbol", ")"):
        raise ValueError("bracket not closed")
    return tree, position + 1


def parse(text: str) -> Any:
    """Return the tree of an expression; raise ValueError if it is wrong or something follows it."""
    tokens = tokenize(text)
    tree, position = parse_sum(tokens, 0)
    if position != len(tokens):
        raise ValueError("unexpected token")
    return tree
