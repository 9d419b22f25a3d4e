"""Blocks depend on the text alone, and resume at any of their ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_algorithm.data.readers.blocks import Block, Position, Row, SourceDamage, cut_lines, cut_rows

BLOCK, LONGEST = 10, 30


def pieces(text: bytes, cuts: list[int]) -> Iterator[bytes]:
    ends = sorted({min(cut, len(text)) for cut in cuts})
    yield from (text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True))


def cut(text: bytes, cuts: list[int], start: Position = Position()) -> list[Block]:  # noqa: B008
    return list(cut_lines(pieces(text, cuts), start, BLOCK, LONGEST))


def by_hand(text: bytes) -> list[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; overlong ones as nothing."""
    found = []
    for number, line in enumerate(text.split(b"\n")):
        if line.strip():
            found.append((number, b"" if len(line) > LONGEST else line))
    return found


def lines_of(blocks: list[Block]) -> list[tuple[int, bytes]]:
    found = []
    for block in blocks:
        assert isinstance(block.data, bytes)
        for index, line in enumerate(block.data.split(b"\n")):
            if line.strip() or index in block.overlong:
                assert not (line.strip() and index in block.overlong)
                found.append((block.start.number + index, line))
    return found


TEXTS = st.lists(
    st.integers(0, 45).map(lambda n: b"x" * n) | st.just(b" \t") | st.just(b"long" * 40), max_size=12
).map(b"\n".join)


@given(TEXTS, st.lists(st.integers(0, 300)))
def test_lines_arrive_once_and_in_order_whatever_the_pieces(text: bytes, cuts: list[int]) -> None:
    blocks = cut(text, cuts)
    assert lines_of(blocks) == by_hand(text)
    assert blocks == cut(text, [])
    assert blocks == cut(text, list(range(len(text))))


@given(TEXTS)
def test_reading_goes_on_at_the_end_of_any_block(text: bytes) -> None:
    blocks = cut(text, [])
    for index, block in enumerate(blocks):
        assert block.end.number == text[: block.end.offset].count(b"\n") + (
            block.end.offset == len(text) and not text.endswith(b"\n")
        )
        assert cut(text[block.end.offset :], [], block.end) == blocks[index + 1 :]


def test_a_block_is_the_fewest_lines_that_fill_it() -> None:
    blocks = cut(b"1234\n1234\n1234\n" + b"x" * 25 + b"\n\n\n", [])
    assert [block.data for block in blocks] == [b"1234\n1234\n", b"1234\n" + b"x" * 25 + b"\n"]
    assert [block.end for block in blocks] == [Position(10, 2), Position(41, 4)]


def test_overlong_lines_are_not_held() -> None:
    held = 0

    def endless() -> Iterator[bytes]:
        yield b"first\n"
        for _ in range(1000):
            yield b"x" * 100
        yield b"\nlast\n"

    blocks = list(cut_lines(endless(), Position(), BLOCK, LONGEST))
    held = sum(block.size for block in blocks)
    assert held < 20
    assert blocks[-1].end == Position(6 + 100_000 + 1 + 5, 3)
    assert [block.overlong for block in blocks] == [(1,)]


def test_what_stands_before_damage_is_good() -> None:
    def damaged() -> Iterator[bytes]:
        yield b"one\ntwo\nthr"
        raise SourceDamage("truncated file", "")

    found = []
    with pytest.raises(SourceDamage):
        found.extend(block.data for block in cut_lines(damaged(), Position(), 100, 200))
    cutter = cut_lines(damaged(), Position(), 100, 200)
    assert next(cutter).data == b"one\ntwo\n"


@given(st.lists(st.integers(0, 25)))
def test_rows_arrive_once_and_reading_goes_on_anywhere(sizes: list[int]) -> None:
    rows = [Row("x" * size) for size in sizes]
    blocks = list(cut_rows(rows, Position(), BLOCK))
    assert [row for block in blocks for row in block.data] == rows
    assert all(block.size >= BLOCK for block in blocks[:-1])
    for index, block in enumerate(blocks):
        assert list(cut_rows(rows[block.end.offset :], block.end, BLOCK)) == blocks[index + 1 :]
