"""What is read from llm-foundry's source is what llm-foundry says when it is imported."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composer.utils import FSDPConfig
from llmfoundry import registry
from llmfoundry.data.text_data import StreamingTextDataset
from llmfoundry.models.mpt import ComposerMPTCausalLM, MPTConfig
from llmfoundry.models.utils.config_defaults import attn_config_defaults
from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS
from streaming import StreamingDataset

from patch_algorithm.planning.known_names import load, registered, registered_by_import, top_level
from patch_algorithm.planning.source import (
    SourceUnclearError,
    arguments_of,
    definition_of,
    fields_of,
    keys_of,
    registered_in,
)

ROOT = Path(__file__).parents[2]
KINDS = ("algorithms", "callbacks", "callbacks_with_config", "loggers", "optimizers")
KINDS += ("schedulers", "tokenizers", "dataloaders", "models")


def asked(builder: Any) -> tuple[set[str], bool]:
    parameters = inspect.signature(builder).parameters
    return set(parameters), any(one.kind == one.VAR_KEYWORD for one in parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_registries_and_arguments(kind: str) -> None:
    imported = registered_by_import(kind)
    # Other tests of this process may have registered entries of their own.
    of_tests = {one for one in imported if getattr(registry, kind).get(one).__module__.startswith("tests.")}
    assert set(registered(kind)) == set(imported) - of_tests
    read = 0
    for name, place in registered_in("llmfoundry", kind).items():
        entry = getattr(registry, kind).get(name)
        assert load(kind, name) is entry
        try:
            found = arguments_of(*place)
        except SourceUnclearError:
            continue  # it is imported and asked
        assert (found.names, found.takes_any) == asked(entry), name
        read += 1
    assert read >= len(registered_in("llmfoundry", kind)) // 2, "or the source is read for nothing"


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        ("llmfoundry.data.text_data", "StreamingTextDataset", StreamingTextDataset),
        ("streaming.base.dataset", "StreamingDataset", StreamingDataset),
        ("llmfoundry.models.mpt.configuration_mpt", "MPTConfig", MPTConfig),
        ("llmfoundry.models.mpt.modeling_mpt", "ComposerMPTCausalLM", ComposerMPTCausalLM),
    ],
)
def test_classes(module: str, name: str, kind: type) -> None:
    found = arguments_of(module, name)
    assert (found.names, found.takes_any) == asked(kind)


def test_fields_and_keys() -> None:
    assert top_level() < TRAIN_CONFIG_KEYS
    assert fields_of("llmfoundry.utils.config_utils", "TrainConfig") == TRAIN_CONFIG_KEYS
    assert fields_of("composer.utils.parallelism", "FSDPConfig") == set(FSDPConfig.__annotations__)
    attention = keys_of("llmfoundry.models.utils.config_defaults", "attn_config_defaults")
    assert attention == tuple(attn_config_defaults)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "a_package_of_mine"
    folder.mkdir()
    (folder / "parts.py").write_text(
        "import functools\n"
        "class Base:\n    def __init__(self, a, *, b=1): ...\n"
        "class Child(Base): ...\n"
        "class Two(Base, dict): ...\n"
        "class Meta(Base, metaclass=type): ...\n"
        "@functools.cache\ndef wrapped(a): ...\n"
        "def plain(a, /, b, *rest, c, **others): ...\n"
    )
    (folder / "__init__.py").write_text(
        "try:\n    from .parts import Child as Renamed\nexcept ImportError:\n    Renamed = None\n"
        "from a_package_of_mine.parts import *\n"
        "things.register('renamed', func=Renamed)\n"
        "others.register(name(), func=Renamed)\n"
    )
    return folder


def test_forms_of_source(package: Path) -> None:
    assert definition_of("a_package_of_mine", "Renamed") == ("a_package_of_mine.parts", "Child")
    assert arguments_of("a_package_of_mine", "Renamed").names == {"a", "b"}
    plain = arguments_of("a_package_of_mine.parts", "plain")
    assert (plain.names, plain.takes_any) == ({"a", "b", "rest", "c", "others"}, True)
    assert registered_in("a_package_of_mine", "things") == {"renamed": ("a_package_of_mine", "Renamed")}
    for name in ("Two", "Meta", "wrapped", "nowhere"):
        with pytest.raises(SourceUnclearError):
            arguments_of("a_package_of_mine.parts", name)
    with pytest.raises(SourceUnclearError):
        registered_in("a_package_of_mine", "others")
    with pytest.raises(SourceUnclearError):
        arguments_of("a_package_of_mine", "Base")  # what a star imports is not followed
    with pytest.raises(SourceUnclearError):
        arguments_of("no_such_package.part", "it")


def test_doctor_imports_neither_llm_foundry_nor_what_it_brings() -> None:
    heavy = {"llmfoundry", "mlflow", "streaming", "datasets"}
    code = (
        "import sys; from patch_algorithm.cli import app;"
        "app(['doctor', 'yamls/quickstart.yaml'], standalone_mode=False);"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "[]"
