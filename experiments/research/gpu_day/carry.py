"""python -m experiments.research.gpu_day.carry [FOLDER]: what a bare machine with a GPU must be given beside the tree.

Such machines have Python 3.12, torch and transformers, and no network. There: `pip install --no-index --no-deps
--target SITE FOLDER/*.whl`, and SITE in PYTHONPATH. Large wheels are packed again by LZMA, which pip reads as well.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

from tracekit.errors import TracekitError

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
WHEELS = ("polars==1.36.1", "polars-runtime-32==1.36.1", "msgspec==0.22.0", "tomli-w==1.2.0", "termcolor==3.3.0")
"""Of polars the smallest that the project takes."""
PEERS = ("accelerate==1.15.0", "psutil==7.2.2")
"""What the day compares with, and what that needs."""
TESTS = ("hypothesis==6.170.15", "sortedcontainers==2.4.0")
"""What test files import, beside pytest, which such a machine has."""
BUILT = ("hqq==0.2.8.post1",)
"""Packages of Python alone that come without a wheel."""
MOST_BYTES = 40 * 10**6
LARGE_BYTES = 5 * 10**6


def gather(folder: Path) -> list[Path]:
    """Fetch the wheels into `folder`, which is emptied of wheels first; returns them. TracekitError when they fail."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", PYTHON, "--implementation", "cp", *platforms, "--dest", str(folder)]
    _pip("download", "--no-deps", "--only-binary=:all:", *target, *WHEELS, *PEERS, *TESTS)
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), *BUILT)
    for wheel in sorted(folder.glob("*.whl")):
        if wheel.stat().st_size > LARGE_BYTES:
            print(f"packing {wheel.name} again, which takes minutes", flush=True)
            repack(wheel)
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    if size > MOST_BYTES:
        raise TracekitError(f"the wheels in {folder} take {size} bytes, more than {MOST_BYTES}: name smaller versions")
    return wheels


def repack(wheel: Path) -> None:
    """Pack a wheel again, smaller; its files and their digests stay."""
    smaller = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as given, zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as packed:
        for entry in given.infolist():
            packed.writestr(entry.filename, given.read(entry), zipfile.ZIP_LZMA)
    smaller.replace(wheel)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        raise TracekitError(f"pip {arguments[0]} failed: {last}")


def main(arguments: list[str]) -> int:
    """Gather, and print what there is."""
    parser = argparse.ArgumentParser(prog="carry", description="Wheels for a bare machine with a GPU.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".wheels"), help="which git ignores")
    for wheel in gather(parser.parse_args(arguments).folder):
        print(f"{wheel.stat().st_size:>10} {wheel}")
    return 0


if __name__ == "__main__":
    from experiments.cli.main import guarded

    sys.exit(guarded(lambda: main(sys.argv[1:])))
