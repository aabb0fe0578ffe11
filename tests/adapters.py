"""What the tests of the adapters share: the adapter or a skip, the task sets to play, the sample of a page."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_code_agent
from sandbox_backends import require

ROOT = Path(__file__).parents[1]

SETS = [
    ("APIAgent-v0", "APIAgent-mini-v1", {"budget": {"tool_calls": 20, "latency_ms": 5000}}),
    ("SQL-v0", "SQL-mini-v1", {}),
    ("WebLite-v0", "WebLite-mini-v1", {}),
    ("CodeAgent-v0", "code.jsonl", {"sandbox": "bubblewrap"}),
]
"""Environment, tasks, and arguments of ``gym.make``."""


def adapter(name, package):
    """``agent_gym.integrations.NAME``; a skip without its package, unless AGENT_GYM_REQUIRE_NAME=1."""
    if importlib.util.find_spec(package) is None and os.environ.get(f"AGENT_GYM_REQUIRE_{name.upper()}") != "1":
        pytest.skip(f"{package} is not installed")
    return importlib.import_module(f"agent_gym.integrations.{name}")


def playable(env_id, tasks, folder):
    """The tasks of an entry of SETS, whose file is written; a skip without what the environment needs."""
    if env_id == "WebLite-v0":
        pytest.importorskip("selectolax")
    if env_id != "CodeAgent-v0":
        return tasks
    require("bubblewrap")
    return test_code_agent.write(folder / tasks, test_code_agent.TASK)


def sample(page, folder):
    """Run the sample of docs/PAGE as written. Returns the process, and what the page shows."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    form = r"^```python\n(# a data set.*?)^```\n+```text\n(.*?)^```"
    code, shown = re.search(form, text, re.MULTILINE | re.DOTALL).groups()
    (folder / "sample.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "sample.py"], capture_output=True, text=True, cwd=folder, env=environment)
    return done, shown
