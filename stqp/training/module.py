"""One network in training: forward pass, loss, optimiser."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import nn

from stqp.training.distributed import sum_over_processes
from stqp.training.lite import LiteLayers
from stqp.training.losses import TERMS, HoVerNetLoss
from stqp.training.network import encoder_layers
from stqp.training.state import Plan, State


class HoVerNetModule(lightning.LightningModule):
    """A HoVer-Net with its losses, for Lightning's trainer.

    Parameters
    ----------
    network
        Takes float NCHW 0-255 and returns logits tp, np, hv.
    loss
        The losses.
    plan
        Limits and learning rate of the phase.
    state
        Where the run stands.
    freeze_norm
        Whether BatchNorm keeps its running statistics.
    """

    def __init__(self, network: nn.Module, loss: HoVerNetLoss, plan: Plan, state: State, freeze_norm: bool = False):
        super().__init__()
        self.network, self.loss, self.plan, self.state, self.freeze_norm = network, loss, plan, state, freeze_norm
        self.latest: list[float] = []
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        if plan.phase.frozen:
            for layer in encoder_layers(network):
                layer.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW or Adam; biases and normalisation do not decay."""
        schedule = self.plan.schedule
        learning = [p for p in self.network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": schedule.weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        rate = self.plan.learning_rate(self.state)
        if schedule.optimizer == "adam":
            return torch.optim.Adam(groups, lr=rate)
        return torch.optim.AdamW(groups, lr=rate)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the mode of the layers, and the learning rate."""
        self.network.train()
        if self.freeze_norm:
            for layer in self.network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.plan.learning_rate(self.state)

    def sums(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the loss of a batch is made of; see `stqp.training.losses`."""
        output = self.predict(batch["image"].float())
        side = batch["np"].shape[-1]
        rim = (output["np"].shape[-1] - side) // 2
        return self.loss.sums({k: v[..., rim : rim + side, rim : rim + side] for k, v in output.items()}, batch)

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits that the loss is taken of."""
        if isinstance(self.network, LiteLayers):
            # padding blurs only the rim; learning from more than the middle doubles what a crop teaches
            return self.network.features(images)
        output: dict[str, torch.Tensor] = self.network(images)
        return output

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of one batch, of all processes together."""
        loss, terms = self.loss.total(sum_over_processes(self.sums(batch)))
        self.latest = torch.stack([loss.detach(), *(terms[name].detach() for name in TERMS)]).tolist()
        if not all(value - value == 0 for value in self.latest):
            bad = [name for name, value in zip(TERMS, self.latest[1:], strict=True) if value - value != 0]
            raise FloatingPointError(
                f"the loss {' and '.join(bad) or 'total'} is no finite number at step {self.state.steps + 1}; try a "
                f"lower --lr than {self.plan.schedule.lr:g}, or --precision 32"
            )
        return loss
