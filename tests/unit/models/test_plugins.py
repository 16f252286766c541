"""The distribution's plugins: light to import, and found by name."""

from __future__ import annotations

import subprocess
import sys

from quire.plugins import PluginHost, resolve_factory

MODULES = ("llama.plugin", "qwen2.plugin", "gpt2.plugin", "tiny_plugin")


def test_plugin_modules_import_no_torch() -> None:
    imports = "; ".join(f"import quire_models.{name}" for name in MODULES)
    check = "import sys; print(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


def test_architectures_resolve(host: PluginHost) -> None:
    for architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"):
        registration = host.models.registration(architecture)
        factory = resolve_factory(host.models.spec(architecture).factory, registration)
        assert callable(factory)
        assert registration.distribution == "quire-models"


def test_tiny_is_the_packaged_folder(host: PluginHost) -> None:
    folder = host.resolve_model("tiny")
    assert folder is not None
    assert folder.parts[-2:] == ("quire_models", "tiny")
    assert host.resolve_model("tinier") is None
