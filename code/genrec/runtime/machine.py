"""The name of the machine on which times are measured."""

import platform


def machine_name(device: object) -> str:
    """Returns the GPU, or the CPU and torch's threads. device: a torch.device or its name, where the models are."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
