"""Cuts that are shared out, stopped, killed, done again and full of trouble."""

import errno
import shutil
import signal
import subprocess
import sys
import time

import loky
import pytest
from patches.cutting import content, cut
from patches.projects import make_project

from stqp.errors import EnvironmentProblem
from stqp.patches import parts
from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.patches.store import PatchFile, PatchWriter
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord


def test_processes_cut_the_same(project, tmp_path, monkeypatch):
    monkeypatch.setattr("stqp.patches.cut._BATCH", 64 * 64 * 8)
    cut(project, tmp_path / "one.h5")
    seen = []
    options = CutOptions(size=64, block=40.0, guard=0.0)
    cut_patches(
        [project],
        tmp_path / "two.h5",
        RunRecord("t", {}),
        options,
        workers=2,
        progress=lambda d, n: seen.append((d, n)),
    )
    assert content(tmp_path / "one.h5") == content(tmp_path / "two.h5")
    assert seen[-1][0] == seen[-1][1] and len(seen) > 3 and sorted(seen) == seen
    assert not parts.parts_folder(tmp_path / "two.h5").exists()


def test_a_stopped_cut_goes_on(project, tmp_path, monkeypatch):
    monkeypatch.setattr("stqp.patches.cut._BATCH", 64 * 64 * 8)
    cut(project, tmp_path / "whole.h5")

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    options = CutOptions(size=64, block=40.0, guard=0.0)
    with pytest.raises(KeyboardInterrupt):
        cut_patches([project], tmp_path / "p.h5", RunRecord("t", {}), options, workers=1, progress=stop)
    folder = parts.parts_folder(tmp_path / "p.h5")
    kept = sorted(folder.glob("*.h5"))
    times = [p.stat().st_mtime_ns for p in kept]
    assert kept and not (tmp_path / "p.h5").exists()
    kept[1].write_bytes(kept[1].read_bytes()[:1000])  # a disk may lose the end of what was written last
    drawn = []
    draw = parts.draw_batch
    monkeypatch.setattr(parts, "draw_batch", lambda b, s, path: (drawn.append(path.name), draw(b, s, path))[1])
    _, _, record = cut(project, tmp_path / "p.h5")
    assert content(tmp_path / "p.h5") == content(tmp_path / "whole.h5")
    assert kept[0].name not in drawn and kept[1].name in drawn and times
    assert record.counts["blocks that were cut before the last cut stopped"] > 0 and not folder.exists()


def test_a_killed_cut_goes_on(project, tmp_path):
    script = (
        "from pathlib import Path; from stqp.patches import cut; from stqp.patches.options import CutOptions\n"
        "from stqp.record import RunRecord\n"
        "cut._BATCH = 64 * 64 * 4\n"
        "import time\n"
        "def slow(d, n): print(d, flush=True); time.sleep(0.2)\n"
        f"cut.cut_patches([Path({str(project)!r})], Path({str(tmp_path / 'p.h5')!r}), RunRecord('t', {{}}), "
        "CutOptions(size=64, block=40.0, guard=0.0), workers=1, progress=slow)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(3):
            process.stdout.readline()
        process.kill()
    folder = parts.parts_folder(tmp_path / "p.h5")
    assert not (tmp_path / "p.h5").exists() and len([*folder.glob("*.h5")]) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stqp.patches.cut._BATCH", 64 * 64 * 4)
        _, _, record = cut(project, tmp_path / "p.h5")
        cut(project, tmp_path / "whole.h5")
    assert record.counts["blocks that were cut before the last cut stopped"] >= 2
    assert content(tmp_path / "p.h5") == content(tmp_path / "whole.h5")


def test_what_is_unchanged_is_not_cut_again(tmp_path):
    project = make_project(tmp_path / "project", ((300, 300),))
    cut(project, tmp_path / "p.h5")
    stamp = (tmp_path / "p.h5").stat().st_mtime_ns
    made, _, record = cut(project, tmp_path / "p.h5")
    assert made.reused and (tmp_path / "p.h5").stat().st_mtime_ns == stamp and made.split["training"]
    assert "left as they are" in record.counts["patches"] and record.results["labels"]
    shutil.copytree(project, tmp_path / "elsewhere" / "project")  # other places, the same data
    with QuPathProject.open(project, "r+") as opened:
        entry = opened.entries[0]
        objects = entry.read_objects()
        changed = objects.take([0])
        changed.classes[:] = "Dead"
        entry.update_objects([0], changed)
    made, _, _ = cut(project, tmp_path / "p.h5")
    assert not made.reused and "Dead" in made.classes
    made, _, _ = cut(project, tmp_path / "p.h5", seed=1)
    assert not made.reused
    made, _, _ = cut(project, tmp_path / "p.h5", seed=1)
    assert made.reused
    content = (tmp_path / "p.h5").read_bytes()
    (tmp_path / "p.h5").write_bytes(content[: len(content) // 2])
    made, _, _ = cut(project, tmp_path / "p.h5", seed=1)
    assert not made.reused and len(PatchFile(tmp_path / "p.h5"))
    image = tmp_path / "slide0.tif"
    raw = bytearray(image.read_bytes())
    raw[len(raw) // 2] ^= 1
    image.write_bytes(raw)
    assert not cut(project, tmp_path / "p.h5", seed=1)[0].reused


def test_two_cuts_of_one_file(project, tmp_path):
    with parts.keeping_parts(tmp_path / "p.h5", "x"), pytest.raises(EnvironmentProblem, match="is being written"):
        cut(project, tmp_path / "p.h5")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(project, tmp_path, monkeypatch, workers):
    cut(project, tmp_path / "p.h5", seed=5)
    before = (tmp_path / "p.h5").read_bytes()

    def full(self, data):
        self._error = self._error or OSError(errno.ENOSPC, "no space")
        return memoryview(data).nbytes

    if workers == 1:
        monkeypatch.setattr("stqp.hdf5.CarefulFile.write", full)
    else:  # the parts are whole, what they are put together to is not

        def refuse(*_):
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(PatchWriter, "extend", refuse)
    with pytest.raises(EnvironmentProblem, match=r"p\.h5.*disk is full"):
        cut(project, tmp_path / "p.h5", workers=workers)
    assert (tmp_path / "p.h5").read_bytes() == before
    assert [p for p in tmp_path.iterdir() if p.name.endswith(".part")] == []
    assert parts.parts_folder(tmp_path / "p.h5").exists() == (workers == 2)  # what is done is kept


def test_a_worker_that_dies_is_replaced(project, tmp_path, monkeypatch):
    monkeypatch.setattr("stqp.patches.cut._BATCH", 64 * 64 * 8)
    cut(project, tmp_path / "one.h5")
    submit = loky.ProcessPoolExecutor.submit

    def deadly(self, function, *arguments):
        return submit(self, _die if arguments[-1].name == "000002.h5" else function, *arguments)

    monkeypatch.setattr(loky.ProcessPoolExecutor, "submit", deadly)
    cut(project, tmp_path / "two.h5", workers=2)
    assert content(tmp_path / "one.h5") == content(tmp_path / "two.h5")


def _die(*_):
    import os

    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_processes_are_started_where_they_are_worth_it():
    assert parts.default_workers(10) == parts.default_workers(1000) == 1
    assert 1 <= parts.default_workers(10**6) <= 16
