"""Trains the embedded model ``tiny`` from generated data on a CPU.

    python examples/train_tiny/train.py --work build/tiny

The run can be stopped and continued with ``--resume``; ``export.py`` makes a model folder of its checkpoint.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from data import training_example
from model import TinyConfig, TinyLM
from tokenizer import build_tokenizer, encode_example
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

WIDTHS = (48, 96, 160, 256, 384, 576)
BATCH_TOKENS = 1920
BATCHES = 4


@dataclass
class Batch:
    """Examples of similar length, padded."""

    ids: Tensor
    learned: Tensor


@dataclass
class State:
    """Everything that a checkpoint holds."""

    master: TinyLM
    optimizers: list[torch.optim.Optimizer]
    step: int = 0


Row = tuple[list[int], list[bool]]


def _pad(rows: list[Row], width: int) -> Batch:
    ids = torch.zeros(len(rows), width + 1, dtype=torch.long)
    learned = torch.zeros(len(rows), width + 1, dtype=torch.bool)
    for row, (tokens, marks) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        learned[row, : len(tokens)] = torch.tensor(marks)
    return Batch(ids, learned)


def stream_batches(tokenizer: Tokenizer, seed: int, stages: Sequence[int]) -> Iterator[Batch]:
    """Yields batches of a few fixed shapes for ever: each holds examples of similar length.

    Args:
        tokenizer: The tokenizer.
        seed: Seed of the draw.
        stages: How many batches are drawn before each of the later stages begins.
    """
    drawn = 0
    rng = Random(f"{seed}-0")
    waiting: dict[int, list[Row]] = {width: [] for width in WIDTHS}
    while True:
        row = encode_example(tokenizer, training_example(rng, sum(drawn >= start for start in stages)))
        width = next((width for width in WIDTHS if len(row[0]) <= width + 1), None)
        if width is None:
            continue
        waiting[width].append(row)
        if len(waiting[width]) == BATCH_TOKENS // width:
            drawn += 1
            yield _pad(waiting[width], width)
            waiting[width] = []


def batches_in(step: int, halve_at: int) -> int:
    """How many batches a step has: few and large steps first, then more and smaller ones."""
    return BATCHES if step < halve_at else BATCHES // 2


@dataclass(frozen=True)
class Schedule:
    """The course of the learning rate, by steps.

    Attributes:
        fall: The first fall begins; it would reach zero at ``aim``.
        aim: See ``fall``.
        plateau: The first fall ends, and the rate stays; the second mix of skills begins.
        landing: The second fall begins.
        third: The third mix of skills begins, and the second fall pauses for ``pause`` steps.
        pause: See ``third``.
        fourth: The second fall ends at zero, and the fourth mix of skills begins: the rate rises to ``again``.
        again: A share of the peak rate; see ``fourth``.
        last: The last fall begins.
        end: The rate is zero.
    """

    fall: int = 821
    aim: int = 1700
    plateau: int = 1373
    landing: int = 2000
    third: int = 2100
    pause: int = 600
    fourth: int = 4000
    again: float = 0.22
    last: int = 4600
    end: int = 6000

    def rate(self, step: int, warmup: int = 50) -> float:
        """Returns the share of the peak rate that a step has."""
        if step >= self.fourth:
            left = (self.end - step) / (self.end - self.last)
            return self.again * min(1.0, (step + 1 - self.fourth) / warmup, left)
        course = (min(step, self.plateau) - self.fall) / (self.aim - self.fall)
        moved = step if step < self.third else max(self.third, step - self.pause)
        landed = (moved - self.landing) / (self.fourth - self.pause - self.landing)
        return min(1.0, (step + 1) / warmup) * (1.0 - max(0.0, course) ** 0.5) * (1.0 - max(0.0, landed))


def make_optimizers(model: TinyLM, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_step(
    state: State,
    worker: TinyLM,
    hidden: Callable[[Tensor], Tensor],
    batches: list[Batch],
    rates: tuple[float, float],
) -> float:
    """Computes the gradient in bfloat16 and updates the float32 weights; returns the mean loss."""
    count, total = sum(int(batch.learned[:, 1:].sum()) for batch in batches), 0.0
    for batch in batches:
        keep = batch.learned[:, 1:]
        logits = worker.head(hidden(batch.ids[:, :-1].contiguous())[keep])
        loss = F.cross_entropy(logits.float(), batch.ids[:, 1:][keep], reduction="sum") / count
        loss.backward()
        total += loss.item()
    pairs = list(zip(state.master.parameters(), worker.parameters(), strict=True))
    for slow, fast in pairs:
        slow.grad, fast.grad = fast.grad.float(), None
    torch.nn.utils.clip_grad_norm_(state.master.parameters(), 1.0)
    for optimizer, rate in zip(state.optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    with torch.no_grad():
        for slow, fast in pairs:
            fast.copy_(slow)
    return total


def save(state: State, path: Path) -> None:
    """Writes a checkpoint in one go, so that a stopped run leaves a whole one."""
    fresh = path.with_suffix(".new")
    optimizers = [optimizer.state_dict() for optimizer in state.optimizers]
    torch.save({"model": state.master.state_dict(), "optimizers": optimizers, "step": state.step}, fresh)
    fresh.replace(path)


def load(state: State, path: Path) -> None:
    """Reads a checkpoint."""
    stored = torch.load(path, weights_only=True)
    state.master.load_state_dict(stored["model"])
    for optimizer, content in zip(state.optimizers, stored["optimizers"], strict=True):
        optimizer.load_state_dict(content)
    state.step = stored["step"]


def train(args: argparse.Namespace) -> None:
    """Runs the training."""
    schedule = Schedule()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(TinyConfig().vocab_size, args.seed)
    tokenizer.save(str(args.work / "tokenizer.json"))
    master = TinyLM(TinyConfig())
    state = State(master, make_optimizers(master, args.weight_decay))
    checkpoint = args.work / "checkpoint.pt"
    if args.resume:
        load(state, checkpoint)
    worker = TinyLM(TinyConfig()).bfloat16()
    worker.load_state_dict(master.state_dict())
    hidden = torch.compile(worker.hidden, dynamic=False) if args.compile else worker.hidden
    consumed, *stages = (
        sum(batches_in(step, args.halve_at) for step in range(last))
        for last in (state.step, schedule.plateau, schedule.third, schedule.fourth)
    )
    stream = islice(stream_batches(tokenizer, args.seed, stages), consumed, None)
    mean, saved = 0.0, time.monotonic()
    bar = tqdm(range(state.step, schedule.end), initial=state.step, total=schedule.end, mininterval=20)
    for step in bar:
        batches = list(islice(stream, batches_in(step, args.halve_at)))
        share = schedule.rate(step)
        rates = (share * args.muon_rate, share * args.adam_rate)
        loss = train_step(state, worker, hidden, batches, rates)
        mean = 0.98 * mean + 0.02 * loss if mean else loss
        state.step = step + 1
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if time.monotonic() - saved > 120 or step + 1 == schedule.end:
            save(state, checkpoint)
            saved = time.monotonic()


def parse_arguments() -> argparse.Namespace:
    """Reads the command line; the defaults made the shipped weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder for checkpoints")
    parser.add_argument(
        "--halve-at", type=int, default=613, help="from this step on, a step is half as large"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--muon-rate", type=float, default=4e-3)
    parser.add_argument("--adam-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    train(parse_arguments())
