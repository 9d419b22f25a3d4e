"""Composer's and llm-foundry's callbacks in runs of both stages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.callbacks import EarlyStopper, ThresholdStopper
from composer.loggers import InMemoryLogger
from llmfoundry.callbacks import curriculum_learning_callback
from transformers import AutoModelForCausalLM

from patch_algorithm import PatchLevel
from tests.runs.families import family
from tests.runs.short import make_rows, make_trainer
from tests.support import config, metrics, mpt, train, weights, write_corpus

ALGORITHMS = {"patch_level": {"k": 4, "ratio": 0.5}}
CALLBACKS: dict[str, dict[str, Any]] = {
    "speed_monitor": {"window_size": 1},
    "runtime_estimator": {"time_unit": "seconds"},
    "memory_monitor": {},
    "lr_monitor": {},
    "optimizer_monitor": {"batch_log_interval": 1},
    "scheduled_gc": {"batch_interval": 2},
    "nan_monitor": {},
    "eval_output_logging": {},
    "early_stopper": {
        "monitor": "LanguageCrossEntropy",
        "dataloader_label": "eval",
        "patience": 100,
    },
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two in-context learning tasks and a gauntlet over them."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")  # where the tasks are copied to
    words = " ".join(f"w{i}" for i in range(3))
    rows = [{"context": words, "continuation": f"w{i}"} for i in range(6)]
    choices = [{"query": words, "choices": ["w3", "w4"], "gold": i % 2} for i in range(6)]
    for name, lines in (("lm", rows), ("mc", choices)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    kinds = {"lm": "language_modeling", "mc": "multiple_choice"}
    icl = [
        {
            "label": name,
            "dataset_uri": str(tmp_path / f"{name}.jsonl"),
            "num_fewshot": [0],
            "icl_task_type": kind,
        }
        for name, kind in kinds.items()
    ]
    benchmarks = [{"name": name, "num_fewshot": 0, "random_baseline": 0.0} for name in kinds]
    gauntlet = {
        "weighting": "EQUAL",
        "subtract_random_baseline": True,
        "rescale_accuracy": True,
        "categories": [{"name": "all_of_it", "benchmarks": benchmarks}],
    }
    return {"icl_tasks": icl, "eval_gauntlet": gauntlet, "icl_seq_len": 8, "eval_interval": "2ba"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The memory monitor only works on CUDA")
def test_callbacks_in_both_stages(corpus: Path, tmp_path: Path, tasks: dict[str, Any]) -> None:
    """All at once, in a run that is bit by bit the one without any of them."""
    hf = {"hf_checkpointer": {"save_folder": str(tmp_path / "hf"), "save_interval": "2ba"}}
    cfg = config(corpus, family("llama", tmp_path), algorithms=ALGORITHMS)
    plain = train(cfg)
    trainer = train(cfg | tasks | {"callbacks": CALLBACKS | hf})
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(trainer)[name]), name
    assert metrics(trainer, "loss/train/total") == metrics(plain, "loss/train/total")
    assert metrics(trainer, "patch_level/stage") == [0, 0, 0, 1, 1, 1]
    check_logged(trainer)
    # Exported in the patch stage, too, the model is an ordinary one.
    for batch in (2, 4, 6):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf" / "huggingface" / f"ba{batch}")
        assert model.num_parameters() == sum(p.numel() for p in trainer.state.model.parameters())


def check_logged(trainer: Any) -> None:
    rates = [metrics(trainer, f"throughput/{name}_per_sec") for name in ("tokens", "batches")]
    raw = [tokens / batches for tokens, batches in zip(*rates, strict=True)]
    assert raw == pytest.approx([4 * 32] * 5), "raw tokens in both stages"
    assert all(left >= 0 for left in metrics(trainer, "time/remaining_estimate"))
    assert len(metrics(trainer, "lr-DecoupledAdamW/group0")) == 6
    norms = metrics(trainer, "l2_norm/grad/global")
    assert len(norms) == 6
    assert all(math.isfinite(norm) and norm > 0 for norm in norms)
    for name in (
        "metrics/eval/LanguageCrossEntropy",
        "metrics/lm/0-shot/InContextLearningLMAccuracy",
        "metrics/mc/0-shot/InContextLearningMultipleChoiceAccuracy",
        "icl/metrics/eval_gauntlet/all_of_it",
    ):
        assert len(metrics(trainer, name)) == 4, f"{name}: every second batch, and at the switch"
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    assert memory.tables, "eval_output_logging writes tables"


@pytest.mark.parametrize("stopper", [EarlyStopper, ThresholdStopper])
def test_stopping_by_train_metrics_is_refused(stopper: Any) -> None:
    """There are none in the patch stage: the run would die at the end of its first epoch."""
    more = {"threshold": 1.0} if stopper is ThresholdStopper else {}
    callback = stopper("LanguageCrossEntropy", dataloader_label="train", **more)
    rows = make_rows(8, 16)
    with pytest.raises(ValueError, match=rf"{stopper.__name__}.*train.*dataloader_label"):
        make_trainer(rows, [PatchLevel(k=4, ratio=0.5)], callbacks=[callback])
    make_trainer(rows, [PatchLevel(k=1)], callbacks=[callback]).close()


@pytest.mark.parametrize("second_row", [32, 64])
def test_curriculum_learning(
    second_row: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset changes after 256 tokens, in the patch stage; the second one's rows may be longer."""
    # It would take away the shared memory of every other run on the machine.
    monkeypatch.setattr(curriculum_learning_callback, "clean_stale_shared_memory", lambda: None)
    other = write_corpus(tmp_path / "other", row=second_row, seed=1)
    second = {"local": str(other / "mds"), "max_seq_len": second_row}
    steps = 2 + 256 * 2 // (4 * second_row)
    cfg = config(corpus, mpt(max_seq_len=16), algorithms={"patch_level": {"k": 4, "ratio": "512tok"}})
    cfg |= {
        "max_duration": "768tok",
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "0tok"},
        "callbacks": {
            "curriculum_learning": {
                "duration": "256tok",
                "schedule": [{"duration": "512tok", "dataset": second}],
            }
        },
    }
    trainer = train(cfg)
    assert len(metrics(trainer, "loss/train/total")) == steps
    positions, stages = ({32: ([8] * 4 + [16] * 2, [0] * 4 + [1] * 2), 64: ([8, 8, 16, 16], [0, 0, 0, 1])})[
        second_row
    ]
    assert metrics(trainer, "patch_level/positions_per_row") == positions
    assert metrics(trainer, "patch_level/stage") == stages
