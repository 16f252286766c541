"""The distribution's plugins: light to import, and found by name."""

from __future__ import annotations

import subprocess
import sys

from quire.plugins import PluginHost, resolve_factory

PLUGINS = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "mpt")
MODULES = (*(f"{name}.plugin" for name in PLUGINS), "tiny_plugin")
ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MistralForCausalLM",
    "GPT2LMHeadModel",
    "MptForCausalLM",
    "MPTForCausalLM",
)


def test_plugin_modules_import_no_torch() -> None:
    imports = "; ".join(f"import quire_models.{name}" for name in MODULES)
    check = "import sys; print(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


def test_architectures_resolve(host: PluginHost) -> None:
    for architecture in ARCHITECTURES:
        registration = host.models.registration(architecture)
        factory = resolve_factory(host.models.spec(architecture).factory, registration)
        assert callable(factory)
        assert registration.distribution == "quire-models"


def test_tiny_is_the_packaged_folder(host: PluginHost) -> None:
    folder = host.resolve_model("tiny")
    assert folder is not None
    assert folder.parts[-2:] == ("quire_models", "tiny")
    assert host.resolve_model("tinier") is None
