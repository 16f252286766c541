"""Writes a benchmark checkpoint (shape S or M, bfloat16) as GGUF, by the `gguf` package, for llama.cpp."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def write_gguf(folder: Path, target: Path) -> None:
    """Write `folder`'s checkpoint to the file `target`; tied embeddings, bfloat16 matrices, ids for tokens.

    Raises:
        ImportError: the `gguf` package is not installed.
        ValueError: the model's architecture is another one.
    """
    gguf: Any = importlib.import_module("gguf")  # installed beside llama.cpp only
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in _ARCHITECTURES:
        raise ValueError(f"GGUF of model type {config['model_type']!r} is not written here")
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), _ARCHITECTURES[config["model_type"]])
    _add_header(writer, gguf, config)
    for name, values in _tensors(folder / "model.safetensors"):
        if name == "lm_head.weight":
            continue  # tied
        values = _permuted(name, values, config) if config["model_type"] == "llama" else values
        if values.ndim == 1:
            widened = (values.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(gguf_name(name), widened)
        else:
            octets = np.ascontiguousarray(values).view(np.uint8)
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), octets, raw_shape=octets.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def gguf_name(name: str) -> str:
    """A tensor's name in GGUF; raises KeyError for names that these models do not have."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, _, index, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{index}.{_LAYER_NAMES[module]}.{kind}"


def _add_header(writer: Any, gguf: Any, config: dict[str, Any]) -> None:
    vocab, heads = config["vocab_size"], config["num_attention_heads"]
    rope = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(rope)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<t{index}>" for index in range(vocab)])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if index < 3 else normal for index in range(vocab)])
    writer.add_token_merges(["a b"])


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.uint16]]]]:
    """Names and bfloat16 bit patterns of a safetensors file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{file}: {name} is {entry['dtype']}, expected BF16")
        start, end = entry["data_offsets"]
        flat = np.fromfile(file, dtype=np.uint16, count=(end - start) // 2, offset=8 + length + start)
        yield name, flat.reshape(entry["shape"])


def _permuted(
    name: str, values: np.ndarray[Any, np.dtype[np.uint16]], config: dict[str, Any]
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Rows of query and key heads as llama.cpp rotates them: pairs side by side, not halves apart."""
    key = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    heads = next((config[count] for suffix, count in key.items() if name.endswith(suffix)), None)
    if heads is None:
        return values
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
