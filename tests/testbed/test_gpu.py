# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels to a GPU machine, and the bookkeeping of what runs there; ``dev.py gpu --rehearse`` runs the parts."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from testbed.gpu import pack
from testbed.gpu.parts import CHECKS, FAILED, OK, OUT_OF_TIME, PIECE, Journal, Part, environment, parts, run_all
from testbed.paths import ROOT


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        pytest.skip("COMFYUI_PATH is not set; `python dev.py test` sets it")
    target = tmp_path_factory.mktemp("gpu") / "packed"
    pack.pack(Path(host), Path(sysconfig.get_path("purelib")), target)
    return target


def test_the_packed_folder_is_small_and_holds_nothing_for_another_machine(packed) -> None:
    assert pack.size(packed) + pack.checkout_size() < pack.LIMIT
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert {"host/comfy/sd.py", "host/folder_paths.py", "host/comfy/sd1_tokenizer/vocab.json"} <= names
    assert {"site/torchsde/__init__.py", "site/comfy_kitchen/__init__.py"} <= names
    assert not [
        name for name in names if "cpython-" in name or "__pycache__" in name or name.endswith((".js", ".html"))
    ]


def test_the_host_and_the_trainer_import_from_it_on_a_python_without_the_rest(packed, tmp_path) -> None:
    """No server, no database, no video library: in a rehearsal only what the GPU machine has is found."""
    script = (
        "from testbed.host import import_host; import_host()\n"
        "import comfy, comfy.sd, comfy.samplers, testbed.training, sys\n"
        f"assert comfy.sd.__file__.startswith({str(packed)!r}), comfy.sd.__file__\n"
        "assert not {'av', 'aiohttp', 'sqlalchemy', 'server', 'nodes'} & set(sys.modules)\n"
        "import pytest\n"
    )
    env = environment(packed, tmp_path, rehearse=True)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.rstrip().endswith("No module named 'pytest'"), done.stderr


def test_what_is_in_the_way_is_not_removed(packed, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="not a packed folder"):
        pack.pack(packed / "host", packed / "site", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"


def of(name: str, code: str, seconds: float = 60) -> Part:
    return Part(name, ("-c", code), ("-c", code), seconds)


def test_a_part_that_fails_or_hangs_is_recorded_and_the_next_runs(tmp_path) -> None:
    work, out, trace = tmp_path / "work", tmp_path / "out", tmp_path / "trace"
    note = f"open({str(trace)!r}, 'a').write('x')\n"
    chosen = [
        of("fails", note + "raise ValueError('no such thing')"),
        of("hangs", note + "import time; print('begun', flush=True); time.sleep(600)", seconds=2),
        of("measures", note + "print('said by the way'); print('{\"off\": 0.5}')"),
    ]
    assert run_all(chosen, tmp_path, work, out, 5, rehearse=False) == 1
    rows = {row["part"]: row for row in Journal(out / "results.jsonl").rows()}
    assert [row["state"] for row in rows.values()] == [FAILED, OUT_OF_TIME, OK]
    assert "Traceback" in rows["fails"]["said"] and "no such thing" in rows["fails"]["said"]
    assert "begun" in rows["hangs"]["said"]
    assert rows["measures"]["off"] == 0.5
    assert trace.read_text() == "xxx"
    assert run_all(chosen, tmp_path, work, out, 5, rehearse=False) == 0
    assert trace.read_text() == "xxxx", "only what ran out of time goes on"


def test_no_part_begins_when_the_time_is_up(tmp_path) -> None:
    assert run_all([of("late", "")], tmp_path, tmp_path / "work", tmp_path / "out", 0.1, rehearse=False) == 0
    assert Journal(tmp_path / "work" / "results.jsonl").rows() == []


def test_weights_come_back_in_pieces_that_join(tmp_path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "pretrain" / "export").mkdir(parents=True)
    data = os.urandom(1000) * (PIECE // 1000 + 100)
    (work / "pretrain" / "export" / "model.safetensors").write_bytes(data)
    run_all([], tmp_path, work, out, 1, rehearse=False)
    pieces = [out / f"model.safetensors.{i}" for i in range(2)]
    assert sorted(out.iterdir()) == pieces and b"".join(piece.read_bytes() for piece in pieces) == data


def test_every_check_is_a_part_and_correctness_comes_first(tmp_path) -> None:
    from testbed.gpu.checks import CHECKS as known

    assert list(known) == list(CHECKS)
    names = [part.name for part in parts(tmp_path)]
    assert names[: len(CHECKS)] == [f"check {name}" for name in CHECKS] and len(set(names)) == len(names)


def test_without_a_gpu_it_says_what_it_would_do() -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "dev.py", "gpu"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "no torch that finds a GPU" in done.stdout
    assert "check equals_cpu" in done.stdout and "quality" in done.stdout
