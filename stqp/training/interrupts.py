"""Ctrl-C and SIGTERM in training: the step that is under way ends, and what was learnt is saved."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Raised between two steps, after all was saved; becomes `KeyboardInterrupt` outside of the trainer."""


class Interrupts:
    """Notes Ctrl-C and SIGTERM, which would else tear a step in two; a second Ctrl-C does so.

    Attributes
    ----------
    pending : bool
        Whether one came.
    """

    def __init__(self) -> None:
        self.pending = False
        self._before: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Take the signals over, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs shall not hear Ctrl-C
                self._before.setdefault(number, signal.signal(number, self._note))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.pending = True
        logger.warning("stopping after this step; Ctrl-C again stops at once, at the last save")

    def __enter__(self) -> Interrupts:
        """Remember what handles the signals now."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.getsignal(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back; Lightning changes them too."""
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)
        self._before = {}
