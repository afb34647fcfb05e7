# SPDX-License-Identifier: GPL-3.0-or-later
"""``pip install .`` brings the core, the ways in and out and the command, without ComfyUI."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from soda_core.version import VERSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package as pip leaves it; nothing is fetched."""
    pytest.importorskip("setuptools")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "soda_core", source / "soda_core", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    return site


def run(installed: Path, *command: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=installed,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_is_there_and_knows_its_version(installed) -> None:
    assert run(installed, installed / "bin" / "soda", "--version") == f"soda {VERSION}\n"
    assert run(installed, sys.executable, "-m", "soda_core", "--version") == f"soda {VERSION}\n"


def test_it_is_the_installed_package_that_runs(installed) -> None:
    program = "import soda_core.cli, soda_core.interop.lora; print(soda_core.__file__)"
    assert Path(run(installed, sys.executable, "-c", program).strip()).is_relative_to(installed)
    assert sorted(path.name for path in installed.iterdir() if path.is_dir() and not path.name.endswith("-info")) == [
        "bin", "soda_core",
    ]  # fmt: skip
    text = run(installed, installed / "bin" / "soda", "info", ROOT / "tests" / "data" / "adapter_v1.safetensors")
    assert "layers" in text
