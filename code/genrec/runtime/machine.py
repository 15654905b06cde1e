"""The machine: its name, beside which times are reported, its free memory; and which code runs on it."""

import platform
import subprocess
from pathlib import Path


def machine_name(device: object) -> str:
    """Returns the GPU, or the CPU and torch's threads. device: a torch.device or its name, where the models are."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def made_on(device: object) -> str:
    """What stands on every table and plot: `machine_name`, and the commit of the code, if it is a checkout."""
    commit = code_commit()
    short = commit and commit[:7] + ("-dirty" if commit.endswith("-dirty") else "")
    return machine_name(device) + (f", commit {short}" if short else "")


def code_commit() -> str | None:
    """The commit of the checkout that this code is in, with "-dirty" if its files differ. None outside of one."""
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy may lie in another project's checkout
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def resident_bytes(process: int) -> int:
    """Memory of a process and of all that it started; on Linux, what they share is counted once."""
    import psutil

    first, total = psutil.Process(process), 0
    for one in [first, *first.children(recursive=True)]:
        try:
            info = one.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except psutil.Error:  # has ended meanwhile, or is another user's
            continue
    return total


def free_memory() -> int:
    """Bytes that this process can still take on the CPU: what the system has to give, or a container's limit allows."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # no Linux
        return 0
    try:
        group = Path("/sys/fs/cgroup")
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
