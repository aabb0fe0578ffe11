"""A safe with a three-digit code: two tools, tasks without end, a verifier. Importing this file registers Safe-v0."""

from dataclasses import dataclass, replace

import gymnasium as gym

from agent_gym import Call, Latency, Outcome, Tool, ToolEnv, ToolError, Verdict


@dataclass(frozen=True)
class Room:  # a world: an immutable value with a hash of its content
    code: str
    is_open: bool = False

    @property
    def hash(self):
        return f"{self.code}-{self.is_open}"

    def apply(self, delta):
        return replace(self, is_open=delta)


@dataclass(frozen=True)
class SafeTask:
    id: str
    world: Room
    latency_seed: int
    request: str = "Open the safe. The note on the desk may help."


def read_note(room: Room):
    """Read the note on the desk."""
    return Outcome(f"The code is {room.code}.")


def dial(room: Room, code: str):
    """Dial a code.

    Args:
        code: Three digits.
    """
    if code != room.code:
        raise ToolError("not_permitted", "the safe stays shut")
    return Outcome("The safe is open.", delta=True, units=len(code))


TOOLS = {
    "read_note": Tool(read_note, context=True, reads_only=True),
    "dial": Tool(dial, context=True, latency=Latency(base_ms=100.0, per_unit_ms=10.0)),
}


class SafeEnv(ToolEnv):
    """Open a safe."""

    def _make_task(self, task_id):
        number = int(self.np_random.integers(1000)) if task_id is None else int(task_id)
        return SafeTask(str(number), Room(f"{number:03}"), number)

    def _tools(self):
        return TOOLS

    def _execute(self, tool, arguments):
        return tool.fn(self._world, **arguments)

    def _verify(self, answer):
        if self._world.is_open:
            return Verdict("pass", "passed", 1.0)
        return Verdict("fail", "wrong_state", 0.0, ("the safe is shut",))

    def oracle(self):
        calls = [Call("read_note"), Call("dial", {"code": self.task.world.code})]
        return [*(self.parser.render("", [call]) for call in calls), self.parser.render("Done.", [])]


gym.register("Safe-v0", SafeEnv, disable_env_checker=True)
