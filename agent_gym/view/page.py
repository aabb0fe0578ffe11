"""The HTML file: a frame, the style, plotly, our script, and the data as JSON."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from agent_gym.costs import CHANNELS
from agent_gym.metrics import FAILURES
from agent_gym.view.results import read_entry
from agent_gym.view.runs import read_run

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src {digests}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{title}</h1><nav id="nav" aria-label="Sections"></nav></header>
<main id="main" tabindex="-1"><noscript>This page needs JavaScript; it loads nothing.</noscript></main>
{data}
<script type="text/plain" id="plotly">{plotly}</script>
<script>{ours}</script>
</body>
</html>
"""


def render(paths: Sequence[str | Path]) -> str:
    """The page of some result files, or of some run folders.

    Args:
        paths: Files that ``agent-gym eval`` wrote, or folders that a trainer wrote.

    Returns:
        HTML, the same for the same files.

    Raises:
        ImportError: If plotly is not installed.
        ValueError: If one of them is neither, or they are of both kinds; the sentence names it.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the pages need plotly: pip install 'agent-gym[view]'") from error
    every = [Path(path) for path in paths]
    folders = [path for path in every if path.is_dir()]
    if folders and len(folders) < len(every):
        other = next(path for path in every if path not in folders)
        raise ValueError(f"{folders[0]} is a folder and {other} is not: give run folders, or result files, not both")
    kind, title, read = ("runs", "Training runs", read_run) if folders else ("results", "Results", read_entry)
    shown, episodes = [], []
    for path in every:
        try:
            one, own = read(path)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds an episode that no environment wrote ({error!r})") from None
        shown.append(one)
        episodes.append(own)
    data = [_data("data", {"entries": shown, "channels": CHANNELS, "failures": FAILURES})]
    data += [_data(f"episodes-{i}", own) for i, own in enumerate(episodes)]
    here = files(__package__)
    ours = "".join((here / f"{name}.js").read_text("utf-8") for name in ("page", "reader", kind))
    scripts = [f"\n{script}\n" for script in (ours, get_plotlyjs())]
    digests = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    return FRAME.format(
        title=title,
        digests=" ".join(f"'sha256-{digest}'" for digest in digests),
        style=(here / "page.css").read_text("utf-8"),
        data="\n".join(data),
        ours=scripts[0],
        plotly=scripts[1],
    )


def _data(name: str, value: Any) -> str:
    """JSON that no text in it can end: a ``<`` is written as JSON escapes it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
