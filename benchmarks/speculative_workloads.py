"""Requests of the benchmark of speculation: copying and editing, chat, random tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from safetensors.torch import load_file, save_file

from quire import SamplingParams, Tokenizer
from workloads import random_ids

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "train_tiny"))

from data import SYSTEMS, draw  # noqa: E402  # found by the path above
from evaluate import messages  # noqa: E402  # likewise
from example import Example  # noqa: E402  # likewise

TINY = ROOT / "plugins/models/src/quire_models/tiny"
MAX_MODEL_LEN = 640
_COPY_CHARS = 90
_MAX_ANSWER = 192


@dataclass(slots=True, frozen=True)
class Ask:
    """One request.

    Attributes:
        max_tokens: EOS ends it before, unless there is a seed. seed: None: greedy.
    """

    prompt: list[int]
    max_tokens: int
    seed: int | None = None

    @property
    def params(self) -> SamplingParams:
        """As the engine takes it."""
        if self.seed is None:
            return SamplingParams(temperature=0.0, max_tokens=self.max_tokens)
        return SamplingParams(seed=self.seed, max_tokens=self.max_tokens, ignore_eos=True)


Maker = Callable[[Tokenizer | None, int, int, int], list[Ask]]
"""(tokenizer, vocabulary, how many, seed) to requests."""


def copying(tokenizer: Tokenizer | None, vocab: int, count: int, seed: int) -> list[Ask]:
    """Paragraphs to repeat or to edit: answers are long copies of the prompt."""
    random = Random(f"copy-{seed}")
    examples: list[Example] = []
    while len(examples) < count:
        example = draw(random, random.choice(("repeat", "edit")), True)
        if len(example.turns[-1].answer) >= _COPY_CHARS:
            examples.append(example)
    return [_chat(tokenizer, messages(example)) for example in examples]


def chatting(tokenizer: Tokenizer | None, vocab: int, count: int, seed: int) -> list[Ask]:
    """Short questions of all other kinds, with what was said before."""
    random = Random(f"chat-{seed}")
    skills = ("greet", "arithmetic", "capital", "spell", "reverse", "count", "json", "memory")
    asks = []
    for index in range(count):
        example = draw(random, skills[index % len(skills)], True)
        asks.append(
            _chat(tokenizer, [{"role": "system", "content": random.choice(SYSTEMS)}, *messages(example)])
        )
    return asks


def random_tokens(tokenizer: Tokenizer | None, vocab: int, count: int, seed: int) -> list[Ask]:
    """Random tokens in, sampled tokens out: hardly anything can be foreseen."""
    ids = np.random.default_rng(7_000 + seed)
    return [Ask(random_ids(ids, 48, vocab), int(ids.integers(32, 97)), seed=index) for index in range(count)]


WORKLOADS: Mapping[str, Maker] = {"copy": copying, "chat": chatting, "random": random_tokens}


def one_layer_of(model: Path, target: Path) -> Path:
    """A checkpoint of the model's first layer alone, with its embedding, head and tokenizer; the folder."""
    target.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja"):
            (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    tensors = load_file(str(model / "model.safetensors"))
    kept = {name: value for name, value in tensors.items() if ".layers." not in name or ".layers.0." in name}
    save_file(kept, str(target / "model.safetensors"), metadata={"format": "pt"})
    return target


def _chat(tokenizer: Tokenizer | None, chat: list[dict[str, str]]) -> Ask:
    if tokenizer is None:
        raise ValueError("this workload needs a tokenizer")
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    ids = tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
    return Ask(list(ids), _MAX_ANSWER)
