"""Checks of what is installed: versions, registry entries, packages for GPUs, known advisories, folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from patch_algorithm.checks.finding import Finding, finding

__all__ = ["TESTED", "EnvironmentFacts", "check_environment"]

TESTED: dict[str, str] = {
    "torch": "2.7.0",
    "mosaicml": "0.32.1",
    "llm-foundry": "0.22.0",
    "mosaicml-streaming": "0.12.0",
    "transformers": "4.51.3",
}
"""The versions of ``uv.lock``, with which the tests run."""


@dataclass(frozen=True)
class EnvironmentFacts:
    """What is installed here.

    Attributes:
        python: The version of Python.
        versions: The version of each package of :data:`TESTED` and of some others; ``None`` if missing.
        ranges: The range of each that this package declares, as its metadata has it.
        out_of_range: Those of them whose version is outside.
        not_registered: Names of this package that llm-foundry does not find.
        gpus: The GPUs.
        unwritable: Folders that cannot be written, by what they are for.
    """

    python: str
    versions: Mapping[str, str | None]
    ranges: Mapping[str, str] = field(default_factory=dict)
    out_of_range: tuple[str, ...] = ()
    not_registered: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    unwritable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Advisory:
    package: str
    below: tuple[int, ...]
    found: str
    why: str
    fix: str


_ADVISORIES = (
    _Advisory(
        "mosaicml",
        (0, 33),
        "unpickles the checkpoints that it loads.",
        "A checkpoint can run any code when it is loaded; loading was restricted to tensors and plain values "
        "after this version (composer pull request 3937).",
        "Load only checkpoints that you trust.",
    ),
    _Advisory(
        "torch",
        (2, 10),
        "is affected by CVE-2026-24747.",
        "It is listed for versions below 2.10, which Composer 0.32 does not allow yet. Whether your use is "
        "affected is in the advisory.",
        "Load only checkpoints and weights that you trust.",
    ),
    _Advisory(
        "ray",
        (2, 54),
        "has known advisories below 2.54.",
        "The converter's engine `ray` starts or joins a Ray cluster, and Ray runs the code that it is sent.",
        "Use the newest ray, and keep the ports of the cluster private.",
    ),
)


def check_environment(facts: EnvironmentFacts) -> list[Finding]:
    """Checks an installation."""
    found: list[Finding] = []
    for package, tested in TESTED.items():
        installed = facts.versions.get(package)
        if installed is None:
            found.append(_missing(package, tested))
        elif package in facts.out_of_range:
            found.append(_outside(package, installed, facts.ranges.get(package, ""), tested))
        elif _release(installed) != _release(tested):
            found.append(_other(package, installed, tested))
    if facts.not_registered:
        found.append(_not_registered(facts.not_registered))
    found += _gpu(facts)
    for advisory in _ADVISORIES:
        installed = facts.versions.get(advisory.package)
        if installed is not None and _release(installed) < advisory.below:
            found.append(
                finding(
                    "advisory", f"{advisory.package} {installed} {advisory.found}", advisory.why, advisory.fix
                )
            )
    for purpose, folder in facts.unwritable.items():
        found.append(
            finding(
                "not-writable",
                f"{purpose}: {folder} cannot be written.",
                "Loaders, converters and Composer need it.",
                "Change its permissions, or set the variable that names it to another folder.",
            )
        )
    return found


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what builds add to it (``+cpu``, ``.post1``)."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def _missing(package: str, tested: str) -> Finding:
    return finding(
        "package-missing",
        f"{package} is not installed.",
        "Training needs it.",
        f"uv pip install '{package}=={tested}', or `uv sync` in a checkout.",
    )


def _outside(package: str, installed: str, declared: str, tested: str) -> Finding:
    return finding(
        "untested-version",
        f"{package} {installed}; this package declares {declared or 'another version'}.",
        "It was installed despite the declared range, by an override or by hand. The tests have not been run "
        "with it.",
        f"Install {package}=={tested}, or run the tests with yours: `uv run pytest -n 2`.",
    )


def _other(package: str, installed: str, tested: str) -> Finding:
    return finding(
        "not-the-tested-version",
        f"{package} {installed}; the tests run with {tested}.",
        "It is within the declared range.",
        "Nothing. `uv sync --locked` in a checkout installs the tested versions.",
    )


def _not_registered(names: tuple[str, ...]) -> Finding:
    return finding(
        "not-registered",
        f"llm-foundry does not find {', '.join(names)}.",
        "The names are entry points of this package. They are missing if it is on the path but not "
        "installed, or if it was installed for another Python.",
        "Install it: uv pip install -e . (or uv sync).",
    )


def _gpu(facts: EnvironmentFacts) -> list[Finding]:
    if not facts.gpus:
        return [
            finding(
                "no-gpu",
                "This machine has no GPU that torch can use.",
                "On a CPU only fp32 and small models make sense; yamls/quickstart.yaml is one.",
                "Nothing, if this is intended. Otherwise check the driver (nvidia-smi) and that torch was "
                "built for CUDA.",
            )
        ]
    if facts.versions.get("flash-attn") is not None:
        return []
    return [
        finding(
            "no-flash-attention",
            "flash-attn is not installed.",
            "MPT asks for it by default (attn_impl: flash, loss_fn: fused_crossentropy).",
            "Install the extra `gpu`, or set attn_impl: torch and loss_fn: torch_crossentropy.",
        )
    ]
