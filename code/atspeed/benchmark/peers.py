"""Other software as methods of a benchmark: the released BeamSD and vLLM, each run by an interpreter of its own."""

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

BEAMSD, VLLM = "BeamSD", "vLLM"
METHODS = {"BeamSD generate": "generate", "BeamSD tree attention": "tree", "BeamSD speculative": "speculative"}
NEEDS_DRAFT = "BeamSD speculative"
BEAMSD_NEEDS = "transformers 4.41 to 4.44, numpy below 2, torch, safetensors"


def check_beamsd(folder: str, python: str) -> None:
    """Raises UserError if `folder` does not hold BeamSD, or `python` cannot run it."""
    if not (Path(folder) / "atspeed" / "beamsd.py").is_file():
        raise UserError(f"--beamsd {folder}: holds no atspeed/beamsd.py; give a clone of the released BeamSD")
    version, why = _version(python, "transformers", "--beamsd_python", BEAMSD_NEEDS, also="torch, safetensors")
    if not version.startswith(("4.41", "4.42", "4.43", "4.44")):
        why = f"has transformers {version}" if version else why
        raise UserError(f"--beamsd_python {python}: {why}; BeamSD needs {BEAMSD_NEEDS}")


def check_vllm(python: str) -> None:
    """Raises UserError if `python` has no vLLM."""
    version, why = _version(python, "vllm", "--vllm_python", "vllm", also="torch")
    if not version:
        raise UserError(f"--vllm_python {python}: {why}; it is to be an interpreter with vLLM")


def _version(python: str, package: str, flag: str, needs: str, also: str) -> tuple[str, str]:
    """Of a package, empty if it cannot be imported; and why not."""
    said = f"import {also}, {package}; print({package}.__version__)"
    try:
        asked = subprocess.run([python, "-c", said], env=_environment(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{flag} {python}: cannot be started ({error.strerror}); it needs {needs}") from error
    version = "" if asked.returncode else (asked.stdout.strip().splitlines() or [""])[-1]
    return version, (asked.stderr.strip().splitlines() or ["says nothing"])[-1]


class Peer:
    """A process that holds the models and decodes a batch a time. Close it after use."""

    def __init__(self, name: str, how: str, python: str, worker: str, flags: Sequence[str], kinds: dict[str, str]):
        """how: it decodes a batch, in words. worker: the file beside this one that answers. kinds: name of a method ->
        what the worker calls it.

        Raises UserError if it does not come up.
        """
        self.name, self.how, self.kinds = name, how, kinds
        command = [python, str(Path(__file__).with_name(worker)), *flags]
        self._process = subprocess.Popen(
            command, env=_environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.versions = self._read()

    def methods(self, draft_width: int | None, gamma: int) -> dict[str, Method]:
        """draft_width: N; None is twice the beams."""
        return {name: Method(self._decode(kind, draft_width, gamma), peer=True) for name, kind in self.kinds.items()}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _decode(
        self, kind: str, draft_width: int | None, gamma: int
    ) -> Callable[[Tensor, Tensor, int, Clock, Sequence[int]], DecodedLists]:
        import torch

        def decode(ids: Tensor, mask: Tensor, width: int, clock: Clock, seeds: Sequence[int]) -> DecodedLists:
            prompts = [row[real].tolist() for row, real in zip(ids.cpu(), mask.cpu().bool(), strict=True)]
            answer = self._ask(
                method=kind, prompts=prompts, width=width, draft_width=draft_width or 2 * width, gamma=gamma
            )
            said = answer["requests"]
            accepted = None
            if kind == "speculative":  # a mean over rounds: one column
                accepted = torch.tensor([[each["accepted"]] for each in said], dtype=torch.float64)
            return DecodedLists(
                sequences=torch.tensor([each["sequences"] for each in said]),
                scores=None,
                found=torch.full((len(said),), width),
                target_calls=torch.tensor([each["calls"] for each in said]),
                accepted=accepted, target_tokens=None, draft_tokens=None, seconds=answer["seconds"],
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
            raise UserError(f"{self.name} ended with exit code {self._process.wait()}; what it said is above")
        return json.loads(line)


def start_beamsd(folder: str, python: str, target: str, draft: str | None, items: Tensor, threads: int) -> Peer:
    """items: (n_items, L) token ids. Raises UserError if BeamSD does not come up."""
    kinds = {name: kind for name, kind in METHODS.items() if draft or name != NEEDS_DRAFT}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # which it has read when it says that it is there
        json.dump(items.unique(dim=0).tolist(), file)
        file.flush()
        flags = ["--beamsd", str(Path(folder).resolve()), "--target", target, "--items", file.name]
        flags += [*(["--draft", draft] if draft else []), "--threads", str(threads)]
        return Peer(BEAMSD, "one request at a time", python, "beamsd_worker.py", flags, kinds)


def start_vllm(
    python: str, target: str, prompts: Sequence[Sequence[int]], levels: int, widths: Sequence[int], threads: int
) -> Peer:
    """levels: L, the tokens to generate. widths: K. Raises UserError if vLLM does not come up."""
    longest = max(map(len, prompts)) + levels
    flags = ["--target", target, "--levels", str(levels), "--width", str(max(widths)), "--length", str(longest)]
    how = "a batch at once, without a trie, prompts it has met from its cache"
    return Peer(
        VLLM, how, python, "vllm_worker.py", [*flags, "--threads", str(threads)], {"vLLM beam search": "beam search"}
    )


def _environment() -> dict[str, str]:
    """Without this project's packages, one of which has the name of BeamSD's."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
