"""What the algorithm does at each of Composer's events, in Composer's order."""

from __future__ import annotations

from composer.core import Event
from drawing import Drawing

from patch_algorithm.algorithm import patch_run

__all__ = ["HEIGHT", "WIDTH", "draw_events"]

WIDTH = 640
_STEP = 25.0
# In the words of a reader. The code says which events there are, and a missing line is an error.
_WORDS = {
    Event.AFTER_LOAD: "read the stages of a checkpoint",
    Event.FIT_START: "settle the switch; attach the hook to the embedding",
    Event.AFTER_DATALOADER: "cut and fold the rows; tokens are counted by now",
    Event.BEFORE_TRAIN_BATCH: "check that nobody edited the tokens",
    Event.AFTER_FORWARD: "check that the hook was used once",
    Event.BEFORE_LOSS: "score the logits on the next patch",
    Event.AFTER_LOSS: "give the model its own loss back",
    Event.AFTER_BACKWARD: "disarm the hook",
    Event.AFTER_TRAIN_BATCH: "refuse the step if tokens were edited",
    Event.BATCH_END: "log; at the end of the stage, switch",
    Event.EPOCH_END: "switch, if the stage ends with the epoch",
    Event.FIT_END: "take off what is left of the hooks",
}


def _handled() -> list[Event]:
    """The events that the code handles, in the order that Composer's enumeration has."""
    handled = [event for event in Event if hasattr(patch_run.PatchRun, f"_on_{event.value}")]
    if set(handled) - set(_WORDS) or set(_WORDS) - set(handled):
        raise ValueError(f"the code handles {handled}, the picture tells of {list(_WORDS)}")
    return handled


HEIGHT = 74 + _STEP * len(_WORDS)


def draw_events(drawing: Drawing) -> None:
    """Draws the events from the drawing's origin."""
    always = getattr(patch_run, "_EVERY_STAGE")  # noqa: B009 (a private name, read on purpose)
    palette = drawing.palette
    drawing.text(0, 14, "What happens at which event", 15, bold=True)
    drawing.text(0, 34, "in Composer's order; shaded: in patch stages only", color=palette.muted)
    for number, event in enumerate(_handled()):
        y = 50 + number * _STEP
        if event not in always:
            drawing.box(-8, y, WIDTH + 16, _STEP, palette.patches[0], radius=0)
        drawing.text(0, y + 17, event.name, 12.5, mono=True)
        drawing.text(212, y + 17, _WORDS[event])
    top = 50 + _handled().index(Event.AFTER_DATALOADER) * _STEP
    bottom = 50 + (_handled().index(Event.BATCH_END) + 1) * _STEP
    drawing.path(
        [(WIDTH - 2, top + 3), (WIDTH + 4, top + 3), (WIDTH + 4, bottom - 3), (WIDTH - 2, bottom - 3)],
        palette.theme.ink,
    )
    drawing.text(WIDTH - 8, (top + bottom) / 2 + 4, "each step", anchor="end", bold=True)
