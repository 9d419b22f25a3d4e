"""What the page on data shows is built and parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerFast

from tests.data.loader.written import build, load, random_rows, write_dataset

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```\{code-block\} yaml\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("ArXiv", "Github", "Wikipedia (en)")
    streams = {(name, "train"): random_rows(4, 8192) for name in names}
    streams |= {("ArXiv", "val"): random_rows(4, 2048)}
    return write_dataset(tmp_path_factory.mktemp("data"), tokenizer, streams)


@pytest.mark.parametrize("example", EXAMPLES)
def test_loaders_are_built_as_shown(
    example: str, tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path
) -> None:
    loaders: Any = OmegaConf.to_container(OmegaConf.create(example))
    for loader in loaders.values():
        dataset = loader["dataset"]
        if "remote" in dataset:
            dataset |= {"remote": str(data), "local": str(tmp_path)}
        elif "streams" in dataset:
            dataset["streams"]["web"]["local"] = str(data / "arxiv")
            dataset["streams"]["code"]["local"] = str(data / "github")
        else:
            dataset["local"] = str(data)
        rows = build(tokenizer, 2, **dataset)
        assert next(iter(rows.dataloader))["input_ids"].shape == (2, dataset["max_seq_len"])


def test_commands_parse() -> None:
    from typer.main import get_command

    from patch_algorithm.cli import app

    seen: set[str] = set()
    for words in COMMANDS:
        assert words[:2] == ["patch-level", "data"]
        command: Any = get_command(app)
        for name in words[1:3]:
            command = command.commands[name]
        with command.make_context(words[2], words[3:]):
            seen.add(words[2])
    assert seen == {"convert", "info", "cat"}


def test_options_of_the_conversion_are_its_own() -> None:
    from typer.main import get_command

    from patch_algorithm.cli import app

    group: Any = get_command(app)
    parameters = group.commands["data"].commands["convert"].params
    known = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    table = PAGE.partition("## Look at it")[0]
    named = [
        flag for row in re.findall(r"^\|([^|]*)\|", table, re.M) for flag in re.findall(r"--[a-z][\w-]*", row)
    ]
    assert len(named) > 10
    assert set(named) <= known
