"""Price reductions; amounts are cents."""


def quantity_percent(pieces: int) -> int:
    """Return the discount in percent: 5 from 10 pieces on, 10 from 50 on, else 0."""
    if pieces >= 50:
        return 10
    return 5 if pieces >= 10 else 0


def voucher_value(code: str, subtotal: int) -> int:
    """Return what a voucher takes off: 'P15' is 15 percent rounded down, 'F500' is 500 cents, never above subtotal.

    Raises ValueError for any other code, or a percentage above 100.
    """
    kind, amount = code[:1], code[1:]
    if kind not in ("P", "F") or not amount.isdigit():
        raise ValueError("unknown voucher")
    if kind == "P":
        if int(amount) > 100:
            raise ValueError("more than 100 percent")
        return subtotal * int(amount) // 100
    return min(int(amount), subtotal)
