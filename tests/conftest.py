"""What the tests share: tiny random models and catalogues, and the scripts. No weights, no network, no GPU."""

import os
import subprocess
import sys
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from beamsd import Program
from beamsd.speed.program import Recording
from fake_cuda import fake_cuda
from genrec.runtime.cli import GROUP_TIMEOUT
from kernel_noise import noisy_attention, noisy_linear

VOCABULARY, LENGTH = 40, 4
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = str(ROOT / "code")  # for the programs that tests start
BEAUTY = Path(os.environ.get("BEAUTY", ROOT / "../shared/data/beauty")).resolve()  # tests that need it are skipped
STAGE_COMMANDS = {"finetune_llama": "finetune", "generate_teacher_data": "teacher"}  # script -> command
STAGES = ("finetune_llama", "generate_teacher_data", "train", "inference", "quality")
SMALL = {
    "EPOCHS": "2", "BATCH_SIZE": "16", "MICRO_BATCH_SIZE": "8", "LEARNING_RATE": "3e-3", "WARMUP_STEPS": "2",
    "RUN_BEAM_SIZES": "1,5", "DRAFT_BEAM_SIZE": "12",
}  # fmt: skip
# What `environment` sets, and reproduce.sh has in other names.
UNSET = dict.fromkeys(("EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "WARMUP_STEPS", "TARGET_BASE", "DRAFT_BASE"), "")


def program(name):
    """What starts a command of `atspeed`, or a module."""
    return ["-m", name] if "." in name else ["-m", "atspeed", STAGE_COMMANDS.get(name, name)]


def environment(folder, **variables):
    """The variables of a world of its own in `folder`."""
    own = {
        "PYTHON": sys.executable, "DATASET": "toy", "DATA_PATH": str(folder / "data"), "LOG_DIR": str(folder / "log"),
        "OUTPUT_DIR": str(folder / "output"), "OMP_NUM_THREADS": "1", "TARGET_BASE": str(folder / "base"),
        "DRAFT_BASE": str(folder / "base"),
    }  # fmt: skip
    return os.environ | own | SMALL | variables


def script(stage, folder, *flags, **variables):
    """Run script/<stage>.sh in the world of `folder`; returns what it printed, all in one, and its exit code."""
    done = subprocess.run(
        ["bash", ROOT / "script" / f"{stage}.sh", *flags], env=environment(folder, **variables), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False,
    )  # fmt: skip
    return done.stdout, done.returncode


def succeed(stage, folder, *flags, **variables):
    output, code = script(stage, folder, *flags, **variables)
    assert code == 0, output
    return output


def assert_waits_long():
    """The group of processes, as it is, waits for the slowest longer than torch's minutes."""
    group = torch.distributed.distributed_c10d._get_default_group()
    assert group._get_backend(torch.device("cpu")).options._timeout == GROUP_TIMEOUT == timedelta(days=1)


@torch.inference_mode(False)  # in tests that are in it, so that their weights can be changed
def tiny_llama(seed: int, layers: int, hidden: int = 32, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """A random LLaMA with grouped-query attention and logits far enough apart to make ties rare."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.3, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2}
ARCHITECTURES = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
             "initializer_range": 0.3},
    "opt": COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "gpt_neox": COMMON,
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "mistral": GROUPED | {"sliding_window": None},
    "gemma": GROUPED | {"head_dim": 8},
    "phi": GROUPED,
    "phi3": GROUPED,
}  # fmt: skip


@torch.inference_mode(False)
def tiny_model(architecture: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model: learned or rotary positions, tied embeddings or not, with or without grouped-query attention."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **(ARCHITECTURES[architecture] | changes))
    return AutoModelForCausalLM.from_config(config).eval()


@torch.inference_mode(False)
def noisy_copy(model: PreTrainedModel, noise: float, seed: int = 0) -> PreTrainedModel:
    """A draft that agrees with `model` more or less often."""
    torch.manual_seed(seed)
    copy = deepcopy(model)
    with torch.no_grad():
        for weight in copy.parameters():
            weight += noise * weight.std() * torch.randn_like(weight)
    return copy


def random_items(n_items: int, seed: int = 0, codes: int = 8) -> torch.Tensor:
    """Distinct items (n, LENGTH): at every level one of `codes` tokens of its own."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randint(codes * d + 4, codes * (d + 1) + 4, (n_items,), generator=generator) for d in range(LENGTH)]
    return torch.stack(levels, -1).unique(dim=0)


def random_prompts(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts and their mask (batch, length), each row shorter than the one before."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, : min(2 * row, length - 1)] = 0
    return ids * mask, mask


def vectors(n=300, width=20, seed=0):
    """Groups within groups, and a few items that are nearly, or exactly, the same."""
    generator = torch.Generator().manual_seed(seed)
    groups = 3 * torch.randn(10, width, generator=generator)
    lines = groups.repeat_interleave(5, 0) + torch.randn(50, width, generator=generator)
    chosen = torch.randint(50, (n,), generator=generator)
    found = lines[chosen] + 0.3 * torch.randn(n, width, generator=generator)
    found[-20:-10] = found[:10] + 1e-3
    found[-10:] = found[:10]
    return found


def save_encoder(folder, kind="bert"):
    """A tiny random encoder with its tokenizer, as a user has one on disk."""
    words = ["[PAD]", "[UNK]", "[CLS]", "Title", ":", "Soap", "Comb", "Rose", "mild", "red", "one", "two"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    if kind == "t5":
        model = T5Model(T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    else:
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32, initializer_range=0.5,
        )  # fmt: skip
        model = BertModel(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


DRAFTERS = {
    "trie": {"drafter": "trie"},
    "trie, few nodes": {"drafter": "trie", "nodes": 9},
    "hybrid": {"drafter": "hybrid", "draft_width": 12},
    "hybrid, few first": {"drafter": "hybrid", "draft_width": (6, 24)},
    "hybrid, few nodes": {"drafter": "hybrid", "draft_width": (7, 7), "nodes": 20},
    "model, widths by level": {"drafter": "model", "gamma": 3, "draft_width": (6, 12, 24)},
}


def assert_same_lists(result, expected):
    assert torch.equal(result.found, expected.found)
    assert torch.equal(result.sequences, expected.sequences)
    torch.testing.assert_close(result.scores, expected.scores, atol=1e-4, rtol=1e-5)


aten = torch.ops.aten
SYNCS = (
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.item.default,
    aten.lift_fresh.default,  # torch.tensor(…): on a GPU, a copy from the host
)  # fmt: skip
ALLOCATIONS = (aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default)


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on the CPU: the operations of one run, done again on the very same tensors.

    So a value that the host took from a tensor in the first run, and a tensor that is not where it was, show. An
    operation that would wait for the device is an error, as it is while a graph is captured.
    """

    made = nbytes = 0

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in SYNCS, f"{function} waits for the device"
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def __call__(self, function, undo):
        function()
        undo()
        tape = Tape()
        with tape:
            result = function()
        Tape.made += 1
        return Recording(result, tape.replay)

    def replay(self):
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            if function in ALLOCATIONS:
                continue
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


PROGRAMS = {
    "recorded": lambda: Program(recorder=Tape),
    "static": lambda: Program(compiler=lambda body: body),  # shapes as for the compiler, and none of its minutes
}


@pytest.fixture
def device():
    """A CUDA device, see `fake_cuda`."""
    with fake_cuda() as made:
        yield made


@pytest.fixture(params=["bfloat16", "tf32"])
def kernel_noise(request, monkeypatch):
    """Attention with and without a mask differs by rounding, see `kernel_noise`; the precision. In TF32 are float32
    products of a model on the fake device alone."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noisy_attention)
    monkeypatch.setattr(torch.nn.functional, "linear", noisy_linear)
    AcceleratorState._reset_state()  # of another test of this process, whose precision may be another
    before = torch.get_float32_matmul_precision()
    if request.param == "tf32":
        torch.set_float32_matmul_precision("high")
    yield request.param
    torch.set_float32_matmul_precision(before)
