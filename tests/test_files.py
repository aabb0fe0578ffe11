"""Files that are whole at every moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gym.files import replacing, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(first=st.binary(), second=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_there_byte_by_byte_and_nothing_else(folder, first, second):
    path = folder / "one.txt"
    for data in (first, second):
        write(path, data)
        assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
        assert [each.name for each in folder.iterdir()] == ["one.txt"]


def test_what_fails_half_way_leaves_what_stood_there(tmp_path):
    path = tmp_path / "one.txt"
    write(path, "old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("one.txt", "old")]


def test_a_folder_that_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        write(tmp_path / "missing" / "one.txt", "text")
