"""LoRA for the target: adapters on the attention, and the rows of the new item tokens."""

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from genrec.errors import UserError

TARGET_MODULES = ["q_proj", "v_proj"]


def add_lora(model: PreTrainedModel, item_tokens: list[int], rank: int, alpha: int, dropout: float) -> PeftModel:
    """Freeze the model but for adapters and the item tokens' rows, in the embedding and, if it is not tied, the head.

    Raises UserError if the model has no such projections.
    """
    rows = [_name_of(model, model.get_input_embeddings())]
    if not model.config.tie_word_embeddings:
        rows.append(_name_of(model, model.get_output_embeddings()))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGET_MODULES,
        trainable_token_indices={name: item_tokens for name in rows},
    )  # fmt: skip
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"LoRA on {', '.join(TARGET_MODULES)} does not fit a {model.config.model_type} ({error}); pass --full"
        ) from error


def _name_of(model: PreTrainedModel, module: object) -> str:
    return next(name for name, candidate in model.named_modules() if candidate is module)
