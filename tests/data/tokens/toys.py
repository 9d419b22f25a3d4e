"""Small tokenizers of the kinds that language models use, trained on a little text."""

# The stubs of `tokenizers` know neither its properties nor the arguments of its constructors.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

EOS = "<|endoftext|>"
# OpenAI's cl100k, as Llama-3 and Qwen write it.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SAMPLE = [
    "The quick brown fox jumps over the lazy dog.\nIt didn't mind; the dog, that is: 1234 times, 56 or 7.\n",
    "def fold(tokens, k):\n    rows = tokens.reshape(-1, k)\n    return [row for row in rows]\n\n\n",
    "Straße und Übermut, été à la plage, naïve café. Москва не сразу строилась. 中文字符。没有空格,很长\r\n",
    "x = 3.14159; y=[0,1,2,3]\r\n\tif x > y:\r\n        print('hello  world   again')\r\n",
    f"one two three {EOS} four\nthe the the and and of the in the of the to the\nthat is the way of it ",
] * 3
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _trained(tokenizer: Tokenizer, vocabulary: int = 600, **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[EOS, "<pad>"], show_progress=False, **options
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def byte_level(**options: Any) -> Tokenizer:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=ALPHABET)


def neox() -> Tokenizer:
    """GPT-NeoX's kind: NFC, and runs of spaces that are added tokens but not special ones."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    runs = [AddedToken(" " * n, normalized=True, special=False) for n in range(8, 1, -1)]
    tokenizer.add_tokens(runs)
    return tokenizer


def cl100k() -> Tokenizer:
    """Llama-3's and Qwen's kind."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=ALPHABET)


def llama() -> Tokenizer:
    """Llama-2's kind: the text is one word, and begins with a space that is not in it."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    model = json.loads(_trained(learnt).to_str())["model"]
    # Newlines and rare characters are bytes, as in SentencePiece vocabularies.
    pieces = [token for token in model["vocab"] if "\n" not in token and "\r" not in token]
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [tuple(merge) for merge in model["merges"] if not {"\n", "\r"} & set("".join(merge))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def metaspace() -> Tokenizer:
    """Mistral's kind: words begin with a space, the first with one that is not in the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<pad>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return _trained(tokenizer)


def across_words() -> Tokenizer:
    """Tokens of several words ("of the"): a word's end is no place to cut, a line's end is one."""
    tokenizer = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split(Regex(r"[\r\n]"), behavior="isolated")
    bytes_of_lines = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, bytes_of_lines])
    return _trained(tokenizer, vocabulary=900, initial_alphabet=ALPHABET)


def word_piece() -> Tokenizer:
    """BERT's kind."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", EOS], show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def unigram(split: bool = True) -> Tokenizer:
    """T5's kind; without ``split`` the best division of the whole text is sought."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", EOS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


_MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "gpt2 with a space before": lambda: byte_level(add_prefix_space=True),
    "neox": neox,
    "cl100k": cl100k,
    "llama": llama,
    "metaspace": metaspace,
    "across words": across_words,
    "word piece": word_piece,
    "unigram": unigram,
    "unigram of the whole": lambda: unigram(split=False),
}
NAMES = tuple(_MAKERS)
NEVER_CUT = ("unigram of the whole",)


@cache
def toy(name: str) -> str:
    """A tokenizer of ``NAMES``, in the format of the library."""
    return _MAKERS[name]().to_str()
