"""Values of expressions; / divides exactly or not at all."""

from typing import Any

from grammar import parse


def evaluate_tree(tree: Any, variables: dict[str, int]) -> int:
    """Return the value of a tree of grammar.parse.

    Raises KeyError for an unknown name, ZeroDivisionError for division by 0, ValueError if a division has a rest.
    """
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return variables[tree]
    if tree[0] == "neg":
        return -evaluate_tree(tree[1], variables)
    left = evaluate_tree(tree[1], variables)
    right = evaluate_tree(tree[2], variables)
    if tree[0] == "+":
        return left + right
    if tree[0] == "-":
        return left - right
    if tree[0] == "*":
        return left * right
    if left % right != 0:
        raise ValueError("the division has a rest")
    return left // right


def calculate(text: str, variables: dict[str, int]) -> int:
    """Return the value of an expression; raise as parse and evaluate_tree do."""
    return evaluate_tree(parse(text), variables)


def names_used(tree: Any) -> list[str]:
    """Return, sorted and each once, the names in a tree."""
    if isinstance(tree, str):
        return [tree]
    if isinstance(tree, int):
        return []
    return sorted({name for branch in tree[1:] for name in names_used(branch)})
