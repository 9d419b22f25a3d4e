"""What a run exports, mid-way or at its end, is an ordinary Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catalogue
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.runs.families import Witness, family, plain_model
from tests.support import config, train, weights


@pytest.fixture(autouse=True)
def registries_put_back() -> Iterator[None]:
    """The exported MPT's own code registers its layers under the names of llm-foundry's."""
    entries = dict(catalogue.REGISTRY)
    yield
    catalogue.REGISTRY.clear()
    catalogue.REGISTRY.update(entries)


@pytest.mark.filterwarnings("ignore:alibi or rope is turned on")  # from the export's own code
@pytest.mark.parametrize(
    "name", ["mpt-tied-rope", pytest.param("mpt-untied", marks=pytest.mark.slow), "llama", "gpt2"]
)
def test_exports_of_both_stages_give_the_logits_of_the_trained_model(
    name: str, corpus: Path, tmp_path: Path
) -> None:
    model = family(name, tmp_path)
    folder = tmp_path / "exports"
    exporter = {"save_folder": str(folder), "save_interval": "2ba", "precision": "float32"}
    trainer = train(
        config(
            corpus,
            model,
            algorithms={"patch_level": {"ratio": "3ba"}, "witness": {}},
            callbacks={"hf_checkpointer": exporter},
            max_duration="4ba",
        )
    )
    witness = next(a for a in trainer.state.algorithms if isinstance(a, Witness))
    plain = plain_model(model, corpus)
    # Two steps in, the run is in its patch stage; its last export is of the token stage.
    for batch, trained in ((2, witness.weights[2]), (4, weights(trainer))):
        plain.load_state_dict(trained)
        exported = load(folder / "huggingface" / f"ba{batch}", own_code=model["name"] == "mpt_causal_lm")
        assert_same_logits(plain.model, exported)
    assert not torch.equal(next(iter(witness.weights[2].values())), next(iter(weights(trainer).values())))


def load(folder: Path, own_code: bool) -> Any:
    # Without its own code an MPT is loaded as transformers' older one, with other positions.
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own_code)


def assert_same_logits(trained: Any, exported: Any) -> None:
    ids = torch.randint(0, 94, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained.eval()(input_ids=ids).logits
        logits = exported.eval()(input_ids=ids).logits
    assert logits.dtype == torch.float32
    # A plain load may choose another attention kernel than llm-foundry's default.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
