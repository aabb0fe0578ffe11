"""The pages: their samples run and print what the page shows, and their tables name what the code has."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from agent_gym import CHANNELS
from agent_gym.envs.api_agent.domain import DOMAINS
from agent_gym.envs.api_agent.domains import NAMES
from agent_gym.envs.code_agent.env import TOOLS as CODE_TOOLS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *sorted(DOCS.rglob("*.md"))]
OWN_DOMAIN = (DOCS / "own_domain.py").read_text(encoding="utf-8")
OWN_ENVIRONMENT = (DOCS / "own_environment.py").read_text(encoding="utf-8")
TRAINERS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "cleanrl_llm").glob("*.py")}
REINFORCE = (DOCS / "reinforce.py").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def samples():
    """Every Python block that can run alone, with the output that the page shows under it, if any."""
    for page in PAGES:
        if page in TUTORIALS:  # whose blocks run one after the other, below
            continue
        for kind, code, shown, line in blocks(page):
            if kind == "python" and code.startswith(("import ", "from ")):
                yield pytest.param(code, shown, id=f"{page.name}:{line}")


def blocks(page):
    """Kind, code, the output that the page shows under it, if any, and line of every block of a page."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for block, after in zip(found, [*found[1:], None], strict=False):
        shown = after and after[1] == "text" and not text[block.end() : after.start()].strip()
        yield block[1], block[2], after[2] if shown else None, text[: block.start()].count("\n") + 1


def run(arguments, cwd):
    """A Python process that finds the package and the files beside the pages."""
    return command([sys.executable, *arguments], cwd)


def command(line, cwd):
    """What a command prints that finds this Python, its scripts, the package and the files beside the pages."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), str(DOCS)])}
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


SMALLER = {
    "iterations 8 --num-episodes 24 --eval-episodes 32": "iterations 1 --num-episodes 8 --eval-episodes 4",
    "ITERATIONS, TASKS, SAMPLES = 12, 16, 4": "ITERATIONS, TASKS, SAMPLES = 12, 2, 2",
}
"""What trains for a minute on the page trains for seconds here; its numbers are then others."""


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run_from_top_to_bottom(page, tmp_path):
    """In one folder, block after block, as who reads does; a block that begins with a file's name is that file."""
    (tmp_path / "cleanrl_llm").symlink_to(ROOT / "cleanrl_llm")
    numbers = True
    for kind, code, shown, line in blocks(page):
        small = code
        for of_page, here in SMALLER.items():
            small = small.replace(of_page, here)
        numbers = numbers and small == code
        named = re.match(r"# (\w+\.py)\n", code)
        if kind == "python" and named:
            (tmp_path / named[1]).write_text(small, encoding="utf-8")
            continue
        if kind not in ("python", "sh"):
            continue
        printed = run(["-c", small], tmp_path) if kind == "python" else command(["bash", "-ec", small], tmp_path)
        if shown is not None:
            printed, shown = (text if numbers else re.sub(r"\d[\d.]*", "N", text) for text in (printed, shown))
            assert printed.strip("\n") == shown.strip("\n"), f"{page.name}:{line}"


@pytest.mark.parametrize(("code", "shown"), list(samples()))
def test_samples_print_what_the_page_shows(code, shown, tmp_path):
    small = code.replace("UPDATES, ITERATIONS, EPISODES = 400, 20, 32", "UPDATES, ITERATIONS, EPISODES = 4, 2, 8")
    if small != code:  # minutes as it stands on the page, with the same result every time
        code, shown = small.replace("range(3000)", "range(60)"), None
    (tmp_path / "sample.py").write_text(code, encoding="utf-8")
    printed = run(["sample.py"], tmp_path)
    assert small == code or len(re.findall(r"^\d+: worth ", printed, re.MULTILINE)) == 2
    assert shown is None or printed.strip("\n") == shown.strip("\n")


def gate_commands():
    for page in (page for page in PAGES if page not in TUTORIALS):
        pattern = r"^```sh\npython (-m agent_gym\.gate [^\n]*)\n```\n+```text\n(.*?)^```$"
        for found in re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            yield pytest.param(found[1], found[2], id=found[1].split("gate ")[1])


@pytest.mark.parametrize(("command", "shown"), list(gate_commands()))
def test_gate_commands_print_what_the_page_shows(command, shown, tmp_path):
    if "bfcl" in command and not (find_spec("bfcl_eval") and find_spec("mpmath")):
        pytest.skip("the tasks are in the package bfcl-eval")
    assert run(shlex.split(command), tmp_path) == shown


@pytest.mark.parametrize(
    ("text", "page", "most"),
    [(OWN_DOMAIN, "api_agent.md", 40), (OWN_ENVIRONMENT, "own_environment.md", 60), (REINFORCE, "lm.md", 61)],
)
def test_own_code_is_on_the_page_and_short(text, page, most):
    page = (DOCS / page).read_text(encoding="utf-8")
    assert f"```python\n{text}```" in page
    code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(('"""', "#"))]
    assert len(code) < most
    assert f"{len(code)} lines of code" in page


def test_own_environment_is_sound_in_every_format(tmp_path):
    code = """
import gymnasium as gym
import own_environment
from gymnasium.utils.env_checker import check_env
from agent_gym import PARSERS
from agent_gym.gate import gate_task

for parser in PARSERS:
    env = gym.make("Safe-v0", parser=parser)
    check_env(env.unwrapped)
    for id, digest in env.unwrapped.task_list(20, 0):
        assert not gate_task(env, id, 0), (id, gate_task(env, id, 0))
    print(len(env.unwrapped.task_list(20, 0)))
"""
    assert run(["-W", "ignore", "-c", code], tmp_path).split() == ["20"] * 5


def test_own_domain_registers_itself_with_sound_tasks(tmp_path):
    code = """
import gymnasium as gym
import own_domain
from agent_gym.envs.api_agent.domain import DOMAINS
from agent_gym.gate import gate_task

assert DOMAINS["library"] is own_domain.library
for split in ("train", "validation", "test"):
    env, ids = gym.make("APIAgent-v0", domains=["library"], split=split), set()
    for seed in range(40):
        task_id = env.reset(seed=seed)[1]["task_id"]
        assert task_id.startswith(split)
        assert not gate_task(env, task_id, seed), (task_id, gate_task(env, task_id, seed))
        ids.add(task_id)
    print(len(ids))
"""
    assert run(["-c", code], tmp_path).split() == ["40", "40", "40"]


def test_tool_table_follows_the_code():
    page = (DOCS / "api_agent.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| (\w+) \| `(\w+)\(([^)]*)\)` \| (yes|no) \| (\d+) \+ (\d+) \|", page, re.MULTILINE))
    assert rows == {
        (
            name,
            tool.name,
            ", ".join(tool.parameters),
            "yes" if tool.reads_only else "no",
            f"{tool.latency.base_ms:.0f}",
            f"{tool.latency.per_unit_ms:.0f}",
        )
        for name in NAMES
        for tool in DOMAINS[name].tools.values()
    }


def test_goal_table_follows_the_code():
    page = (DOCS / "api_agent.md").read_text(encoding="utf-8")
    for name in NAMES:
        for goal in DOMAINS[name].goals:
            ways = ", ".join(f"{way} {calls}" for way, calls in goal.by.items())
            assert f"`{goal.build.__name__}` ({ways})" in page
        for source in DOMAINS[name].sources:
            assert f"`{source.build.__name__}` ({source.type})" in page


GROUPS = {"Args": "", "Common": "", "Budget": "budget.", "Credit": "credit.", "Dual": "dual.", "WarmStart": "warm."}
LM = ROOT / "agent_gym" / "lm"
FLAGS = {**{name: [code] for name, code in TRAINERS.items()}, "lm": [
    (LM / name).read_text(encoding="utf-8") for name in ("arguments.py", "budget.py", "demonstrations.py")
]}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_flag_table_follows_the_code(name):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `--([\w.-]+)` \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    found = []
    for node in (node for code in FLAGS[name] for node in ast.parse(code).body):
        if not isinstance(node, ast.ClassDef) or node.name not in GROUPS:
            continue
        for field, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.value).startswith("field("):
                flag = GROUPS[node.name] + field.target.id.replace("_", "-")
                default = ast.unparse(field.value)
                default = {"CHANNELS": "all four", "None": "none"}.get(default, f"`{default}`")
                found.append((flag, default, " ".join(doc.value.value.split())))
    assert sorted(listed) == sorted(found)


def test_every_logged_metric_is_explained():
    """What a run of the trainer writes is what the page lists."""
    page = (DOCS / "ppo_c3rl.md").read_text(encoding="utf-8")
    kinds = "charts|cost|violation|lambda|budget|losses|credit|validation|seconds|speed|memory"
    explained = {
        name
        for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for name in re.findall(rf"`((?:{kinds})/\w+)`", row)
    }
    code = TRAINERS["ppo_c3rl"]
    literal = set(re.findall(rf'"((?:{kinds})/\w+)"', code))
    by_channel = {f"{kind}/{k}" for kind in re.findall(r'rows?\[f"(\w+)/\{channel\}"\]', code) for k in CHANNELS}
    summed = set(
        re.findall(r'"(\w+)": [^,]*\.sum\(\)', code[code.index("def policy_loss") : code.index("class Critic")])
    )
    assert {"policy_loss", "ratio"} <= summed
    assert explained == literal | by_channel | {f"losses/{name}" for name in (*summed, "grad_norm")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]*)(?:#([\w-]+))?\)", re.sub(FENCE, "", text)):
        if target.startswith("https://"):
            continue  # nothing outside can be looked at here
        file = page.parent / target if target else page
        assert file.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", re.sub(FENCE, "", file.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_code_agent_tool_table_follows_the_code():
    page = (DOCS / "code_agent.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\(([^)]*)\)` \| (yes|no) \| (\d+) \+ ([\d.]+) ", page, re.MULTILINE)
    assert set(rows) == {
        (
            tool.name,
            ", ".join(tool.parameters),
            "yes" if tool.reads_only else "no",
            f"{tool.latency.base_ms:.0f}",
            f"{tool.latency.per_unit_ms:g}",
        )
        for tool in CODE_TOOLS.values()
    }


def test_presets_table_follows_the_code():
    pytest.importorskip("torch", reason="the presets need the extra 'train'")
    from agent_gym.lm.tiny import PRESETS

    page = (DOCS / "lm.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+-v0)` \| `(\{.*?\})` \| ([\d.,none ]+) \| (\d+), (\d+) \|$", page, re.MULTILINE)
    assert rows == [
        (
            env_id,
            json.dumps(preset.env_kwargs),
            ", ".join(str(preset.budget.get(k, "none")) for k in CHANNELS),
            str(preset.demonstrations),
            str(preset.updates),
        )
        for env_id, preset in PRESETS.items()
    ]


def test_the_library_knows_no_algorithm():
    """No word of one in agent_gym.lm; what is drawn has the names of the figures that trainers log."""
    words = r"advantage|clip_low|clip_high|dual_clip|\blambda\b|policy_loss|reward_loss|pcgrad|grpo|\bppo\b"
    for path in LM.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        code = "\n".join(line for line in text.splitlines() if "lambda/" not in line and "lambda " not in line)
        if path.name != "figures.py":
            assert not re.search(words, code, re.IGNORECASE), path.name
        assert "cleanrl_llm" not in text, path.name


def test_trainers_import_no_other_trainer():
    for name, code in TRAINERS.items():
        for node in ast.walk(ast.parse(code)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {part for found in names for part in found.split(".")} & set(TRAINERS), name
