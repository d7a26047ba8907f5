"""Locks of folders: the second run is refused; file systems without locks; nothing is left behind."""

import errno
import os

import pytest

from common import lock
from common.errors import UserError
from common.lock import locked


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "SECONDS", 0.1)


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def no_locks(request, monkeypatch):
    """A file system that answers flock as NFS and Lustre do where they are mounted without locks."""

    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", flock)


def refused(folder):
    """How a second run in the folder ends."""
    with pytest.raises(UserError) as error, locked(folder, "--x"):
        pass
    return str(error.value)


def test_the_second_run_is_refused(tmp_path):
    with locked(tmp_path, "--x"):
        assert refused(tmp_path) == f"--x: another run writes to {tmp_path} now; wait for it, or name another one"
    with locked(tmp_path, "--x"):  # the first one is gone
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    for file in (None, "result"):
        with locked(tmp_path / "new", "--x"):
            if file:
                (tmp_path / "new" / file).touch()
        assert (tmp_path / "new").exists() is bool(file)
    with locked(tmp_path / "new", "--x"):
        (tmp_path / "new" / "result").unlink()
    assert (tmp_path / "new").exists()  # it was there before


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert f"--x: {tmp_path}/file can't be written to" in refused(tmp_path / "file")


def test_a_file_stands_for_the_lock_where_there_are_none(tmp_path, no_locks, capsys):
    with locked(tmp_path, "--x"):
        assert f"warning: --x: {tmp_path} is on a file system without locks" in capsys.readouterr().err
        assert f"another run writes to {tmp_path} now" in refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_lost_machine_left_is_named_with_the_remedy(tmp_path, no_locks):
    (tmp_path / ".lock.soft").write_text("71\nnode7\n")
    assert f"If that run is gone, delete {tmp_path}/.lock.soft" in refused(tmp_path)
