"""The released BeamSD as methods of a benchmark, run by an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.benchmark.methods import DecodedLists, Method
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from beamsd import Clock

METHODS = {"BeamSD generate": "generate", "BeamSD tree attention": "tree", "BeamSD speculative": "speculative"}
NEEDS_DRAFT = "BeamSD speculative"
NEED = "transformers 4.41 to 4.44, numpy below 2, torch, safetensors"


def check_beamsd(folder: str, python: str) -> None:
    """Raises UserError if `folder` does not hold BeamSD, or `python` cannot run it."""
    if not (Path(folder) / "atspeed" / "beamsd.py").is_file():
        raise UserError(f"--beamsd {folder}: holds no atspeed/beamsd.py; give a clone of the released BeamSD")
    said = "import torch, safetensors, transformers; print(transformers.__version__)"
    try:
        asked = subprocess.run([python, "-c", said], env=_environment(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--beamsd_python {python}: cannot be started ({error.strerror}); it needs {NEED}") from error
    version = asked.stdout.strip()
    if asked.returncode or not version.startswith(("4.41", "4.42", "4.43", "4.44")):
        why = f"has transformers {version}" if version else (asked.stderr.strip().splitlines() or ["says nothing"])[-1]
        raise UserError(f"--beamsd_python {python}: {why}; BeamSD needs {NEED}")


class ReleasedBeamSD:
    """A process that holds target and draft and decodes with BeamSD, one request at a time. Close it after use."""

    def __init__(self, folder: str, python: str, target: str, draft: str | None, items: Tensor, threads: int):
        """items: (n_items, L) token ids. Raises UserError if BeamSD does not come up."""
        self._items = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115, closed with the process
        json.dump(items.unique(dim=0).tolist(), self._items)
        self._items.flush()
        command = [python, str(Path(__file__).with_name("beamsd_worker.py")), "--beamsd", str(Path(folder).resolve())]
        command += ["--target", target, "--items", self._items.name, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command + (["--draft", draft] if draft else []), env=_environment(), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        self.versions = self._read()

    def methods(self, draft: bool, draft_width: int | None, gamma: int) -> dict[str, Method]:
        """draft_width: N; None is twice the beams. A batch takes as long as its requests one after another."""
        return {
            name: Method(self._decode(kind, draft_width, gamma), peer=True)
            for name, kind in METHODS.items()
            if draft or name != NEEDS_DRAFT
        }

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._items.close()

    def _decode(
        self, kind: str, draft_width: int | None, gamma: int
    ) -> Callable[[Tensor, Tensor, int, Clock, Sequence[int]], DecodedLists]:
        import torch

        def decode(ids: Tensor, mask: Tensor, width: int, clock: Clock, seeds: Sequence[int]) -> DecodedLists:
            said = [
                self._ask(method=kind, prompt=row[real].tolist(), width=width, draft_width=draft_width or 2 * width,
                          gamma=gamma)
                for row, real in zip(ids.cpu(), mask.cpu().bool(), strict=True)
            ]  # fmt: skip
            accepted = None
            if kind == "speculative":  # a mean over rounds: one column
                accepted = torch.tensor([[each["accepted"]] for each in said], dtype=torch.float64)
            return DecodedLists(
                sequences=torch.tensor([each["sequences"] for each in said]),
                scores=None,
                found=torch.full((len(said),), width),
                target_calls=torch.tensor([each["calls"] for each in said]),
                accepted=accepted, target_tokens=None, draft_tokens=None, seconds=sum(each["seconds"] for each in said),
            )  # fmt: skip

        return decode

    def _ask(self, **what: object) -> dict:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"BeamSD ended with exit code {self._process.wait()}; what it said is above")
        return json.loads(line)


def _environment() -> dict[str, str]:
    """Without this project's packages, one of which has the name of BeamSD's."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
