"""The shipped suite against transformers: cached, in parts, preempted, forked, in mixed batches ..."""

from __future__ import annotations

from quire.testing import ModelConformance


class TestMyModel(ModelConformance):
    # CHANGE: yours, as in plugin.py. Tiny configurations are derived from the fields of transformers' config.
    architecture = "GraniteForCausalLM"


class TestMultipliers(ModelConformance):
    # CHANGE: traits whose default value does nothing need a configuration of their own, or no class here.
    architecture = "GraniteForCausalLM"
    configs = {
        "scaled": {
            **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
            **{"embedding_multiplier": 3.0, "attention_multiplier": 0.2},
            **{"residual_multiplier": 0.5, "logits_scaling": 2.0},
        }
    }
