"""Which room of the package may import which: every arrow goes down, and there is no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import patch_algorithm

PACKAGE = Path(patch_algorithm.__file__).parent
# From the top floor down. A room may import those listed for it, and nothing else of the package.
BELOW: dict[str, set[str]] = {
    "cli": {
        "preflight",
        "train",
        "recipes",
        "planning",
        "reporting",
        "evaluation",
        "export",
        "data",
        "common",
    },
    "train": {"preflight", "checks", "monitoring", "common"},
    "recipes": {"planning", "checks", "common"},
    "registry": {"algorithm", "monitoring", "optim", "data"},
    "preflight": {"planning", "checks", "stages", "data", "common"},
    "export": {"evaluation", "checkpoints", "planning", "checks", "data", "common"},
    "evaluation": {"checkpoints", "model_access", "data", "common"},
    "checkpoints": {"stages", "data", "common"},
    "planning": {"algorithm", "checks", "model_access", "monitoring", "optim", "stages", "data", "common"},
    "algorithm": {"checks", "model_access", "stages", "patching", "loss", "common"},
    "monitoring": {"model_access", "stages", "common"},
    "reporting": {"evaluation", "monitoring", "stages", "common"},
    "optim": {"stages", "common"},
    "checks": {"stages", "common"},
    "data": {"common"},
    "model_access": {"patching", "loss", "common"},
    "patching": {"loss"},
    "stages": {"common"},
    "loss": set(),
    "common": set(),
}
# The same within the data half.
DATA_BELOW: dict[str, set[str]] = {
    "commands": {"conversion", "corpus", "dataset"},
    "loader": {"dataset", "tokens"},
    "corpus": {"conversion", "readers", "tokens"},
    "conversion": {"readers", "tokens", "dataset"},
    "readers": set(),
    "tokens": set(),
    "dataset": set(),
}
TORCH_ALONE = {"patching", "loss"}


def room(module: str) -> str:
    """The room, or the door, of a module of the package; the face's is empty."""
    return module.partition(".")[2].partition(".")[0]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, in functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            if node.module in ("patch_algorithm", "patch_algorithm.data"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def test_at_the_top_are_the_rooms_and_the_doors_and_nothing_else() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert entries - {"__pycache__"} == {*BELOW, "__init__"}


@pytest.mark.parametrize("module", FILES)
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    here = room(module)
    if not here:  # the face names what users import
        return
    ours = {name for name in imports(FILES[module]) if name.startswith("patch_algorithm")}
    above = {name for name in ours if room(name) not in BELOW[here] | {here}}
    assert not above, f"{module} imports {sorted(above)}"


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("patch_algorithm.data.")])
def test_a_room_of_the_data_half_imports_only_rooms_below_it(module: str) -> None:
    def data_room(name: str) -> str:
        return name.removeprefix("patch_algorithm.data.").partition(".")[0]

    here = data_room(module)
    ours = {name for name in imports(FILES[module]) if name.startswith("patch_algorithm.data.")}
    above = {name for name in ours if data_room(name) not in DATA_BELOW[here] | {here}}
    assert not above, f"{module} imports {sorted(above)}"


def test_in_the_data_half_are_its_rooms_and_its_commands_and_nothing_else() -> None:
    entries = {path.stem for path in (PACKAGE / "data").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert entries - {"__pycache__"} == {*DATA_BELOW, "__init__"}


@pytest.mark.parametrize("laws", [BELOW, DATA_BELOW], ids=["package", "data"])
def test_the_laws_themselves_have_no_circle(laws: dict[str, set[str]]) -> None:
    left = dict(laws)
    while left:
        ground = {name for name, below in left.items() if not below & left.keys()}
        assert ground, f"a circle among {sorted(left)}"
        left = {name: below for name, below in left.items() if name not in ground}


@pytest.mark.parametrize("name", sorted(BELOW))
def test_no_circle_inside_a_room(name: str) -> None:
    left = {
        module: {
            other for other in imports(path) if other in FILES and room(other) == name and other != module
        }
        for module, path in FILES.items()
        if room(module) == name
    }
    inside = {module: path for module, path in FILES.items() if room(module) == name}
    face = f"patch_algorithm.{name}"
    left = {module: (imports(path) & inside.keys()) - {module, face} for module, path in inside.items()}
    while left:
        ground = {module for module, others in left.items() if not others & left.keys()}
        assert ground, f"a circle among {sorted(left)}"
        left = {module: others for module, others in left.items() if module not in ground}


@pytest.mark.parametrize("module", [name for name in FILES if room(name) in TORCH_ALONE])
def test_the_pure_rooms_name_torch_alone(module: str) -> None:
    import sys

    outside = {name.partition(".")[0] for name in imports(FILES[module])}
    assert outside - set(sys.stdlib_module_names) <= {"torch", "triton", "patch_algorithm"}


@pytest.mark.parametrize("module", FILES)
def test_files_are_short_enough_to_be_read(module: str) -> None:
    assert len(FILES[module].read_text("utf-8").splitlines()) <= 350
