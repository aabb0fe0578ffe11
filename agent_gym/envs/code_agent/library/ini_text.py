"""Configuration text with [section] headers and key = value lines."""


def parse_ini(text: str) -> dict[str, dict[str, str]]:
    """Return section -> {key: value}; keys before any header go to section ''.

    Blank lines and lines starting with # or ; are skipped, keys are lowered, spaces around names are dropped.
    A section appears even if it is empty, '' only if it has keys. Raises ValueError on any other line.
    """
    sections: dict[str, dict[str, str]] = {}
    current = ""
    for raw in text.split("\n"):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            current = line[1:-1].strip()
            sections.setdefault(current, {})
        elif "=" in line:
            key, value = line.split("=", 1)
            sections.setdefault(current, {})[key.strip().lower()] = value.strip()
        else:
            raise ValueError("not a key = value line")
    return sections


def get_flag(config: dict[str, dict[str, str]], section: str, key: str) -> bool:
    """Return the value as a truth value: yes, on, true, 1 or no, off, false, 0, in any case.

    Raises KeyError if section or key is missing and ValueError for any other value.
    """
    value = config[section][key].lower()
    if value in ("yes", "on", "true", "1"):
        return True
    if value in ("no", "off", "false", "0"):
        return False
    raise ValueError("not a truth value")


def to_ini(config: dict[str, dict[str, str]]) -> str:
    """Return the text of the sections in sorted order, keys sorted; the keys of '' come first without a header."""
    lines: list[str] = []
    for section in sorted(config):
        if section:
            lines.append(f"[{section}]")
        lines.extend(f"{key} = {config[section][key]}" for key in sorted(config[section]))
    return "\n".join(lines)
