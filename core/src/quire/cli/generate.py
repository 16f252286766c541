"""`quire generate`: answer prompts; the answers alone go to standard output."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quire.api.errors import PromptError
from quire.cli.flags import sampling_params
from quire.cli.session import add_session_flags, has_chat_template, open_llm

if TYPE_CHECKING:
    from quire.api.outputs import RequestOutput
    from quire.engine.inputs import Prompt
    from quire.engine.llm import LLM

EXIT_FAILED_REQUEST = 1


class GenerateCommand:
    """Complete one prompt or several, all in one batch."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Where prompts come from and how answers look; then the engine's flags."""
        parser.add_argument(
            "--prompt", action="append", metavar="TEXT", help="a prompt; - reads standard input; repeatable"
        )
        parser.add_argument(
            "--prompt-file",
            action="append",
            type=Path,
            metavar="FILE",
            help="a file that is one prompt; repeatable",
        )
        parser.add_argument(
            "--token-ids",
            action="append",
            metavar="IDS",
            help="a prompt as token ids, separated by commas or spaces; repeatable; needs no tokenizer",
        )
        parser.add_argument("--system", metavar="TEXT", help="a system message for the chat template")
        form = parser.add_mutually_exclusive_group()
        form.add_argument(
            "--chat",
            action="store_true",
            help="put the prompt through the chat template (the default where the model has one)",
        )
        form.add_argument(
            "--raw", action="store_true", help="send the prompt as it is, without a chat template"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object per prompt")
        add_session_flags(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Answer; the status is 1 when a request failed while running."""
        ids = [parse_token_ids(text) for text in args.token_ids or ()]
        texts = read_prompts(args) if not ids or args.prompt or args.prompt_file else []
        with open_llm(args) as llm:
            prompts: list[Prompt] = [*ids, *(_as_prompt(llm, text, args) for text in texts)]
            is_long = len(prompts) > 1 and sys.stderr.isatty()
            outputs = llm.generate(prompts, sampling_params(args), use_tqdm=is_long)
            has_tokenizer = not llm.config.model.skip_tokenizer_init
        for output in outputs:
            _print(output, as_json=args.json, has_tokenizer=has_tokenizer)
        return EXIT_FAILED_REQUEST if any(_report(output) for output in outputs) else 0


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Prompts of the flags, else of a pipe.

    Raises:
        PromptError: there is none, or a file cannot be read.
    """
    prompts = [_read_stdin() if text == "-" else text for text in args.prompt or ()]
    for file in args.prompt_file or ():
        try:
            prompts.append(file.read_text(encoding="utf-8").rstrip("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"cannot read the prompt file {file}: {error}") from None
    if not prompts and not sys.stdin.isatty():
        prompts = [_read_stdin()]
    if not prompts:
        raise PromptError(
            "no prompt: give --prompt TEXT, --prompt-file FILE or --token-ids IDS, or pipe one in"
        )
    return prompts


def parse_token_ids(text: str) -> list[int]:
    """The numbers of a `--token-ids`.

    Raises:
        PromptError: something else is in it.
    """
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None or not words:
        raise PromptError(
            f"--token-ids {text!r}: give numbers separated by commas, not {wrong or 'nothing'!r}"
        )
    return [int(word) for word in words]


def _read_stdin() -> str:
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not valid text: {error}") from None


def _as_prompt(llm: LLM, text: str, args: argparse.Namespace) -> Prompt:
    is_chat = args.chat or args.system is not None or (not args.raw and has_chat_template(llm))
    if not is_chat:
        return text
    messages = [{"role": "system", "content": args.system}] if args.system is not None else []
    return llm.chat_prompt([*messages, {"role": "user", "content": text}])


def _print(output: RequestOutput, *, as_json: bool, has_tokenizer: bool) -> None:
    if as_json:
        record = {
            "request_id": output.request_id,
            "prompt": output.prompt,
            "prompt_token_ids": list(output.prompt_token_ids),
            "num_cached_tokens": output.num_cached_tokens,
            "outputs": [dataclasses.asdict(choice) for choice in output.outputs],
            "prompt_logprobs": _plain_logprobs(output),
            "error": None if output.error is None else str(output.error),
        }
        print(json.dumps(record, ensure_ascii=False))
        return
    for choice in output.outputs:
        print(choice.text if has_tokenizer else ",".join(str(token_id) for token_id in choice.token_ids))


def _plain_logprobs(output: RequestOutput) -> list[object] | None:
    if output.prompt_logprobs is None:
        return None
    return [
        None if entry is None else {token: dataclasses.asdict(value) for token, value in entry.items()}
        for entry in output.prompt_logprobs
    ]


def _report(output: RequestOutput) -> bool:
    """Say on standard error that a request failed; returns whether it did."""
    if output.error is not None:
        print(f"quire: request {output.request_id} failed: {output.error}", file=sys.stderr)
    return output.error is not None
