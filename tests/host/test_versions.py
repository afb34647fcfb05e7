# SPDX-License-Identifier: GPL-3.0-or-later
"""What old versions of ComfyUI lack is done in its place, and gives the same."""

from __future__ import annotations

import pytest
import torch

from .families import FAMILIES, SETTINGS, data_of

pytestmark = pytest.mark.host


def test_a_host_older_than_the_tests_is_said_and_no_other(host, monkeypatch, caplog) -> None:
    import comfyui_version

    versions = host.core("host.versions")
    with caplog.at_level("WARNING"):
        versions.check()
        monkeypatch.setattr(comfyui_version, "__version__", versions.OLDEST)
        versions.check()
        assert not caplog.records
        monkeypatch.setattr(comfyui_version, "__version__", "0.9.12")
        versions.check()
    assert "needs ComfyUI 0.16.3 or newer, this is 0.9.12" in caplog.text


def test_conds_are_joined_alike(host, monkeypatch) -> None:
    import comfy.conds
    import comfy.samplers

    versions, cpu = host.core("host.versions"), torch.device("cpu")
    conds = [{"c": comfy.conds.CONDRegular(torch.randn(1, 3, 4)), "n": comfy.conds.CONDConstant(7)} for _ in range(2)]
    own = versions.join_conds(conds, cpu)
    join = comfy.samplers.cond_cat
    monkeypatch.setattr(comfy.samplers, "cond_cat", lambda c_list: join(c_list))
    old = versions.join_conds(conds, cpu)
    assert own["n"] == old["n"] == 7 and own["c"].shape == (2, 3, 4) and torch.equal(own["c"], old["c"])
    moved = versions.join_conds(conds, torch.device("meta"))
    assert moved["c"].device.type == "meta", "joined where they are, then moved"


def test_memory_that_ran_out_is_known(host, monkeypatch) -> None:
    import comfy.model_management as mm

    versions = host.core("host.versions")
    for _ in range(2):
        assert versions.is_out_of_memory(torch.cuda.OutOfMemoryError())
        assert not versions.is_out_of_memory(ValueError())
        monkeypatch.delattr(mm, "is_oom", raising=False)


@pytest.mark.parametrize("kind", [BaseException, Exception])
def test_a_cancel_is_seen_as_one_whatever_kind_of_error_it_is(host, monkeypatch, kind) -> None:
    """Up to 0.18 it is an Exception."""
    import comfy.model_management as mm

    live = host.core("host.training.live")
    monkeypatch.setattr(mm, "InterruptProcessingException", type("Cancel", (kind,), {}))
    for error, status in ((mm.InterruptProcessingException(), "stopped"), (KeyboardInterrupt(), "stopped"),
                          (ValueError("bad"), "failed")):  # fmt: skip
        view = live.Live()
        with pytest.raises(type(error)), view:
            raise error
        state = view.state()
        assert state["status"] == status and state["error"] == ("bad" if status == "failed" else "")


def test_a_cancel_while_memory_is_estimated_is_taken(host, monkeypatch) -> None:
    """Up to 0.18 it is an Exception like those that an estimate may end in."""
    import comfy.model_management as mm

    training, stepped = host.core("host.training.run"), []

    def cancelled(self) -> None:
        raise mm.InterruptProcessingException

    monkeypatch.setattr(training.Run, "memory", cancelled)
    model = host.model("sd15-min")
    settings = host.core("training.settings").TrainSettings(**SETTINGS)
    options = training.RunOptions(filename_prefix="v/estimated", on_step=stepped.append)
    with torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        training.train_in_graph(model, data_of(host, FAMILIES[0], model), settings, options)
    assert not stepped and not [name for name in host.core("host.folders").adapter_names() if "estimated" in name]
