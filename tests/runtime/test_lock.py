"""The lock on a workdir."""

import errno
import fcntl
import json
import os
import re
import resource
import subprocess
import sys

import pytest

from repvgg_jax.errors import HeldError, RunError
from repvgg_jax.runtime.lock import check_unlocked, lock_holder, locked
from tests.support.commands import ROOT
from tests.support.locks import HOLDER


@pytest.mark.system
def test_the_second_process_is_told_the_holder_and_a_killed_one_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        who = rf"process {holder.pid} on \S+ since 20\d\d-"
        assert re.match(who, lock_holder(tmp_path))
        with pytest.raises(HeldError, match=who), locked(tmp_path):
            pass
        with pytest.raises(HeldError, match=who):
            check_unlocked(tmp_path)
        with locked(tmp_path, take=False):  # as in the other processes of the holder's run
            check_unlocked(tmp_path)
        assert lock_holder(tmp_path)
        holder.kill()
    check_unlocked(tmp_path)
    with locked(tmp_path):
        pass


@pytest.mark.system
def test_a_nested_lock_does_not_release_the_outer_one(tmp_path):
    other = (
        "import sys; from pathlib import Path; from repvgg_jax.runtime.lock import lock_holder;"
        "print(lock_holder(Path(sys.argv[1])))"
    )
    with locked(tmp_path):
        with locked(tmp_path):
            assert lock_holder(tmp_path) is None  # the question is about other processes
        command = [sys.executable, "-c", other, str(tmp_path)]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert said.stdout.startswith("process ")


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"host": "a", "pid": 1, "since": "then"}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with locked(tmp_path):
            assert (tmp_path / "lock").read_text() == ""  # rather than the earlier holder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_system_without_locks_is_named_once(tmp_path, monkeypatch, caplog):
    def no_locks(descriptor, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    for _ in range(2):
        with locked(tmp_path):
            pass
    (warning,) = caplog.messages
    assert f"{tmp_path} cannot be locked" in warning


def test_no_folder_no_lock_and_an_unreadable_one(tmp_path):
    (tmp_path / "file").touch()
    for workdir in ("missing", "file", "."):
        assert lock_holder(tmp_path / workdir) is None
    (tmp_path / "lock").mkdir()
    with pytest.raises(RunError, match=r"lock cannot be read \(Is a directory\)"):
        check_unlocked(tmp_path)


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"missing/lock cannot be written \(No such file"):
        locked(tmp_path / "missing").__enter__()
