"""agent_gym.lm.overlap: which weights play a batch ahead, and what ends its thread; runs of two trainers with it."""

import copy
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="agent_gym.lm needs the extra 'train'")
transformers = pytest.importorskip("transformers", reason="agent_gym.lm needs the extra 'train'")

from small_lm import ROOT, chat_of, load_trainer, rows, run, shell, small_model  # noqa: E402

from agent_gym.lm.demonstrations import WarmStart, demonstrations, encoded, warm_start  # noqa: E402
from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.models import Model, token_logprobs  # noqa: E402
from agent_gym.lm.overlap import Rollouts  # noqa: E402
from agent_gym.lm.ranks import Ranks  # noqa: E402
from agent_gym.lm.rollout import Limits, environments, play  # noqa: E402
from agent_gym.lm.runs import arguments as parse  # noqa: E402

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # a small environment is there, and gym.make finds it by name
import conflict_demo as demo  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(adapters=0):
    config = transformers.LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                      num_attention_heads=1, bos_token_id=None, eos_token_id=1)  # fmt: skip
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config)
    if adapters:
        peft = pytest.importorskip("peft")
        net = peft.get_peft_model(net, peft.LoraConfig(r=adapters, target_modules="all-linear"))
    return Model(net, SimpleNamespace(eos_token_id=1, pad_token_id=0), "small", adapters=adapters)


def learn(model):
    """An update that can be counted afterwards."""
    with torch.no_grad():
        for p in model.trained():
            p.add_(1.0)


class Counter:
    """An engine that knows by how many updates its weights are away from those it began with."""

    def __init__(self, model):
        self.start, self.told = model.trained()[0].flatten()[0].item(), []
        self.model = model

    def update(self, model):
        self.model = model
        self.told.append(self.count())

    def count(self):
        return round(self.model.trained()[0].flatten()[0].item() - self.start)


def counted(engine):
    """A batch that says how often the policy that played it had been updated, when it began and when it ended."""

    def roll_out(iteration):
        begun = engine.count()
        time.sleep(0.02 * (iteration % 2))  # an update may be over before the batch, or after it
        return [begun, engine.count()]

    return roll_out


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rollout")]


@pytest.mark.parametrize("adapters", [0, 2])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_batch_ahead_is_played_by_a_policy_one_update_older(ahead, adapters):
    model = model_of(adapters)
    engine = Counter(model)
    rollouts = Rollouts(engine, model, counted(engine), 5, ahead=ahead)
    found, tested = [], []
    for i in rollouts.over(range(5)):
        found.append(rollouts.take(i))
        time.sleep(0.01)
        learn(model)
        rollouts.updated()
        if i in (1, 4):
            rollouts.settle()
            tested.append(engine.count())
    assert found == [[n, n] for n in ([0, 0, 1, 2, 3] if ahead else range(5))]
    assert tested == [2, 5]  # a test sees the policy as it is
    assert engine.told == ([0, 0, 1, 2, 2, 3, 5] if ahead else [1, 2, 3, 4, 5])
    assert not threads()


def test_a_resumed_loop_plays_the_batch_ahead_again():
    model = model_of()
    engine = Counter(model)
    rollouts = Rollouts(engine, model, counted(engine), 9, ahead=True)
    for i in rollouts.over(range(3)):
        rollouts.take(i)
        learn(model)
    state, model = copy.deepcopy(rollouts.state()), copy.deepcopy(model)
    again = Rollouts(engine, model, counted(engine), 9, ahead=True)
    again.restore(state)
    found = []
    for i in again.over(range(3, 6)):
        found.append(again.take(i)[0])
        learn(model)
    assert found == [2, 3, 4]


@pytest.mark.parametrize("adapters", [0, 2])
def test_a_twin_has_its_own_trained_weights_and_shares_the_rest(adapters):
    def logprobs(one):
        with torch.no_grad():
            return token_logprobs(one, [[3, 4, 5, 6]], [[(1, 4)]]).logprobs

    model = model_of(adapters)
    model.freeze_reference()
    twin, before = model.twin(), logprobs(model)
    learn(model)
    torch.testing.assert_close(logprobs(twin), before, rtol=0, atol=0)
    assert (logprobs(model) - before).abs().max() > 1e-3
    with model.reference():  # which switches adapters: not those of the twin
        torch.testing.assert_close(logprobs(twin), before, rtol=0, atol=0)
    twin.follow(model.trained())
    torch.testing.assert_close(logprobs(twin), logprobs(model), rtol=0, atol=0)
    own = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert own == {p.data_ptr() for p in model.parameters() if not p.requires_grad}


# ---- the end of the thread ----


def test_an_error_in_the_thread_ends_the_loop_with_its_own_words():
    def roll_out(iteration):
        if iteration == 2:
            raise Refused("the third batch cannot be played")
        return [iteration]

    model = model_of()
    rollouts, taken = Rollouts(Counter(model), model, roll_out, 9, ahead=True), []
    with pytest.raises(Refused, match="the third batch cannot be played"):  # noqa: PT012
        for i in rollouts.over(range(9)):
            taken += rollouts.take(i)
    assert taken == [0, 1]
    assert not threads()


class Endless:
    """An engine whose turns do not end."""

    def __init__(self):
        self.rows = set()

    def submit(self, key, ids, most, seed):
        self.rows.add(key)

    def step(self):
        time.sleep(0.005)
        return []

    def update(self, model):
        pass

    def release(self, keys):
        self.rows -= set(keys)


@pytest.fixture
def interruptible():
    """A background job is started with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("learning", [True, False])
def test_an_interrupt_ends_the_loop_and_the_batch_ahead(policy, learning):
    """While the training thread learns, and while it waits."""
    chat, engine = chat_of(policy), Endless()
    envs = environments(demo.MIXED, 2, chat=chat, split="train", bounds={}, max_turns=4)

    def roll_out(iteration):
        return iteration and play(engine, chat, envs, [1, 2], Limits(12, 96), draws=[1, 2], stop=rollouts.stop)

    rollouts = Rollouts(engine, policy, roll_out, 9, ahead=True)
    late = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for i in rollouts.over(range(9)):
            rollouts.take(i)
            while learning and len(engine.rows) < 2:
                time.sleep(0.005)
            signal.raise_signal(signal.SIGINT) if learning else late.start()
    assert not threads()
    assert not engine.rows


# ---- runs ----

KWARGS = '{"max_turns": 4}'
SMALL = {
    "device": "cpu", "max_new_tokens": 12, "max_context": 96, "group_size": 4, "seed": 3, "total_iterations": 4,
    "learning_rate": 3e-3, "checkpoint_every": 2, "eval_every": 2, "async_rollouts": True,
}  # fmt: skip
OWN = {
    "ppo_c3rl": {
        "env_id": demo.MIXED, "env_kwargs": KWARGS, "num_episodes": 16, "eval_episodes": 3,
        "anneal_lr": False,  # or a run that ends elsewhere has other learning rates from the start
    },
    "grpo_pcgrad": {
        "env_id": (demo.MIXED,), "env_kwargs": (KWARGS,), "num_episodes": 24, "eval_tasks": 2, "eval_samples": 2,
        "eval_every_samples": 1, "pool_tasks": 12, "calibration_samples": 2, "groups": 2, "method": "resample",
        "update_epochs": 2, "eval_every": 3,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    """A small policy that packs as it should, and takes road and air equally often."""
    (env,) = environments(demo.MIXED, 1, chat=None, split="train", bounds={}, max_turns=4)
    dialogues = demonstrations(env, range(200), wasteful=0.0, waste=0.0)
    model = small_model(text for dialogue in dialogues for text in dialogue.texts)
    examples = [encoded(chat_of(model), dialogue) for dialogue in dialogues]
    warm = WarmStart(updates=120, batch_size=16, lr=1e-2)
    warm_start(model, examples, warm, context=128, most_tokens=8192, seed=1, ranks=Ranks())
    return model


@pytest.fixture(scope="module")
def start(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "start"
    policy.save(folder)
    return str(folder)


def arguments(name, **changes):
    return load_trainer(name).Args(model="tiny", **{**SMALL, **OWN[name], **changes})


@pytest.fixture(scope="module", params=OWN)
def finished(request, start, tmp_path_factory):
    """A trainer, and the folder of a run that nobody disturbed."""
    trainer, run_dir = load_trainer(request.param), tmp_path_factory.mktemp(request.param)
    return trainer, run(trainer, arguments(request.param, init=start, run_dir=str(run_dir)))


def test_staleness_of_one_is_corrected_by_the_importance_weights(finished):
    _, folder = finished
    first, *later = rows(folder)
    assert first["losses/sampler_gap_max"] < 1e-4
    assert first["losses/importance_mean"] == pytest.approx(1.0, abs=1e-5)
    assert len(later) == 3
    for row in later:
        assert row["losses/sampler_gap_mean"] > 1e-4
        assert row["losses/importance_mean"] != pytest.approx(1.0, abs=1e-6)
    assert all(0.0 <= row["charts/success"] <= 1.0 for row in rows(folder))


def test_a_run_in_two_pieces_has_the_bytes_of_one(finished, start, tmp_path):
    """The first ends with a batch ahead, which is thrown away; the second plays it with the weights of the checkpoint,
    which are older than the policy's."""
    trainer, folder = finished
    first, second, *_ = (row["charts/generated_tokens"] for row in rows(folder))
    enough = round(first + second) // 2
    half = run(trainer, arguments(trainer.__name__, init=start, run_dir=str(tmp_path), total_tokens=enough))
    assert [row["iteration"] for row in rows(half)] == [0, 1]
    extends = ("total_iterations", "total_tokens")
    trainer.train(parse(trainer.Args, ["--resume", str(half), "--total-tokens", "1000000"], extends))
    assert rows(half) == rows(folder)
    name = "checkpoints/iteration_000004/model.safetensors"
    assert (half / name).read_bytes() == (folder / name).read_bytes()


TWO = """
import multiprocessing, os, pickle, socket, sys, threading
sys.path[:0] = sys.argv[1:3]
import test_lm_overlap as t  # once: the processes are forks of this one, which computes nothing itself
t.torch.set_num_threads(1)
trainers = {name: t.load_trainer(name) for name in t.OWN}
dist, asked = t.torch.distributed, set()


def noted(name):
    made = getattr(dist, name)

    def collective(*args, **kwargs):
        asked.add((name, threading.current_thread() is threading.main_thread()))
        return made(*args, **kwargs)

    return collective


def process(rank, port):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
    for name in ("all_reduce", "all_gather_object", "broadcast", "barrier"):
        setattr(dist, name, noted(name))
    with open(sys.argv[3], "rb") as file:
        for name, args in pickle.load(file).items():
            trainers[name].train(args)
    assert asked == {("all_reduce", True), ("all_gather_object", True)}, asked
    t.Ranks.stop()


with socket.socket() as free:
    free.bind(("localhost", 0))
    port = str(free.getsockname()[1])
fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=process, args=(rank, port)) for rank in range(2)]
for one in processes:
    one.start()
for one in processes:
    one.join()
assert all(one.exitcode == 0 for one in processes)
"""


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    """The folders of what two processes make of the first iterations of both runs."""
    folder = tmp_path_factory.mktemp("two")
    args = {name: arguments(name, init=start, run_dir=str(folder / name), total_iterations=3) for name in OWN}
    (folder / "args").write_bytes(pickle.dumps(args))
    line = [sys.executable, "-c", TWO, str(ROOT / "tests"), str(BENCHMARKS), str(folder / "args")]
    done = subprocess.run(line, env=shell(), cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: next((folder / name).glob("*/")) for name in OWN}


def test_two_processes_play_the_run_of_one(finished, two):
    """Up to rounding. All collective calls are the training thread's."""
    trainer, folder = finished
    first, second = rows(folder)[:3], rows(two[trainer.__name__])
    assert len(second) == 3
    for a, b in zip(first, second, strict=True):
        for name in a.keys() & b.keys():
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-3), name


def test_fresh_samples_have_no_engine(start, tmp_path):
    args = arguments("ppo_c3rl", init=start, run_dir=str(tmp_path))
    credit = replace(args.credit, mode="leave-one-out", interventions=("replace",))
    with pytest.raises(Refused, match=r"--credit\.interventions replace samples too"):
        load_trainer("ppo_c3rl").train(replace(args, credit=credit))
