"""A mailbox: a list of mails with a search box, one mail, folders."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from agent_gym.envs.api_agent.world import Record, Transaction
from agent_gym.envs.web_lite.draft import Draft
from agent_gym.envs.web_lite.site import Site, address, asking, button, form, found_by, link, listing, select, textbox
from agent_gym.envs.web_lite.world import Tables

FOLDERS = ("Inbox", "Archive", "Work", "Family")


class Mail(Record):
    """A mail."""

    id: str
    subject: str
    sender: str
    code: str
    folder: str = "Inbox"
    starred: bool = False
    reply: str = ""


mail = Site("mail", "Mailbox", {"Inbox": "/", "Archive": "/archive"}, mails=Mail)


def _in(tables: Tables, folder: str) -> list[Mail]:
    return [m for m in tables.tables["mails"].values() if isinstance(m, Mail) and m.folder == folder]


# ---- pages ---------------------------------------------------------------------------------------------------------


@mail.page("/", "q", "page")
def inbox(tables: Tables, query: Mapping[str, str]) -> str:
    wanted = query.get("q", "")
    found = [m for m in _in(tables, "Inbox") if found_by(wanted, f"{m.subject} {m.sender}")]

    def row(m: Mail) -> str:
        starring = form(f"/star/{m.id}", button("Unstar" if m.starred else "Star", m.subject), hidden=query)
        archiving = form(f"/archive/{m.id}", button("Archive", m.subject), hidden=query)
        return f"{link(m.subject, tables, f'/mail/{m.id}')} from {m.sender} {starring}{archiving}"

    search = asking(tables, "/", textbox("Search", "q", wanted), button("Search"))
    return f"<div>{search}</div>{listing(found, row, tables, query)}"


@mail.page("/archive")
def archive(tables: Tables, query: Mapping[str, str]) -> str:
    mails = "".join(f"<p>{link(m.subject, tables, f'/mail/{m.id}')}</p>" for m in _in(tables, "Archive"))
    return f"<h1>Archive</h1>{mails or '<p>Nothing here.</p>'}"


@mail.page("/mail/*")
def read(tables: Tables, query: Mapping[str, str], key: str) -> str | None:
    m = tables.tables["mails"].get(key)
    if not isinstance(m, Mail):
        return None
    replied = f"<p>You replied: {escape(m.reply)}</p>" if m.reply else ""
    return (
        f"<h1>{m.subject}</h1><p>from {m.sender}: the code is {m.code}</p>{replied}"
        f"<div>{form(f'/delete/{m.id}', button('Delete'))}</div>"
        f"<div>{form(f'/move/{m.id}', select('Folder', 'folder', FOLDERS, m.folder), button('Move'))}</div>"
        f"<div>{form(f'/reply/{m.id}', textbox('Reply', 'text'), button('Send'))}</div>"
    )


# ---- actions -------------------------------------------------------------------------------------------------------


@mail.action("/star/*")
def star_mail(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    m = db.get(Mail, "mails", key)
    db.update("mails", m, starred=not m.starred)
    return address("/", sent)


@mail.action("/archive/*")
def archive_mail(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.update("mails", db.get(Mail, "mails", key), folder="Archive")
    return address("/", sent)


@mail.action("/delete/*")
def delete_mail(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    db.delete("mails", db.get(Mail, "mails", key))
    return "/"


@mail.action("/move/*")
def move_mail(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    if sent.get("folder") in FOLDERS:
        db.update("mails", db.get(Mail, "mails", key), folder=sent["folder"])
    return f"/mail/{key}"


@mail.action("/reply/*")
def reply_to_mail(db: Transaction, sent: Mapping[str, str], key: str) -> str:
    if sent.get("text"):
        db.update("mails", db.get(Mail, "mails", key), reply=sent["text"])
    return f"/mail/{key}"


# ---- goals ---------------------------------------------------------------------------------------------------------


def _new(g: Draft, where: str = "any", like: str = "", sender: str = "") -> Mail:
    m = Mail(id=g.place(where), subject=g.word(like), sender=sender or g.word(), code=g.code("C"))
    g.new("mails", m)
    return m


@mail.background
def fill(g: Draft) -> None:
    _new(g)


@mail.goal(here=1, far=3)
def star(g: Draft, where: str) -> None:
    m = _new(g, where)
    other = _new(g, like=m.subject)
    g.say(f'Star the mail "{m.subject}".', f'Put a star on "{m.subject}".')
    g.find(where, m.subject)
    g.click(f"Star {m.subject}")
    g.trap(f"/?q={other.subject}", f"Star {other.subject}")


@mail.goal(here=1, far=3)
def store(g: Draft, where: str) -> None:
    m = _new(g, where)
    other = _new(g, like=m.subject)
    g.say(f'Archive the mail "{m.subject}".', f'Put "{m.subject}" into the archive.')
    g.find(where, m.subject)
    g.click(f"Archive {m.subject}")
    g.trap(f"/?q={other.subject}", f"Archive {other.subject}")


@mail.goal(here=2, far=4)
def delete(g: Draft, where: str) -> None:
    m = _new(g, where)
    other = _new(g, like=m.subject)
    g.say(f'Delete the mail "{m.subject}".')
    g.find(where, m.subject)
    g.click(m.subject)
    g.click("Delete")
    g.trap(f"/mail/{other.id}", "Delete")


@mail.goal(here=3, far=5)
def reply(g: Draft, where: str) -> None:
    m, text = _new(g, where), g.word()
    g.say(f'Reply "{text}" to the mail "{m.subject}".', f'Answer the mail "{m.subject}" with "{text}".')
    g.find(where, m.subject)
    g.click(m.subject)
    g.fill("Reply", text)
    g.click("Send")
    g.trap(f"/mail/{m.id}", "Delete")


@mail.goal(here=3, far=5)
def move(g: Draft, where: str) -> None:
    m, folder = _new(g, where), g.rng.choice(FOLDERS[2:])
    g.say(f'Move the mail "{m.subject}" to the folder {folder}.')
    g.find(where, m.subject)
    g.click(m.subject)
    g.select("Folder", folder)
    g.click("Move")
    g.trap(f"/mail/{m.id}", "Delete")


@mail.goal(here=1, far=3)
def code(g: Draft, where: str) -> None:
    m = _new(g, where)
    other = _new(g, like=m.subject)
    g.say(f'Which code is in the mail "{m.subject}"?', f'Tell the code in the mail "{m.subject}".')
    g.find(where, m.subject)
    g.click(m.subject)
    g.expect(m.code, other.code, m.subject)


@mail.goal(far=4)
def star_both(g: Draft, where: str) -> None:
    first, other = _new(g, "far"), _new(g)
    second = _new(g, "far", sender=first.sender)
    g.say(f'Star both mails from "{first.sender}".')
    g.find("far", first.sender)
    g.click(f"Star {first.subject}")
    g.click(f"Star {second.subject}")
    g.trap(f"/?q={other.subject}", f"Star {other.subject}")
