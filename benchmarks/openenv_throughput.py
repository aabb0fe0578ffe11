"""Requests a second of `agent-gym serve` and of OpenEnv's echo environment, side by side.

The echo environment is the one that `openenv init` writes, served by OpenEnv as it stands. Both servers run in
processes of their own; the two take turns, block by block, with OpenEnv's client in this process, and the ratio is that
of the medians. A request is a step with one tool call, which is executed, priced and hashed here and echoed there.

    pip install 'agent-gym[openenv]'
    python benchmarks/openenv_throughput.py      # writes benchmarks/openenv_throughput.json
"""

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

CALL = '<tool_call>{"name":"list_customers","arguments":{}}</tool_call>'
ECHO = """
import socket, sys, uvicorn
from openenv.core.env_server.http_server import create_app
from echo_bench.models import EchoBenchAction, EchoBenchObservation
from echo_bench.server.echo_bench_environment import EchoBenchEnvironment

app = create_app(EchoBenchEnvironment, EchoBenchAction, EchoBenchObservation, max_concurrent_envs=int(sys.argv[1]))
listening = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
"""


def served(stack: ExitStack, command: list[str], cwd: str) -> str:
    """Start a server; returns its URL."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command], stdout=subprocess.PIPE, text=True, cwd=cwd, env=os.environ
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    found = re.search(r"http://\S+\d", process.stdout.readline())
    assert found is not None, f"{command} did not start"
    return found[0]


async def rate(url: str, action: dict[str, Any], sessions: int, steps: int) -> float:
    """Steps a second of so many sessions at once."""
    from openenv.core.generic_client import GenericEnvClient

    clients = [GenericEnvClient(base_url=url, connect_timeout_s=60) for _ in range(sessions)]
    for client in clients:
        await client.connect()
        await client.reset(seed=0)

    async def one(client: Any) -> None:
        for _ in range(steps):
            result = await client.step(action)
            assert not result.done

    begun = time.perf_counter()
    await asyncio.gather(*(one(client) for client in clients))
    taken = time.perf_counter() - begun
    for client in clients:
        await client.close()
    return sessions * steps / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 64], help="at once")
    parser.add_argument("--steps", type=int, default=2048, help="of a block, over all sessions")
    parser.add_argument("--blocks", type=int, default=5, help="of each server")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        init = [sys.executable, "-m", "openenv.cli", "init", "echo_bench", "--output-dir", folder]
        # without a path it finds no uv, which would resolve the dependencies of a package that is not installed
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": ""})
        most = str(max(options.sessions))
        kwargs = json.dumps({"domains": ["shop"], "max_turns": 10**9})
        ours = [
            "-m",
            "agent_gym",
            "serve",
            "APIAgent-v0",
            "--port",
            "0",
            "--max-sessions",
            most,
            "--env-kwargs",
            kwargs,
        ]
        servers = {
            "agent_gym": (served(stack, ours, str(Path(__file__).parents[1])), {"text": CALL}),
            "echo": (served(stack, ["-c", ECHO, most], folder), {"message": CALL}),
        }
        for sessions in options.sessions:
            rates: dict[str, list[float]] = {name: [] for name in servers}
            for _ in range(options.blocks):
                for name, (url, action) in servers.items():
                    rates[name].append(asyncio.run(rate(url, action, sessions, options.steps // sessions)))
            medians = {name: median(values) for name, values in rates.items()}
            ratio = medians["agent_gym"] / medians["echo"]
            found[f"{sessions} sessions"] = {"rates": rates, "medians": medians, "ratio_to_echo": ratio}
            print(f"{sessions} sessions: {medians}, ratio {ratio:.2f}", flush=True)
    settings = {"sessions": options.sessions, "steps": options.steps, "blocks": options.blocks}
    versions = {name: version(name) for name in ("openenv", "fastapi", "uvicorn", "websockets")}
    result = {"settings": settings, "python": platform.python_version(), "versions": versions, "found": found}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
