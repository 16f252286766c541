"""Quality of the embedded model in every quantization method: perplexity and skill accuracy beside 16-bit.

Checkpoints are made by `quire quantize` (AWQ and GPTQ need GPTQModel; without it they are listed as not
measured) and kept. Beside them: the logit error of tool-made checkpoints against the tool's own logits.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from common import RESULTS
from quire import LLM, SamplingParams, Tokenizer
from quire.cli.collect_env import environment
from quire.testing.forward import full_logits

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples" / "train_tiny"), str(ROOT / "tests")]

from data import SKILLS, evaluation_set, training_example  # noqa: E402  # found by the path above
from evaluate import DEFAULT_MODEL, accuracy, messages  # noqa: E402  # likewise
from example import Example  # noqa: E402  # likewise

from quantized_checkpoints import TOLERANCES, assemble, expected  # noqa: E402  # likewise

CALIBRATION_CHATS = 512
SEED = 20261121


@dataclass(frozen=True)
class Variant:
    """One way to quantize the model.

    Attributes:
        settings: of `LLM`. quantize: flags of `quire quantize`, for a checkpoint of its own.
        needs_tool: whether GPTQModel makes that checkpoint.
    """

    settings: Mapping[str, Any]
    quantize: tuple[str, ...] = ()
    needs_tool: bool = False


PLAIN_KERNELS = {"plugins": {"deny": ["gptq-marlin", "awq-marlin"]}}
GPTQ4 = ("--method", "gptq", "--bits", "4", "--group-size", "32")
AWQ4 = ("--method", "awq", "--group-size", "32")
VARIANTS: Mapping[str, Variant] = {
    "16-bit": Variant({}),
    "int8 (on the fly)": Variant({"quantization": "int8"}),
    "int4 g32 (on the fly)": Variant({"quantization": "int4"}),
    "compressed-tensors W8A8": Variant({}, ("--method", "int8")),
    "compressed-tensors W4A16 g32": Variant({}, ("--method", "int4", "--group-size", "32")),
    "gptq-marlin 8 bits": Variant({}, ("--method", "gptq", "--bits", "8", "--group-size", "32"), True),
    "gptq-marlin 4 bits": Variant({}, GPTQ4, True),
    "gptq-marlin 4 bits, act-order": Variant({}, (*GPTQ4, "--desc-act"), True),
    "gptq 4 bits": Variant(PLAIN_KERNELS, GPTQ4, True),
    "gptq 3 bits": Variant({}, ("--method", "gptq", "--bits", "3", "--group-size", "32"), True),
    "gptq 2 bits": Variant({}, ("--method", "gptq", "--bits", "2", "--group-size", "32"), True),
    "awq-marlin 4 bits": Variant({}, AWQ4, True),
    "awq 4 bits": Variant(PLAIN_KERNELS, AWQ4, True),
}
"""By name: every method that serves a checkpoint of the embedded model."""


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=50, help="items per skill (default: 50)")
    parser.add_argument("--only", nargs="*", choices=tuple(VARIANTS), help="variants beside 16-bit")
    parser.add_argument("--work", type=Path, help="keep the quantized checkpoints here")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    args = parser.parse_args()
    chosen = [name for name in VARIANTS if args.only is None or name in ("16-bit", *args.only)]
    with _folder(args.work) as work:
        results = {name: _measure(name, work, args.number) for name in chosen}
        record = {
            "benchmark": "quality",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment(),
            "items_per_skill": args.number,
            "results": results,
            "relative_logit_error": dict(_tool_errors()),
        }
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _print(results)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _measure(name: str, work: Path, number: int) -> dict[str, object]:
    variant = VARIANTS[name]
    if variant.needs_tool and importlib.util.find_spec("gptqmodel") is None:
        return {"not_measured": "GPTQModel is not installed: pip install 'quire-quantization[quantize]'"}
    print(f"{name} ...", file=sys.stderr)
    model = _checkpoint(variant, work) if variant.quantize else DEFAULT_MODEL
    with LLM(str(model), dtype="bfloat16", **variant.settings) as llm:
        scores = {skill: _accuracy(llm, skill, number) for skill in SKILLS}
        perplexity = math.exp(_loss(llm))
    mean = sum(scores.values()) / len(scores)
    return {
        "perplexity": round(perplexity, 4),
        "accuracy": round(mean, 4),
        "accuracy_by_skill": {skill: round(score, 3) for skill, score in scores.items()},
    }


def _checkpoint(variant: Variant, work: Path) -> Path:
    """The checkpoint that `quire quantize` makes, kept under its flags."""
    out = work / "-".join(flag.removeprefix("--") for flag in variant.quantize)
    if not (out / "config.json").is_file():
        calibration = work / "calibration.jsonl"
        random = Random(SEED)
        drawn = [training_example(random, 3) for _ in range(CALIBRATION_CHATS)]
        lines = [json.dumps({"messages": _whole_chat(example)}) for example in drawn if example.turns]
        calibration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        flags = [*variant.quantize, "--calibration", str(calibration), "--out", str(out), "--no-evaluate"]
        subprocess.run([sys.executable, "-m", "quire", "quantize", str(DEFAULT_MODEL), *flags], check=True)
    return out


def _whole_chat(example: Example) -> list[dict[str, str]]:
    return [*messages(example), {"role": "assistant", "content": example.turns[-1].answer}]


def _accuracy(llm: LLM, skill: str, number: int) -> float:
    def answer(chats: list[list[dict[str, str]]], limit: int) -> list[str]:
        outputs = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=limit), use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    return float(accuracy(answer, evaluation_set(skill, number, False, SEED), 100, 0))


def _loss(llm: LLM) -> float:
    """Mean negative log-likelihood, in nats a token, of the right answers in held-out chats."""
    tokenizer = llm.get_tokenizer()
    prompts: list[dict[str, object]] = []
    starts: list[int] = []
    for skill in SKILLS:
        for example in evaluation_set(skill, 20, False, SEED + 1):
            question = tokenizer.apply_chat_template(messages(example), add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(_whole_chat(example), add_generation_prompt=False)
            prompts.append({"prompt_token_ids": _ids(tokenizer, whole)})
            starts.append(len(_ids(tokenizer, question)))
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    values: list[float] = []
    for start, output in zip(starts, llm.generate(prompts, params, use_tqdm=False), strict=True):
        rows = list(zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True))[start:]
        values += [row[token].logprob for token, row in rows if row is not None]
    return -sum(values) / len(values)


def _ids(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    return tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt


def _tool_errors() -> Iterator[tuple[str, float]]:
    """Relative L2 error of the logits in float32 against those of the tool that made the checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in TOLERANCES:
            ids, reference = expected(name)
            with torch.inference_mode():
                found = full_logits(assemble(name, Path(scratch)), ids, "float32").double()
            yield name, float(f"{(found - reference).norm() / reference.norm():.3g}")


def _print(results: Mapping[str, Mapping[str, object]]) -> None:
    for name, result in results.items():
        if "not_measured" in result:
            print(f"{name:<32}{result['not_measured']}")
        else:
            print(f"{name:<32}perplexity {result['perplexity']:>8}   accuracy {result['accuracy']:.1%}")


if __name__ == "__main__":
    main()
