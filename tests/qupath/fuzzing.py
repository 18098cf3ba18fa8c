"""Damaged copies of a .qpdata stream, and what reading one may do: give objects, or one clear error, in time."""

import re
import signal
import struct
import threading
from contextlib import contextmanager

import numpy as np

from stqp.errors import InputError
from stqp.qupath.objects import PathObjects
from stqp.qupath.qpdata import read_image_data, rewrite

SECONDS = 20
_HANDLE = re.compile(rb"\x71\x00\x7e..", re.DOTALL)
_NUMBERS = [struct.pack(">I", n) for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7E0000, 0x10000000, 1 << 20)]


def damaged(data, rng):
    """Make one damaged copy."""
    raw = bytearray(data)
    n = len(raw)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        at = int(rng.integers(4, max(len(raw) - 4, 5)))
        way = int(rng.integers(9))
        if way == 0:
            del raw[at:]
        elif way == 1:
            raw[at] ^= 1 << int(rng.integers(8))
        elif way == 2:
            raw[at] = int(rng.integers(0x70, 0x7F))  # a tag
        elif way == 3:
            raw[at : at + 4] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
        elif way == 4:
            raw[at : at + int(rng.integers(1, 64))] = b""
        elif way == 5:
            raw[at:at] = raw[at : at + int(rng.integers(1, 512))]
        elif way == 6:
            other = int(rng.integers(4, n))
            size = int(rng.integers(1, 200))
            raw[at : at + size] = data[other : other + size]
        elif way == 7:
            # another handle: cycles, and things of another class
            places = [m.start() for m in _HANDLE.finditer(raw)]
            if places:
                place = int(rng.choice(places))
                raw[place + 1 : place + 5] = struct.pack(">I", 0x7E0000 + int(rng.integers(0, 400)))
        else:
            raw[at : at + 2] = struct.pack(">H", int(rng.choice([0, 1, 0x7FFF, 0xFFFF])))
        if len(raw) < 8:
            break
    return bytes(raw)


def attempt(path, data, change=False):
    """Read a damaged stream; True when it could be read, False when it was refused as it should be."""
    path.write_bytes(data)
    try:
        with _alarm(SECONDS):
            read = read_image_data(path)
            if change:
                rewrite(path, np.zeros(len(read.objects), bool), PathObjects.empty())
        return True
    except InputError as error:
        assert str(path) in str(error), error
        if change:
            assert path.read_bytes() == data
        return False


@contextmanager
def _alarm(seconds):
    """Raise `TimeoutError` in what takes longer."""

    def ring(*_):
        raise TimeoutError(f"took more than {seconds} s")

    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
