"""What is installed, and what importing it costs."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

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


def _major(package: str) -> int:
    return int(version(package).split(".")[0]) if find_spec(package) else 0


@pytest.mark.skipif(
    not _major("pip") or _major("setuptools") < 77, reason="a wheel without isolation needs pip and setuptools 77"
)
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"  # a copy, because setuptools builds inside the tree
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("agent_gym", "agent_gym_verifiers", "cleanrl_llm", "benchmarks", "tests"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", tmp_path, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("agent_gym-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    packed = {name for name in names if ".dist-info/" not in name}
    held = [p for p in (ROOT / "agent_gym").rglob("*") if p.name.endswith((".py", "py.typed"))]
    held.append(ROOT / "agent_gym_verifiers" / "__init__.py")
    held += [
        p
        for data in ("lm/policies/*/*", "*/*.json", "view/*.js", "view/*.css")
        for p in (ROOT / "agent_gym").glob(data)
    ]
    assert packed == {str(p.relative_to(ROOT)) for p in held}
    assert "agent_gym/py.typed" in packed
    assert "agent_gym/envs/api_agent/domains/__init__.py" in packed
    assert any(name.endswith("licenses/LICENSE") for name in names)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert {line.split()[1].split(">")[0] for line in required} == {"gymnasium", "numpy", "pydantic"}


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
