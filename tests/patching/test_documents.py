"""Documents in patches against hand-drawn rows, and what holds for any rows.

Rows are drawn with a letter for each token's document and a dot for padding, patches between bars.

Shapes: B rows, T tokens a row, K patch size, P positions, D hidden size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patch_algorithm.patching import (
    PATCH_IDS,
    PATCH_MASK,
    PATCH_TARGETS,
    cut_batch,
    fold_batch,
    mean_of_patch,
)
from patch_algorithm.patching.documents import documents_of, number_documents, positions_in_documents
from tests.oracle import IGNORED, random_logits

PADDING = "."
KEYS = ("sequence_id", "position_ids")
DRAWN = {
    # Documents of 1, k - 1, k and k + 1 tokens; the first is read nowhere, of D four tokens are.
    "all lengths": ("aBBB|CCCC|DDDD|DEEE", "aBBB CCCC DDDD dEEE", [0, 1, 2, 3], [0, 0, 0, 0]),
    "long ones": ("DDDD|DBBB|IIII|IIII", "DDDD dBBB IIII IIII", [0, 1, 2, 2], [0, 0, 0, 1]),
    "k, then 1": ("CCCC|AFFF|FFFF|GGGG", "CCCC aFFF FFFF GGGG", [0, 1, 1, 2], [0, 0, 1, 0]),
    "k - 1, then 1": ("BBBA|EEED|FFFF|FGGG", "bbbA eeeD FFFF fGGG", [0, 1, 2, 3], [0, 0, 0, 0]),
    "only ones": ("ABCD|EFGH|IJKL|MNOP", "abcD efgH ijkL mnoP", [0, 1, 2, 3], [0, 0, 0, 0]),
    "one": ("AAAA|AAAA|AAAA|AAAA", "AAAA AAAA AAAA AAAA", [0, 0, 0, 0], [0, 1, 2, 3]),
    "padded right": ("DDDD|DBBB|A...|....", "DDDD dBBB A... ....", [0, 1, 2, -1], [0, 0, 0, 0]),
    "ends in padding": ("DDDD|DDB.|....|....", "DDDD ddB. .... ....", [0, 1, -1, -1], [0, 0, 0, 0]),
    "padded left": ("...D|DDDD|EEEF|FFFF", "...D DDDD eeeF FFFF", [0, 0, 1, 1], [0, 1, 0, 1]),
    "a patch padded left": ("....|.DDD|DDEE|EEEE", ".... .DDD ddEE EEEE", [-1, 0, 1, 1], [0, 0, 0, 1]),
    "padding inside": ("AA..|..AA|A..B|BBBB", "AA.. ..AA a..B BBBB", [0, 0, 1, 1], [0, 1, 0, 1]),
}
"""The row, its tokens that are read (capitals), and each patch's document and position."""


def drawn(row: str, keys: tuple[str, ...] = KEYS, masked: bool | None = None) -> dict[str, Any]:
    """A batch of one row of the drawing; the values of padding are what loaders leave there."""
    letters = [letter.upper() for letter in row if letter not in "| "]
    ids_1T = torch.arange(1, len(letters) + 1)[None]
    mask_1T = torch.tensor([[int(letter != PADDING) for letter in letters]])
    batch: dict[str, Any] = {"input_ids": ids_1T, "labels": ids_1T.masked_fill(mask_1T == 0, IGNORED)}
    if masked or (masked is None and PADDING in letters):
        batch["attention_mask"] = mask_1T
    order = list(dict.fromkeys(letter for letter in letters if letter != PADDING))
    seen: dict[str, int] = {}
    numbers, positions = [], []
    for letter in letters:
        # Collators give padding -1, or the number that separators among it add up to.
        numbers.append(len(order) + 3 if letter == PADDING else order.index(letter))
        positions.append(0 if letter == PADDING else seen.setdefault(letter, 0))
        seen[letter] = seen.get(letter, 0) + (letter != PADDING)
    if "sequence_id" in keys:
        batch["sequence_id"] = torch.tensor([numbers])
    if "position_ids" in keys:
        batch["position_ids"] = torch.tensor([positions])
    return batch


@pytest.mark.parametrize("masked", [None, True], ids=["", "mask"])
@pytest.mark.parametrize("keys", [KEYS, KEYS[:1], KEYS[1:]], ids=["both", *KEYS])
@pytest.mark.parametrize("name", DRAWN)
def test_drawn_rows(name: str, keys: tuple[str, ...], masked: bool | None) -> None:
    row, read, documents, positions = DRAWN[name]
    batch = drawn(row, keys, masked)
    folded = fold_batch(batch, 4, document_keys=keys)
    assert folded[PATCH_MASK].tolist() == [
        [[letter.isupper() for letter in patch] for patch in read.split(" ")]
    ]
    assert folded.get("sequence_id", torch.tensor([documents])).tolist() == [documents]
    assert folded.get("position_ids", torch.tensor([positions])).tolist() == [positions]
    assert set(keys) == set(KEYS) & set(folded)
    if "attention_mask" in batch:
        assert folded["attention_mask"].tolist() == [[int(number >= 0) for number in documents]]
    else:
        assert "attention_mask" not in folded

    concatenated = fold_batch(batch, 4)
    for key in (PATCH_IDS, PATCH_TARGETS, "input_ids"):  # targets cross documents, as at token level
        assert torch.equal(folded[key], concatenated[key])
    for key in ("total_tokens", "loss_generating_tokens"):
        assert folded[key] == concatenated[key]


def test_the_numbers_of_a_drawn_batch() -> None:
    """Written out once, targets and counts included."""
    batch = drawn("aab|bbc|c..")
    folded = fold_batch(batch, 3, document_keys=KEYS)
    assert folded[PATCH_IDS].tolist() == [[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]
    assert folded[PATCH_MASK].int().tolist() == [[[0, 0, 1], [0, 0, 1], [1, 0, 0]]]
    assert folded[PATCH_TARGETS].tolist() == [[[4, 5, 6], [7, IGNORED, IGNORED], [IGNORED] * 3]]
    assert folded["sequence_id"].tolist() == [[0, 1, 1]]
    assert folded["position_ids"].tolist() == [[0, 0, 1]]
    assert (folded["total_tokens"], folded["loss_generating_tokens"]) == ([7], [4])


@pytest.mark.parametrize(
    ("sequence_id", "documents"),
    [
        ([[4, 4, 9, 9, 9, 12]], [[0, 0, 1, 1, 1, 2]]),  # neither from 0 nor dense
        ([[7, 7, 3, 3, 5, 5]], [[0, 0, 1, 1, 2, 2]]),  # in no order
        ([[0, 0, 1, 1, -1, -1]], [[0, 0, 1, 1, -1, -1]]),  # -1 is padding, as a mask would say
        ([[-1, -1, 2, 2, 3, 3]], [[-1, -1, 0, 0, 1, 1]]),
        ([[-1] * 6, [0] * 6], [[-1] * 6, [0] * 6]),
    ],
)
def test_documents_by_sequence_id(sequence_id: list[list[int]], documents: list[list[int]]) -> None:
    numbers_BT = documents_of({"sequence_id": torch.tensor(sequence_id)}, KEYS)
    assert numbers_BT is not None
    assert numbers_BT.tolist() == documents
    assert numbers_BT.dtype is torch.int64


@pytest.mark.parametrize(
    ("positions", "mask", "documents"),
    [
        ([5, 6, 7, 0, 1, 2], None, [0, 0, 0, 1, 1, 1]),  # the row starts inside a document
        ([0, 0, 0, 1, 0, 0], None, [0, 1, 2, 2, 3, 4]),
        ([0, 1, 2, 9, 10, 11], None, [0] * 6),  # positions that skip do not start anew
        ([0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, -1, -1]),
        ([1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1], [-1, -1, 0, 0, 1, 1]),
        ([0, 1, 1, 1, 2, 3], [1, 1, 0, 0, 1, 1], [0, 0, -1, -1, 0, 0]),  # a gap is no border
    ],
)
def test_documents_by_positions(positions: list[int], mask: list[int] | None, documents: list[int]) -> None:
    batch = {"position_ids": torch.tensor([positions])}
    if mask is not None:
        batch["attention_mask"] = torch.tensor([mask])
    numbers_BT = documents_of(batch, KEYS)
    assert numbers_BT is not None
    assert numbers_BT.tolist() == [documents]


def test_a_batch_without_the_keys_asked_for_has_no_documents() -> None:
    batch = drawn("AABB")
    assert documents_of(batch, ()) is None
    assert documents_of(drawn("AABB", keys=KEYS[:1]), KEYS[1:]) is None
    assert PATCH_MASK not in fold_batch(batch, 2)
    assert set(KEYS).isdisjoint(fold_batch(batch, 2))


def test_sequence_id_goes_before_positions() -> None:
    batch = drawn("AABB") | {"position_ids": torch.tensor([[0, 0, 0, 0]])}
    assert fold_batch(batch, 2, document_keys=KEYS)["position_ids"].tolist() == [[0, 0]]
    assert fold_batch(batch, 1, document_keys=KEYS)["position_ids"].tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("keys", [KEYS, KEYS[:1], KEYS[1:]], ids=["both", *KEYS])
def test_documents_of_cut_rows_start_anew_in_each_piece(keys: tuple[str, ...]) -> None:
    cut = cut_batch(drawn("aaab|bbbb|bccc|dddd", keys), 8, keys)
    sequence_id = [[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2, 2]]
    positions = [[0, 1, 2, 0, 1, 2, 3, 4], [0, 0, 1, 2, 0, 1, 2, 3]]
    assert cut.get("sequence_id", torch.tensor(sequence_id)).tolist() == sequence_id
    assert cut.get("position_ids", torch.tensor(positions)).tolist() == positions
    folded = fold_batch(cut, 4, document_keys=keys)
    assert folded[PATCH_MASK].int().tolist() == [
        [[0, 0, 0, 1], [1, 1, 1, 1]],
        [[0, 1, 1, 1], [1, 1, 1, 1]],
    ]
    assert folded.get("sequence_id", torch.tensor([[0, 0], [0, 1]])).tolist() == [[0, 0], [0, 1]]
    assert folded.get("position_ids", torch.tensor([[0, 1], [0, 0]])).tolist() == [[0, 1], [0, 0]]


def test_a_piece_of_nothing_but_padding_has_a_document_where_its_mask_says_so() -> None:
    """Its first token is unmasked, and a model that is told of no document there fails."""
    cut = cut_batch(drawn("aab.|...."), 4, KEYS)
    assert cut["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert cut["sequence_id"].tolist() == [[0, 0, 1, -1], [0, -1, -1, -1]]
    folded = fold_batch(cut, 2, document_keys=KEYS)
    assert folded["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert folded["sequence_id"].tolist() == [[0, 1], [0, -1]]
    assert folded["loss_generating_tokens"] == [1, 0]


def test_positions_that_the_model_does_not_take_are_dropped() -> None:
    cut = cut_batch(drawn("aabb|bbbb"), 4, ("sequence_id",))
    assert "position_ids" not in cut
    assert "position_ids" not in fold_batch(cut, 2, document_keys=("sequence_id",))


def test_single_tokens_that_predict_the_next_k_keep_their_documents() -> None:
    batch = drawn("aab|bc.")
    folded = fold_batch(batch, 3, patch_inputs=False, document_keys=KEYS)
    assert folded[PATCH_MASK].shape == (1, 6, 1)
    assert folded["sequence_id"].tolist() == [[0, 0, 1, 1, 2, -1]]
    assert folded["position_ids"].tolist() == [[0, 1, 0, 1, 0, 0]]
    assert folded["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0]]


@st.composite
def rows_of_documents(draw: st.DrawFn) -> str:
    """A drawing without bars: documents of any lengths, padded on either side or not."""
    lengths = draw(st.lists(st.integers(1, 11), min_size=1, max_size=12))
    row = "".join(chr(ord("A") + index) * length for index, length in enumerate(lengths))
    padding = PADDING * draw(st.integers(0, 12))
    return draw(st.sampled_from([row, row + padding, padding + row]))


patch_sizes = st.sampled_from([1, 2, 3, 4, 8])
key_choices = st.sampled_from([KEYS, KEYS[:1], KEYS[1:]])


@given(row=rows_of_documents(), k=patch_sizes, keys=key_choices)
def test_each_patch_reads_one_document_that_of_its_last_real_token(
    row: str, k: int, keys: tuple[str, ...]
) -> None:
    folded = fold_batch(drawn(row, keys, masked=True), k, document_keys=keys)
    padded = row + PADDING * (-len(row) % k)
    for start, mask in zip(range(0, len(padded), k), folded[PATCH_MASK][0].tolist(), strict=True):
        patch = padded[start : start + k]
        owner = next((letter for letter in reversed(patch) if letter != PADDING), None)
        assert mask == [letter == owner for letter in patch]


@given(row=rows_of_documents(), k=patch_sizes)
def test_numbers_are_dense_and_positions_restart(row: str, k: int) -> None:
    folded = fold_batch(drawn(row, masked=True), k, document_keys=KEYS)
    numbers, positions = folded["sequence_id"][0].tolist(), folded["position_ids"][0].tolist()
    real = folded["attention_mask"][0].tolist()
    present = [number for number in numbers if number >= 0]
    assert present == sorted(present)
    assert set(present) == set(range(len(set(present))))
    assert max(present) < len(numbers)  # MPT pads its one-hot by P minus the number of documents
    assert real == [int(number >= 0) for number in numbers]
    counted = [numbers[:place].count(number) for place, number in enumerate(numbers)]
    assert positions == [count if number >= 0 else 0 for count, number in zip(counted, numbers, strict=True)]


@given(row=rows_of_documents(), k=patch_sizes, seed=st.integers(0, 2**31))
def test_no_patch_changes_with_the_tokens_of_another_document(row: str, k: int, seed: int) -> None:
    batch = drawn(row, masked=True)
    folded = fold_batch(batch, k, document_keys=KEYS)
    embeds_1PKD = random_logits(seed, *folded[PATCH_IDS].shape, 2).detach()
    means_1PD = mean_of_patch(embeds_1PKD, folded[PATCH_MASK])
    padded = row + PADDING * (-len(row) % k)
    for letter in set(row) - {PADDING}:
        own_1PK = torch.tensor([other == letter for other in padded]).view(1, -1, k)
        others = mean_of_patch(embeds_1PKD.masked_fill(~own_1PK[..., None], 7.0), folded[PATCH_MASK])
        read_1P = (folded[PATCH_MASK] & own_1PK).any(dim=-1)
        assert torch.equal(others[read_1P], means_1PD[read_1P])


@given(length=st.integers(1, 40), k=patch_sizes, keys=key_choices, left=st.integers(0, 9))
def test_one_document_is_folded_as_none(length: int, k: int, keys: tuple[str, ...], left: int) -> None:
    batch = drawn(PADDING * left + "A" * length, keys, masked=True)
    folded, plain = fold_batch(batch, k, document_keys=keys), fold_batch(batch, k)
    for key in plain:
        same = torch.equal if isinstance(plain[key], Tensor) else lambda a, b: a == b
        assert same(folded[key], plain[key].bool() if key == PATCH_MASK else plain[key]), key
    real = int(plain["attention_mask"].sum())
    if "position_ids" in keys:
        assert folded["position_ids"][0, -real:].tolist() == list(range(real))


@given(row=rows_of_documents(), k=st.sampled_from([2, 3, 4]), data=st.data())
def test_the_order_of_the_tokens_of_a_patch_in_one_document_is_irrelevant(
    row: str, k: int, data: st.DataObject
) -> None:
    batch = drawn(row, masked=True)
    order = list(range(len(row)))
    for start in range(0, len(row) - k + 1, k):
        if len(set(row[start : start + k])) == 1:
            order[start : start + k] = data.draw(st.permutations(order[start : start + k]))
    shuffled = batch | {key: batch[key][:, order] for key in ("input_ids", "labels")}
    one, other = (fold_batch(b, k, document_keys=KEYS) for b in (batch, shuffled))
    table_VD = random_logits(3, len(row) + 1, 4).detach()
    means = [mean_of_patch(table_VD[b[PATCH_IDS]], b[PATCH_MASK]) for b in (one, other)]
    torch.testing.assert_close(*means, rtol=1e-12, atol=1e-14)
    for key in ("sequence_id", "position_ids", "attention_mask", PATCH_MASK):
        assert torch.equal(one[key], other[key])
    assert torch.equal(one[PATCH_TARGETS].sort().values, other[PATCH_TARGETS].sort().values)


@given(row=rows_of_documents(), pieces=st.integers(1, 4), k=st.sampled_from([1, 2, 4]))
def test_cutting_at_patches_keeps_what_each_patch_reads(row: str, pieces: int, k: int) -> None:
    row = row + PADDING * (-len(row) % (pieces * k))
    batch = drawn(row, masked=True)
    length = len(row) // pieces
    whole = fold_batch(batch, k, document_keys=KEYS)[PATCH_MASK]
    cut = fold_batch(cut_batch(batch, length, KEYS), k, document_keys=KEYS)
    for piece, of_whole in zip(cut[PATCH_MASK], whole[0].split(length // k), strict=True):
        if of_whole.any():
            assert torch.equal(piece, of_whole)
        else:
            assert piece.nonzero().tolist() == [[0, 0]]  # the token that keeps models from failing
    assert int(cut["sequence_id"].max()) < length // k


def test_numbering_and_positions_take_several_rows() -> None:
    documents_BT = torch.tensor([[2, 2, -1, 5, 5, 5], [-1, 0, 0, 0, 0, 1], [-1] * 6])
    numbers_BT = number_documents(documents_BT)
    assert numbers_BT.tolist() == [[0, 0, -1, 1, 1, 1], [-1, 0, 0, 0, 0, 1], [-1] * 6]
    assert positions_in_documents(numbers_BT).tolist() == [[0, 1, 0, 0, 1, 2], [0, 0, 1, 2, 3, 0], [0] * 6]
