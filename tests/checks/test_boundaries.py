"""Both sides of every check: what is just inside is not reported, what is just outside is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from composer.core import Time

from patch_algorithm.checks import CATALOGUE, Finding
from patch_algorithm.checks.data import (
    LoaderFacts,
    TokenizerFacts,
    check_components,
    check_loader,
    check_passes,
    check_tokenizer,
    check_tokenizer_context,
    check_vocabulary,
)
from patch_algorithm.checks.environment import TESTED, EnvironmentFacts, check_environment
from patch_algorithm.checks.hardware import HardwareFacts, check_hardware
from patch_algorithm.checks.learning_rate import check_rate, check_weight_decay
from patch_algorithm.checks.names import Known, check_names
from patch_algorithm.checks.rate_curve import RateCurve, RunClock, rate_curve
from patch_algorithm.checks.rows import BatchFacts, RowFacts, check_batches, check_eval_rows, check_row_length
from patch_algorithm.checks.saving import FolderFacts, IntervalFacts, check_folder, check_intervals
from patch_algorithm.checks.stage_choice import check_budget, check_stage_choice
from patch_algorithm.stages.plan import Stage, StagePlan

Made = Callable[[Any], list[Finding]]

HEALTHY_RATE = RateCurve(
    scheduler="it",
    switch=600,
    end=900,
    start=0.0,
    peak=1.0,
    peak_at=10,
    before_switch=1.0,
    at_switch=1.0,
    token_peak=1.0,
    last=0.0,
    zero_from=1.0,
)


def rate(name: str, resets: bool = False) -> Made:
    return lambda value: check_rate(dataclasses.replace(HEALTHY_RATE, **{name: value}), resets)


def zero_from(step: int) -> list[Finding]:
    """The rate is zero from a step on."""
    plan = StagePlan((Stage(4, Time.from_timestring("600ba")),), None, None)
    curve = rate_curve(
        lambda state: float(0 < state.timestamp.batch < step),
        RunClock(plan, Time.from_timestring("900ba")),
        "it",
    )
    assert curve is not None
    return check_rate(curve)


def stages(
    ks: tuple[int, ...] = (4,), switch: int = 6000, end: int = 9000, reset: bool = False
) -> list[Finding]:
    return check_stage_choice(ks, switch, end, reset)


def rows(T: int, **changes: Any) -> list[Finding]:
    return check_row_length(RowFacts(**{"T": T, "L": 128, "K": 4, "last_K": 4, **changes}))


def loader(name: str = "text", is_train: bool = True, **changes: Any) -> list[Finding]:
    here = {"asked": 512, "row_tokens": 512, "folder": "/pile", **changes}
    return check_loader(LoaderFacts("loader.dataset", name, is_train, **here))


def components(of_eval: tuple[str, ...] = ("a", "b"), folder: str = "/val") -> list[Finding]:
    train = LoaderFacts("train_loader.dataset", "pile", True, 8, 8, "/train", components=("a", "b"))
    return check_components(
        train, [LoaderFacts("eval_loader.dataset", "pile", False, 8, 8, folder, components=of_eval)]
    )


def hardware(**changes: Any) -> list[Finding]:
    cpu = {"has_gpu": False, "judge_cpu": True, "flash_installed": False}
    return check_hardware(HardwareFacts(**{**cpu, **changes}))


def intervals(**changes: Any) -> list[Finding]:
    good = IntervalFacts(600, True, 300, False, True, 300, False)
    return check_intervals(dataclasses.replace(good, **changes))


def folder(**changes: Any) -> list[Finding]:
    return check_folder(FolderFacts("runs", **changes))


def environment(**changes: Any) -> list[Finding]:
    newest = {**TESTED, "torch": "2.7.0", "flash-attn": "2.7.4"}
    good = EnvironmentFacts("3.11.7", newest, {"torch": "<2.8,>=2.7"}, gpus=("NVIDIA H100",))
    return check_environment(dataclasses.replace(good, **changes))


def versions(**changes: str | None) -> list[Finding]:
    return environment(versions={**TESTED, "flash-attn": "2.7.4", **changes})


KNOWN = Known(
    {
        "max_duration": None,
        "dataset": Known({"shuffle": None}, refuses=False),
        "optimizer": Known({"name": None}, name_kind="optimizer", names=("adamw",)),
    }
)
FLASH = ("attn_impl=flash",)

# Check, then a function and its argument just inside, and just outside.
BOUNDARIES: list[tuple[str, Made, Any, Any]] = [
    ("unknown-key", lambda key: check_names({key: 1}, KNOWN), "max_duration", "max_duratio"),
    ("ignored-key", lambda key: check_names({"dataset": {key: 1}}, KNOWN), "shuffle", "shuffl"),
    ("ignored-key", lambda key: check_names({"dataset": {key: 1}}, KNOWN), "of_my_own", "shufle"),
    ("unknown-name", lambda name: check_names({"optimizer": {"name": name}}, KNOWN), "adamw", "adam"),
    ("rate-decays-in-patch-stage", rate("token_peak"), 0.98, 0.979),
    ("rate-low-at-switch", rate("token_peak"), 0.75, 0.749),
    ("rate-high-at-end", rate("last"), 0.5, 0.501),
    ("rate-zero-early", zero_from, 893, 892),
    ("rate-zero-early", rate("peak"), 1.0, 0.0),
    ("warmup-long", rate("peak_at"), 225, 226),
    ("no-warmup", rate("start"), 0.499, 0.5),
    ("no-warmup-after-reset", rate("at_switch", resets=True), 0.499, 0.5),
    ("no-warmup-after-reset", lambda resets: rate("at_switch", resets)(1.0), False, True),
    ("weight-decay-decoupled", lambda it: check_weight_decay("decoupled_adamw", it, 3e-4), 0.000999, 0.001),
    ("weight-decay-decoupled", lambda it: check_weight_decay(it, 0.1, 3e-4), "adamw", "decoupled_lionw"),
    ("ratio-high", lambda switch: stages(switch=switch), 7200, 7201),
    ("ratio-high", lambda switch: check_stage_choice([4], switch, 9000, False, True), 4500, 4501),
    ("k-high", lambda k: stages((k, 4)), 8, 9),
    ("token-stage-short", lambda end: stages(switch=300, end=end), 400, 399),
    ("token-stage-short", lambda end: stages(end=end, reset=True), 7500, 6999),
    ("token-stage-short", lambda end: stages(end=end, switch=3000, reset=True), 4000, 3999),
    ("no-switch", lambda switch: stages(switch=switch), 8999, 9000),
    ("tokens-per-parameter", lambda tokens: check_budget(tokens, 1000), 335_000, 334_999),
    ("rows-of-context", rows, 509, 508),
    ("rows-not-cut", lambda L: rows(512, L=L), 128, None),
    ("switch-not-rehearsed", lambda T: rows(T, rehearsed=False), 509, 508),
    ("batch-not-divisible", lambda batch: check_batches(BatchFacts(batch, 1, 3)), 9, 10),
    ("microbatch-larger-than-batch", lambda micro: check_batches(BatchFacts(8, micro, 4)), 2, 3),
    ("microbatch-not-whole", lambda micro: check_batches(BatchFacts(8, micro)), 2.0, 2.5),
    ("eval-rows-beyond-context", lambda asked: check_eval_rows("eval", asked, 128), 128, 129),
    ("rows-cut-short", lambda asked: loader(asked=asked), 512, 511),
    ("rows-cut-short", lambda said: loader("pile", asked=256, refusal=said), None, "they are too long"),
    ("rows-shorter-than-asked", lambda asked: loader(asked=asked), 512, 513),
    ("eval-rows-cut-short", lambda asked: loader(is_train=False, asked=asked), 512, 511),
    ("eval-rows-cut-short", lambda name: loader(name, False, asked=511), "pile", "text"),
    ("data-missing", lambda place: loader(folder=None, expected_in=place), None, "/none"),
    ("data-damaged", lambda fault: loader(fault=fault), None, "it is no JSON"),
    ("tokenizer-not-found", lambda name: check_tokenizer(TokenizerFacts(name)), "a/b", "a/b/c"),
    (
        "tokenizer-not-the-datas",
        lambda found: check_tokenizer(TokenizerFacts("a", differences=found, data_name="b")),
        (),
        ("its normalizer",),
    ),
    (
        "tokenizer-named-otherwise",
        lambda name: check_tokenizer(TokenizerFacts(name, data_name="a")),
        "a",
        "b",
    ),
    ("tokenizer-context", lambda stated: check_tokenizer_context(stated, 2048), 2048, 2049),
    ("vocabulary-too-small", lambda entries: check_vocabulary(entries, 50_277), 50_277, 50_276),
    ("vocabulary-resized", lambda entries: check_vocabulary(entries, 50_277, resizes=True), 50_277, 50_276),
    ("data-repeated", lambda tokens: check_passes(tokens, 100), 400, 401),
    ("passes-over-data", lambda tokens: check_passes(tokens, 100), 90, 89),
    ("passes-over-data", lambda tokens: check_passes(tokens, 100), 150, 151),
    ("eval-one-component", components, ("a", "b"), ("a",)),
    ("eval-reads-training-data", lambda place: components(folder=place), "/val", "/train"),
    (
        "flash-attention-missing",
        lambda it: hardware(has_gpu=True, flash_keys=FLASH, flash_installed=it),
        True,
        False,
    ),
    ("fused-loss-missing", lambda it: hardware(fused_loss="loss_fn", flash_installed=it), True, False),
    ("precision-on-cpu", lambda precision: hardware(precision=precision), "fp32", "amp_bf16"),
    ("microbatch-auto-on-cpu", lambda auto: hardware(microbatch_auto=auto), False, True),
    ("flash-attention-on-cpu", lambda keys: hardware(flash_keys=keys), (), FLASH),
    ("loss-kernel-on-cpu", lambda fused: hardware(fused_patch_loss=fused), False, True),
    (
        "loss-kernel-on-cpu",
        lambda gpu: hardware(fused_patch_loss=True, has_gpu=gpu, flash_installed=True),
        True,
        False,
    ),
    ("needs-gpu", lambda gpu: hardware(judge_cpu=False, has_gpu=gpu, precision="amp_bf16"), True, False),
    ("no-evaluation", lambda evaluates: intervals(evaluates=evaluates), True, False),
    ("eval-misses-switch", lambda every: intervals(eval_every=every), 200, 201),
    ("save-misses-switch", lambda every: intervals(save_every=every), 200, 201),
    ("save-folder-used", lambda files: folder(holds_checkpoints=files), 0, 1),
    ("disk-space", lambda free: folder(free_bytes=free, checkpoint_bytes=40, kept=3), 120, 119),
    ("folder-not-writable", lambda writable: folder(writable=writable), True, False),
    ("package-missing", lambda version: versions(torch=version), "2.7.0", None),
    ("untested-version", lambda outside: environment(out_of_range=outside), (), ("torch",)),
    ("not-the-tested-version", lambda version: versions(torch=version), "2.7.0+cu126", "2.7.1"),
    ("not-registered", lambda names: environment(not_registered=names), (), ("patch_level",)),
    ("no-gpu", lambda gpus: environment(gpus=gpus), ("NVIDIA H100",), ()),
    ("no-flash-attention", lambda version: versions(**{"flash-attn": version}), "2.7.4", None),
    ("not-writable", lambda folders: environment(unwritable=folders), {}, {"TMPDIR": "/tmp"}),
]

# Made of a whole file, where tests/planning/test_doctor.py provokes them, or of an export (tests/export).
OF_WHOLE_FILES = {"missing-key", "bad-value", "schedule-refused", "rows-do-not-fit", "advisory"}


@pytest.mark.parametrize(
    ("check", "made", "inside", "outside"), BOUNDARIES, ids=[f"{b[0]}-{b[2]}-{b[3]}" for b in BOUNDARIES]
)
def test_both_sides(check: str, made: Made, inside: Any, outside: Any) -> None:
    assert check not in [one.id for one in made(inside)]
    assert check in [one.id for one in made(outside)]


@pytest.mark.parametrize(
    ("package", "safe", "affected"),
    [
        ("mosaicml", "0.33.0", "0.32.9"),
        ("torch", "2.10.0+cu128", "2.9.9"),
        ("ray", "2.54.0", "2.53.9"),
    ],
)
def test_both_sides_of_an_advisory(package: str, safe: str, affected: str) -> None:
    def named(version: str) -> bool:
        return any(
            one.id == "advisory" and one.found.startswith(f"{package} ")
            for one in versions(**{package: version})
        )

    assert (named(safe), named(affected)) == (False, True)


def test_every_check_has_both_sides() -> None:
    made = {id_ for id_, check in CATALOGUE.items() if check.subject != "Exports"}
    assert made - {boundary[0] for boundary in BOUNDARIES} == OF_WHOLE_FILES
