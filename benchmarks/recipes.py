"""Every recipe and its variants, shrunken by the overrides of their own headers: the losses of both stages.

    python -m benchmarks.recipes --out DIR

trains each for a dozen steps on the built-in corpus, on a CPU, and prints one row for each. What is done
is kept in DIR/losses.jsonl: the same command goes on after it. ``--report benchmarks/results`` also
writes a dated report.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import hashlib
import json
import re
import shlex
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patch_algorithm.recipes import Recipe, find_recipe, recipes

__all__ = [
    "Case",
    "Losses",
    "cases",
    "commands",
    "header",
    "places",
    "row",
    "shrunken",
    "train",
    "train_all",
]

L = 32
"""Positions of a shrunken row; of the quickstart's and the CPU recipe's, which bring their own data, more."""
VOCABULARY = 1024
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_TRAINS = re.compile(r"(?:composer train\.py|composer -m patch_algorithm\.train|patch-level train) (.*)")
_SENTENCE_ENDS = re.compile(r"(?<=[^.]\.)\s+(?=[A-Z0-9`])")
_PLACE = re.compile(r"(Table|Figure|Appendix|Section) \w+\.$")
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
        below = header(self.recipe.text).partition(f"--out {self.variant}.yaml")[2].partition("\n")[2]
        said = [line.strip() for line in below.partition("\n\n")[0].splitlines() if line.startswith("    ")]
        if not said:
            return f"token-only run of {self.recipe.name}"
        place, *sentences = _SENTENCE_ENDS.split(" ".join(said))
        return " ".join([place, *sentences[:1]]) if _PLACE.match(place) else place

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
        own = folder / case.recipe.name  # corpora of other sizes lie beside it
        return [
            f"{key}={own}/data",
            f"save_folder={own}/run",
            f"callbacks.hf_checkpointer.save_folder={own}/run",
        ]
    if case.recipe.name.startswith("finetune/"):
        return _to_tune(folder)
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


def _to_tune(folder: Path) -> list[str]:
    """A small model as an export leaves it, beside its tokenizer, and instructions for it."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    data = _corpus(folder / "rows-128", 128, few=False)
    finished, instructions = folder / "finished", folder / "instructions"
    AutoTokenizer.from_pretrained(data / "tokenizer").save_pretrained(finished)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(finished)
    instructions.mkdir(exist_ok=True)
    lines = [json.dumps({"prompt": f"What is {i} + 1?", "response": f"It is {i + 1}."}) for i in range(64)]
    (instructions / "train.jsonl").write_text("\n".join(lines))
    return [f"variables.model={finished}", f"train_loader.dataset.hf_name={instructions}"]


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


HEAD = "| recipe | what it is | patch stage, loss | token stage, loss |\n|---|---|---|---|"


def train_all(wanted: Sequence[Case], out: Path) -> Iterator[tuple[Case, Losses]]:
    """Trains cases, each as it comes, but for those that a file in the folder has the losses of.

    A case is trained again where its recipe or its overrides have changed.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = out / "losses.jsonl"
    done: dict[str, Mapping[str, Any]] = {}
    kept = record.read_text("utf-8") if record.exists() else ""
    if kept and not kept.endswith("\n"):
        record.write_text(f"{kept}\n", "utf-8")
    for line in kept.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        done[entry["case"]] = entry
    for case in wanted:
        entry = done.get(str(case))
        if entry is not None and entry["digest"] == _digest(case):
            yield case, Losses(**entry["losses"])
            continue
        begun = time.perf_counter()
        losses = _train_case(case, out)
        seconds = round(time.perf_counter() - begun, 1)
        new = {"case": str(case), "digest": _digest(case), "seconds": seconds, "losses": asdict(losses)}
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(new) + "\n")
        yield case, losses


def _train_case(case: Case, out: Path) -> Losses:
    saved = out / "saved"
    for left in (saved, out / case.recipe.name / "run"):  # of a run that was broken off
        shutil.rmtree(left, ignore_errors=True)
    gc.collect()  # the trainer before this one
    return train(case.recipe, [*shrunken(case), *places(case, out), f"save_folder={saved}"])


def _digest(case: Case) -> str:
    return hashlib.sha256("\n".join([case.recipe.text, *shrunken(case)]).encode()).hexdigest()


def _report(rows: Sequence[str], folder: Path) -> Path:
    """Writes the table with its date, command and machine."""
    from benchmarks.pairs import command, free_path, hardware, versions

    day = datetime.date.today().isoformat()
    path = free_path(folder, f"{day}-recipes", ".md")
    lines = [
        f"# Recipes, {day}",
        "",
        f"Command: `{command()}`",
        "",
        f"Machine: {hardware()}; {versions()}.",
        "",
        "Every recipe and variant, shrunken by the overrides of its own header to about a dozen steps of a "
        "model of two layers: it shows that each one trains, and nothing of what its full size will do. "
        "First and last loss of each stage, in nats; those of the two stages are not comparable.",
        "",
        HEAD,
        *rows,
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for data, runs and what is done")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--report", type=Path, help="a folder for a dated report of all cases")
    options = parser.parse_args()
    if options.report is not None and options.only:
        parser.error("--report is of all cases; leave --only out.")
    for message in ("The switch at", "patch_level has no effect"):
        warnings.filterwarnings("ignore", message)  # runs that are whole in one stage on purpose
    rows = []
    print(HEAD)
    for case, losses in train_all([case for case in cases() if options.only in str(case)], options.out):
        rows.append(row(case, losses))
        print(rows[-1], flush=True)
    if options.report is not None:
        print(f"\n{_report(rows, options.report)}")


if __name__ == "__main__":
    main()
