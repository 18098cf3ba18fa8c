"""A process that is stopped at one of its steps on the disk: killed, cut from power, or out of space."""

import errno
import os
import sys
import traceback
from pathlib import Path

from stqp.errors import EnvironmentProblem
from stqp.locking import LOCK_NAME

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
NEEDS_SPACE = {"open", "os.link", "os.mkdir", "os.rename", "fsync"}
KILLED, CUT, SURVIVED, REFUSED, BROKEN = 9, 10, 11, 4, 1


class Steps:
    """Counts a process's changes of the disk from `arm` on, and does something at one of them.

    Parameters
    ----------
    at
        Number of the step, from 0.
    what : {"kill", "power", "full once", "full"}
        End at once; end, and cut to half what was written and never forced to the disk (the exit code says
        whether there was any); refuse this step; refuse this and all later ones that need space.
    """

    def __init__(self, at, what):
        self.at, self.what, self.count, self.armed = at, what, 0, False
        self.unsynced = set()

    def arm(self):
        sys.addaudithook(self.audit)  # for the rest of the process
        os.fsync = self.sync
        self.armed = True

    def audit(self, event, arguments):
        if not self.armed:
            return
        if event == "open":
            path, _, flags = arguments
            if not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or isinstance(path, int):
                return
            self.step(event)
            self.unsynced.add(str(Path(path).absolute()))
        elif event in CHANGES:
            self.step(event)
            if event in ("os.rename", "os.link"):
                source, target = (str(Path(p).absolute()) for p in arguments[:2])
                if source in self.unsynced:
                    self.unsynced.add(target)
                else:
                    self.unsynced.discard(target)

    def sync(self, handle):
        self.step("fsync")
        self.unsynced.discard(str(Path(f"/proc/self/fd/{handle}").readlink()))

    def step(self, event):
        if self.what.startswith("full") and event not in NEEDS_SPACE:
            return
        number, self.count = self.count, self.count + 1
        if number == self.at and self.what in ("kill", "power"):
            self.armed = False
            cut = [p for p in self.unsynced if self.what == "power" and Path(p).exists()]
            for path in cut:
                os.truncate(path, Path(path).stat().st_size // 2)
            # a lock is not worth the wait for the disk
            os._exit(CUT if any(LOCK_NAME not in p for p in cut) else KILLED)
        # a full disk can still rename, which is how files are put back
        if number == self.at or (number > self.at and self.what == "full" and event != "os.rename"):
            raise OSError(errno.ENOSPC, "No space left on device")


def run(work, at, what, log):
    """Do `work` in another process that is stopped at a step; its exit code, 0 when it ended before that step.

    The process sees what this one has imported.
    """
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            steps = Steps(at, what)
            work(steps.arm)
            code = 0 if steps.count <= at else SURVIVED
        except EnvironmentProblem:
            code = REFUSED
        except BaseException:
            steps.armed = False
            log.write_text(traceback.format_exc())
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
