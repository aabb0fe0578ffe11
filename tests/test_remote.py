"""Environments, replays and sandboxes in Ray actors. A stand-in in this process runs what the actors would; the tests
on a cluster are skipped where there is no Ray, unless there is AGENT_GYM_REQUIRE_RAY=1."""

import importlib
import importlib.util
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.machinery import ModuleSpec
from multiprocessing import get_context
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
from small_lm import load_trainer, rows, run

import agent_gym
from agent_gym import PARSERS, Delete, InfraError, Truncate, counterfactuals, tool_env
from agent_gym.lm.engine import Turn
from agent_gym.lm.rollout import Branch, Limits, environments, play
from agent_gym.sandbox.pool import Pool
from agent_gym.wrappers import RecordTrajectory

PATIENCE = {  # a busy machine is no fault of the code
    "gcs_rpc_server_connect_timeout_s": 300, "gcs_server_request_timeout_seconds": 300,
    "health_check_timeout_ms": 60_000, "raylet_client_connect_timeout_milliseconds": 300_000,
    "worker_register_timeout_seconds": 300, "enable_metrics_collection": 0,
}  # fmt: skip
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
END = 0


class StandIn(ModuleType):
    """Actors that run in this process, one at a time. One that is dead has no answer, also to what it has just done."""

    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        pass

    lock = threading.Lock()

    def remote(self, **options):
        return lambda kind: SimpleNamespace(remote=lambda: self.actor(kind()))

    def actor(self, thing):
        made = SimpleNamespace(dead=False)

        def run(function, args, kwargs):
            with self.lock:
                made.dead |= function is os._exit
                found = None if made.dead else pickle.loads(pickle.dumps(thing.run(function, args, kwargs)))
            if made.dead:
                raise self.RayError("the actor died")
            return found

        made.run = SimpleNamespace(remote=lambda *args: lambda: run(*args))
        return made

    def get(self, reference):
        return [one() for one in reference] if isinstance(reference, list) else reference()

    def put(self, value):
        reference = lambda: value  # noqa: E731
        reference.hex = lambda: str(id(reference))
        return reference

    def kill(self, actor):
        actor.dead = True


@pytest.fixture(scope="module")
def cluster():
    """A node with the driver; the last test adds two."""
    if importlib.util.find_spec("ray") is None and os.environ.get("AGENT_GYM_REQUIRE_RAY") != "1":
        pytest.skip("Ray is not installed")
    for name, value in PATIENCE.items():
        os.environ.setdefault(f"RAY_{name}", str(value))
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "no_monitor": True})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module", params=["stand-in", "cluster"])
def remote(request):
    """The module, above Ray or its stand-in."""
    modules = {}
    if request.param == "stand-in":
        modules["ray"] = modules["ray.exceptions"] = StandIn("ray")
        modules["ray"].__spec__ = ModuleSpec("ray", None)  # it can be found
    else:
        request.getfixturevalue("cluster")
    with mock.patch.dict(sys.modules, modules):
        sys.modules.pop("agent_gym.remote", None)
        yield importlib.import_module("agent_gym.remote")
        sys.modules.pop("agent_gym.remote")


@pytest.fixture(scope="module")
def executor(remote):
    with remote.RayExecutor(2) as made:
        yield made


def made(count, **kwargs):
    return environments("APIAgent-v0", count, chat=None, split="train", bounds={"tool_calls": 9}, **kwargs)


def far(envs, executor):
    return importlib.import_module("agent_gym.remote").RayEnvs(envs, executor)


class Letters:
    """A codec whose ids are characters."""

    parser = PARSERS["hermes"]

    def prompt(self, messages, tools):
        return [ord(one) for message in messages for one in message["content"]]

    def reply(self, messages, closed):
        return [ord(one) for message in messages for one in message["content"]]

    def text(self, ids):
        return "".join(map(chr, ids)).rstrip(chr(END))


class Oracle:
    """An engine that writes the oracle's turns."""

    def __init__(self, seeds):
        (env,) = made(1)
        self.turns, self.queue, self.released = {}, [], set()
        for key, seed in enumerate(seeds):
            env.reset(seed=seed)
            self.turns[key] = list(tool_env(env).oracle())

    def submit(self, key, ids, most, seed):
        self.queue.append(key)

    def step(self):
        queue, self.queue = self.queue, []
        texts = [self.turns[key].pop(0) for key in queue]
        rows = [[*map(ord, text), END] for text in texts]
        return [Turn(key, ids, [-0.5] * len(ids), True) for key, ids in zip(queue, rows, strict=True)]

    def update(self, model):
        pass

    def release(self, keys):
        self.released.update(keys)


def whole(episodes):
    """All that there is to an episode."""
    return [(e.index, e.trajectory(), e.ids, e.spans, e.cost_total, e.verdict) for e in episodes]


SEEDS = [11 * i for i in range(24)]
WIDE = Limits(new_tokens=10_000, context=100_000)


def played(envs, **more):
    return play(Oracle(SEEDS), Letters(), envs, SEEDS, WIDE, draws=SEEDS, workers=6, **more)


def test_a_remote_environment_does_what_a_local_one_does(executor):
    (local, other), remote = made(2), far(made(2), executor)
    assert len(remote) == 2
    assert remote[1].unwrapped.spec == local.unwrapped.spec
    for seed in (1, 2):
        assert remote[0].reset(seed=seed) == local.reset(seed=seed)
        for action in tool_env(local).oracle():
            before = agent_gym.snapshot(remote[0])
            outcome = local.step(action)
            assert remote[0].step(action) == outcome
            for env in (remote[1], other):  # others go on from there, here and elsewhere
                agent_gym.restore(env, before)
                assert env.step(action) == outcome
            assert tool_env(remote[1]).cost_total == outcome[4]["cost_total"]
    with pytest.raises(RuntimeError, match="no episode is running"):
        remote[0].step("more")
    assert remote[0].reset()[1]["task_id"] == local.reset()[1]["task_id"]  # the generator went on alike


def test_wrappers_stay_here(executor, tmp_path):
    (inner,) = far(made(1), executor)
    env = RecordTrajectory(inner, tmp_path / "episodes.jsonl")
    env.reset(seed=5)
    for action in tool_env(env).oracle():
        env.step(action)
    (recorded,) = agent_gym.read_trajectories(tmp_path / "episodes.jsonl")
    assert recorded.success


def test_environments_that_are_not_alike_are_refused(executor):
    with pytest.raises(ValueError, match="alike"):
        far([*made(1), *made(1, max_turns=3)], executor)


def test_an_environment_that_gym_did_not_make_is_refused(executor):
    (env,) = made(1)
    bare = env.unwrapped
    bare.spec = None
    with pytest.raises(ValueError, match=r"gym\.make"):
        far([bare], executor)


def test_what_a_call_raises_is_raised_here(executor):
    with pytest.raises(ZeroDivisionError):
        executor.run(divmod, 1, 0)
    assert executor.submit(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ValueError, match="workers=0"):
        type(executor)(0)


def test_replays_in_workers(executor):
    (env,) = made(1)
    trajectory = played(made(6))[3].trajectory()
    steps = len(trajectory.steps)
    interventions = [*map(Delete, range(steps)), *map(Truncate, range(steps - 1))]
    here = counterfactuals(env, trajectory, interventions)
    assert counterfactuals(env, trajectory, interventions, workers=executor) == here


SQUARE = "def square(x):\n    return x * x\n"


def check_pool(executor, path):
    wrong = SQUARE.replace("* x", "+ x")
    with Pool("process", slots=2, journal=path, executor=executor) as pool:
        answers = [pool.submit(source, "square", [((3,), 9)]) for source in (SQUARE, wrong, SQUARE)]
        assert [answer.result().reason for answer in answers] == ["passed", "wrong_answer", "passed"]
        assert answers[0].cpu_s > 0.0
    with Pool("process", journal=path) as pool:
        assert pool.check(SQUARE, "square", [((3,), 9)]) == answers[0].result()


SHORT = {
    "ppo_c3rl": {"num_episodes": 8, "total_iterations": 1, "eval_episodes": 4, "eval_start": False, "log_every": 1},
    "grpo_pcgrad": {"num_episodes": 8, "group_size": 4, "total_iterations": 1, "pool_tasks": 4, "eval_tasks": 4,
                    "eval_samples": 1, "eval_start": False},
    "rft": {"rounds": 1, "tasks_per_round": 2, "keep": "pruned-any", "eval_episodes": 4, "pass_tasks": 1},
}  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SHORT)
def test_a_trainer_plays_in_workers(remote, name, tmp_path):
    trainer, ran = load_trainer(name), Counter()
    inner = remote.RayExecutor.run

    def counted(executor, function, *args, **kwargs):
        ran[executor.workers] += 1
        return inner(executor, function, *args, **kwargs)

    here, there = (trainer.Args(**SHORT[name], ray_workers=n, run_dir=str(tmp_path / str(n))) for n in (0, 2))
    expected = rows(run(trainer, here))
    with mock.patch.object(remote.RayExecutor, "run", counted):
        assert rows(run(trainer, there)) == expected
    assert list(ran) == [2]
    assert ran[2] > 20  # resets and steps
    remote.shared_executor(2).shutdown()
    remote.shared_executor.cache_clear()


def test_sandboxes_in_workers(executor, tmp_path):
    check_pool(executor, tmp_path / "journal")


def test_sandboxes_in_processes(tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        check_pool(executor, tmp_path / "journal")


class Gone:
    """An executor whose workers die."""

    def submit(self, function, *args):
        future = Future()
        future.set_exception(InfraError("5 workers in a row died"))
        return future


def test_a_check_whose_workers_die_has_no_verdict():
    with Pool("process", slots=1, executor=Gone()) as pool:
        verdict = pool.check(SQUARE, "square", [((3,), 9)])
    assert (verdict.status, verdict.diagnostics) == ("infra", ("5 workers in a row died",))


def test_a_call_that_takes_its_workers_down_ends_with_a_sentence(remote):
    with remote.RayExecutor(1) as executor:
        with pytest.raises(InfraError, match="workers in a row died at _exit"):
            executor.run(os._exit, 1)
        assert executor.replaced == remote.ATTEMPTS
        assert executor.run(divmod, 7, 2) == (3, 1)


def under_load(executor, kill):
    """Play with ``kill`` called in the middle, and from the second step of some episodes on: nothing is lost, nothing
    counted twice."""
    local, done = whole(played(made(6))), []

    def on_done(episode):
        done.append(episode.index)
        if len(done) == 3:
            kill()

    envs = far(made(6), executor)
    episodes = played(envs, on_done=on_done)
    assert whole(episodes) == local
    assert sorted(done) == list(range(len(SEEDS)))
    engine = Oracle(SEEDS[:4])
    for turns in engine.turns.values():
        turns.pop(0)
    branches = [Branch(episode, 1) for episode in episodes[:4]]
    again = play(engine, Letters(), envs, branches, WIDE, draws=[0] * 4, workers=6)
    assert [one.trajectory() for one in again] == [one.trajectory() for one in episodes[:4]]
    for _ in range(executor.workers):  # the rest may have gone by before the dead one's turn came
        executor.run(os.getpid)
    assert executor.replaced >= 1


def test_a_worker_that_dies_under_load_loses_no_episode(remote):
    def kill():
        if isinstance(sys.modules["ray"], StandIn):
            executor._all[0].dead = True
        else:
            os.kill(executor.run(os.getpid), signal.SIGKILL)

    with remote.RayExecutor(2) as executor:
        under_load(executor, kill)


def test_a_node_that_dies_under_load_loses_no_episode(cluster):
    """Last, as it takes a node down."""
    from agent_gym.remote import RayExecutor

    def node_id():  # in here, so that it is sent whole: the other nodes do not have this file
        import ray

        return ray.get_runtime_context().get_node_id()

    others = [cluster.add_node(**NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    with RayExecutor(6) as executor:  # of three, Ray may put two on one node
        assert len({executor.run(node_id) for _ in range(executor.workers)}) == 3
        under_load(executor, lambda: cluster.remove_node(others[0], allow_graceful=False))
