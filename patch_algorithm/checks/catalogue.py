"""Every check by its id: how severe its findings are, what it finds, and whether the algorithm makes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["CATALOGUE", "Check", "Severity"]


class Severity(str, Enum):
    """How severe a finding is."""

    error = "error"
    """The run will not start, will break off, or will silently train on something else."""
    warning = "warning"
    """The run will work, and will most likely be worse or more expensive than it could be."""
    note = "note"
    """Worth knowing. Nothing has to be changed."""
    skipped = "skipped"
    """The check cannot be made here; that is not a failure."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: Its name.
        subject: The section of the table that it belongs to.
        severity: How severe its findings are.
        summary: What it finds.
        in_algorithm: Whether ``patch_level`` makes it, too, when training starts.
    """

    id: str
    subject: str
    severity: Severity
    summary: str
    in_algorithm: bool = False


# Subject, then its checks: id, severity, summary. A star marks those that the algorithm makes, too.
_TABLE = """
# The file
unknown-key                error    A key that llm-foundry refuses, with the nearest known one.
ignored-key                warning  A key that llm-foundry silently ignores, and that looks misspelt.
unknown-name               error    An optimizer, loader, callback, ... that is not registered.
missing-key                error    A key without which llm-foundry does not start.
bad-value                  error    A value of the wrong kind, or one that cannot be resolved.

# Learning rate and optimizer
rate-low-at-switch         warning* Less than three quarters of the peak rate is left for the token stage.
rate-decays-in-patch-stage warning* The decay begins before the switch.
rate-high-at-end           warning* More than half of the peak rate is left at the end of the run.
rate-zero-early            warning* The rate is zero before the run ends.
warmup-long                warning* The warm-up takes more than a quarter of the run.
no-warmup                  warning* The run starts at its full rate.
no-warmup-after-reset      warning* A reset of the optimizer at the switch without a new warm-up.
schedule-refused           error    The scheduler cannot be built, or refuses the run's length or unit.
weight-decay-decoupled     warning* `decoupled_adamw` with a weight decay that is meant for `adamw`.

# Stages
ratio-high                 warning* More than 0.8 of the run is in patches (0.5 with `constant_compute`).
k-high                     warning* Patches of more than 8 tokens.
token-stage-short          warning* A token stage too short to recover from the switch.
no-switch                  warning  The run ends as a patch model. The algorithm has a warning of its own.
tokens-per-parameter       note     Fewer tokens per parameter than are known to pay on equal data.

# Rows and batches
rows-of-context            warning* Rows shorter than k * L: positions and memory grow at the switch.
rows-do-not-fit            error    Rows that some stage cannot cut or fold; `seq_len` beyond the context.
rows-not-cut               note     No `seq_len` and no known context: the token stage takes whole rows.
switch-not-rehearsed       warning* Positions grow at the switch, and `rehearse_switch` is off.
batch-not-divisible        error    A global batch that the processes cannot share evenly.
microbatch-larger-than-batch note   A microbatch of more rows than a device has.
microbatch-not-whole       error    A microbatch that is not a whole number of rows.
eval-rows-beyond-context   error    Evaluation rows longer than the model's context.

# Data and tokenizer
rows-cut-short             error    Rows on disk longer than the loader reads; it drops the rest, or refuses.
rows-shorter-than-asked    error    Rows on disk shorter than `max_seq_len` says.
eval-rows-cut-short        warning  Rows on disk longer than an eval loader of llm-foundry reads.
data-missing               error    No dataset in the folder that a loader names.
data-damaged               error    A description or an index that cannot be read.
tokenizer-not-found        error    A tokenizer path without a tokenizer, or with one that cannot be read.
tokenizer-not-the-datas    error    The run's tokenizer is not the one that the data was written with.
tokenizer-named-otherwise  note     Perhaps another tokenizer than the data's: only the names are compared.
tokenizer-context          note     `model_max_length` is not the model's context, in a run that exports.
vocabulary-too-small       error    The model has fewer entries than the data has ids.
vocabulary-resized         warning  The same, where Composer enlarges the model's embedding.
data-repeated              warning  The run reads the data more than 4 times.
passes-over-data           note     How often the data is read, if that is not about once.
eval-one-component         warning  Evaluation sees one component of a mixture.
eval-reads-training-data   warning  An eval loader reads the training rows.

# Hardware
flash-attention-missing    error    Flash attention is asked for and not installed.
fused-loss-missing         error    `loss_fn: fused_crossentropy` without its package.
precision-on-cpu           error    A precision that CPUs do not have.
microbatch-auto-on-cpu     error    `device_train_microbatch_size: auto` on a CPU.
flash-attention-on-cpu     error    Flash attention on a CPU.
loss-kernel-on-cpu         error    `patch_level.loss_kernel: triton` on a CPU.
needs-gpu                  note     What the file needs of a GPU; it was not checked on this machine.

# Evaluation and checkpoints
no-evaluation              note     Nothing is evaluated.
eval-misses-switch         warning  `eval_at_switch` is off, and no evaluation falls on the switch.
save-misses-switch         warning  `checkpoint_at_switch` is off, and no checkpoint falls on the switch.
save-folder-used           error    Later checkpoints in the save folder, no `autoresume` or `save_overwrite`.
disk-space                 warning  Less free space than the checkpoints to be kept take.
folder-not-writable        error    A save folder that cannot be written.

# Exports
export-misread             error    Without `trust_remote_code`, transformers silently loads another model.
export-weights             error    Weights that are missing from the files, or that the model does not have.
export-differs             error    Weights or logits that are not the checkpoint's.
export-context             error    The tokenizer states another context than the model has.
export-end-of-text         warning  `generate()` does not stop at the tokenizer's end of a text.
export-patch-stage         warning  The checkpoint is of a patch stage; its model is not finished.
export-other-run           warning  The configuration has other stages than the checkpoint.

# Environment
package-missing            error    A package that training needs and that is not installed.
untested-version           warning  A version outside the range that this package declares.
not-the-tested-version     note     A version in the range that is not the tested one.
not-registered             error    Names of this package that llm-foundry does not find.
no-gpu                     note     No GPU on this machine.
no-flash-attention         note     A GPU, but no flash-attn.
advisory                   note     A security advisory of an installed version that matters in training.
not-writable               warning  A folder for temporary files or caches that cannot be written.
"""


def _read(table: str) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    subject = ""
    for line in filter(None, table.splitlines()):
        if line.startswith("# "):
            subject = line.removeprefix("# ")
            continue
        name, severity, summary = line.split(maxsplit=2)
        in_algorithm = severity.endswith("*")
        checks[name] = Check(name, subject, Severity(severity.rstrip("*")), summary, in_algorithm)
    return checks


CATALOGUE = _read(_TABLE)
"""The checks by id, in the order of the table in ``docs/checks.md``."""
