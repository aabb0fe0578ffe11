"""A file store: files, their owners and readers; deleting cannot be undone."""

from __future__ import annotations

from typing import Literal

from agent_gym.envs.api_agent.domain import LOOKUP, SCAN, TWINS, WRITE, Domain, Draft
from agent_gym.envs.api_agent.world import Record, Transaction, new_key
from agent_gym.tools import ToolError


class File(Record):
    path: str
    owner: str
    note: str
    mode: Literal["free", "locked"] = "free"


class Share(Record):
    id: str
    path: str
    reader: str


files = Domain("files", files=File, shares=Share)

# ---- tools ----


@files.tool(reads_only=True, latency=SCAN, group="files")
def list_files(db: Transaction) -> list[File]:
    """List every file. Slow; files_of is the quick way."""
    return db.scan(File, "files")


@files.tool(reads_only=True, latency=LOOKUP, group="files")
def files_of(db: Transaction, email: str) -> list[File]:
    """List the files of one owner.

    Args:
        email: The owner's exact address.
    """
    return db.find(File, "files", owner=email)


@files.tool(reads_only=True, latency=LOOKUP, group="files")
def stat_file(db: Transaction, path: str) -> File:
    """Read the owner, note and mode of one file.

    Args:
        path: Such as /docs/plan.txt.
    """
    return db.get(File, "files", path)


@files.tool(reads_only=True, latency=LOOKUP, group="files")
def stat_files(db: Transaction, paths: list[str]) -> list[File]:
    """Read the owner, note and mode of several files in one call.

    Args:
        paths: Their paths.
    """
    return [db.get(File, "files", path) for path in paths]


@files.tool(reads_only=True, latency=LOOKUP)
def shares_of(db: Transaction, path: str) -> list[Share]:
    """List who may read one file.

    Args:
        path: Such as /docs/plan.txt.
    """
    db.get(File, "files", path)
    return db.find(Share, "shares", path=path)


@files.tool(latency=WRITE)
def share_file(db: Transaction, path: str, email: str) -> Share:
    """Let someone read a file. This cannot be undone.

    Args:
        path: Such as /docs/plan.txt.
        email: The reader's address.
    """
    db.get(File, "files", path)
    if db.find(Share, "shares", path=path, reader=email):
        raise ToolError("conflict", f"{email} may read {path} already")
    return db.add("shares", Share(id=new_key("H", path, email), path=path, reader=email))


def _free(db: Transaction, path: str) -> File:
    file = db.get(File, "files", path)
    if file.mode == "locked":
        raise ToolError("not_permitted", f"{path} is locked; only free files may be changed")
    return file


@files.tool(latency=WRITE)
def set_owner(db: Transaction, path: str, email: str) -> File:
    """Give a free file to another owner.

    Args:
        path: Such as /docs/plan.txt.
        email: The new owner's address.
    """
    return db.update("files", _free(db, path), owner=email)


@files.tool(latency=WRITE)
def move_file(db: Transaction, path: str, new_path: str) -> File:
    """Move a free file to a path that is not taken. Its shares end.

    Args:
        path: Such as /docs/plan.txt.
        new_path: Where it goes.
    """
    file = _free(db, path)
    moved = db.add("files", file.model_copy(update={"path": new_path}))
    _remove(db, path)
    return moved


def _remove(db: Transaction, path: str) -> str:
    db.delete("files", _free(db, path))
    for share in db.find(Share, "shares", path=path):
        db.delete("shares", share)
    return path


@files.tool(latency=WRITE, group="delete")
def delete_file(db: Transaction, path: str) -> str:
    """Delete a free file and its shares. This cannot be undone.

    Args:
        path: Such as /docs/plan.txt.
    """
    return _remove(db, path)


@files.tool(latency=WRITE, group="delete")
def delete_files(db: Transaction, paths: list[str]) -> list[str]:
    """Delete several free files in one call: all of them, or none if one cannot be. This cannot be undone.

    Args:
        paths: Their paths.
    """
    return [_remove(db, path) for path in paths]


@files.tool(reads_only=True)
def disk_usage(db: Transaction) -> str:
    """Read how full the disk is."""
    return "40 of 100 GB used"


# ---- goals ----


def _file(g: Draft, owner: str | None = None, note: str | None = None) -> File:
    return g.new("files", File(path=g.path(), owner=owner or g.email(), note=note or g.word()))


def _share(g: Draft, file: File) -> Share:
    return g.new("shares", Share(id=g.id("H"), path=file.path, reader=g.email()))


def _case(g: Draft) -> tuple[File, list[File]]:
    """Some owners with two files each, of which one has the same note."""
    file = _file(g)
    twins = [_file(g, note=file.note) for _ in range(TWINS)]
    for one in (file, *twins):
        _file(g, one.owner)
    return file, twins


def _reach(g: Draft, by: str, file: File) -> str:
    """Say which file it is, and make the call that finds it, unless its path is said."""
    if by == "file":
        return f"file {g.refer('file', file.path)}"
    who = f"the file with note {file.note} of the owner with e-mail {g.refer('email', file.owner)}"
    g.call("files_of", email=file.owner)
    return who


@files.goal(file=1, email=2)
def delete(g: Draft, by: str) -> None:
    file, twins = _case(g)
    g.say(f"Delete {_reach(g, by, file)}.")
    g.call("delete_file", path=file.path)
    for twin in twins:
        g.trap("delete_file", path=twin.path)


@files.goal(file=1, email=2)
def move(g: Draft, by: str) -> None:
    file, twins = _case(g)
    path = g.path()
    g.say(f"Move {_reach(g, by, file)} to {path}.")
    g.call("move_file", path=file.path, new_path=path)
    for twin in twins:
        g.trap("move_file", path=twin.path, new_path=g.path())


@files.goal(email=2)
def delete_all(g: Draft, by: str) -> None:
    file, twins = _case(g)
    paths = sorted(f.path for f in g.tables["files"].values() if f.owner == file.owner)  # type: ignore[attr-defined]
    g.say(f"Delete every file of the owner with e-mail {g.refer('email', file.owner)}.")
    g.call("files_of", email=file.owner)
    g.call("delete_files", paths=paths)
    for twin in twins:
        g.trap("delete_file", path=twin.path)


@files.goal(file=1, email=1)
def give(g: Draft, by: str) -> None:
    file, twins = _case(g)
    email = g.email()
    if by == "file":
        g.say(f"Make {email} the owner of file {g.refer('file', file.path)}.")
    else:
        g.say(f"Give file {file.path} to the owner with e-mail {g.refer('email', email)}.")
    g.call("set_owner", path=file.path, email=email)
    for twin in twins:
        g.trap("set_owner", path=twin.path, email=email)


@files.goal(email=1, file=2)
def share(g: Draft, by: str) -> None:
    file, twins = _case(g)
    if by == "email":
        email = g.email()
        g.say(f"Share file {file.path} with the reader with e-mail {g.refer('email', email)}.")
    else:
        other = _file(g)
        email = other.owner
        g.say(f"Share file {file.path} with the owner of file {g.refer('file', other.path)}.")
        g.call("stat_file", path=other.path)
    g.call("share_file", path=file.path, email=email)
    for twin in twins:
        g.trap("share_file", path=twin.path, email=email)


@files.goal(file=1, email=2)
def reader(g: Draft, by: str) -> None:
    file, twins = _case(g)
    for twin in twins:
        _share(g, twin)
    g.say(f"Tell who may read {_reach(g, by, file)}.")
    g.call("shares_of", path=file.path)
    g.expect("reader", _share(g, file).reader)


@files.goal(file=1)
def notes(g: Draft, by: str) -> None:
    file, other, *_ = [_file(g) for _ in range(2 + TWINS)]
    g.say(f"Tell the notes of file {g.refer('file', file.path)} and file {other.path}.")
    g.call("stat_files", paths=[file.path, other.path])
    g.expect("note", file.note)
    g.expect("note", other.note)


# ---- where values stand, and what else is there ----


@files.source("email")
def owner(g: Draft, value: str) -> str:
    file = _file(g, value)
    g.call("stat_file", path=file.path)
    return f"of the owner of file {file.path}"


def _named(g: Draft, note: str) -> str:
    file = _file(g, note=note)
    g.call("stat_file", path=file.path)
    return f"named in file {file.path}"


@files.source("order")
def order_in_note(g: Draft, value: str) -> str:
    return _named(g, f"Order {value}")


@files.source("flight")
def flight_in_note(g: Draft, value: str) -> str:
    return _named(g, f"Flight {value}")


@files.source("event")
def event_in_note(g: Draft, value: str) -> str:
    return _named(g, f"Event {value}")


@files.background
def papers(g: Draft) -> None:
    file = g.new("files", File(path=g.path(), owner=g.email(), note=g.word(), mode=g.rng.choice(("free", "locked"))))
    _share(g, file)
