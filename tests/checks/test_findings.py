"""Findings: their catalogue, secrets in them, and what has been told already."""

from __future__ import annotations

import doctest

import pytest

from patch_algorithm.checks import CATALOGUE, Severity, by_severity, finding, redaction, skipped
from patch_algorithm.checks.redaction import redact
from patch_algorithm.checks.shown import already_shown, not_yet_shown


def test_a_finding_takes_its_severity_from_the_catalogue() -> None:
    one = finding("k-high", "k=16", "why", "fix")
    assert one.to_json() == {
        "id": "k-high",
        "severity": "warning",
        "found": "k=16",
        "why": "why",
        "fix": "fix",
    }
    assert skipped("needs-gpu", "no GPU").severity == Severity.skipped
    with pytest.raises(KeyError):
        finding("no-such-check", "")


def test_the_worst_come_first() -> None:
    mixed = [
        skipped("needs-gpu", ""),
        finding("passes-over-data", ""),
        finding("k-high", ""),
        finding("bad-value", ""),
    ]
    assert [one.severity.value for one in by_severity(mixed)] == ["error", "warning", "note", "skipped"]


def test_the_catalogue_is_keyed_by_its_ids() -> None:
    assert all(key == check.id and check.summary.endswith(".") for key, check in CATALOGUE.items())


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("s3://me:hunter22@bucket/pile", "hunter22"),
        ("https://host/x?X-Amz-Signature=abcdef0123456789&y=1", "abcdef0123456789"),
        ("https://store/x?sig=abcdefgh%3D", "abcdefgh"),
        ("{'use_auth_token': 'secretvalue'}", "secretvalue"),
        ("api_key: 0123456789", "0123456789"),
        ("WANDB_API_KEY=" + "a1" * 20, "a1" * 20),
        ("a1" * 20, "a1" * 20),
        ("hf_AbCdEfGhIjKlMnOp", "hf_AbCdEfGhIjKlMnOp"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("password='hunter22'", "hunter22"),
    ],
)
def test_secrets_are_hidden(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "train_loader.dataset.max_seq_len=512 reads 128 of the 512 tokens of each row in "
        "s3://bucket/pile/train.",
        "115_200tok",
        "use_auth_token: false",
        "tokenizer.name is 'EleutherAI/gpt-neox-20b'",
        "The run takes 2.6e+10 tokens: 0.4 passes.",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(redaction).failed == 0


def test_what_was_told_is_not_told_again() -> None:
    both = [finding("k-high", ""), finding("ratio-high", "")]
    with already_shown(["k-high"]):
        assert [one.id for one in not_yet_shown(both)] == ["ratio-high"]
        with already_shown(["ratio-high"]):
            assert not_yet_shown(both) == []
    assert not_yet_shown(both) == both, "it ends with the block"
