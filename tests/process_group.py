"""What a process of a group does in the tests of training; a module of its own, so that a spawned one finds it."""

import os

import torch

from stqp.training.distributed import largest, sum_over_processes


def worker(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    inputs = torch.tensor([[1.0, 5.0], [4.0, -2.0]])[rank]
    loss = sum_over_processes(weight * inputs).prod()  # no sum of parts, as Dice is none
    loss.backward()
    gradient = weight.grad.clone()
    torch.distributed.all_reduce(gradient)
    most = largest([rank == 1, 3.5 - rank], torch.device("cpu"))
    torch.save({"loss": loss.detach(), "gradient": gradient / 2, "most": most}, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()
