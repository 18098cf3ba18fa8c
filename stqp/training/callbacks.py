"""What happens around the steps: metrics, checkpoints to go on from, progress."""

import csv
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch

from stqp import files

logger = logging.getLogger(__name__)
Progress = Callable[[float, dict[str, float]], None]
"""Called with the fraction of the budget that is used up, and the latest losses and scores."""

_LOSSES = ("loss", "np_ce", "np_dice", "hv_mse", "hv_msge", "tp_ce", "tp_dice")
_SCORES = ("dice", "pq", "f_d", "type_f1_macro", "f_c_mean")
COLUMNS = ("epoch", "step", "minutes", "lr", *_LOSSES, *(f"validation_{name}" for name in _SCORES))


class Metrics(lightning.Callback):
    """Appends a row an epoch to a CSV file.

    Parameters
    ----------
    path
        The file; rows of an earlier part of the same run stay.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, row: dict[str, float]) -> None:
        """Append one row, and say the scores where there are any."""
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" for k, v in row.items()})
        if "validation_pq" in row:
            logger.info(
                "epoch %d, %.1f min: loss %.3f; held out: PQ %.3f, F_d %.3f, type-F1 %.3f",
                row["epoch"],
                row["minutes"],
                row["loss"],
                row["validation_pq"],
                row["validation_f_d"],
                row["validation_type_f1_macro"],
            )


class Resumable(lightning.Callback):
    """Saves everything that `--resume` needs, every few minutes, after the last step, and on an interruption."""

    def __init__(self, path: Path, minutes: float = 3.0):
        self.path, self.seconds = path, minutes * 60
        self._saved = time.monotonic()

    def _save(self, trainer: lightning.Trainer) -> None:
        with files.replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save when it is time to."""
        if time.monotonic() - self._saved > self.seconds:
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save the end, which a larger budget can go on from."""
        self._save(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save what was learnt until Ctrl-C."""
        if isinstance(exception, KeyboardInterrupt):
            self._save(trainer)


class Report(lightning.Callback):
    """Passes progress on to whoever draws it."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        """Report after each step."""
        loss = trainer.callback_metrics.get("loss", torch.nan)
        self.progress(module.progress, {"loss": float(loss), "step": trainer.global_step, **module.scores})
