"""LoRA for the target: adapters on chosen projections, and the rows of the new item tokens."""

import re
import warnings
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from atspeed.checkpoints.shapes import LORA_MODULES
from genrec.runtime.errors import UserError


def add_lora(
    model: PreTrainedModel, item_tokens: list[int], rank: int, alpha: int, dropout: float,
    modules: Sequence[str] = LORA_MODULES,
) -> PeftModel:  # fmt: skip
    """Freeze the model but for adapters and the item tokens' rows, in the embedding and, if it is not tied, the head.

    modules: names of the linear layers that get an adapter. Raises UserError if the model has none of such a name.
    """
    check_modules(model, modules)
    rows = [_name_of(model, model.get_input_embeddings())]
    if not model.config.tie_word_embeddings:
        rows.append(_name_of(model, model.get_output_embeddings()))
    # Those that read text: where a model also sees or hears, its other parts have modules of the same names.
    inside, names = re.escape(_name_of(model, model.get_decoder())), "|".join(modules)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout,
        target_modules=rf"{inside}\.(.*\.)?({names})",
        trainable_token_indices={name: item_tokens for name in rows},
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )  # fmt: skip
    return _adapted(model, config)


def check_modules(model: PreTrainedModel, modules: Sequence[str]) -> None:
    """Raises UserError if the decoder has no linear layer of one of these names."""
    layers = [name for name, module in model.get_decoder().named_modules() if isinstance(module, nn.Linear | Conv1D)]
    names = sorted({name.rpartition(".")[2] for name in layers})
    if lacking := [name for name in modules if name not in names]:
        raise UserError(
            f"--lora_modules {','.join(modules)}: a {model.config.model_type} has no {lacking[0]}; LORA_MODULES can "
            f"name {', '.join(names)}; or train all of it: FULL=true bash script/finetune_llama.sh (--full)"
        )


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
