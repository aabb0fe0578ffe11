"""Truth of logical formulas."""

from typing import Any

from formulas import parse_formula


def holds(tree: Any, true_names: list[str]) -> bool:
    """Return the value of a tree of parse_formula if exactly the variables in true_names are true."""
    if isinstance(tree, str):
        return tree in true_names
    if tree[0] == "!":
        return not holds(tree[1], true_names)
    left, right = holds(tree[1], true_names), holds(tree[2], true_names)
    return left and right if tree[0] == "&" else left or right


def variables(text: str) -> list[str]:
    """Return, sorted, the variables that occur in a formula."""
    return sorted({char for char in text if char.isalpha()})


def table(text: str) -> list[tuple[str, bool]]:
    """Return (digits, value) for all values of the variables, a digit 1 or 0 for each in order, counting up from 0."""
    tree = parse_formula(text)
    names = variables(text)
    rows = []
    for number in range(2 ** len(names)):
        digits = f"{number:b}".zfill(len(names))
        true_names = [name for name, digit in zip(names, digits, strict=True) if digit == "1"]
        rows.append((digits, holds(tree, true_names)))
    return rows


def classify(text: str) -> str:
    """Return 'always', 'never' or 'sometimes' as the formula is true; raise ValueError if it is wrong."""
    values = [value for _, value in table(text)]
    if all(values):
        return "always"
    return "sometimes" if any(values) else "never"
