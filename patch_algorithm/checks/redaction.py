"""Secrets taken out of what is shown: findings are made to be pasted into an issue."""

from __future__ import annotations

import re

__all__ = ["redact"]

_HIDDEN = "***"
_SECRETS = (
    # user and password in a URL
    (re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"), _HIDDEN),
    # signed URLs, and keys whose name says it
    (
        re.compile(
            r"((?:[\w-]*(?:token|secret|passw(?:or)?d|api_?key|access_?key(?:_id)?|credentials?|signature))|sig)"
            r"(['\"]?\s*[=:]\s*['\"]?)(?!None\b|null\b|true\b|false\b)[^\s'\",&}\]]{4,}",
            re.IGNORECASE,
        ),
        rf"\1\2{_HIDDEN}",
    ),
    # tokens that are known by their look: Hugging Face, OpenAI, GitHub, AWS, Google, Slack
    (
        re.compile(
            r"\b(?:hf_\w{8,}|sk-[\w-]{8,}|gh[pousr]_\w{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|xox[a-z]-[\w-]{8,})"
        ),
        _HIDDEN,
    ),
    # Weights and Biases: 40 hexadecimal digits
    (re.compile(r"\b[0-9a-f]{40}\b"), _HIDDEN),
)


def redact(text: str) -> str:
    """``text`` without passwords in URLs, tokens and keys.

    Examples:
        >>> redact("s3://me:hunter22@bucket/pile and hf_abcdefghijkl")
        's3://***@bucket/pile and ***'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
