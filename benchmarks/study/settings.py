"""What one run of the study is: its settings, their identity, and what follows from them.

Everything here is arithmetic on plain values; importing it needs neither torch nor Composer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

__all__ = ["CONTEXT", "ROW_TOKENS", "SIZES", "VOCABULARY", "Settings", "Size"]

CONTEXT = 128
"""Positions in a row of the model."""
ROW_TOKENS = 1024
"""Tokens in a row of the prepared data: the context times the largest patch size, 8."""
VOCABULARY = 1024
"""Entries of the tokenizer, which is trained on the corpus."""

_SCHEDULES = ("wsd", "cosine", "cosine_per_stage")
_HOLD = ("positions", "tokens")


@dataclass(frozen=True)
class Size:
    """Shape of a Llama with tied embeddings and heads of 16 dimensions.

    Attributes:
        width: Hidden size.
        layers: Transformer blocks.
        mlp: Inner width of the MLP.
    """

    width: int
    layers: int
    mlp: int

    @property
    def parameters(self) -> int:
        """All parameters; the embedding counts once, being the output layer as well."""
        d = self.width
        block = 4 * d * d + 3 * d * self.mlp + 2 * d
        return VOCABULARY * d + self.layers * block + d

    @property
    def flops_per_position(self) -> int:
        """Forward and backward: ``6 N + 12 n d P`` (Kaplan et al., arXiv 2001.08361), norms left out."""
        norms = (2 * self.layers + 1) * self.width
        return 6 * (self.parameters - norms) + 12 * self.layers * self.width * CONTEXT


SIZES: Mapping[str, Size] = {
    "test": Size(16, 1, 32),
    "0.16M": Size(64, 2, 168),
    "0.31M": Size(80, 3, 216),
    "0.56M": Size(112, 3, 296),
    "5M": Size(256, 6, 680),
}
"""Sizes by name; the name states the parameters."""


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a run on one machine.

    A field that is added later needs a default that leaves earlier runs as they were: only values that
    differ from the defaults enter the identity. Never change a default.

    Args:
        size: A key of :data:`SIZES`.
        tokens_per_parameter: Length of the run: its positions, which are the tokens of the token-level
            twin, divided by the parameters.
        rate: Peak learning rate.
        seed: Decides the initial weights and the order of rows, and nothing else.
        stages: Patch stages as pairs of the patch size and the share of the steps at which the stage
            ends. Empty for the token arm.
        corpus: Name of the prepared corpus.
        positions: Positions of a step.
        hold: ``positions``: a step has as many positions in each stage, hence k times the tokens in a
            patch stage (equal compute). ``tokens``: as many tokens (equal data).
        patch_inputs: As for ``PatchLevel``.
        patch_targets: As for ``PatchLevel``.
        on_switch: As for ``PatchLevel``.
        schedule: ``wsd`` (decay in the last fifth), ``cosine`` over the run, or ``cosine_per_stage``.
        nudge: Relative noise on the initial weights, for the noise floor.
        replica: Counts exact repetitions of a run.

    Raises:
        ValueError: For values out of range.
    """

    size: str
    tokens_per_parameter: int
    rate: float
    seed: int
    stages: tuple[tuple[int, float], ...] = ()
    corpus: str = "pile"
    positions: int = 4096
    hold: str = "positions"
    patch_inputs: bool = True
    patch_targets: bool = True
    on_switch: str = "carry"
    schedule: str = "wsd"
    nudge: float = 0.0
    replica: int = 0

    def __post_init__(self) -> None:
        choices = {"size": tuple(SIZES), "hold": _HOLD, "schedule": _SCHEDULES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(known)}.")
        if self.tokens_per_parameter < 1 or self.rate <= 0:
            raise ValueError("tokens_per_parameter and rate must be positive.")
        ends = [0.0, *(end for _, end in self.stages)]
        if ends != sorted(set(ends)) or ends[-1] >= 1 or any(k < 2 for k, _ in self.stages):
            raise ValueError(f"stages={self.stages!r}; expected patch sizes of at least 2 and rising ends.")
        for k in {1, *(k for k, _ in self.stages)}:
            if self._tokens_of_step(k) % ROW_TOKENS:
                raise ValueError(
                    f"positions={self.positions}: a step of {self._tokens_of_step(k)} tokens (k={k}) is not "
                    f"a whole number of rows of {ROW_TOKENS}."
                )

    @classmethod
    def from_row(cls, values: Mapping[str, Any]) -> Settings:
        """Reads what :meth:`to_row` wrote."""
        stages = tuple((int(k), float(end)) for k, end in values.get("stages", ()))
        given: dict[str, Any] = {**values, "stages": stages}
        return cls(**given)

    def to_row(self) -> dict[str, Any]:
        """The values that differ from the defaults, fit for JSON."""
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in asdict(self).items() if value != defaults.get(name, MISSING)}

    @property
    def identity(self) -> str:
        """A hash of the settings."""
        text = json.dumps(self.to_row(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        tokens = self.tokens_per_parameter * SIZES[self.size].parameters
        return max(round(tokens / self.positions), 1)

    @property
    def switches(self) -> tuple[tuple[int, int], ...]:
        """Patch size and last step (exclusive) of each patch stage."""
        return tuple((k, round(end * self.steps)) for k, end in self.stages)

    @property
    def updates_after_switch(self) -> int:
        """Optimizer steps at token level."""
        return self.steps - (self.switches[-1][1] if self.stages else 0)

    def rows_of_step(self, step: int) -> int:
        """Rows of the prepared data that a step reads."""
        k = next((k for k, end in self.switches if step < end), 1)
        return self._tokens_of_step(k) // ROW_TOKENS

    def twin(self) -> Settings:
        """The token-level run that this one is compared with: same seed, steps and compute."""
        schedule = "cosine" if self.schedule == "cosine_per_stage" else self.schedule
        return replace(
            self,
            stages=(),
            hold="positions",
            patch_inputs=True,
            patch_targets=True,
            on_switch="carry",
            schedule=schedule,
        )

    def _tokens_of_step(self, k: int) -> int:
        tokens_per_position = k if self.patch_inputs and self.hold == "positions" else 1
        return self.positions * tokens_per_position
