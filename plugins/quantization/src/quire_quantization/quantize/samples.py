"""Reads calibration files, and makes token ids of their samples."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from quire.api.errors import ConfigError, PromptError
from quire_quantization.quantize.settings import QuantizeSettings

if TYPE_CHECKING:
    from quire import Tokenizer
    from quire_quantization.quantize.source import SourceModel

HELD_OUT_SHARE = 5
"""One sample in this many is held out for the evaluation where it has no file of its own."""

MIN_CALIBRATION_SAMPLES = 16
MIN_CALIBRATION_TOKENS = 11
"""GPTQModel drops samples of ten tokens and fewer."""

MIN_EVALUATION_TOKENS = 2
"""The first token of a sample is not predicted."""

Message = Mapping[str, object]

_JSON_SUFFIXES = (".jsonl", ".ndjson")
_REFUSED_SUFFIXES = (".json", ".parquet", ".csv", ".tsv", ".arrow", ".gz", ".zip", ".zst", ".pdf")
_KEYS = ("text", "messages", "token_ids")


@dataclass(slots=True, frozen=True)
class Sample:
    """One sample of a file: a text, a conversation, or token ids.

    Attributes:
        line: its number in the file, from 1.
    """

    line: int
    value: str | Sequence[object]
    kind: str


@dataclass(slots=True, frozen=True)
class TokenizedSample:
    """A sample as the model reads it.

    Attributes:
        scored: spans of `token_ids` on which the loss is measured: a conversation's answers, else everything.
    """

    token_ids: list[int]
    scored: tuple[range, ...]

    @classmethod
    def whole(cls, token_ids: list[int]) -> TokenizedSample:
        """A sample that is scored from its second token on; the first is not predicted."""
        return cls(token_ids, (range(1, len(token_ids)),))

    def cut(self, length: int) -> TokenizedSample:
        """Its first tokens."""
        spans = (range(span.start, min(span.stop, length)) for span in self.scored)
        return TokenizedSample(self.token_ids[:length], tuple(span for span in spans if span))


@dataclass(slots=True, frozen=True)
class SampleSets:
    """Token ids to learn from, and other samples to measure the loss on."""

    calibration: list[list[int]]
    evaluation: list[TokenizedSample]


class SampleReader:
    """Makes token ids of samples, with the model's tokenizer where one is needed."""

    def __init__(self, source: SourceModel, max_seq_len: int) -> None:
        """Args: source: the model. max_seq_len: longest sample; the model's context is a limit too."""
        self._source = source
        context = source.context_length
        self._max_tokens = max_seq_len if context is None else min(max_seq_len, context - 1)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from quire import Tokenizer

        return Tokenizer.from_folder(self._source.folder)

    def read(self, sample: Sample, path: Path) -> TokenizedSample:
        """A sample's tokens, cut to the limit.

        Raises:
            TokenizerError: the model has no tokenizer, or no chat template.
            PromptError: a conversation is malformed, or an id is outside the vocabulary.
        """
        where = f"{path}, line {sample.line}"
        if isinstance(sample.value, str):
            whole = TokenizedSample.whole(self._tokenizer.encode(sample.value))
        elif sample.kind == "token_ids":
            whole = TokenizedSample.whole(self._checked(sample.value, where))
        else:
            try:
                whole = self._conversation(cast("Sequence[Message]", sample.value))
            except PromptError as error:
                raise PromptError(f"{where}: {error}") from None
        return whole.cut(self._max_tokens)

    def _conversation(self, messages: Sequence[Message]) -> TokenizedSample:
        """Scored on its answers, without the white space that templates put between messages."""
        token_ids = self._encode(self._render(messages))
        spans: list[range] = []
        for index, message in enumerate(messages):
            if index > 0 and message.get("role") == "assistant":
                before = self._encode(self._render(messages[:index], add_generation_prompt=True))
                upto = self._encode(self._render(messages[: index + 1]).rstrip())
                if token_ids[: len(before)] != before or token_ids[: len(upto)] != upto:
                    return TokenizedSample.whole(token_ids)  # a template that rewrites earlier turns
                spans.append(range(len(before), len(upto)))
        return TokenizedSample(token_ids, tuple(spans)) if spans else TokenizedSample.whole(token_ids)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _checked(self, values: Sequence[object], where: str) -> list[int]:
        limit = self._source.vocab_size or 2**31
        ids: list[int] = []
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
                raise PromptError(f"{where}: {value!r} is no token id: give integers from 0 to {limit - 1}")
            ids.append(value)
        return ids


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, without repetitions.

    Raises:
        ConfigError: the file cannot be read, is of a kind that is not served, or a line of it is malformed.
    """
    if path.suffix.lower() in _REFUSED_SUFFIXES:
        raise ConfigError(
            f"{path}: files of kind {path.suffix} are not read: give a text with one sample per line, or a .jsonl"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the samples of {path}: {error}") from None
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            first.setdefault(line, number)
    is_json = path.suffix.lower() in _JSON_SUFFIXES
    return [
        _from_json(path, number, line) if is_json else Sample(number, line, "text")
        for line, number in first.items()
    ]


def load_samples(settings: QuantizeSettings, source: SourceModel) -> SampleSets:
    """Draw the samples of a run; the same settings and files give the same ones.

    Where there is no file for the evaluation, one sample in HELD_OUT_SHARE is held out of the calibration,
    for every method alike, so that methods are compared on the same text.

    Raises:
        ConfigError: a file is malformed or has too few samples. TokenizerError, PromptError: see SampleReader.
    """
    reader = SampleReader(source, settings.max_seq_len)
    needed = {name: 0 for name in ("calibration", "evaluation")}
    if settings.traits.needs_calibration:
        needed["calibration"] = MIN_CALIBRATION_SAMPLES
    if settings.is_evaluated:
        needed["evaluation"] = 1
    calibration = _draw(settings.calibration, reader, settings)
    if settings.evaluation is not None:
        evaluation = _draw(settings.evaluation, reader, settings)
    else:
        held_out = max(1, len(calibration) // HELD_OUT_SHARE)
        calibration, evaluation = calibration[held_out:], calibration[:held_out]
    sets = SampleSets(
        [sample.token_ids for sample in calibration if len(sample.token_ids) >= MIN_CALIBRATION_TOKENS],
        [sample for sample in evaluation if sample.scored],
    )
    _check_counts(settings, sets, needed)
    return sets


def digest(path: Path | None) -> str | None:
    """SHA-256 of a file; None for no file."""
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read the samples of {path}: {error}") from None


def _draw(path: Path | None, reader: SampleReader, settings: QuantizeSettings) -> list[TokenizedSample]:
    if path is None:
        return []
    samples = read_samples(path)
    random.Random(settings.seed).shuffle(samples)
    return [reader.read(sample, path) for sample in samples[: settings.max_samples]]


def _check_counts(settings: QuantizeSettings, sets: SampleSets, needed: dict[str, int]) -> None:
    for name, tokens in (
        ("calibration", MIN_CALIBRATION_TOKENS),
        ("evaluation", MIN_EVALUATION_TOKENS),
    ):
        found = len(getattr(sets, name))
        if found < needed[name]:
            path = (
                settings.evaluation if name == "evaluation" and settings.evaluation else settings.calibration
            )
            raise ConfigError(
                f"{path} gives {found} samples of at least {tokens} tokens for the {name}, and {needed[name]} are "
                f"needed: add samples, or raise --max-samples ({settings.max_samples}) or --max-seq-len "
                f"({settings.max_seq_len})"
            )


def _from_json(path: Path, number: int, line: str) -> Sample:
    where = f"{path}, line {number}"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    found = [key for key in _KEYS if isinstance(entry, dict) and key in entry]
    if len(found) != 1:
        raise ConfigError(f"{where}: give an object with one of {', '.join(_KEYS)}, found {found or 'none'}")
    [kind] = found
    value = entry[kind]
    if not isinstance(value, str if kind == "text" else list) or not value:
        form = "a text" if kind == "text" else "a list"
        raise ConfigError(f"{where}: {kind} must be {form} that is not empty, got {value!r}")
    return Sample(number, value, kind)
