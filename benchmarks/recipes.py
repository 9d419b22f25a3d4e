"""Every recipe and its variants, shrunken by the overrides of their own headers: the losses of both stages.

    python -m benchmarks.recipes --out DIR

trains each for a dozen steps on the built-in corpus, on a CPU, and prints one row for each.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patch_algorithm.recipes import Recipe, find_recipe, recipes

__all__ = ["Case", "Losses", "cases", "commands", "header", "shrunken", "train"]

L = 32
"""Positions of a shrunken row; of the quickstart's and the CPU recipe's, which bring their own data, more."""
VOCABULARY = 1024
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_TRAINS = re.compile(r"(?:composer train\.py|composer -m patch_algorithm\.train|patch-level train) (.*)")
_WRITES = re.compile(r"patch-level recipe (.*)")


@dataclass(frozen=True)
class Case:
    """A recipe, or a variant of it that its header names.

    Attributes:
        recipe: The recipe.
        variant: The name of the file that the header writes; empty for the recipe as it is.
        overrides: What the header changes for it.
    """

    recipe: Recipe
    variant: str = ""
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.recipe.name}:{self.variant}" if self.variant else self.recipe.name

    @property
    def title(self) -> str:
        """What it reproduces: the recipe's title, or what the header says below the variant's command."""
        if not self.variant:
            return self.recipe.title
        below = header(self.recipe.text).partition(f"--out {self.variant}.yaml")[2].splitlines()
        said = [line.strip() for line in below[1:] if line.startswith("    ")]
        return said[0] if said else f"token-only run of {self.recipe.name}"

    def value(self, key: str) -> str | None:
        """What an override sets a key to."""
        return next((one.partition("=")[2] for one in self.overrides if one.startswith(f"{key}=")), None)


@dataclass(frozen=True)
class Losses:
    """The losses of a run's steps, by stage; those of the two are not comparable."""

    patch: list[float]
    token: list[float]


def header(text: str) -> str:
    """The comment at the top of a file, without its marks, every command in one line."""
    lines = text.splitlines()
    top = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in top).replace("\\\n", " ")


def commands(recipe: Recipe) -> list[list[str]]:
    """The words behind each command of a recipe's header that trains."""
    return [shlex.split(words) for words in _TRAINS.findall(header(recipe.text))]


def cases() -> Iterator[Case]:
    """Every recipe, and every variant that a header writes with overrides."""
    for recipe in recipes():
        yield Case(recipe)
        for words in _WRITES.findall(header(recipe.text)):
            name, _, out, *overrides = shlex.split(words)
            if overrides:
                yield Case(find_recipe(name), Path(out).stem, tuple(overrides))


def shrunken(case: Case) -> list[str]:
    """The overrides of the header's shrunken command, with a variant's.

    Sizes that a variant states shrink with the rest: rows by L, and the run to a dozen steps.
    """
    (short,) = [words[1:] for words in commands(case.recipe) if "max_duration=12ba" in words]
    sizes = ("variables.tokens_per_row", "global_train_batch_size", "max_duration", "variables.data_local")
    kept = [one for one in case.overrides if one.partition("=")[0] not in sizes]
    rows = case.value("variables.tokens_per_row")
    if rows:
        kept.append(f"variables.tokens_per_row={int(rows) // 2048 * L}")
    if (case.value("max_duration") or "").endswith("ep"):
        kept += ["max_duration=6ep", "eval_interval=2ep"]
    return [*short, *kept]


def places(case: Case, folder: Path) -> list[str]:
    """Overrides that lead a shrunken run to data, tokenizer and model below a folder; they are made there."""
    text = case.recipe.text
    if "\n  builtin_corpus:" in text:
        key = "variables.data" if "\n  data:" in text else "variables.builtin_corpus.folder"
        return [
            f"{key}={folder}/data",
            f"save_folder={folder}/run",
            f"callbacks.hf_checkpointer.save_folder={folder}/run",
        ]
    size = "model.vocab_size" if "mpt_causal_lm" in text else "model.config_overrides.vocab_size"
    epochs = (case.value("max_duration") or "").endswith("ep")
    rows = _row_tokens(case)
    data = _corpus(folder / f"rows-{rows}{'-few' * epochs}", rows, few=epochs)
    given = [f"variables.data_local={data}", f"variables.tokenizer={data}/tokenizer", f"{size}={VOCABULARY}"]
    if "\n  model: " in text:
        (folder / "llama").mkdir(exist_ok=True)
        (folder / "llama" / "config.json").write_text(json.dumps(_LLAMA))
        given.append(f"variables.model={folder}/llama")
    return given


def _row_tokens(case: Case) -> int:
    found = [one for one in shrunken(case) if one.startswith("variables.tokens_per_row=")]
    return int(found[-1].partition("=")[2])


def _corpus(folder: Path, row_tokens: int, few: bool) -> Path:
    from patch_algorithm.data.corpus import BuiltinCorpus, prepare_builtin_corpus

    asked = BuiltinCorpus(str(folder), row_tokens, L, VOCABULARY, 0.006 if few else 0.6, packages=("stdlib",))
    return prepare_builtin_corpus(asked)


def train(recipe: Recipe, overrides: Sequence[str]) -> Losses:
    """Trains as ``patch-level train`` does, and returns the losses of all steps."""
    from composer.loggers import InMemoryLogger
    from llmfoundry.command_utils import train_from_yaml

    from patch_algorithm.preflight import prepare, read_config

    path, given = str(recipe.path), [*overrides, "loggers={inmemory: {}}"]
    prepare(read_config(path, given))
    trainer = train_from_yaml(path, given)
    memory = next(one for one in trainer.logger.destinations if isinstance(one, InMemoryLogger))
    losses = [float(value) for _, value in memory.data["loss/train/total"]]
    ks = [int(value) for _, value in memory.data.get("patch_level/k", [])] or [1] * len(losses)
    paired = list(zip(losses, ks, strict=True))
    return Losses([loss for loss, k in paired if k > 1], [loss for loss, k in paired if k == 1])


def row(case: Case, losses: Losses) -> str:
    """The row of a table: name, what it reproduces, first and last loss of both stages."""
    cells = [
        f"{stage[0]:.2f} → {stage[-1]:.2f}" if stage else "none" for stage in (losses.patch, losses.token)
    ]
    return f"| `{case}` | {case.title} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for data and runs")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print("| recipe | what it is | patch stage, loss | token stage, loss |\n|---|---|---|---|")
    for case in cases():
        if options.only in str(case) and not case.recipe.name.startswith("finetune/"):
            folder = options.out / str(case).replace("/", "-").replace(":", "-")
            print(
                row(
                    case,
                    train(
                        case.recipe, [*shrunken(case), *places(case, options.out), f"save_folder={folder}"]
                    ),
                )
            )


if __name__ == "__main__":
    main()
