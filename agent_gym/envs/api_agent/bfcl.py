"""APIAgent-v0 with ``tasks="bfcl"``: the 200 ``multi_turn_base`` tasks of the Berkeley Function Calling Leaderboard.

Questions, tool descriptions, stateful tool classes and ground truth are those of the PyPI package ``bfcl-eval``.
Every user turn is judged as its ``multi_turn_checker`` does: public state equal to the ground truth's, and the ground
truth's responses among the agent's so far.
"""

from __future__ import annotations

import ast
import datetime
import inspect
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import localcontext
from functools import cache, cached_property
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent_gym.costs import Latency
from agent_gym.env import Outcome, ToolEnv
from agent_gym.envs.splits import check_split
from agent_gym.text import syntax_tree
from agent_gym.tools import Call, Tool, ToolError, dump
from agent_gym.verdict import Verdict

__all__ = ["BFCLEnv", "BFCLTask", "BFCLWorld"]

SOURCES = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
"""Class to module, and to the file of its descriptions."""
STATELESS = {"MathAPI"}
READERS = frozenset((
    "cat", "diff", "du", "find", "grep", "ls", "pwd", "sort", "tail", "wc", "get_message_stats", "get_user_id",
    "list_users", "message_get_login_status", "search_messages", "view_messages_sent", "get_ticket",
    "get_user_tickets", "ticket_get_login_status", "filter_stocks_by_price", "get_account_info",
    "get_available_stocks", "get_current_time", "get_order_details", "get_order_history", "get_stock_info",
    "get_symbol_by_name", "get_transaction_history", "get_watchlist", "notify_price_change",
    "trading_get_login_status", "compute_exchange_rate", "contact_customer_support", "get_all_credit_cards",
    "get_booking_history", "get_budget_fiscal_year", "get_credit_card_balance", "get_nearest_airport_by_city",
    "list_all_airports", "retrieve_invoice", "travel_get_login_status", "verify_traveler_information",
    "get_tweet", "get_tweet_comments", "get_user_stats", "get_user_tweets", "list_all_following",
    "posting_get_login_status", "search_tweets", "check_tire_pressure", "displayCarStatus", "display_log",
    "estimate_distance", "estimate_drive_feasibility_by_mileage", "find_nearest_tire_shop", "gallon_to_liter",
    "liter_to_gallon", "get_outside_temperature_from_weather_com", "get_zipcode_based_on_city",
))  # fmt: skip
"""Methods of the stateful classes that never change anything. Missing here: readings that draw from the service's
random generator or fill its caches, such as ``get_current_speed`` and ``get_flight_cost``."""
NOW = datetime.datetime(2024, 9, 1, 10, 30)
"""What the clock shows, always: the moment that the package's own trading service takes for now."""
LIMITS = {"precision": 1000, "exponent": 1000, "decimal_places": 1000}
"""Largest magnitude of the parameters of the calculator that could make one call run for ever."""

DEEPEST = 100
"""Deepest nesting of a service's state, in containers and objects."""


# ---- the package's classes and files -----------------------------------------------------------------------------


class _Clock(datetime.datetime):
    """``datetime`` with the hands stopped."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return NOW

    @classmethod
    def today(cls) -> Any:
        return NOW


@cache
def _package() -> Path:
    """Folder of the installed ``bfcl_eval``; found without importing it."""
    spec = find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations or find_spec("mpmath") is None:
        raise ImportError(
            "tasks='bfcl' needs the packages bfcl-eval and mpmath: pip install --no-deps bfcl-eval, then pip install "
            "mpmath (with its dependencies, bfcl-eval brings more than 100 packages and an old numpy)"
        )
    return Path(spec.submodule_search_locations[0])


@cache
def _class(name: str) -> type:
    """A tool class, under its own dotted name, so that instances pickle."""
    module: Any = import_module(f"{SOURCES}.{MODULES[name]}")
    if name == "GorillaFileSystem":  # stamps files with the time
        module.datetime = SimpleNamespace(datetime=_Clock)
    elif name == "TravelAPI":  # computes ages
        module.datetime = _Clock
    return getattr(module, name)


def _read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_package() / "data" / path).read_bytes().splitlines()]


# ---- tools -------------------------------------------------------------------------------------------------------

_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_JSON_NAMES = {"dict": "object", "float": "number", "tuple": "array"}


def _json_schema(schema: Any) -> Any:
    """A parameter description in the spelling of JSON schema."""
    if isinstance(schema, list):
        return [_json_schema(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _json_schema(value) for key, value in schema.items()}
    if isinstance(made.get("type"), str):
        made["type"] = _JSON_NAMES.get(made["type"], made["type"])
    return made


class DocumentedTool(Tool):
    """A method of a package class, described by the package's JSON instead of by Python types.

    Args:
        owner: Name of the class.
        doc: Its entry: ``name``, ``description``, ``parameters``.
    """

    def __init__(self, owner: str, doc: Mapping[str, Any]) -> None:
        self.owner, self.name, self.description = owner, doc["name"], doc["description"]
        self.fn = getattr(_class(owner), self.name)
        self.reads_only = owner in STATELESS or self.name in READERS
        self.cacheable, self.latency, self.ends, self.atoms = True, Latency(), False, None
        self.parameters = tuple(doc["parameters"]["properties"])
        self._schema = _json_schema(doc["parameters"])
        function = {"name": self.name, "description": self.description, "parameters": self._schema}
        self.schema_json = dump({"type": "function", "function": function})

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`Tool.validate`. Values are passed on as they are: the package tells 2 from 2.0."""
        known, required = self._schema["properties"], self._schema.get("required", [])
        for name in [*required, *arguments]:
            if name not in known:
                raise ToolError(
                    "invalid", f"{self.name}: unknown argument {name!r}; it takes {', '.join(known) or '-'}"
                )
            if name not in arguments:
                raise ToolError("invalid", f"{self.name}: argument {name!r} is missing")
        for name, value in arguments.items():
            if value is None and name not in required:
                continue
            if name.endswith("_id") and isinstance(value, str):
                continue  # described as integers, but some services of the package hold ids such as "ticket_001"
            if fault := _fault(value, known[name]):
                raise ToolError("invalid", f"{self.name}: argument {name!r}: {fault}")
            if name in LIMITS and abs(value) > LIMITS[name]:
                raise ToolError("invalid", f"{self.name}: argument {name!r}: must be within {LIMITS[name]} of 0")
        return dict(arguments)


def _fault(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a value's basic JSON type, if anything."""
    wanted = schema.get("type")
    if wanted in _TYPES and (
        not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) != (wanted == "boolean"))
    ):
        return f"should be of type {wanted}"
    if isinstance(value, list):
        return next(filter(None, (_fault(item, schema.get("items", {})) for item in value)), None)
    return None


@cache
def _tools(owners: tuple[str, ...]) -> dict[str, DocumentedTool]:
    docs = ((owner, doc) for owner in owners for doc in _read(f"multi_turn_func_doc/{MODULES[owner]}.json"))
    return {doc["name"]: DocumentedTool(owner, doc) for owner, doc in docs}


# ---- the world ---------------------------------------------------------------------------------------------------


def _feed(value: Any, write: Callable[[bytes], None], seen: dict[int, int], depth: int = 0) -> None:
    """Write a value's content in one spelling. A second way to the same object is written as a reference, which ends
    cycles and keeps sharing apart from equality; the order of a dict counts, because listings show it.

    Raises:
        RecursionError: Beyond ``DEEPEST``, long before Python or pickle would, whose limits depend on the caller.
    """
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(value, int):  # in hexadecimal, which has no longest number
        write(f"{type(value).__name__} {value:x};".encode())
    elif value is None or isinstance(value, float | str | datetime.datetime):
        write(f"{type(value).__name__} {value!r};".encode("utf-8", "backslashreplace"))
    elif isinstance(value, random.Random):
        write(repr(value.getstate()).encode())
    elif isinstance(value, tuple):
        write(f"tuple {len(value)};".encode())
        for item in value:
            _feed(item, write, seen, depth + 1)
    elif id(value) in seen:
        write(f"again {seen[id(value)]};".encode())
    else:
        seen[id(value)] = len(seen)
        if isinstance(value, set | frozenset):
            write(f"set {sorted(map(repr, value))};".encode())
        elif isinstance(value, list):
            write(f"list {len(value)};".encode())
            for item in value:
                _feed(item, write, seen, depth + 1)
        else:
            items = value if isinstance(value, dict) else vars(value)
            write(f"{type(value).__name__} {len(items)};".encode())
            for key, item in items.items():
                _feed(key, write, seen, depth + 1)
                _feed(item, write, seen, depth + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """An instance of a package class, which nobody changes any more, and the digest of all its attributes."""

    instance: Any
    digest: str

    @classmethod
    def of(cls, instance: Any) -> Service:
        """The service of an instance that the caller gives away."""
        hasher = blake2b(digest_size=16)
        _feed(instance, hasher.update, {})
        return cls(instance, hasher.hexdigest())

    def call(self, method: str, arguments: Mapping[str, Any]) -> tuple[str, bool, Service]:
        """The response, whether it is an error, and the service afterwards (itself if nothing changed).

        As in the package's executor: the agent reads an exception as a response, and what the method had changed
        before it raised stays changed.
        """
        instance = pickle.loads(pickle.dumps(self.instance, pickle.HIGHEST_PROTOCOL))
        failed = False
        try:
            with localcontext(), _mpmath_precision():  # the calculator changes both for the whole process
                result = getattr(instance, method)(**arguments)
                failed = isinstance(result, dict) and "error" in result
                response = _respond(result)
        except Exception as error:  # the package's methods raise anything on odd arguments; that is the agent's doing
            words = "maximum recursion depth exceeded" if isinstance(error, RecursionError) else error
            failed, response = True, f"Error during execution: {words}"
        after = Service.of(instance)
        return response, failed, self if after.digest == self.digest else after


def _respond(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):  # numbers of mpmath and decimal
            return str(result)
    return str(result)


def _mpmath_precision() -> Any:
    import mpmath

    return mpmath.workdps(mpmath.mp.dps)


class BFCLWorld:
    """Services by class name. A change makes a new world that shares every untouched service with the old one."""

    __slots__ = ("services",)

    def __init__(self, services: Mapping[str, Service]) -> None:
        self.services = services

    @property
    def hash(self) -> str:
        """32 hexadecimal digits."""
        digests = "".join(self.services[name].digest for name in sorted(self.services))
        return blake2b(digests.encode(), digest_size=16).hexdigest()

    def apply(self, delta: Mapping[str, Service]) -> BFCLWorld:
        """The world with the given services in place of their old selves."""
        return BFCLWorld({**self.services, **delta})


# ---- tasks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """What the ground truth reached and read in one user turn."""

    calls: tuple[Call, ...]
    responses: tuple[str, ...]
    world: BFCLWorld


@dataclass(frozen=True)
class BFCLTask:
    """One entry of the leaderboard's file. Pickles as its id."""

    id: str
    questions: tuple[str, ...]
    owners: tuple[str, ...]
    config: Mapping[str, Any]
    truth: tuple[tuple[str, ...], ...]
    latency_seed: int

    @property
    def request(self) -> str:
        """The first question."""
        return self.questions[0]

    @cached_property
    def world(self) -> BFCLWorld:
        """Where the episode starts."""
        services = {}
        for owner in self.owners:
            instance = _class(owner)()
            if owner not in STATELESS:
                instance._load_scenario(json.loads(json.dumps(self.config.get(owner, {}))))
            services[owner] = Service.of(instance)
        return BFCLWorld(services)

    @cached_property
    def goals(self) -> tuple[Goal, ...]:
        """The ground truth, executed."""
        tools, world, goals = _tools(self.owners), self.world, []
        for turn in self.truth:
            calls, responses = tuple(map(self._call, turn)), []
            for call in calls:
                owner = tools[call.name].owner
                response, _, service = world.services[owner].call(call.name, call.arguments)
                responses.append(response)
                world = world.apply({owner: service})
            goals.append(Goal(calls, tuple(responses), world))
        return tuple(goals)

    def _call(self, text: str) -> Call:
        """``mv('a', destination='b')`` as a call; read, never run."""
        node = syntax_tree(text, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError(f"{self.id}: the ground truth {text!r} is not a call")
        names = list(inspect.signature(_tools(self.owners)[node.func.id].fn).parameters)[1:]
        pairs = [*zip(names, node.args, strict=False), *((k.arg, k.value) for k in node.keywords)]
        return Call(node.func.id, {str(name): ast.literal_eval(value) for name, value in pairs})

    def __reduce__(self) -> Any:
        return _task, (self.id,)


@cache
def _tasks() -> dict[str, BFCLTask]:
    truth = {entry["id"]: entry["ground_truth"] for entry in _read("possible_answer/BFCL_v4_multi_turn_base.json")}
    return {
        entry["id"]: BFCLTask(
            id=entry["id"],
            questions=tuple("\n".join(m["content"] for m in turn) for turn in entry["question"]),
            owners=tuple(entry["involved_classes"]),
            config=entry["initial_config"],
            truth=tuple(map(tuple, truth[entry["id"]])),
            latency_seed=number,
        )
        for number, entry in enumerate(_read("BFCL_v4_multi_turn_base.json"))
    }


def _task(task_id: str) -> BFCLTask:
    tasks = _tasks()
    if task_id not in tasks:
        raise ValueError(f"unknown task id {task_id!r}; there are {len(tasks)}, the first is {next(iter(tasks))!r}")
    return tasks[task_id]


# ---- the environment ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the conversation is: user turns passed, all responses so far, whether this user turn had a call, and
    why the last one failed."""

    passed: int = 0
    responses: tuple[str, ...] = ()
    called: bool = False
    reason: str = ""
    faults: tuple[str, ...] = ()


class BFCLEnv(ToolEnv):
    """Several user turns over stateful services. A message without a call (or ``submit``) ends a user turn; it is then
    checked, and the next question is the observation. The first user turn that fails ends the episode.

    Args:
        split: It makes no difference: the leaderboard has one set of 200 tasks.
        max_turns: As in :class:`~agent_gym.env.ToolEnv`; the ground truth takes up to 16.
        **kwargs: See :class:`~agent_gym.env.ToolEnv`.

    Raises:
        ImportError: Without the packages of ``pip install agent-gym[bfcl]``.
        ValueError: For an unknown split or task id, and for ``domains`` or ``difficulty``, which belong to the
            generator.
    """

    system_prompt = (
        "Use the tools to do what the user asks. A message without a tool call hands the turn back to the user, "
        "who may then ask for more."
    )

    def __init__(self, *, tasks: str = "bfcl", split: str = "test", max_turns: int = 64, **kwargs: Any) -> None:
        for name in ("domains", "difficulty"):
            if name in kwargs:
                raise ValueError(f"{name}= belongs to the task generator; the tasks of 'bfcl' are fixed")
        super().__init__(max_turns=max_turns, **kwargs)
        if tasks != "bfcl":
            raise ValueError(f"tasks={tasks!r}: BFCLEnv has only 'bfcl'")
        check_split(split)
        self.split = split
        self.task_ids: tuple[str, ...] = tuple(_tasks())

    def _make_task(self, task_id: str | None) -> BFCLTask:
        if task_id is None:
            task_id = self.task_ids[int(self.np_random.integers(len(self.task_ids)))]
        return _task(task_id)

    def _tools(self) -> Mapping[str, Tool]:
        return _tools(tuple(MODULES) if self.task is None else self.task.owners)

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        owner = tool.owner  # type: ignore[attr-defined]
        before = self._world.services[owner]
        try:
            response, failed, after = before.call(tool.name, arguments)
        except RecursionError:  # while copying or hashing, so nothing has changed
            raise ToolError("invalid", f"{tool.name}: the state would be nested too deeply") from None
        return Outcome(response, None if after is before else {owner: after}, error="failed" if failed else None)

    def _observe(self, results: list[dict[str, Any]]) -> None:
        """Keep the responses of the calls that were executed; one refused at the door is no call."""
        progress = self._progress or Progress()
        executed = (result for result in results if result["error"] in (None, "failed"))
        new = tuple(result["content"] for result in executed if result["name"] != "submit")
        self._progress = replace(progress, responses=progress.responses + new, called=progress.called or bool(new))

    def _next_message(self, answer: Any) -> str | None:
        """Check the user turn that ends here; the next question if it passed and there is one."""
        progress, task = self._progress, self.task
        reason, faults = self._check(task.goals[progress.passed], progress)
        if reason:
            self._progress = replace(progress, reason=reason, faults=faults)
            return None
        self._progress = Progress(progress.passed + 1, progress.responses)
        return task.questions[progress.passed + 1] if progress.passed + 1 < len(task.questions) else None

    def _check(self, goal: Goal, progress: Progress) -> tuple[str, tuple[str, ...]]:
        """Why a user turn failed ("" if it did not), and one line a fault."""
        where = f"user turn {progress.passed + 1}"
        if not goal.calls:  # the package's checker looks at neither state nor responses here
            return "", ()
        if not progress.called:
            return "no_call", (f"{where}: no tool was called",)
        faults = []
        for owner, service in goal.world.services.items():
            here = vars(self._world.services[owner].instance)
            for name, wanted in vars(service.instance).items():
                if not name.startswith("_") and not _equal(here.get(name), wanted):
                    faults.append(f"{where}: {owner}.{name}: expected {_brief(wanted)}, found {_brief(here.get(name))}")
        if faults:
            return "wrong_state", tuple(faults)
        missing = Counter(goal.responses) - Counter(progress.responses)
        return "missing_response" if missing else "", tuple(f"{where}: no call gave {_brief(m)}" for m in missing)

    def _verify(self, answer: Any) -> Verdict:
        progress: Progress = self._progress
        score = progress.passed / len(self.task.questions)
        if progress.passed == len(self.task.questions):
            return Verdict("pass", "passed", score)
        return Verdict("fail", progress.reason or "unfinished", score, progress.faults)

    def oracle(self) -> list[str]:
        """See :meth:`ToolEnv.oracle`: one call a turn, and a message at the end of every user turn."""
        return self._actions([list(goal.calls) for goal in self.task.goals])

    def cheats(self) -> list[list[str]]:
        """The last call dropped, a call of a tool that does not exist in its place, and claims without deeds."""
        turns = [list(goal.calls) for goal in self.task.goals]
        last = max(index for index, calls in enumerate(turns) if calls)
        dropped = [calls[:-1] if index == last else calls for index, calls in enumerate(turns)]
        bogus = [[*calls, Call("finish_task", {})] if index == last else calls for index, calls in enumerate(dropped)]
        return [self._actions(dropped), self._actions(bogus), self._actions([[] for _ in turns])]

    def _actions(self, turns: list[list[Call]]) -> list[str]:
        done = self.parser.render("Done.", [])
        return [action for calls in turns for action in (*(self.parser.render("", [call]) for call in calls), done)]


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except RecursionError:  # a folder copied into itself
        return False


def _brief(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):
        text = f"({type(value).__name__}, too large to write out)"
    return text if len(text) <= 300 else text[:300] + "..."
