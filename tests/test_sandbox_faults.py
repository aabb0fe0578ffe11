"""What the pool makes of sandboxes that die: by chance, by everyone's fault, by the program's own."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from sandbox_backends import require

from agent_gym.sandbox import Pool
from agent_gym.sandbox import pool as pools
from agent_gym.sandbox.backends import Bubblewrap, Lost
from agent_gym.sandbox.pool import CONTROL

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sandbox_faults.py"
REQUIRED = bool(os.environ.get("AGENT_GYM_REQUIRE_SANDBOXES"))


@pytest.fixture(scope="module")
def faults():
    spec = importlib.util.spec_from_file_location("sandbox_faults", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sound(report):
    assert report["wrong"] == []
    assert report["left"] == []
    assert report["answered twice"] == 0
    assert report["without a verdict"] == 0
    assert report["accepted"] == report["answered"] >= 40
    assert report["exit"] == 0
    assert {"passed", "wrong_answer", "error"} <= set(report["reasons"])


def test_bubblewrap_under_fire(faults):
    require("bubblewrap")
    kinds = ["zygote", "zygote", "caller"]
    report = faults.run("bubblewrap", 0.0, 3, kinds, every=0.8, seed=2, kills=5, answers=40)
    assert set(report["kills"]) == {"zygote", "caller"}
    assert min(report["kills"].values()) >= 5
    sound(report)


def test_docker_under_fire(faults):
    require("docker")
    if os.getuid() != 0 or not (shutil.which("dockerd") or Path("/usr/sbin/dockerd").exists()):
        if REQUIRED:
            raise RuntimeError("a Docker daemon of the test's own needs root and dockerd")
        pytest.skip("a Docker daemon of the test's own needs root and dockerd")
    kinds = ["container", "daemon", "caller"]
    report = faults.run("docker", 0.0, 3, kinds, every=3.0, seed=3, kills=2, answers=40)
    assert set(report["kills"]) == {"container", "daemon", "caller"}
    assert min(report["kills"].values()) >= 2
    sound(report)


def test_program_that_kills_itself_is_an_error_and_its_sandbox_lives_on(monkeypatch):
    require("bubblewrap")
    monkeypatch.setattr(pools, "BACKOFF_S", 0.001)
    suicide = "import os\ndef f(x):\n    os.kill(os.getpid(), 9)\n"
    made, start = [], Bubblewrap._launch
    with Pool("bubblewrap", slots=1) as pool:
        assert pool.check(RIGHT, "f", TESTS).status == "pass"
        monkeypatch.setattr(Bubblewrap, "_launch", lambda self: made.append(self) or start(self))
        assert pool.check(suicide, "f", TESTS).reason == "error"
    assert len(made) <= 1  # the spare


RIGHT, TESTS = "def f(x):\n    return x\n", [((1,), 1)]


@pytest.fixture
def quick(monkeypatch):
    require("bubblewrap")
    monkeypatch.setattr(pools, "BACKOFF_S", 0.001)


def deadly(monkeypatch, strikes):
    """Sandboxes that die under the next ``strikes(request)`` true answers; the requests graded."""
    graded, grade = [], pools.grade

    def fatal(sandbox, request):
        graded.append(request)
        if strikes(request):
            sandbox.process.kill()
            sandbox.process.wait()
            raise Lost("the sandbox is gone")
        return grade(sandbox, request)

    monkeypatch.setattr(pools, "grade", fatal)
    return graded


def test_program_that_takes_two_healthy_sandboxes_down_is_an_error(quick, monkeypatch):
    graded = deadly(monkeypatch, lambda request: "deadly" in request.files["solution.py"])
    with Pool("bubblewrap", slots=1) as pool:
        verdict = pool.check(RIGHT + "# deadly", "f", TESTS)
        assert (verdict.status, verdict.reason) == ("fail", "error")
        assert sum(request is CONTROL for request in graded) == 3  # before each of two trials, and after
        assert pool.check(RIGHT, "f", TESTS).status == "pass"


@pytest.mark.parametrize("deaths", [1, 2])
def test_sandbox_that_dies_by_chance_is_nobodys_fault(quick, monkeypatch, deaths):
    left = [deaths]

    def strikes(request):
        left[0] -= request is not CONTROL
        return request is not CONTROL and left[0] >= 0

    deadly(monkeypatch, strikes)
    with Pool("bubblewrap", slots=1) as pool:
        assert pool.check(RIGHT, "f", TESTS).status == "pass"


def test_where_the_control_dies_too_there_is_no_verdict(quick, monkeypatch):
    deadly(monkeypatch, lambda request: True)
    with Pool("bubblewrap", slots=1) as pool:
        verdict = pool.check(RIGHT, "f", TESTS)
        assert (verdict.status, verdict.reason) == ("infra", "infra")
        monkeypatch.undo()
        assert pool.check(RIGHT, "f", TESTS).status == "pass"


def test_backend_that_cannot_start_is_infra_until_it_can(quick, monkeypatch, tmp_path):
    start = Bubblewrap._launch

    def broken(self):
        raise OSError("no more processes")

    monkeypatch.setattr(Bubblewrap, "_launch", broken)
    journal = tmp_path / "journal"
    with Pool("bubblewrap", slots=1, journal=journal) as pool:
        verdict = pool.check(RIGHT, "f", TESTS)
        assert verdict.status == "infra"
        assert "no more processes" in verdict.diagnostics[0]
        monkeypatch.setattr(Bubblewrap, "_launch", start)
        assert pool.check(RIGHT, "f", TESTS).status == "pass"
    kinds = [next(iter(json.loads(line))) for line in journal.read_text().splitlines()]
    assert kinds.count("answered") == 1  # what has no verdict is not answered
