"""The distribution's plugins: light to import, found by name, and what they register resolves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.speculation import Drafter, DrafterContext
from quire.plugins import PluginHost, resolve_factory
from quire_speculative.ngram.drafter import NgramDrafter, make_ngram
from quire_speculative.ngram.settings import NgramSettings
from quire_speculative.suffix.drafter import SuffixDrafter, make_suffix
from quire_speculative.suffix.settings import SuffixSettings

FACTORIES = {"ngram": make_ngram, "suffix": make_suffix}
SETTINGS = {"ngram": NgramSettings, "suffix": SuffixSettings}


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.discover()


def test_plugin_modules_import_neither_torch_nor_numpy() -> None:
    imports = "; ".join(f"import quire_speculative.{name}.plugin" for name in FACTORIES)
    check = "import sys; print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", FACTORIES)
def test_specs_resolve(name: str, host: PluginHost) -> None:
    registration = host.drafters.registration(name)
    spec = host.drafters.spec(name)
    assert registration.distribution == "quire-speculative"
    assert resolve_factory(spec.factory, registration) is FACTORIES[name]
    assert spec.settings is not None
    assert resolve_factory(spec.settings, registration) is SETTINGS[name]


@pytest.mark.parametrize(("name", "kind"), [("ngram", NgramDrafter), ("suffix", SuffixDrafter)])
def test_factories_make_drafters_with_or_without_settings(name: str, kind: type) -> None:
    for settings in (None, SETTINGS[name]()):
        context = DrafterContext(
            config=EngineConfig(),
            device=DeviceInfo(type="cpu"),
            vocab_size=100,
            num_speculative_tokens=5,
            max_model_len=100,
            max_num_seqs=4,
            settings=settings,
            build_model=lambda name: pytest.fail(name),
            sample=lambda *_: pytest.fail("nothing is to be sampled"),
        )
        drafter = FACTORIES[name](context)
        assert isinstance(drafter, kind)
        assert isinstance(drafter, Drafter)
