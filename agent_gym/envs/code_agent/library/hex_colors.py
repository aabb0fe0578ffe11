"""Colours as (red, green, blue) with values from 0 to 255."""


def parse_color(text: str) -> tuple[int, int, int]:
    """Return the colour of '#rrggbb' or '#rgb', where a single digit stands for two equal ones.

    Raises ValueError for anything else.
    """
    digits = text.removeprefix("#").lower()
    if digits == text.lower() or any(digit not in "0123456789abcdef" for digit in digits):
        raise ValueError("not a colour")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    if len(digits) != 6:
        raise ValueError("three or six digits are needed")
    return (int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16))


def format_color(color: tuple[int, int, int]) -> str:
    """Return '#rrggbb' in small letters; values below 0 count as 0 and above 255 as 255."""
    return "#" + "".join(f"{min(255, max(0, part)):02x}" for part in color)


def mix(first: tuple[int, int, int], second: tuple[int, int, int], percent: int) -> tuple[int, int, int]:
    """Return the colour percent of the way from first to second, rounded down in each part."""
    red, green, blue = (a + (b - a) * percent // 100 for a, b in zip(first, second, strict=True))
    return (red, green, blue)


def brightness(color: tuple[int, int, int]) -> int:
    """Return the weighted brightness, (299 red + 587 green + 114 blue) // 1000."""
    red, green, blue = color
    return (299 * red + 587 * green + 114 * blue) // 1000


def text_color(background: tuple[int, int, int]) -> str:
    """Return '#000000' on a background with a brightness of at least 128, else '#ffffff'."""
    return "#000000" if brightness(background) >= 128 else "#ffffff"
