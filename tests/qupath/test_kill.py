"""A save that is cut short, at each of its steps and at random moments: every image has its old objects or its new."""

import builtins
import errno
import io
import os
import random
import shutil
import signal
import time

import pytest
from qupath import steps
from qupath.pictures import contents, picture
from qupath.qupath_objects import many

from stqp.errors import EnvironmentProblem
from stqp.locking import LOCK_NAME
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide

if not hasattr(os, "fork"):
    pytest.skip("processes are forked to be killed, which Windows cannot", allow_module_level=True)

OLD, NEW, MORE = many(6, seed=1), many(7, seed=2), many(3, seed=3)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    """A process that is killed loses nothing that the system has; only `steps` asks what the disk has."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return [picture(folder / f"{name}.png", (20 + i, 15)) for i, name in enumerate("abcd")]


@pytest.fixture(scope="module")
def original(tmp_path_factory, images):
    """Folder of a project with three images, each with objects and a note of stqp's."""
    folder = tmp_path_factory.mktemp("original") / "project"
    with QuPathProject.open(folder, "x") as project:
        for image in images[:3]:
            with open_slide(image, 0.5) as slide:
                entry = project.add_image(slide)
            entry.write_objects(OLD)
            entry.stqp_folder.mkdir(parents=True)
            (entry.stqp_folder / "note").write_text(image.stem)
    return folder


def change(folder, image):
    """Everything a run can do to a project, in one save."""
    with QuPathProject.open(folder, "r+") as project:
        a, b, c = project.entries
        a.write_objects(NEW, lambda present: present.kind >= 0)
        a.rename("b.png")
        b.write_objects(MORE)
        b.rename("a.png")
        b.set_mpp(0.25)
        project.remove(c)
        project.add_classes({"New class": (1, 2, 3)})
        project.metadata = {"study": "x"}
        with open_slide(image, 0.5) as slide:
            project.add_image(slide).write_objects(NEW)


def is_new(entry):
    """Whether an image has its new objects; anything but all old or all new fails."""
    ids = sorted(entry.read_objects().ids.tolist())
    new = {1: NEW.ids.tolist(), 2: [*OLD.ids.tolist(), *MORE.ids.tolist()], 4: NEW.ids.tolist()}.get(entry.id, [])
    assert ids in (sorted(OLD.ids.tolist()), sorted(new)), entry
    return ids == sorted(new)


def note(entry):
    return (entry.stqp_folder / "note").read_text()


def check(project):
    """All is old or new, and the project file is new only when all the rest is."""
    saved = project.entries[0].name == "b.png"
    states = [is_new(entry) for entry in project.entries if entry.id != 3]
    if saved:
        assert [e.id for e in project.entries] == [1, 2, 4] and all(states)
        assert project.metadata == {"study": "x"} and "New class" in project.classes
    else:
        assert [e.name for e in project.entries] == ["a.png", "b.png", "c.png"]
        assert project.entries[1].mpp == 0.5 and note(project.entries[2]) == "c"
    assert (note(project.entries[0]), note(project.entries[1])) == ("a", "b")
    return saved


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or not any(p.iterdir())}


def expected_names(saved):
    own = {f"data/{i}/{name}" for i in (1, 2, 4 if saved else 3) for name in (
        "data.qpdata", "server.json", "summary.json", "thumbnail.jpg")}  # fmt: skip
    notes = {"stqp/a.png/note", "stqp/b.png/note"} | (set() if saved else {"stqp/c.png/note"})
    rest = {"project.qpproj", "project.qpproj.backup", "classifiers/classes.json"}
    return own | notes | rest


def check_after(folder):
    """What a run that was stopped left is read, taken over, and cleared away by the next that saves."""
    with QuPathProject.open(folder) as project:
        saved = check(project)
    with QuPathProject.open(folder, "r+") as project:
        assert check(project) == saved
        project.entries[0].add_metadata({"next": "run"})
    with QuPathProject.open(folder) as project:
        assert check(project) == saved
        assert project.entries[0].metadata == {"next": "run"}
    found = names(folder) - {"data/metadata.json"}
    assert found == expected_names(saved), found ^ expected_names(saved)
    return saved


def stopped(original, images, tmp_path, at, what):
    """Exit code and folder of a change that was stopped at a step."""
    folder = tmp_path / f"{at} {what}"
    shutil.copytree(original, folder)

    def work(arm):
        arm()
        change(folder, images[3])

    code = steps.run(work, at, what, tmp_path / "log")
    assert code != steps.BROKEN, f"at step {at}: {(tmp_path / 'log').read_text()}"
    return code, folder


def test_killed_or_cut_from_power_at_every_step(original, images, tmp_path):
    outcomes = []
    for at in range(500):
        code, folder = stopped(original, images, tmp_path, at, "power")
        try:
            outcomes.append(check_after(folder))
            if code == steps.CUT:  # otherwise both are the same
                _, folder = stopped(original, images, tmp_path, at, "kill")
                assert check_after(folder) == outcomes[-1]
        except BaseException:
            print(f"stopped at step {at}", sorted(names(folder)))
            raise
        shutil.rmtree(folder)
        if code == 0:
            break
    # once saved, always saved; and most steps are before and some after
    assert outcomes == sorted(outcomes) and outcomes[-1] and not outcomes[0]
    assert len(outcomes) > 60 and outcomes.count(True) > 5


def create(folder, image):
    with QuPathProject.open(folder, "x") as project, open_slide(image, 0.5) as slide:
        project.add_image(slide).write_objects(OLD)


@pytest.mark.parametrize("what", ["kill", "power", "full", "full once"])
def test_making_a_project_stopped_at_every_step(images, tmp_path, what):
    made = []
    for at in range(300):
        folder = tmp_path / f"{at}"

        def work(arm, folder=folder):
            arm()
            create(folder, images[0])

        code = steps.run(work, at, what, tmp_path / "log")
        assert code != steps.BROKEN, (tmp_path / "log").read_text()
        try:
            if code == steps.REFUSED:
                assert not folder.exists()
            made.append((folder / "project.qpproj").exists())
            if not made[-1]:
                create(folder, images[0])
            with QuPathProject.open(folder, "r+") as project:
                assert len(project.entry("a.png").read_objects()) == len(OLD)
                project.entry("a.png").description = "x"
            left = {n for n in names(folder) if "/." in n or n.startswith(".") or n.endswith((".bkp", ".part"))}
            assert not left and len(list((folder / "data").iterdir())) == 1
        except BaseException:
            print(f"stopped at step {at}", sorted(names(folder)))
            raise
        if code == 0:
            break
    assert made[-1] and not made[0]
    if what != "full once":  # which some steps get over
        assert made == sorted(made)


@pytest.mark.parametrize("what", ["full", "full once"])
def test_a_disk_that_is_full_at_every_step(original, images, tmp_path, what):
    before, refused = contents(original), 0
    for at in range(500):
        code, folder = stopped(original, images, tmp_path, at, what)
        try:
            if code == steps.REFUSED:
                refused += 1
                assert contents(folder) == before
            else:  # the rest of the steps could be left to the next run
                assert check_after(folder)
        except BaseException:
            print(f"refused at step {at}", sorted(names(folder)))
            raise
        shutil.rmtree(folder)
        if code == 0:
            break
    assert refused > 30


def rewrite(folder, number):
    with QuPathProject.open(folder, "r+") as project:
        for entry, objects in zip(project.entries, (OLD, NEW), strict=False):
            entry.write_objects(MORE if number % 2 else objects, lambda present: present.kind >= 0)
        project.set_classes({"Even" if number % 2 else "Odd": (1, 2, 3), f"{number}": (4, 5, 6)})
        project.entries[2].description = f"{number}"


def test_killed_hundreds_of_times(original, tmp_path):
    folder, log = tmp_path / "project", tmp_path / "log"
    shutil.copytree(original, folder)
    began = time.perf_counter()
    rewrite(folder, 0)
    once = time.perf_counter() - began
    wait, number, locked = random.Random(5), 0, 0
    sets = [tuple(sorted(o.ids.tolist())) for o in (OLD, NEW, MORE)]
    for _ in range(300):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    number += 1
                    rewrite(folder, number)
            except BaseException as error:
                log.write_text(repr(error))
            os._exit(1)
        time.sleep(wait.uniform(0, 2 * once))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == -signal.SIGKILL, log.read_text()
        locked += (folder / LOCK_NAME).exists()
        with QuPathProject.open(folder) as project:
            for entry in project.entries[:2]:
                assert tuple(sorted(entry.read_objects().ids.tolist())) in sets
            classes = list(project.classes)
            assert len(project.entries) == 3 and classes[0] == ("Even" if int(classes[1]) % 2 else "Odd")
            # the project file is the last
            assert int(project.entries[2].description) <= int(classes[1])
            number = int(classes[1])
    assert locked  # it was in the middle of things
    with QuPathProject.open(folder, "r+") as project:
        project.entries[2].description = "end"
    left = {n for n in names(folder) if "/." in n or n.startswith(".") or n.endswith((".bkp", ".part"))}
    assert not left


def test_a_read_only_folder_is_read_and_not_changed(original, images, tmp_path, monkeypatch):
    """As root may write everywhere, the system's refusal is put in its place."""
    folder = tmp_path / "project"
    shutil.copytree(original, folder)
    before = contents(folder)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        for name in ("mkdir", "link", "replace", "rename", "unlink", "remove", "rmdir", "chmod"):
            patch.setattr(os, name, refuse)
        really = io.open

        def only_reading(file, mode="r", *args, **kwargs):
            return refuse() if set(mode) & set("wax+") else really(file, mode, *args, **kwargs)

        patch.setattr(io, "open", only_reading)
        patch.setattr(builtins, "open", only_reading)
        low = os.open
        patch.setattr(os, "open", lambda p, flags, *a, **k: refuse() if flags & os.O_CREAT else low(p, flags, *a, **k))
        with QuPathProject.open(folder) as project:
            assert [len(e.read_objects()) for e in project.entries] == [6, 6, 6]
            assert project.relink(dry_run=True)[0].status == "found already"
        for mode in ("r+", "a", "w"):
            with pytest.raises(EnvironmentProblem, match="read-only"):
                QuPathProject.open(folder, mode)
        with pytest.raises(EnvironmentProblem, match="read-only"):
            QuPathProject.open(tmp_path / "new", "x")
    assert contents(folder) == before and not (tmp_path / "new").exists()
