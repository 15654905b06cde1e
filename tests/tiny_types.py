"""A tiny random model of any causal type that transformers knows."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 40
# By what a configuration may call it; what it does not know is left out.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32,
    "embedding_size": 32, "word_embed_proj_dim": 32, "hidden_sizes": [32, 32], "intermediate_size": 64, "ffn_dim": 64,
    "n_inner": 64, "dff": 64, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "d_ff": 64, "shared_intermediate_size": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "num_heads": 4, "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "num_kv_heads": 2, "head_dim": 8, "attention_head_dim": 8, "max_position_embeddings": 64, "n_positions": 64,
    "n_ctx": 64, "max_seq_len": 64, "max_target_positions": 64, "sliding_window": 4096, "initializer_range": 0.3,
    "init_std": 0.3, "initializer_factor": 10.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "qk_head_dim": 16, "v_head_dim": 8, "n_routed_experts": 4, "num_experts": 4, "num_local_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2,
    "top_k_experts": 2,
    "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "expert_ffn_hidden_size": 32, "ffn_hidden_size": 64,
    "n_shared_experts": 1, "num_shared_experts": 1, "first_k_dense_replace": 1, "moe_layer_start_index": 1,
    "shared_expert_intermediate_size": 32, "intermediate_size_mlp": 64, "num_mem_blocks": 1, "rotary_dim": 4,
    "is_decoder": True,
    "hidden_dim": 64, "moe_hidden_size": 32, "projection_dim": 32, "d_kv": 8, "num_dense_layers": 1,
    "conv_dim": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "state_size": 8, "mamba_d_head": 16, "index_n_heads": 2,
    "index_head_dim": 16, "index_topk": 64, "global_head_dim": 8, "num_global_key_value_heads": 2,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
    "attn_hidden_size": 32, "attention_hidden_size": 32,
}  # fmt: skip
# What recommenders are made of: equal, in every run of the tests. All the others are slow in their sum.
EQUAL = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gemma3", "phi3", "gpt2",
    "gpt_neox", "opt", "olmo2", "deepseek_v3", "granite", "smollm3", "cohere2", "glm4", "starcoder2", "stablelm",
)  # fmt: skip
# Where the sizes above are at odds with one another, or with what a type allows.
OWN: dict[str, dict] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "hunyuan_v1_moe": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "ministral": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "zaya": {"num_experts_per_tok": 1},
}


def sizes_of(default: PreTrainedConfig) -> dict:
    """Small sizes for what a configuration knows, those of its parts included; lists by layer are cut to two."""
    sizes = {
        key: value for key, value in SIZES.items()
        if getattr(default, key, None) is not None and _can_be_set(default, key)
    }  # fmt: skip
    if "kv_lora_rank" in sizes:  # latent attention has keys and values for every head
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    for key in ("layer_types", "mlp_layer_types"):
        if isinstance(kinds := getattr(default, key, None), list) and _can_be_set(default, key):
            sizes[key] = kinds[:2]
    for part in default.sub_configs:
        if isinstance(inner := getattr(default, part, None), PreTrainedConfig):
            sizes[part] = {"model_type": inner.model_type, **sizes_of(inner)}
    return sizes


def _can_be_set(config: PreTrainedConfig, key: str) -> bool:
    known = getattr(type(config), key, None)
    return not isinstance(known, property) or known.fset is not None


def tiny_of_type(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(sizes_of(AutoConfig.for_model(name)) | OWN.get(name, {})))
    return AutoModelForCausalLM.from_config(config).eval()
