"""Which tokenizers are taken, and what tells one from another."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llmfoundry.utils.builders import build_tokenizer
from tokenizers import Tokenizer, models
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.data.tokens.encoding import Encoder, load_tokenizer
from patch_algorithm.data.tokens.identity import fingerprint
from tests.data.tokens.toys import EOS, toy


def save(folder: Path, name: str = "gpt2", **options: Any) -> Path:
    """A tokenizer's folder, as ``save_pretrained`` writes it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(toy(name)), **{"eos_token": EOS} | options
    )
    tokenizer.save_pretrained(str(folder))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> str:
    """Edits a tokenizer's file and returns the fingerprint of what it then is."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return load_tokenizer(str(folder)).fingerprint


def test_a_folder_is_loaded_with_what_conversion_needs(tmp_path: Path) -> None:
    spec = load_tokenizer(str(save(tmp_path / "t")))
    assert (spec.vocab_size, spec.eos_id, spec.bos_id, spec.dtype) == (len(spec.tokenizer), 0, None, "uint16")
    encoding = pickle.loads(pickle.dumps(spec.encoding()))
    assert encoding == spec.encoding(eos=True, bos=False, special_tokens="text")
    ids = Encoder(encoding).encode(["the fox"])[0]
    assert ids.tolist() == [*spec.tokenizer("the fox")["input_ids"], 0]


@pytest.mark.parametrize(("entries", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_the_smallest_type_that_holds_them(tmp_path: Path, entries: int, dtype: str) -> None:
    vocabulary = {f"w{i}": i for i in range(entries)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")), eos_token="w1"
    ).save_pretrained(str(tmp_path / "t"))
    spec = load_tokenizer(str(tmp_path / "t"))
    assert spec.dtype == dtype
    last = f"w{entries - 1}"
    assert Encoder(spec.encoding(eos=False, special_tokens="allow")).encode([last])[0].tolist() == [
        entries - 1
    ]


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "a/b/c", ""])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match="there is no tokenizer folder"):
        load_tokenizer(name)


def test_other_things_than_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a local folder nor a hub name"):
        load_tokenizer("nobody/no-such-tokenizer")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="there is no tokenizer folder"):
        load_tokenizer(str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*empty.* holds no loadable tokenizer"):
        load_tokenizer(str(tmp_path / "empty"))
    (save(tmp_path / "broken") / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the folder .*broken.* holds no loadable tokenizer"):
        load_tokenizer(str(tmp_path / "broken"))


def test_a_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(ValueError, match=r"a slow one in Python \(ByT5Tokenizer"):
        load_tokenizer(str(tmp_path))


def test_random_merges_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "t")
    with pytest.raises(ValueError, match=r"at random \(dropout 0.1\)"):
        change(folder, lambda content: content["model"].update(dropout=0.1))


def test_ends_that_a_tokenizer_does_not_have_are_refused(tmp_path: Path) -> None:
    spec = load_tokenizer(str(save(tmp_path / "t", eos_token=None, pad_token="<pad>")))
    with pytest.raises(ValueError, match=r"has no EOS token; convert with --no-eos"):
        spec.encoding()
    with pytest.raises(ValueError, match=r"has no BOS token"):
        spec.encoding(eos=False, bos=True)
    assert spec.encoding(eos=False).eos_id is None


def test_a_vocabulary_with_eos_as_a_word_cannot_read_it_as_text(tmp_path: Path) -> None:
    unigram = load_tokenizer(str(save(tmp_path / "unigram", "unigram")))
    with pytest.raises(ValueError, match=r"reads '<\|endoftext\|>' in a text as its.*--special-tokens allow"):
        unigram.encoding()
    assert unigram.encoding(special_tokens="allow").eos_id == unigram.eos_id
    for name in ("gpt2", "neox", "cl100k", "llama", "metaspace", "word piece"):
        load_tokenizer(str(save(tmp_path / name, name, bos_token=EOS))).encoding(bos=True)


@pytest.mark.parametrize("name", ["gpt2", "neox", "cl100k", "llama", "unigram", "word piece"])
def test_the_fingerprint_outlives_saving_and_loading_with_other_lengths(tmp_path: Path, name: str) -> None:
    spec = load_tokenizer(str(save(tmp_path / "first", name)))
    spec.tokenizer.save_pretrained(str(tmp_path / "second"))
    kwargs = {"model_max_length": 128, "padding_side": "left", "pad_token": EOS}
    again = build_tokenizer(str(tmp_path / "second"), kwargs)
    assert isinstance(again, PreTrainedTokenizerFast)
    again(["the fox", "a"], padding="max_length", truncation=True, max_length=8)
    assert fingerprint(again) == spec.fingerprint


def test_the_fingerprint_tells_what_decides_ids(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", "neox")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]  # it would add the tokens again that are removed below
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = [load_tokenizer(str(folder)).fingerprint]
    found.append(change(folder, lambda content: content["model"]["merges"].pop()))
    found.append(change(folder, lambda content: content.update(normalizer=None)))
    found.append(change(folder, lambda content: content["pre_tokenizer"].update(use_regex=False)))
    found.append(change(folder, lambda content: content["added_tokens"].pop()))
    found.append(change(folder, lambda content: content["added_tokens"][-1].update(lstrip=True)))
    assert len(set(found)) == len(found)
    assert change(folder, lambda content: content.update(decoder=None)) == found[-1]
    assert change(folder, lambda content: content["model"].update(some_new_option=None)) == found[-1]
