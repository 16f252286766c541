"""The tokenizer against transformers' on the same folder."""

import json
import subprocess
import sys

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from quire.api.errors import CheckpointError, TokenizerError
from quire.loading.tokenizer import Tokenizer

TEXTS = ["", "hello world", " hello  world ", "naïve 你好 🙂\n\ttab", "<s>hello</s><|im_end|>x", "a" * 300]


def byte_level():
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, hello there, the world"] * 5, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def metaspace():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"helowrd", "he", "▁he"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(
        models.BPE(vocab, [("h", "e"), ("▁", "he")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def write(folder, backend, config=None, **files):
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


CONFIGS = {
    "plain": {},
    "named": {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "pad_token": "</s>",
    },
    "bos is tokenizer.json's": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False},
    "bos and eos": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
    "bos without token": {"add_bos_token": True},
    "new tokens": {
        "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<|im_start|>"],
        "added_tokens_decoder": {"400": {"content": "<tool>", "special": False, "normalized": False}},
    },
}


@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("name", CONFIGS)
def test_encode_and_decode_equal_transformers(tmp_path, make, name):
    folder = write(tmp_path, make(), {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIGS[name]})
    ours, oracle = Tokenizer.from_folder(folder), PreTrainedTokenizerFast.from_pretrained(str(folder))
    assert len(ours) == len(oracle)
    assert ours.vocab_size == oracle.vocab_size
    for attribute in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, attribute) == getattr(oracle, attribute), attribute
    for text in [*TEXTS, "<tool>x"]:
        for add in (True, False):
            ids = ours.encode(text, add_special_tokens=add)
            assert ids == oracle.encode(text, add_special_tokens=add)
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == oracle.decode(
                    ids, skip_special_tokens=skip
                )
        assert ours.convert_ids_to_tokens(ids) == oracle.convert_ids_to_tokens(ids)


def test_special_ids_are_those_that_decoding_skips(tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, byte_level(), CONFIGS["new tokens"]))
    texts = {tokenizer.id_to_piece(i) for i in tokenizer.all_special_ids}
    assert texts == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    assert tokenizer.decode(sorted(tokenizer.all_special_ids)) == ""
    assert "<tool>" in tokenizer.added_tokens.values()


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_folder(write(tmp_path, backend))
    assert 4 < len(tokenizer.encode("hello " * 10)) < 64


def test_ids_past_the_vocabulary_decode_to_nothing(tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, byte_level()))
    ids = tokenizer.encode("hello")
    assert tokenizer.decode([len(tokenizer), *ids, 10**9]) == "hello"
    assert tokenizer.id_to_piece(10**6) is None
    for bad in ([-1], ["x"], [2**70]):
        with pytest.raises(TokenizerError):
            tokenizer.decode(bad)


def test_lone_surrogates_are_refused(tmp_path):
    with pytest.raises(TokenizerError):
        Tokenizer.from_folder(write(tmp_path, byte_level())).encode("\ud800")


def test_special_tokens_come_from_the_older_file_too_and_then_from_generation_config(tmp_path):
    write(tmp_path, byte_level(), {"bos_token": "<s>"}, special_tokens_map={"bos_token": "</s>"},
          generation_config={"eos_token_id": [2, 5], "bos_token_id": 9})  # fmt: skip
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, None)


@pytest.mark.parametrize(
    "name,content",
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "["),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"eos_token": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": 7}'),
        ("tokenizer_config.json", '{"chat_template": 7}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ("special_tokens_map.json", "nonsense"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, content):
    write(tmp_path, byte_level())
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError):
        Tokenizer.from_folder(tmp_path)


def test_a_malformed_generation_config_is_refused(tmp_path):
    write(tmp_path, byte_level(), generation_config=[])
    with pytest.raises(CheckpointError):
        Tokenizer.from_folder(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(TokenizerError, match="skip_tokenizer_init"):
        Tokenizer.from_folder(tmp_path)


def test_older_files_are_converted_with_transformers(tmp_path):
    backend = byte_level()
    backend.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert not (tmp_path / "tokenizer.json").exists()
    tokenizer = Tokenizer.from_folder(tmp_path)
    ids = tokenizer.encode("hello world", add_special_tokens=False)
    assert ids == backend.encode("hello world", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "hello world"


CHAT = [{"role": "user", "content": "hi"}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{% if tools %}T{% endif %}"


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools{{ bos_token }}"}],
    ],
)
@pytest.mark.parametrize("tools", [None, [{"type": "function"}]])
def test_the_chat_template_is_chosen_as_by_transformers(tmp_path, template, tools):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "chat_template": template}
    folder = write(tmp_path, byte_level(), config)
    oracle = PreTrainedTokenizerFast.from_pretrained(str(folder))
    text = Tokenizer.from_folder(folder).apply_chat_template(CHAT, **({"tools": tools} if tools else {}))
    assert text == oracle.apply_chat_template(CHAT, tools=tools, tokenize=False)


def test_the_jinja_file_wins_and_an_explicit_template_beats_it(tmp_path):
    folder = write(tmp_path, byte_level(), {"chat_template": "old"})
    (folder / "chat_template.jinja").write_text("file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag text")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.apply_chat_template(CHAT) == "file"
    assert tokenizer.apply_chat_template(CHAT, chat_template="rag") == "rag text"
    assert tokenizer.apply_chat_template(CHAT, chat_template="{{ messages[0].role }}") == "user"


def test_without_a_template_chat_is_refused(tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, byte_level()))
    assert tokenizer.chat_template is None
    with pytest.raises(TokenizerError, match="chat_template"):
        tokenizer.apply_chat_template(CHAT)


def test_added_tokens_of_the_file_keep_their_properties(tmp_path):
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<x>", lstrip=True)])
    folder = write(tmp_path, backend, {"eos_token": "<x>"})
    assert Tokenizer.from_folder(folder).encode("a  <x>") == backend.encode("a  <x>").ids


def test_importing_it_imports_neither_torch_nor_transformers(tmp_path):
    folder = write(tmp_path, byte_level(), {"chat_template": TEMPLATE, "bos_token": "<s>"})
    code = (
        "import sys; from quire.loading.tokenizer import Tokenizer; "
        f"t = Tokenizer.from_folder({str(folder)!r}); t.encode('x'); "
        "t.apply_chat_template([{'role': 'user', 'content': 'x'}]); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
