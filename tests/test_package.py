"""What is installed, and what importing it costs."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym

import agent_gym

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "docker",
    "playwright",
    "selectolax",
    "PIL",
    "bfcl_eval",
    "mpmath",
    "pandas",
    "scipy",
    "matplotlib",
)


def test_import_is_light():
    code = "import sys, agent_gym; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = {name.split(".")[0] for name in done.stdout.split()}
    assert "agent_gym" in imported
    assert not imported & set(HEAVY)


def test_making_an_environment_is_light():
    code = "import sys, agent_gym, gymnasium; gymnasium.make('APIAgent-v0').reset(seed=0); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {name.split(".")[0] for name in done.stdout.split()} & set(HEAVY)


def test_public_names_exist():
    assert sorted(agent_gym.__all__) == sorted(set(agent_gym.__all__))
    assert all(hasattr(agent_gym, name) for name in agent_gym.__all__)


def test_module_prefixed_id_and_spec_round_trip():
    env = gym.make("agent_gym:APIAgent-v0", difficulty=2, split="test", budget={"tool_calls": 6}, on_budget="record")
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.spec.kwargs == env.spec.kwargs
    first, info = env.reset(seed=3)
    second, info_again = again.reset(seed=3)
    assert first == second
    assert info == info_again


STRICT_USER = """
from collections.abc import Mapping

import gymnasium as gym

import agent_gym
from agent_gym import Outcome, Tool, ToolEnv, Verdict, tool_env

env = gym.make("APIAgent-v0", domains=["shop"])
base: ToolEnv = tool_env(env)
observation, info = env.reset(seed=1)
for action in base.oracle():
    observation, reward, terminated, truncated, info = env.step(action)
print(base.cost_total["read_tokens"], base.task_hash, base.task_list(2, 0)[0], base.read("x").text)
observation, reward, terminated, truncated, info = base.step({"role": "assistant", "content": "x"})
snap = agent_gym.snapshot(env)
agent_gym.restore(env, snap)


class Mine(ToolEnv):
    def _make_task(self, task_id: str | None) -> object:
        return object()

    def _tools(self) -> Mapping[str, Tool]:
        return {}

    def _execute(self, tool: Tool, arguments: dict[str, object]) -> Outcome:
        return Outcome("x")

    def _verify(self, answer: object) -> Verdict:
        return Verdict("pass", "passed", 1.0)

    def oracle(self) -> list[str]:
        return []
"""


def test_a_users_code_passes_a_strict_type_checker(tmp_path):
    (tmp_path / "user.py").write_text(STRICT_USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
