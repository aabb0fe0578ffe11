"""Check digits of numbers given as text; spaces and hyphens are ignored."""


def clean(number: str) -> str:
    """Return number without spaces and hyphens."""
    return number.replace(" ", "").replace("-", "")


def luhn_sum(digits: str) -> int:
    """Return the sum of the digits, every second one from the right (not the last) doubled and, above 9, less 9."""
    total = 0
    for index, char in enumerate(reversed(digits)):
        digit = int(char)
        if index % 2 == 1:
            digit *= 2
            if digit > 9:
                digit -= 9
        total += digit
    return total


def luhn_valid(number: str) -> bool:
    """Return whether number has at least two digits, nothing else, and a luhn_sum that is a multiple of 10."""
    digits = clean(number)
    return len(digits) >= 2 and digits.isdigit() and luhn_sum(digits) % 10 == 0


def luhn_check_digit(number: str) -> int:
    """Return the digit to append to make number valid; raise ValueError if it has anything but digits, or none."""
    digits = clean(number)
    if not digits.isdigit():
        raise ValueError("not a number")
    return -luhn_sum(digits + "0") % 10


def isbn10_valid(isbn: str) -> bool:
    """Return whether there are ten digits (X = 10 as the last) whose sum weighted 10, 9, ... 1 is a multiple of 11."""
    digits = clean(isbn)
    if len(digits) != 10 or not digits[:9].isdigit() or not (digits[9].isdigit() or digits[9] == "X"):
        return False
    values = [10 if char == "X" else int(char) for char in digits]
    return sum((10 - index) * value for index, value in enumerate(values)) % 11 == 0


def ean13_check_digit(first_twelve: str) -> int:
    """Return the 13th digit, which makes the sum weighted 1, 3, 1, 3, ... a multiple of 10.

    Raises ValueError unless exactly twelve digits are given.
    """
    digits = clean(first_twelve)
    if len(digits) != 12 or not digits.isdigit():
        raise ValueError("twelve digits are needed")
    total = sum(int(char) * (3 if index % 2 else 1) for index, char in enumerate(digits))
    return (10 - total % 10) % 10
