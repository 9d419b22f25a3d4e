"""The only room that reaches into a model.

What a model says of itself, whether it can be trained in patches, the hooks on its embedding and its
loss call, and its FLOPs.
"""

from __future__ import annotations

from patch_algorithm.model_access.flops import flop_counter
from patch_algorithm.model_access.hooks import ModelHooks, detach_hooks
from patch_algorithm.model_access.reading import context_length, input_embedding, unwrap
from patch_algorithm.model_access.support import refuse_unsupported

__all__ = [
    "ModelHooks",
    "context_length",
    "detach_hooks",
    "flop_counter",
    "input_embedding",
    "refuse_unsupported",
    "unwrap",
]
