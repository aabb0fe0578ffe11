"""Text templates with placeholders such as {name} or {name|default}; {{ stands for one opening brace."""


def split_template(template: str) -> list[tuple[str, str]]:
    """Return the parts in order as ('text', text) or ('slot', inside of the braces) pairs; no text part is empty.

    Raises ValueError if a placeholder is not closed.
    """
    parts: list[tuple[str, str]] = []
    text = ""
    position = 0
    while position < len(template):
        if template.startswith("{{", position):
            text += "{"
            position += 2
        elif template[position] == "{":
            end = template.find("}", position)
            if end == -1:
                raise ValueError("a placeholder is not closed")
            if text:
                parts.append(("text", text))
            text = ""
            parts.append(("slot", template[position + 1 : end]))
            position = end + 1
        else:
            text += template[position]
            position += 1
    if text:
        parts.append(("text", text))
    return parts


def placeholders(template: str) -> list[str]:
    """Return the names of the placeholders without their defaults, each once, in order of first use."""
    names: list[str] = []
    for kind, content in split_template(template):
        name = content.split("|")[0]
        if kind == "slot" and name not in names:
            names.append(name)
    return names


def fill(template: str, values: dict[str, str]) -> str:
    """Return the template with each placeholder replaced by its value, or its default if it has none.

    Raises KeyError for a missing value without default.
    """
    result = ""
    for kind, content in split_template(template):
        if kind == "text":
            result += content
            continue
        name, bar, default = content.partition("|")
        if name not in values and not bar:
            raise KeyError(name)
        result += values.get(name, default)
    return result
