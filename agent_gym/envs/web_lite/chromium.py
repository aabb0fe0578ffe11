"""The other backend: Chromium, driven by Playwright, on the same site served on loopback."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import wraps
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from agent_gym.envs.web_lite.page import Control, Element, Line, Page, canonical_path
from agent_gym.envs.web_lite.site import Request
from agent_gym.envs.web_lite.sites import SITES
from agent_gym.envs.web_lite.world import Fields, Move, Tables, World
from agent_gym.verdict import InfraError

__all__ = ["BrowserUnavailable", "ChromiumBackend", "OnePage", "find_chromium", "open_page", "pixels", "quit_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1", "--hide-scrollbars",
)  # fmt: skip
SIZE = {"width": 720, "height": 540}
PATIENCE_MS = 15_000.0

READER = """() => {
  // the walk of dom.py's reader, in a browser; window.controls keeps the elements in the order of the text
  const squeeze = text => (text || '').replace(/[ \\t\\n\\f\\r]+/g, ' ').replace(/^ | $/g, '');
  const lineTags = new Set(['H1', 'P', 'DIV', 'TR', 'NAV']), forms = Array.from(document.forms);
  const lines = [], controls = [];
  let line = [];
  const endLine = () => { if (line.length) { lines.push(line); line = []; } };
  const add = (node, label) => {
    const tag = node.tagName, form = node.form ? forms.indexOf(node.form) : -1;
    const found = {
      name: squeeze(node.getAttribute('aria-label') || label || node.textContent),
      target: form < 0 ? '' : node.form.getAttribute('action'),
      form: form, field: node.name || '', value: '', options: [], typed: '',
    };
    if (node.type === 'hidden') return;
    if (tag === 'A') Object.assign(found, {role: 'link', target: node.getAttribute('href') || '', field: ''});
    else if (tag === 'BUTTON') Object.assign(found, {role: 'button', field: ''});
    else if (tag === 'SELECT') {
      const options = Array.from(node.options), chosen = options.filter(o => o.defaultSelected);
      found.role = 'select';
      found.options = options.map(o => squeeze(o.textContent));
      found.value = chosen.length ? squeeze(chosen.pop().textContent) : found.options[0];
      found.typed = squeeze(node.selectedOptions[0].textContent);
    } else if (node.type === 'checkbox') {
      Object.assign(found, {role: 'checkbox', value: node.defaultChecked ? 'on' : 'off'});
      found.typed = node.checked ? 'on' : 'off';
    } else Object.assign(found, {role: 'textbox', value: node.defaultValue, typed: node.value});
    controls.push(node);
    line.push(found);
  };
  const walk = node => {
    for (const child of node.childNodes) {
      const tag = child.tagName;
      if (child.nodeType === Node.TEXT_NODE) { const text = squeeze(child.data); if (text) line.push(text); }
      else if (child.nodeType !== Node.ELEMENT_NODE) continue;
      else if (tag === 'LABEL') {
        const own = Array.from(child.childNodes).filter(n => n.nodeType === Node.TEXT_NODE).map(n => n.data).join('');
        for (const node of child.querySelectorAll('input, select')) add(node, squeeze(own));
      } else if (['A', 'BUTTON', 'INPUT', 'SELECT'].includes(tag)) add(child, '');
      else if (lineTags.has(tag)) { endLine(); walk(child); endLine(); }
      else walk(child);
    }
  };
  walk(document.body);
  endLine();
  window.controls = controls;
  return {lines: lines, path: location.pathname + location.search};
}"""

CENTRE = """node => {
  node.scrollIntoView({block: 'nearest', inline: 'nearest', behavior: 'instant'});
  const box = node.getClientRects()[0] || node.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}"""
"""Where the mouse clicks a node, once it is in view."""


class BrowserUnavailable(RuntimeError):
    """There is no browser to drive on this machine; the message says what to install."""


def find_chromium() -> str:
    """The path of a Chromium: that named by the variable AGENT_GYM_CHROMIUM, or one on the PATH.

    Raises:
        ImportError: If Playwright is not installed.
        BrowserUnavailable: If there is no Chromium.
    """
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "backend='chromium' needs Playwright, which is not installed: pip install 'agent-gym[web]'"
        ) from error
    named = os.environ.get("AGENT_GYM_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        where = f"AGENT_GYM_CHROMIUM={named!r} is no program" if named else f"none of {', '.join(NAMES)} is on the PATH"
        raise BrowserUnavailable(f"no Chromium: {where} (Debian, Ubuntu: apt install chromium)")
    return found


# ---- one browser a thread ------------------------------------------------------------------------------------------


class _Local(threading.local):
    """Playwright's objects belong to the thread, and to the process, that made them."""

    pid = 0
    playwright: Any = None
    browser: Any = None


_local = _Local()


def _browser() -> Any:
    """The running browser of this thread; a new one where there is none, or it died."""
    from playwright.sync_api import sync_playwright

    if _local.pid != os.getpid():  # after a fork the parent's connection is not ours to use
        _local.pid, _local.playwright, _local.browser = os.getpid(), None, None
    if _local.browser is not None and _local.browser.is_connected():
        return _local.browser
    if _local.playwright is None:
        _local.playwright = sync_playwright().start()
        atexit.register(_quit, os.getpid(), _local.playwright)
    flags = [*FLAGS, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    _local.browser = _local.playwright.chromium.launch(executable_path=find_chromium(), args=flags, headless=True)
    return _local.browser


def _quit(pid: int, playwright: Any) -> None:
    if pid == os.getpid():
        with suppress(Exception):
            if _local.browser is not None:
                _local.browser.close()
        with suppress(Exception):
            playwright.stop()


def quit_browser() -> None:
    """End this thread's browser, where it has one; the next page starts another. Until then Playwright leaves an event
    loop running in the thread, beside which no other runs (``asyncio.run`` refuses)."""
    if _local.playwright is not None:
        _quit(_local.pid, _local.playwright)
        _local.playwright = _local.browser = None


def open_page(**context: Any) -> Any:
    """A page in a context of its own, in this thread's browser, which is started where there is none.

    Args:
        **context: See Playwright's ``Browser.new_context``.

    Raises:
        InfraError: If the browser does not start.
    """
    with guarded():
        try:
            page = _browser().new_context(**context).new_page()
        except Exception:  # the driver died with the browser: once more, with a new one
            _local.playwright = _local.browser = None
            page = _browser().new_context(**context).new_page()
        page.set_default_timeout(PATIENCE_MS)
        return page


@contextmanager
def guarded() -> Iterator[None]:
    """What goes wrong with the browser is nobody's fault: an InfraError in one sentence."""
    from playwright.sync_api import Error

    try:
        yield
    except (Error, OSError, ConnectionError) as error:
        lines = str(error).strip().splitlines()
        raise InfraError(f"the browser failed: {lines[0] if lines else type(error).__name__}") from error
    except Exception as error:  # Playwright says "connection closed" with a bare Exception
        if type(error) is not Exception:
            raise
        raise InfraError(f"the browser failed: {str(error).splitlines()[0]}") from error


class OnePage:
    """Holder of a browser page. After a failure the page is in no known state: it is dropped, and the next use opens a
    new one.
    """

    _page: Any = None

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            with guarded():
                yield
        except InfraError:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._page is not None:
            with suppress(Exception):
                self._page.context.close()
        self._page = None


def pixels(page: Any) -> np.ndarray:
    """A screenshot, height x width x 3."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "render_mode='rgb_array' needs Pillow, which is not installed: pip install 'agent-gym[web]'"
        ) from error
    with guarded():
        data = page.screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ---- the site on loopback ------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    """Hands requests to the site's functions."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        world, path = self.server.world, canonical_path(self.path)
        _, response = SITES[world[0]].respond(world[1], Request(path))
        self._send(200, response.html, "text/html; charset=utf-8", [("Cache-Control", "no-store")])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        sent = dict(parse_qsl(body, keep_blank_values=True))
        site, tables = self.server.world
        tables, path = SITES[site].act(tables, canonical_path(self.path), sent)
        self.server.world = (site, tables)
        self._send(303, "", "text/plain", [("Location", canonical_path(path))])

    def _send(self, status: int, text: str, kind: str, headers: list[tuple[str, str]]) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in [("Content-Type", kind), ("Content-Length", str(len(data))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is written to the terminal."""


class _Server(ThreadingHTTPServer):
    """Serves the site in ``world``, which the backend sets and an action changes."""

    daemon_threads = True
    allow_reuse_address = False
    world: tuple[str, Tables]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no event."""


def _at_home(method: Callable[..., Any]) -> Callable[..., Any]:
    """Playwright's objects belong to the thread that made them: whichever thread asks, one thread of this process does
    the work."""

    @wraps(method)
    def call(*arguments: Any) -> Any:
        home = _homes.get(os.getpid()) or _homes.setdefault(os.getpid(), ThreadPoolExecutor(1, "agent_gym browser"))
        return home.submit(method, *arguments).result()

    return call


_homes: dict[int, ThreadPoolExecutor] = {}  # by process: a forked child has none of its parent's threads


class ChromiumBackend(OnePage):
    """A real browser, kept in the state of the world that it is asked about.

    Args:
        port: Port of the site on loopback; 0 for any that is free.

    Raises:
        ImportError: If Playwright is not installed.
        BrowserUnavailable: If there is no Chromium.
        ValueError: If the port cannot be had.
    """

    def __init__(self, port: int = 0) -> None:
        find_chromium()
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"port={port}: cannot be served on: {reason}") from error
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._in = ""  # hash of the world that the browser is in
        self._lines: tuple[Line, ...] = ()

    @property
    def address(self) -> str:
        """Where the site is served."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    # ---- what a backend does ----

    @_at_home
    def show(self, world: World) -> Page:
        """The page that the world shows."""
        self._enter(world)
        return Page(self._lines, world.fields, world.salt)

    @_at_home
    def visit(self, world: World, path: str) -> Move:
        """Open an address of the site."""
        self._enter(world)
        with self._working():
            self._page.goto(self.address + path, wait_until="domcontentloaded")
            return self._read(world)

    @_at_home
    def press(self, world: World, element: Element) -> Move:
        """Follow a link or send a form, by a click."""
        self._enter(world)
        with self._working(), self._page.expect_navigation(wait_until="domcontentloaded"):
            self._page.mouse.click(*self._handle(element.index).evaluate(CENTRE))
        with self._working():
            return self._read(world)

    @_at_home
    def write(self, world: World, element: Element, value: str) -> Move:
        """Put a value into a field."""
        self._enter(world)
        with self._working():
            self._put(element.index, element.control, value)
            return self._read(world)

    @_at_home
    def screenshot(self, world: World) -> np.ndarray:
        """The page as a picture, height x width x 3."""
        self._enter(world)
        return pixels(self._page)

    def close(self) -> None:
        """Close the page and stop serving. The browser stays for others."""
        _at_home(self._drop)()
        self._server.shutdown()
        self._server.server_close()

    # ---- how ----

    def _enter(self, world: World) -> None:
        """Bring the browser to a world that it is not in: set the site's state, load the page, fill its fields."""
        if self._in == world.hash and self._page is not None:
            return
        if self._page is None:
            self._page = open_page(viewport=SIZE)
        self._server.world = (world.site, world.tables)
        with self._working():
            self._page.goto(self.address + world.path, wait_until="domcontentloaded")
            self._read(world)
            controls = [part for line in self._lines for part in line if isinstance(part, Control)]
            typed = dict(world.fields)
            for index, control in enumerate(controls):
                if control.field and control.key in typed:
                    self._put(index, control, typed[control.key])
            self._read(world)
        if self._in != world.hash:
            raise InfraError("the browser does not come to the state of the world")

    def _read(self, world: World) -> Move:
        found = self._page.evaluate(READER)
        lines: list[Line] = []
        fields: dict[str, str] = {}
        for line in found["lines"]:
            parts: list[str | Control] = []
            for part in line:
                if isinstance(part, dict):
                    typed, options = part.pop("typed"), tuple(part.pop("options"))
                    part = Control(**part, options=options)
                    if part.field and typed != part.value:
                        fields[part.key] = typed
                parts.append(part)
            lines.append(tuple(parts))
        self._lines = tuple(lines)
        typed_in: Fields = tuple(sorted(fields.items()))
        move = Move(self._server.world[1], canonical_path(found["path"]), typed_in)
        self._in = world.apply(move).hash
        return move

    def _handle(self, index: int) -> Any:
        return self._page.evaluate_handle("index => window.controls[index]", index).as_element()

    def _put(self, index: int, control: Control, value: str) -> None:
        handle = self._handle(index)
        if control.role == "select":
            handle.select_option(label=value)
        elif control.role == "checkbox":
            handle.set_checked(value == "on")
        else:
            handle.fill(value)
