"""The course of a run as rows: ``metrics.csv``, TensorBoard, and a line for people."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from stqp import files
from stqp.training.losses import TERMS
from stqp.training.validation import SCORES

logger = logging.getLogger(__name__)
METRICS = "metrics.csv"
COLUMNS = ("phase", "epoch", "step", "minutes", "lr", "loss", *TERMS, *(f"validation_{name}" for name in SCORES))


class Metrics:
    """Appends a row an epoch to ``metrics.csv``, and to TensorBoard's files where they are asked for.

    Parameters
    ----------
    out
        Folder of the run.
    step
        Step at which the run goes on; later rows, which a killed process wrote after its last save, are dropped.
    tensorboard
        Whether to write TensorBoard's event files into ``tensorboard``.
    """

    def __init__(self, out: Path, step: int = 0, tensorboard: bool = False):
        self.path = out / METRICS
        self._writer = _event_writer(out / "tensorboard", step) if tensorboard else None
        rows = read_metrics(self.path) if step else []
        kept = [row for row in rows if float(row["step"]) <= step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
        files.write_bytes(self.path, text.getvalue().encode())

    def write(self, row: dict[str, float]) -> None:
        """Append one row, and say it."""
        with files.disk_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            values = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
            csv.DictWriter(file, COLUMNS, extrasaction="ignore").writerow(values)
        if self._writer is not None:
            for name, value in row.items():
                if name in COLUMNS[4:]:
                    group, _, rest = name.partition("_") if name.startswith("validation_") else ("training", "", name)
                    self._writer.add_scalar(f"{group}/{rest}", value, int(row["step"]))
            self._writer.flush()
        text = f"epoch {row['epoch']:.3g}, step {row['step']:.0f}, {row['minutes']:.1f} min: loss {row['loss']:.3f}"
        names = {
            "validation_pq": "PQ",
            "validation_f_d": "F_d",
            "validation_f_c_mean": "F_c",
            "validation_dice": "Dice",
        }
        shown = ", ".join(f"{label} {row[name]:.3f}" for name, label in names.items() if name in row)
        logger.info("%s", text + (f"; held out: {shown}" if shown else ""))

    def close(self) -> None:
        """Close the event files."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a ``metrics.csv``, without one that was cut short."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [row for row in csv.DictReader(whole) if row.get("step") and None not in row.values()]


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # its smaller sister writes the same files
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found, no-redef, unused-ignore]
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
