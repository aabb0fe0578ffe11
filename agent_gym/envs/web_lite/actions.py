"""What a call does to the page that is shown, with either backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from agent_gym.envs.web_lite.page import MOST_CHARACTERS, Element, Page, canonical_path, one_line
from agent_gym.envs.web_lite.world import Move, World
from agent_gym.tools import ToolError

__all__ = ["Backend", "act"]


class Backend(Protocol):
    """What shows pages and acts on them."""

    def show(self, world: World) -> Page:
        """The page that the world shows."""
        ...

    def visit(self, world: World, path: str) -> Move:
        """Open an address of the site."""
        ...

    def press(self, world: World, element: Element) -> Move:
        """Follow a link or send a form."""
        ...

    def write(self, world: World, element: Element, value: str) -> Move:
        """Put a value into a field."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


def act(backend: Backend, world: World, tool: str, arguments: Mapping[str, Any]) -> Move:
    """What a call of ``click``, ``fill``, ``select``, ``go_to`` or ``back`` does.

    Args:
        backend: Where it happens.
        world: What is shown before it.
        tool: Its name.
        arguments: As the tool takes them.

    Raises:
        ToolError: If the page or the tool does not allow it.
    """
    if tool == "go_to":
        path = arguments["path"]
        if len(path) > MOST_CHARACTERS:
            raise ToolError("invalid", f"the address is {len(path)} characters long, more than {MOST_CHARACTERS}")
        return backend.visit(world, canonical_path(path))
    if tool == "back":
        if not world.history:
            raise ToolError("conflict", "there is no page before this one")
        move = backend.visit(world, world.history[-1])
        return Move(move.tables, move.path, move.fields, "back")
    element = backend.show(world).element(arguments["element"])
    role, needs = element.control.role, {"fill": ("textbox",), "select": ("select",)}.get(tool)
    if role not in (needs or ("link", "button", "checkbox")):
        right = "select" if role == "select" else "fill" if role == "textbox" else "click"
        raise ToolError("invalid", f"element {element.number} is a {role}: use {right}")
    if tool == "select":
        if arguments["option"] not in element.control.options:
            options = ", ".join(element.control.options)
            raise ToolError("not_found", f"element {element.number} offers {options}, not {arguments['option']!r}")
        return backend.write(world, element, arguments["option"])
    if tool == "fill":
        text = arguments["text"]
        if len(text) > MOST_CHARACTERS or text != one_line(text):
            raise ToolError("invalid", f"a field takes one line of at most {MOST_CHARACTERS} characters")
        return backend.write(world, element, text)
    if role == "checkbox":
        return backend.write(world, element, "off" if element.value == "on" else "on")
    return backend.press(world, element)
