"""Progressive taxes; brackets are (lower bound, percent) pairs by rising bound, amounts are whole euros."""


def check_brackets(brackets: list[tuple[int, int]]) -> None:
    """Raise ValueError unless the bounds rise strictly from 0 and every percent is within 0..100."""
    if not brackets or brackets[0][0] != 0:
        raise ValueError("the first bracket must start at 0")
    if any(brackets[i][0] >= brackets[i + 1][0] for i in range(len(brackets) - 1)):
        raise ValueError("bounds must rise")
    if any(not 0 <= percent <= 100 for _, percent in brackets):
        raise ValueError("not a percentage")


def tax_due(income: int, brackets: list[tuple[int, int]]) -> int:
    """Return the tax in cents: the part of income between two bounds is taxed at the lower bound's percent.

    Raises ValueError for bad brackets.
    """
    check_brackets(brackets)
    due = 0
    for index, (bound, percent) in enumerate(brackets):
        upper = brackets[index + 1][0] if index + 1 < len(brackets) else max(income, bound)
        taxed = min(income, upper) - bound
        if taxed <= 0:
            break
        due += taxed * percent
    return due


def marginal_percent(income: int, brackets: list[tuple[int, int]]) -> int:
    """Return the percent of the bracket that income falls in, a bound belonging to the higher bracket."""
    check_brackets(brackets)
    current = brackets[0][1]
    for bound, percent in brackets:
        if income >= bound:
            current = percent
    return current


def joint_saving(first: int, second: int, brackets: list[tuple[int, int]]) -> int:
    """Return how many cents two people save, or lose if negative, by each being taxed on half their joint income.

    An odd euro of the joint income goes to one of the two.
    """
    total = first + second
    half = total // 2
    alone = tax_due(first, brackets) + tax_due(second, brackets)
    together = tax_due(half, brackets) + tax_due(total - half, brackets)
    return alone - together
