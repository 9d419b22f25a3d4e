"""Secrets taken out of what is shown: output is made to be pasted into an issue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["redact", "redact_values"]

_HIDDEN = "***"

_SPECIAL_TOKENS = ("eos", "bos", "pad", "unk", "cls", "sep", "mask", "special", "added", "stop", "image")
_KEY_OF = "api|access|secret|private|account|master|encryption|signing|ssh|auth|storage|license|wandb|sas"
# Names whose value is a secret, in any spelling: AWS_SECRET_ACCESS_KEY, x-api-key, hf.token, AccountKey.
_NAME = (
    rf"[\w.-]*?(?:{''.join(f'(?<!{name}[-_ ])' for name in _SPECIAL_TOKENS)}token"
    r"|secret|passw(?:or)?d|passphrase|pwd|credentials?|signature|cookie|webhook(?:[-_]?url)?"
    rf"|(?:{_KEY_OF})[-_ ]?key(?:[-_ ]?id)?)"
)
# A quoted value, which may have spaces, or what stands before the next separator.
_VALUE = r"(?!(?:None|null|true|false)\b)(?:'[^']{3,}'|\"[^\"]{3,}\"|[^\s'\",&}\]]{4,})"

_SECRETS = [
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", _HIDDEN),
        # User and password in a URL. Passwords may have slashes; digits alone are a port.
        (r"(?<=://)[^\s/:@'\"]*:(?!\d{1,5}(?:[/?\s]|$))[^\s'\"]*(?=@)", _HIDDEN),
        (r"(?<=://)[^/\s@'\"]+(?=@)", _HIDDEN),
        (
            r"(authorization['\"]?\s*[=:]\s*['\"]?)(?:(?:bearer|basic|token|digest)\s+)?[^\s'\",}\]]+",
            rf"\1{_HIDDEN}",
        ),
        (r"\b(bearer|basic)\s+(?=[\w~+/.=-]*[\d~+/=_-])[\w~+/.=-]{8,}", rf"\1 {_HIDDEN}"),
        (rf"((?<![\w-]){_NAME}['\"]?\s*(?:=>|[=:])\s*){_VALUE}", rf"\1{_HIDDEN}"),
        (rf"((?<!\S)--{_NAME}\s+){_VALUE}", rf"\1{_HIDDEN}"),
        (r"([?&;](?:sig|key|code)=)[^\s'\"&]{4,}", rf"\1{_HIDDEN}"),
        # Of a webhook the path is the secret.
        (r"(?<=hooks\.slack\.com/)[^\s'\"]+|(?<=/api/webhooks/)[^\s'\"]+", _HIDDEN),
    )
]
_BY_THEIR_LOOK = re.compile(
    r"""\b(?:
    (?!hf_checkpointer\b)(?:hf|api_org)_[A-Za-z0-9]{10,}  # Hugging Face; the name is llm-foundry's callback
    | sk-[\w-]{8,}  # OpenAI, Anthropic
    | gh[pousr]_\w{8,} | github_pat_\w{8,} | glpat-[\w-]{8,}  # GitHub, GitLab
    | (?:AKIA|ASIA)[A-Z0-9]{12,} | AIza[\w-]{20,} | ya29\.[\w-]{8,}  # AWS, Google
    | xox[a-z]-[\w-]{8,} | pypi-[\w-]{16,} | npm_[A-Za-z0-9]{16,}  # Slack, PyPI, npm
    | dapi[0-9a-f]{16,} | wandb_v\d+_\w{8,} | [0-9a-fA-F]{40}(?![0-9a-zA-Z])  # Databricks, Weights and Biases
    | eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?  # JSON web tokens
    )""",
    re.VERBOSE,
)
_SECRET_NAME = re.compile(rf"{_NAME}|authorization", re.IGNORECASE)


def redact(text: str) -> str:
    """``text`` without passwords in URLs, tokens and keys.

    Examples:
        >>> redact("s3://me:hunter22@bucket/pile and hf_abcdefghijkl")
        's3://***@bucket/pile and ***'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return _BY_THEIR_LOOK.sub(_HIDDEN, text)


def redact_values(value: Any) -> Any:
    """Primitives whose strings are without secrets, those behind a name that says so too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: _HIDDEN if _names_secret(key, below) else redact_values(below)
            for key, below in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_values(below) for below in value]
    return value


def _names_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _SECRET_NAME.fullmatch(str(key)) is not None
