"""Assembly text of a small stack machine: one instruction or 'label:' per ';', e.g. 'push 1; jump end; end:'."""

ARGUMENT_COUNTS = {"push": 1, "add": 0, "sub": 0, "mul": 0, "dup": 0, "swap": 0, "jump": 1, "jzero": 1, "print": 0}


def statements(source: str) -> list[list[str]]:
    """Return the words of each statement, empty ones left out; what follows '#' up to the next ';' is dropped."""
    parts = [part.split("#")[0].split() for part in source.split(";")]
    return [part for part in parts if part]


def find_labels(source: str) -> dict[str, int]:
    """Return label -> number of the instruction after it, counted from 0; raise ValueError for a repeated label."""
    labels: dict[str, int] = {}
    count = 0
    for words in statements(source):
        if words[0].endswith(":"):
            label = words[0][:-1]
            if label in labels:
                raise ValueError("repeated label")
            labels[label] = count
        else:
            count += 1
    return labels


def assemble(source: str) -> list[tuple[str, int | None]]:
    """Return the (name, argument) instructions, labels resolved, None for no argument.

    Raises ValueError for an unknown instruction or a wrong number of arguments, KeyError for an unknown label.
    """
    labels = find_labels(source)
    code: list[tuple[str, int | None]] = []
    for words in statements(source):
        name = words[0]
        if name.endswith(":"):
            continue
        if name not in ARGUMENT_COUNTS or len(words) - 1 != ARGUMENT_COUNTS[name]:
            raise ValueError("bad instruction")
        if len(words) == 1:
            code.append((name, None))
        else:
            code.append((name, int(words[1]) if name == "push" else labels[words[1]]))
    return code
