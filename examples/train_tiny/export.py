"""Turns a training checkpoint into a model folder for Transformers, and checks it against Transformers.

python examples/train_tiny/export.py --work build/tiny --out build/tiny/model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model import TinyConfig, TinyLM
from safetensors.torch import save_file
from tokenizer import CHAT_TEMPLATE, END, START, STOP
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def llama_config(config: TinyConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """Describes the network as ``LlamaForCausalLM``."""
    end, stop = tokenizer.token_to_id(END), tokenizer.token_to_id(STOP)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": stop,
        "pad_token_id": end,
        "torch_dtype": "bfloat16",
    }


def tokenizer_config(config: TinyConfig) -> dict[str, object]:
    """Describes the tokenizer and the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": STOP,
        "pad_token": END,
        "additional_special_tokens": [START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(model: TinyLM, folder: Path) -> float:
    """Returns the largest difference of the logits from Transformers' in float32, on the stored weights."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(3, model.config.vocab_size, (2, 200), generator=torch.Generator().manual_seed(0))
    stored = TinyLM(model.config)
    stored.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    with torch.no_grad():
        return float((stored(ids) - theirs(ids).logits).abs().max())


def export(work: Path, out: Path) -> None:
    """Writes the model folder."""
    out.mkdir(parents=True, exist_ok=True)
    config = TinyConfig()
    checkpoint = torch.load(work / "checkpoint.pt", weights_only=True)
    model = TinyLM(config)
    model.load_state_dict(checkpoint["model"])
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    tokenizer.save(str(out / "tokenizer.json"))
    weights = {name: value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    stops = [tokenizer.token_to_id(STOP), tokenizer.token_to_id(END)]
    (out / "model.safetensors").chmod(0o644)
    generation = {"do_sample": False, "eos_token_id": stops, "pad_token_id": stops[1], "max_new_tokens": 512}
    _write(out / "config.json", llama_config(config, tokenizer))
    _write(out / "generation_config.json", generation)
    _write(out / "tokenizer_config.json", tokenizer_config(config))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    difference = verify(model, out)
    print(
        f"step {checkpoint['step']}: exported to {out}, largest difference from Transformers {difference:.2g}"
    )
    if difference > TOLERANCE:
        raise SystemExit(f"the export differs from Transformers by more than {TOLERANCE}")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=Path("plugins/models/src/quire_models/tiny"))
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    export(arguments.work, arguments.out)
