"""A text of eight tokens in both stages, folded by the package's own functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from drawing import Drawing

from patch_algorithm.loss import IGNORE_INDEX
from patch_algorithm.patching import fold_rows, next_patch_targets

__all__ = ["HEIGHT", "WIDTH", "K", "draw_stages"]

WORDS = ("The", "cat", "sat", "on", "the", "mat", "and", "slept")
K = 4
WIDTH, HEIGHT = 544, 418
_BOX, _GAP, _BETWEEN, _TALL = 59.0, 4.0, 16.0, 25.0


def draw_stages(drawing: Drawing) -> None:
    """Draws the patch stage above the token stage, from the drawing's origin."""
    ids_BT = torch.arange(len(WORDS))[None]
    x, y = drawing.x, drawing.y
    _patch_stage(drawing, fold_rows(ids_BT, K)[0].tolist(), next_patch_targets(ids_BT, K)[0].tolist())
    drawing.at(x, y + 236)
    _token_stage(drawing, fold_rows(ids_BT, 1)[0].tolist(), next_patch_targets(ids_BT, 1)[0].tolist())
    drawing.at(x, y)


def _left(token: int) -> float:
    return token * (_BOX + _GAP) + (token // K) * _BETWEEN


def _middle(tokens: Sequence[int]) -> float:
    return (_left(tokens[0]) + _left(tokens[-1]) + _BOX) / 2


def _token(drawing: Drawing, x: float, y: float, token: int, faint: bool = False) -> None:
    palette = drawing.palette
    fill = palette.plain if faint else palette.patches[token // K]
    drawing.box(x, y, _BOX, _TALL, fill)
    drawing.text(x + _BOX / 2, y + 17, WORDS[token], anchor="middle", mono=True)


def _heading(drawing: Drawing, name: str, what: str) -> None:
    drawing.text(0, 14, name, 15, bold=True)
    drawing.text(106, 14, what, 13, color=drawing.palette.muted)


def _model(drawing: Drawing, y: float, words: str) -> None:
    drawing.box(0, y, _left(len(WORDS) - 1) + _BOX, 28, drawing.palette.model, drawing.palette.theme.faint)
    drawing.text(_middle((0, len(WORDS) - 1)), y + 19, words, anchor="middle")


def _patch_stage(drawing: Drawing, patches: list[list[int]], targets: list[list[int]]) -> None:
    ink, faint = drawing.palette.theme.ink, drawing.palette.theme.faint
    _heading(
        drawing, "Patch stage", f"first part of the run: {len(WORDS)} tokens are {len(patches)} positions"
    )
    for number, patch in enumerate(patches):
        middle = _middle(patch)
        for token in patch:
            _token(drawing, _left(token), 26, token)
            start, end = _left(token) + _BOX / 2, middle + (token - patch[0] - (K - 1) / 2) * 26
            drawing.path([(start, 26 + _TALL), (end, 68)], faint)
        drawing.box(middle - 96, 68, 192, _TALL, drawing.palette.patches[number])
        drawing.text(middle, 85, f"mean of {len(patch)} embeddings", anchor="middle")
        drawing.path([(middle, 93), (middle, 104)], ink, arrow=True)
        scored = [target for target in targets[number] if target != IGNORE_INDEX]
        if scored:
            drawing.path([(middle, 136), (middle, 160)], ink, 2, arrow=True)
            width = len(scored) * (_BOX + _GAP) + _GAP
            drawing.box(middle - width / 2, 164, width, _TALL + 8, "none", ink, radius=6)
            for place, target in enumerate(scored):
                _token(drawing, middle - width / 2 + _GAP + place * (_BOX + _GAP), 168, target)
            drawing.text(middle, 214, f"one prediction, {len(scored)} targets", anchor="middle")
        else:
            drawing.path([(middle, 136), (middle, 160)], faint, 2, arrow=True)
            drawing.text(middle, 185, "the patch after it", anchor="middle", color=drawing.palette.muted)
    _model(drawing, 107, "the model")


def _token_stage(drawing: Drawing, positions: list[list[int]], targets: list[list[int]]) -> None:
    ink, faint = drawing.palette.theme.ink, drawing.palette.theme.faint
    _heading(
        drawing, "Token stage", f"the rest, ordinary training: {len(positions)} positions, next token each"
    )
    for (token,), (target,) in zip(positions, targets, strict=True):
        middle = _left(token) + _BOX / 2
        _token(drawing, _left(token), 26, token)
        drawing.path([(middle, 51), (middle, 63)], ink, arrow=True)
        seen = target != IGNORE_INDEX
        drawing.path([(middle, 95), (middle, 110)], ink if seen else faint, arrow=True)
        if seen:
            _token(drawing, _left(token), 114, target)
        else:
            drawing.text(middle, 131, "…", anchor="middle", color=drawing.palette.muted)
    _model(drawing, 66, "the same model, the same weights")
    drawing.text(
        _middle((0, len(WORDS) - 1)),
        164,
        "No new parameters: what comes out is an ordinary model.",
        anchor="middle",
        color=drawing.palette.muted,
    )
