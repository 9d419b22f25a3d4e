"""What a conversion has done, and what one would do, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patch_algorithm.common.tables import duration, table
from patch_algorithm.data.conversion.documents import TRAIN, VAL, BadDocument, Counts
from patch_algorithm.data.dataset.description import DatasetInfo

__all__ = ["Estimate", "Report", "empty_splits"]


def empty_splits(info: DatasetInfo, val_fraction: float = 0.0) -> list[str]:
    """Held-out data that is missing: a line for each stream of ``val`` and ``test`` without a row.

    Args:
        info: The dataset.
        val_fraction: The share of documents that was to go to ``val``; 0 where sources were put into it.
    """
    lines = []
    for split, length in info.row_tokens.items():
        if split == TRAIN:
            continue
        drawn = split == VAL and val_fraction > 0
        components: list[str | None] = [None]
        if info.split_by_component:
            # A component of which no source was put into the split is not expected there.
            given = [name for name, counts in sorted(info.components.items()) if drawn or split in counts]
            components = [*given] or [None]
        for component in components:
            stream = next((s for s in info.streams if (s.component, s.split) == (component, split)), None)
            if stream is None or not stream.rows:
                name = split if component is None else f"{split} of {component}"
                lines.append(_empty_split(name, length, stream.tokens_left_out if stream else 0, drawn))
    return lines


def _empty_split(name: str, length: int, left_out: int, drawn: bool) -> str:
    text = f"--val-fraction leaves {name} without a row" if drawn else f"the split {name} has no row"
    if left_out:
        more = "raise --val-fraction" if drawn else "give it more text"
        return (
            f"{text}: its {left_out:,} tokens do not fill a row of {length:,}. Ask for shorter rows with "
            f"--val-row-tokens, or {more}."
        )
    if drawn:
        return f"{text}: no document was selected. Raise --val-fraction."
    return f"{text}: no document of its sources could be read."


@dataclass(frozen=True)
class Report:
    """What a conversion has done.

    Attributes:
        info: The dataset's own record.
        out: Where it lies.
        seconds: Wall time of the call that finished it.
        encoded: What that call encoded; less than the dataset holds if it continued an earlier one.
        examples: The first documents that were skipped, with their sources.
        val_fraction: The share of documents that was to be held out.
    """

    info: DatasetInfo
    out: str
    seconds: float
    encoded: Counts = field(default_factory=Counts)
    examples: Sequence[tuple[str, BadDocument]] = field(default=())
    val_fraction: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The dataset's record, with the times that are no part of it."""
        run = {"out": self.out, "seconds": round(self.seconds, 3), **self.encoded._asdict()}
        examples = [{"source": source, **bad._asdict()} for source, bad in self.examples]
        return {**self.info.to_json(), "run": run, "skipped_examples": examples}

    def __str__(self) -> str:
        counts = {
            (name, split): Counts(values.documents, values.bytes, values.tokens)
            for name, splits in self.info.components.items()
            for split, values in splits.items()
        }
        lines = [_table(counts), ""]
        rows: list[Sequence[str]] = [("stream", "rows", "tokens a row", "shards", "tokens", "left out")]
        for stream in self.info.streams:
            numbers = (stream.rows, stream.row_tokens, stream.shards, stream.tokens, stream.tokens_left_out)
            rows.append((stream.path, *(f"{number:,}" for number in numbers)))
        lines += ["\n".join(table(rows)), ""]
        lines += [_skipped(self.info.skipped)] if self.info.skipped else []
        lines += empty_splits(self.info, self.val_fraction)
        lines += [f"  {source}, {bad.number}: {bad.reason} ({bad.detail})" for source, bad in self.examples]
        lines.append(f"{len(self.info.sources):,} sources were read; {self.info.encoder}")
        lines.append(f"{self.out}: finished in {self.seconds:.1f} s, {_speed(self.encoded, self.seconds)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Estimate:
    """What a conversion would do, from a sample.

    Attributes:
        sources: How many there are.
        size: Bytes to read; ``None`` where nobody knows.
        sampled: Bytes that were read for the sample.
        seconds: Time the sample would take with all workers.
        counts: What the sample holds, by (component, split).
        skipped: Its bad documents by reason.
        row_tokens: Tokens in a row of each split.
        token_bytes: Bytes of a token.
    """

    sources: int
    size: int | None
    sampled: int
    seconds: float
    counts: Mapping[tuple[str, str], Counts]
    skipped: Mapping[str, int]
    row_tokens: Mapping[str, int]
    token_bytes: int

    @property
    def scale(self) -> float | None:
        """How many times the sample the whole is."""
        return self.size / self.sampled if self.size is not None and self.sampled else None

    def __str__(self) -> str:
        lines = [f"Sample: {self.sampled:,} bytes of {self.sources:,} sources.", ""]
        if self.scale is None:
            lines += [_table(self.counts), "", "The total size is not known."]
        else:
            whole = {
                key: Counts(*(round(value * self.scale) for value in counts))
                for key, counts in self.counts.items()
            }
            lines[0] = (
                f"Estimate of the whole from a sample: {self.sampled:,} of {self.size:,} bytes of "
                f"{self.sources:,} sources."
            )
            lines += [_table(whole), ""]
            for split, length in self.row_tokens.items():
                tokens = sum(counts.tokens for (_, name), counts in whole.items() if name == split)
                lines.append(f"{split}: about {tokens // length:,} rows of {length:,} tokens")
            output = sum(counts.tokens for counts in whole.values()) * self.token_bytes
            time = duration(self.seconds * self.scale)
            lines.append(f"about {output / 1e9:.2f} GB without compression; about {time}")
        lines += [_skipped(self.skipped) + " (in the sample)"] if self.skipped else []
        return "\n".join([*lines, "Nothing was written."])


def _table(counts: Mapping[tuple[str, str], Counts]) -> str:
    rows = [("component", "split", "documents", "MB of text", "tokens", "bytes a token")]
    total = Counts()
    for (component, split), values in sorted(counts.items()):
        rows.append((component, split, *_numbers(values)))
        total = total.plus(values)
    rows.append(("total", "", *_numbers(total)))
    return "\n".join(table(rows))


def _numbers(counts: Counts) -> tuple[str, str, str, str]:
    each = counts.bytes / counts.tokens if counts.tokens else 0.0
    return f"{counts.documents:,}", f"{counts.bytes / 1e6:,.2f}", f"{counts.tokens:,}", f"{each:.2f}"


def _skipped(skipped: Mapping[str, int]) -> str:
    return "skipped: " + ", ".join(f"{number:,} {reason}" for reason, number in skipped.items())


def _speed(counts: Counts, seconds: float) -> str:
    if not counts.documents:
        return "nothing was left to encode"
    return f"{counts.bytes / seconds / 1e6:.2f} MB of text/s, {counts.tokens / seconds / 1e6:.3f} M tokens/s"
