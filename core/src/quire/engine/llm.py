"""The offline API: `LLM`, with vLLM's methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from tqdm.auto import tqdm

from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, PromptError, SamplingParamsError
from quire.api.outputs import Metric, RequestOutput
from quire.api.request import SamplingParams
from quire.engine.build import build_engine
from quire.engine.engine import Engine
from quire.engine.inputs import Prompt
from quire.engine.plugin_switch import PluginSwitch
from quire.loading.tokenizer import Tokenizer
from quire.plugins import PluginHost

Message = Mapping[str, object]
ProgressBar = bool | Callable[..., Any]


class LLM:
    """A model and its engine in this process.

    Args:
        model: a folder, a name that a plugin resolves, or a hub id; None: what `config_file` says,
            else "tiny".
        config_file: a `quire.toml`; its values yield to keywords.
        host: plugins loaded already (`PluginHost.discover`), a script's own among them; by default those
            that the settings select.
        keywords: the fields of `EngineConfig`'s sections (`dtype`, `max_model_len`, ...), and
            `plugins={"allow": ..., "deny": ..., "autoload": ...}`.

    Raises:
        QuireError: a setting, the model, its checkpoint or its tokenizer is refused; the subclass
            and the text say which, and what to do.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        config_file: str | Path | None = None,
        host: PluginHost | None = None,
        **keywords: object,
    ) -> None:
        self.config = EngineConfig.from_keywords({"model": model, **keywords}, config_file)
        self.engine: Engine = build_engine(self.config, host)

    @property
    def plugins(self) -> PluginSwitch:
        """Turns plugins off and on while the engine lives: `llm.plugins.disable("name")`."""
        return self.engine.plugins

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: ProgressBar = True,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; all run together.

        Args:
            prompts: one prompt or several: strings, token id lists, {"prompt": ...} or
                {"prompt_token_ids": ...}.
            sampling_params: for all prompts, or one each; by default the model's own.
            use_tqdm: show a progress bar (or the class of one).
            prompt_token_ids: instead of `prompts`.
            lora_request: None; adapters are not served.
            priority: one number each for the priority policy; lower runs first.

        Returns:
            One output per prompt, in order. A request that fails while running has the finish
            reason "error" and its `error` set; the others are complete.

        Raises:
            PromptError, SamplingParamsError, CapacityError: before anything is computed.
        """
        several = _several_prompts(prompts if prompts is not None else prompt_token_ids)
        params = self._several_params(sampling_params, len(several))
        ids = self._submit(several, params, priority)
        return self._run(ids, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: ProgressBar = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, through the model's chat template."""
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise PromptError(f"messages must be a list of {{'role', 'content'}} mappings, got {messages!r}")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            self.chat_prompt(
                cast(Sequence[Message], conversation),
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **({"tools": tools} if tools else {}),
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_values: object,
    ) -> dict[str, object]:
        """A conversation as a prompt: the template's text and its token ids."""
        tokenizer = self.get_tokenizer()
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template or self.engine.chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **template_values,
        )
        return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Complete one prompt and yield its cumulative output after each step that changed it.

        The prompt is checked and queued by the first `next`; closing the iterator aborts the request.
        """
        [params] = self._several_params(sampling_params, 1)
        request_id = self.engine.add_request(prompt, params)
        try:
            while not self.engine.is_finished(request_id):
                changed = self.engine.step()
                if request_id in changed and not self.engine.is_finished(request_id):
                    yield self.engine.output(request_id)
            yield self.engine.pop_output(request_id)
        finally:
            self.engine.discard(request_id)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerError with `skip_tokenizer_init`."""
        return self.engine.require_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self.engine.default_sampling_params()

    def get_metrics(self) -> list[Metric]:
        """The engine's counters and gauges."""
        return self.engine.get_metrics()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes that no running request uses."""
        self.engine.reset_prefix_cache()

    def close(self) -> None:
        """Free the model and its cache; idempotent."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close(error)

    def _several_params(
        self, sampling_params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if sampling_params is None:
            return [self.get_default_sampling_params()] * count
        if isinstance(sampling_params, SamplingParams):
            return [sampling_params] * count
        if isinstance(sampling_params, str | Mapping) or not isinstance(sampling_params, Sequence):
            raise SamplingParamsError(f"sampling_params must be SamplingParams, got {sampling_params!r}")
        for entry in sampling_params:
            if not isinstance(entry, SamplingParams):
                raise SamplingParamsError(f"sampling_params must be SamplingParams, got {entry!r}")
        if len(sampling_params) != count:
            raise SamplingParamsError(
                f"{len(sampling_params)} sampling_params for {count} prompts: give one, or one each"
            )
        return list(sampling_params)

    def _submit(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priority: Sequence[int] | None
    ) -> list[str]:
        if priority is not None and self.config.scheduler.scheduling_policy == "fcfs":
            raise ConfigError(
                'priority= has no effect under fcfs: build the LLM with scheduling_policy="priority"'
            )
        if priority is not None and len(priority) != len(prompts):
            raise PromptError(f"{len(priority)} priorities for {len(prompts)} prompts: give one each")
        ids: list[str] = []
        try:
            for index, prompt in enumerate(prompts):
                ids.append(
                    self.engine.add_request(
                        prompt, params[index], priority=priority[index] if priority else 0
                    )
                )
        except BaseException:
            self._abort(ids)
            raise
        return ids

    def _run(self, ids: Sequence[str], use_tqdm: ProgressBar) -> list[RequestOutput]:
        done: dict[str, RequestOutput] = {}
        remaining = set(ids)
        bar = None
        try:
            bar = _progress_bar(use_tqdm, len(ids))
            num_tokens = 0
            while len(done) < len(ids):
                for request_id in self.engine.step():
                    if request_id in remaining and self.engine.is_finished(request_id):
                        output = done[request_id] = self.engine.pop_output(request_id)
                        num_tokens += sum(len(choice.token_ids) for choice in output.outputs)
                        _advance(bar, num_tokens)
        except BaseException:
            self._abort(remaining - set(done))
            raise
        finally:
            if bar is not None:
                bar.close()
        return [done[request_id] for request_id in ids]

    def _abort(self, ids: Iterable[str]) -> None:
        for request_id in ids:
            self.engine.discard(request_id)


def _several_prompts(prompts: Prompt | Sequence[Prompt] | None) -> list[Prompt]:
    if prompts is None:
        raise PromptError("no prompts: give prompts or prompt_token_ids")
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence) and not hasattr(prompts, "tolist"):
        raise PromptError(f"prompts must be a prompt or a list of prompts, got {prompts!r}")
    entries: list[Any] = [
        entry.tolist() if hasattr(entry, "tolist") else entry for entry in cast(Sequence[Any], prompts)
    ]
    is_one = bool(entries) and all(isinstance(entry, int | float) for entry in entries)
    return [entries] if is_one else entries


def _progress_bar(use_tqdm: ProgressBar, count: int) -> Any:
    if not use_tqdm or count == 0:
        return None
    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=count, desc="Processed prompts", unit="prompt", dynamic_ncols=True)


def _advance(bar: Any, num_tokens: int) -> None:
    if bar is None:
        return
    elapsed = bar.format_dict["elapsed"] if hasattr(bar, "format_dict") else 0
    if elapsed:
        bar.set_postfix_str(f"output {num_tokens / elapsed:.1f} tokens/s", refresh=False)
    bar.update(1)
