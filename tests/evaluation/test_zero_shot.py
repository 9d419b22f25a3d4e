"""Zero-shot tasks: what the model is asked, and how the harness scores it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from patch_algorithm.evaluation.comparison import compare
from patch_algorithm.evaluation.paper import PAPER_ROWS
from patch_algorithm.evaluation.results import result_text
from patch_algorithm.evaluation.zero_shot.items import read_tasks
from patch_algorithm.evaluation.zero_shot.task_files import Prompt, tasks
from tests.evaluation.conftest import CONTEXT
from tests.evaluation.test_command import evaluate, refused, result

ARC = Prompt(("Question: Why?\nAnswer:",), (" a b", " it's"), 1)
# Of every task and both of its forms: an item, and what lm-evaluation-harness 0.4.13 asks in it.
ITEMS: list[tuple[str, dict[str, Any], Prompt]] = [
    *(
        (name, item, ARC)
        for name in ("arc_easy", "arc_challenge")
        for item in (
            {"query": "Question: Why?", "choices": ["a b", "it's"], "gold": 1},
            {
                "question": "Why?",
                "choices": {"text": ["a b", "it's"], "label": ["1", "2"]},
                "answerKey": "2",
            },
        )
    ),
    (
        "hellaswag",
        {"query": "Roofs: A man sits. He", "choices": ["is a", "b"], "gold": 0},
        Prompt(("Roofs: A man sits. He",), (" is a", " b"), 0),
    ),
    (
        "hellaswag",
        {
            "activity_label": "Roofs",
            "ctx_a": "[header] A man sits [title] Now",
            "ctx_b": "he",
            "endings": ["is  'a'", "b [title] c [step] d"],
            "label": "1",
        },
        Prompt(("Roofs: A man sits. Now He",), (" is 'a'", " b. c d"), 1),
    ),
    (
        "piqa",
        {"query": "Question: dresser\n", "choices": ["a", "b"], "gold": 1},
        Prompt(("Question: dresser\nAnswer:",), (" a", " b"), 1),
    ),
    (
        "piqa",
        {"goal": "dresser", "sol1": 'say "a"', "sol2": "b", "label": 1},
        Prompt(("Question: dresser\nAnswer:",), (' say "a"', " b"), 1),
    ),
    (
        "winogrande",
        {"context_options": ["So Ann", "So Bea"], "continuation": "got it.", "gold": 1},
        Prompt(("So Ann", "So Bea"), (" got it.",), 1),
    ),
    (
        "winogrande",
        {"sentence": "So _ got it.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        Prompt(("So Ann", "So Bea"), (" got it.",), 1),
    ),
    *(
        (
            "mmlu",
            item,
            Prompt(
                (
                    "The following are multiple choice questions (with answers) about high school physics."
                    "\n\nWhy?\nA. a\nB. b\nC. c\nD. d\nAnswer:",
                ),
                (" A", " B", " C", " D"),
                2,
            ),
        )
        for item in (
            {
                "query": "Why?\nA. a\nB. b\nC. c\nD. d",
                "choices": ["A", "B", "C", "D"],
                "gold": 2,
                "category": "high_school_physics",
            },
            {
                "question": "Why?",
                "subject": "high_school_physics",
                "choices": ["a", "b", "c", "d"],
                "answer": 2,
            },
            {
                "question": " Why? ",
                "subject": "high_school_physics",
                "choices": ["a", "b", "c", "d"],
                "answer": "C",
            },
        )
    ),
    ("lambada_openai", {"context": "He saw", "continuation": "it"}, Prompt(("He saw",), (" it",), None)),
    ("lambada_openai", {"text": "He saw it"}, Prompt(("He saw",), (" it",), None)),
]
# Small ones, in words of the tests' tokenizer.
SMALL = {
    "piqa": [
        {"query": f"w{5 * i} w{7 * i}", "choices": [f"w{3 * i}", f"w{i} w{2 * i}"], "gold": i % 2}
        for i in range(1, 13)
    ],
    "winogrande": [
        {
            "context_options": [f"w1 w{i}", f"w2 w{3 * i}"],
            "continuation": f"w{7 * i} w{2 * i}",
            "gold": i % 2,
        }
        for i in range(1, 13)
    ],
    "lambada_openai": [{"text": f"w{i} w{2 * i} w{3 * i}"} for i in range(1, 13)],
}


def write(folder: Path, name: str, items: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, items in SMALL.items():
        write(tmp_path / "zero-shot", name, items)
    return tmp_path / "zero-shot"


@pytest.mark.parametrize(("name", "item", "prompt"), ITEMS, ids=[f"{one[0]}-{len(one[1])}" for one in ITEMS])
def test_what_the_model_is_asked(name: str, item: dict[str, Any], prompt: Prompt) -> None:
    assert tasks()[name].prompt(item) == prompt
    assert any(set(form) <= item.keys() for form in tasks()[name].forms)


def test_the_tasks_are_those_of_the_papers() -> None:
    assert {name for name, _, _ in ITEMS} == set(tasks())
    for row in PAPER_ROWS:
        assert set(row.tasks) == {*tasks()} - {"lambada_openai"}
    normalised = {name for name, task in tasks().items() if task.measures == ("acc", "acc_norm")}
    assert normalised == {"arc_easy", "arc_challenge", "hellaswag", "piqa"}
    assert all(task.config["num_fewshot"] == 0 for task in tasks().values())


def test_a_parquet_file_and_a_limit(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    items = [item for name, item, _ in ITEMS if name == "arc_easy" and "question" in item] * 3
    (tmp_path / "ai2_arc").mkdir()
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "ai2_arc/arc_easy.parquet")
    (found,) = read_tasks(str(tmp_path), limit=2)
    assert (found.task.name, found.prompts) == ("arc_easy", (ARC, ARC))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "piqa.jsonl, line 1 is not JSON"),
        ("3", "piqa.jsonl, line 1 is not a JSON object"),
        ("", "piqa.jsonl holds no items"),
        ('{"text": "w1"}', "line 1: expected the fields query, choices, gold or goal, sol1, sol2, label"),
        (
            '{"query": "w1", "choices": ["w1"], "gold": 1}',
            "1 choices, and '1' is not the number of one",
        ),
        ('{"query": "w1", "choices": [1, 2], "gold": 1}', "the choices are not a list of strings"),
        ('{"goal": "w1", "sol1": "a", "sol2": "b", "label": -1}', "line 1 is not an item of PIQA"),
        (
            '{"query": "a", "choices": ["b"], "gold": 0}\n{"goal": "", "sol1": "", "sol2": "", "label": 0}',
            "do not all have the same fields",
        ),
    ],
)
def test_data_that_is_not_what_its_name_says(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r".") as raised:
        read_tasks(str(tmp_path))
    assert words in str(raised.value)


def test_tasks_that_are_not_there(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    known = "arc_challenge, arc_easy, hellaswag, lambada_openai, mmlu, piqa, winogrande"
    for folder, names, words in (
        (data, ["pica"], f"There is no task 'pica'; there are {known}. Did you mean 'piqa'?"),
        (data, ["mmlu"], "has no data of mmlu: expected mmlu.jsonl"),
        (tmp_path / "none", (), "is not a folder"),
        (tmp_path / "empty", (), "has no data of arc_challenge, arc_easy"),
    ):
        with pytest.raises(ValueError, match=r".") as raised:
            read_tasks(str(folder), names)
        assert words in str(raised.value)
    (data / "more").mkdir()
    write(data / "more", "piqa", SMALL["piqa"])
    with pytest.raises(ValueError, match="several files of piqa"):
        read_tasks(str(data))


def test_without_the_harness(export: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = evaluate(export, "--preset", "zero-shot", "--data", data)
    refused(done, "install it with `pip install 'patch-algorithm[eval]'`")
    assert len(done.stderr.strip().splitlines()) == 1


def test_options_that_do_not_fit(export: Path, data: Path) -> None:
    refused(evaluate(export, "--data", data, "--tasks", "piqa"), "--tasks are for --preset zero-shot")
    zero_shot = export, "--preset", "zero-shot", "--data", data
    refused(evaluate(*zero_shot, "--stride", 4), "--stride does not apply to --preset zero-shot")


def nats(model: LlamaForCausalLM, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    """Of a continuation, and whether every token of it is the most likely one."""
    start = len(tokenizer.encode(context))
    ids = torch.tensor([tokenizer.encode(context + continuation)])
    assert ids.shape[1] <= CONTEXT + 1
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits[0, start - 1 :].double()
    gold = ids[0, start:]
    return (
        -logits.log_softmax(-1).gather(1, gold[:, None]).sum().item(),
        bool((logits.argmax(-1) == gold).all()),
    )


def expected(model: LlamaForCausalLM, tokenizer: Any, name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for item in SMALL[name]:
        prompt = tasks()[name].prompt(item)
        pairs = [(before, after) for before in prompt.contexts for after in prompt.continuations]
        scored = [nats(model, tokenizer, *pair) for pair in pairs]
        if prompt.gold is None:
            one = {"acc": float(scored[0][1]), "perplexity": -scored[0][0]}
        else:
            # The harness normalises by the letters of the choice, without the space before it.
            each = [cost / (len(after) - 1) for (cost, _), (_, after) in zip(scored, pairs, strict=True)]
            one = {"acc": float(np.argmin([cost for cost, _ in scored]) == prompt.gold)}
            one["acc_norm"] = float(np.argmin(each) == prompt.gold)
        for measure in tasks()[name].measures:
            found.setdefault(measure, []).append(one[measure])
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_harness_scores_as_an_independent_computation(export: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra eval", exc_type=ImportError)
    out = tmp_path / "a.json"
    found = result(export, "--preset", "zero-shot", "--data", data, "--out", out)
    model, tokenizer = LlamaForCausalLM.from_pretrained(export).eval(), AutoTokenizer.from_pretrained(export)
    scores = {(one["task"], one["measure"]): one for one in found["tasks"]}
    for name in SMALL:
        for measure, wanted in expected(model, tokenizer, name).items():
            one = scores.pop((name, measure))
            assert one["scores"] == pytest.approx(wanted, rel=1e-5)
            mean = sum(wanted) / len(wanted)
            value = math.exp(-mean) if measure == "perplexity" else mean
            assert one["value"] == pytest.approx(value, rel=1e-5)
    assert not scores
    assert any(0 < one["value"] < 1 for one in found["tasks"]), "the test shows nothing"
    assert (found["measures"], found["stride"]) == ([], None)
    assert not any("longer than" in note for note in found["notes"])

    shorter = result(export, "--preset", "zero-shot", "--data", data, "--tasks", "piqa", "--limit", 3)
    assert {(one["task"], one["items"]) for one in shorter["tasks"]} == {("piqa", 3)}
    assert "Only the first 3 items of each task were scored." in shorter["notes"]
    cut = result(export, "--preset", "zero-shot", "--data", data, "--tasks", "piqa", "--seq-len", 3)
    assert any(note.startswith("12 of 12 items of piqa are longer than 3 tokens") for note in cut["notes"])

    same = compare(found, json.loads(out.read_text()))
    assert next((one.name, one.error, one.units) for one in same) == ("lambada_openai acc", 0, 12)
    table = result_text({**found, "model": {**found["model"], "parameters": 370_000_000}})
    row = next(line for line in table.splitlines() if line.startswith("piqa") and "acc_norm" in line)
    assert row.split()[-2:] == ["0.675", "0.680"]
    refused(evaluate(export, "--preset", "zero-shot", "--data", data, "--out", out), "is not overwritten")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_answer_longer_than_the_context_is_left_out(export: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra eval", exc_type=ImportError)
    zero_shot = export, "--preset", "zero-shot", "--tasks", "piqa", "--data"
    plain = result(*zero_shot, data)
    long = {"query": "w1", "choices": ["w2", " ".join(["w3"] * (CONTEXT + 1))], "gold": 0}
    fits = {"query": "w1", "choices": ["w2", " ".join(["w3"] * CONTEXT)], "gold": 0}
    write(tmp_path / "long", "piqa", [*SMALL["piqa"], long])
    found = result(*zero_shot, tmp_path / "long")
    note = f"1 of 13 items of piqa have an answer longer than {CONTEXT} tokens, and were left out."
    assert note in found["notes"]
    assert [one["scores"] for one in found["tasks"]] == [one["scores"] for one in plain["tasks"]]
    assert found["data"]["digest"] != plain["data"]["digest"]
    write(tmp_path / "fits", "piqa", [fits])
    assert not any("left out" in note for note in result(*zero_shot, tmp_path / "fits")["notes"])
    write(tmp_path / "none", "piqa", [long])
    refused(evaluate(*zero_shot, tmp_path / "none"), f"has an answer of more than {CONTEXT} tokens")
