"""Paths with '/' between the names; an absolute path starts with '/'."""


def normalize(path: str) -> str:
    """Return the path without empty names, '.' and 'name/..'; '.' if nothing is left of a relative path.

    A '..' at the root of an absolute path is dropped, at the start of a relative one it stays.
    """
    absolute = path.startswith("/")
    names: list[str] = []
    for name in path.split("/"):
        if name in ("", "."):
            continue
        if name != "..":
            names.append(name)
        elif names and names[-1] != "..":
            names.pop()
        elif not absolute:
            names.append(name)
    joined = "/".join(names)
    return "/" + joined if absolute else joined or "."


def join_paths(base: str, path: str) -> str:
    """Return path as seen from the folder base, normalized; an absolute path ignores base."""
    return normalize(path if path.startswith("/") else base + "/" + path)


def relative_to(path: str, base: str) -> str:
    """Return how to reach the absolute path from the absolute folder base; raise ValueError if one is relative."""
    if not path.startswith("/") or not base.startswith("/"):
        raise ValueError("absolute paths are needed")
    target = [name for name in normalize(path).split("/") if name]
    origin = [name for name in normalize(base).split("/") if name]
    common = 0
    while common < min(len(target), len(origin)) and target[common] == origin[common]:
        common += 1
    steps = [".."] * (len(origin) - common) + target[common:]
    return "/".join(steps) or "."


def split_extension(path: str) -> tuple[str, str]:
    """Return the path up to the last dot of its last name, and the rest; a dot that starts the name does not count."""
    folder, slash, name = path.rpartition("/")
    position = name.rfind(".")
    if position <= 0:
        return (path, "")
    return (folder + slash + name[:position], name[position:])
