"""How many nuclei of each class every filter of labels drops, so that no class is censored unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stqp.errors import InputError
from stqp.taxonomy import UNKNOWN, ordered

USED = "used"
_MORE, _CHANCE = 1.5, 0.01


@dataclass(frozen=True)
class Drops:
    """Nuclei of each class by what became of them.

    Attributes
    ----------
    counts : dict
        By class, then by reason (`USED` for those that are used).
    source : str
        For messages.
    """

    counts: Mapping[str, Mapping[str, int]]
    source: str

    @property
    def classes(self) -> list[str]:
        """Classes in the order of the taxonomy, Unknown last."""
        return [*ordered(self.counts), *([UNKNOWN] if UNKNOWN in self.counts else [])]

    @property
    def reasons(self) -> list[str]:
        """Reasons for dropping, the one that drops most first."""
        totals: dict[str, int] = {}
        for counts in self.counts.values():
            for reason, number in counts.items():
                if reason != USED:
                    totals[reason] = totals.get(reason, 0) + number
        return sorted(totals, key=lambda r: -totals[r])

    def rows(self) -> list[dict[str, Any]]:
        """For each class and reason, and for all reasons together: ``nuclei``, ``dropped``, ``rate`` and its 95 %
        interval (Wilson), ``others`` (rate of the other classes), ``censored``.

        A class is called censored by a reason where it loses half as much again as the other classes do, and
        chance alone would make so large a difference in less than one case of 100.
        """
        result = []
        for reason in [None, *self.reasons]:
            numbers = {name: self._dropped(name, reason) for name in self.classes}
            for name, (dropped, nuclei) in numbers.items():
                rest = [value for other, value in numbers.items() if other != name]
                others = sum(d for d, _ in rest), sum(n for _, n in rest)
                result.append(
                    {
                        "class": name,
                        "reason": reason or "all reasons",
                        "nuclei": nuclei,
                        "dropped": dropped,
                        "rate": dropped / nuclei if nuclei else float("nan"),
                        "interval": _wilson(dropped, nuclei),
                        "others": others[0] / others[1] if others[1] else float("nan"),
                        "censored": _censored(dropped, nuclei, *others),
                    }
                )
        return result

    def _dropped(self, name: str, reason: str | None) -> tuple[int, int]:
        counts = self.counts[name]
        total = sum(counts.values())
        return (total - counts.get(USED, 0) if reason is None else counts.get(reason, 0)), total


def read_drops(path: Path) -> Drops:
    """Read what the cutting of patches dropped: of a training run, or of a file of patches.

    Raises
    ------
    InputError
        When it is neither.
    """
    from stqp.patches.store import PatchFile

    file = path / "patches.h5" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"expected a training run or a file of patches, found no {file}")
    labels = PatchFile(file).about.get("labels")
    if not labels:
        raise InputError(f"{file} does not say which labels were dropped; cut its patches again")
    return Drops(labels, str(file))


def _wilson(part: int, whole: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    if not whole:
        return [float("nan"), float("nan")]
    z = 1.959963984540054
    share, more = part / whole, z * z / whole
    middle, half = share + more / 2, z * (share * (1 - share) / whole + more / (4 * whole)) ** 0.5
    return [(middle - half) / (1 + more), (middle + half) / (1 + more)]


def _censored(dropped: int, nuclei: int, other_dropped: int, other_nuclei: int) -> bool:
    if not dropped or not nuclei or not other_nuclei:
        return False
    if dropped / nuclei <= _MORE * other_dropped / other_nuclei:
        return False
    from scipy.stats import fisher_exact

    table = [[dropped, nuclei - dropped], [other_dropped, other_nuclei - other_dropped]]
    return bool(fisher_exact(table, alternative="greater").pvalue < _CHANCE)
