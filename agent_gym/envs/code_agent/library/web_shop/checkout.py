"""What a customer pays; amounts are cents."""

from basket import subtotal
from discounts import voucher_value

FREE_FROM = 5000
DELIVERY = 490


def delivery_fee(amount: int, express: bool) -> int:
    """Return the fee for goods of that amount: nothing from FREE_FROM on, else DELIVERY; express adds 1000."""
    fee = 0 if amount >= FREE_FROM else DELIVERY
    return fee + 1000 if express else fee


def amount_due(basket: list[tuple[str, int, int]], vouchers: list[str], express: bool) -> int:
    """Return the amount after the vouchers, each taken off what the ones before it left, with the delivery fee.

    Raises ValueError for an empty basket or an unknown voucher.
    """
    if not basket:
        raise ValueError("the basket is empty")
    amount = subtotal(basket)
    for code in vouchers:
        amount -= voucher_value(code, amount)
    return amount + delivery_fee(amount, express)


def receipt(basket: list[tuple[str, int, int]]) -> list[str]:
    """Return a line like '3 x pen: 4.50' per article, and the total at the end, without vouchers and delivery."""
    lines = [f"{pieces} x {name}: {subtotal([(name, pieces, price)]) / 100:.2f}" for name, pieces, price in basket]
    return [*lines, f"total: {subtotal(basket) / 100:.2f}"]
