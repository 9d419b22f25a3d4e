"""The token-level twin of a run: the same but for the patches, with a learning rate that ends its own decay.

No comparison is fair without it: in an independent replication of token superposition (345M parameters,
github.com/eoghanf/TokenSuperPaper) an apparent speed-up of 1.9 was about 1.2 between runs that had both
ended their decay.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer.core import Time, TimeUnit
from omegaconf import OmegaConf

from patch_algorithm.planning.costs import cost_of
from patch_algorithm.planning.plan import Plan
from patch_algorithm.stages.plan import StagePlan

__all__ = ["SAME", "Twin", "write_twin"]

SAME = ("compute", "data")
"""What a twin can have in common with its run."""


@dataclass(frozen=True)
class Twin:
    """A twin that was written.

    Attributes:
        path: Its file.
        steps: Its steps.
        changes: What differs from the run, a line each.
    """

    path: Path
    steps: int
    changes: tuple[str, ...]


def write_twin(plan: Plan, out: str, same: str = "compute", overrides: Sequence[str] = ()) -> Twin:
    """Writes the YAML of a run's token-level twin.

    Comments and order are kept; the comment of a changed value goes.

    Args:
        plan: The plan of the run.
        out: The file to write; one that is there is never replaced.
        same: One of :data:`SAME`. With ``compute`` ``max_duration`` is cut to the run's FLOPs (positions,
            where these cannot be counted); with ``data`` the twin takes the same raw tokens.
        overrides: The run's dotted overrides, which are written into the twin.

    Raises:
        ValueError: If the run has no patch stage, or the file cannot be written.
    """
    path = Path(out)
    if path.exists():
        raise ValueError(f"--twin {out}: it exists, and is not replaced. Give another name.")
    if not path.parent.is_dir():
        raise ValueError(f"--twin {out}: there is no folder {str(path.parent)!r}.")
    if not any(stage.in_patches for stage in plan.costs[1].stages):
        raise ValueError(f"--twin: {plan.run.path} trains at token level already.")
    text = Path(plan.run.path).read_text("utf-8")
    yaml = _round_trip(text)
    document = yaml.load(text)
    _override(document, overrides)
    steps = _steps(plan, same)
    changes = [
        *_drop_patches(document, plan),
        *_set_duration(document, plan, same, steps),
        *_set_schedule(document, plan, same, steps),
        *_part_outputs(document),
    ]
    with path.open("x", encoding="utf-8") as file:
        file.write(_header(plan, same, changes))
        yaml.dump(document, file)
    return Twin(path, steps, tuple(changes))


def _steps(plan: Plan, same: str) -> int:
    run, end = plan.costs[1], plan.shape.bounds[-1]
    if same == "data":
        return plan.shape.clock.loader_batches(end)
    no_patches = StagePlan((), plan.shape.plan.seq_len, None)
    one = cost_of(replace(plan.shape, plan=no_patches), plan.model, (1,), "a token step")
    share = run.flops / one.flops if run.flops and one.flops else run.positions / one.positions
    return max(round(share), 1)


def _drop_patches(document: MutableMapping[str, Any], plan: Plan) -> list[str]:
    algorithms = document["algorithms"]
    T, L = plan.shape.row_tokens, plan.shape.plan.seq_len or plan.shape.row_tokens
    if T <= L:
        del algorithms["patch_level"]
        if not algorithms:
            del document["algorithms"]
        return ["algorithms.patch_level: removed; rows fit the model's context as they are"]
    # Another loader length would read the beginning of each row and drop the rest, or be refused.
    given = algorithms["patch_level"] or {}
    seq_len = given.get("seq_len") or L
    for name in [name for name in given if name not in ("k", "seq_len")]:
        del given[name]
    algorithms["patch_level"] = given
    given["k"], given["seq_len"] = 1, seq_len
    _drop_comment(given, "k")
    return [
        f"algorithms.patch_level: k: 1, which trains at token level throughout and only cuts rows of {T:,} "
        f"tokens into rows of {L:,}, as the run's token stage does: both read the same rows in the same order"
    ]


def _set_duration(document: MutableMapping[str, Any], plan: Plan, same: str, steps: int) -> list[str]:
    given = plan.shape.clock.max_duration.unit
    per_step = {TimeUnit.SAMPLE: plan.shape.rows, TimeUnit.TOKEN: plan.shape.rows * plan.shape.row_tokens}
    unit = given if given in per_step else TimeUnit.BATCH
    if same == "data" and (unit != TimeUnit.BATCH or steps == plan.shape.bounds[-1]):
        return []
    before, after = document["max_duration"], f"{steps * per_step.get(unit, 1)}{unit.value}"
    document["max_duration"] = after
    _drop_comment(document, "max_duration")
    return [f"max_duration: {before} -> {after}, the {same} of the run"]


def _set_schedule(document: MutableMapping[str, Any], plan: Plan, same: str, steps: int) -> list[str]:
    scheduler, changes = document.get("scheduler"), []
    if not isinstance(scheduler, MutableMapping):
        return []
    bounds = plan.shape.bounds
    length = bounds[-1]
    if scheduler.get("name") == "per_stage":
        inner = scheduler.get("scheduler") or scheduler["schedulers"][-1]
        document["scheduler"] = scheduler = inner
        changes.append(f"scheduler: {inner.get('name')}, once over the whole run instead of per_stage")
        length -= bounds[-2]  # times inside were those of the token stage
    if length == steps:
        return changes
    for name, value in scheduler.items():
        scaled = None if name == "t_warmup" else _scaled(value, steps / length)
        if scaled is not None:
            scheduler[name] = scaled
            _drop_comment(scheduler, name)
            changes.append(f"scheduler.{name}: {value} -> {scaled}, in proportion to the run")
    return changes


def _scaled(value: Any, factor: float) -> str | None:
    """A time that is not a share of the run, stretched; ``None`` for anything else."""
    try:
        time = Time.from_timestring(value) if isinstance(value, str) else None
    except (ValueError, TypeError):
        return None
    if time is None or time.unit not in (TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN):
        return None
    return f"{max(round(time.value * factor), 0)}{time.unit.value}"


def _part_outputs(document: MutableMapping[str, Any]) -> list[str]:
    """Gives the twin names of its own where the run's would be written over."""
    changes = []
    if document.get("run_name"):
        changes.append(_rename(document, "run_name", "run_name"))
    places = [(document, "save_folder", "save_folder")]
    for section, key in (("callbacks", "save_folder"), ("loggers", "path")):
        for name, arguments in (document.get(section) or {}).items():
            if isinstance(arguments, MutableMapping):
                places.append((arguments, key, f"{section}.{name}.{key}"))
    for mapping, key, path in places:
        if isinstance(mapping.get(key), str) and "{run_name}" not in mapping[key].replace(
            "${run_name}", "{run_name}"
        ):
            changes.append(_rename(mapping, key, path))
    return changes


def _rename(mapping: MutableMapping[str, Any], key: str, path: str) -> str:
    before = str(mapping[key])
    stem, dot, suffix = before.rpartition(".") if before.endswith((".jsonl", ".json")) else (before, "", "")
    mapping[key] = f"{stem.rstrip('/')}-token{dot}{suffix}"
    return f"{path}: {before} -> {mapping[key]}, so that neither run overwrites the other"


def _override(document: MutableMapping[str, Any], overrides: Sequence[str]) -> None:
    if overrides:
        given = OmegaConf.to_container(OmegaConf.from_cli(list(overrides)))
        _merge(document, given if isinstance(given, dict) else {})


def _merge(into: MutableMapping[str, Any], values: Mapping[Any, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), MutableMapping):
            _merge(into[name], value)
        else:
            into[name] = value


def _header(plan: Plan, same: str, changes: Sequence[str]) -> str:
    name = Path(plan.run.path).name
    parts = [
        f"The token-level twin of {name}, for a comparison on the same {same}, by `patch-level plan --twin`."
    ]
    parts += [f"- {change}" for change in changes]
    parts.append("Everything else, including comments, is the run's.")
    lines = [
        line for part in parts for line in textwrap.wrap(part, 108, subsequent_indent="  " * (part[0] == "-"))
    ]
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _round_trip(text: str) -> Any:
    """A reader and writer that keeps comments, order, quotes, nulls and the indentation of lists."""
    from ruamel.yaml import YAML
    from ruamel.yaml.util import load_yaml_guess_indent

    from patch_algorithm.planning.yaml_edits import NumberRepresenter

    _, indent, offset = load_yaml_guess_indent(text)

    class Representer(NumberRepresenter):
        """Writes null where ruamel leaves a blank."""

    Representer.add_representer(
        type(None), lambda of, _: of.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
    return yaml


def _drop_comment(mapping: Any, key: str) -> None:
    """Removes the comment at the end of a line whose value was changed, and leaves what follows the line."""
    tokens = mapping.ca.items.get(key)
    if tokens and len(tokens) > 2 and tokens[2] is not None:
        tokens[2].value = "\n" + tokens[2].value.partition("\n")[2]
