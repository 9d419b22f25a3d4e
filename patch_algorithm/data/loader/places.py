"""From what a configuration names to streams: which folders, of which dataset, for which tokenizer."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from composer.utils import dist
from streaming import Stream
from streaming.base.format import get_index_basename
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from patch_algorithm.data.dataset.description import (
    DATASET_JSON,
    DatasetInfo,
    StreamInfo,
)
from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.data.loader.mixtures import mixture_shares
from patch_algorithm.data.loader.streams import VerifiedStream
from patch_algorithm.data.loader.tokenizers import tokenizer_differences

__all__ = ["PLACE_KEYS", "find_streams"]

log = logging.getLogger(__name__)

PLACE_KEYS = ("remote", "local", "split")

_STREAM_KEYS = {*inspect.signature(Stream).parameters, "verify"}


class _Found(NamedTuple):
    """A dataset's description, its folder, and the stream that was named; ``None`` for all of a split."""

    info: DatasetInfo
    folder: str
    stream: StreamInfo | None


def find_streams(
    asked: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, key: str
) -> list[VerifiedStream]:
    """The streams of a loader's dataset.

    Args:
        asked: The mapping ``dataset`` of the configuration: ``remote``, ``local``, ``split`` and
            ``components``, or ``streams``.
        tokenizer: The run's tokenizer, which has to be the one that the data was written with.
        key: The mapping's configuration key, for messages.

    Returns:
        One stream for each that is named, for each component, or for the whole split.

    Raises:
        ValueError: If there is no such data, it has not what is asked of it, or it was written with
            another tokenizer.
    """
    place = {name: asked.get(name) for name in PLACE_KEYS}
    named, components = asked.get("streams"), asked.get("components")
    if bool(named) == bool(place["remote"] or place["local"]):
        raise ValueError(
            f"{key} needs either streams, or local or remote or both. It has "
            f"{', '.join(name for name in ('streams', *PLACE_KEYS) if asked.get(name)) or 'none'}."
        )
    place["verify"] = asked.get("verify", False)
    if not named:
        return _streams_of(_with_cache(place), components, tokenizer, key)
    if components is not None:
        raise ValueError(
            f"{key} has both streams and components. Either give each stream its own proportion, or name one "
            "dataset with local or remote, whose components then become the streams."
        )
    if not isinstance(named, Mapping):
        raise ValueError(
            f"{key}.streams is a {type(named).__name__}; expected a mapping of names to streams, such as "
            "{web: {local: ./web, proportion: 0.7}}."
        )
    return [
        _named_stream(place, options, tokenizer, f"{key}.streams.{name}") for name, options in named.items()
    ]


def _with_cache(place: dict[str, Any]) -> dict[str, Any]:
    # streaming would make a folder of its own for a remote that has no local, and refuse to find it again.
    if place["remote"] and not place["local"]:
        name = hashlib.sha256(str(place["remote"]).rstrip("/").encode()).hexdigest()[:16]
        place = {**place, "local": os.path.join(tempfile.gettempdir(), f"patch-algorithm-{name}")}
        if not dist.get_local_rank():
            log.info("%s is cached in %s; `local` chooses another folder", place["remote"], place["local"])
    return place


def _named_stream(
    place: Mapping[str, Any], own: object, tokenizer: PreTrainedTokenizerBase, key: str
) -> VerifiedStream:
    if not isinstance(own, Mapping):
        raise ValueError(f"{key} is {own!r}; expected a mapping with local or remote or both.")
    options = _with_cache({**place, **own})
    if unknown := sorted(set(options) - _STREAM_KEYS):
        raise ValueError(
            f"{key} has the unknown keys {', '.join(unknown)}; known are {', '.join(sorted(_STREAM_KEYS))}."
        )
    if not (options["remote"] or options["local"]):
        raise ValueError(f"{key} has neither local nor remote; set one of them or both.")
    found = _find_described(options, tokenizer, key)
    if found is not None and found.stream is None:
        raise ValueError(
            f"{key} is a dataset that is split by component. Name the folder of one component, or use "
            "components instead of streams."
        )
    return _one_stream(options, found, key)


def _streams_of(
    place: Mapping[str, Any], components: object, tokenizer: PreTrainedTokenizerBase, key: str
) -> list[VerifiedStream]:
    found = _find_described(place, tokenizer, key)
    if found is not None and found.stream is None:
        return _by_component(place, components, found.info, key)
    if components is not None:
        raise ValueError(
            f"{key}.components needs data with a stream for each component, and "
            f"{place['remote'] or place['local']} has none. Convert it with --split-by-component, or remove "
            "components."
        )
    return [_one_stream(place, found, key)]


def _find_described(
    options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, key: str
) -> _Found | None:
    """Finds the description of what is named and checks the tokenizer against it; warns if there is none."""
    root, split = str(options["remote"] or options["local"]), options["split"] or ""
    if not options["remote"] and not os.path.isdir(root):
        raise ValueError(f"{key}.local: there is no folder {root}.")
    found = _describe(root, split, key)
    if found is None:
        warnings.warn(
            f"{key}: no {DATASET_JSON} can be read in {root}, so it cannot be checked that the data was "
            "written with the run's tokenizer; only that its ids are within the vocabulary.",
            stacklevel=2,
        )
    else:
        _check_tokenizer(found, tokenizer, root, key)
    return found


def _one_stream(options: Mapping[str, Any], found: _Found | None, key: str) -> VerifiedStream:
    if not isinstance(options["verify"], bool):
        raise ValueError(f"{key}.verify is {options['verify']!r}; expected true or false.")
    if not options["remote"]:
        folder = os.path.join(options["local"], options["split"] or "")
        if not os.path.isfile(os.path.join(folder, get_index_basename())):
            raise ValueError(f"{key}: there is no MDS dataset in {folder}.")
        _check_index(os.path.join(folder, get_index_basename()), key)
    return VerifiedStream(key=key, rows=found and found.stream and found.stream.rows, **options)


def _check_index(path: str, key: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            json.load(file)
    except ValueError as error:
        raise ValueError(f"{key}: {path} is damaged ({error}); restore it.") from error


def _by_component(
    place: Mapping[str, Any], components: object, info: DatasetInfo, key: str
) -> list[VerifiedStream]:
    split = place["split"]
    streams = {s.component: s for s in info.streams if s.split == split and s.rows and s.component}
    if not streams:
        splits = sorted({stream.split for stream in info.streams if stream.rows})
        raise ValueError(f"{key}.split is {split!r}; the dataset has {', '.join(splits) or 'no rows'}.")
    shares = None
    if components is not None:
        shares = mixture_shares(components, list(streams), f"{key}.components")
    made: list[VerifiedStream] = []
    for component, stream in streams.items():
        if shares is not None and component not in shares:
            continue
        folder = os.path.dirname(stream.path)
        roots = {name: place[name] and os.path.join(place[name], folder) for name in ("remote", "local")}
        made.append(
            VerifiedStream(
                key=f"{key} ({component})",
                rows=stream.rows,
                split=os.path.basename(stream.path),
                proportion=shares and shares[component],
                verify=place["verify"],
                **roots,
            )
        )
    return made


def _describe(root: str, split: str, key: str) -> _Found | None:
    """Looks for the description in the folder that is named, and in the two above the stream's."""
    folder, path = root.rstrip("/") if is_url(root) else os.path.abspath(root), split
    for _ in range(3):
        info = _find(folder, key, named=path == split)
        if info is not None:
            stream = next((stream for stream in info.streams if stream.path == path), None)
            if stream is not None:
                return _Found(info, folder, stream)
            if path == split and info.split_by_component:
                return _Found(info, folder, None)
            if path == split:
                there = ", ".join(stream.path for stream in info.streams)
                raise ValueError(f"{key}.split is {split or None!r}; {root} has {there}.")
        folder, _, name = folder.rpartition("/")
        if not folder.strip("/") or folder.endswith(":/"):
            return None
        path = f"{name}/{path}".rstrip("/")
    return None


def _find(folder: str, key: str, named: bool) -> DatasetInfo | None:
    try:
        return DatasetInfo.find(folder)
    except ValueError as error:
        # Not every store tells a file that is missing from one that may not be read, and a file of this
        # name further up is perhaps not ours.
        if is_url(folder) or not named:
            return None
        raise ValueError(f"{key}: {error}") from error


def _check_tokenizer(found: _Found, tokenizer: PreTrainedTokenizerBase, root: str, key: str) -> None:
    written = found.info.tokenizer
    if other := tokenizer_differences(found.info, found.folder, tokenizer):
        raise ValueError(
            f"{key}: {root} was written with the tokenizer {written.name!r} ({written.vocab_size} entries, "
            f"fingerprint {written.fingerprint[:12]}), but the run's is {tokenizer.name_or_path!r} "
            f"({len(tokenizer)} entries), which differs: {'; '.join(other)}. Set tokenizer.name to the "
            "dataset's own folder `tokenizer`, or convert the data with the run's."
        )
    for name, adds, id_there in (
        ("eos", written.adds_eos, written.eos_id),
        ("bos", written.adds_bos, written.bos_id),
    ):
        here = getattr(tokenizer, f"{name}_token_id")
        if adds and here != id_there:
            raise ValueError(
                f"{key}: the documents of {root} use the {name.upper()} token {id_there}, but that of the "
                f"run's tokenizer {tokenizer.name_or_path!r} is {here}. Set tokenizer.name to the dataset's "
                "own folder `tokenizer`, or convert the data with the run's."
            )
