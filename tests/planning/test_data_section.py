"""The sections of the loaders: what the checks before a run say of their rows, and what the loaders do."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from composer.core import Time

from patch_algorithm.checks.data import check_loader
from patch_algorithm.checks.finding import Severity
from patch_algorithm.planning.costs import cost_of, step_shape
from patch_algorithm.planning.costs_model import ModelFacts
from patch_algorithm.planning.run_facts import loader_facts
from patch_algorithm.planning.run_file import RunFile
from tests.data.loader.written import build, load, random_rows, torch_loader, write_dataset, write_stream
from tests.planning.runs import run_of


@pytest.fixture(scope="module")
def rows_of_32(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with rows of 32 tokens in both splits."""
    rows = {(None, "train"): random_rows(8, 32), (None, "val"): random_rows(8, 32)}
    return write_dataset(tmp_path_factory.mktemp("data"), load(corpus), rows)


@pytest.mark.parametrize("asked", [8, 12, 32, 64])
@pytest.mark.parametrize("long_rows", [None, "cut", "refuse"])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("role", ["train_loader", "eval_loader"])
def test_an_error_is_found_exactly_where_the_loader_raises_one(
    role: str, split: str, long_rows: str | None, asked: int, rows_of_32: Path, corpus: Path
) -> None:
    dataset: dict[str, Any] = {"local": str(rows_of_32), "split": split, "max_seq_len": asked}
    dataset |= {} if long_rows is None else {"long_rows": long_rows}
    run = run_of(**{role: {"name": "pile", "dataset": dataset}})
    loader = run.train_loader if role == "train_loader" else run.eval_loaders[0]
    found = check_loader(loader_facts(loader, role == "train_loader", False))
    try:
        build(load(corpus), **dataset)
    except ValueError as error:
        (one,) = found
        assert one.severity is Severity.error
        assert one.found.startswith(f"{role}.dataset.max_seq_len")
        if one.id == "rows-cut-short":
            own_words = str(error).partition(" is ")[2].partition(" For evaluation")[0]
            assert own_words in one.found
    else:
        assert found == []


def test_a_misspelt_choice_for_long_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"eval_loader\.dataset\.long_rows is 'drop'; expected refuse or cut"
    ):
        run_of(eval_loader={"name": "pile", "dataset": {"long_rows": "drop"}})


@pytest.fixture(scope="module")
def two_components(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = {("ArXiv", "train"): random_rows(9, 32), ("Github", "train"): random_rows(100, 32)}
    return write_dataset(tmp_path_factory.mktemp("mixed"), load(corpus), rows)


def pile(folder: Path, drop_last: bool = False, **dataset: Any) -> RunFile:
    dataset = {"local": str(folder), "split": "train", "max_seq_len": 32} | dataset
    loader = {"name": "pile", "dataset": dataset, "drop_last": drop_last}
    return run_of(train_loader=loader, global_train_batch_size=4, max_duration="10ep")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"epoch_size": 21},
        {"epoch_size": "1k"},
        {"max_seq_len": 8, "long_rows": "cut"},
        {"max_seq_len": 8, "long_rows": "cut", "epoch_size": 6},
    ],
    ids=str,
)
def test_an_epoch_is_as_long_as_the_loaders(keys: dict[str, Any], rows_of_32: Path, corpus: Path) -> None:
    spec = build(load(corpus), 4, **{"local": str(rows_of_32), "max_seq_len": 32} | keys)
    run = pile(rows_of_32, **keys)
    assert run.batches_per_epoch == len(torch_loader(spec))
    assert run.length == Time(10 * len(torch_loader(spec)), "ba")
    assert pile(rows_of_32, drop_last=True, epoch_size=21).batches_per_epoch == 5


@pytest.mark.parametrize("components", [{"ArXiv": 1}, {"ArXiv": 1, "Github": 2}, None], ids=str)
def test_an_epoch_of_a_mixture_has_the_rows_of_its_components(
    components: dict[str, int] | None, two_components: Path, corpus: Path
) -> None:
    spec = build(load(corpus), 4, local=str(two_components), max_seq_len=32, components=components)
    run = pile(two_components, components=components)
    assert run.batches_per_epoch == len(torch_loader(spec))


def test_an_epoch_that_cannot_be_counted_has_no_length(tmp_path: Path, rows_of_32: Path) -> None:
    assert pile(tmp_path).batches_per_epoch is None
    assert pile(tmp_path, epoch_size=40).batches_per_epoch == 10, "of data that is not here, too"
    assert pile(rows_of_32, max_seq_len=12, long_rows="cut").batches_per_epoch is None
    with pytest.raises(ValueError, match=r"train_loader\.dataset\.epoch_size is 'many'; expected a number"):
        pile(rows_of_32, epoch_size="many")


def test_passes_are_over_the_components_that_are_read(two_components: Path) -> None:
    def passes(**keys: Any) -> float | None:
        run = pile(two_components, **keys)
        shape = step_shape(replace(run, max_duration=Time(45, "ba"), length=Time(45, "ba")), ModelFacts("it"))
        return cost_of(shape, ModelFacts("it"), (0, 45), "it").passes

    assert passes() == pytest.approx(180 / 109)
    assert passes(components={"ArXiv": 1}) == pytest.approx(20)
    assert passes(components={"ArXiv": 1, "Github": 0}) == pytest.approx(20)
    assert passes(components={"ArXiv": 1, "Github": 1}) is None, "each is read another number of times"
    with pytest.raises(ValueError, match=r"train_loader\.dataset\.components names Arxiv, which is"):
        passes(components={"Arxiv": 1})


def test_ids_in_bytes_are_as_wide_as_the_loader_is_told(tmp_path: Path) -> None:
    write_stream(tmp_path / "train", random_rows(4, 32), column="bytes")
    run = pile(tmp_path, token_encoding_type="uint16")
    assert run.train_loader.dataset.on_disk is not None
    assert run.train_loader.dataset.on_disk.row_tokens == 32
    assert check_loader(loader_facts(run.train_loader, True, False)) == []
    (short,) = check_loader(loader_facts(pile(tmp_path).train_loader, True, False))
    assert short.id == "rows-shorter-than-asked"
    with pytest.raises(ValueError, match=r"token_encoding_type is 'uint17'; expected the type of the ids"):
        pile(tmp_path, token_encoding_type="uint17")


def test_a_description_that_may_not_be_read(rows_of_32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    (damaged,) = check_loader(loader_facts(pile(rows_of_32).train_loader, True, False))
    assert damaged.id == "data-damaged"
    assert "dataset.json cannot be read: Permission denied" in damaged.found
