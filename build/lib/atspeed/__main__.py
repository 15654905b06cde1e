"""The `atspeed` command: `atspeed train --help`, or `python -m atspeed train --help`."""

import importlib
import os
import pkgutil
import sys

from atspeed import __version__, commands
from genrec.runtime.cli import errors_in_one_line, log_file, run
from genrec.runtime.errors import UserError
from genrec.runtime.flags import check_known
from genrec.runtime.machine import code_commit


def command_names() -> list[str]:
    """The commands, as they are typed: those of the package `atspeed.commands`."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]


def main() -> None:
    """Run the command that the first argument names; without one, list them."""
    name, *flags = sys.argv[1:] or ["--help"]
    with errors_in_one_line():
        if name in ("--help", "-h", "help"):
            print(_overview())
            return
        if name == "--version":
            print(f"atspeed {__version__}" + (f", commit {commit}" if (commit := code_commit()) else ""))
            return
        known = command_names()
        if name.startswith("-"):
            raise UserError(f"{name}: begin with a command, one of {', '.join(known)}")
        name = name.replace("_", "-")
        check_known(name, known, "unknown command ")
        module = importlib.import_module(f"atspeed.commands.{name.replace('-', '_')}")
        os.environ.setdefault("LOG_FILE", log_file(name))
    run(module.main, flags)


def _overview() -> str:
    lines = ["atspeed COMMAND [--flag VALUE …]; atspeed COMMAND --help explains every flag.", "", "Commands:"]
    for name in command_names():
        doc = importlib.import_module(f"atspeed.commands.{name.replace('-', '_')}").__doc__ or ""
        lines.append(f"  {name:<14}{doc.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
