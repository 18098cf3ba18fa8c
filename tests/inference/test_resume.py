import logging
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from perfect_maps import ColourNetwork, grid_of_nuclei, paint
from PIL import Image

from stqp import files
from stqp.errors import EnvironmentProblem, InputError
from stqp.inference import engine, fingerprints
from stqp.inference.engine import predict_slide
from stqp.inference.journal import BOUNDS, TILE, Journal, pack, unpack
from stqp.inference.one import Settings
from stqp.slides import open_slide

SIDE = 1000
OPTIONS = {"mpp": 0.25, "tissue": False, "tile": 256, "batch_size": 2}
WINDOWS = (-(-SIDE // 164)) ** 2


def clumpy(side):
    """Nuclei of which many touch, so that clumps reach over several tiles."""
    inst = grid_of_nuclei(side, side // 25, seed=3, radius=(9, 12))
    inst[300:306, 50:900] = inst.max() + 1  # longer than a tile
    inst[60:700, 500:507] = inst.max() + 1
    return inst


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    inst = clumpy(SIDE)
    path = tmp_path_factory.mktemp("slides") / "slide.png"
    Image.fromarray(paint(inst, np.arange(inst.max()) % 3 + 1)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(slide):
    with open_slide(slide) as opened:
        return predict_slide(opened, ColourNetwork(), **OPTIONS)


class Failing(ColourNetwork):
    """Breaks down after some windows."""

    def __init__(self, after, error):
        super().__init__()
        self.after, self.error = after, error

    def predict(self, batch):
        if self.windows >= self.after:
            raise self.error
        time.sleep(0.002)
        return super().predict(batch)


def predict(slide, folder, network=None, **options):
    with open_slide(slide) as opened:
        return predict_slide(opened, network or ColourNetwork(), folder=folder, **{**OPTIONS, **options})


def interrupt(slide, folder, after, error=None):
    error = error or RuntimeError("power")
    with pytest.raises(type(error)):
        predict(slide, folder, Failing(after, error))


def check_same(found, expected):
    np.testing.assert_array_equal(found.polygons.coords, expected.polygons.coords)
    np.testing.assert_array_equal(found.polygons.ring_offsets, expected.polygons.ring_offsets)
    np.testing.assert_array_equal(found.class_prob, expected.class_prob)
    assert found.counts == expected.counts


def test_what_is_done_is_not_done_again(slide, expected, tmp_path, caplog):
    folder = tmp_path / "unfinished" / "slide"
    interrupt(slide, folder, 30)
    network, steps = ColourNetwork(), []
    with caplog.at_level(logging.INFO, "stqp"):
        found = predict(slide, folder, network, progress=lambda *s: steps.append(s))
    check_same(found, expected)
    assert network.windows <= WINDOWS - 20
    assert "going on where an earlier run ended" in caplog.text
    assert steps[0][0] > 20 and steps[-1][0] == steps[-1][1] and steps == sorted(steps)
    assert folder.parent.exists() and not folder.exists()


def test_interrupted_at_the_end_only_the_end_is_done(slide, expected, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(engine.tiles, "assemble", fail)
        with pytest.raises(MemoryError):
            predict(slide, tmp_path / "u")
    network = ColourNetwork()
    check_same(predict(slide, tmp_path / "u", network), expected)
    assert network.windows == 0


def test_again_and_again(slide, expected, tmp_path):
    for after in (1, 9, 0, 20, 5):
        interrupt(slide, tmp_path / "u", after, KeyboardInterrupt())
    check_same(predict(slide, tmp_path / "u"), expected)


def test_torn_journals(slide, expected, tmp_path):
    interrupt(slide, tmp_path / "whole", WINDOWS - 2)
    size = (tmp_path / "whole" / "journal.bin").stat().st_size
    rng = np.random.default_rng(0)
    for number, cut in enumerate([0, 10, 20, size - 1, size - 7, *rng.integers(15, size, 8).tolist()]):
        folder = tmp_path / f"torn-{number}"
        shutil.copytree(tmp_path / "whole", folder)
        with (folder / "journal.bin").open("r+b") as file:
            file.truncate(cut)
            if number % 2:  # a disk may hold the length of what it does not hold
                file.seek(0, 2)
                file.write(bytes(50))
        network = ColourNetwork()
        check_same(predict(slide, folder, network), expected)
        assert network.windows <= WINDOWS + 1


def test_broken_maps_are_predicted_again(slide, expected, tmp_path):
    interrupt(slide, tmp_path / "whole", WINDOWS - 2)
    size = (tmp_path / "whole" / "maps.bin").stat().st_size
    for number in range(3):
        folder = tmp_path / f"broken-{number}"
        shutil.copytree(tmp_path / "whole", folder)
        with (folder / "maps.bin").open("r+b") as file:
            if number == 0:
                file.truncate(size // 3)
            elif number == 1:
                file.seek(size // 2)
                file.write(b"\xff" * 5000)
            else:
                file.truncate(0)
        check_same(predict(slide, folder), expected)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(slide, expected, tmp_path, seed):
    random.seed(seed)
    result, script = tmp_path / "result.npz", Path(__file__).with_name("interrupted.py")
    command = [sys.executable, str(script), str(slide), str(tmp_path / "u"), str(result), "0.3"]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline().strip() == b"begun"
            time.sleep(random.uniform(0.05, 0.6))
            process.kill()
    command[-1] = "0"
    subprocess.run(command, check=True)
    found = np.load(result)
    np.testing.assert_array_equal(found["coords"], expected.polygons.coords)
    np.testing.assert_array_equal(found["prob"], expected.class_prob)
    assert found["windows"] < WINDOWS
    assert not (tmp_path / "u").exists()


def test_another_model_slide_option_or_code_starts_anew(slide, expected, tmp_path, monkeypatch, caplog):
    other = ColourNetwork()
    other.name = "another"
    tries = {
        "model": lambda folder: predict(slide, folder, other),
        "options": lambda folder: predict(slide, folder, tile=300),
        "code": lambda folder: predict(slide, folder),
        "slide": lambda folder: predict(slide, folder),
    }
    for name, again in tries.items():
        folder = tmp_path / name
        interrupt(slide, folder, 30)
        with monkeypatch.context() as patched:
            if name == "code":
                patched.setattr(fingerprints, "of_code", lambda: {"stqp": "99"})
            if name == "slide":
                patched.setattr(fingerprints, "of_slide", lambda _: {"bytes": 1})
            caplog.clear()
            found = again(folder)
        assert f"its {name} differs" in caplog.text
        np.testing.assert_array_equal(found.polygons.coords, expected.polygons.coords)


def test_weights_tell_networks_apart():
    import torch

    class Trained(ColourNetwork):
        def __init__(self, value):
            super().__init__()
            self.network = torch.nn.Linear(2, 1)
            torch.nn.init.constant_(self.network.weight, value)

    assert fingerprints.of_predictor(Trained(1))["weights"]
    assert fingerprints.of_predictor(Trained(1)) != fingerprints.of_predictor(Trained(2))


def test_a_moved_slide_goes_on_and_a_changed_one_does_not(slide, tmp_path):
    moved = tmp_path / "moved.png"
    shutil.copy2(slide, moved)
    with open_slide(slide) as a, open_slide(moved) as b:
        assert fingerprints.of_slide(a) == fingerprints.of_slide(b)
        content = bytearray(moved.read_bytes())
        content[-20] ^= 1
        moved.write_bytes(content)
        assert fingerprints.of_slide(a) != fingerprints.of_slide(b)


def test_fresh_starts_anew(slide, expected, tmp_path):
    interrupt(slide, tmp_path / "u", 30)
    network = ColourNetwork()
    check_same(predict(slide, tmp_path / "u", network, fresh=True), expected)
    assert network.windows == WINDOWS


def test_one_process_at_a_time(slide, tmp_path):
    with Journal(tmp_path / "u", {}), pytest.raises(EnvironmentProblem, match="unfinished prediction"):
        predict(slide, tmp_path / "u")


def test_a_full_disk_keeps_what_is_done(slide, expected, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 * 164 * 164 * 9 + 100, hard))
    try:
        with pytest.raises(EnvironmentProblem, match=r"cannot write .*maps\.bin: the file is too large"):
            predict(slide, tmp_path / "u")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    network = ColourNetwork()
    check_same(predict(slide, tmp_path / "u", network), expected)
    assert network.windows <= WINDOWS - 8


def test_a_slide_that_breaks_off_keeps_what_is_done(slide, expected, tmp_path):
    with open_slide(slide) as opened:
        read = opened.read

        def fail(x, y, *rest):
            if y > 600:
                raise OSError(5, "the drive is gone")
            return read(x, y, *rest)

        opened.read = fail
        with pytest.raises(InputError, match=r"slide\.png cannot be read to its end.*the drive is gone"):
            predict_slide(opened, ColourNetwork(), folder=tmp_path / "u", **OPTIONS)
    network = ColourNetwork()
    check_same(predict(slide, tmp_path / "u", network), expected)
    assert network.windows < WINDOWS


def test_records_come_back_as_they_went(tmp_path):
    arrays = {"a": np.arange(7, dtype=np.int32), "b": np.zeros((0, 2)), "c": np.ones((3, 2), np.uint8)}
    meta, back = unpack(pack({"x": 1, "y": None}, arrays))
    assert meta == {"x": 1, "y": None}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    with pytest.raises(ZeroDivisionError), Journal(tmp_path / "j", {"one": [1, 2.5]}) as journal:
        journal.append(BOUNDS, b"abc")
        place = journal.append(TILE, b"")
        raise ZeroDivisionError
    with Journal(tmp_path / "j", {"one": (1, 2.5)}) as journal:
        assert [kind for kind, *_ in journal.records] == [BOUNDS, TILE]
        assert journal.records[1][1:] == place and journal.read(*journal.records[0][1:]) == b"abc"
        assert journal.differs == []
    assert not (tmp_path / "j").exists()
    with Journal(None, {}) as journal:
        folder = journal.folder
        assert folder.is_dir()
    assert not folder.exists()


def test_a_slide_that_fails_is_listed_and_goes_on_next_time(slide, expected, tmp_path, monkeypatch):
    from stqp.inference.run import predict_targets
    from stqp.qupath.project import QuPathProject

    (tmp_path / "slides").mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy2(slide, tmp_path / "slides" / name)
    reads = [0]
    read = engine.Grid.read

    def fail(self, opened, cell):
        reads[0] += opened.path.name == "one.png"
        if reads[0] >= 40 and opened.path.name == "one.png":
            raise InputError(f"{opened.path} cannot be read to its end (OSError: the drive is gone); is it whole?")
        return read(self, opened, cell)

    def again(network):
        settings = Settings(mpp=0.25, tissue=False, stain=False, batch_size=2)
        return predict_targets([network], [str(tmp_path / "slides")], settings, project=tmp_path / "project")

    with monkeypatch.context() as patched:
        patched.setattr(engine.Grid, "read", fail)
        record, failed = again(ColourNetwork())
    assert len(failed) == 1 and "one.png" in failed[0] and "the drive is gone" in failed[0]
    assert record.counts["images predicted"] == 1
    network = ColourNetwork()
    record, failed = again(network)
    assert not failed and record.counts["nuclei"] == 2 * len(expected)
    assert network.windows < 2 * WINDOWS - 20  # the other one anew, and the rest of the one
    with QuPathProject.open(tmp_path / "project", "r") as opened:
        assert sorted(e.name for e in opened.entries) == ["one.png", "two.png"]
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_disk_that_fills_ends_the_run_and_leaves_the_project(slide, expected, tmp_path, monkeypatch):
    import errno

    from stqp.inference.run import predict_targets

    write, written = engine.MapStore.write, [0]

    def fill(self, *args):
        written[0] += 1
        if written[0] > 30:
            with files.disk_errors(self.path):
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args)

    settings = Settings(mpp=0.25, tissue=False, stain=False, batch_size=2)
    options = {"project": tmp_path / "project"}
    with monkeypatch.context() as patched:
        patched.setattr(engine.MapStore, "write", fill)
        with pytest.raises(EnvironmentProblem, match=r"cannot write .*maps\.bin: the disk is full"):
            predict_targets([ColourNetwork()], [str(slide)], settings, **options)
    network = ColourNetwork()
    record, failed = predict_targets([network], [str(slide)], settings, **options)
    assert not failed and record.counts["nuclei"] == len(expected)
    assert network.windows <= WINDOWS - 28
