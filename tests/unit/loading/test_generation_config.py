"""generation_config.json: ids merged, recommended values taken, malformed files refused."""

import json

import pytest

from quire.api.errors import CheckpointError
from quire.loading.generation_config import load_generation_config


def write(folder, content):
    (folder / "generation_config.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


def test_eos_ids_of_both_files_are_merged_in_order(tmp_path):
    write(tmp_path, {"eos_token_id": [5, 7], "bos_token_id": 1})
    config = load_generation_config(tmp_path, {"eos_token_id": [7, 2], "bos_token_id": 9, "pad_token_id": 3})
    assert config.eos_token_ids == (5, 7, 2)
    assert (config.bos_token_id, config.pad_token_id) == (1, 3)


def test_a_missing_file_leaves_config_json(tmp_path):
    config = load_generation_config(tmp_path, {"eos_token_id": 2, "pad_token_id": -1})
    assert config.eos_token_ids == (2,)
    assert config.pad_token_id is None
    assert config.default_sampling_params().temperature == 1.0


def test_stated_values_become_the_default_sampling_params(tmp_path):
    write(
        tmp_path,
        {
            "do_sample": False,
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 20,
            "repetition_penalty": 1.05,
            "x": [],
        },
    )
    config = load_generation_config(tmp_path)
    params = config.default_sampling_params()
    assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.9, 20)
    assert (params.repetition_penalty, params.max_tokens) == (1.05, 16)
    assert set(config.sampling) == {"temperature", "top_p", "top_k", "repetition_penalty"}


def test_max_new_tokens_is_max_tokens(tmp_path):
    assert load_generation_config(write(tmp_path, {"max_new_tokens": 99})).sampling == {"max_tokens": 99}


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '"text"', "\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "{",
        {"eos_token_id": "2"}, {"eos_token_id": [True]}, {"eos_token_id": 1.5}, {"bos_token_id": -2},
        {"temperature": "hot"}, {"temperature": True}, {"top_p": float("nan")}, {"top_k": 1.5},
        "[" * 100_000,
    ],
)  # fmt: skip
def test_malformed_files_are_refused(tmp_path, content):
    with pytest.raises(CheckpointError):
        load_generation_config(write(tmp_path, content))
