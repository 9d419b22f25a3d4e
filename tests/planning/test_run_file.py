"""A YAML as a typed run: what it says, and errors that name the full key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composer.core import Time
from omegaconf import OmegaConf

from patch_algorithm.planning import RunFile
from patch_algorithm.stages.plan import Stage
from tests.support import config, mpt

ROOT = Path(__file__).parents[2]


def test_the_quickstart() -> None:
    run = RunFile.read(str(ROOT / "yamls/quickstart.yaml"), ["max_duration=900ba"])
    assert run.plan is not None
    assert run.plan.stages == (Stage(4, Time(600, "ba")),)
    assert (run.T, run.L, run.ks, run.tokens_per_batch) == (512, 128, (4,), 4096)
    assert (run.model.context, run.model.vocab_size) == (128, 4096)
    assert run.train_loader.name == "pile"
    assert run.train_loader.dataset.on_disk is None, "train.py makes the data first"
    assert [loader.dataset.row_tokens for loader in run.eval_loaders] == [128]
    assert (run.scheduler.name, run.scheduler.arguments["t_decay"]) == ("warmup_stable_decay", "0.2dur")
    assert run.optimizer.arguments["lr"] == pytest.approx(3e-3)
    assert (run.device_train_microbatch_size, run.precision) == (8, "fp32")
    assert run.eval_interval == Time(150, "ba")
    assert run.save_folder is not None
    assert not run.autoresume


def of(**changes: Any) -> RunFile:
    return RunFile.from_config(OmegaConf.create(changes))


def test_what_is_not_said_is_none() -> None:
    run = of()
    assert (run.T, run.L, run.ks, run.max_duration, run.length) == (None, None, (), None, None)
    assert run.algorithm is None
    assert run.plan is not None
    assert run.plan.stages == ()
    assert run.model.context is None
    assert run.eval_loaders == ()


def test_data_on_disk_turns_epochs_into_batches(corpus: Path) -> None:
    cfg = config(corpus, mpt(), algorithms={"patch_level": {"k": 4, "ratio": 0.5}}, max_duration="2ep")
    run = of(**cfg)
    found = run.train_loader.dataset.on_disk
    assert found is not None
    assert (found.rows, found.row_tokens, found.tokens) == (256, 32, 8192)
    assert found.info is not None
    assert run.length == Time(128, "ba")
    assert run.plan is not None
    assert run.plan.stages == (Stage(4, Time(64, "ba")),)


def test_rows_of_data_without_a_description(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(corpus / "mds/train")
    found = of(
        train_loader={"dataset": {"local": str(tmp_path), "split": "train"}}
    ).train_loader.dataset.on_disk
    assert found is not None
    assert found.info is None
    assert (found.rows, found.row_tokens) == (256, 32)


def test_context_and_vocabulary_of_a_hugging_face_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_positions": 64, "vocab_size": 100}')
    model = {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(tmp_path)}
    assert (of(model=model).model.context, of(model=model).model.vocab_size) == (64, 100)
    changed = of(model=model | {"config_overrides": {"n_positions": 32}}).model
    assert (changed.context, changed.context_key) == (32, "model.config_overrides.n_positions")
    assert of(model=model | {"pretrained_model_name_or_path": "/none"}).model.context is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithms": {"patch_level": {"k": 0}}}, r"algorithms\.patch_level\.k=0 is not a whole number"),
        ({"algorithms": {"patch_level": {"ratio": "soon"}}}, r"algorithms\.patch_level\.ratio='soon'"),
        ({"algorithms": {"patch_level": 4}}, r"algorithms\.patch_level is 4; expected a mapping"),
        ({"max_duration": "long"}, "max_duration='long' cannot be read as a time"),
        ({"max_duration": "5iter"}, "max_duration='5iter'"),
        ({"train_loader": {"dataset": {"max_seq_len": "x"}}}, r"train_loader\.dataset\.max_seq_len is 'x'"),
        ({"train_loader": {"dataset": {"max_seq_len": "${nowhere}"}}}, "max_seq_len cannot be resolved"),
        (
            {"variables": {"row_tokns": 8}, "max_seq_len": "${variables.row_tokens}"},
            "a key that the file does not have; it has variables.row_tokns",
        ),
        ({"eval_loader": [{"label": "a"}, 3]}, r"eval_loader\[1\] is 3"),
        ({"global_train_batch_size": 0}, "global_train_batch_size is 0"),
        ({"device_train_microbatch_size": "many"}, "device_train_microbatch_size is 'many'"),
        ({"model": {"max_seq_len": 1.5}}, r"model\.max_seq_len is 1\.5"),
        ({"autoresume": "yes please"}, "autoresume is 'yes please'"),
        ({"model": {"attn_config": "torch"}}, r"model\.attn_config is 'torch'; expected a mapping"),
        ({"model": {"ffn_config": "x"}}, r"model\.ffn_config is 'x'; expected a mapping"),
        ({"model": {"name": "mpt_causal_lm", "n_heads": 0}}, r"model\.n_heads is 0; expected a whole number"),
        ({"tokenizer": {"kwargs": "x"}}, r"tokenizer\.kwargs is 'x'; expected a mapping"),
    ],
)
def test_errors_name_the_full_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of(**changes)
