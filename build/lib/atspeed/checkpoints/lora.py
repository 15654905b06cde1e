"""LoRA for the target: adapters on the attention, and the rows of the new item tokens."""

import re
import warnings

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from genrec.runtime.errors import UserError

TARGET_MODULES = ["q_proj", "v_proj"]


def add_lora(model: PreTrainedModel, item_tokens: list[int], rank: int, alpha: int, dropout: float) -> PeftModel:
    """Freeze the model but for adapters and the item tokens' rows, in the embedding and, if it is not tied, the head.

    Raises UserError if the model has no such projections.
    """
    rows = [_name_of(model, model.get_input_embeddings())]
    if not model.config.tie_word_embeddings:
        rows.append(_name_of(model, model.get_output_embeddings()))
    # Those that read text: where a model also sees or hears, its other parts have modules of the same names.
    inside, names = re.escape(_name_of(model, model.get_decoder())), "|".join(TARGET_MODULES)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout,
        target_modules=rf"{inside}\.(.*\.)?({names})",
        trainable_token_indices={name: item_tokens for name in rows},
    )  # fmt: skip
    try:
        return _adapted(model, config)
    except ValueError as error:
        raise UserError(
            f"LoRA is on {' and '.join(TARGET_MODULES)}, which a {model.config.model_type} does not have, perhaps "
            "because it fuses them; train all of it: FULL=true bash script/finetune_llama.sh (--full)"
        ) from error


def merge_lora(trained: PeftModel, weights: dict[str, Tensor], base: PreTrainedModel) -> PreTrainedModel:
    """`base` with what `trained` has learnt merged into it.

    weights: the whole weights of `trained`. base: the model that it was made from, loaded afresh, with the item tokens
    added: in `trained` it may be quantised, and merging would keep the rounding, or in shards.
    """
    whole = _adapted(base, trained.peft_config["default"])
    learnt = get_peft_model_state_dict(trained, state_dict=weights, save_embedding_layers=False)
    set_peft_model_state_dict(whole, learnt)
    return whole.merge_and_unload()


def _adapted(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        # peft 0.21 asks a model of transformers 5.24 by the old name; nobody who reads this can change that.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return get_peft_model(model, config)


def _name_of(model: PreTrainedModel, module: object) -> str:
    return next(name for name, candidate in model.named_modules() if candidate is module)
