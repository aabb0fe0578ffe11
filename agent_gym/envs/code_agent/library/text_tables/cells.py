"""Cells of text tables."""


def cell_text(value: int | float | str | None) -> str:
    """Return '' for None, a float with two decimals, anything else as str gives it."""
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def align(text: str, width: int, side: str) -> str:
    """Return text padded to width on the 'left', 'right' or 'center' side, an odd space in the center to the right.

    Longer text is cut to width. Raises ValueError for another side.
    """
    if side not in ("left", "right", "center"):
        raise ValueError("unknown side")
    text = text[:width]
    space = width - len(text)
    before = {"left": 0, "right": space, "center": space // 2}[side]
    return " " * before + text + " " * (space - before)
