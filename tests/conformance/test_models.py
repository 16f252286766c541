"""The shipped suite of models over the built-in ones, with configurations derived from transformers' classes."""

from __future__ import annotations

import pytest

from quire.testing import ModelConformance

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
}


class TestLlama(ModelConformance):
    architecture = "LlamaForCausalLM"


class TestQwen2(ModelConformance):
    architecture = "Qwen2ForCausalLM"


class TestQwen3(ModelConformance):
    architecture = "Qwen3ForCausalLM"


class TestMistral(ModelConformance):
    architecture = "MistralForCausalLM"


class TestGPT2(ModelConformance):
    architecture = "GPT2LMHeadModel"


class TestMpt(ModelConformance):
    architecture = "MptForCausalLM"


@pytest.mark.nightly
class TestLlamaThorough(TestLlama):
    is_thorough = True


@pytest.mark.nightly
class TestQwen2Thorough(TestQwen2):
    is_thorough = True


@pytest.mark.nightly
class TestQwen3Thorough(TestQwen3):
    is_thorough = True


@pytest.mark.nightly
class TestMistralThorough(TestMistral):
    is_thorough = True


@pytest.mark.nightly
class TestGPT2Thorough(TestGPT2):
    is_thorough = True


@pytest.mark.nightly
class TestMptThorough(TestMpt):
    is_thorough = True


@pytest.mark.nightly
class TestLlamaRopes(ModelConformance):
    architecture = "LlamaForCausalLM"
    is_thorough = True
    configs = {
        "yarn": {
            **TINY,
            "rope_parameters": {
                **{"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0},
                "original_max_position_embeddings": 12,
            },
        },
        "longrope": {
            **TINY,
            "rope_parameters": {
                **{"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 12},
                **{"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]},
            },
        },
        "llama3": {
            **TINY,
            "rope_parameters": {
                **{"rope_type": "llama3", "factor": 8.0, "rope_theta": 500.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8},
            },
        },
        "dynamic": {
            **TINY,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 100.0},
        },
    }
