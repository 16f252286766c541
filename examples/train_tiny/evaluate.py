"""Measures the embedded model per skill, on items and on phrasings that the training never saw.

    python examples/train_tiny/evaluate.py
    python examples/train_tiny/evaluate.py --engine hf --number 100 --show 3

An answer counts only if it equals the expected one exactly.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

from data import SKILLS, evaluation_set
from example import Example
from tqdm import tqdm

Message = dict[str, str]
Answerer = Callable[[list[list[Message]], int], list[str]]

DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "plugins/models/src/quire_models/tiny"
EXTRA_TOKENS = 16


def messages(example: Example) -> list[Message]:
    """Writes an example as chat messages up to its last question."""
    chat = [{"role": "system", "content": example.system}] if example.system else []
    for turn in example.turns:
        chat += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
    return chat[:-1]


def transformers_answerer(model: Path) -> Answerer:
    """Answers with Hugging Face Transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def answer(chats: list[list[Message]], limit: int) -> list[str]:
        texts = [
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = network.generate(**inputs, max_new_tokens=limit, do_sample=False)
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def quire_answerer(model: Path) -> Answerer:
    """Answers with Quire."""
    from quire import LLM, SamplingParams

    engine = LLM(str(model))

    def answer(chats: list[list[Message]], limit: int) -> list[str]:
        outputs = engine.chat(chats, SamplingParams(temperature=0.0, max_tokens=limit), use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    return answer


def accuracy(answerer: Answerer, examples: list[Example], batch: int, show: int) -> float:
    """Returns the share of exactly right answers, and prints some wrong ones."""
    ordered = sorted(examples, key=lambda example: len(example.turns[-1].answer))
    right = 0
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        limit = len(part[-1].turns[-1].answer.encode()) + EXTRA_TOKENS
        for example, given in zip(part, answerer([messages(one) for one in part], limit), strict=True):
            expected = example.turns[-1].answer
            right += given == expected
            if given != expected and show > 0:
                show -= 1
                tqdm.write(f"  asked {example.turns[-1].user!r}\n  wanted {expected!r}\n  got    {given!r}")
    return right / len(examples)


def evaluate(args: argparse.Namespace) -> float:
    """Prints the table of accuracies and returns the overall one on held-out items."""
    answerer = (quire_answerer if args.engine == "quire" else transformers_answerer)(args.model)
    rows = []
    for skill in tqdm(args.skills, desc="skills"):
        scores = []
        for unseen in (False, True):
            examples = evaluation_set(skill, args.number, unseen, args.seed)
            scores.append(accuracy(answerer, examples, args.batch, args.show))
        rows.append((skill, scores[0], scores[1]))
    print(f"\n{'skill':<12}{'held-out items':>16}{'held-out phrasings':>20}")
    means = [sum(row[column] for row in rows) / len(rows) for column in (1, 2)]
    for name, items, phrasings in [*rows, ("overall", means[0], means[1])]:
        print(f"{name:<12}{items:>16.1%}{phrasings:>20.1%}")
    return means[0]


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "quire" if importlib.util.find_spec("quire") else "hf"
    parser.add_argument("--engine", choices=("quire", "hf"), default=default)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--number", type=int, default=200, help="examples per skill and column")
    parser.add_argument("--skills", nargs="+", choices=tuple(SKILLS), default=tuple(SKILLS))
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per skill and column")
    return parser.parse_args()


if __name__ == "__main__":
    evaluate(parse_arguments())
