"""Every YAML of `yamls/` runs on a CPU with the overrides its own header comment documents."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from llmfoundry.registry import callbacks
from omegaconf import DictConfig, OmegaConf

YAMLS = Path(__file__).parents[2] / "yamls"
MPT_1B = YAMLS / "mpt-1b-patch.yaml"
QUICKSTART = YAMLS / "quickstart.yaml"


def header(path: Path) -> str:
    """The comment at the top of a file, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    top = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in top)


def documented_commands(path: Path) -> list[list[str]]:
    """The overrides of each command in a file's header comment that trains."""
    joined = header(path).replace("\\\n", " ")
    doors = r"composer train\.py|composer -m patch_algorithm\.train|patch-level train"
    commands = re.findall(rf"^\s*(?:uv run )?(?:{doors}) (.*)$", joined, re.MULTILINE)
    words = [shlex.split(command) for command in commands]
    for command in words:
        assert command[0] in (f"yamls/{path.name}", "run.yaml", "token.yaml"), (
            f"{path.name} documents another file's command"
        )
    return [command[1:] for command in words]


def cpu_overrides(path: Path) -> list[str]:
    """The overrides of the one documented command that runs a GPU recipe on a CPU."""
    (overrides,) = [words for words in documented_commands(path) if "precision=fp32" in words]
    return overrides


def load(path: Path, overrides: list[str]) -> DictConfig:
    cfg = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_cli(overrides))
    assert isinstance(cfg, DictConfig)
    return cfg


@pytest.mark.parametrize("path", sorted(YAMLS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_is_one_llm_foundry_knows(path: Path) -> None:
    from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS

    cfg = OmegaConf.to_container(load(path, []), resolve=True)
    assert isinstance(cfg, dict)
    assert set(cfg) <= TRAIN_CONFIG_KEYS
    assert ("patch_level" in cfg["algorithms"]) == (path.parent.name != "finetune")


@pytest.mark.parametrize("path", sorted(YAMLS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_documented_overrides_name_keys_that_exist(path: Path) -> None:
    commands = documented_commands(path)
    assert commands, f"{path.name} does not say how to start it"
    known_later = {
        "attn_implementation",
        "eval_subset_num_batches",
        "use_flash_attention_2",
        "save_folder",
        "prefetch_factor",
        "persistent_workers",
        "pin_memory",
    }
    for overrides in commands:
        base = OmegaConf.load(path)
        for key in (override.partition("=")[0] for override in overrides):
            parent, _, leaf = key.rpartition(".")
            node: Any = OmegaConf.select(base, parent) if parent else base
            assert node is not None, f"{path.name}: no {parent!r} to set {key!r} in"
            assert leaf in node or leaf in known_later, f"{path.name}: {key!r} is no key of it"


@pytest.mark.parametrize("overrides", [[], cpu_overrides(MPT_1B)], ids=["gpu", "cpu"])
def test_mpt_1b_numbers_are_in_step(overrides: list[str]) -> None:
    cfg = load(MPT_1B, overrides)
    patch_level = cfg.algorithms.patch_level
    assert cfg.variables.tokens_per_row == patch_level.k * cfg.max_seq_len
    assert cfg.train_loader.dataset.max_seq_len == cfg.variables.tokens_per_row
    assert cfg.eval_loader.dataset.max_seq_len == cfg.model.max_seq_len == patch_level.seq_len
    steps = batches(cfg.max_duration)
    switch = switch_of(cfg)
    assert cfg.scheduler.t_decay == "0.1dur"
    assert switch < steps - steps // 10, "the rate decays in the patch stage"


def test_mpt_1b_keeps_the_tokens_of_a_step_and_its_header_tells_the_truth() -> None:
    cfg = load(MPT_1B, [])
    tokens_per_step = cfg.global_train_batch_size * cfg.variables.tokens_per_row
    assert tokens_per_step == 512 * 2048
    assert cfg.global_train_batch_size % cfg.device_train_microbatch_size == 0
    steps = batches(cfg.max_duration)
    switch = switch_of(cfg)
    text = header(MPT_1B)
    for number in (tokens_per_step, switch - 1, switch, steps - 1):
        assert f"{number:,}" in text, f"{number:,} is not in the header"


def test_mpt_1b_fits_by_the_arithmetic_of_its_comments() -> None:
    from llmfoundry.models.mpt import ComposerMPTCausalLM

    cfg = load(MPT_1B, [])
    on_a_cpu = {"attn_config": {"attn_impl": "torch"}, "loss_fn": "torch_crossentropy"}
    arguments = {key: cfg.model[key] for key in cfg.model if key != "name"} | on_a_cpu
    with torch.device("meta"):
        model = ComposerMPTCausalLM(**arguments)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    positions = cfg.device_train_microbatch_size * cfg.max_seq_len
    state, cast = 16 * parameters, 2 * parameters
    activations, on_one_gpu = (n * cfg.model.d_model * cfg.model.n_layers * positions for n in (32, 36))
    logits = 4 * 2 * cfg.model.vocab_size * positions
    text = MPT_1B.read_text("utf-8")
    sharded = state / 8 + 0.6e9 + activations + logits
    alone = state + cast + on_one_gpu + logits
    for size in (state, state / 8, cast, activations, on_one_gpu, logits, sharded, alone):
        assert f"{size / 1e9:.1f} GB" in text, f"{size / 1e9:.1f} GB is not in the comments"
    assert f"{parameters / 1e9:.3f}e9 parameters" in text
    assert f"{12 * parameters / 1e9:.1f} GB each" in header(MPT_1B), "the size of a checkpoint"
    assert max(sharded, alone) < 0.8 * 80e9


def test_mpt_1b_vocabulary_is_the_next_multiple_of_128() -> None:
    size, entries = load(MPT_1B, []).model.vocab_size, 50_277  # of EleutherAI/gpt-neox-20b
    assert size % 128 == 0
    assert entries <= size < entries + 128
    assert f"{entries:,}" in MPT_1B.read_text("utf-8")


def test_mpt_1b_keeps_few_checkpoints() -> None:
    assert 1 <= load(MPT_1B, []).save_num_checkpoints_to_keep <= 3


@pytest.mark.parametrize("path", sorted(YAMLS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_tokenizer_and_model_have_one_context(path: Path) -> None:
    cfg = load(path, [])
    model = cfg.model
    given = [model.get("max_seq_len"), model.get("config_overrides", {}).get("max_position_embeddings")]
    if path.parent.name != "finetune":  # whose model is there already
        assert cfg.max_seq_len in given
    assert cfg.tokenizer.kwargs.model_max_length == cfg.max_seq_len


def exported_contexts(folder: Path) -> list[tuple[int, int]]:
    """Of each Hugging Face export, the context that its tokenizer and its model state."""

    def read(path: Path) -> dict[str, Any]:
        return json.loads(path.read_text("utf-8"))

    return [
        (read(path)["model_max_length"], read(path.with_name("config.json"))["max_seq_len"])
        for path in folder.rglob("tokenizer_config.json")
    ]


class ForwardWatch(Callback):
    """Notes the rows and positions that every training forward gave logits for."""

    seen: ClassVar[list[tuple[float, int, int]]] = []

    def after_forward(self, state: State, logger: Logger) -> None:
        self.seen.append((state.timestamp.batch.value, *state.outputs["logits"].shape[:2]))


def switch_of(cfg: DictConfig) -> int:
    """The step at which a run given in batches switches; both YAMLs mean exactly two thirds."""
    assert cfg.algorithms.patch_level.ratio == "2/3"
    return -(-2 * batches(cfg.max_duration) // 3)


def batches(time: str) -> int:
    assert time.endswith("ba"), time
    return int(time.removesuffix("ba"))


def test_mpt_1b_runs_on_a_cpu(tmp_path: Path) -> None:
    from llmfoundry.command_utils import train_from_yaml

    from patch_algorithm.monitoring.history import read
    from tests.support import VOCABULARY, metrics, write_corpus

    if "forward_watch" not in callbacks:
        callbacks.register("forward_watch", func=ForwardWatch)
    ForwardWatch.seen.clear()
    overrides = cpu_overrides(MPT_1B)
    cfg = load(MPT_1B, overrides)
    write_corpus(tmp_path, row=cfg.variables.tokens_per_row, val_row=cfg.max_seq_len)
    trainer = train_from_yaml(
        str(MPT_1B),
        [
            *overrides,
            f"variables.data_local={tmp_path}/mds",
            f"variables.tokenizer={tmp_path}/tokenizer",
            f"model.vocab_size={VOCABULARY}",
            f"save_folder={tmp_path}/run",
            "loggers={inmemory: {}}",
            "callbacks.forward_watch={}",
            f"callbacks.hf_checkpointer={{save_folder: {tmp_path}/hf, save_interval: 1dur}}",
        ],
    )
    steps = batches(cfg.max_duration)
    assert trainer.state.timestamp.batch == steps
    assert trainer.state.timestamp.token == (
        steps * cfg.global_train_batch_size * cfg.variables.tokens_per_row
    )
    assert [line.at.step for line in read(tmp_path / "run" / "history.jsonl").steps] == [*range(1, steps + 1)]
    switch = switch_of(cfg)
    assert metrics(trainer, "patch_level/stage") == [0] * switch + [1] * (steps - switch)
    assert len(metrics(trainer, "patch_level/loss")) == switch
    losses = metrics(trainer, "loss/train/total")
    assert len(losses) == steps
    assert all(math.isfinite(loss) for loss in losses)
    evals = metrics(trainer, "metrics/eval/LanguageCrossEntropy")
    assert len(evals) == len(
        {*range(batches(cfg.eval_interval), steps + 1, batches(cfg.eval_interval)), switch}
    )
    assert evals[-1] < evals[0]
    assert list((tmp_path / "run").glob("*.pt"))
    assert exported_contexts(tmp_path / "hf") == [(cfg.max_seq_len, cfg.max_seq_len)]
    # Composer splits a batch after its rows have been cut: all forwards are alike, there are more of them.
    size, rows, k = (
        cfg.device_train_microbatch_size,
        cfg.global_train_batch_size,
        cfg.algorithms.patch_level.k,
    )
    per_step = [rows // size] * switch + [k * rows // size] * (steps - switch)
    assert ForwardWatch.seen == [
        (step, size, cfg.max_seq_len) for step, number in enumerate(per_step) for _ in range(number)
    ]


@pytest.mark.parametrize("overrides", documented_commands(QUICKSTART), ids=" ".join)
@pytest.mark.recipes
def test_quickstart_runs(overrides: list[str], tmp_path: Path) -> None:
    from llmfoundry.command_utils import train_from_yaml

    from patch_algorithm.monitoring.history import read
    from patch_algorithm.preflight import prepare, read_config
    from tests.support import metrics

    shortened = [
        *overrides,
        f"variables.builtin_corpus.folder={tmp_path}/data",
        "variables.builtin_corpus.megabytes=1",
        f"save_folder={tmp_path}/run",
        f"callbacks.hf_checkpointer.save_folder={tmp_path}/run",
        "callbacks.stage_report.require_loss_drop=null",  # Too short to learn much.
        "max_duration=30ba",
        "eval_interval=10ba",
        "save_interval=20ba",
        "scheduler.t_warmup=3ba",
        "loggers={inmemory: {}}",
    ]
    prepare(read_config(str(QUICKSTART), shortened))
    trainer = train_from_yaml(str(QUICKSTART), shortened)
    assert metrics(trainer, "patch_level/stage") == [0] * 20 + [1] * 10
    evals = metrics(trainer, "metrics/eval/LanguageCrossEntropy")
    assert len(evals) == 3
    history = read(tmp_path / "run" / "history.jsonl")
    assert history.series("metrics/eval/LanguageCrossEntropy") == list(zip((10, 20, 30), evals, strict=True))
    assert evals[-1] < evals[0]
    assert list((tmp_path / "run").glob("*.pt"))
    assert exported_contexts(tmp_path / "run") == [(128, 128)]
