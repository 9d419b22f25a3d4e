"""LoRA adapters, of layers and of the embedding itself, train in patches as the whole model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from composer import Trainer
from composer.models import HuggingFaceModel
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model

from patch_algorithm import PatchLevel
from patch_algorithm.model_access.reading import input_embedding
from tests.runs.families import Witness, family, plain_model
from tests.runs.reference import patch_step, token_step
from tests.support import config, metrics, train, weights

K, L = 4, 8
STEPS = 3
_LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
# The embedding of the first is a plain one; the others' is wrapped.
ADAPTERS: dict[str, dict[str, Any]] = {
    "layers": {"target_modules": ["q_proj", "v_proj"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 3, 94]},
}
WRAPPERS = {
    "layers": "Embedding",
    "embedding": "Embedding",
    "embedding saved": "ModulesToSaveWrapper",
    "some tokens": "TrainableTokensWrapper",
}


def adapted(folder: Path, name: str = "layers", **changes: Any) -> dict[str, Any]:
    """A tiny Llama with adapters; its state dict holds the frozen weights too."""
    adapters = {"peft_config": _LORA | ADAPTERS[name], "should_save_peft_only": False}
    return family("llama", folder) | adapters | changes


def run(corpus: Path, model: dict[str, Any], patches: bool = True, **changes: Any) -> tuple[Trainer, Witness]:
    algorithms = {"patch_level": {"k": K, "ratio": 0.5, "seq_len": L}} if patches else {}
    cfg = config(corpus, model, algorithms=algorithms | {"witness": {}}, **changes)
    del cfg["eval_loader"], cfg["eval_interval"]
    trainer = train(cfg)
    return trainer, next(a for a in trainer.state.algorithms if isinstance(a, Witness))


@pytest.mark.parametrize(
    "name",
    ["layers", "embedding", *(pytest.param(n, marks=pytest.mark.slow) for n in list(ADAPTERS)[2:])],
)
def test_adapters_train_in_both_stages(name: str, corpus: Path, tmp_path: Path) -> None:
    model = adapted(tmp_path, name)
    trainer, witness = run(corpus, model)
    assert metrics(trainer, "patch_level/stage") == [0.0] * STEPS + [1.0] * STEPS
    assert type(input_embedding(trainer.state.model)).__name__ == WRAPPERS[name]

    plain = plain_model(model, corpus).train()
    plain.load_state_dict(witness.weights[0])
    raw = witness.raw[0]
    expected = patch_step(plain, raw["input_ids"], raw["labels"], K)
    torch.testing.assert_close(witness.logits[0], expected.logits, rtol=1e-5, atol=1e-6)
    assert metrics(trainer, "loss/train/total")[0] == pytest.approx(expected.language.item(), rel=1e-6)
    expected.language.backward()
    trained = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    torch.testing.assert_close(witness.gradients[0], trained, rtol=1e-4, atol=1e-6)

    plain.load_state_dict(witness.weights[STEPS])
    raw = {key: witness.raw[STEPS][key].reshape(-1, L) for key in ("input_ids", "labels")}
    expected = token_step(plain, raw["input_ids"], raw["labels"])
    assert metrics(trainer, "loss/train/total")[STEPS] == pytest.approx(expected.language.item(), rel=1e-6)
    check_what_moved(trained, witness.weights[0], witness.weights[STEPS], weights(trainer))


def check_what_moved(trained: Any, first: Any, switched: Any, last: Any) -> None:
    moved = {name for name in first if not torch.equal(first[name], switched[name])}
    assert any("lora_B" in name for name in moved)
    assert moved <= set(trained)
    assert {name for name in first if not torch.equal(switched[name], last[name])} == set(trained)


def test_checkpoints_and_exports_hold_what_they_hold_without_us(corpus: Path, tmp_path: Path) -> None:
    """The adapters alone, and they load into the base model again."""
    model = adapted(tmp_path, should_save_peft_only=True)

    def files(name: str, patches: bool) -> tuple[set[str], set[str], Trainer]:
        exporter = {"save_folder": str(tmp_path / name), "save_interval": "6ba", "precision": "float32"}
        trainer, _ = run(
            corpus,
            model,
            patches,
            callbacks={"hf_checkpointer": exporter},
            save_folder=str(tmp_path / name / "checkpoints"),
            save_interval="6ba",
        )
        checkpoint = torch.load(tmp_path / name / "checkpoints" / "ep0-ba6-rank0.pt", weights_only=False)
        exported = tmp_path / name / "huggingface" / "ba6"
        return set(checkpoint["state"]["model"]), {file.name for file in exported.iterdir()}, trainer

    ours, stock = files("ours", True), files("stock", False)
    assert ours[:2] == stock[:2]
    assert "adapter_model.safetensors" in ours[1]
    assert all("lora" in name for name in ours[0])

    trained: Any = ours[2].state.model.model.eval()  # pyright: ignore
    base: Any = transformers.AutoModelForCausalLM.from_config(trained.config)
    frozen = {name: p for name, p in trained.get_base_model().state_dict().items() if "lora" not in name}
    base.load_state_dict({name.replace("base_layer.", ""): p for name, p in frozen.items()})
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "ours" / "huggingface" / "ba6")).eval()
    ids = torch.arange(16).view(2, 8)
    with torch.no_grad():
        expected = trained(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-6)
        with loaded.disable_adapter():  # or the adapters have not been there
            assert not torch.allclose(loaded(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_with_adapters_resumes(corpus: Path, tmp_path: Path) -> None:
    model = adapted(tmp_path)
    saves: dict[str, Any] = {"save_folder": str(tmp_path / "whole"), "save_interval": "2ba"}
    whole, _ = run(corpus, model, **saves)
    resumed, _ = run(corpus, model, load_path=str(tmp_path / "whole" / "ep0-ba2-rank0.pt"))
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert metrics(resumed, "patch_level/stage") == [0.0] + [1.0] * STEPS


def test_prompt_tuning_is_refused(corpus: Path, tmp_path: Path) -> None:
    llama: Any = plain_model(family("llama", tmp_path), corpus).model
    prompts = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    model = HuggingFaceModel(get_peft_model(llama, prompts), shift_labels=True)
    with pytest.raises(ValueError, match=r"uses prompt tuning \(.*PROMPT_TUNING.*LoRA"):
        Trainer(model=model, algorithms=[PatchLevel()], progress_bar=False)
