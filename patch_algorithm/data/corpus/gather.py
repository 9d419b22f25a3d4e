"""Real text that every installation has: the docstrings and sources of installed packages."""

from __future__ import annotations

import ast
import gc
import hashlib
import math
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path

from patch_algorithm.common.progress_bar import progress_bar
from patch_algorithm.data.readers.texts import TextSource

__all__ = [
    "PACKAGES",
    "STDLIB",
    "builtin_source",
    "gather",
    "module_files",
    "package_root",
    "package_version",
]

STDLIB = "stdlib"
PACKAGES: tuple[str, ...] = (STDLIB, "torch", "transformers", "numpy", "sympy", "networkx")
"""The packages whose text is the built-in corpus, unless others are named."""

# Tests repeat themselves and some distributions leave them out, as they do IDLE and lib2to3: without
# them the corpus depends less on who packaged Python.
_SKIPPED_FOLDERS: frozenset[str] = frozenset(
    {"test", "tests", "testing", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3"}
)
# Shorter docstrings are mostly one-line labels, and the same ones everywhere.
_SHORTEST_DOCSTRING = 200
# Parsing is what takes the time: modules with less documentation than this are read as sources only.
_LEAST_SHARE_QUOTED = 0.3


def package_root(package: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        ValueError: If there is no such package.
    """
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"packages: {package!r} is not an installed top-level package. Name installed packages, or "
            f"{STDLIB!r} for Python's standard library."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_version(package: str) -> str:
    """The version of an installed package; of Python itself for its own library."""
    if package == STDLIB or package in sys.stdlib_module_names:
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"packages: {package!r} has no recorded version.") from error


def module_files(packages: Sequence[str]) -> list[Path]:
    """All Python files of the packages, in an order that is the same everywhere.

    They are ordered by the hash of their names, so that the first megabytes of them are a fair
    sample of all packages whatever their number is.
    """
    named: dict[str, Path] = {}
    for package in packages:
        root = package_root(package)
        for path in root.rglob("*.py"):
            inside = path.relative_to(root)
            if _SKIPPED_FOLDERS.isdisjoint(inside.parts[:-1]):
                named[f"{package}/{inside.as_posix()}"] = path
    return [named[name] for name in sorted(named, key=lambda name: _digest(name))]


def gather(packages: Sequence[str], megabytes: float) -> list[str]:
    """Gathers documents until they hold ``megabytes`` of text.

    The docstrings of a well-documented module make up one document. If these are not enough, whole
    source files follow. No docstring and no file is taken twice.

    Args:
        packages: Names of installed packages, or ``"stdlib"``.
        megabytes: Millions of bytes of UTF-8 to gather.

    Returns:
        The documents, in an order that depends on names and contents only.

    Raises:
        ValueError: If the packages do not hold that much text.
    """
    files = module_files(packages)
    wanted, size = int(megabytes * 1e6), 0
    seen: set[bytes] = set()
    documents: list[str] = []
    readers: tuple[Callable[[bytes, set[bytes]], str], ...] = (_module_docstrings, _whole_source)
    with _no_cycle_collection(), progress_bar("gathering text", wanted, "B") as bar:
        for read in readers:
            for path in files:
                text = read(path.read_bytes(), seen)
                if not text:
                    continue
                documents.append(text)
                grown = len(text.encode())
                size += grown
                bar.update(min(grown, wanted - bar.n))
                if size >= wanted:
                    return documents
    raise ValueError(
        f"megabytes: {megabytes} asked for, but the packages {', '.join(packages)} hold only "
        f"{size / 1e6:.1f}. Ask for less, or name more packages."
    )


def builtin_source(megabytes: float) -> TextSource:
    """The text of this installation as a source of documents named ``builtin``.

    Raises:
        ValueError: If ``megabytes`` is out of range.
    """
    if not 0 < megabytes < math.inf:
        raise ValueError(f"--builtin-megabytes is {megabytes!r}; expected a number above 0.")
    return TextSource(
        name="builtin",
        load=lambda: gather(PACKAGES, megabytes),
        version={"megabytes": megabytes, **{name: package_version(name) for name in PACKAGES}},
        text_bytes=int(megabytes * 1e6),
    )


@contextmanager
def _no_cycle_collection() -> Iterator[None]:
    # Syntax trees hold no cycles, and looking for some doubles the time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _module_docstrings(source: bytes, seen: set[bytes]) -> str:
    quoted = sum(len(text) for text in source.split(b'"""')[1::2])
    if quoted < _LEAST_SHARE_QUOTED * len(source):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and samples of broken code are part of some packages
        return ""
    return "\n\n".join(text for text in _docstrings(tree) if _is_new(text, seen))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text is not None and len(text) >= _SHORTEST_DOCSTRING:
            # Escapes in a docstring can stand for lone surrogates, which no encoder takes.
            yield text.encode(errors="replace").decode()
    for block in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            if isinstance(child, ast.stmt | ast.excepthandler):
                yield from _docstrings(child)


def _whole_source(source: bytes, seen: set[bytes]) -> str:
    try:
        text = source.decode()
    except UnicodeDecodeError:
        return ""
    return text if text and _is_new(text, seen) else ""


def _is_new(text: str, seen: set[bytes]) -> bool:
    digest = _digest(text)
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()
