"""An exported Hugging Face folder, read without running or loading anything of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_algorithm.common.context import stated_context

__all__ = ["CONFIG", "TOKENIZER_CONFIG", "ExportFolder", "read_export"]

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_CHECKPOINTS = ("*.pt", "*.distcp", ".metadata")
_LEVELS = ("", "*/", "*/*/", "*/*/*/")  # save_folder/huggingface/ba450/config.json
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class ExportFolder:
    """What a folder says of itself.

    Attributes:
        path: The folder.
        config: Its ``config.json``.
        own_code: The Python files that its model is defined in, where it brings them (``auto_map``).
        dtypes: The type that each weight is stored in, such as ``F32``; empty for pickled weights.
    """

    path: Path
    config: Mapping[str, Any]
    own_code: tuple[str, ...]
    dtypes: Mapping[str, str]

    @property
    def model_type(self) -> str:
        """What transformers knows the architecture by."""
        return self.config["model_type"]

    @property
    def architecture(self) -> str:
        """The model's class."""
        return (self.config.get("architectures") or [self.model_type])[0]

    @property
    def context(self) -> int | None:
        """Positions that the model takes; ``None`` where its config does not say it."""
        return stated_context(self.config)


def read_export(path: Path) -> ExportFolder:
    """Reads what is in a folder.

    Raises:
        ValueError: If it is no export, or a damaged one.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ValueError(
            f"{path} {what}. Give the folder of an export, which holds {CONFIG}; `hf_checkpointer` writes "
            "one to <its save_folder>/huggingface/ba<batch>."
        )
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"{path} holds an adapter (PEFT) and no model. Merge it into its base model first "
            "(merge_and_unload) and save that."
        )
    config = _config(path)
    return ExportFolder(path, config, _own_code(path, config), _dtypes(path))


def _config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} is not an export: it holds no {CONFIG}.{_what_else(path)}")
    config = read_json(path / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"{path / CONFIG} names no model_type; it is not the config of a model.")
    return config


def _what_else(path: Path) -> str:
    below = sorted(
        {found.parent for level in _LEVELS for found in path.glob(f"{level}{CONFIG}") if found.parent != path}
    )
    if below:
        listed = ", ".join(map(str, below[:5])) + (", ..." if len(below) > 5 else "")
        return f" Below it are: {listed}."
    if any(next(path.glob(pattern), None) for pattern in _CHECKPOINTS):
        return (
            " It holds checkpoints of Composer: give them with --checkpoint, and here the folder that "
            "`hf_checkpointer` wrote."
        )
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: If it is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); the file is damaged.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return content


def _own_code(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    references = (config.get("auto_map") or {}).values()
    files = sorted({f"{str(reference).split('--')[-1].split('.')[0]}.py" for reference in references})
    missing = [file for file in files if not (path / file).is_file()]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which its {CONFIG} names as the model's code.")
    return tuple(files)


def _dtypes(path: Path) -> dict[str, str]:
    """Of every stored weight; an empty mapping where the weights are pickled."""
    dtypes: dict[str, str] = {}
    for file in _weight_files(path):
        if file.suffix == ".safetensors":
            dtypes |= {name: tensor["dtype"] for name, tensor in _header(file).items()}
    return dtypes


def _weight_files(path: Path) -> list[Path]:
    for name in (_SAFETENSORS, _PICKLED):
        if (path / name).is_file():
            return [path / name]
        if (index := path / f"{name}.index.json").is_file():
            files = sorted({path / file for file in read_json(index).get("weight_map", {}).values()})
            if missing := [file.name for file in files if not file.is_file()]:
                raise ValueError(f"{path} lacks {', '.join(missing)}, which {index.name} names.")
            if files:
                return files
    raise ValueError(
        f"{path} holds no weights: expected {_SAFETENSORS} or {_PICKLED}, or an index of several."
        f"{_what_else(path)}"
    )


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The table at the start of a safetensors file, which also tells how long the file has to be."""
    size = file.stat().st_size
    with file.open("rb") as stored:
        start = stored.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LARGEST_HEADER + 1
        header = stored.read(length) if length <= _LARGEST_HEADER else b""
    try:
        table = json.loads(header)
        table.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in table.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{file} is not a safetensors file, or is damaged.") from error
    if size != expected:
        raise ValueError(f"{file} has {size:,} bytes and should have {expected:,}: it was cut short.")
    return table
