"""``agent-gym serve``: an environment over the network, in OpenEnv's protocol."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket

from agent_gym.cli.arguments import budget, json_object
from agent_gym.cli.errors import Failure, made, one_sentence


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "serve", help="an environment over the network, for OpenEnv's clients",
        description="Serve an environment over HTTP and WebSocket, in OpenEnv's protocol; every session has an "
        "environment of its own. Needs the extra 'openenv'.",
    )  # fmt: skip
    parser.add_argument("env_id", metavar="ENV_ID", help="such as APIAgent-v0")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one (default: %(default)s)")
    parser.add_argument("--tasks", metavar="SET", help="a task set, or a source or path of real tasks")
    parser.add_argument("--budget", type=budget, metavar="CHANNEL=BOUND,...", help="such as tool_calls=6")
    parser.add_argument("--env-kwargs", type=json_object, default={}, metavar="JSON", help='such as {"difficulty": 2}')
    parser.add_argument("--max-sessions", type=int, default=64, help="at a time (default: %(default)s)")
    parser.add_argument(
        "--idle-s", type=float, default=600.0,
        help="seconds after which a session that sends nothing ends (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--max-request-kib", type=int, default=1024, help="the longest request (default: %(default)s)")
    parser.add_argument(
        "--token", default=os.environ.get("AGENT_GYM_TOKEN"),
        help="what clients must know; needed where others can reach the server (default: the environment variable "
        "AGENT_GYM_TOKEN, which no list of processes shows)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until ctrl-c."""
    from agent_gym.integrations.openenv import create_app  # before uvicorn: its error names the extra

    import uvicorn  # isort: skip

    if not _loopback(args.host) and not args.token:
        raise Failure(f"others can reach {args.host}: give them a token with --token or AGENT_GYM_TOKEN")
    given = {name: value for name in ("tasks", "budget") if (value := getattr(args, name)) is not None}
    made(args.env_id, {**args.env_kwargs, **given}).close()
    app = create_app(
        args.env_id, max_sessions=args.max_sessions, idle_s=args.idle_s, max_request_kib=args.max_request_kib,
        token=args.token, **{**args.env_kwargs, **given},
    )  # fmt: skip
    # a message far above the limit is not even read: the connection closes
    settings = uvicorn.Config(
        app, log_level="warning", ws_max_size=4096 * args.max_request_kib, timeout_graceful_shutdown=2
    )
    with _listening(args.host, args.port) as listening:
        host, port = listening.getsockname()[:2]
        print(f"{args.env_id} at http://{f'[{host}]' if ':' in host else host}:{port}, until ctrl-c", flush=True)
        uvicorn.Server(settings).run(sockets=[listening])
    return 0


def _loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise Failure(f"cannot listen at {host}, port {port}: {one_sentence(error)}") from error
