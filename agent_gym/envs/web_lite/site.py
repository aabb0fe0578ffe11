"""A site: pure functions of its tables and a request. Pages are read (GET), actions change the tables (POST)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

from agent_gym.envs.api_agent.world import Record, Transaction
from agent_gym.envs.web_lite.page import one_line
from agent_gym.envs.web_lite.world import Tables
from agent_gym.tools import ToolError

__all__ = [
    "Goal", "Request", "Response", "Session", "Setting", "Site", "address", "asking", "button", "checkbox", "form",
    "found_by", "link", "listing", "select", "signed", "textbox", "unsigned",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What a browser asks a site for.

    Args:
        path: Address with its query.
        method: ``POST`` for an action.
        form: The fields of a ``POST``.
    """

    path: str
    method: Literal["GET", "POST"] = "GET"
    form: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """A page and its address: an action answers with the page that it leads to."""

    path: str
    html: str


class Setting(Record):
    """A number that the whole site goes by, such as the rows of a page."""

    name: str
    value: int


class Session(Record):
    """The agent's visit to the site; its number is drawn with the task and never shown."""

    sid: str


@dataclass(frozen=True, slots=True)
class Goal:
    """One thing a user may want.

    Args:
        site: Name of the site.
        index: Its number there.
        build: ``fn(g: Draft, way)``.
        ways: Where its object stands, and the actions that takes from the first page.
    """

    site: str
    index: int
    build: Callable[[Any, str], None]
    ways: Mapping[str, int]

    def name(self, way: str) -> str:
        """``mail.star:far``"""
        return f"{self.site}.{self.build.__name__}:{way}"


View = Callable[..., "str | None"]


class Site:
    """A small site. Its pages open from its own links and forms, whose addresses carry the session's number; without
    it, only the pages of ``nav`` do. No page shows that number, so an address cannot be made up.

    Args:
        name: Its name in ``sites=[...]``.
        title: What stands above every page.
        nav: Label and address of the links above every page; the first is home.
        **tables: Record type by table name.
    """

    def __init__(self, name: str, title: str, nav: Mapping[str, str], **tables: type[Record]) -> None:
        self.name, self.title, self.nav = name, title, dict(nav)
        self.tables: dict[str, type[Record]] = {**tables, "settings": Setting, "session": Session}
        self.home = next(iter(self.nav))
        self.goals: list[Goal] = []
        self.fill: Callable[[Any], None] = lambda draft: None
        self._routes: dict[str, list[tuple[tuple[str, ...], Callable[..., Any]]]] = {"GET": [], "POST": []}

    def _route(self, method: str, pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            self._routes[method].append((tuple(pattern.split("/")), fn))
            return fn

        return register

    def page(self, pattern: str, *names: str) -> Callable[[View], View]:
        """Register ``fn(tables, query, *parts) -> HTML``, None for "not found"; each ``*`` of the pattern is a part.
        Of the address's query it gets the parameters of these names.
        """

        def register(fn: View) -> View:
            def view(tables: Tables, query: Mapping[str, str], *parts: str) -> str | None:
                return fn(tables, {name: query[name] for name in names if name in query}, *parts)

            self._route("GET", pattern)(view)
            return fn

        return register

    def action(self, pattern: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
        """Register ``fn(db: Transaction, form, *parts) -> address of the next page``."""
        return self._route("POST", pattern)

    def _find(self, method: str, path: str) -> tuple[Callable[..., Any], list[str]] | None:
        parts = path.split("/")
        for pattern, fn in self._routes[method]:
            if len(pattern) == len(parts) and all(p in ("*", q) for p, q in zip(pattern, parts, strict=True)):
                return fn, [unquote(q) for p, q in zip(pattern, parts, strict=True) if p == "*"]
        return None

    def act(self, tables: Tables, path: str, form: Mapping[str, str]) -> tuple[Tables, str]:
        """The tables after an action, and where it leads; home if there is no such action."""
        found = self._find("POST", path.partition("?")[0])
        if found is None:
            return tables, "/"
        fn, parts = found
        db = Transaction(tables)
        try:
            path = fn(db, _tidy(form), *parts)
        except ToolError:  # the record is gone
            return tables, "/"
        tables = tables.apply(db.changes) if db.changes else tables
        return tables, path if path in self.nav.values() else signed(tables, path)

    def view(self, tables: Tables, path: str) -> str:
        """The HTML of an address."""
        found = self._find("GET", path.partition("?")[0])
        query = _tidy(dict(parse_qsl(path.partition("?")[2], keep_blank_values=True)))
        known = path in self.nav.values() or query.pop("sid", None) == _session(tables)["sid"]
        body = found and known and found[0](tables, query, *found[1])
        return _layout(self, body or "<h1>Page not found</h1>")

    def respond(self, tables: Tables, request: Request) -> tuple[Tables, Response]:
        """The whole site as one pure function.

        Args:
            tables: Its state.
            request: What is asked for.

        Returns:
            The state after it, and the page.
        """
        path = request.path
        if request.method == "POST":
            tables, path = self.act(tables, path, request.form)
        return tables, Response(path, self.view(tables, path))

    def goal(self, **ways: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Register ``fn(g: Draft, way)``, a thing to do; each way says where its object is, and the actions it takes.

        An action that cannot be taken together with another goal says so with ``g.alone()``.
        """

        def register(fn: Callable[..., None]) -> Callable[..., None]:
            self.goals.append(Goal(self.name, len(self.goals), fn, ways))
            return fn

        return register

    def background(self, fn: Callable[[Any], None]) -> Callable[[Any], None]:
        """Register ``fn(g: Draft)``, which adds one record with nothing to do to it."""
        self.fill = fn
        return fn


def _tidy(sent: Mapping[str, str]) -> dict[str, str]:
    """What came from outside, without control characters and needless spaces."""
    return {key: " ".join(one_line(value).split()) for key, value in sent.items()}


# ---- HTML ----------------------------------------------------------------------------------------------------------


def _session(tables: Tables) -> dict[str, str]:
    """What the address of a page carries."""
    return {"sid": next(iter(tables.tables["session"]))}


def signed(tables: Tables, path: str) -> str:
    """An address, with the session's number."""
    return f"{path}{'&' if '?' in path else '?'}{urlencode(_session(tables))}"


def unsigned(path: str) -> str:
    """An address as it might be made up: without the session's number."""
    page, _, query = path.partition("?")
    return address(unquote(page), {key: value for key, value in parse_qsl(query, True) if key != "sid"})


def link(label: str, tables: Tables, path: str, query: Mapping[str, str] | None = None) -> str:
    """A link to a page of the site."""
    return f'<a href="{escape(signed(tables, address(path, query or {})))}">{escape(label)}</a>'


def address(path: str, query: Mapping[str, str]) -> str:
    """An address with a query, if there is any."""
    return quote(path) + (f"?{urlencode(query)}" if query else "")


def button(label: str, of: str = "") -> str:
    """A form's button. Of many on a page, ``of`` says which: it belongs to the name, not to the caption."""
    name = f' aria-label="{escape(f"{label} {of}")}"' if of else ""
    return f"<button{name}>{escape(label)}</button>"


def textbox(label: str, name: str, value: str = "") -> str:
    """A line to write in."""
    return f'<label>{escape(label)} <input name="{name}" value="{escape(value)}" autocomplete="off"></label>'


def checkbox(label: str, name: str, on: bool) -> str:
    """A box to tick."""
    return f'<label>{escape(label)} <input type="checkbox" name="{name}"{" checked" if on else ""}></label>'


def select(label: str, name: str, options: Iterable[str], value: str) -> str:
    """A choice of one."""
    entries = "".join(f"<option{' selected' if o == value else ''}>{escape(o)}</option>" for o in options)
    return f'<label>{escape(label)} <select name="{name}" autocomplete="off">{entries}</select></label>'


def form(action: str, *parts: str, method: str = "post", hidden: Mapping[str, str] | None = None) -> str:
    """A form."""
    fields = (hidden or {}).items()
    extra = "".join(f'<input type="hidden" name="{escape(key)}" value="{escape(value)}">' for key, value in fields)
    return f'<form method="{method}" action="{escape(quote(action))}">{extra}{"".join(parts)}</form>'


def asking(tables: Tables, path: str, *parts: str) -> str:
    """A form that changes nothing and asks for a page."""
    return form(path, *parts, method="get", hidden=_session(tables))


def found_by(wanted: str, text: str) -> bool:
    """Whether a search finds a text: every word of the search is a word of the text."""
    return set(wanted.lower().split()) <= set(text.lower().split())


def listing(rows: list[Any], row: Callable[[Any], str], tables: Tables, query: Mapping[str, str]) -> str:
    """One page of a long list, with links to those before and after it."""
    size = tables.tables["settings"]["rows"].value  # type: ignore[attr-defined]
    last = max(1, -(-len(rows) // size))
    asked = query.get("page", "")
    at = min(max(int(asked), 1), last) if asked.isdecimal() and len(asked) < 5 else 1
    lines = "".join(f"<tr><td>{row(record)}</td></tr>" for record in rows[(at - 1) * size : at * size])
    parts = [f"<table>{lines}</table>" if lines else "<p>Nothing found.</p>"]
    others = {key: value for key, value in query.items() if key != "page"}
    ways = [("Previous page", at - 1)] * (at > 1) + [("Next page", at + 1)] * (at < last)
    if last > 1:
        links = "".join(link(label, tables, "/", {**others, "page": str(number)}) for label, number in ways)
        parts.append(f"<p>page {at} of {last} {links}</p>")
    return "".join(parts)


def _layout(site: Site, body: str) -> str:
    nav = "".join(f'<a href="{path}">{label}</a>' for label, path in site.nav.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(site.title)}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body><nav>{nav}</nav><main>{body}</main></body></html>"
    )


STYLE = """
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2933; background: #f4f6f8; }
nav { background: #243b53; padding: 10px 24px; }
nav a { color: #fff; margin-right: 20px; text-decoration: none; font-weight: 600; }
main { max-width: 620px; margin: 16px auto; background: #fff; padding: 8px 20px 16px; border-radius: 8px;
  box-shadow: 0 1px 4px #0002; }
h1 { font-size: 20px; margin: 8px 0; }
p { margin: 8px 0; }
table { width: 100%; border-collapse: collapse; }
td { border-top: 1px solid #e4e7eb; padding: 6px 2px; }
form { display: inline; margin-left: 6px; }
div form, h1 + form { margin-left: 0; }
div { margin: 8px 0; }
a { color: #0b69a3; margin-right: 6px; }
input, select, button { font: inherit; border: 1px solid #bcccdc; border-radius: 5px; padding: 2px 8px; }
button { background: #0b69a3; color: #fff; border-color: #0b69a3; cursor: pointer; margin-left: 4px; }
"""
