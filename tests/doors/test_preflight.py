"""What a YAML alone says of a run in patches is checked before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from composer.core import Time
from omegaconf import OmegaConf

from patch_algorithm.preflight import check_config, read_config
from patch_algorithm.stages.plan import Stage

CONFIG = """
max_duration: 100ba
variables: {rows: 32}
model: {max_seq_len: 8}
algorithms:
  patch_level: {k: 4, ratio: 0.5}
train_loader: {name: text, dataset: {max_seq_len: "${variables.rows}"}}
"""


def config(*changes: str) -> Any:
    cfg = OmegaConf.create(CONFIG)
    for change in changes:
        key, value = change.split("=", 1)
        OmegaConf.update(cfg, key, yaml.safe_load(value), merge=False, force_add=True)
    return cfg


def test_plan_of_a_good_configuration() -> None:
    plan = check_config(config())
    assert plan is not None
    assert plan.stages == (Stage(4, Time(50, "ba")),)
    assert plan.length == Time(100, "ba")


@pytest.mark.parametrize(
    "changes",
    [
        ("algorithms={other: {}}",),
        ("algorithms=null",),
        ("max_duration=2ep",),  # not to be told without the data loader
    ],
)
def test_what_cannot_be_told_is_left_to_the_start_of_training(changes: tuple[str, ...]) -> None:
    assert check_config(config(*changes)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (("algorithms.patch_level.k=0",), "k=0 is not a whole number"),
        (("algorithms.patch_level.patch_size=4",), "patch_size.*keys among k, ratio"),
        (("algorithms.patch_level=4",), "expected a mapping"),
        (("algorithms.patch_level.ratio=soon",), "ratio='soon'"),
        (("max_duration=100iter",), "100iter"),
        (("max_duration=long",), "max_duration='long'"),
        (("variables.rows=30",), "Rows of 30 tokens"),
        (("algorithms.patch_level.seq_len=16",), "seq_len=16 positions exceed the model's context of 8"),
        (("variables.rows=${nowhere}",), "cannot be resolved"),
        (
            ("algorithms.patch_level={stages: [{k: 4, until: 60ba}, {k: 2, until: 0.5}]}",),
            r"stages\[1\]\.until=50 is not after stages\[0\]\.until=60",
        ),
        (
            (
                "algorithms.patch_level={stages: [{k: 8, until: 0.3}, {k: 3, until: 0.5}]}",
                "variables.rows=64",
            ),
            "Rows of 64 tokens.*k\\*seq_len=3\\*8",
        ),
    ],
)
def test_bad_configurations(changes: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_config(config(*changes))


def test_rows_of_other_loaders_are_not_known(tmp_path: Path) -> None:
    assert check_config(config("train_loader.name=finetuning", "variables.rows=30")) is not None


def test_rows_of_text_may_come_padded() -> None:
    """llm-foundry's loader pads shards of text, and pads to full patches are ours."""
    assert check_config(config("model.max_seq_len=100", "variables.rows=30")) is not None
    with pytest.raises(ValueError, match="Rows of 30 tokens are not a multiple of the patch size k=4"):
        check_config(config("model.max_seq_len=100", "variables.rows=30", "train_loader.name=pile"))


def test_an_override_into_a_list_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("algorithms: {patch_level: {stages: [{k: 4, until: 0.5}]}}")
    with pytest.raises(ValueError, match="A list is overridden as a whole"):
        read_config(str(file), ["algorithms.patch_level.stages.0.k=2"])


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(OmegaConf, "load", refuse)
    with pytest.raises(ValueError, match=r"run\.yaml.*Permission denied"):
        read_config(str(tmp_path / "run.yaml"))
