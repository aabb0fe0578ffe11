"""One process behaves like many: sums, means, gathers and gradients of 1, 2 and 4 real processes, and their ends."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="agent_gym.lm needs the extra 'train'")
pytest.importorskip("transformers", reason="agent_gym.lm needs the extra 'train'")

from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.ranks import Ranks  # noqa: E402


def started(world, folder):
    """Start this file in ``world`` processes. Returns the exit code and stderr of all but the first, which is killed
    when they have ended; nobody may take more than two minutes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    own = [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    command = [sys.executable, __file__, str(folder)]
    running = [subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE) for env in own]
    try:
        return [(p.wait(timeout=120), p.stderr.read()) for p in running[1:]]
    finally:
        for p in running:
            p.kill()
            p.communicate()


# ---- what every process does, and notes down ----


def table():
    """Rows of three columns: numbers of every size, some of them missing, and one column without any."""
    rows = np.random.default_rng(7).normal(size=(13, 3)) * np.logspace(-8, 8, 13)[:, None]
    rows[[0, 5, 9], [0, 1, 0]] = np.nan
    rows[:, 2] = np.nan
    return rows


def model():
    """Three parameters, one of them in half precision, and one that nothing depends on."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)]
    weights.append(torch.nn.Parameter(torch.randn(3, generator=generator).bfloat16()))
    return weights, torch.nn.Parameter(torch.ones(5))


def gradients(ranks, batch):
    """The gradients of a batch that the processes share; the last of several has none of it."""
    (first, second, half), unused = model()
    part = batch[ranks.rank :: ranks.world - 1] if ranks.world > 1 else batch
    if ranks.world > 1 and ranks.rank == ranks.world - 1:
        part = batch[:0]
    if len(part):
        value = (
            (part @ first).square().sum() + (part @ second).abs().sum() + (part[:, :3] @ half.float()).square().sum()
        )
        value.backward()
    parameters = [first, second, half, unused]
    ranks.all_reduce_gradients(parameters)
    return [p.grad.float().flatten().tolist() for p in parameters]


def work(ranks):
    rows, batch = table(), torch.randn(12, 4, generator=torch.Generator().manual_seed(5))
    lone = rows if ranks.rank == ranks.world - 1 else []  # all others have none
    found = {
        "share": list(ranks.share(range(10))),
        "first": ranks.first,
        "mean": ranks.mean(ranks.share(rows)).tolist(),
        "mean_of_one": ranks.mean(lone, width=3).tolist(),
        "mean_of_none": ranks.mean([], width=2).tolist(),
        "mean_of_numbers": ranks.mean(ranks.share([0.1, 0.2, float("nan"), 0.4, 0.7])).tolist(),
        "sum": ranks.sum(np.array([[ranks.rank + 1, 2], [3, 4]])).tolist(),
        "tensor": ranks.all_reduce(torch.tensor([0.5, ranks.rank])).tolist(),
        "gather": ranks.gather({"rank": ranks.rank, "text": "x" * 10 * ranks.rank}),
        "gradients": gradients(ranks, batch),
    }
    ranks.barrier()
    parameters = [p.detach() for p in model()[0]]
    ranks.check_equal(parameters)
    found["same"] = True
    if ranks.rank == 1:
        parameters[2].view(torch.uint8)[1] ^= 1  # one bit
    try:
        ranks.check_equal(parameters)
    except Refused as refused:
        found["refused"] = str(refused)
    return found


def main(folder):
    """All the work. Then the first of four gives up, and the first of two hangs, while the others wait for it."""
    ranks = Ranks.start("cpu")
    (folder / f"{ranks.rank}.json").write_text(json.dumps(work(ranks)))
    if ranks.world == 2:
        ranks.barrier()
        ranks.stop()
        ranks = Ranks.start("cpu", timeout=5.0)
    try:
        if not ranks.first:
            ranks.mean([1.0])
        elif ranks.world == 4:
            raise Refused("the first process gives up")
        else:
            time.sleep(600)
    finally:
        ranks.stop()


# ---- tests ----


@pytest.fixture(scope="module", params=[2, 4])
def group(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ends = started(request.param, folder)
    files = [folder / f"{rank}.json" for rank in range(request.param)]
    assert all(file.exists() for file in files), ends
    return [json.loads(file.read_text()) for file in files], ends


@pytest.fixture
def many(group):
    return group[0]


@pytest.fixture(scope="module")
def alone():
    return work(Ranks())


def test_the_parts_are_a_partition(many):
    parts = [found["share"] for found in many]
    assert sorted(i for part in parts for i in part) == list(range(10))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [found["first"] for found in many] == [True] + [False] * (len(many) - 1)


def test_means_leave_out_nan_and_do_not_depend_on_the_number_of_processes(many, alone):
    expected = np.nanmean(table()[:, :2], axis=0)
    for found in [alone, *many]:
        for name in ("mean", "mean_of_one"):
            np.testing.assert_allclose(found[name][:2], expected, rtol=1e-12)
            assert np.isnan(found[name][2])
        assert np.isnan(found["mean_of_none"]).all()
        assert len(found["mean_of_none"]) == 2
        np.testing.assert_allclose(found["mean_of_numbers"], [0.35], rtol=1e-12)
    assert len({str(found["mean"]) for found in many}) == 1  # all processes have the same digits


def test_sums_and_gathers(many, alone):
    world = len(many)
    for rank, found in enumerate(many):
        assert found["sum"] == [[world * (world + 1) / 2, 2 * world], [3 * world, 4 * world]]
        assert found["tensor"] == [world / 2, world * (world - 1) / 2]
        assert [one["rank"] for one in found["gather"]] == list(range(world))
        assert found["gather"][rank]["text"] == "x" * 10 * rank
    assert alone["sum"] == [[1, 2], [3, 4]]
    assert alone["gather"] == [{"rank": 0, "text": ""}]


def test_gradients_are_summed_although_a_process_has_none(many, alone):
    for found in many:
        assert found["gradients"] == many[0]["gradients"]
        for here, expected in zip(found["gradients"], alone["gradients"], strict=True):
            np.testing.assert_allclose(here, expected, rtol=2e-2, atol=1e-5)
        for here, expected in zip(found["gradients"][:2], alone["gradients"][:2], strict=True):
            np.testing.assert_allclose(here, expected, rtol=1e-5, atol=1e-6)
    assert alone["gradients"][3] == [0.0] * 5  # an optimiser sees zeros in one process as it does in many


def test_other_weights_in_one_process_are_refused_in_all(many, alone):
    assert alone["same"]
    assert "refused" not in alone
    for found in many:
        assert found["same"]
        assert found["refused"].startswith("the processes do not hold the same weights: process 1 differs from")


def test_no_process_waits_for_ever(group):
    """The end of one process ends the others at once, a hanging one does after the time-out."""
    found, ends = group
    for code, said in ends:
        assert code == 1
        assert len(found) == 4 or "timed out" in said.lower()


def test_one_process_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks.start("cpu")
    assert (ranks.rank, ranks.world, ranks.device) == (0, 1, torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    ranks.barrier()
    ranks.stop()


def test_the_gpu_is_chosen_before_anything_else(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: events.append(str(device)))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: events.append(backend))
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    ranks = Ranks.start()
    assert events == ["cuda:1", "cpu:gloo,cuda:nccl"]
    assert (ranks.rank, ranks.world, str(ranks.device), ranks.first) == (5, 8, "cuda:1", False)
    events.clear()
    assert str(Ranks.start("cpu").device) == "cpu"
    assert events == ["gloo"]
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(Refused, match=r"^--device auto: process 5 needs cuda:4, and there are 4 GPUs here$"):
        Ranks.start()


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("gpu", "--device gpu is no torch device; name one such as cpu or cuda:0"),
        ("cuda", "--device cuda: process 0 needs cuda:0, and there are 0 GPUs here"),
    ],
)
def test_a_device_that_is_not_there(device, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused) as refused:
        Ranks.start(device)
    assert str(refused.value) == sentence


if __name__ == "__main__":
    main(Path(sys.argv[1]))
