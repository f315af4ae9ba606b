"""The wheel: what is in it, and that it works where nothing of this repository is on the path."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tracekit", "policies", "engine", "experiments")
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without network: setuptools leaves its workings beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=folder / "source", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path) -> Path:
    """The programs of a fresh virtual environment that has the wheel, and of this one the dependencies alone."""
    home = wheel.parent / "fresh"
    venv.create(home, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)
    libraries = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin"


def ran(program: Path, *arguments: str, cwd: Path) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_what_is_in_it(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert names == {name for name in wanted if not name.startswith("experiments/research/")}
    for name in ("engine/hardware/profiles/h100.toml", "engine/shapes/models/mixtral-8x7b.toml"):
        assert name in names
    assert any(name.startswith("experiments/demo/checkpoints/mixtral-mini/") for name in names)
    assert {f"{package}/py.typed" for package in PACKAGES} | {"tracekit/__init__.pyi"} <= names


def test_it_works_by_itself(programs: Path, tmp_path: Path) -> None:
    code, said, _ = ran(programs / "python", "-c", "import tracekit as tk; print(tk.replay, tk.__file__)", cwd=tmp_path)
    assert code == 0 and str(programs.parent) in said
    assert "rtx3060" in ran(programs / "tracekit", "hardware", "show", "rtx3060", cwd=tmp_path)[1]


@pytest.mark.parametrize("file", ["policies/__init__.py", "engine/__init__.py", "experiments/__init__.py", "engine.py"])
def test_a_users_own_package_of_our_name_is_named(programs: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    name = file.partition("/")[0]
    said = f"{tmp_path / name} hides the package {name.removesuffix('.py')} of moe-tracekit, which is in "
    code, _, errors = ran(programs / "python", "-c", "import tracekit as tk; tk.Plan", cwd=tmp_path)
    assert code == 1 and errors.splitlines()[-1].startswith(f"tracekit.errors.TracekitError: {said}")
    code, out, errors = ran(programs / "python", "-m", "tracekit", "--version", cwd=tmp_path)
    assert (code, out, errors.count("\n")) == (2, "", 1) and errors.startswith(f"error: {said}")
    assert "rename yours" in errors


def test_a_folder_of_our_name_without_modules_hides_nothing(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    assert ran(programs / "python", "-m", "tracekit", "--version", cwd=tmp_path)[1].startswith("tracekit ")
