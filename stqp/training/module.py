"""One network in training: loss, optimiser, and a learning rate that follows the budget."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import nn

from stqp.training.lite import LiteLayers
from stqp.training.losses import hovernet_loss
from stqp.training.network import Architecture


@dataclass(frozen=True)
class Budget:
    """When training ends: at the first of its limits that is reached (None is no limit)."""

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def progress(self, epoch: float, step: int, seconds: float) -> float:
        """Fraction that is used up, 0 to 1."""
        parts = [0.0]
        if self.epochs:
            parts.append(epoch / self.epochs)
        if self.steps:
            parts.append(step / self.steps)
        if self.minutes:
            parts.append(seconds / (60 * self.minutes))
        return min(max(parts), 1.0)


def learning_rate(progress: float, peak: float, warm_up: float = 0.03) -> float:
    """Linear rise over the first part of the budget, then half a cosine down to a hundredth."""
    if progress < warm_up:
        return peak * (0.05 + 0.95 * progress / warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    return peak * (0.01 + 0.99 * cosine)


class HoVerNetModule(lightning.LightningModule):
    """A HoVer-Net with its losses, for Lightning's trainer.

    Parameters
    ----------
    network
        Takes float NCHW 0-255 and returns logits tp, np, hv.
    arch
        Its geometry.
    budget
        Bounds the training and shapes the learning rate. The time used counts over resumed runs.
    peak_rate
        Highest learning rate.
    score
        Called with the network after an epoch; returns the scores on the validation patches. Where it is
        slow, epochs are left out, so that it takes at most a tenth of the time; the last one never is.
    write
        Called with the mean losses and the scores of each epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        arch: Architecture,
        budget: Budget,
        peak_rate: float,
        score: Callable[[nn.Module], dict[str, float]] | None = None,
        write: Callable[[dict[str, float]], None] | None = None,
    ):
        super().__init__()
        self.network, self.arch, self.budget, self.peak_rate = network, arch, budget, peak_rate
        self.score, self.write = score, write
        self.scores: dict[str, float] = {}
        self._scored, self._scoring = -math.inf, 0.0
        self.seconds_before = 0.0
        self._started = time.monotonic()
        self._terms: list[dict[str, torch.Tensor]] = []

    @property
    def seconds(self) -> float:
        """Training time so far, resumed runs included."""
        return self.seconds_before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Fraction of the budget that is used up."""
        trainer = self.trainer
        batches = max(int(trainer.num_training_batches), 1)
        return self.budget.progress(trainer.global_step / batches, trainer.global_step, self.seconds)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; biases and normalisation do not decay."""
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.peak_rate)

    def on_train_start(self) -> None:
        """Start the clock when the first step does, not when the file was opened."""
        self._started = time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Set the learning rate; -1 skips what is left of the epoch when the budget is used up."""
        if self.progress >= 1:
            self.trainer.should_stop = True
            return -1
        rate = learning_rate(self.progress, self.peak_rate)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        return None

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of one batch."""
        images = batch["image"].float()
        if isinstance(self.network, LiteLayers):
            # padding blurs only the rim; learning from more than the middle doubles what a crop teaches
            rim = (images.shape[-1] - batch["np"].shape[-1]) // 2
            output = {k: v[..., rim:-rim, rim:-rim] for k, v in self.network.features(images).items()}
        else:
            output = self.network(images)
        loss, terms = hovernet_loss(output, batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.global_step}; try a lower --lr")
        self._terms.append({"loss": loss.detach(), **{k: v.detach() for k, v in terms.items()}})
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Write the epoch's mean losses, and the scores on the validation patches."""
        if not self._terms:
            return
        row = {k: float(torch.stack([t[k] for t in self._terms]).mean()) for k in self._terms[0]}
        self._terms = []
        row.update(epoch=float(self.current_epoch), step=float(self.global_step), minutes=self.seconds / 60)
        row["lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        last = self.progress >= 1
        if self.score is not None and (last or time.monotonic() - self._scored > 10 * self._scoring):
            started = time.monotonic()
            training = self.network.training
            self.network.eval()
            self.scores = self.score(self.network)
            self.network.train(training)
            self._scored = time.monotonic()
            self._scoring = self._scored - started
            row.update({f"validation_{k}": v for k, v in self.scores.items()})
        if self.write is not None:
            self.write(row)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time used, which is part of the budget."""
        checkpoint["stqp_seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the clock where the earlier run left it."""
        self.seconds_before = float(checkpoint.get("stqp_seconds", 0.0))
