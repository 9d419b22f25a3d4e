"""What a package's source says of names, arguments and registry entries, without importing the package.

Importing llm-foundry brings mlflow, datasets and every model of it: tens of CPU seconds, of which a check of
names needs nothing. What cannot be read with certainty raises :class:`SourceUnclearError`; the package is
then imported and asked.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

__all__ = [
    "Arguments",
    "SourceUnclearError",
    "arguments_of",
    "definition_of",
    "fields_of",
    "keys_of",
    "registered_in",
]

_HARMLESS_DECORATORS = {"dataclass", "runtime_checkable", "final", "abstractmethod"}


class SourceUnclearError(LookupError):
    """The source does not say it in a form that is read here."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a function or a class.

    Attributes:
        names: Their names, also of those that collect others.
        takes_any: Whether keywords of any name are taken.
    """

    names: frozenset[str]
    takes_any: bool


def arguments_of(module: str, name: str) -> Arguments:
    """The arguments of a function, or of a class's constructor.

    Raises:
        SourceUnclearError: If the source does not say.
    """
    return _of_node(*_find(module, name))


def definition_of(module: str, name: str) -> tuple[str, str]:
    """The module that defines a name, and its name there, following imports.

    Raises:
        SourceUnclearError: If the source does not say.
    """
    where, node = _find(module, name)
    return where, node.name


def fields_of(module: str, name: str) -> frozenset[str]:
    """The names of a dataclass's own fields.

    Raises:
        SourceUnclearError: If there is no such dataclass, or it inherits fields.
    """
    _, node = _find(module, name)
    if not isinstance(node, ast.ClassDef) or node.bases:
        raise SourceUnclearError(f"{module}.{name} is no dataclass of its own.")
    return _annotated(node)


def keys_of(module: str, name: str) -> tuple[str, ...]:
    """The keys of a dictionary that a module holds.

    Raises:
        SourceUnclearError: If there is no such dictionary, or its keys are no plain strings.
    """
    for node in _statements(_tree(module).body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        value = getattr(node, "value", None)
        if named and isinstance(value, ast.Dict):
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
            if len(keys) == len(value.keys) and all(isinstance(key, str) for key in keys):
                return tuple(map(str, keys))
    raise SourceUnclearError(f"{module} has no dictionary {name} with plain keys.")


@lru_cache
def registered_in(package: str, kind: str) -> Mapping[str, tuple[str, str]]:
    """What a package registers under a name: ``algorithms.register('alibi', func=Alibi)``.

    Args:
        package: Such as ``llmfoundry``.
        kind: The name of its registry, such as ``algorithms``.

    Returns:
        Module and name of each entry.

    Raises:
        SourceUnclearError: If one cannot be read.
    """
    root, found = _root(package), {}
    for path in sorted(root.rglob("__init__.py")):
        parts = path.parent.relative_to(root).parts
        module = ".".join((package, *parts))
        for node in _statements(_tree(module).body):
            call = node.value if isinstance(node, ast.Expr) else None
            if isinstance(call, ast.Call) and _registers(call.func, kind):
                found[_entry_name(call, module)] = (module, _entry_value(call, module))
    return found


def _registers(function: ast.expr, kind: str) -> bool:
    if not isinstance(function, ast.Attribute) or function.attr != "register":
        return False
    return isinstance(function.value, ast.Name) and function.value.id == kind


def _entry_name(call: ast.Call, module: str) -> str:
    if len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
        return call.args[0].value
    raise SourceUnclearError(f"{module} registers something without a plain name.")


def _entry_value(call: ast.Call, module: str) -> str:
    for keyword in call.keywords:
        if keyword.arg == "func" and isinstance(keyword.value, ast.Name):
            return keyword.value.id
    raise SourceUnclearError(f"{module} registers something that is no name.")


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _find(module: str, name: str) -> tuple[str, _Function | ast.ClassDef]:
    """Where a name is defined, following imports."""
    for node in _statements(_tree(module).body):
        if isinstance(node, ast.ClassDef | _Function) and node.name == name:
            return module, node
    for node in _statements(_tree(module).body):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_origin(node, module), alias.name)
    raise SourceUnclearError(f"{module} neither defines nor imports {name}.")


def _origin(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts if _is_package(module) and node.level == 1 else parts[: len(parts) - node.level]
    return ".".join([*above, *([node.module] if node.module else [])])


def _of_node(module: str, node: _Function | ast.ClassDef) -> Arguments:
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called).rpartition(".")[2] not in _HARMLESS_DECORATORS:
            raise SourceUnclearError(f"{module}.{node.name} is changed by a decorator.")
    if isinstance(node, _Function):
        return _of_signature(node.args)
    own = {one.name: one for one in node.body if isinstance(one, _Function)}
    if node.keywords or "__new__" in own:
        raise SourceUnclearError(f"{module}.{node.name} makes its objects in a way of its own.")
    if "__init__" in own:
        return _of_signature(own["__init__"].args, bound=True)
    if node.decorator_list:
        if node.bases:
            raise SourceUnclearError(f"{module}.{node.name} may inherit fields.")
        return Arguments(_annotated(node), takes_any=False)
    return _of_bases(module, node)


def _of_bases(module: str, node: ast.ClassDef) -> Arguments:
    """Those of the only base; the order of several is Python's to find."""
    if len(node.bases) != 1 or not isinstance(node.bases[0], ast.Name):
        raise SourceUnclearError(f"{module}.{node.name} has neither a constructor nor a single base.")
    return arguments_of(module, node.bases[0].id)


def _of_signature(given: ast.arguments, bound: bool = False) -> Arguments:
    plain = [one.arg for one in (*given.posonlyargs, *given.args)][1 if bound else 0 :]
    names = [*plain, *(one.arg for one in given.kwonlyargs)]
    names += [one.arg for one in (given.vararg, given.kwarg) if one is not None]
    return Arguments(frozenset(names), takes_any=given.kwarg is not None)


def _annotated(node: ast.ClassDef) -> frozenset[str]:
    targets = (one.target for one in node.body if isinstance(one, ast.AnnAssign))
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under its conditions and its ``try`` too."""
    for node in body:
        yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                yield from _statements(getattr(node, part, []))


@lru_cache
def _root(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceUnclearError(f"{package} is no package with source.")
    return Path(next(iter(spec.submodule_search_locations)))


def _file(module: str) -> Path:
    package, *parts = module.split(".")
    folder = _root(package).joinpath(*parts)
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _is_package(module: str) -> bool:
    return _file(module).name == "__init__.py"


@lru_cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(_file(module).read_text("utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceUnclearError(f"{module} cannot be read: {error}") from error
