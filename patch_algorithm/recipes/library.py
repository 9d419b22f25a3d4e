"""The recipes of this installation: their names, what each is, and their text.

They are kept in `yamls/` of the repository, which the wheel holds as `patch_algorithm/recipes/yamls`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Recipe", "find_recipe", "recipes"]

_HERE = Path(__file__).parent
_INSTALLED = _HERE / "yamls"
_CLONE = _HERE.parents[1] / "yamls"
_PATCH = "-patch"


@dataclass(frozen=True)
class Recipe:
    """A training configuration that comes with the package.

    Attributes:
        name: Its path below `yamls/`, without `-patch` and `.yaml`: `paper/llama-370m`.
        path: The file.
    """

    name: str
    path: Path

    @property
    def text(self) -> str:
        """The YAML, with its comments."""
        return self.path.read_text("utf-8")

    @property
    def title(self) -> str:
        """The first sentence of its header."""
        comment = " ".join(_comment(self.text))
        return comment.partition(". ")[0].removesuffix(".") + "."


def recipes() -> list[Recipe]:
    """All recipes, by name; those of the first folder come first.

    Raises:
        ValueError: If this installation has none.
    """
    home = _INSTALLED if _INSTALLED.is_dir() else _CLONE
    found = [Recipe(_name(path.relative_to(home)), path) for path in home.rglob("*.yaml")]
    if not found:
        raise ValueError(f"this installation is broken: there are no recipes in {_INSTALLED}. Reinstall it.")
    return sorted(found, key=lambda recipe: ("/" in recipe.name, recipe.name))


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: If there is none; it names the nearest, and lists all.
    """
    known = {recipe.name: recipe for recipe in recipes()}
    asked = name.removesuffix(".yaml").removesuffix(_PATCH)
    if asked in known:
        return known[asked]
    # The last part alone names a recipe as well as most people remember it.
    by_end = {full.rpartition("/")[2]: full for full in known}
    close = difflib.get_close_matches(asked, [*known, *by_end], n=1)
    guess = f" Did you mean {by_end.get(close[0], close[0])}?" if close else ""
    raise ValueError(f"there is no recipe {name!r}.{guess} The recipes are: {', '.join(known)}.")


def _name(path: Path) -> str:
    return path.with_suffix("").as_posix().removesuffix(_PATCH)


def _comment(text: str) -> list[str]:
    """The lines of the comment that the file begins with, up to its first blank line."""
    lines: list[str] = []
    for line in text.splitlines():
        stripped = line.removeprefix("#").strip()
        if not line.startswith("#") or not stripped:
            break
        lines.append(stripped)
    return lines
