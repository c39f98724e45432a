"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from deformvit.errors import UserError
from deformvit.storage import write_atomically


def test_new_file_and_its_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture(params=[0o000, 0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("private", [False, True])
def test_permissions_are_those_of_a_new_file(tmp_path, umask, monkeypatch, private):
    def write(temporary):
        if private:  # as writers do that make a temporary file themselves
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT, 0o600))
        temporary.write_text("text")

    def set_umask(_value):
        raise AssertionError("the umask is the process's: other threads would create files with it")

    monkeypatch.setattr(os, "umask", set_umask)
    write_atomically(tmp_path / "file.txt", write)
    monkeypatch.undo()
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o666 & ~umask


def test_the_old_file_stands_until_the_move(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def crash(source, target):
        assert source.read_text() == "new"  # finished before anything happens to the old one
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "old"


def test_what_a_killed_process_left_is_replaced(tmp_path):
    left = tmp_path / ".file.txt.tmp"
    left.write_text("half of a much longer text")
    left.chmod(0o600)
    write_atomically(tmp_path / "file.txt", lambda temporary: temporary.write_text("whole"))
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "whole"
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "file.txt").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_several_processes_may_write_at_once(tmp_path):
    path = tmp_path / "table.md"

    def outer(temporary):
        temporary.write_text("outer")
        write_atomically(path, lambda inner: inner.write_text("inner"), several=True)
        assert path.read_text() == "inner"

    write_atomically(path, outer, several=True)
    assert path.read_text() == "outer"
    assert list(tmp_path.iterdir()) == [path]


def test_where_no_file_can_be_made_the_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/table\.md cannot be written: (File exists|Not a directory)"):
        write_atomically(tmp_path / "file" / "table.md", lambda temporary: temporary.write_text("text"))
