# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``python dev.py serve`` prepares: a ComfyUI in which every workflow can be run at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from demo import serve
from demo.build_workflows import TITLES
from demo.run import kept_adapters
from testbed.checkpoints import BASE_NAME
from testbed.demo_base import checkpoint
from testbed.paths import ROOT, cache_root
from testbed.server import Server

from .conftest import training_graph


@pytest.fixture(scope="module")
def base():
    """The demo's checkpoint, of the cache that is there."""
    return checkpoint(cache_root())


@pytest.fixture
def cache(base, tmp_path, monkeypatch):
    """A cache without anything but the checkpoint."""
    monkeypatch.setenv("SODA_DEV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / base.name).symlink_to(base)
    return tmp_path / "cache"


def workflows(folder) -> dict[str, dict]:
    return {p.stem: json.loads(p.read_text("utf-8")) for p in (folder / serve.WORKFLOWS).glob("[!.]*.json")}


def widgets(workflow: dict, kind: str) -> list:
    return [node["widgets_values"] for node in workflow["nodes"] if node["type"] == kind]


def test_before_the_first_demo_it_says_so_and_is_there(cache, base, tmp_path, capsys) -> None:
    serve.prepare(tmp_path / "served")
    assert "no adapters yet" in capsys.readouterr().out
    assert (tmp_path / "served" / "models" / "checkpoints" / BASE_NAME).resolve() == base.resolve()
    found = workflows(tmp_path / "served")
    assert sorted(found) == sorted(TITLES.values())
    for workflow in found.values():
        assert widgets(workflow, "CheckpointLoaderSimple") == [[BASE_NAME]]


def test_what_a_user_changed_stays(cache, tmp_path, capsys) -> None:
    serve.prepare(tmp_path)
    mine, other = (tmp_path / serve.WORKFLOWS / f"{TITLES[name]}.json" for name in ("train_subject", "train_style"))
    mine.write_text("{}", "utf-8")
    other.unlink()
    serve.prepare(tmp_path)
    assert mine.read_text("utf-8") == "{}" and other.exists()
    assert f"{mine.stem} was changed here" in capsys.readouterr().out


def test_every_workflow_can_be_run_with_the_demos_adapters(server, cache, base, tmp_path) -> None:
    before = set(server.soda.glob("*.safetensors"))
    server.queue(training_graph(server, filename_prefix="served", seed=91).nodes)
    (trained,) = set(server.soda.glob("*.safetensors")) - before
    kept = kept_adapters(base)
    kept.mkdir(parents=True)
    for what in ("subject", "style", "merged"):
        shutil.copy(trained, kept / f"demo_{what}.safetensors")
        shutil.copy(trained.with_suffix(".png"), kept / f"demo_{what}.png")
    serve.prepare(tmp_path / "served")
    found = workflows(tmp_path / "served")
    assert [values[0] for values in widgets(found[TITLES["merge_subject_and_style"]], "SODALoadAdapter")] == [
        "demo_subject.safetensors", "demo_style.safetensors",
    ]  # fmt: skip
    with Server(base=tmp_path / "served", cpu=True) as served:
        for workflow in found.values():
            prompt = served.submit(served.convert(workflow))  # refused unless every name is there
            served.connection.post(f"/api/jobs/{prompt}/cancel")
        listed = served.connection.json("/userdata?dir=workflows&recurse=true&split=false")
        assert {f"{serve.WORKFLOWS.name}/{title}.json" for title in TITLES.values()} <= set(listed)


def test_help_only_helps(tmp_path) -> None:
    said = subprocess.run(
        [sys.executable, ROOT / "dev.py", "serve", "--help"], capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "SODA_DEV_CACHE": str(tmp_path / "cache")},
    ).stdout  # fmt: skip
    assert said.startswith("python dev.py serve") and not (tmp_path / "cache").exists()
