"""The file of a run: what is in it, and what its reader makes of a run that was killed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from moto.server import ThreadedMotoServer
from torch import nn

from patch_algorithm.monitoring.history import History, HistoryLogger, read
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.monitoring.stage_recorder import Moment
from patch_algorithm.reporting.report import make_report
from tests.monitoring.recorded_runs import RAN, axes, evaluator, recorded
from tests.runs.short import make_llama, make_model, saving
from tests.support import config, metrics, mpt, train

PAGE = Path(__file__).parents[2] / "docs" / "monitor.md"


def test_every_line_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "history.jsonl"
    trainer = recorded(HistoryLogger(str(path)), callbacks=[PatchMonitor()], max_duration="1ep")
    history = read(path)
    assert [(line.at.stage, line.at.k) for line in history.steps] == [(stage, k) for stage, k, _ in RAN]
    assert [line.at.step for line in history.steps] == list(range(1, 9))
    assert [line.at.raw_tokens for line in history.steps] == [128 * step for step in range(1, 9)]
    positions = np.cumsum([each for _, _, each in RAN]).tolist()
    assert [line.at.positions for line in history.steps] == positions
    assert [line.at.flops for line in history.steps] == metrics(trainer, "patch_monitor/flops")
    seconds = [line.at.seconds for line in history.steps]
    assert sorted(seconds) == seconds
    assert seconds[-1] == trainer.state.timestamp.total_wct.total_seconds() > 0
    for name in ("loss/train/total", "patch_level/compute_share", "patch_monitor/peak_memory_gb"):
        assert [line.metrics[name] for line in history.steps] == metrics(trainer, name), name
    losses = [line.metrics.get("patch_level/loss") for line in history.steps]
    assert losses == [*metrics(trainer, "patch_level/loss"), None, None, None, None]
    assert history.starts == [0]
    # The end of the epoch, and that of the fit.
    assert [line.at.step for line in history.others] == [8, 8]
    assert "patch_monitor/patch_speedup" in history.others[1].metrics


def test_what_a_run_was_asked_to_do_and_whether_it_came_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    trainer = recorded(HistoryLogger(str(path)), max_duration="8ba", target_weights=[4, 2, 1, 1])
    history = read(path)
    parameters = sum(parameter.numel() for parameter in trainer.state.model.parameters())
    (settings,) = history.settings
    expected = {
        "max_duration": "8ba",
        "seed": 17,
        "parameters": parameters,
        "batches_per_epoch": 8,
        "ranks": 1,
        "on_switch": "carry",
        "target_weights": [4, 2, 1, 1],
    }
    assert expected.items() <= settings.items()
    assert settings["optimizer"] == type(trainer.state.optimizers[0]).__name__
    assert history.ends == [(8, 1.0)]
    (name,) = (name for name in history.steps[-1].metrics if name.startswith("lr-"))
    assert history.steps[-1].metrics[name] == trainer.state.optimizers[0].param_groups[0]["lr"]


class OnlyTrains(nn.Module):
    """Stands for GPU kernels: a copy that is counted does not run it."""

    def forward(self, embeds_BPD: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise RuntimeError("no GPU here")
        return embeds_BPD


def test_flops_that_nobody_can_tell_are_no_number(tmp_path: Path, capsys: Any) -> None:
    paths = [tmp_path / name for name in ("patches", "tokens")]
    for path, ratio in zip(paths, ("1ba", 0), strict=True):
        model = make_llama()
        model.model.model.layers[0].mlp = OnlyTrains()  # pyright: ignore
        history = HistoryLogger(str(path / "history.jsonl"))
        trainer = recorded(history, model=model, ratio=ratio, eval_interval=0, max_duration="2ba")
        assert [line.at.flops for line in read(path / "history.jsonl").steps] == [None, None]
        assert metrics(trainer, "patch_monitor/flops") == []
    assert "cannot be counted (RuntimeError: no GPU here)" in capsys.readouterr().err
    assert make_report([str(path) for path in paths]).compute == "positions"


class StopsAt(Callback):
    """Stops a run early, as a user's callback may."""

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == 6:
            state.stop_training()


def test_a_run_that_was_stopped_early_has_not_come_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    recorded(HistoryLogger(str(path)), callbacks=[StopsAt()], max_duration="8ba")
    assert read(path).ends == [(6, 0.75)]


def test_a_run_in_epochs_comes_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    recorded(HistoryLogger(str(path)), max_duration="2ep")
    assert read(path).ends == [(16, 1.0)]


def test_evaluations_lie_on_the_axes_of_the_steps(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    trainer = recorded(HistoryLogger(str(path)), eval_interval="3ba", max_duration="8ba")
    history = read(path)
    assert [line.at.step for line in history.evals] == [3, 4, 6, 8]
    for evaluation in history.evals:
        assert evaluation.at == history.steps[evaluation.at.step - 1].at
    evaluated = metrics(trainer, "metrics/eval/LanguageCrossEntropy")
    assert history.series("metrics/eval/LanguageCrossEntropy", "raw_tokens") == [
        (128 * step, loss) for step, loss in zip((3, 4, 6, 8), evaluated, strict=True)
    ]
    assert all(set(line.metrics) == {"metrics/eval/LanguageCrossEntropy"} for line in history.evals)
    assert history.series("loss/train/total", "flops") == [
        (line.at.flops, loss)
        for line, loss in zip(history.steps, metrics(trainer, "loss/train/total"), strict=True)
    ]


class OddMetrics(Callback):
    """Logs what is no plain number."""

    def batch_end(self, state: State, logger: Logger) -> None:
        values: dict[str, Any] = {
            "odd/nan": math.nan,
            "odd/inf": torch.tensor(-math.inf),
            "odd/numpy": np.float32(0.5),
            "odd/many": torch.zeros(3),
            "odd/text": "much",
        }
        logger.log_metrics(values)


def test_metrics_that_json_has_no_word_for(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    recorded(HistoryLogger(str(path)), callbacks=[OddMetrics()], ratio=0.0, max_duration="1ba")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for text in path.read_text().splitlines():
        json.loads(text, parse_constant=refuse)
    odd = {name: value for name, value in read(path).steps[0].metrics.items() if name.startswith("odd/")}
    assert math.isnan(odd.pop("odd/nan"))
    assert odd == {"odd/inf": -math.inf, "odd/numpy": 0.5}


def test_evaluations_on_their_own(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    trainer = recorded(HistoryLogger(str(path)), ratio="1ba", max_duration="2ba")
    trainer.eval()
    assert [line.at.step for line in read(path).evals] == [1, 2], "the two after the last step are one"

    alone = HistoryLogger(str(tmp_path / "alone.jsonl"))
    Trainer(
        model=make_model(), eval_dataloader=evaluator(), loggers=[alone], device="cpu", progress_bar=False
    ).eval()
    (line,) = read(tmp_path / "alone.jsonl").evals
    assert axes(line) == (0, 1, 0, 0, 0, 0.0)


def test_default_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(HistoryLogger(), ratio="1ba", max_duration="2ba", run_name="mine")
    assert len(read("mine/history.jsonl").steps) == 2
    folder = tmp_path / "runs" / "{run_name}"
    recorded(HistoryLogger(), ratio="1ba", max_duration="2ba", run_name="other", save_folder=str(folder))
    assert len(read(tmp_path / "runs" / "other" / "history.jsonl").steps) == 2
    assert f"history: {tmp_path}/runs/other/history.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_line_cut_short_by_a_kill(tmp_path: Path, cut: int) -> None:
    recorded(HistoryLogger(), eval_interval=0, **saving(tmp_path))
    path = tmp_path / "history.jsonl"
    texts = path.read_bytes().splitlines(keepends=True)[:6]  # the start and five steps
    path.write_bytes(b"".join(texts)[:-cut])
    kept = 5 if cut == 1 else 4  # without its line break a line is whole
    assert [line.at.step for line in read(path).steps] == list(range(1, kept + 1))
    recorded(
        HistoryLogger(),
        eval_interval=0,
        load_path=str(tmp_path / "ba4.pt"),
        save_overwrite=True,
        **saving(tmp_path),
    )
    history = read(path)
    assert [line.at.step for line in history.steps] == list(range(1, 9))
    assert history.starts == [0, 4]


def test_what_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with pytest.raises(FileNotFoundError):
        read(path)
    path.write_text('{"loss": 5}\n')
    with pytest.raises(ValueError, match=r"history\.jsonl is not a history: line 1 is .*loss"):
        read(path)
    for text in ("# Notes\nof a run\n", "5\n", "null\n", '"kind"\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"history\.jsonl is not a history"):
            read(path)
    for text in ("", '{"kind": "sta'):  # of a run that has logged nothing yet
        path.write_text(text)
        assert read(path) == History()


@pytest.mark.parametrize("path", ["", "  ", 5])
def test_bad_paths_are_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="history: path="):
        HistoryLogger(path)


def test_the_page_reads_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    recorded(HistoryLogger(str(path)), ratio="1ba", max_duration="2ba")
    shown = re.search(r"^```{code-block} python\n(.+?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert shown
    exec(shown[1].replace("runs/quickstart/mine/history.jsonl", str(path)), {})


def test_the_page_lists_every_field() -> None:
    page = PAGE.read_text("utf-8")
    table = page.partition("| field | meaning |")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert listed == ["kind", *(field.name for field in fields(Moment)), "metrics"]


def test_from_a_yaml(corpus: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "{run_name}")
    trainer = train(
        config(
            corpus,
            mpt(no_bias=False),
            algorithms={"patch_level": {"k": 4, "ratio": 0.5}},
            loggers={"inmemory": {}, "history": {}},
            eval_interval="2ba",
            eval_first=True,
            save_folder=folder,
            run_name="r",
        )
    )
    history = read(tmp_path / "r" / "history.jsonl")
    assert [line.at.step for line in history.evals] == [0, 2, 3, 4, 6]
    assert history.evals[0].at.k == 4
    for name in ("loss/train/total", "metrics/eval/LanguageCrossEntropy", "time/batch"):
        assert [y for _, y in history.series(name)][:6] == metrics(trainer, name)[:6], name
    assert asdict(history.evals[-1].at) == asdict(history.steps[-1].at)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of an object store on this machine."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=settings["S3_ENDPOINT_URL"]).create_bucket(Bucket="runs")
    yield "s3://runs"
    server.stop()


@pytest.mark.slow
def test_object_stores(bucket: str) -> None:
    folder = f"{bucket}/checkpoints/{{run_name}}"
    recorded(
        HistoryLogger(), max_duration="6ba", run_name="r", save_folder=folder, save_interval="3ba"
    ).close()
    place = f"{bucket}/checkpoints/r/history.jsonl"
    assert [line.at.step for line in read(place).steps] == [1, 2, 3, 4, 5, 6]
    # On another machine, which has nothing of the first one's but the object store, and uploads by itself.
    checkpoint = f"{bucket}/checkpoints/r/ep0-ba3-rank0.pt"
    again = HistoryLogger(f"{folder}/history.jsonl")
    recorded(again, run_name="r", load_path=checkpoint).close()
    history = read(place)
    assert history.starts == [0, 3]
    assert [line.at.step for line in history.steps] == list(range(1, 9))
    assert [line.at.step for line in history.evals] == [2, 4, 6, 8]
