"""Patch sizes, the share of the run in patches, and the tokens for each parameter."""

from __future__ import annotations

import pytest

from patch_algorithm.checks.stage_choice import BREAK_EVEN, check_budget, check_stage_choice, loss_difference


@pytest.mark.parametrize(
    ("ks", "switch", "end", "reset", "expected"),
    [
        ([4], 600, 900, False, []),
        ([8, 4], 600, 900, False, []),
        ([], 0, 900, False, []),
        ([4], None, None, False, []),
        ([16, 4], 600, 900, False, ["k-high"]),
        ([16], None, None, False, ["k-high"]),
        ([4], 7300, 9000, False, ["ratio-high"]),
        ([4], 7200, 9000, False, []),
        ([4], 200, 299, False, ["token-stage-short"]),
        ([4], 600, 900, True, ["token-stage-short"]),
        ([4], 6000, 9000, True, []),
        ([4], 900, 900, False, ["no-switch"]),
    ],
)
def test_stages(ks: list[int], switch: int | None, end: int | None, reset: bool, expected: list[str]) -> None:
    assert [one.id for one in check_stage_choice(ks, switch, end, reset)] == expected


@pytest.mark.parametrize(("end", "words"), [(3, "has 1 step."), (4, "has 2 steps.")])
def test_one_step_is_one_step(end: int, words: str) -> None:
    assert words in check_stage_choice([4], 2, end, False)[0].found


# Tables 3 and 4 of arXiv 2407.12665: tokens per parameter, perplexity of the patch run and of the token run.
PUBLISHED = {
    122: (12.84, 12.50),
    243: (11.80, 11.71),
    486: (11.17, 11.28),
    973: (10.68, 10.94),
    461: (9.10, 9.18),
    277: (8.23, 8.18),
    133: (7.24, 7.11),
}


def test_the_fit_is_of_the_papers_points() -> None:
    import math

    for per_parameter, (patch, token) in PUBLISHED.items():
        assert loss_difference(per_parameter) == pytest.approx(math.log(patch / token), abs=0.006)
    assert loss_difference(BREAK_EVEN) == pytest.approx(0, abs=1e-4)


def test_tokens_for_each_parameter() -> None:
    (found,) = check_budget(26e9, 1_316_000_000)
    assert found.id == "tokens-per-parameter"
    assert "19.8 tokens per parameter" in found.found
    assert "0.07 nats above" in found.why
    assert "extrapolates below its 122" in found.why
    assert "100M" not in found.why
    assert "extrapolates" not in check_budget(200e9, 10**9)[0].why
    assert "100M" in check_budget(1e6, 10**6)[0].why
    assert not check_budget(360e9, 370_000_000)
    assert not check_budget(None, 10)
