"""Which rows of an MDS dataset each step of a run takes, by their places in the dataset.

Started by the launcher as ``python -m tests.runs.joined_rows OUTPUT CORPUS FOLDER``, and called by the tests
in their own process for one rank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from composer import Algorithm, Trainer
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist
from llmfoundry import registry
from streaming import StreamingDataset

from tests.ranks import write_down
from tests.support import config, metrics, mpt, train

GLOBAL_BATCH = 4
ROW_TOKENS = 3 * 8
"""k times the context."""
SWITCH = {"k": 3, "ratio": "8ba", "constant_compute": True}
LENGTH = "14ba"
RESUMED_FROM = (3, 8, 11)


class ReadRows(Algorithm):
    """Notes the rows of each step as the trainer counts them, before ``patch_level`` cuts and folds them.

    Args:
        corpus: The folder of :func:`.write_corpus`.
    """

    def __init__(self, corpus: str) -> None:
        data = StreamingDataset(local=f"{corpus}/mds", split="train", batch_size=1)
        self._places = {tuple(data[place]["tokens"].tolist()): place for place in range(data.num_samples)}
        self.steps: list[list[int]] = []

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self.steps.append([self._places[tuple(row)] for row in state.batch["input_ids"].tolist()])


def reading(corpus: Path, patch_level: dict[str, Any] | None, max_duration: str, **changes: Any) -> Trainer:
    """Trains a tiny MPT, and notes its rows. Of a dataset that streams, shuffled, by two workers."""
    registry.algorithms.register("read_rows", func=ReadRows)
    # Composer turns the order of algorithms round at events that come after something.
    algorithms = {} if patch_level is None else {"patch_level": patch_level}
    algorithms["read_rows"] = {"corpus": str(corpus)}
    share = GLOBAL_BATCH // dist.get_world_size()
    unit = max_duration.lstrip("0123456789")
    sizes = {"max_duration": max_duration, "device_train_microbatch_size": share}
    context = 8 if patch_level is not None else ROW_TOKENS  # without the algorithm nobody cuts rows
    cfg = config(corpus, mpt(max_seq_len=context), algorithms=algorithms, **sizes, **changes)
    cfg["scheduler"] = {"name": "constant_with_warmup", "t_warmup": f"0{unit}"}
    cfg["train_loader"] |= {"num_workers": 2, "prefetch_factor": 2}
    cfg["max_seq_len"] = cfg["train_loader"]["dataset"]["max_seq_len"] = ROW_TOKENS
    return train(cfg)


def rows_of(trainer: Trainer) -> list[list[int]]:
    """The rows of each step of this rank, by their places in the dataset."""
    (read,) = (one for one in trainer.state.algorithms if isinstance(one, ReadRows))
    return read.steps


def found(corpus: Path, folder: Path) -> dict[str, Any]:
    """A plain run of two epochs, one of constant compute, and that resumed: their rows and losses."""
    saves = {"save_folder": str(folder / "whole"), "save_interval": "1ba", "save_filename": "ba{batch}.pt"}
    runs = {
        "plain": reading(corpus, None, "2ep"),
        "whole": reading(corpus, SWITCH, LENGTH, **saves),
    }
    for batch in RESUMED_FROM:
        again = {
            "load_path": str(folder / "whole" / f"ba{batch}.pt"),
            "save_folder": str(folder / str(batch)),
        }
        runs[f"from {batch}"] = reading(corpus, SWITCH, LENGTH, **again)
    return {
        name: {"rows": rows_of(trainer), "loss": metrics(trainer, "loss/train/total")}
        for name, trainer in runs.items()
    }


if __name__ == "__main__":
    write_down(sys.argv[1], found(Path(sys.argv[2]), Path(sys.argv[3])))
