"""Mixtures of a dataset's components: the Pile's published one, and what is asked for by name."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

__all__ = ["PILE", "mixture_shares", "weights_of_used"]

log = logging.getLogger(__name__)

PILE: dict[str, float] = {
    "Pile-CC": 0.1811,
    "PubMed Central": 0.1440,
    "Books3": 0.1207,
    "OpenWebText2": 0.1001,
    "ArXiv": 0.0896,
    "Github": 0.0759,
    "FreeLaw": 0.0612,
    "StackExchange": 0.0513,
    "USPTO Backgrounds": 0.0365,
    "PubMed Abstracts": 0.0307,
    "Gutenberg (PG-19)": 0.0217,
    "OpenSubtitles": 0.0155,
    "Wikipedia (en)": 0.0153,
    "DM Mathematics": 0.0124,
    "Ubuntu IRC": 0.0088,
    "BookCorpus2": 0.0075,
    "EuroParl": 0.0073,
    "HackerNews": 0.0062,
    "YoutubeSubtitles": 0.0060,
    "PhilPapers": 0.0038,
    "NIH ExPorter": 0.0030,
    "Enron Emails": 0.0014,
}
"""Each component's share of the Pile, by the names of ``meta.pile_set_name``.

Source: column "Weight" of table 1 in Gao et al., "The Pile: An 800GB Dataset of Diverse Text for Language
Modeling", https://arxiv.org/abs/2101.00027. The shares there are of bytes of text.
"""


def mixture_shares(asked: object, present: Sequence[str], key: str) -> dict[str, float]:
    """The share of each component, renormalised over those that are there.

    Args:
        asked: ``"pile"``, or a mapping of components to weights; only their ratios count.
        present: The components that the dataset has.
        key: The configuration key, for messages.

    Returns:
        Shares by component, which sum to 1; components of weight 0 are left out. Components that were
        asked for and are absent, and those that are there and were not asked for, are logged.

    Raises:
        ValueError: If ``asked`` is something else, names a component that neither the dataset nor the Pile
            has, has a weight that is not a number of at least 0, or leaves no component.

    Examples:
        >>> mixture_shares({"ArXiv": 3, "Github": 1, "Books3": 2}, ["ArXiv", "Github"], "components")
        {'ArXiv': 0.75, 'Github': 0.25}
    """
    used = weights_of_used(asked, present, key)
    weights = dict(asked) if isinstance(asked, Mapping) else PILE
    if absent := [name for name, weight in weights.items() if weight and name not in present]:
        log.info("%s: not in this dataset, so their share goes to the others: %s", key, ", ".join(absent))
    if unused := [name for name in present if name not in used]:
        log.info("%s: in this dataset but not used: %s", key, ", ".join(unused))
    total = math.fsum(used.values())
    return {name: weight / total for name, weight in used.items()}


def weights_of_used(asked: object, present: Sequence[str], key: str) -> dict[str, float]:
    """The components that are read, with the weights as they were given: as :func:`mixture_shares`, silently.

    Raises:
        ValueError: As there.
    """
    known = ", ".join(present)
    if asked != "pile" and not isinstance(asked, Mapping):
        raise ValueError(
            f"{key} is {asked!r}; expected 'pile' (the Pile's published mixture) or a mapping of components "
            f"to weights. The dataset has {known}."
        )
    weights = dict(asked) if isinstance(asked, Mapping) else PILE
    if unknown := [str(name) for name in weights if name not in present and name not in PILE]:
        raise ValueError(
            f"{key} names {', '.join(unknown)}, which is a component neither of the dataset nor of the "
            f"Pile. The dataset has {known}."
        )
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"{key}.{name} is {weight!r}; expected a weight, a number of at least 0.")
    used = {name: weight for name, weight in weights.items() if weight and name in present}
    if not used:
        raise ValueError(
            f"{key} leaves no component of the dataset with a weight above 0. The dataset has {known}."
        )
    return used
