"""The tokenizer of a model folder, over the `tokenizers` library. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from quire.api.errors import TokenizerError
from quire.loading.chat_template import ChatTemplate, Message, choose_template
from quire.loading.generation_config import load_generation_config
from quire.loading.text_bounds import max_chars_per_token
from quire.loading.tokenizer_config import TokenizerConfig, read_tokenizer_config

TOKENIZER_NAME = "tokenizer.json"


class Tokenizer:
    """Text to token ids and back, with the chat template.

    What is put around an encoded text (BOS, EOS) is what tokenizer.json says: as in transformers 5,
    `add_bos_token` and `add_eos_token` of tokenizer_config.json are not read.

    Args:
        backend: becomes this object's own; special tokens of the config are added to it.
        config: what to add to the backend.
    """

    def __init__(self, backend: Backend, config: TokenizerConfig | None = None) -> None:
        self.config = config or TokenizerConfig()
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, self.config)
        special = self.config.special_tokens
        self.bos_token_id, self.eos_token_id, self.pad_token_id, self.unk_token_id = (
            backend.token_to_id(special[name]) if name in special else None
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        )
        self.added_tokens: dict[int, str] = {
            token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()
        }
        self.all_special_ids: frozenset[int] = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self._templates: dict[str, ChatTemplate] = {}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder; transformers is imported only where tokenizer.json is missing.

        Raises:
            TokenizerError: the folder has no tokenizer, or a file of it is malformed.
            CheckpointError: generation_config.json is malformed.
        """
        path = Path(folder)
        config = read_tokenizer_config(path)
        tokenizer = cls(_read_backend(path), config)
        generation = load_generation_config(path)
        if tokenizer.eos_token_id is None and generation.eos_token_ids:
            tokenizer.eos_token_id = generation.eos_token_ids[0]
        if tokenizer.bos_token_id is None:
            tokenizer.bos_token_id = generation.bos_token_id
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = generation.pad_token_id
        return tokenizer

    def __len__(self) -> int:
        """Number of tokens, added ones included; a model's logits may be wider."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Number of tokens without added ones, as in transformers."""
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    @property
    def chat_template(self) -> str | Mapping[str, str] | None:
        """The folder's template, or its named templates."""
        return self.config.chat_template

    @cached_property
    def max_chars_per_token(self) -> int | None:
        """No text has more characters than this for each of its tokens; None where that cannot be said."""
        return max_chars_per_token(self._backend)

    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added ones included. O(number of tokens)."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the BOS and EOS that the model's tokenizer adds.

        Raises:
            TokenizerError: the text cannot be encoded (it holds lone surrogates).
        """
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"the text cannot be tokenized: {error}") from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids that the tokenizer does not have give no text.

        Raises:
            TokenizerError: an id is negative or not an integer.
        """
        try:
            return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        except (OverflowError, TypeError) as error:
            raise TokenizerError(f"token ids must be integers from 0: {error}") from error

    def id_to_piece(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it ("▁the", "Ġthe"), or None for an unknown id."""
        piece: str | None = self._backend.id_to_token(token_id)
        return piece

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str | None]:
        """`id_to_piece` of each id."""
        return [self.id_to_piece(token_id) for token_id in token_ids]

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **values: object,
    ) -> str:
        """A conversation as text, to be encoded with `add_special_tokens=False`.

        Args:
            messages: see `ChatTemplate.render`.
            chat_template: a template's text, or the name of one of the folder's; None is the folder's.
            add_generation_prompt: see `ChatTemplate.render`.
            continue_final_message: see `ChatTemplate.render`.
            **values: what the template reads besides, e.g. `tools`.

        Raises:
            TokenizerError: there is no template, or it is not valid Jinja.
            PromptError: a message is malformed, or the template refused the conversation.
        """
        source = self._template_source(chat_template, has_tools=bool(values.get("tools")))
        template = self._templates.get(source)
        if template is None:
            template = ChatTemplate(source, self.config.special_tokens)
            self._templates = {source: template}
        return template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **values,
        )

    def _template_source(self, chat_template: str | None, *, has_tools: bool) -> str:
        own = self.config.chat_template
        if chat_template is not None:
            return own[chat_template] if isinstance(own, Mapping) and chat_template in own else chat_template
        if own is None:
            raise TokenizerError(
                "the model has no chat template: give chat_template, or complete the plain text (generate(), or "
                "--raw on the command line)"
            )
        return choose_template(own, has_tools=has_tools)


def _read_backend(folder: Path) -> Backend:
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        return _convert_with_transformers(folder)
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path} cannot be read: {error}; fetch the file again") from error


def _add_tokens(backend: Backend, config: TokenizerConfig) -> None:
    """Give the backend the tokens that only the config names, as transformers does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in config.added_tokens:
        if token.content not in known:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
            known.add(token.content)
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for text in (*config.special_tokens.values(), *config.extra_special_tokens):
        if text not in special:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
            special.add(text)


def _convert_with_transformers(folder: Path) -> Backend:
    """A backend made of older files (tokenizer.model, vocab.json with merges.txt)."""
    names = ("tokenizer.model", "spiece.model", "vocab.json", "tekken.json", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        raise TokenizerError(
            f"{folder} has no {TOKENIZER_NAME}: add it, or set skip_tokenizer_init and give token ids"
        )
    try:
        from transformers import AutoTokenizer

        converted = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        backend = converted.backend_tokenizer
    except Exception as error:  # whatever conversion raises
        raise TokenizerError(
            f"{folder} has no {TOKENIZER_NAME} and its older files cannot be converted: {error}; "
            "install transformers and sentencepiece, or save the tokenizer with save_pretrained"
        ) from error
    if not isinstance(backend, Backend):
        raise TokenizerError(
            f"{folder} holds a tokenizer that has no fast form; save one as {TOKENIZER_NAME}"
        )
    return backend
