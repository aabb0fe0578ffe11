"""Lines of comma-separated values with double quotes."""


def parse_line(line: str) -> list[str]:
    """Return the fields of a line; a quoted field may hold commas, and two quotes in it stand for one.

    Raises ValueError if a quoted field is not closed or is followed by something other than a comma.
    """
    fields = []
    position = 0
    while True:
        if line.startswith('"', position):
            field, position = read_quoted(line, position)
        else:
            end = line.find(",", position)
            end = len(line) if end == -1 else end
            field, position = line[position:end], end
        fields.append(field)
        if position == len(line):
            return fields
        if line[position] != ",":
            raise ValueError("text after a closing quote")
        position += 1


def read_quoted(line: str, start: int) -> tuple[str, int]:
    """Return the quoted field whose opening quote is at start, and the position after its closing quote.

    Raises ValueError if there is no closing quote.
    """
    field = ""
    position = start + 1
    while position < len(line):
        if line[position] != '"':
            field += line[position]
            position += 1
        elif line.startswith('""', position):
            field += '"'
            position += 2
        else:
            return field, position + 1
    raise ValueError("a quoted field is not closed")


def format_line(fields: list[str]) -> str:
    """Return the line for the fields; a field with a comma or a quote is quoted."""
    parts = []
    for field in fields:
        if "," in field or '"' in field:
            field = '"' + field.replace('"', '""') + '"'
        parts.append(field)
    return ",".join(parts)
