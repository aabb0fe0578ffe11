"""A mailbox: mails, contacts and what was sent; sending and deleting cannot be undone."""

from __future__ import annotations

from typing import Literal

from agent_gym.envs.api_agent.domain import LOOKUP, SCAN, TWINS, WRITE, Domain, Draft
from agent_gym.envs.api_agent.world import Record, Transaction, new_key
from agent_gym.tools import ToolError

Folder = Literal["inbox", "archive", "spam"]


class Mail(Record):
    id: str
    sender: str
    subject: str
    folder: Folder = "inbox"


class Contact(Record):
    id: str
    name: str
    email: str


class Sent(Record):
    id: str
    to: str
    subject: str


mail = Domain("mail", mails=Mail, contacts=Contact, sent=Sent)

# ---- tools ----


@mail.tool(reads_only=True, latency=SCAN, group="mails")
def list_mails(db: Transaction) -> list[Mail]:
    """List every mail. Slow; mails_from is the quick way."""
    return db.scan(Mail, "mails")


@mail.tool(reads_only=True, latency=SCAN, group="contacts")
def list_contacts(db: Transaction) -> list[Contact]:
    """List every contact. Slow; find_contact is the quick way."""
    return db.scan(Contact, "contacts")


@mail.tool(reads_only=True, latency=LOOKUP, group="mails")
def mails_from(db: Transaction, email: str) -> list[Mail]:
    """List the mails of one sender.

    Args:
        email: The sender's exact address.
    """
    return db.find(Mail, "mails", sender=email)


@mail.tool(reads_only=True, latency=LOOKUP, group="mails")
def read_mail(db: Transaction, mail_id: str) -> Mail:
    """Read one mail.

    Args:
        mail_id: Such as M1234.
    """
    return db.get(Mail, "mails", mail_id)


@mail.tool(reads_only=True, latency=LOOKUP, group="mails")
def read_mails(db: Transaction, mail_ids: list[str]) -> list[Mail]:
    """Read several mails in one call.

    Args:
        mail_ids: Their ids.
    """
    return [db.get(Mail, "mails", mail_id) for mail_id in mail_ids]


@mail.tool(reads_only=True, latency=LOOKUP, group="contacts")
def find_contact(db: Transaction, name: str) -> Contact:
    """Find a contact by name.

    Args:
        name: The exact full name.
    """
    for contact in db.find(Contact, "contacts", name=name):
        return contact
    raise ToolError("not_found", f"no contact has the name {name!r}")


@mail.tool(latency=WRITE)
def send_mail(db: Transaction, to: str, subject: str) -> Sent:
    """Send a mail. This cannot be undone.

    Args:
        to: The receiver's address.
        subject: Its subject.
    """
    return db.add("sent", Sent(id=new_key("S", to, subject), to=to, subject=subject))


@mail.tool(latency=WRITE)
def move_mail(db: Transaction, mail_id: str, folder: Folder) -> Mail:
    """Move a mail to another folder.

    Args:
        mail_id: Such as M1234.
        folder: The new folder.
    """
    found = db.get(Mail, "mails", mail_id)
    if found.folder == folder:
        raise ToolError("conflict", f"mail {mail_id} is in {folder} already")
    return db.update("mails", found, folder=folder)


def _delete(db: Transaction, mail_id: str) -> str:
    found = db.get(Mail, "mails", mail_id)
    if found.folder == "archive":
        raise ToolError("not_permitted", f"mail {mail_id} is in the archive; only other mails may be deleted")
    db.delete("mails", found)
    return mail_id


@mail.tool(latency=WRITE, group="delete")
def delete_mail(db: Transaction, mail_id: str) -> str:
    """Delete a mail that is not in the archive. This cannot be undone.

    Args:
        mail_id: Such as M1234.
    """
    return _delete(db, mail_id)


@mail.tool(latency=WRITE, group="delete")
def delete_mails(db: Transaction, mail_ids: list[str]) -> list[str]:
    """Delete several mails in one call: all of them, or none if one cannot be. This cannot be undone.

    Args:
        mail_ids: Their ids.
    """
    return [_delete(db, mail_id) for mail_id in mail_ids]


@mail.tool(reads_only=True)
def get_mail_quota(db: Transaction) -> str:
    """Read how much room the mailbox has left."""
    return "12 of 100 MB used"


# ---- goals ----


def _mail(g: Draft, sender: str | None = None, subject: str | None = None) -> Mail:
    return g.new("mails", Mail(id=g.id("M"), sender=sender or g.email(), subject=subject or g.word()))


def _contact(g: Draft, email: str | None = None, name: str | None = None) -> Contact:
    return g.new("contacts", Contact(id=g.id("K"), name=name or g.person(), email=email or g.email()))


def _namesakes(g: Draft, contact: Contact) -> list[Contact]:
    return [_contact(g, name=g.person(contact.name.split()[0])) for _ in range(TWINS)]


def _case(g: Draft) -> tuple[Contact, Mail, list[Mail]]:
    """A contact with two mails, and namesakes with two each, one of the same subject."""
    contact = _contact(g)
    namesakes = _namesakes(g, contact)
    found = _mail(g, contact.email)
    twins = [_mail(g, someone.email, found.subject) for someone in namesakes]
    for someone in (contact, *namesakes):
        _mail(g, someone.email)
    return contact, found, twins


def _address(g: Draft, by: str, contact: Contact) -> str:
    """Say whose address it is, and make the call that finds it, unless it is said."""
    if by == "email":
        return f"the address {g.refer('email', contact.email)}"
    g.call("find_contact", name=contact.name)
    return f"the address of {contact.name}"


def _reach(g: Draft, by: str, contact: Contact, found: Mail) -> str:
    """Say which mail it is, and make the calls that find it, unless its id is said."""
    if by == "mail":
        return f"mail {g.refer('mail', found.id)}"
    who = f"the {found.subject} mail from {_address(g, by, contact)}"
    g.call("mails_from", email=contact.email)
    return who


@mail.goal(mail=1, email=2, person=3)
def delete(g: Draft, by: str) -> None:
    contact, found, twins = _case(g)
    g.say(f"Delete {_reach(g, by, contact, found)}.")
    g.call("delete_mail", mail_id=found.id)
    for twin in twins:
        g.trap("delete_mail", mail_id=twin.id)


@mail.goal(mail=1, email=2, person=3)
def store(g: Draft, by: str) -> None:
    contact, found, twins = _case(g)
    g.say(f"Move {_reach(g, by, contact, found)} to the archive.")
    g.call("move_mail", mail_id=found.id, folder="archive")
    for twin in twins:
        g.trap("move_mail", mail_id=twin.id, folder="archive")


@mail.goal(email=2, person=3)
def delete_all(g: Draft, by: str) -> None:
    contact, _, twins = _case(g)
    ids = sorted(m.key for m in g.tables["mails"].values() if m.sender == contact.email)  # type: ignore[attr-defined]
    g.say(f"Delete every mail from {_address(g, by, contact)}.")
    g.call("mails_from", email=contact.email)
    g.call("delete_mails", mail_ids=ids)
    for twin in twins:
        g.trap("delete_mail", mail_id=twin.id)


@mail.goal(mail=1, email=1, person=2)
def subject(g: Draft, by: str) -> None:
    contact = _contact(g)
    found = _mail(g, contact.email)
    for someone in _namesakes(g, contact):
        _mail(g, someone.email)
    if by == "mail":
        g.say(f"Tell the subject of mail {g.refer('mail', found.id)}.")
        g.call("read_mail", mail_id=found.id)
    else:
        g.say(f"Tell the subject of the mail from {_address(g, by, contact)}.")
        g.call("mails_from", email=contact.email)
    g.expect("subject", found.subject)


@mail.goal(email=1, person=2)
def send(g: Draft, by: str) -> None:
    contact, _, twins = _case(g)
    text = g.word()
    g.say(f"Send a mail with subject {text} to {_address(g, by, contact)}.")
    g.call("send_mail", to=contact.email, subject=text)
    for twin in twins:
        g.trap("send_mail", to=twin.sender, subject=text)


@mail.goal(mail=2)
def reply(g: Draft, by: str) -> None:
    contact, found, twins = _case(g)
    text = g.word()
    g.say(f"Send a mail with subject {text} to the sender of mail {g.refer('mail', found.id)}.")
    g.call("read_mail", mail_id=found.id)
    g.call("send_mail", to=contact.email, subject=text)
    for twin in twins:
        g.trap("send_mail", to=twin.sender, subject=text)


@mail.goal(mail=1)
def senders(g: Draft, by: str) -> None:
    _, found, (twin, *_) = _case(g)
    g.say(f"Tell the senders of mail {g.refer('mail', found.id)} and mail {twin.id}.")
    g.call("read_mails", mail_ids=[found.id, twin.id])
    g.expect("sender", found.sender)
    g.expect("sender", twin.sender)


# ---- where values stand, and what else is there ----


@mail.source("email")
def sender(g: Draft, value: str) -> str:
    found = _mail(g, value)
    g.call("read_mail", mail_id=found.id)
    return f"of the sender of mail {found.id}"


def _named(g: Draft, subject: str) -> str:
    found = _mail(g, subject=subject)
    g.call("read_mail", mail_id=found.id)
    return f"named in mail {found.id}"


@mail.source("order")
def order_in_subject(g: Draft, value: str) -> str:
    return _named(g, f"Order {value}")


@mail.source("booking")
def booking_in_subject(g: Draft, value: str) -> str:
    return _named(g, f"Booking {value}")


@mail.source("file")
def file_in_subject(g: Draft, value: str) -> str:
    return _named(g, f"File {value}")


@mail.background
def post(g: Draft) -> None:
    g.new("mails", Mail(id=g.id("M"), sender=g.email(), subject=g.word(), folder=g.rng.choice(("archive", "spam"))))
    _contact(g)
