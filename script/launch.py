"""Start a stage in several processes: what they say of a failure is all that is said, and the exit code is theirs.

    python script/launch.py accelerate --num_processes 4 … -m atspeed train …   # as accelerate launch
    python script/launch.py torchrun --nproc_per_node 2 … -m atspeed train …    # as torchrun

Both end a failure with a traceback and a table of their own, which say no more than the stage has said, and with 1.
"""

import logging
import signal
import sys

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

# Codes of processes that were ended because another had failed.
ENDED = (-signal.SIGTERM, 128 + signal.SIGTERM)


def main(launcher: str, arguments: list[str]) -> int:
    if launcher == "accelerate":
        from accelerate.commands.launch import main as start
    else:
        from torch.distributed.run import main as start
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
    sys.argv = [launcher, *arguments]
    try:
        start()
    except ChildFailedError as error:
        return exit_code(list(error.failures.values()))
    except SignalException as error:
        return 128 + error.sigval
    except (DistNetworkError, ConnectionError) as error:
        said = str(error).splitlines()[0]
        print(f"error: the processes cannot find one another ({said}); set MAIN_PROCESS_IP and MAIN_PROCESS_PORT",
              file=sys.stderr)  # fmt: skip
        return 2
    return 0


def exit_code(failures: list[ProcessFailure]) -> int:
    """Of the process that failed of itself, and first. One that the system has killed could say nothing: it is said."""
    first = min(failures, key=lambda failure: (failure.exitcode in ENDED, failure.timestamp))
    if first.exitcode >= 0:
        return first.exitcode
    name = signal.Signals(-first.exitcode).name
    if first.exitcode not in ENDED:
        why = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        print(f"error: process {first.local_rank} of this machine was ended by {name}{why}; run the same command again "
              "to go on: what was finished is kept", file=sys.stderr)  # fmt: skip
    return 128 - first.exitcode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
