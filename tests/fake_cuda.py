"""A CUDA device for machines without one: tensors that say they are on it and compute on the CPU.

`with fake_cuda() as device:` makes one. Inside, `tensor.to(CUDA)` and `torch.arange(3, device=CUDA)` give tensors of
it, and `move(model)` puts a model there. It refuses what CUDA refuses, above all operations on tensors of two devices,
and counts what CUDA does slowly: in `device.syncs` where the host waits for the device, and in `device.copies` what is
copied from the host to it. Gradients are computed as anywhere else. It does not tell what is fast, knows no streams,
and rounds as the CPU does: see `kernel_noise` for the rounding.

To C++ a tensor is a wrapper on the device "meta": a build of torch without CUDA cannot make one on "cuda" that takes
part in autograd (that ends the process), and a device of one's own (PrivateUse1) cannot be called "cuda", which is what
this library looks for. To Python it is on "cuda:0".
"""

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CODE = str(Path(__file__).parents[1] / "code")
GENERATE = "/transformers/generation/"
CUDA, STAND_IN = torch.device("cuda", 0), "meta"
# Operations whose result, or its shape, the host needs.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "unique_dim_consecutive", "bincount",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class CudaTensor(Tensor):
    """A tensor on the device; `data_on_cpu` is what it holds."""

    @staticmethod
    def __new__(cls, cpu: Tensor) -> "CudaTensor":
        shape = {"strides": cpu.stride(), "storage_offset": cpu.storage_offset(), "dtype": cpu.dtype}
        with torch.inference_mode(False):  # torch takes no views of wrappers that are made in it
            self = Tensor._make_wrapper_subclass(cls, cpu.size(), **shape, device=STAND_IN)
        self.data_on_cpu = cpu
        return self

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    # Whose data C++ would not read from a wrapper, or not write into one on STAND_IN.
    def tolist(self) -> list:
        return self.cpu().tolist()

    def new_tensor(self, data, **kwargs) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": CUDA} | kwargs)

    def __getitem__(self, index):
        return super().__getitem__(_lists_copied(index))

    def __setitem__(self, index, value) -> None:
        super().__setitem__(_lists_copied(index), value)

    def __repr__(self) -> str:
        return f"CudaTensor({self.data_on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, dict(kwargs or {}), Counter(), Counter())


def _lists_copied(index):
    """An index with tensors on the device in the place of lists."""
    if isinstance(index, tuple):
        return tuple(map(_lists_copied, index))
    return torch.tensor(index, device=CUDA) if isinstance(index, list) else index


class FakeCuda(TorchDispatchMode):
    """The device, while it is entered.

    syncs, copies: how often the host waited for the device, and copied to it, by where: "file.py:function" of the
    nearest frame in code/. So what a model does in its forward counts for the line that called it. What `generate` of
    transformers does by itself, and what a test does, is not counted.
    """

    def __init__(self):
        super().__init__()
        self.syncs: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._can_decompose():  # in inference mode what is composed of operations arrives as a whole
            with self:
                return function.decompose(*args, **(kwargs or {}))
        return compute(function, args, dict(kwargs or {}), self.syncs, self.copies)

    def forget(self) -> None:
        """Count from 0 again."""
        self.syncs.clear()
        self.copies.clear()


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Makes the device; torch.cuda's events and synchronize do nothing, or are counted."""
    device, lifts = FakeCuda(), torch._C._only_lift_cpu_tensors()
    with (
        patch("torch.cuda._lazy_init", lambda: None),
        patch("torch.cuda.synchronize", lambda _=None: count(device.syncs)),
        patch("torch.cuda.current_stream", lambda _=None: None),
        patch("torch.cuda.Event", NoEvent),
    ):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…): made on the CPU, then copied in sight
        try:
            with device:
                yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)


class NoEvent:
    """In the place of torch.cuda.Event; all events are at once."""

    def __init__(self, enable_timing: bool = False): ...

    def record(self, stream=None): ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, last: "NoEvent") -> float:
        return 0.0


def move(module: nn.Module) -> nn.Module:
    """Put the weights and buffers of a module on the device, in place; tied ones stay tied."""
    moved: dict[Tensor, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                if weight not in moved:
                    moved[weight] = nn.Parameter(CudaTensor(weight.detach().clone()), weight.requires_grad)
                part._parameters[name] = moved[weight]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = CudaTensor(buffer.clone())
    return module


def compute(function, args, kwargs, syncs: Counter, copies: Counter):
    """One operation: refused as CUDA would, counted, computed on the CPU, and its results put on the device."""
    name, values = function.overloadpacket.__name__, [*leaves(args), *leaves(list(kwargs.values()))]
    ours, others = [x for x in values if isinstance(x, CudaTensor)], [x for x in values if type(x) is Tensor]
    devices = [x for x in values if isinstance(x, torch.device)]
    on_cuda = any(is_cuda(device) for device in devices) if devices else bool(ours)
    refuse_mixed(function, name, args, ours, others)
    if on_cuda and getattr(kwargs.get("generator"), "device", CUDA).type == "cpu":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu', {place()}")
    source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
    if source is not None:
        to_cuda = isinstance(args[0], CudaTensor) if name == "copy_" else on_cuda
        if isinstance(source, CudaTensor) and not to_cuda:
            count(syncs)
        is_number = name == "copy_" and not source.dim()  # passed to a kernel
        if to_cuda and not isinstance(source, CudaTensor) and source.numel() and not is_number:
            count(copies)
    elif ours:
        if waits(name, args, kwargs):
            count(syncs)
        copies.update(filter(None, [origin() for x in others if x.dim()]))  # of indices, all else is refused

    def to_cpu(x):
        if isinstance(x, CudaTensor):
            return x.data_on_cpu
        return torch.device("cpu") if isinstance(x, torch.device) else x

    kwargs.pop("pin_memory", None)
    result = function(*mapped(to_cpu, args), **{name: mapped(to_cpu, value) for name, value in kwargs.items()})
    if not on_cuda:
        return result
    known = {id(x.data_on_cpu): x for x in ours}  # an operation in place gives the very same tensor

    def to_device(x):
        if not isinstance(x, Tensor):
            return x
        return known[id(x)] if id(x) in known else CudaTensor(x)

    return mapped(to_device, result)


def leaves(values) -> Iterator:
    """The arguments of an operation one by one, those in lists too."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from leaves(value)
        else:
            yield value


def mapped(change, value):
    """`change` of an argument or a result of an operation, or of each in a list of them."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(change, each) for each in value])
    return change(value)


def is_cuda(device: torch.device) -> bool:
    return device.type in ("cuda", STAND_IN)


def refuse_mixed(function, name: str, args: tuple, ours: list[Tensor], others: list[Tensor]) -> None:
    """Raises RuntimeError for an operation on tensors of two devices. 0-dimensional ones on the CPU are numbers, and
    indices of a tensor on the device may be on the CPU."""
    if name == "copy_" or not ours or not others:
        return
    first = args[0] if args else None
    if name in INDEXING and not isinstance(first, CudaTensor):
        raise RuntimeError(f"indices should be on the device of the indexed tensor, the CPU, not on cuda:0; {place()}")
    if name in INDEXING:
        others = [x for x in args[2:3] if not isinstance(x, CudaTensor)]
    changed = any(a.alias_info and a.alias_info.is_write for a in function._schema.arguments[:1])
    written = [first] if changed and not isinstance(first, CudaTensor) else []
    if wrong := [tuple(x.shape) for x in others if x.dim() or any(x is y for y in written)]:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {function} has some on cuda:0, and on the CPU those of "
            f"shapes {wrong}; {place()}"
        )


def waits(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether the host waits for the device in this operation."""
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in INDEXING:  # a mask is turned into positions, but for filling in one value
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and not (name != "index" and len(args[1]) == 1 and args[2].numel() == 1)
    return name in WAITS


def count(counter: Counter) -> None:
    if where := origin():
        counter[where] += 1


def origin() -> str | None:
    """The nearest named function in code/ that is running, "file.py:function"; None if there is none, or `generate` is
    nearer."""
    frame = sys._getframe(1)
    while frame:
        file = frame.f_code.co_filename
        name = frame.f_code.co_name
        if file.startswith(CODE) and name != "__torch_function__" and not name.startswith("<"):
            return f"{Path(file).name}:{name}"
        if GENERATE in file:
            return None
        frame = frame.f_back
    return None


def place() -> str:
    """The line in code/ that is running."""
    lines = [line for line in traceback.extract_stack() if line.filename.startswith(CODE)]
    return f"in {lines[-1].filename.removeprefix(CODE)}:{lines[-1].lineno}: {lines[-1].line}" if lines else "in a test"
