# SPDX-License-Identifier: GPL-3.0-or-later
"""What the registry's archive holds: the checkout less what ``.comfyignore`` names."""

from __future__ import annotations

from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

ROOT = Path(__file__).parents[2]


def less(files: list[str], ignore: str) -> list[str]:
    spec = GitIgnoreSpec.from_lines((ROOT / ignore).read_text("utf-8").splitlines())
    return [name for name in files if not spec.match_file(name)]


@pytest.fixture(scope="module")
def archive() -> set[str]:
    files = [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if p.is_file() and ".git" not in p.parts]
    return set(less(less(files, ".gitignore"), ".comfyignore"))


def test_everything_that_a_user_meets_is_in_it(archive) -> None:
    for folder in ("nodes", "soda_core", "web", "locales", "workflows", "subgraphs"):
        here = [p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()]
        missing = set(less(here, ".gitignore")) - archive
        assert not missing, missing
    assert {
        "__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md",
        "web/docs/SODATrain.md", "web/docs/SODATrain/en.md", "web/docs/SODATrain/zh.md", "web/refresh.js",
        "locales/en/nodeDefs.json", "locales/zh/nodeDefs.json", "workflows/Train my subject.json",
        "workflows/Train my subject.jpg", "workflows/pictures/soda_example_subject/1.jpg",
        "subgraphs/Train my subject.json",
    } <= archive  # fmt: skip


def test_nothing_else_is_in_it(archive) -> None:
    tops = {name.split("/")[0] for name in archive if "/" in name}
    assert tops == {"nodes", "soda_core", "web", "locales", "workflows", "subgraphs"}
    assert not [name for name in archive if name.endswith((".safetensors", ".pt", ".ckpt", ".lock"))]
    files = {name for name in archive if "/" not in name and not name.startswith(".")}
    assert files == {
        "__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md",
    }  # fmt: skip
    size = sum((ROOT / name).stat().st_size for name in archive)
    assert size < 3_000_000, f"{size} bytes"
