"""When memory is full: which batch would have fitted."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stqp.training.data import TrainingCrops
    from stqp.training.module import HoVerNetModule


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory, or the machine's, is full."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def fitting_batch(module: HoVerNetModule, crops: TrainingCrops, batch_size: int, device: str) -> int:
    """Largest of a half, a quarter, ... of a batch whose step fits into the memory; 0 when none does.

    A step is tried for each: forward and backward, beside room for the optimiser.
    """
    module.zero_grad(set_to_none=True)
    item = crops[0]
    size = batch_size // 2
    while size:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        try:
            module.network.to(device).train()
            # Adam keeps two numbers for each weight
            room = [torch.empty_like(p) for p in module.network.parameters() for _ in range(2)]
            batch = {k: v[None].expand(size, *v.shape).to(device) for k, v in item.items()}
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                module.loss.total(module.sums(batch))[0].backward()
            del room, batch
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        finally:
            module.zero_grad(set_to_none=True)
    return 0


def explain(
    module: HoVerNetModule, crops: TrainingCrops, accumulate: int, device: str, *, first: bool, begun: bool
) -> str:
    """One sentence on a full memory, with the batch size that fits.

    Parameters
    ----------
    module, crops, device
        What did not fit, and where.
    accumulate
        Batches that make a step.
    first
        Whether it was the phase with the encoder frozen, whose batches are set on their own.
    begun
        Whether the run has a checkpoint, so that it goes on with no other batch size.
    """
    batch_size = module.plan.phase.batch_size
    size = fitting_batch(module, crops, batch_size, device)
    where = "the machine's memory" if device == "cpu" else f"the memory of {device}"
    if not size:
        return f"{where} is too small for a step of the network, even with one crop; use --arch lite, or another device"
    flag = "--freeze-batch-size" if first else "--batch-size"
    same = f"{flag} {size} --accumulate {accumulate * -(-batch_size // size)}"
    how = f"--resume as it is when the device is free, or start a new run with {same}" if begun else f"--resume {same}"
    return f"{where} is too small for batches of {batch_size} crops, {size} would fit: go on with {how}"
