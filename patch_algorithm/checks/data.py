"""Checks of the data that loaders read, and of the tokenizer that it was written with."""

from __future__ import annotations

from dataclasses import dataclass

from patch_algorithm.checks.finding import Finding, finding

__all__ = [
    "LoaderFacts",
    "TokenizerFacts",
    "check_components",
    "check_loader",
    "check_passes",
    "check_tokenizer",
    "check_tokenizer_context",
    "check_vocabulary",
]

_MOST_PASSES = 4
_ABOUT_ONCE = (0.9, 1.5)


@dataclass(frozen=True)
class LoaderFacts:
    """A loader and what is on disk for it.

    Attributes:
        key: The key of its dataset.
        name: Its name in llm-foundry's registry.
        is_train: Whether the run trains on it.
        asked: The length of rows that it gives, ``max_seq_len``.
        row_tokens: The length of the rows on disk; ``None`` if not known.
        folder: Where they are; ``None`` where nothing is found.
        expected_in: The local folder that has to hold the data; ``None`` if it is fetched or made.
        components: The components that its rows are of; empty if they are not distinguished.
        fault: Why the description or the index cannot be read.
        refusal: What the loader ``pile`` says against the length of the rows; ``None`` where it takes them.
    """

    key: str
    name: str | None
    is_train: bool
    asked: int | None
    row_tokens: int | None = None
    folder: str | None = None
    expected_in: str | None = None
    components: tuple[str, ...] = ()
    fault: str | None = None
    refusal: str | None = None


def check_loader(loader: LoaderFacts) -> list[Finding]:
    """Checks that a loader's data is there, and that all of every row is read."""
    if loader.fault is not None:
        return [
            finding(
                "data-damaged",
                f"{loader.key}: {loader.fault}",
                "The loader cannot read this dataset.",
                "Restore the file or its permissions, or convert the data again.",
            )
        ]
    if loader.folder is None:
        return [] if loader.expected_in is None else [_missing(loader, loader.expected_in)]
    if loader.asked is None or loader.row_tokens is None or loader.asked == loader.row_tokens:
        return []
    if loader.row_tokens < loader.asked:
        return [_shorter(loader)]
    return _longer(loader, loader.asked, loader.row_tokens)


def _missing(loader: LoaderFacts, folder: str) -> Finding:
    return finding(
        "data-missing",
        f"{loader.key}: there is no dataset in {folder}.",
        "The run will stop when it builds the loader.",
        "Convert text with `patch-level data convert --out ...`, or correct local and split.",
    )


def _longer(loader: LoaderFacts, asked: int, there: int) -> list[Finding]:
    if loader.name == "pile":
        return [] if loader.refusal is None else [_refused(loader.refusal)]
    return [
        finding(
            "rows-cut-short" if loader.is_train else "eval-rows-cut-short",
            f"{loader.key}.max_seq_len={asked} reads {asked} of the {there} tokens of "
            f"each row in {loader.folder}.",
            f"llm-foundry's loader drops the rest of every row, {100 * (1 - asked / there):.3g} % of the "
            "tokens, silently.",
            f"Set it to {there}. It is the length of a row, not the model's context: patch_level "
            "cuts rows itself."
            if loader.is_train
            else f"Use the loader pile, which cuts longer rows, or convert with --val-row-tokens {asked}.",
        )
    ]


def _refused(message: str) -> Finding:
    return finding("rows-cut-short", message, "The loader pile refuses these rows.", "See the message.")


def _shorter(loader: LoaderFacts) -> Finding:
    return finding(
        "rows-shorter-than-asked",
        f"{loader.key}.max_seq_len={loader.asked}, but the rows in {loader.folder} have {loader.row_tokens} "
        "tokens.",
        "The loader pile refuses them. llm-foundry's text loader gives the shorter rows, so that a step has "
        "fewer tokens than the configuration says.",
        f"Set it to {loader.row_tokens}, or convert the data with --row-tokens {loader.asked}.",
    )


def check_components(train: LoaderFacts, evals: list[LoaderFacts]) -> list[Finding]:
    """Checks that eval loaders see what is trained on, and not the training rows themselves."""
    found: list[Finding] = []
    for loader in evals:
        if loader.folder is not None and loader.folder == train.folder:
            found.append(
                finding(
                    "eval-reads-training-data",
                    f"{loader.key} reads {loader.folder}, as the train loader does.",
                    "Its loss says nothing about text that the model has not seen.",
                    "Set split: val, or convert the data with --val-fraction.",
                )
            )
    with_components = [loader for loader in evals if loader.components]
    seen = {component for loader in with_components for component in loader.components}
    if len(train.components) > 1 and len(seen) == 1 and len(with_components) == len(evals):
        (only,) = seen
        found.append(
            finding(
                "eval-one-component",
                f"{with_components[0].key} sees only the component {only!r}; the run trains on "
                f"{len(train.components)} components.",
                "A component's loss can differ by more than a nat from that of the mixture, and hides what "
                "happens to the others.",
                "Name the dataset's own folder in local and let the loader pile read the split of all "
                "components, or add an eval loader for each.",
            )
        )
    return found


def check_passes(run_tokens: float | None, disk_tokens: float | None) -> list[Finding]:
    """Says how often a run reads its data.

    Args:
        run_tokens: Raw tokens of the run.
        disk_tokens: Tokens on disk.
    """
    if not run_tokens or not disk_tokens:
        return []
    passes = run_tokens / disk_tokens
    read = f"The run takes {run_tokens:.3g} tokens of {disk_tokens:.3g} on disk: {passes:.2g} passes."
    if passes > _MOST_PASSES:
        return [
            finding(
                "data-repeated",
                read,
                "Patches read data up to k times as fast. In token-level training repetition costs little "
                "up to about 4 passes (arXiv 2305.16264). The paper trained 6 passes over 60 billion "
                "tokens with and without patches, and patches gained (arXiv 2407.12665, table 2). More "
                "than 6 passes have not been tried.",
                "Convert more text, or shorten max_duration.",
            )
        ]
    if _ABOUT_ONCE[0] <= passes <= _ABOUT_ONCE[1]:
        return []
    return [finding("passes-over-data", read, "For your information.", "Nothing, if this is intended.")]


@dataclass(frozen=True)
class TokenizerFacts:
    """A run's tokenizer, and the one of its data.

    Attributes:
        name: ``tokenizer.name``.
        is_registered: Whether llm-foundry builds it from its registry.
        folder_found: Whether the name is a folder of this machine.
        files_found: Whether that folder holds a tokenizer.
        differences: What gives the ids of the data another meaning; ``None`` where the two were not compared.
        data_name: The name that the data was written with; ``None`` without a description.
        fault: Why its ``tokenizer.json`` cannot be read.
    """

    name: str
    is_registered: bool = False
    folder_found: bool = False
    files_found: bool = False
    differences: tuple[str, ...] | None = None
    data_name: str | None = None
    fault: str | None = None


def check_tokenizer(tokenizer: TokenizerFacts) -> list[Finding]:
    """Checks that a tokenizer can be there, and that it is the one of the data."""
    if not tokenizer.is_registered:
        if not tokenizer.folder_found and _is_path(tokenizer.name):
            return [_no_tokenizer(f"tokenizer.name: there is no folder {tokenizer.name!r}.")]
        if tokenizer.folder_found and not tokenizer.files_found:
            return [_no_tokenizer(f"tokenizer.name: the folder {tokenizer.name!r} holds no tokenizer.")]
        if tokenizer.fault is not None:
            return [_damaged_tokenizer(tokenizer.fault)]
    if tokenizer.data_name is None or tokenizer.is_registered:
        return []
    if tokenizer.differences is not None:
        if not tokenizer.differences:
            return []
        return [
            finding(
                "tokenizer-not-the-datas",
                f"tokenizer.name is {tokenizer.name!r}, but the training data was written with "
                f"{tokenizer.data_name!r}, another tokenizer: {'; '.join(tokenizer.differences)}.",
                "This tokenizer gives the data's ids other meanings, or none. llm-foundry's loader "
                "trains on them silently; the loader pile refuses.",
                "Set tokenizer.name to the folder `tokenizer` of the dataset, or convert the data again.",
            )
        ]
    if tokenizer.name == tokenizer.data_name:
        return []
    return [
        finding(
            "tokenizer-named-otherwise",
            f"tokenizer.name is {tokenizer.name!r}; the training data was written with "
            f"{tokenizer.data_name!r}. The tokenizer is not on this machine, so only the names were "
            "compared.",
            "Two names can belong to the same tokenizer. The loader pile compares them when the run starts.",
            "Nothing, if they are the same.",
        )
    ]


def _is_path(name: str) -> bool:
    """Whether a name cannot be that of a repository, ``OWNER/NAME`` or ``NAME``."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _no_tokenizer(found: str) -> Finding:
    return finding(
        "tokenizer-not-found",
        found,
        "transformers would take the path for a name on the Hugging Face hub and refuse it.",
        "Correct the path, or give a name such as EleutherAI/gpt-neox-20b.",
    )


def _damaged_tokenizer(fault: str) -> Finding:
    return finding(
        "tokenizer-not-found",
        f"tokenizer.name: {fault}.",
        "The run stops when it builds the tokenizer.",
        "Restore the file: save the tokenizer again, or copy it from the folder `tokenizer` of the dataset.",
    )


def check_tokenizer_context(stated: int | None, context: int | None) -> list[Finding]:
    """Checks the context that an exported tokenizer will state.

    Args:
        stated: ``tokenizer.kwargs.model_max_length``; ``None`` if not given.
        context: The model's context; ``None`` if not known.
    """
    if stated is None or context is None or stated == context:
        return []
    return [
        finding(
            "tokenizer-context",
            f"tokenizer.kwargs.model_max_length={stated}, but the model's context is {context}.",
            "The exported tokenizer will state it, and evaluation harnesses and pipelines cut texts to that "
            "length.",
            f"Set it to {context}: the context, and not the length of a row.",
        )
    ]


def check_vocabulary(
    model_entries: int | None, data_ids: int | None, data_name: str = "", resizes: bool = False
) -> list[Finding]:
    """Checks that the model has an embedding for every id of the data.

    Args:
        model_entries: The model's ``vocab_size``.
        data_ids: The largest id of the tokenizer that the data was written with, and one.
        data_name: That tokenizer's name.
        resizes: Whether the model's embedding is enlarged to the run's tokenizer, as MPT's is.
    """
    if model_entries is None or data_ids is None or model_entries >= data_ids:
        return []
    found = (
        f"The model's vocabulary has {model_entries:,} entries; the ids of the data's tokenizer "
        f"{data_name!r} need {data_ids:,}."
    )
    fix = (
        f"Set vocab_size to at least {data_ids}, preferably the next multiple of 128: "
        f"{-(-data_ids // 128) * 128}."
    )
    if resizes:
        why = (
            "Composer enlarges the embedding to the entries of the run's tokenizer. The model then differs "
            "from its configuration, and its vocabulary may not be a multiple of 128, which is slower on "
            "GPUs."
        )
        return [finding("vocabulary-resized", found, why, fix)]
    why = (
        "llm-foundry refuses a tokenizer with more entries than the model has; ids without an embedding "
        "would end the run with an index error."
    )
    return [finding("vocabulary-too-small", found, why, fix)]
