"""Model shapes, number formats and other choices by name."""

from dataclasses import dataclass

from genrec.runtime.errors import UserError

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # name, as torch has it -> bytes of a number


@dataclass(frozen=True)
class Shape:
    """The dimensions of a LLaMA of a published size."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int | None  # None: as many as the tokenizer has


SHAPES = {
    "micro": Shape(64, 192, 4, 4, 4, None),
    "tiny": Shape(128, 384, 4, 4, 4, None),
    "llama-68m": Shape(768, 3072, 2, 12, 12, 32000),
    "llama-160m": Shape(768, 3072, 12, 12, 12, 32000),
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4, 32000),
    "llama-7b": Shape(4096, 11008, 32, 32, 32, 32000),
}
LORA_MODULES = ("q_proj", "v_proj")  # linear layers that LoRA adapts, by name: AtSpeed's, of LLaMA

RANDOM, BY_LEVEL = "random", "level"  # how the rows of new item tokens begin; see `begin_rows_by_level`


def check_item_rows(how: str) -> None:
    """Raises UserError for a way that does not exist."""
    if how not in (RANDOM, BY_LEVEL):
        raise UserError(f"--item_rows {how}: choose from {RANDOM}, {BY_LEVEL}")


def check_dtype(dtype: str) -> str:
    """The name. Raises UserError for one that does not exist."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose from {', '.join(DTYPES)}")
    return dtype


def check_shape(name: str) -> Shape:
    """Raises UserError for a shape that does not exist."""
    if name not in SHAPES:
        raise UserError(f"--shape {name}: choose from {', '.join(SHAPES)}")
    return SHAPES[name]
