"""Query strings of web addresses, such as 'a=1&b=two%20words'."""

HEX = "0123456789ABCDEF"
SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~"


def decode_percent(text: str) -> str:
    """Return text with each %XX replaced by the character of that code and each '+' by a space.

    Raises ValueError if a '%' is not followed by two hexadecimal digits.
    """
    result = ""
    position = 0
    while position < len(text):
        char = text[position]
        if char == "%":
            digits = text[position + 1 : position + 3].upper()
            if len(digits) < 2 or digits[0] not in HEX or digits[1] not in HEX:
                raise ValueError("bad percent code")
            result += chr(HEX.index(digits[0]) * 16 + HEX.index(digits[1]))
            position += 3
        else:
            result += " " if char == "+" else char
            position += 1
    return result


def encode_percent(text: str) -> str:
    """Return text with every character outside SAFE as %XX in capitals; raise ValueError for codes above 255."""
    parts = []
    for char in text:
        if char in SAFE:
            parts.append(char)
        elif ord(char) < 256:
            parts.append("%" + HEX[ord(char) // 16] + HEX[ord(char) % 16])
        else:
            raise ValueError("character out of range")
    return "".join(parts)


def parse_query(query: str) -> dict[str, list[str]]:
    """Return name -> values in order, decoded; a part without '=' has the value '' and empty parts are skipped."""
    values: dict[str, list[str]] = {}
    for part in query.removeprefix("?").split("&"):
        if part:
            name, _, value = part.partition("=")
            values.setdefault(decode_percent(name), []).append(decode_percent(value))
    return values


def build_query(values: dict[str, list[str]]) -> str:
    """Return the query of the encoded names in sorted order, each with its values in order."""
    return "&".join(
        f"{encode_percent(name)}={encode_percent(value)}" for name in sorted(values) for value in values[name]
    )
