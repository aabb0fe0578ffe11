"""A scripted agent for each environment, as useful as a few regular expressions can be.

Each reads the request and what its tools answer, never the oracle. It was written with the training tasks in view. What
it does not understand it leaves out, and answers all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.evaluation.endpoint import Reply
from agent_gym.tools import Call

__all__ = ["baseline"]

Script = Generator[list[Call], list[dict[str, Any]], str]
"""Yields the calls of each turn, is sent their results, and returns the final answer."""
Part = Generator[list[Call], list[dict[str, Any]], Any]
"""A part of a script that returns what it has found out."""


def baseline(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Reply:
    """The next turn: of the script that reads this environment's requests, or an answer where there is none."""
    base = tool_env(env)
    if not info["turn"]:
        kind = base.spec.id if base.spec is not None else ""
        info["script"] = SCRIPTS.get(kind, _answer)(messages[-1]["content"])
    try:
        calls = next(info["script"]) if not info["turn"] else info["script"].send(info["tool_results"])
    except StopIteration as ended:
        return Reply(base.parser.render(ended.value, []), None)
    except LOST:
        return Reply(base.parser.render("Done.", []), None)
    return Reply(base.parser.render("", calls), None)


def _answer(request: str) -> Script:
    yield from ()
    return "Done."


class _Lost(Exception):
    """A part of the request that leads nowhere."""


LOST = (_Lost, KeyError, IndexError, TypeError, AttributeError, ValueError)
"""What comes of a request that is not understood, or of an answer that is not as it was expected."""


# ---- APIAgent-v0: services -------------------------------------------------------------------------------------------

READ = {
    "customer": "get_customer", "order": "get_order", "event": "get_event", "mail": "read_mail", "file": "stat_file",
    "flight": "get_flight", "booking": "get_booking", "room": "get_room",
}  # fmt: skip
LISTED = {"customer": "customer_orders", "event": "events_of", "mail": "mails_from", "file": "files_of",
          "booking": "bookings_of"}  # fmt: skip
THING = r"(?:[A-Z]\d{4}|/[\w./]+)"


def _ask(tool: str, *values: Any) -> Part:
    """The answer of one tool; its arguments in their order."""
    names = ARGUMENTS.get(tool) or [f"{tool.split('_')[-1]}_id"]
    (result,) = yield [Call(tool, dict(zip(names, values, strict=True)))]
    if result["error"]:
        raise _Lost(result["content"])
    return json.loads(result["content"])


ARGUMENTS = {
    "customer_orders": ["customer_id"], "events_of": ["email"], "mails_from": ["email"], "files_of": ["email"],
    "bookings_of": ["email"], "find_customer": ["email"], "events_on": ["day"], "flights_on": ["day"],
    "stat_file": ["path"], "shares_of": ["path"], "delete_file": ["path"], "share_file": ["path", "email"],
    "set_owner": ["path", "email"], "move_file": ["path", "new_path"], "move_event": ["event_id", "day"],
    "move_mail": ["mail_id", "folder"], "set_tier": ["customer_id", "tier"], "set_cabin": ["booking_id", "cabin"],
    "book_flight": ["flight_id", "email"], "create_event": ["title", "day", "room_id"], "send_mail": ["to", "subject"],
    "find_contact": ["name"],
}  # fmt: skip


def _email(words: str) -> Part:
    """The address that some words describe."""
    if found := re.search(r"[\w.]+@[\w.]+\w", words):
        return found[0]
    if found := re.search(rf"(organiser|passenger|sender|owner) of (event|booking|mail|file) ({THING})", words):
        return (yield from _ask(READ[found[2]], found[3]))[found[1]]
    if found := re.search(r"customer (C\d+)", words):
        return (yield from _ask("get_customer", found[1]))["email"]
    if found := re.fullmatch(r"[A-Z]\w+ [A-Z]\w+", words.strip()):
        return (yield from _ask("find_contact", found[0]))["email"]
    raise _Lost(words)


def _day(words: str) -> Part:
    """The day that some words describe."""
    if found := re.search(r"\d{4}-\d\d-\d\d", words):
        return found[0]
    if found := re.search(rf"day of (event|flight) ({THING})", words):
        return (yield from _ask(READ[found[1]], found[2]))["day"]
    raise _Lost(words)


def _thing(kind: str, words: str) -> Part:
    """The id of an order, event, mail, file or booking that some words describe."""
    if found := re.search(rf"named in (mail|file) ({THING})", words):
        told = yield from _ask(READ[found[1]], found[2])
        return re.search(THING, told["subject" if found[1] == "mail" else "note"])[0]  # type: ignore[index]
    if found := re.search(rf"{kind} ({THING})", words):
        return found[1]
    if kind == "order" and (found := re.search(r"the (\w+) order of (?:the )?customer (.*)", words)):
        return (yield from _one("customer_orders", (yield from _customer(found[2])), item=found[1]))["id"]
    if found := re.search(r"the (\w+) event (?:of the organiser with e-mail|on the) (.*)", words):
        if "organiser with" in words:
            return (yield from _one("events_of", (yield from _email(found[2])), title=found[1]))["id"]
        return (yield from _one("events_on", (yield from _day(found[2])), title=found[1]))["id"]
    if found := re.search(r"the (\w+) mail from the address (?:of )?(.*)", words):
        return (yield from _one("mails_from", (yield from _email(found[2])), subject=found[1]))["id"]
    if found := re.search(r"mail from the address (?:of )?(.*)", words):
        return (yield from _one("mails_from", (yield from _email(found[1]))))["id"]
    if found := re.search(r"file with note (\w+) of the owner with e-mail (.*)", words):
        return (yield from _one("files_of", (yield from _email(found[2])), note=found[1]))["path"]
    if found := re.search(r"flight (F\d+) booking of the passenger with e-mail (.*)", words):
        return (yield from _one("bookings_of", (yield from _email(found[2])), flight=found[1]))["id"]
    raise _Lost(words)


def _customer(words: str) -> Part:
    """The id of a customer."""
    if found := re.match(r"(C\d+)", words):
        return found[1]
    return (yield from _ask("find_customer", (yield from _email(words))))["id"]


def _one(tool: str, value: str, **wanted: str) -> Part:
    """The only entry of a list that is as wanted."""
    found = [one for one in (yield from _ask(tool, value)) if all(one[k] == v for k, v in wanted.items())]
    if len(found) != 1:
        raise _Lost(str(wanted))
    return found[0]


def _service(sentence: str) -> Part:
    """Do what a sentence asks for; the values that it asks to tell, in their order."""
    s = sentence.rstrip(".")
    if found := re.match(r"Cancel every open order of (?:the )?customer (.*)", s):
        orders = yield from _ask("customer_orders", (yield from _customer(found[1])))
        yield [Call("cancel_order", {"order_id": one["id"]}) for one in orders if one["status"] == "open"]
    elif found := re.match(r"Cancel every event on the (.*)", s):
        events = yield from _ask("events_on", (yield from _day(found[1])))
        yield [Call("cancel_event", {"event_id": one["id"]}) for one in events]
    elif found := re.match(r"(Cancel|Delete) every (booking|file|event|mail) .*?(?:with e-mail|the address)(.*)", s):
        verb, kind, words = found.groups()
        listed, key = (yield from _ask(LISTED[kind], (yield from _email(words)))), "path" if kind == "file" else "id"
        name = (ARGUMENTS.get(f"{verb.lower()}_{kind}") or [f"{kind}_id"])[0]
        yield [Call(f"{verb.lower()}_{kind}", {name: one[key]}) for one in listed]
    elif found := re.match(r"(Refund|Cancel|Delete) (.*)", s):
        kind = re.search(r"\b(order|event|booking|mail|file)\b", found[2])[1]  # type: ignore[index]
        yield from _ask(f"{found[1].lower()}_{kind}", (yield from _thing(kind, found[2])))
    elif found := re.match(r"Make (?:the )?customer (.*) (silver|basic|gold)", s):
        yield from _ask("set_tier", (yield from _customer(found[1])), found[2])
    elif found := re.match(r"Make (.*) the owner of (.*)|Give (.*) to (the owner with e-mail .*)", s):
        email, file = (found[1], found[2]) if found[1] else (found[4], found[3])
        yield from _ask("set_owner", (yield from _thing("file", file)), (yield from _email(email)))
    elif found := re.match(r"Share (.*) with (.*)", s):
        yield from _ask("share_file", (yield from _thing("file", found[1])), (yield from _email(found[2])))
    elif found := re.match(r"Send a mail with subject (\w+) to (?:the address )?(?:of )?(.*)", s):
        yield from _ask("send_mail", (yield from _email(found[2])), found[1])
    elif found := re.match(r"Create an? (\w+) event (.*)", s):
        if room := re.search(r"in room (R\d+)", s):
            place = room[1]
        else:
            place = (yield from _ask("get_event", re.search(r"room of event (E\d+)", s)[1]))["room"]  # type: ignore[index]
        yield from _ask("create_event", found[1], (yield from _day(found[2])), place)
    elif found := re.match(r"Book flight (F\d+) for (.*)", s):
        yield from _ask("book_flight", found[1], (yield from _email(found[2])))
    elif found := re.match(r"Book for (.*) the flight to (\w+) on the (.*)", s):
        flight = yield from _one("flights_on", (yield from _day(found[3])), to=found[2])
        yield from _ask("book_flight", flight["id"], (yield from _email(found[1])))
    elif found := re.match(r"Move (.*) to (the archive|the business cabin|the economy cabin|/\S+|\d{4}-\d\d-\d\d)", s):
        what, where = found.groups()
        kind = re.search(r"\b(event|booking|mail|file)\b", what)[1]  # type: ignore[index]
        tool = "set_cabin" if kind == "booking" else f"move_{kind}"
        place = re.sub(r"^the | cabin$", "", where)
        yield from _ask(tool, (yield from _thing(kind, what)), place)
    elif s.startswith("Tell "):
        return (yield from _told(s.removeprefix("Tell ")))
    return []


OWN_NAMES = {"city": "to", "statu": "status"}
"""Fields that are not called as the request calls them, without a plural's s."""


def _told(s: str) -> Part:
    """The values that are to be told."""
    if found := re.match(r"who may read (.*)", s):
        return [(yield from _ask("shares_of", (yield from _thing("file", found[1]))))[0]["reader"]]
    if found := re.match(r"who organises (.*)", s):
        return [(yield from _ask("get_event", (yield from _thing("event", found[1]))))["organiser"]]
    if found := re.match(r"the name of the room of (.*)", s):
        event = yield from _ask("get_event", (yield from _thing("event", found[1])))
        return [(yield from _ask("get_room", event["room"]))["name"]]
    if found := re.match(r"the city of the flight of (.*)", s):
        booking = yield from _ask("get_booking", (yield from _thing("booking", found[1])))
        return [(yield from _ask("get_flight", booking["flight"]))["to"]]
    told, of = re.match(r"(?:the |which )(.*?) (?:of|were ordered with) (.*)", s).groups()  # type: ignore[union-attr]
    kind = re.search(r"\b(order|event|booking|mail|file|customer|flight)\b", of)[1]  # type: ignore[index]
    stems = [word.removesuffix("s") for word in re.findall(r"\w+", told) if word not in ("and", "the")]
    names = [OWN_NAMES.get(stem, stem) for stem in stems]
    values = []
    for words in re.split(r" and (?=(?:order|event|booking|mail|file)\b)", of):
        one = yield from _ask(READ[kind], (yield from _thing(kind, words)))
        values += [one[name] for name in names]
    return values


def _services(request: str) -> Script:
    told: list[Any] = []
    request, _, wanted = request.partition("Answer with JSON: ")
    for sentence in re.split(r"(?<=\.) (?=[A-Z])", request.strip()):
        try:
            told += (yield from _service(sentence)) or []
        except LOST:
            continue
    keys = re.findall(r'"(\w+)":', wanted)
    return json.dumps(dict(zip(keys, told, strict=False))) if keys else "Done."


# ---- SQL-v0: one table, or two that a key joins ----------------------------------------------------------------------

WORDS = [
    set(group.split())
    for group in (
        "customer client buyer", "product item article", "order purchase sale", "teacher instructor tutor",
        "course lesson lecture", "pupil student learner", "enrolment admission entry", "doctor physician medic",
        "patient sufferer case", "visit appointment meeting", "writer author novelist", "book volume title",
        "reader member user", "loan lending borrowing", "airport airfield terminal", "plane airplane jet",
        "flight trip route", "booking ticket reservation", "farm estate holding", "field plot parcel",
        "harvest yield gathering", "name full_name label", "title caption heading product_name course_name book_name",
        "city town place home", "country land nation home", "age year", "tier level status",
        "category class sort genre style kind type", "price cost charge fare fee bill", "stock quantity supply",
        "state phase stage status", "amount total sum_paid paid", "price value worth cost", "discount rebate",
        "day date placed_on held_on lent_on departs_on brought_in", "subject field area branch", "salary wage pay",
        "hour length duration second day period", "room hall place", "score point mark", "term season period",
        "reason cause motive", "weight mas load ton", "born birth_year", "page length sheet", "joined since entry_date",
        "fine penalty fee", "gate dock", "model type make", "seat capacity place", "maker builder producer",
        "passenger traveller flyer", "cabin clas section", "region area district", "size surface extent",
        "crop plant culture", "soil ground earth", "width breadth span", "helper worker hand",
    )
]  # fmt: skip
"""Words of like meaning for tables and columns, without a plural's s, as the training tasks use them."""
TESTS = (
    (r"is not empty", "{} IS NOT NULL"), (r"is empty", "{} IS NULL"), (r"is at least (.+)", "{} >= {}"),
    (r"is at most (.+)", "{} <= {}"), (r"is above the average of all rows", "{0} > (SELECT AVG({0}) FROM {1})"),
    (r"is the (highest|lowest) of all rows", "{0} = (SELECT {2}({0}) FROM {1})"), (r"is above (.+)", "{} > {}"),
    (r"is below (.+)", "{} < {}"), (r"is on or before (.+)", "{} <= {}"), (r"is on or after (.+)", "{} >= {}"),
    (r"is before (.+)", "{} < {}"), (r"is after (.+)", "{} > {}"), (r"starts with (.+)", "{} LIKE {}"),
    (r"is not (.+)", "{} <> {}"), (r"is (.+)", "{} = {}"),
)  # fmt: skip
SUMS = {"highest": "MAX", "lowest": "MIN", "sum": "SUM", "average": "AVG"}


def _plain(words: str) -> str:
    return words.strip().strip('"').strip().lower().replace(" ", "_")


def _like(word: str, names: list[str]) -> str:
    """The name that a word means: itself, or one of like meaning, with or without a plural's s and a table's prefix."""
    stem = word.removesuffix("s")
    for one in [stem, *sorted(other for group in WORDS if stem in group for other in group)]:
        pattern = re.compile(rf"(?:\w\w_)?{re.escape(one)}s?", re.I)
        if found := next(filter(pattern.fullmatch, names), None):
            return found
    raise _Lost(word)


def _tables(request: str) -> Part:
    """The columns of each table that the request names."""
    (listed,) = yield [Call("list_tables", {})]
    tables = listed["content"].splitlines()
    named = (
        []
        if " for the " in request
        else [name for name in tables if re.search(rf"\b{re.escape(name)}\b", request, re.I)]
    )
    described = yield [Call("describe_table", {"table": name}) for name in named or tables]
    return {
        name: [line.split()[0] for line in one["content"].splitlines()]
        for name, one in zip(named or tables, described, strict=True)
    }, {name: one["content"] for name, one in zip(named or tables, described, strict=True)}


def _where(words: str, table: str, columns: list[str], upper: set[str]) -> str:
    """A condition in SQL; the values of the columns in ``upper`` are spelled in capitals."""
    if not words:
        return ""
    parts = []
    for part in re.split(r" (and|or) (?:where )?(?=\"?[\w ]+?\"? (?:is|starts) )", words):
        if part in ("and", "or"):
            parts.append(part.upper())
            continue
        for pattern, form in TESTS:
            if found := re.fullmatch(rf"(.+?) {pattern}", part.strip()):
                name = _like(_plain(found[1]), columns)
                value = _value(found[2], name in upper) if found.lastindex == 2 else ""
                if "{2}" in form:
                    parts.append(form.format(name, table, SUMS[found[2]]))
                elif "LIKE" in form:
                    parts.append(form.format(name, f"{value[:-1]}%'"))
                else:
                    parts.append(form.format(name, table if "{1}" in form else value))
                break
        else:
            raise _Lost(part)
    return f" WHERE {' '.join(parts)}"


def _value(words: str, upper: bool) -> str:
    if words.startswith('"'):
        text = words.strip('"').replace("'", "''")
        return f"'{text.upper() if upper else text}'"
    return words


def _queries(request: str) -> Script:
    tables, described = yield from _tables(request)
    alone = "Answer with the value alone" in request
    spelled = "other letters" in request
    asked = re.sub(r" (The table may spell|Answer with the value).*", "", request).rstrip(".")
    tail = ""
    if found := re.search(r", only the first(?: (\d+))?$", asked):
        asked, tail = asked[: found.start()], f" LIMIT {found[1] or 1}"
    order = ""
    if found := re.search(r", ordered by (.+?)( descending)?$", asked):
        asked, order = asked[: found.start()], f"{found[1]}|{' DESC' if found[2] else ''}"
    asked, _, condition = re.sub(r" where, ", " where , ", asked).partition(" where ")
    verb, _, rest = asked.partition(" ")

    def table_of(words: str) -> str:
        return _like(_plain(re.sub(r"^(the |rows of )+", "", words.strip())), list(tables))

    def conditioned(words: str, table: str) -> str:
        """A condition, of the table or of another that it refers to."""
        if not (other := re.match(r", for the ([\w ]+?), (.*)", words)):
            return _where(words, table, tables[table], upper)
        parent = table_of(other[1])
        key = re.search(rf"^(\w+) .*-> {parent}\.(\w+)", described[table], re.M)
        inner = _where(other[2], parent, tables[parent], upper)
        return f" WHERE {key[1]} IN (SELECT {key[2]} FROM {parent}{inner})"  # type: ignore[index]

    upper: set[str] = set()
    if spelled:
        table = table_of(re.sub(r" to .*", "", re.split(r" of | rows of |Delete ", asked)[-1]))
        (sample,) = yield [Call("sample_rows", {"table": table, "count": 1})]
        names, values = map(json.loads, sample["content"].splitlines()[:2])
        upper = {name for name, value in zip(names, values, strict=True) if str(value).isupper()}
    if verb in ("Set", "Delete", "Add"):
        if verb == "Set":
            found = re.match(r"Set (?:the )?(.+?) of (.+?) to (.+)", asked)
            table = table_of(found[2])  # type: ignore[index]
            name = _like(_plain(found[1]), tables[table])  # type: ignore[index]
            value = _value(found[3], False)  # type: ignore[index]
            query = f"UPDATE {table} SET {name} = {value}{conditioned(condition, table)}"
        elif verb == "Delete":
            table = table_of(rest)
            query = f"DELETE FROM {table}{conditioned(condition, table)}"
        else:
            found = re.match(r'Add a row to "?(\w+)"?: (.*)', asked)
            pairs = re.findall(r'"(\w+)" ("[^"]*"|[\d.-]+)', found[2])  # type: ignore[index]
            names, values = ", ".join(n for n, _ in pairs), ", ".join(_value(v, False) for _, v in pairs)
            query = f"INSERT INTO {found[1]} ({names}) VALUES ({values})"  # type: ignore[index]
    else:
        inner = ""
        if found := re.search(r"(.*) that have (at least one|none) of (.+)", rest):
            rest, other = found[1], table_of(found[3])
            table = table_of(rest.rpartition(" of ")[2])
            key = re.search(rf"^(\w+) .*-> {table}\.(\w+)", described[other], re.M)
            sub = f"SELECT {key[1]} FROM {other}{_where(condition, other, tables[other], upper)}"  # type: ignore[index]
            inner = f" WHERE {key[2]} {'NOT ' * (found[2] == 'none')}IN ({sub})"  # type: ignore[index]
            condition = ""
        what, _, of = rest.rpartition(" of ")
        table = table_of(of)
        columns = tables[table]
        what = re.sub(r"^(the |different values of )+", "", what)
        if verb == "Count":
            chosen = "COUNT(*)"
        elif found := re.match(r"(highest|lowest|sum|average)(?: of)?(?: the)? (.+)", what):
            chosen = f"{SUMS[found[1]]}({_like(_plain(found[2]), columns)})"
        else:
            chosen = ", ".join(_like(_plain(part), columns) for part in re.split(r",| and ", what))
        sorting, _, down = order.partition("|")
        by = f" ORDER BY {_like(_plain(sorting), columns)}{down}" if order else ""
        query = f"SELECT {chosen} FROM {table}{inner or conditioned(condition, table)}{by}{tail}"
    if alone:
        (result,) = yield [Call("run_sql", {"query": query})]
        return str(json.loads(result["content"].splitlines()[1])[0])
    yield [Call("submit_sql", {"query": query})]
    return "Done."


# ---- WebLite-v0: pages -----------------------------------------------------------------------------------------------

PAGES: tuple[tuple[str, str], ...] = (
    (r'Delete the mail "(.+?)"', "find {0}; click {0}; click Delete"),
    (r'(?:Archive the mail|Put) "(.+?)"(?: into the archive)?', "find {0}; click Archive {0}"),
    (r'(?:Star the mail|Put a star on) "(.+?)"', "find {0}; click Star {0}"),
    (r'Star both mails from "(.+?)"', "find {0}; click Star *; click Star *"),
    (r'(?:Tell the code|Which code is) in the mail "(.+?)"', r"find {0}; click {0}; read the code is (\w+)"),
    (r'Move the mail "(.+?)" to the folder (\w+)', "find {0}; click {0}; choose Folder={1}; click Move"),
    (r'Reply "(.+?)" to the mail "(.+?)"', "find {1}; click {1}; fill Reply={0}; click Send"),
    (r'Answer the mail "(.+?)" with "(.+?)"', "find {0}; click {0}; fill Reply={1}; click Send"),
    (r'(?:What is|Tell) the e-mail of (?:the user )?"(.+?)"',
     'find {0}; click {0}; read "E-mail" \\[\\d+\\] value "(.*?)"'),
    (r'Delete the user "(.+?)"', "find {0}; click {0}; click Delete; click Yes"),
    (r'Suspend (?:the user )?"(.+?)"', "find {0}; click Suspend {0}"),
    (r'Create the user "(.+?)" as (\w+)', "click New user; fill Name={0}; choose Role={1}; click Create"),
    (r'Set the e-mail of the user "(.+?)" to "(.+?)"', "find {0}; click {0}; fill E-mail={1}; click Save"),
    (r'Make the user "(.+?)" (\w+)', "find {0}; click {0}; choose Role={1}; click Save"),
    (r'Subscribe the user "(.+?)" to', "find {0}; click {0}; click Newsletter; click Save"),
    (r'Who has booked the room "(.+?)" at ([\d:]+) on ([\d-]+)',
     "home {0}; click {0}; fill Day={2}; click Go; read {1} (.+)"),
    (r'Who has booked the room "(.+?)" at ([\d:]+)', "home {0}; click {0}; read {1} (.+)"),
    (r'Book the room "(.+?)" at ([\d:]+) on ([\d-]+)', "home {0}; click {0}; fill Day={2}; click Go; click Book {1}"),
    (r'Book the room "(.+?)" at ([\d:]+)', "home {0}; click {0}; click Book {1}"),
    (r'Cancel my booking "(.+?)"', "click My bookings; click Cancel {0}"),
    (r'Rename my booking "(.+?)" to "(.+?)"', "click My bookings; click {0}; fill Title={1}; click Save"),
    (r'Move my booking "(.+?)" to ([\d:]+)', "click My bookings; click {0}; choose Hour={1}; click Save"),
    (r'(?:Accept|Say yes to) the request "(.+?)"', "home Accept {0}; click Accept {0}"),
    (r'(?:Decline|Say no to) the request "(.+?)"', "home Decline {0}; click Decline {0}"),
    (r'(?:Add|Put) "(.+?)" (?:in)?to the cart', "find {0}; click Add {0}"),
    (r'Save "(.+?)" for later', "find {0}; click {0}; click Save"),
    (r'(?:What is|Tell what) "(.+?)" (?:is )?made of', r"find {0}; click {0}; read made of (\w+)"),
    (r'(?:Remove|Take) "(.+?)" (?:from|out of) the cart', "click Cart; click Remove {0}"),
    (r'Set the quantity of "(.+?)" in the cart to (\d+)', "click Cart; fill Quantity of {0}={1}; click Update {0}"),
    (r'Buy "(.+?)" with (\w+) shipping in the name of "(.+?)"',
     "find {0}; click Add {0}; click Cart; click Checkout; fill Name={2}; choose Shipping={1}; click Place order"),
    (r'Buy "(.+?)" in the name of "(.+?)"',
     "find {0}; click Add {0}; click Cart; click Checkout; fill Name={1}; click Place order"),
)  # fmt: skip
"""A sentence, and what to do: ``find`` and ``home`` open the first page, ``find`` searches there, where what they
name is not on this one; ``read`` answers with what it finds."""


ELEMENTS = {"click": "link|button|checkbox", "fill": "textbox", "choose": "select"}


def _element(page: str, verb: str, label: str) -> int:
    """The number of the element of that label; ``*`` at its end stands for anything."""
    label = re.escape(label).replace(r"\*", '[^"]*')
    found = re.search(rf'(?:{ELEMENTS[verb]}) "{label}" \[(\d+)\]', page)
    if found is None:
        raise _Lost(label)
    return int(found[1])


def _shown(tool: str, **arguments: Any) -> Part:
    """The page after a call."""
    (result,) = yield [Call(tool, arguments)]
    if result["error"]:
        raise _Lost(result["content"])
    return result["content"]


def _step(page: str, verb: str, what: str) -> Part:
    """The page after a step."""
    if verb in ("find", "home"):
        if f' "{what}"' in page:
            return page
        page = yield from _shown("go_to", path="/")
        if verb == "find" and f' "{what}"' not in page and 'textbox "Search"' in page:
            page = yield from _shown("fill", element=_element(page, "fill", "Search"), text=what)
            page = yield from _shown("click", element=_element(page, "click", "Search"))
        return page
    if verb == "click":
        return (yield from _shown("click", element=_element(page, verb, what)))
    label, _, value = what.partition("=")
    if verb == "fill":
        return (yield from _shown("fill", element=_element(page, verb, label), text=value))
    return (yield from _shown("select", element=_element(page, verb, label), option=value))


def _pages(request: str) -> Script:
    asked, _, page = request.partition("\n")
    answer = "Done."
    for sentence in re.split(r"(?<=[.?]) (?=[A-Z])", asked):
        does, found = next(((does, f) for form, does in PAGES if (f := re.match(form, sentence))), ("", None))
        for step in does.format(*found.groups()).split("; ") if found else ():
            verb, _, what = step.partition(" ")
            try:
                if verb != "read":
                    page = yield from _step(page, verb, what)
                elif seen := re.search(what, page):
                    answer = seen[1].strip()
            except _Lost:
                break
    return answer


# ---- CodeAgent-v0: programs ------------------------------------------------------------------------------------------

SWAPS = (
    (" <= ", " < "), (" >= ", " > "), (" < ", " <= "), (" > ", " >= "), ("==", "!="), ("!=", "=="), (" + ", " - "),
    (" - ", " + "), (" += ", " -= "), (" -= ", " += "), (" * ", " + "), (" // ", " / "), (" and ", " or "),
    (" or ", " and "), (" | ", " ^ "), (" ^ ", " | "), (" & ", " | "), (" >> ", " << "), (" << ", " >> "),
    ("min(", "max("), ("max(", "min("), (" not ", " "), (" is None", " is not None"), ("True", "False"),
    ("False", "True"), ("[0]", "[-1]"), ("[-1]", "[0]"), (".lower(", ".upper("), (".upper(", ".lower("),
    (" in ", " not in "),
)  # fmt: skip
"""A fault of one place, taken back."""
NEAR = 3
"""Lines around the one that the request names."""
MOST_TRIES = 25
AT_ONCE = 5
"""Changes tried in one turn, of at most 16 calls: each is made, tested and put back."""


def _variants(line: str) -> Iterator[str]:
    for old, new in SWAPS:
        for at in re.finditer(re.escape(old), line):
            yield line[: at.start()] + new + line[at.end() :]
    for at in re.finditer(r"(?<![\w.\"'])\d+(?![\w.\"'])", line):
        for number in (int(at[0]) + 1, int(at[0]) - 1):
            yield line[: at.start()] + str(number) + line[at.end() :]


def _programs(request: str) -> Script:
    if found := re.search(r'\{"path".*\}', request):  # the review says where, and what is wanted
        told = json.loads(found[0])
        yield [Call("edit", {"path": told["path"], "old": told["found"], "new": told["wanted"]})]
        return "Done."
    listed, tests = yield [Call("list_files", {}), Call("run_tests", {})]
    paths = re.findall(r"^(\S+\.py)", listed["content"], re.M)
    failing = set(re.findall(r"^(?:\w+: )?(\w+)\(", tests["content"], re.M))
    shown = yield [Call("read_file", {"path": path}) for path in paths]
    near = re.search(r"in (\S+) near line (\d+)", request)
    tries = [
        one for path, result in zip(paths, shown, strict=True)
        for one in _tries(path, result["content"], failing, int(near[2]) if near and near[1] == path else None)
    ][:MOST_TRIES]  # fmt: skip
    for at in range(0, len(tries), AT_ONCE):
        some = tries[at : at + AT_ONCE]
        results = yield [call for old, new in some for call in (new, Call("run_tests", {}), old)]
        for (_, new), tested in zip(some, results[1::3], strict=False):
            if (found := re.match(r"(\d+) of (\d+) ", tested["content"])) and found[1] == found[2]:
                yield [new]
                return "Done."
    return "Done."


def _line(path: str, number: str, text: str) -> Call:
    return Call("edit_lines", {"path": path, "start": int(number), "end": int(number), "new": text})


def _tries(path: str, text: str, failing: set[str], near: int | None) -> Iterator[tuple[Call, Call]]:
    """Changes of one line, of those near one or of the functions that fail: the call that puts it back, and the call
    that makes it."""
    inside = False
    for number, line in re.findall(r"^\s*(\d+)\| (.*)$", text, re.M):
        if found := re.match(r"def (\w+)", line):
            inside = found[1] in failing
        meant = inside if near is None else abs(int(number) - near) <= NEAR
        if meant and line.strip() and not line.lstrip().startswith(("def ", '"""', "#")):
            for new in _variants(line):
                yield _line(path, number, line), _line(path, number, new)


SCRIPTS: dict[str, Callable[[str], Script]] = {
    "APIAgent-v0": _services, "CodeAgent-v0": _programs, "SQL-v0": _queries, "WebLite-v0": _pages,
}  # fmt: skip
