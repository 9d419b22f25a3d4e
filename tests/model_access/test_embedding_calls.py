"""Ways to call the input embedding: those that are read in patches, and those that are refused.

Shapes: B rows, P positions, K patch size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patch_algorithm import PatchLevel
from patch_algorithm.model_access.hooks import ModelHooks
from tests.model_access.batches import K, armed, embeddings, make_batch, tokens
from tests.model_access.toys import D, Toy
from tests.runs.short import make_rows, run
from tests.support import VOCABULARY


class ByName(Toy):
    """As T5's and Phi-MoE's modelling code call it here and there."""

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(input=ids)


class Flattened(Toy):
    """As GPT-2's and OPT's modelling code."""

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.view(-1, ids.shape[-1]))


class Casts(Toy):
    """A cast that changes nothing gives the same tensor back."""

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.long().to(self.embed.weight.device).contiguous())


class Recomputed(Toy):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def hidden(self, ids: Tensor) -> Tensor:
        # A reentrant checkpoint has gradients only where an input of its has.
        on = torch.ones((), requires_grad=True)
        body = lambda ids, on: self.embed(ids).tanh() * on  # noqa: E731
        return checkpoint(body, ids, on, use_reentrant=self.reentrant)


@pytest.mark.parametrize("kind", [ByName, Flattened, Casts])
def test_ways_to_call_the_embedding(kind: type[Toy]) -> None:
    model, batch = kind().train(), make_batch()
    hooks = armed(model, batch)
    hooks.check_forward(batch)
    torch.testing.assert_close(embeddings(model, batch), model.embed.weight[batch["patch_ids"]].mean(dim=2))
    model.embed.weight.grad = None
    run(make_rows(8, 12), [PatchLevel(k=K, ratio="1ba")], model=kind(), max_duration="2ba")


class Shifts(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.roll(1, dims=1))


class Clones(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.clamp(min=0))


class AlsoOthers(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.embed(ids.roll(1, dims=1))


class SmallSecondTable(Toy):
    """Too small to be told by its size."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Embedding(VOCABULARY // 2, D)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.values(ids)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Shifts, r"given ids of shape \(4, 4\) that are not the batch's 'input_ids'.*changes its input ids"),
        (Clones, "changes its input ids"),
        (AlsoOthers, "changes its input ids"),
        (SmallSecondTable, rf"a second embedding \(of {VOCABULARY // 2} rows\)"),
    ],
)
def test_models_that_read_other_ids_are_refused(kind: type[Toy], reason: str) -> None:
    """The first three were trained on the unchanged ids without a word, as their shape is the same."""
    model = kind()
    before = model.embed.weight.detach().clone()
    rows = [{key: ids % (VOCABULARY // 2) for key, ids in row.items()} for row in make_rows(8, 12)]
    with pytest.raises(ValueError, match=reason):
        run(rows, [PatchLevel(k=K, ratio="1ba", rehearse_switch=False)], model=model)
    assert torch.equal(model.embed.weight, before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("between", ["nothing", "evaluation", "training forward"])
def test_recomputed_activations_read_what_was_armed(reentrant: bool, between: str) -> None:
    """Whatever else the model is given between the forward and the backward."""
    model, batch = Recomputed(reentrant).train(), make_batch()
    hooks = ModelHooks(model)
    hooks.attach()
    loss = model(batch)["logits"].square().mean()
    if between != "nothing":
        model.train(between != "evaluation")
        plain = model(tokens(5))["logits"]
        torch.testing.assert_close(plain, Recomputed(reentrant)(tokens(5))["logits"], rtol=0, atol=0)
        model.train()
    loss.backward()
    table = model.embed.weight.detach().requires_grad_()
    means = table[batch["patch_ids"]].mean(dim=2).tanh()
    nn.functional.linear(means, model.head.weight, model.head.bias).square().mean().backward()
    torch.testing.assert_close(model.embed.weight.grad, table.grad)


def test_recomputing_from_copies_of_the_ids_is_refused() -> None:
    """A reentrant checkpoint does not see by itself that it computes something else."""

    class Offloaded(Recomputed):
        def hidden(self, ids: Tensor) -> Tensor:
            pack: Callable[[Tensor], Tensor] = lambda tensor: tensor.clone()  # noqa: E731
            with torch.autograd.graph.saved_tensors_hooks(pack, pack):
                return super().hidden(ids)

    with pytest.raises(ValueError, match=r"copies of the ids .*out of the checkpointed part"):
        run(make_rows(8, 12), [PatchLevel(k=K, ratio="1ba", rehearse_switch=False)], model=Offloaded(True))
