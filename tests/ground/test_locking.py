"""Locks of folders: one at a time, and in turn."""

import subprocess
import sys
import threading
import time

import pytest

from stqp.locking import LOCK_NAME, FolderBusy, FolderLock, turn


def test_one_at_a_time(tmp_path):
    lock = FolderLock(tmp_path, creating=False, what="test")
    with pytest.raises(FolderBusy, match=r"the test .* is being written by process"):
        FolderLock(tmp_path, creating=False, what="test")
    lock.release()
    assert not (tmp_path / LOCK_NAME).exists()
    FolderLock(tmp_path, creating=False).release()


def test_each_in_its_turn(tmp_path):
    folder, inside, met = tmp_path / "made" / "here", [], []

    def work(number):
        with turn(folder, "test", poll=0.01):
            inside.append(number)
            met.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert met == [1] * 6 and not (folder / LOCK_NAME).exists()


def test_a_holder_that_was_killed_is_not_waited_for(tmp_path):
    code = (
        "import os; from pathlib import Path; from stqp.locking import FolderLock; "
        f"FolderLock(Path({str(tmp_path)!r}), False); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / LOCK_NAME).exists()
    with turn(tmp_path, "test", poll=0.01):
        pass


def test_an_error_gives_the_turn_back(tmp_path):
    with pytest.raises(ValueError, match="x"), turn(tmp_path, "test"):
        raise ValueError("x")
    assert not (tmp_path / LOCK_NAME).exists()
