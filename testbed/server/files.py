# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder that a host works in."""

from __future__ import annotations

import shutil
from pathlib import Path

from testbed.paths import ROOT

PACK_NAME = "soda"
FOLDERS = ("models/checkpoints", "models/soda", "models/loras", "input", "output", "user", "temp", "custom_nodes")


class HostFolder:
    """Models, inputs and outputs of one host.

    Args:
        base: made if it is not there.
        pack: whether to install this pack.
    """

    def __init__(self, base: Path, pack: bool = True) -> None:
        self.base = base
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
        if pack:
            link_or_copy(ROOT, self.pack)

    @property
    def pack(self) -> Path:
        return self.base / "custom_nodes" / PACK_NAME

    @property
    def adapters(self) -> Path:
        """The folder where the pack saves adapters."""
        return self.base / "models" / "soda"

    def add_model(self, kind: str, path: Path, name: str | None = None) -> None:
        """Make a file available as ``models/<kind>/<name>``, without copying it where links are possible."""
        target = self.base / "models" / kind / (name or path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, target)

    def add_checkpoint(self, path: Path, name: str | None = None) -> None:
        self.add_model("checkpoints", path, name)

    def add_input(self, path: Path, name: str | None = None) -> None:
        """Copy a file or a folder of pictures to ``input/<name>``."""
        target = self.base / "input" / (name or path.name)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)


def link_or_copy(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where the system does not allow one. An existing target stays."""
    if target.exists():
        return
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            ignored = shutil.ignore_patterns(".git", "__pycache__", "demo-output", "node_modules", ".venv")
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copyfile(source, target)
