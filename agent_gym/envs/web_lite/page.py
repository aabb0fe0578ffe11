"""A page as the agent reads it: lines of text and numbered elements. Both backends fill it in the same way."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from zlib import crc32

from agent_gym.envs.web_lite.world import Fields
from agent_gym.tools import ToolError

__all__ = ["Control", "Element", "Form", "Page", "canonical_path", "number_elements", "one_line"]


@dataclass(frozen=True, slots=True)
class Control:
    """A link, button or field as the HTML has it.

    Args:
        role: ``link``, ``button``, ``textbox``, ``select`` or ``checkbox``.
        name: Its accessible name.
        target: Where it leads: a link's address; for the parts of a form, the form's.
        form: Index of its form in the document, -1 for a link.
        field: Name of the field, empty for links and buttons.
        value: What the page came with; ``on`` or ``off`` for a checkbox.
        options: What a select offers.
    """

    role: str
    name: str
    target: str
    form: int = -1
    field: str = ""
    value: str = ""
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The field's key in :data:`~agent_gym.envs.web_lite.world.Fields`."""
        return f"{self.form}.{self.field}"


@dataclass(frozen=True, slots=True)
class Form:
    """A form: its method, where it goes, and its hidden fields."""

    method: str
    action: str
    hidden: tuple[tuple[str, str], ...]


MOST_CHARACTERS = 500
"""Of an address, and of what is written in a field."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Line = tuple["str | Control", ...]


@dataclass(frozen=True, slots=True)
class Element:
    """A control of the shown page with its number and what stands in it now."""

    number: int
    index: int
    control: Control
    value: str

    @property
    def text(self) -> str:
        """``textbox "Search" [1418] value ""``: the number last of what names it, as in a list of references."""
        control = self.control
        text = f'{control.role} "{control.name}" [{self.number}]'
        if control.role == "checkbox":
            return f"{text} {self.value}"
        if control.role == "textbox":
            return f'{text} value "{self.value}"'
        if control.role == "select":
            return f'{text} value "{self.value}" of {", ".join(control.options)}'
        return text


class Page:
    """What the agent sees.

    Args:
        lines: Text and controls, line by line.
        fields: What was typed since the page was loaded.
        salt: Decides the numbers.
    """

    __slots__ = ("elements", "lines", "text")

    def __init__(self, lines: Sequence[Line], fields: Fields, salt: int) -> None:
        self.lines = lines
        typed = dict(fields)
        controls = [part for line in lines for part in line if isinstance(part, Control)]
        numbers = number_elements(controls, salt)
        found = [
            Element(number, index, control, typed.get(control.key, control.value) if control.field else "")
            for index, (number, control) in enumerate(zip(numbers, controls, strict=True))
        ]
        self.elements = {element.number: element for element in found}
        rest = iter(found)
        self.text = "\n".join(
            " ".join(part if isinstance(part, str) else next(rest).text for part in line) for line in lines
        )

    @property
    def size(self) -> int:
        """Elements and pieces of text shown: what loading the page is charged by."""
        return sum(map(len, self.lines))

    def element(self, number: int) -> Element:
        """The element of that number.

        Raises:
            ToolError: ``not_found`` if this page has no such element, whatever an earlier page had.
        """
        if number not in self.elements:
            raise ToolError("not_found", f"the page that is shown has no element {number}")
        return self.elements[number]


def number_elements(controls: Iterable[Control], salt: int) -> list[int]:
    """A number of four digits for each control: a checksum of what it is and where it leads, so that an element has
    the same number on every page that shows it, whatever was done before.

    Args:
        controls: In the order of the document.
        salt: Other tasks have other numbers.
    """
    taken: dict[int, None] = {}
    for control in controls:
        number = crc32(f"{salt}|{control.role}|{control.name}|{control.target}|{control.field}".encode()) % 9000
        while number in taken:
            number = (number + 1) % 9000
        taken[number] = None
    return [1000 + number for number in taken]


def one_line(text: str) -> str:
    """``text`` as a field of one line keeps it: without control characters."""
    return _CONTROL.sub("", text)


def canonical_path(path: str) -> str:
    """One spelling for each address within a site, whoever wrote it: decoded, cleaned and encoded again.

    Raises:
        ToolError: ``invalid`` if it does not start with ``/``.
    """
    path = path.strip(" \t\n\f\r")
    if not path.startswith("/"):
        raise ToolError("invalid", f"{path!r} is no address of this site: it starts with '/'")
    parts = urlsplit(f"http://site/{path.lstrip('/')}")
    clean = posixpath.normpath("/" + one_line(unquote(parts.path)).replace("\\", "/"))
    query = urlencode([(key, one_line(value)) for key, value in parse_qsl(parts.query, keep_blank_values=True)])
    return quote(f"/{clean.lstrip('/')}") + (f"?{query}" if query else "")
