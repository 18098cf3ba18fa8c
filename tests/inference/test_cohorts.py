"""Many slides: at the same time, interrupted, gone on with, and looked at while they run."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from perfect_maps import ColourNetwork, grid_of_nuclei, paint
from PIL import Image

from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.inference import one
from stqp.inference.one import Settings
from stqp.inference.run import predict_targets
from stqp.inference.scheduling import Scheduler, connected, run_on, slurm_cluster
from stqp.inference.status import Status, read_status
from stqp.qupath.project import QuPathProject

SETTINGS = Settings(mpp=0.25, tissue=False, table=True)
INST = grid_of_nuclei(300, 7, seed=4)


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(4):
        types = (np.arange(INST.max()) + number) % 3 + 1
        Image.fromarray(paint(np.rot90(INST, number), types)).save(folder / f"s{number}.png")
    (folder / "broken.tif").write_bytes(b"no image")
    return folder


def content(project):
    """Ids, classes and outlines by image, and the bytes of the tables."""
    with QuPathProject.open(project, "r") as opened:
        result = {}
        for entry in opened.entries:
            objects = entry.read_objects()
            order = np.argsort(objects.ids.astype(str))
            chosen = objects.take(order)
            table = next(entry.stqp_folder.glob("*.parquet")).read_bytes()
            result[entry.name] = (chosen.ids.tolist(), chosen.classes.tolist(), chosen.polygons.coords.tolist(), table)
        return result


def test_a_local_cluster_gives_what_one_after_the_other_gives(slides, tmp_path):
    alone, failed = predict_targets(ColourNetwork(), [slides], SETTINGS, project=tmp_path / "alone")
    model = functools.partial(ColourNetwork, 256, 164)
    both, failed_too = predict_targets(
        model, [slides], SETTINGS, project=tmp_path / "both", scheduler=Scheduler("local", 2)
    )
    assert len(failed) == 1 and "broken.tif" in failed[0] and failed == failed_too
    assert both.counts == alone.counts
    assert [i["image"] for i in both.results["images"]] == [f"s{n}.png" for n in range(4)]
    expected = content(tmp_path / "alone")
    assert len(expected) == 4 and content(tmp_path / "both") == expected
    # a second run replaces, and doubles nothing
    predict_targets(ColourNetwork(), [slides], SETTINGS, project=tmp_path / "alone")
    assert {k: v[:3] for k, v in content(tmp_path / "alone").items()} == {k: v[:3] for k, v in expected.items()}
    states = {s["image"]: s for s in read_status(tmp_path / "both")}
    assert states["s2.png"]["state"] == "done" and states["s2.png"]["nuclei"] == INST.max()
    assert states["broken.tif"]["state"] == "failed" and "cannot be read" in states["broken.tif"]["error"]


def test_workers_keep_freed_memory_and_take_their_part_of_the_processors(monkeypatch):
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with connected(Scheduler("local", 1)) as client:
        environment = {name: client.submit(os.getenv, name).result() for name in names}
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) > 2**25  # Dask's own is 65536
    assert int(environment["MALLOC_MMAP_THRESHOLD_"]) >= 2**25
    assert environment["OMP_NUM_THREADS"] == str(os.cpu_count())


def test_schedulers_that_are_not_there(slides, tmp_path, monkeypatch):
    with pytest.raises(EnvironmentProblem, match="no Dask scheduler answers at nowhere"):
        [*run_on(Scheduler("nowhere"), [], ColourNetwork(), SETTINGS, "", None)]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(EnvironmentProblem, match=r"dask-jobqueue.*stqp\[slurm\]"):
        [*run_on(Scheduler("slurm"), [], ColourNetwork(), SETTINGS, "", None)]


def test_writers_of_one_project_wait_for_each_other(slides, tmp_path, monkeypatch):
    with QuPathProject.open(tmp_path / "p", "x"):
        pass
    opened = QuPathProject.open(tmp_path / "p", "r+")
    threading.Timer(1.0, opened.close).start()
    began = time.monotonic()
    with one.open_when_free(tmp_path / "p", "r+", "native"):
        assert time.monotonic() - began > 0.8
        monkeypatch.setattr(one, "_PATIENCE", 0.3)
        with pytest.raises(EnvironmentProblem, match="is being written by process"):
            one.open_when_free(tmp_path / "p", "r+", "native")


def test_what_is_done_is_left_out_when_a_run_is_resumed(slides, tmp_path):
    out = tmp_path / "out"
    settings = Settings(mpp=0.25, tissue=False, table=True, out=out)
    predict_targets(ColourNetwork(), [slides / "s0.png", slides / "s1.png"], settings)
    again = ColourNetwork()
    record, failed = predict_targets(again, [slides / "*.png"], settings, resume=True)
    assert not failed and record.counts["images predicted"] == 2
    assert record.skipped["slides that were done before"] == 2
    # another setting, another model or another slide are another result
    for change in ("setting", "model", "slide"):
        network = ColourNetwork(mpp=0.26) if change == "model" else ColourNetwork()
        if change == "slide":
            os.utime(slides / "s0.png", (1, 1))
        asked = Settings(**{**vars(settings), "cell_expansion": 3.0}) if change == "setting" else settings
        record, _ = predict_targets(network, [slides / "s0.png"], asked, resume=True)
        assert record.counts["images predicted"] == 1, change


class Slow(ColourNetwork):
    def predict(self, batch):
        time.sleep(0.05)
        return super().predict(batch)


def test_a_disk_that_fills_keeps_the_slides_that_were_done(slides, tmp_path, monkeypatch):
    real, calls = one.write_table, []

    def full(path, *args):
        calls.append(path)
        if len(calls) == 2:
            raise EnvironmentProblem(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
        real(path, *args)

    monkeypatch.setattr(one, "write_table", full)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        predict_targets(ColourNetwork(), [slides / "s*.png"], SETTINGS, project=tmp_path / "p")
    states = {s["image"]: s["state"] for s in read_status(tmp_path / "p")}
    assert states == {"s0.png": "done", "s1.png": "failed", "s2.png": "waiting", "s3.png": "waiting"}
    with QuPathProject.open(tmp_path / "p", "r") as opened:
        assert len(opened.entry("s0.png").read_objects()) == INST.max()
    monkeypatch.setattr(one, "write_table", real)
    predict_targets(ColourNetwork(), [slides / "s*.png"], SETTINGS, project=tmp_path / "p", resume=True)
    assert {name: len(c[0]) for name, c in content(tmp_path / "p").items()} == dict.fromkeys(
        [f"s{n}.png" for n in range(4)], INST.max()
    )


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_cohorts import Slow, SETTINGS
from pathlib import Path
from stqp.inference.run import predict_targets
if __name__ == "__main__":
    try:
        predict_targets(Slow(), [{slides!r} + "/s*.png"], SETTINGS, project=Path({project!r}))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent")
def test_finished_slides_stay_when_a_run_is_interrupted(slides, tmp_path):
    project = tmp_path / "p"
    here = Path(__file__).parent
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(here), slides=str(slides), project=str(project)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)

    def states():
        try:
            return {s["image"]: s["state"] for s in read_status(project)}
        except InputError:
            return {}

    until = time.monotonic() + 120
    while states().get("s0.png") != "done" and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    after = states()
    assert after["s0.png"] == "done" and "done" not in (after["s2.png"], after["s3.png"])
    assert set(after.values()) <= {"done", "stopped"}
    with QuPathProject.open(project, "r") as opened:
        done = [entry.name for entry in opened.entries]
        assert "s0.png" in done and all(len(e.read_objects()) == INST.max() for e in opened.entries)
    predict_targets(ColourNetwork(), [slides / "s*.png"], SETTINGS, project=project)
    assert {name: len(c[0]) for name, c in content(project).items()} == dict.fromkeys(
        [f"s{n}.png" for n in range(4)], INST.max()
    )


def test_the_status_tells_what_is_left_and_what_is_gone(tmp_path):
    folder = tmp_path / ".status"
    running = Status(folder / "a.json", "a.svs", None)
    running.running(0, 100)
    said = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(
        json.dumps({**said, "done": 25, "total": 100, "began": said["began"] - 50, "updated": said["began"]})
    )
    Status(folder / "b.json", "b.svs", None).waiting()
    gone = json.loads((folder / "b.json").read_text())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (folder / "c.json").write_text(json.dumps({**gone, "image": "c.svs", "state": "running", "pid": child.pid}))
    (folder / "d.json").write_text("{half")
    found = {s["image"]: s for s in read_status(tmp_path)}
    assert {k: v["state"] for k, v in found.items()} == {"a.svs": "running", "b.svs": "waiting", "c.svs": "stopped"}
    assert found["a.svs"]["left"] == pytest.approx(150, abs=1)
    with pytest.raises(InputError, match="no status of any slide"):
        read_status(folder)


def test_the_command_of_the_status(tmp_path):
    from click.testing import CliRunner
    from stqp_cli.status import command

    folder = tmp_path / ".status"
    Status(folder / "a.json", "a.svs", None).done({"nuclei": 1234, "classes": {}}, "x")
    Status(folder / "b.json", "b.svs", None).failed("b.svs is broken")
    result = CliRunner().invoke(command, [str(tmp_path), "--watch", "0.1"])
    assert result.exit_code == 0, result.exception
    assert "1,234 nuclei" in result.output and "b.svs is broken" in result.output
    assert "2 slides: 1 failed, 1 done; 1,234 nuclei" in result.output
    told = json.loads(CliRunner().invoke(command, [str(tmp_path), "--json"]).output)
    assert {s["image"] for s in told} == {"a.svs", "b.svs"}


def test_slurm_workers_take_a_slide_at_a_time(monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="sbatch"):
        [*run_on(Scheduler("slurm"), [], ColourNetwork(), SETTINGS, "", None)]
    cluster = slurm_cluster({"queue": "gpu", "cores": 6, "walltime": "02:00:00"})
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    lines = ["#SBATCH -p gpu", "#SBATCH --cpus-per-task=6", "#SBATCH -t 02:00:00", "export OMP_NUM_THREADS=6"]
    for line in (*lines, "export MALLOC_TRIM_THRESHOLD_=67108864"):
        assert line in script
    assert "--nthreads 1" in script
    with pytest.raises(UsageError, match="nonsense"):
        slurm_cluster({"nonsense": 1})


def test_what_the_network_did_is_kept_until_all_is_written(slides, tmp_path, monkeypatch):
    def full(path, *_):
        raise EnvironmentProblem(f"cannot write {path}: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(one, "write_table", full)
        with pytest.raises(EnvironmentProblem, match="disk is full"):
            predict_targets(ColourNetwork(), [slides / "s0.png"], SETTINGS, project=tmp_path / "p")
    again = ColourNetwork()
    predict_targets(again, [slides / "s0.png"], SETTINGS, project=tmp_path / "p")
    assert again.windows == 0 and len(content(tmp_path / "p")["s0.png"][0]) == INST.max()
    assert not [*tmp_path.rglob("*.unfinished")]
    anew = ColourNetwork()
    predict_targets(anew, [slides / "s0.png"], SETTINGS, project=tmp_path / "p")
    assert anew.windows > 0
