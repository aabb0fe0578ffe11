"""What the trainers' tests share: a small model, scripted turns, runs of a trainer in this process and in others."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_gym.lm import tiny
from agent_gym.lm.chat import Chat
from agent_gym.lm.engine import Turn
from agent_gym.lm.models import Model

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("seconds/", "speed/", "memory/")


def load_trainer(name):
    """A file of cleanrl_llm as a module, the same one to all: pickle asks for it by name."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "cleanrl_llm" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def small_model(texts, seed=1):
    """Two layers of width 32 that have learnt nothing."""
    tokenizer = tiny.tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.06,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(LlamaForCausalLM(config), tokenizer, name="tiny", adapters=0)


def chat_of(model):
    return Chat(model.tokenizer, stops=model.stops, sees_tools=False)


class Scripted:
    """An engine whose rows write given turns: ``texts[key]`` are those of row ``key``."""

    def __init__(self, chat, texts, logprobs=None):
        self.chat, self.texts, self.logprobs = chat, texts, logprobs
        self.turns, self.queue = {}, []

    def submit(self, key, ids, most, seed):
        self.queue.append(key)

    def step(self):
        queue, self.queue = self.queue, []
        return [self._turn(key) for key in queue]

    def _turn(self, key):
        number = self.turns[key] = self.turns.get(key, -1) + 1
        ids = self.chat.spelled(self.texts[key][number])
        value = self.logprobs[key][number] if self.logprobs else -0.5
        return Turn(key, ids, [value] * len(ids), True)

    def update(self, model):
        pass

    def release(self, keys):
        pass


def shell(**more):
    """The environment of a subprocess: this checkout, one thread, no network."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **more}


def ended(command, *line, cwd):
    """Run a command to its good end."""
    line = [*command, *map(str, line)]
    done = subprocess.run(line, env=shell(), cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return done


def torchrun(count, *line, cwd):
    """Run a script with its arguments in ``count`` processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return ended(command, *line, cwd=cwd)


FORKS = """
import multiprocessing, os, runpy, socket, sys
import agent_gym.lm.start, matplotlib.pyplot, torch.utils.tensorboard
from transformers import LlamaForCausalLM

count = int(sys.argv[1])
sys.argv = sys.argv[2:]
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = str(free.getsockname()[1])


def process(rank):
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, **own}
    runpy.run_path(sys.argv[0], run_name="__main__")


fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=process, args=(rank,)) for rank in range(count)]
for one in processes:
    one.start()
for one in processes:
    one.join()
sys.exit(any(one.exitcode for one in processes))
"""


def processes(count, *line, cwd):
    """Run a script with its arguments in ``count`` processes, as torchrun does. They are forks of one that has imported
    what they need and computes nothing itself: most of their time would go into imports."""
    return ended([sys.executable, "-c", FORKS, str(count)], *line, cwd=cwd)


def rows(folder):
    """The metrics, without what depends on the clock; neither NaN nor infinity is JSON."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    return [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in read]


def run(trainer, args):
    """``train`` in this process; its run folder."""
    before = set(Path(args.run_dir).glob("*"))
    trainer.train(args)
    (folder,) = set(Path(args.run_dir).glob("*")) - before
    return folder
