"""Where a long text can be cut without a change of its token ids.

A tokenizer of the ``tokenizers`` library needs about a hundred bytes of memory for a character of a text,
and some read the whole text as one word. Long texts are therefore encoded in pieces, cut between two
characters that no token spans. That is shown twice:

1. Once for each kind of place, such as a letter before a line's end: either the pre-tokenizer divides the
   text there, or the model is a BPE model with no token in its vocabulary that spans the place. Merges on
   either side of such a place know nothing of each other. Other models look for the best division of the
   whole word, and are cut only where the pre-tokenizer divides. Where a text has no place of these kinds,
   a BPE model is asked about single places: those that no token spans, written as the text around is.
2. For each place that is used, with the text around it: the ids of the two sides have to be those of the
   whole. That covers added tokens, normalizers, and pre-tokenizers that look ahead.

A piece begins with the last character of the one before, whose ids are taken off again: what tokenizers
put before a text (Llama-2's "▁", ``add_prefix_space``) or strip from its start happens there.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from typing import NamedTuple

from tokenizers import Tokenizer

__all__ = ["Cutter", "TextPiece", "UncuttableText"]

# Characters on each side of a place that are encoded to check it, and how many places are tried.
_CONTEXT = 128
_TRIES = 8
# No token holds it.
_SEPARATOR = "\ue000"


class UncuttableText(ValueError):
    """A text is very long and holds no place where it can be cut.

    Attributes:
        index: Which of the texts it is, where several were given.
    """

    index: int = 0


class TextPiece(NamedTuple):
    """The characters ``[start, end)`` of a text, the first ``carried`` ids of which are not its own."""

    start: int
    end: int
    carried: int


@dataclass(frozen=True)
class _Kind:
    """A kind of place: between a character of ``left`` and one of ``right``, both regex classes.

    The samples stand for the classes where the pre-tokenizer is asked.
    """

    left: str
    right: str
    left_samples: str
    right_samples: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(f"(?<={self.left})(?={self.right})")


_PLAIN = ("[A-Za-z0-9]", "aZ5")
_WORD = (r"[^\W_]", "aZ5éя中")
_LINE_END = ("[\r\n]", "\r\n")
_SIGN = ("[,.;:!?()、。，；：！？「」]", ",.;:!?()、。，；：！？「」")
_NO_WORD = r"[^\s\w]"  # signs, and marks such as the vowels of Devanagari
# In the order of preference: where text has lines, they are the surest place.
_KINDS = (
    _Kind(_PLAIN[0], _LINE_END[0], _PLAIN[1], _LINE_END[1]),
    _Kind(_PLAIN[0], " ", _PLAIN[1], " "),
    _Kind(_WORD[0], _LINE_END[0], _WORD[1], _LINE_END[1]),
    _Kind(_WORD[0], " ", _WORD[1], " "),
    _Kind("[A-Za-z]", "[0-9]", "aZ", "0123456789"),
    _Kind(_WORD[0], _SIGN[0], _WORD[1], _SIGN[1]),
    _Kind(_NO_WORD, _LINE_END[0], ".;>}。", _LINE_END[1]),
    _Kind(_NO_WORD, " ", "-.;>}。\u0948\u0903\u0301", " "),
)
# What any place looks like that may be asked about by itself. How long a run of white space, or of digits,
# is divided depends on where it begins, which may be far.
_ANYWHERE = re.compile(r"(?<=\S)(?=\S| )")
_BEFORE = ("", "the ", "\n")
_AFTER = ("", "b", " b", "\n\n1", "  b")
# What no token of a BPE model begins a word's middle with: spaces and signs, as byte-level and
# SentencePiece vocabularies write them. Tokens that are made of them alone span no place.
_APART = r"\s▁ĠĊĉč!-/:-@\[-`{-~"


class Cutter:
    """Finds the places for one tokenizer.

    Args:
        tokenizer: The tokenizer, set as it will be used.
        piece_characters: About how long a piece shall be; a text half as long again is left whole.
        longest_piece: How long a piece may become where there is no place to cut.
    """

    def __init__(self, tokenizer: Tokenizer, piece_characters: int, longest_piece: int) -> None:
        self._tokenizer = tokenizer
        self._piece = piece_characters
        self._longest = max(longest_piece, 2 * piece_characters)
        added = (len(token.content) for token in tokenizer.get_added_tokens_decoder().values())
        self._context = max(_CONTEXT, 2 * max(added, default=0))

    def cut(self, text: str) -> list[TextPiece]:
        """Cuts a text into pieces whose ids, joined, are those of the text.

        Returns:
            The pieces in order; a single one where the text is not long.

        Raises:
            UncuttableText: If a piece would be longer than ``longest_piece``.
        """
        pieces: list[TextPiece] = []
        begin, start, carried = 0, 0, 0
        while len(text) - begin > self._piece * 3 // 2:
            place = self._place(text, begin)
            if place is None:
                if len(text) - begin > self._longest:
                    raise UncuttableText(
                        f"the text has {len(text):,} characters and, from character {begin:,} on, no place "
                        f"in {self._longest:,} where it can be cut without a change of its token ids."
                    )
                break
            at, carried_next = place
            pieces.append(TextPiece(start, at, carried))
            begin, start, carried = at, at - 1, carried_next
        pieces.append(TextPiece(start, len(text), carried))
        return pieces

    def _place(self, text: str, begin: int) -> tuple[int, int] | None:
        # The kind that is preferred may be far: each reach is searched for all before one twice as long.
        low, reach = begin + self._piece, max(8, self._piece // 4)
        last = min(begin + self._longest, len(text))
        while low < last:
            high = min(low + reach, last)
            for pattern in self._patterns:
                for match in islice(pattern.finditer(text, low, high), _TRIES):
                    carried = self._carried(text, match.start())
                    if carried is not None:
                        return match.start(), carried
            for match in islice(_ANYWHERE.finditer(text, low, high), _TRIES):
                carried = self._carried(text, match.start()) if self._is_apart(text, match.start()) else None
                if carried is not None:
                    return match.start(), carried
            low, reach = high, 2 * reach
        return None

    def _is_apart(self, text: str, at: int) -> bool:
        """Whether no token spans a place, whatever the kind."""
        if self._spanning is None or (text[at - 1].isnumeric() and text[at].isnumeric()):
            return False
        if unicodedata.combining(text[at]):  # normalizers move marks over any distance
            return False
        reach = self._spanning.longest
        left, right = text[max(0, at - reach) : at], text[at : at + reach]
        # The piece after it begins with one character, and what the tokenizer puts before that.
        return not (self._spanning.at(left, right) or self._spanning.at(left[-1], right))

    def _carried(self, text: str, at: int) -> int | None:
        """The ids of the character before ``at``, if the text around can be cut there."""
        left = text[max(0, at - self._context) : at]
        right = text[at : at + self._context]
        carrier = left[-1]
        whole, of_left, of_right, of_carrier = (
            encoding.ids
            for encoding in self._tokenizer.encode_batch_fast(
                [left + right, left, carrier + right, carrier], add_special_tokens=False
            )
        )
        carried = len(of_carrier)
        if of_right[:carried] != of_carrier or whole != of_left + of_right[carried:]:
            return None
        return carried

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        """The kinds of places that hold for this tokenizer, made when the first long text comes."""
        spanning = self._spanning
        return [
            kind.pattern
            for kind in _KINDS
            if _divides(self._tokenizer, kind) or (spanning is not None and not spanning.any(kind))
        ]

    @cached_property
    def _spanning(self) -> _SpanningTokens | None:
        return _SpanningTokens.of(self._tokenizer)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the model is given for a text."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _divides(tokenizer: Tokenizer, kind: _Kind) -> bool:
    """Whether the pre-tokenizer divides texts at places of a kind."""
    if tokenizer.pre_tokenizer is None:
        return False
    for before, left in product(_BEFORE, kind.left_samples):
        words = _words(tokenizer, before + left)
        for right, after in product(kind.right_samples, _AFTER):
            if _words(tokenizer, before + left + right + after)[: len(words)] != words:
                return False
    return True


@dataclass(frozen=True)
class _SpanningTokens:
    """The vocabulary of a BPE model, asked for tokens that span a place."""

    tokenizer: Tokenizer
    tokens: frozenset[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _SpanningTokens | None:
        """``None`` where the model is not BPE, or writes its tokens in other ways within a word."""
        model = json.loads(tokenizer.to_str())["model"]
        if (
            model["type"] != "BPE"
            or model.get("continuing_subword_prefix")
            or model.get("end_of_word_suffix")
        ):
            return None
        return cls(tokenizer, frozenset(model["vocab"]))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple({len(token) for token in self.tokens})

    @cached_property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def vocabulary(self) -> str:
        # Joined: a single search is much faster than one for each token.
        return _SEPARATOR.join(self.tokens)

    def any(self, kind: _Kind) -> bool:
        """Whether a token spans a place of the kind, as far as its characters say."""
        left = kind.left if kind.left.isascii() and "^" not in kind.left else f"[^{_APART}{_SEPARATOR}]"
        if kind.left == _NO_WORD:
            return True
        forms = [self._form(right) for right in kind.right_samples]
        if not all(forms):
            return True
        rights = "".join(re.escape(form[0]) for form in forms)
        return re.search(f"{left}[{rights}]", self.vocabulary) is not None

    def at(self, left: str, right: str) -> bool:
        """Whether a token spans the place between two texts."""
        before, after = "".join(_words(self.tokenizer, left)), self._form(right)
        if not before or not after:
            return True
        both, place = before + after, len(before)
        return any(
            both[begin : begin + length] in self.tokens
            for length in self.lengths
            for begin in range(max(0, place - length + 1), place)
        )

    def _form(self, right: str) -> str:
        """How the model sees a text within a word."""
        before = "".join(_words(self.tokenizer, "a"))
        form = "".join(_words(self.tokenizer, "a" + right))
        return form[len(before) :] if form.startswith(before) else ""
