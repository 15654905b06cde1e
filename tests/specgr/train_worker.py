"""Started as processes of its own by test_train.py: python train_worker.py killed|whole FLAGS…"""

import os
import signal
import sys

from genrec.runtime.cli import leave_process_group
from specgr import train
from specgr.configuration.config import read_arguments
from specgr.training import fitting as training


def main() -> None:
    if sys.argv[1] == "killed":
        save = training._save

        def save_and_die(*args: object) -> None:
            save(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        training._save = save_and_die
    train.main(*read_arguments(sys.argv[2:], train.Flags))
    leave_process_group()


if __name__ == "__main__":
    main()
