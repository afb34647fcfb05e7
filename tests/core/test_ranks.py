# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes of one run do together: real ones, connected by gloo, started as a launcher starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from soda_core.errors import SettingsError
from soda_core.training.ranks import ALONE, Ranks
from testbed.paths import free_port

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, os, sys, torch
from soda_core.errors import SettingsError, TrainingError
from soda_core.training.ranks import joined

def raised(call):
    try:
        call()
    except (SettingsError, TrainingError) as error:
        return f"{type(error).__name__}: {error}"

with joined(cpu=True) as ranks:
    a, b = torch.full((2, 2), ranks.index + 1.0), torch.tensor([0.5], dtype=torch.float64)
    ranks.add([a, b])
    def fail():
        raise SettingsError("no")
    said = {
        "index": ranks.index, "count": ranks.count, "first": ranks.first, "sums": [a.tolist(), b.tolist()],
        "share": list(ranks.share(3)), "told": ranks.of_first(lambda: os.environ["RANK"]),
        "refused": raised(lambda: ranks.of_first(fail)),
        "same": raised(lambda: ranks.check_same({"base": "x"})),
        "other": raised(lambda: ranks.check_same({"base": str(ranks.index)})),
    }
    if ranks.index == 1:
        print(json.dumps(said), flush=True)
        os._exit(0)
    said["lost"] = raised(lambda: [ranks.add([a]) for _ in range(2)])
    print(json.dumps(said))
"""


def test_they_add_share_tell_and_notice_that_one_is_gone() -> None:
    pytest.importorskip("accelerate")
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
              "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env={**common, "RANK": rank, "LOCAL_RANK": rank},
                         stdout=subprocess.PIPE, text=True) for rank in ("0", "1")
    ]  # fmt: skip
    first, second = (json.loads(process.communicate(timeout=600)[0]) for process in started)
    assert first["first"] and not second["first"] and first["count"] == second["count"] == 2
    assert first["sums"] == second["sums"] == [[[3.0, 3.0], [3.0, 3.0]], [1.0]]
    assert (first["share"], second["share"]) == ([0, 2], [1])
    assert first["told"] == second["told"] == "0"
    assert first["refused"] == second["refused"] == "SettingsError: no"
    assert first["same"] is second["same"] is None
    for said in (first, second):
        assert said["other"].startswith("TrainingError: the processes do not train the same: base is '0' in the first")
    assert first["lost"].startswith("TrainingError: another process of the run has ended or cannot be reached")


@pytest.mark.parametrize(("batch", "count"), [(1, 1), (4, 2), (5, 2), (3, 3), (17, 5)])
def test_every_picture_of_a_batch_belongs_to_one_process(batch, count) -> None:
    shares = [list(Ranks(index, count).share(batch)) for index in range(count)]
    assert sorted(i for share in shares for i in share) == list(range(batch))
    assert len(shares[0]) == max(map(len, shares)) and min(map(len, shares)) > 0


def test_more_processes_than_pictures_are_refused_with_what_to_do() -> None:
    ALONE.check(1)
    with pytest.raises(SettingsError, match="batch_size .* 2 cannot be shared by 3; set it to 3 or more"):
        Ranks(0, 3).check(2)
