"""Logical formulas with the variables a-z, ! (not), & (and), | (or) and round brackets; & binds tighter than |."""

from typing import Any


def parse_formula(text: str) -> Any:
    """Return the tree: a letter, ('!', tree), ('&', left, right) or ('|', left, right), grouped to the left.

    Spaces are ignored. Raises ValueError if the formula is wrong.
    """
    compact = text.replace(" ", "")
    tree, position = parse_level(compact, 0, "|")
    if position != len(compact):
        raise ValueError("unexpected character")
    return tree


def parse_level(text: str, start: int, operator: str) -> tuple[Any, int]:
    """Return the tree of operands joined by operator, '|' or '&', from start on, and the position after it."""
    tree, position = parse_level(text, start, "&") if operator == "|" else parse_operand(text, start)
    while text.startswith(operator, position):
        if operator == "|":
            right, position = parse_level(text, position + 1, "&")
        else:
            right, position = parse_operand(text, position + 1)
        tree = (operator, tree, right)
    return tree, position


def parse_operand(text: str, start: int) -> tuple[Any, int]:
    """Return the tree of a variable, a negated operand or a bracket at start, and the position after it.

    Raises ValueError if there is none of them or a bracket is not closed.
    """
    char = text[start : start + 1]
    if char == "!":
        inner, position = parse_operand(text, start + 1)
        return ("!", inner), position
    if char == "(":
        tree, position = parse_level(text, start + 1, "|")
        if not text.startswith(")", position):
            raise ValueError("bracket not closed")
        return tree, position + 1
    if not "a" <= char <= "z":
        raise ValueError("operand expected")
    return char, start + 1
