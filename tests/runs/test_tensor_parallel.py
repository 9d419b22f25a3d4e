"""Tensor parallelism is refused; `docs/compatibility.md` says what was seen of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from composer.utils.parallelism import TPConfig

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm.compatibility import check_other_algorithms
from tests.runs.short import make_rows, make_trainer


def test_tensor_parallelism_is_refused() -> None:
    # The trainer itself takes a tp_config with several processes only.
    trainer = make_trainer(make_rows(8, 16), [PatchLevel(k=4, ratio=0.5)])
    state: Any = SimpleNamespace(algorithms=trainer.state.algorithms, tp_config=None)
    check_other_algorithms(state, PatchLevel)
    state.tp_config = TPConfig(tensor_parallel_degree=2)
    with pytest.raises(ValueError, match=r"tensor parallelism \(tp_config\).*FSDP or DDP"):
        check_other_algorithms(state, PatchLevel)
