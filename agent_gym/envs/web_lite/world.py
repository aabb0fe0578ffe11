"""What an episode of WebLite-v0 is in: the site's tables, the page shown, what stands in its fields, the way back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from agent_gym.envs.api_agent.world import World as Tables

__all__ = ["Fields", "Move", "Tables", "World"]

Fields = tuple[tuple[str, str], ...]
"""Sorted pairs of a field's key and its value, where that differs from what the page came with."""


@dataclass(frozen=True, slots=True)
class Move:
    """What an action did.

    Args:
        tables: The site's state after it.
        path: The page shown after it.
        fields: What stands in that page's fields.
        way: ``"on"`` for a page that was opened, ``"back"`` for one gone back to.
    """

    tables: Tables
    path: str
    fields: Fields = ()
    way: Literal["on", "back"] = "on"


@dataclass(frozen=True, slots=True)
class World:
    """A site in a browser. Immutable; the tables share their structure with those before.

    Args:
        site: Name of the site.
        tables: Its state.
        path: The page that is shown.
        fields: What stands in the page's fields.
        history: The pages that ``back`` goes to, the nearest last.
        salt: Decides the numbers of the elements; the task's seed.
    """

    site: str
    tables: Tables
    path: str = "/"
    fields: Fields = ()
    history: tuple[str, ...] = ()
    salt: int = 0

    @property
    def hash(self) -> str:
        """A function of the tables, the page and its fields. How one got there (``history``) is no part of it."""
        content = repr((self.site, self.tables.hash, self.path, self.fields)).encode("utf-8", "surrogatepass")
        return blake2b(content, digest_size=16).hexdigest()

    def apply(self, delta: Move) -> World:
        """The world after an action."""
        history = self.history
        if delta.way == "back":
            history = history[:-1]
        elif delta.path != self.path:
            history = (*history, self.path)
        return replace(self, tables=delta.tables, path=delta.path, fields=delta.fields, history=history)
