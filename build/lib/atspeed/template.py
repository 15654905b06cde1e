"""The template of a prompt: that of LC-Rec, as AtSpeed uses it, or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.runtime.errors import UserError
from genrec.runtime.text import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
    "The user has interacted with items {history} in chronological order. "
    "Can you predict the next possible item that the user may expect?\n\n"
    "### Response:"
)

HISTORY = "{history}"


@dataclass(frozen=True)
class PromptTemplate:
    """How a history becomes a prompt."""

    text: str = PROMPT  # with {history} once, where the items stand
    separator: str = ", "  # between two of them
    chat: bool = False  # the text is what the user says in the tokenizer's chat template; the response is yet to come

    def __post_init__(self) -> None:
        if self.text.count(HISTORY) != 1:
            raise UserError(
                f"a prompt needs {HISTORY} once, where the items of a history are to stand, and this one has it "
                f"{self.text.count(HISTORY)} times: {self.text[:60]!r}"
            )

    @classmethod
    def read(cls, path: str | None, separator: str = ", ", chat: bool = False) -> PromptTemplate:
        """path: a text file, whose last newline is no part of it; None is the prompt of LC-Rec. Raises UserError if it
        cannot be read, or does not hold {history} once."""
        try:
            text = PROMPT if path is None else read_text(Path(path)).removesuffix("\n")
            return cls(text, separator, chat)
        except UserError as error:
            raise UserError(f"--prompt_template {path}: {error}") from error

    def fill(self, tokenizer: PreTrainedTokenizerBase, history: str) -> list[int]:
        """Token ids of the prompt with a history's text. Raises UserError for a chat that the tokenizer has no template
        for."""
        text = self.text.replace(HISTORY, history)
        if not self.chat:
            return tokenizer(text)["input_ids"]
        if tokenizer.chat_template is None:
            raise UserError("--chat_template: the tokenizer has no chat template; leave it out, or give another base")
        said = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return tokenizer(whole, add_special_tokens=False)["input_ids"]


LC_REC = PromptTemplate()
