"""The machine that times were measured on."""

import platform


def machine_name(device: object) -> str:
    """The GPU, or the CPU and torch's threads. device: that of the models, a torch.device or its name."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
