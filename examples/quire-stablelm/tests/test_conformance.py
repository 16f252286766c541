"""What ships with Quire for authors of plugins, run on this distribution's model and logits processor."""

from __future__ import annotations

from quire.testing import LogitsProcessorConformance, ModelConformance

TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "layer_norm_eps": 0.01,
}


class TestStableLm(ModelConformance):
    """Every trait of the architecture, one at a time."""

    architecture = "StableLmForCausalLM"
    configs = {
        "base": TINY,
        "tied": {**TINY, "tie_word_embeddings": True},
        "bias": {**TINY, "use_qkv_bias": True},
        "norms per head": {**TINY, "qk_layernorm": True},
        "parallel": {**TINY, "use_parallel_residual": True, "qk_layernorm": True},
        "half": {**TINY, "partial_rotary_factor": 0.5},
        "one KV head": {**TINY, "num_key_value_heads": 1},
    }


class TestForbid(LogitsProcessorConformance):
    """With arguments that forbid something only at first, so that the position matters."""

    name = "forbid"
    arguments = {"token_ids": [3, 4], "first": 2}
    more_arguments = ([5], {"token_ids": [3, 4]})
    wrong_arguments = (17, [], [61], {"token_ids": [3], "last": 2})
