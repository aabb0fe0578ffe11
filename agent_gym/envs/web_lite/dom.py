"""The default backend: the site's functions are called in this process, an HTML parser reads their pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

from agent_gym.envs.web_lite.page import Control, Element, Form, Line, Page, canonical_path
from agent_gym.envs.web_lite.sites import SITES
from agent_gym.envs.web_lite.world import Fields, Move, World

__all__ = ["DomBackend", "change", "read_html"]

MOST_PAGES = 4096
"""So many are remembered."""

_SPACE = re.compile(r"[ \t\n\f\r]+")
LINE_TAGS = frozenset({"h1", "p", "div", "tr", "nav"})
"""Each of these is a line of the text."""


def _parser() -> Callable[[str], Any]:
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise ImportError(
            "WebLite-v0 reads pages with selectolax, which is not installed: pip install 'agent-gym[web]'"
        ) from error
    return LexborHTMLParser


@dataclass(frozen=True)
class Document:
    """A page as it was sent: its lines, and the forms that its controls belong to."""

    lines: tuple[Line, ...]
    forms: tuple[Form, ...]


class _Reader:
    """One walk over a document, in its order. ``chromium.READER`` is the same walk in a browser."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.line: list[str | Control] = []
        self.forms: list[Form] = []

    def end_line(self) -> None:
        if self.line:
            self.lines.append(tuple(self.line))
            self.line = []

    def walk(self, node: Any, form: int) -> None:
        for child in node.iter(include_text=True):
            tag, attributes = child.tag, child.attributes
            if tag == "-text":
                if text := _squeeze(child.text_content):
                    self.line.append(text)
            elif tag == "form":
                self.forms.append(Form(attributes.get("method") or "get", attributes.get("action") or "", ()))
                self.walk(child, len(self.forms) - 1)
            elif tag == "label":
                own = "".join(n.text_content or "" for n in child.iter(include_text=True) if n.tag == "-text")
                for control in child.css("input, select"):
                    self.control(control, form, _squeeze(own))
            elif tag in ("a", "button", "input", "select"):
                self.control(child, form, "")
            elif tag in LINE_TAGS:
                self.end_line()
                self.walk(child, form)
                self.end_line()
            else:
                self.walk(child, form)

    def control(self, node: Any, form: int, label: str) -> None:
        tag, has = node.tag, node.attributes
        name = _squeeze(has.get("aria-label") or label or node.text(deep=True))
        target = self.forms[form].action if form >= 0 else ""
        if tag == "a":
            self.line.append(Control("link", name, has.get("href") or ""))
        elif tag == "button":
            self.line.append(Control("button", name, target, form))
        elif tag == "select":
            entries = node.css("option")
            options = tuple(_squeeze(entry.text(deep=True)) for entry in entries)
            chosen = [o for o, entry in zip(options, entries, strict=True) if "selected" in entry.attributes]
            value = chosen[-1] if chosen else options[0] if options else ""
            self.line.append(Control("select", name, target, form, has.get("name") or "", value, options))
        elif has.get("type") == "hidden":
            sent = self.forms[form]
            hidden = (*sent.hidden, (has.get("name") or "", has.get("value") or ""))
            self.forms[form] = Form(sent.method, sent.action, hidden)
        elif has.get("type") == "checkbox":
            value = "on" if "checked" in has else "off"
            self.line.append(Control("checkbox", name, target, form, has.get("name") or "", value))
        else:
            value = has.get("value") or ""
            self.line.append(Control("textbox", name, target, form, has.get("name") or "", value))


def _squeeze(text: str | None) -> str:
    return _SPACE.sub(" ", text or "").strip(" ")


@lru_cache(maxsize=MOST_PAGES)
def read_html(html: str) -> Document:
    """Lines and forms of a page.

    Raises:
        ImportError: If the parser is not installed; the message names the extra.
    """
    reader = _Reader()
    reader.walk(_parser()(html).body, -1)
    reader.end_line()
    return Document(tuple(reader.lines), tuple(reader.forms))


@lru_cache(maxsize=1024)
def _page(html: str, fields: Fields, salt: int) -> Page:
    return Page(read_html(html).lines, fields, salt)


def change(fields: Fields, control: Control, value: str) -> Fields:
    """The fields with one of them written; one that is as the page came with it is left out."""
    typed = dict(fields)
    typed.pop(control.key, None)
    if value != control.value:
        typed[control.key] = value
    return tuple(sorted(typed.items()))


class DomBackend:
    """A browser without a browser: links and forms, no scripts."""

    def show(self, world: World) -> Page:
        """The page that the world shows."""
        return _page(_html(world), world.fields, world.salt)

    def visit(self, world: World, path: str) -> Move:
        """Open an address of the site."""
        return Move(world.tables, path)

    def press(self, world: World, element: Element) -> Move:
        """Follow a link or send a form."""
        control = element.control
        if control.role == "link":
            return Move(world.tables, canonical_path(control.target))
        document = read_html(_html(world))
        form, typed = document.forms[control.form], dict(world.fields)
        sent = {name: value for name, value in form.hidden if name}  # a browser sends no field without a name
        for line in document.lines:
            for part in line:
                if isinstance(part, Control) and part.form == control.form and part.field:
                    value = typed.get(part.key, part.value)
                    if part.role != "checkbox" or value == "on":
                        sent[part.field] = value
        if form.method == "post":
            tables, path = SITES[world.site].act(world.tables, canonical_path(form.action), sent)
            return Move(tables, canonical_path(path))
        return Move(world.tables, canonical_path(f"{form.action}?{urlencode(sent)}"))

    def write(self, world: World, element: Element, value: str) -> Move:
        """Put a value into a field."""
        return Move(world.tables, world.path, change(world.fields, element.control, value))

    def close(self) -> None:
        """Nothing is held."""


_pages: dict[tuple[str, str, str], str] = {}


def _html(world: World) -> str:
    """A page is a function of the tables and the address, so it is made once."""
    key = (world.site, world.tables.hash, world.path)
    if key not in _pages:
        if len(_pages) >= MOST_PAGES:
            _pages.clear()
        _pages[key] = SITES[world.site].view(world.tables, world.path)
    return _pages[key]
