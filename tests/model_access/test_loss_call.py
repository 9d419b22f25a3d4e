"""The model's own loss call, while patches take its place and after it."""

from __future__ import annotations

from typing import Any

from patch_algorithm import PatchLevel
from tests.runs.short import (
    make_model,
    make_rows,
    run,
)


def test_a_loss_of_the_instance_is_given_back() -> None:
    model = make_model()
    of_class, calls = model.loss, []

    def loss(outputs: Any, batch: Any) -> Any:
        calls.append(batch["labels"].shape)
        return of_class(outputs, batch)

    model.loss = loss
    run(
        make_rows(16, 16),
        [PatchLevel(k=2, ratio=0.5, rehearse_switch=False)],
        model=model,
        max_duration="4ba",
        device_train_microbatch_size=2,
    )
    assert vars(model)["loss"] is loss
    assert len(calls) == 4, "called for every microbatch of the token stage"
    assert calls[-1] == (2, 16), "and in the token stage with the trainer's own batch"
