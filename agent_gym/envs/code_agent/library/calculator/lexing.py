"""Splitting arithmetic text into tokens: ('number', int), ('name', str) or ('symbol', str)."""

SYMBOLS = "+-*/()"


def read_number(text: str, start: int) -> tuple[int, int]:
    """Return the whole number whose digits begin at start, and the position after them."""
    end = start
    while end < len(text) and text[end].isdigit():
        end += 1
    return int(text[start:end]), end


def tokenize(text: str) -> list[tuple[str, int | str]]:
    """Return the tokens of text; a name is made of letters only, spaces separate.

    Raises ValueError for any other character.
    """
    tokens: list[tuple[str, int | str]] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char.isdigit():
            number, position = read_number(text, position)
            tokens.append(("number", number))
            continue
        if char.isalpha():
            start = position
            while position < len(text) and text[position].isalpha():
                position += 1
            tokens.append(("name", text[start:position]))
            continue
        if char in SYMBOLS:
            tokens.append(("symbol", char))
        elif char != " ":
            raise ValueError("unexpected character")
        position += 1
    return tokens
