"""Bits of non-negative integers."""


def popcount(number: int) -> int:
    """Return the number of one bits; raise ValueError if number is negative."""
    if number < 0:
        raise ValueError("number is negative")
    count = 0
    while number:
        number &= number - 1
        count += 1
    return count


def reverse_bits(number: int, width: int) -> int:
    """Return the lowest width bits of number in reverse order; raise ValueError if number has more bits."""
    if number >> width:
        raise ValueError("number is too wide")
    result = 0
    for _ in range(width):
        result = (result << 1) | (number & 1)
        number >>= 1
    return result


def gray_code(number: int) -> int:
    """Return the number-th reflected Gray code."""
    return number ^ (number >> 1)


def from_gray(code: int) -> int:
    """Return the number whose Gray code is code."""
    number = 0
    while code:
        number ^= code
        code >>= 1
    return number


def set_positions(number: int) -> list[int]:
    """Return the positions of the one bits, the lowest bit being 0, in rising order."""
    return [position for position in range(number.bit_length()) if number >> position & 1]


def next_power_of_two(number: int) -> int:
    """Return the least power of two that is at least number; 1 for numbers below 1."""
    power = 1
    while power < number:
        power <<= 1
    return power
