"""Where the network runs."""

from __future__ import annotations

from stqp.errors import EnvironmentProblem, UsageError


class OutOfDeviceMemory(EnvironmentProblem):
    """The memory of a device is too small for what was asked of it at once."""


DEVICES = ("auto", "cuda", "mps", "cpu")


def pick_device(name: str = "auto") -> str:
    """Name of the torch device to use.

    Parameters
    ----------
    name
        ``auto`` (CUDA, then MPS, then the CPU), ``cuda`` (also ``cuda:1``), ``mps`` or ``cpu``.

    Raises
    ------
    EnvironmentProblem
        When the device asked for is not there.
    UsageError
        When the name is none of these.
    """
    if name.split(":")[0] not in DEVICES:
        raise UsageError(f"expected a device of {', '.join(DEVICES)}, found {name!r}")
    if name == "cpu":
        return "cpu"
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if name.startswith("cuda"):
        if not cuda:
            raise EnvironmentProblem("the device 'cuda' was asked for, but torch finds no CUDA GPU; use --device auto")
        number = name.partition(":")[2]
        if number and (not number.isdigit() or int(number) >= torch.cuda.device_count()):
            raise EnvironmentProblem(
                f"the device {name!r} was asked for, but torch finds {torch.cuda.device_count()} GPUs"
            )
    if name == "mps" and not mps:
        raise EnvironmentProblem("the device 'mps' was asked for, but torch finds no Apple GPU; use --device auto")
    return name


def pick_devices(names: str = "auto") -> list[str]:
    """Names of the torch devices that share the work.

    Parameters
    ----------
    names
        As `pick_device`, several with commas between them; ``auto`` means every CUDA GPU where there is one.

    Raises
    ------
    EnvironmentProblem
        When one of them is not there.
    UsageError
        When a name is none of a device, or comes twice.
    """
    listed = [name.strip() for name in names.split(",")]
    devices = [pick_device(name) for name in listed]
    if len(set(devices)) < len(devices):
        raise UsageError(f"expected different devices, found {names!r}")
    if listed == ["auto"] and devices == ["cuda"]:
        import torch

        number = torch.cuda.device_count()
        return [f"cuda:{i}" for i in range(number)] if number > 1 else devices
    return devices


def memory_of(device: str) -> int:
    """Bytes of memory of a device, used or not: of a GPU its own, else the machine's."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)
