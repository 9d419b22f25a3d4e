"""What the compiler makes of the fused loss kernels, for GPUs that need not be here, and what they move.

Compiles ahead of time and prints the table of docs/loss-kernels.md:

    python benchmarks/kernels.py

Shapes: B rows, P positions, V vocabulary, K targets per position.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from patch_algorithm.loss import patch_cross_entropy, triton_kernels
from patch_algorithm.loss.fused import SUMMED_AT_ONCE, choices

ARCHITECTURES = {80: "A100", 90: "H100", 100: "B200"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KERNELS: dict[str, Any] = {
    "forward": triton_kernels.forward_kernel,
    "backward": triton_kernels.backward_kernel,
    "sum": triton_kernels.sum_kernel,
}
B, P, K = 8, 1024, 4
_TYPES = {
    "logits": None, "grad": None, "targets": "i64", "weights": "fp32", "max": "fp32", "sum": "fp32",
    "loss": "fp32", "upstream": "fp32", "count": "i32", "hits": "i32",
    "loss_out": "fp32", "count_out": "i64", "hits_out": "i64",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What is to be seen of a kernel's machine code.

    Attributes:
        registers: Of each thread.
        spilled: Bytes of each thread that did not fit them: stack and local memory.
        accesses: Loads (``LDG``) and stores (``STG``) of global memory, by the instruction's full name.
        spill_accesses: Loads and stores of local memory.
    """

    registers: int
    spilled: int
    accesses: Counter[str]
    spill_accesses: int


def compiled(
    name: str,
    dtype: str,
    vocabulary: int,
    architecture: int,
    weighted: bool = False,
    k: int = K,
    apart: bool = False,
) -> Compiled:
    """Compiles a kernel as a launch would.

    Args:
        name: One of :data:`KERNELS`.
        dtype: One of :data:`DTYPES`.
        vocabulary: V.
        architecture: Such as 90 for sm_90.
        weighted: Whether targets are weighted.
        k: Targets per position.
        apart: Whether a position's logits are not beside each other; else the logits are contiguous.
    """
    shape = (B, vocabulary, P) if apart else (B, P, vocabulary)
    logits = torch.empty(shape, dtype=DTYPES[dtype], device="meta")
    logits_BPV = logits.mT if apart else logits
    constants = choices(logits_BPV, logits_BPV, k, weighted)
    options = {"num_warps": constants.pop("num_warps")}
    if name == "sum":
        constants = {"BLOCK": SUMMED_AT_ONCE}
    strides = dict(zip(("sb", "sp", "sv"), logits_BPV.stride(), strict=True))
    numbers = {"P": P, "V": vocabulary, "K": k, "N": B * P, "ignore_index": -100}
    numbers |= {f"{of}_{axis}": stride for of in ("logit", "grad") for axis, stride in strides.items()}
    numbers |= {"target_sb": P * k, "target_sp": k, "target_sk": 1}
    source = _source(KERNELS[name], dtype, numbers, constants, weighted)
    target = GPUTarget("cuda", architecture, 32)
    return _read(triton.compile(source, target=target, options=options).asm["cubin"])


def _source(
    kernel: Any, dtype: str, numbers: dict[str, int], constants: dict[str, Any], weighted: bool
) -> ASTSource:
    """Types of the arguments as Triton's launcher finds them; it treats 1 and multiples of 16 apart."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, argument in enumerate(kernel.arg_names):
        special = argument not in kernel.do_not_specialize
        number = numbers.get(argument)
        if argument in constants:
            signature[argument] = "constexpr"
        elif (argument == "weights_ptr" and not weighted) or (number == 1 and special):
            signature[argument], constants[argument] = "constexpr", number
        elif number is None:
            signature[argument] = f"*{_TYPES[argument.removesuffix('_ptr')] or dtype}"
        else:
            signature[argument] = "i32" if number < 2**31 else "i64"
        if signature[argument] != "constexpr" and special and (number or 0) % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs=constants, attrs=attributes)


def _read(cubin: bytes) -> Compiled:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {usage}")
    registers, stack, local = map(int, found.groups())
    accesses = Counter(re.findall(r"\b((?:LDG|STG)\.[\w.]+)", code))
    return Compiled(registers, stack + local, accesses, len(re.findall(r"\b(?:LDL|STL)\b", code)))


def rows() -> Iterator[str]:
    """The table, as Markdown."""
    yield "| kernel | logits | vocabulary | registers, sm_80 to sm_100 | spilled bytes | 16 bytes wide |"
    yield "|---|---|--:|---|--:|---|"
    for name in ("forward", "backward"):
        for dtype in DTYPES:
            for vocabulary in (50_304, 50_257):
                all_of = [compiled(name, dtype, vocabulary, one) for one in ARCHITECTURES]
                wide = all_of[1].accesses
                counted = f"{wide['LDG.E.128']} loads" + (
                    f", {wide['STG.E.128']} stores" if wide["STG.E.128"] else ""
                )
                registers = ", ".join(str(one.registers) for one in all_of)
                spilled = max(one.spilled for one in all_of)
                yield f"| {name} | {dtype} | {vocabulary:,} | {registers} | {spilled} | {counted} |"


_aten: Any = torch.ops.aten
_FREE = {_aten.new_empty.default, _aten.empty_like.default, _aten.gather.default, _aten.scatter_add_.default}
_FREE |= {_aten.nll_loss_forward.default}
_WRITES_ONLY = {_aten.nll_loss_backward.default}  # zeros, and one element of each row
_OVERWRITES = {_aten.copy_.default}


class MovedBytes(TorchDispatchMode):
    """Adds up what torch's operations read and write: the tensors that each is given and makes.

    Views and new memory cost nothing. What reads or writes a few elements of a row is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one operation."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func not in _FREE:
            given = [] if func in _WRITES_ONLY else args[1:] if func in _OVERWRITES else args
            touched = [t for t in tree_leaves((given, result)) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in touched)
        return result


def by_torch(loss: Callable[[Tensor, Tensor], Tensor], dtype: str, vocabulary: int) -> float:
    """Bytes that a loss moves forward and backward for each logit, counted on the meta device."""
    logits_NV = torch.empty(B * P, vocabulary, dtype=DTYPES[dtype], device="meta", requires_grad=True)
    targets_NK = torch.zeros(B * P, K, dtype=torch.int64, device="meta")
    with MovedBytes() as moved:
        loss(logits_NV, targets_NK).backward()
    return moved.total / logits_NV.numel()


def fused_bytes(dtype: str, vocabulary: int) -> float:
    """The same of the fused kernels: each logit read twice and each gradient written once.

    Beside them, for each position: its targets are read twice; forward 16 bytes and k logits once more,
    backward k logits, and k gradients are written again; five numbers are written, three read twice.
    """
    size = DTYPES[dtype].itemsize
    position = 2 * 8 * K + 16 + 3 * K * size + 20 + 12 + 12
    return 3 * size + position / vocabulary


def moved() -> Iterator[str]:
    """The table of bytes, as Markdown."""
    yield "| bytes for each logit, forward and backward | bf16, 50,304 | fp32, 50,304 | bf16, 128,256 |"
    yield "|---|--:|--:|--:|"
    columns = [("bf16", 50_304), ("fp32", 50_304), ("bf16", 128_256)]
    lines: dict[str, Callable[[str, int], float]] = {
        "fused kernels": fused_bytes,
        "torch, in chunks": lambda *column: by_torch(_ours, *column),
        "one `F.cross_entropy`": lambda *column: by_torch(_one, *column),
        "k calls of it": lambda *column: by_torch(_calls, *column),
    }
    for name, count in lines.items():
        yield f"| {name} | {' | '.join(f'{count(*column):.1f}' for column in columns)} |"


def _ours(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    return patch_cross_entropy(logits_NV, targets_NK, kernel="torch").mean


def _one(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV, targets_NK[:, 0])


def _calls(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(logits_NV, t_N) for t_N in targets_NK.unbind(1)]).mean()


if __name__ == "__main__":
    for row in [*moved(), "", *rows()]:
        print(row, flush=True)
