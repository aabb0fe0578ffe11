"""Lists of pages written as '1-3,7,9-10'."""


def parse_pages(text: str) -> list[int]:
    """Return the pages, sorted, each once; spaces are ignored and empty text gives [].

    Raises ValueError if a part is not a number or a range, or a range runs backwards.
    """
    pages: set[int] = set()
    for part in text.replace(" ", "").split(","):
        if not part and not text.strip():
            continue
        first, dash, last = part.partition("-")
        low = int(first)
        high = int(last) if dash else low
        if high < low:
            raise ValueError("the range runs backwards")
        pages.update(range(low, high + 1))
    return sorted(pages)


def format_pages(pages: list[int]) -> str:
    """Return the shortest text for the pages; two pages in a row are written as a range too."""
    blocks: list[list[int]] = []
    for page in sorted(set(pages)):
        if blocks and page == blocks[-1][1] + 1:
            blocks[-1][1] = page
        else:
            blocks.append([page, page])
    return ",".join(f"{low}-{high}" if low < high else str(low) for low, high in blocks)


def missing_pages(pages: list[int], last: int) -> list[int]:
    """Return the pages from 1 to last that are not in the list, in order."""
    return [page for page in range(1, last + 1) if page not in pages]


def booklet_sheets(last: int) -> list[tuple[int, int]]:
    """Return the pages (left, right) of each side of a folded booklet, outermost first; blank pages are 0.

    The number of pages is filled up to a multiple of 4. On every second side the higher page is on the right.
    """
    total = (last + 3) // 4 * 4
    sides = []
    for side in range(total // 2):
        low, high = side + 1, total - side
        low, high = (page if page <= last else 0 for page in (low, high))
        sides.append((high, low) if side % 2 == 0 else (low, high))
    return sides
