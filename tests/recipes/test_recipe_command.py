"""``patch-level recipe``: what it lists, shows, writes and refuses, and that the wheel holds the recipes."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from patch_algorithm.recipes import find_recipe, library, recipes

ROOT = Path(__file__).parents[2]
YAMLS = ROOT / "yamls"


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["recipe", *words])


def test_every_yaml_is_listed_with_its_title() -> None:
    listed = call().output
    assert {recipe.path for recipe in recipes()} == set(YAMLS.rglob("*.yaml"))
    for recipe in recipes():
        assert f"\n{recipe.name} " in f"\n{listed}"
        assert 20 < len(recipe.title) < 160, recipe.title
    assert "mpt-1b " in listed, "the name is without -patch"


def test_a_recipe_is_written_as_it_is(tmp_path: Path) -> None:
    done = call("mpt-1b", "--out", str(tmp_path / "my.yaml"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "my.yaml").read_text("utf-8") == (YAMLS / "mpt-1b-patch.yaml").read_text("utf-8")
    assert f"patch-level train {tmp_path}/my.yaml" in done.output


def test_without_out_it_is_shown() -> None:
    assert call("quickstart").output == (YAMLS / "quickstart.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", ["mpt-1b", "mpt-1b-patch", "mpt-1b-patch.yaml"])
def test_the_file_names_it_too(name: str) -> None:
    assert find_recipe(name).path.name == "mpt-1b-patch.yaml"


def test_overrides_are_written_and_comments_kept(tmp_path: Path) -> None:
    out = tmp_path / "my.yaml"
    overrides = [
        "algorithms.patch_level.k=2",
        "variables.mine=null",
        "loggers.wandb={}",
        "fsdp_config=null",
        "optimizer.betas=[0.9,0.99]",
        "optimizer.lr=3e-5",
        "train_loader.dataset.max_seq_len=${variables.tokens_per_row}",
        "callbacks.speed_monitor={window_size: 20}",
    ]
    done = call("mpt-1b", *overrides, "--out", str(out))
    assert done.exit_code == 0, done.output
    expected = OmegaConf.merge(OmegaConf.load(YAMLS / "mpt-1b-patch.yaml"), OmegaConf.from_cli(overrides))
    assert OmegaConf.load(out) == expected
    text = out.read_text("utf-8")
    assert "k: 2 # Tokens per patch." in text
    assert yaml.safe_load(text)["optimizer"]["lr"] == 3e-5, "3e-05 would be text to other readers of YAML"
    assert text.startswith("# MPT-1B on the Pile")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mpt-1bn"], "there is no recipe 'mpt-1bn'. Did you mean mpt-1b? The recipes are:"),
        (["zzz"], "there is no recipe 'zzz'. The recipes are:"),
        (["mpt-1b", "nonsense"], "is not of the form key=value"),
        (["mpt-1b", "algorithms.patch_level.raito=0.5"], "raito is not a known key. Did you mean ratio?"),
        (["mpt-1b", "algorithms.patch_lvel.k=2"], "no algorithm is registered as 'patch_lvel'"),
        (["quickstart", "--out", "there.yaml"], "there.yaml exists, and is not overwritten"),
        (["quickstart", "--out", "."], "exists, and is not overwritten"),
        (["quickstart", "--out", "none/my.yaml"], "there is no folder none"),
        (["--out", "my.yaml"], "without a recipe"),
    ],
)
def test_bad_input(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.yaml").write_text("mine\n")
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "mine\n"


def test_an_installation_without_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_CLONE", tmp_path)
    monkeypatch.setattr(library, "_INSTALLED", tmp_path / "none")
    done = call()
    assert done.exit_code == 2
    assert "this installation is broken" in done.output


def test_the_wheel_is_told_to_hold_them() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    home = library._INSTALLED.relative_to(ROOT).as_posix()
    assert wheel["force-include"] == {"yamls": home}


@pytest.mark.slow
def test_the_wheel_holds_them(tmp_path: Path) -> None:
    command = ["uv", "build", "--wheel", "--offline", "--out-dir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "hatchling" in done.stderr and done.returncode:
        pytest.skip("hatchling is not in uv's cache, and tests are offline")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for path in YAMLS.rglob("*"):
            if path.is_file():
                inside = f"patch_algorithm/recipes/yamls/{path.relative_to(YAMLS).as_posix()}"
                assert archive.read(inside) == path.read_bytes()
