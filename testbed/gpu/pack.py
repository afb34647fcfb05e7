# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's Python files and what they import, in a folder that travels to a machine with neither. Standard library.

That machine has its own torch, torchvision, torchaudio, scipy, safetensors, einops, transformers, peft and Pillow. What
it may lack and the host imports without asking is packed: ``torchsde`` (with ``trampoline``), ``comfy_aimdo`` (a
library for any Python) and of ``comfy_kitchen`` all but its compiled kernels, which it does without. The host's server
and its nodes would also take a web server, a database and PyAV; nothing here imports them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from testbed.paths import ROOT

FOLDER = ROOT / "build" / "gpu"
HOST, SITE = "host", "site"
LIMIT = 64 * 2**20  #: bytes, of this folder and the checkout together

PACKAGES = ("torchsde", "trampoline", "comfy_aimdo", "comfy_kitchen")
FOREIGN = "_C.*.so", "aimdo_rocm.so"  #: compiled for another Python, or for other devices
#: of the host: its modules, and the data of the text encoders that the test bed uses
MODULES = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfy_config", "utils", "app", "middleware")
DATA = ("comfy/*.json", "comfy/sd1_tokenizer/*", "comfy/text_encoders/*.json")


def pack(host: Path, packages: Path, target: Path = FOLDER) -> int:
    """Make the folder anew; returns its bytes.

    Args:
        host: a ComfyUI.
        packages: the ``site-packages`` of an environment for it.
    Raises:
        FileNotFoundError: a package is not there. ValueError: there is something else in the target's place.
    """
    if target.exists() and not (target / HOST).is_dir():
        raise ValueError(f"{target} is not a packed folder; choose another place or remove it")
    shutil.rmtree(target, ignore_errors=True)
    for source in _host_files(host):
        _copy(source, target / HOST / source.relative_to(host))
    for name in PACKAGES:
        if not (packages / name).is_dir():
            raise FileNotFoundError(f"{packages} has no package {name}")
        for source in sorted((packages / name).rglob("*")):
            if _travels(source) and not any(source.match(pattern) for pattern in FOREIGN):
                _copy(source, target / SITE / source.relative_to(packages))
    return size(target)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def checkout_size() -> int:
    """Bytes of what travels beside the folder: tracked files, and others that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def _host_files(host: Path) -> Iterator[Path]:
    yield from sorted(host.glob("*.py"))
    for folder in MODULES:
        yield from sorted((host / folder).rglob("*.py"))
    for pattern in DATA:
        yield from sorted(path for path in host.glob(pattern) if path.is_file())


def _travels(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
