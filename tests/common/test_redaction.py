"""Secrets in any spelling are taken out of output; what only looks like one stays."""

from __future__ import annotations

import doctest

import pytest

from patch_algorithm.common import redaction
from patch_algorithm.common.redaction import redact, redact_values

HEX = "a1" * 20


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        # URLs
        ("s3://me:hunter22@bucket/pile", "hunter22"),
        ("s3://key:ab/cd+ef=@bucket/pile", "cd+ef"),
        ("postgresql+psycopg2://user:p@ss:w0rd@db:5432/mlflow", "w0rd"),
        ("https://justatoken1234@github.com/a/b.git", "justatoken1234"),
        ("https://host/x?X-Amz-Signature=abcdef0123456789&y=1", "abcdef0123456789"),
        ("https://host/x?X-Amz-Security-Token=FwoGZXIvYXdzE", "FwoGZXIvYXdzE"),
        ("https://store/x?sv=2020&sig=abcdefgh%3D", "abcdefgh"),
        ("https://maps/x?key=abcdefgh", "abcdefgh"),
        ("https://hooks.slack.com/services/T0000/B0000/XXXXXXXX", "T0000/B0000/XXXXXXXX"),
        ("https://discord.com/api/webhooks/123/abcDEF", "123/abcDEF"),
        # headers
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("{'Authorization': 'Bearer abcdefghij'}", "abcdefghij"),
        ('{"authorization": "token 0123456789abcdef"}', "0123456789abcdef"),
        ("Authorization=plain-secret", "plain-secret"),
        ("sent Bearer abcdef0123456789", "abcdef0123456789"),
        ("X-Api-Key: 0123456789", "0123456789"),
        ("Set-Cookie: session=abcdef", "session=abcdef"),
        # names of variables and keys
        ("{'use_auth_token': 'secretvalue'}", "secretvalue"),
        ("api_key: 0123456789", "0123456789"),
        ("apiKey: 0123456789", "0123456789"),
        ("API key: 0123456789", "0123456789"),
        ("HF_TOKEN=abcdef", "abcdef"),
        ("HUGGING_FACE_HUB_TOKEN: 'abcdef'", "abcdef"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
        ("aws_access_key_id = 1234567", "1234567"),
        ("AccountKey=abc/def==;EndpointSuffix=x", "abc/def=="),
        ("MLFLOW_TRACKING_PASSWORD=hunter22", "hunter22"),
        ("loggers.mlflow.tracking_token is 1, token=abcdef", "abcdef"),
        ("WANDB_API_KEY=" + HEX, HEX),
        ("COMET_API_KEY: abcdefgh", "abcdefgh"),
        ("MOSAICML_API_KEY => abcdefgh", "abcdefgh"),
        ("client-secret: abcdefgh", "abcdefgh"),
        ("ssh_key=abcdefgh", "abcdefgh"),
        ("password='two words 22'", "two words 22"),
        ("passphrase: hunter22", "hunter22"),
        ("DB_PWD=hunter22", "hunter22"),
        ("curl --token abcdefgh", "abcdefgh"),
        ("tool --db-password hunter22", "hunter22"),
        # by their look
        (HEX, HEX),
        ("key " + HEX.upper(), HEX.upper()),
        ("hf_AbCdEfGhIjKlMnOp", "hf_AbCdEfGhIjKlMnOp"),
        ("api_org_AbCdEfGhIjKlMnOp", "AbCdEfGhIjKlMnOp"),
        ("sk-proj-abcdefgh_ijkl", "abcdefgh_ijkl"),
        ("ghp_abcdefghijkl", "abcdefghijkl"),
        ("github_pat_abcdefghijkl", "abcdefghijkl"),
        ("glpat-abcdefghijkl", "abcdefghijkl"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("AIzaSyA0123456789abcdefghij", "SyA0123456789abcdefghij"),
        ("ya29.a0AfH6SMBxyz", "a0AfH6SMBxyz"),
        ("xoxb-123456789-abc", "123456789-abc"),
        ("pypi-AgEIcHlwaS5vcmcCJDU", "AgEIcHlwaS5vcmcCJDU"),
        ("npm_abcdefghij0123456789", "abcdefghij0123456789"),
        ("dapi0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef"),
        ("wandb_v1_abcdefgh_ijkl", "abcdefgh_ijkl"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.SflKxwRJSM", "SflKxwRJSM"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ],
    ids=lambda text: text[:40],
)
def test_secrets_are_hidden(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)
    around = redact(f"save_folder is {text} here")
    assert secret not in around
    assert around.startswith("save_folder is ")


@pytest.mark.parametrize(
    "text",
    [
        "train_loader.dataset.max_seq_len=512 reads 128 of the 512 tokens of each row in "
        "s3://bucket/pile/train.",
        "115_200tok",
        "use_auth_token: false",
        "tokenizer.name is 'EleutherAI/gpt-neox-20b'",
        "model.name is 'hf_causal_lm'; hf_prefix_lm and hf_t5 are other names.",
        "The run takes 2.6e+10 tokens: 0.4 passes.",
        "eos_token: <|endoftext|>, pad_token='<pad>', the tokenizer's unk-token: <unk>",
        "http://localhost:8080/path and https://host:5000 are addresses",
        "basic settings of the bearer",
        "passes-over-data: read 0.41 times",
        "tokens per position: 4; token stage: 300 steps; tokens: 26000000000",
        "optimizer.lr=6.0e-4 and betas: [0.9, 0.95]",
        "callbacks.hf_checkpointer: `hf_checkpointer` writes the export",
        "train_loader.dataset is {'streams': {'a': {'remote': 's3://bucket/a'}}}",
        "key: value, keys: known",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_values_go_by_the_name_of_their_key() -> None:
    given = {
        "wandb": {"api_key": "short", "project": "pile"},
        "places": ("s3://a:b22@c", 4),
        "token": None,
        "steps": 3,
    }
    assert redact_values(given) == {
        "wandb": {"api_key": "***", "project": "pile"},
        "places": ["s3://***@c", 4],
        "token": None,
        "steps": 3,
    }


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(redaction).failed == 0
