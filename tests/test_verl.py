"""The environments as verl's agent loop worker plays them, on a processor: verl's own configuration, worker and
batches, and a server that writes what the test says. Without the package verl these tests are skipped, unless
AGENT_GYM_REQUIRE_VERL=1."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from adapters import adapter, sample
from sandbox_backends import require
from shop_play import call

import agent_gym

ROOT = Path(__file__).parents[1]
KWARGS = {
    "APIAgent-v0": {"domains": ["shop"], "budget": {"tool_calls": 3}, "on_budget": "record"},
    "SQL-v0": {"tasks": "SQL-mini-v1"},
    "WebLite-v0": {},
    "CodeAgent-v0": {"sandbox": "bubblewrap"},
}


@pytest.fixture(scope="module")
def verl():
    return adapter("verl", "verl")


@pytest.fixture(scope="module")
def model(verl, tmp_path_factory):
    """A folder with a tokenizer, its template, and the configuration of a small model."""
    from chat_templates import CASES, tokenizer
    from transformers import Qwen3Config

    folder = tmp_path_factory.mktemp("model")
    words = tokenizer(CASES["Qwen3"])
    words.pad_token = "<|endoftext|>"
    words.save_pretrained(folder)
    Qwen3Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


class Server:
    """Writes given turns: a list for each episode, found by the task's request in the prompt."""

    def __init__(self, chat, script):
        self.chat, self.script, self.turns, self.asked = chat, script, {}, []
        self.cut = 0  # turns that stop before their end

    async def generate(self, request_id, *, prompt_ids, sampling_params):
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append((request_id, list(prompt_ids), sampling_params))
        text = self.chat.tokenizer.decode(prompt_ids)
        number = self.turns[request_id] = self.turns.get(request_id, -1) + 1
        actions = next(actions for request, actions in self.script.items() if request in text)
        ids = self.chat.spelled(actions[number])[: sampling_params["max_tokens"]]
        ids = ids[:-1] if number < self.cut else ids
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed")


@pytest.fixture
def worker(verl, model, tmp_path):
    """Makes verl's worker for an environment, with a server."""
    from hydra import compose, initialize_config_module
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    def make(env_id, script, **changes):
        loops = tmp_path / "loops.yaml"
        loops.write_text(
            json.dumps(
                [
                    {
                        "name": "agent_gym", "_target_": "agent_gym.integrations.verl.AgentGymLoop", "env_id": env_id,
                        "env_kwargs": KWARGS[env_id],
                    }
                ]
            )
        )  # fmt: skip
        rollout = {
            "name": "vllm", "prompt_length": 16384, "response_length": 16384, "calculate_log_probs": True, **changes
        }  # fmt: skip
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose(
                "ppo_trainer",
                [
                    f"actor_rollout_ref.model.path={model}",
                    "data.max_prompt_length=16384",
                    f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
                    *(f"actor_rollout_ref.rollout.{name}={value}" for name, value in rollout.items()),
                ],
            )
        made = AgentLoopWorker(config, llm_client=None)
        made.llm_client = Server(verl._chat(made.tokenizer), script)
        return made

    return make


def batch(worker, rows, folder):
    """Rows of a data set as verl reads them and hands them to a worker."""
    from verl import DataProto
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    read = RLHFDataset(str(path), worker.tokenizer, worker.config.data)
    assert len(read) == len(rows)
    return DataProto.from_single_dict(collate_fn([read[at] for at in range(len(read))]))


def rows_of(verl, env_id, path, n=2):
    verl.write_dataset(path, env_id, n, **KWARGS[env_id])
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("env_id", KWARGS)
def test_the_same_episodes_as_through_gym_make(verl, worker, env_id, tmp_path):
    if env_id == "WebLite-v0":
        pytest.importorskip("selectolax")
    if env_id == "CodeAgent-v0":
        require("bubblewrap")
    rows = rows_of(verl, env_id, tmp_path / "train.jsonl")
    made = worker(env_id, script := {})
    chat = made.llm_client.chat
    direct = gym.make(env_id, **KWARGS[env_id], parser=chat.parser, token_counter=chat.count)
    expected = []
    for row in rows:
        request, told = direct.reset(options={"task": row["extra_info"]["task"]})
        assert told["task_hash"] == row["extra_info"]["task_hash"]
        script[row["prompt"][1]["content"]] = [call("invented", x=1), *direct.unwrapped.oracle()]
        turns = [direct.step(action) for action in script[request]]
        expected.append((turns[-1][1], turns[-1][-1]["cost_total"], [turn[0] for turn in turns[:-1]]))
    direct.close()
    found = asyncio.run(made.generate_sequences(batch(made, rows, tmp_path)))
    for at, (reward, cost, heard) in enumerate(expected):
        assert found.batch["rm_scores"][at].sum().item() == reward == 1.0
        told = {name: found.non_tensor_batch[name][at] for name in found.meta_info["reward_extra_keys"]}
        assert told.items() >= {"success": 1.0, "turns": len(heard) + 1.0, **cost}.items()
        mask = found.batch["response_mask"][at].bool()
        written = found.batch["responses"][at][mask].tolist()
        assert written == [id for action in script[rows[at]["prompt"][1]["content"]] for id in chat.spelled(action)]
        assert found.batch["rollout_log_probs"][at][mask].unique().tolist() == [-0.5]
        length = int(found.batch["attention_mask"][at][16384:].sum())
        whole = made.tokenizer.decode(found.batch["responses"][at][:length])
        assert "there is no tool 'invented'" in whole
        for text in heard:
            assert all(line in whole for line in text.split("\n"))
    for request, prompt, _ in made.llm_client.asked:  # each prompt goes on where the last one ended
        earlier = [ids for other, ids, _ in made.llm_client.asked if other == request and len(ids) < len(prompt)]
        assert all(prompt[: len(ids)] == ids for ids in earlier)


def test_an_episode_that_outgrows_the_response_fails(verl, worker, tmp_path):
    rows = rows_of(verl, "APIAgent-v0", tmp_path / "train.jsonl", 1)
    made = worker("APIAgent-v0", {"": [call("list_orders"), "x" * 500]}, response_length=40)
    found = asyncio.run(made.generate_sequences(batch(made, rows, tmp_path)))
    assert found.batch["responses"].shape == (1, 40)
    assert found.batch["rm_scores"].sum().item() == 0.0
    assert found.non_tensor_batch["success"].tolist() == [0.0]
    assert found.non_tensor_batch["turns"].tolist() == [1.0]


def test_a_turn_without_an_end_is_cut(verl, worker, tmp_path):
    rows = rows_of(verl, "APIAgent-v0", tmp_path / "train.jsonl", 1)
    made = worker("APIAgent-v0", {"": [call("list_orders"), "Done."]})
    made.llm_client.cut = 1
    found = asyncio.run(made.generate_sequences(batch(made, rows, tmp_path)))
    length = int(found.batch["attention_mask"][0][16384:].sum())
    whole = made.tokenizer.decode(found.batch["responses"][0][:length])
    assert "the turn was cut before its end" in whole
    assert '"customer"' not in whole  # it did not run
    mask = found.batch["response_mask"][0].bool()
    assert made.llm_client.chat.text(found.batch["responses"][0][mask].tolist()[-2:]).endswith(".")
    assert whole.count("<|im_end|>") == 3  # the turn's was added, unmasked: its own, the answer's, the last turn's
    assert found.batch["responses"][0][mask].tolist().count(made.llm_client.chat.eos) == 1


def test_mistakes_are_told(verl, worker, tmp_path, monkeypatch):
    (row,) = rows_of(verl, "APIAgent-v0", tmp_path / "train.jsonl", 1)
    made = worker("APIAgent-v0", {"": ["Done."]})

    def told(changes):
        wrong = batch(made, [{**row, "extra_info": {**row["extra_info"], **changes}}], tmp_path)
        with pytest.raises(ValueError) as error:
            asyncio.run(made.generate_sequences(wrong))
        return str(error.value)

    assert "give the loop the arguments that it was written with" in told({"task_hash": "0" * 32})
    assert "unknown task id 'nope'" in told({"task": "nope"})
    for env_id, kwargs, error, says in (
        ("APIAgent-v9", {}, gym.error.Error, "APIAgent"),
        ("SQL-v0", {"tasks": "SQL-mini-v9"}, ValueError, "SQL-mini-v9"),
    ):
        with pytest.raises(error, match=says):
            verl.write_dataset(tmp_path / "other.jsonl", env_id, 1, **kwargs)
    with pytest.raises(ValueError, match=r"train\.csv: the data set is written as JSON lines"):
        verl.write_dataset(tmp_path / "train.csv", "APIAgent-v0", 1)
    short = worker("APIAgent-v0", {"": ["Done."]}, prompt_length=20)
    with pytest.raises(ValueError, match=r"tokens, more than rollout\.prompt_length, 20"):
        asyncio.run(short.generate_sequences(batch(short, [row], tmp_path)))


def test_the_reward_function_plays_a_single_turn(verl):
    env = gym.make("APIAgent-v0", domains=["shop"], difficulty=1)
    _, info = env.reset(seed=5)
    oracle, task = env.unwrapped.oracle(), {"task": info["task_id"]}
    assert len(oracle) == 2
    whole = f"{oracle[0]}\n{call('submit', answer=oracle[1])}"
    kwargs = {"domains": ["shop"], "difficulty": 1, "budget": {"tool_calls": 1}, "on_budget": "record"}
    for solution, score in ((whole, 1.0), (oracle[0], 0.0), ("Done.", 0.0)):
        found = verl.compute_score("APIAgent-v0", solution, "", task, **kwargs)
        assert (found["score"], found["success"]) == (score, score)
        assert found["in_budget_success"] == 0.0
    assert verl.compute_score("APIAgent-v0", whole, "", task, domains=["shop"])["in_budget_success"] == 1.0


def test_there_is_no_reward_without_a_verdict(verl, worker, tmp_path, monkeypatch):
    from agent_gym.envs.api_agent.env import APIAgentEnv

    rows = rows_of(verl, "APIAgent-v0", tmp_path / "train.jsonl", 1)

    def broken(self, answer):
        raise agent_gym.InfraError("the machinery failed")

    monkeypatch.setattr(APIAgentEnv, "_verify", broken)
    made = worker("APIAgent-v0", {"": ["Done."]})
    with pytest.raises(agent_gym.InfraError, match="the machinery failed"):
        asyncio.run(made.generate_sequences(batch(made, rows, tmp_path)))
    with pytest.raises(agent_gym.InfraError, match="the machinery failed"):
        verl.compute_score("APIAgent-v0", "Done.", "", rows[0]["extra_info"])


def test_a_missing_package_is_named(monkeypatch):
    pytest.importorskip("transformers")
    for name in [name for name in sys.modules if name == "verl" or name.startswith("verl.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "verl", None)
    monkeypatch.delitem(sys.modules, "agent_gym.integrations.verl", raising=False)
    with pytest.raises(ImportError, match="needs verl: pip install verl"):
        importlib.import_module("agent_gym.integrations.verl")


def test_the_sample_of_the_page_prints_what_it_shows(verl, tmp_path):
    done, shown = sample("verl.md", tmp_path)
    assert done.stdout == shown, done.stderr
