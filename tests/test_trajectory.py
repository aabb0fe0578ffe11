import os
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_gym import CHANNELS, Group, Step, Trajectory, read_trajectories, write_trajectories

text = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\ud800"), max_size=8).filter(
    lambda t: "\ud800\ud800" not in t
)
numbers = st.floats(0, 1e9) | st.integers(0, 10**6).map(float)
costs = st.fixed_dictionaries(dict.fromkeys(CHANNELS, numbers))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
results = st.fixed_dictionaries({"name": text, "arguments": st.dictionaries(text, values, max_size=2), "content": text})
steps = st.builds(
    Step,
    text,
    text,
    costs,
    st.lists(results, max_size=2),
    text,
    st.booleans(),
    st.booleans(),
    st.none() | st.lists(st.integers(0, 10**5), max_size=3),
    st.none() | st.lists(st.floats(-50, 0), max_size=3),
)
verdicts = st.none() | st.fixed_dictionaries({"status": st.sampled_from(["pass", "fail", "infra"]), "score": numbers})
trajectories = st.builds(
    Trajectory,
    text,
    st.just("APIAgent-v0"),
    st.dictionaries(text, values, max_size=2),
    st.none() | st.integers(0, 2**63),
    st.lists(steps, max_size=3).map(tuple),
    st.none() | st.sampled_from([0.0, 1.0]),
    verdicts,
    costs,
    st.none() | st.builds(Group, text, st.dictionaries(text, numbers, max_size=2)),
)


def simple(name="t", reward=1.0, words="hé ✓"):
    step = Step(words, "do", dict.fromkeys(CHANNELS, 1.0), [], "00")
    verdict = {"status": "infra" if reward is None else "pass"}
    return Trajectory(name, "APIAgent-v0", {}, 0, (step,), reward, verdict, dict.fromkeys(CHANNELS, 1.0))


@given(st.lists(trajectories, max_size=3))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back_equal(tmp_path_factory, written):
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    write_trajectories(path, written)
    assert list(read_trajectories(path)) == written
    assert len(path.read_bytes().splitlines()) == len(written)


def test_last_line_cut_anywhere_is_reported_and_skipped(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [simple("a"), simple("b")])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = [one.task_id for one in read_trajectories(path)]
        if cut == first:
            assert (names, len(caught)) == (["a"], 0)
        elif cut >= len(whole) - 1:  # only the line's end is missing, or nothing
            assert (names, len(caught)) == (["a", "b"], 0)
        else:
            assert names == ["a"]
            assert "line 2 is cut off and was skipped" in str(caught[0].message)


@pytest.mark.parametrize("bad", [b"{", b"[]", b"5", b'{"task_id": "x"}', b"", b'{"steps": "ab"}', b'{"a": "\xff"}'])
def test_bad_line_in_the_middle_is_named(tmp_path, bad):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [simple("a"), simple("b")])
    a, b = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([a, bad, b, b""]))
    reader = read_trajectories(path)
    assert next(reader).task_id == "a"
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: not a trajectory"):
        next(reader)


def test_broken_bytes_in_a_string_are_no_trajectory(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [simple("a"), simple("b")])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff", 1))
    with pytest.raises(ValueError, match="line 1"):
        list(read_trajectories(path))


def test_infra_has_no_reward_and_is_no_success(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [simple(reward=None)])
    (one,) = read_trajectories(path)
    assert one.reward is None
    assert not one.success
    with pytest.raises(ValueError):
        simple(reward=float("nan")).to_json()


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [simple("old")])

    def broken():
        yield simple("new")
        raise KeyError("the disk is full")

    with pytest.raises(KeyError):
        write_trajectories(path, broken())
    assert [one.task_id for one in read_trajectories(path)] == ["old"]
    assert os.listdir(tmp_path) == ["t.jsonl"]


def test_violates_is_strict():
    one = simple()
    assert not one.violates({"tool_calls": 1})
    assert one.violates({"tool_calls": 0.5})
    assert not one.violates({})
