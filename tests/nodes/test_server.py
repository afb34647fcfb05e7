# SPDX-License-Identifier: GPL-3.0-or-later
"""End to end through the real server's HTTP door: what works, what is refused, and that the server lives."""

from __future__ import annotations

import json
import os
import time
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from testbed.checkpoints import build, write
from testbed.server import PromptError, PromptInterrupted

from .conftest import STRENGTHS, Graph, base, sampling, training_graph


@pytest.fixture(scope="module")
def trained(server) -> dict[str, str]:
    """Two adapters on disk, trained through the server: {"subject": name, "style": name}."""
    names = {}
    for kind, seed in (("subject", 1), ("style", 2)):
        before = set(server.soda.rglob("*.safetensors"))
        server.queue(
            training_graph(
                server, f"a sks {kind}", filename_prefix=kind, seed=seed, shift_lr=0.05, rotation_lr=0.02
            ).nodes
        )
        (file,) = set(server.soda.rglob("*.safetensors")) - before
        names[kind] = file.name
    return names


def loading_graph(name: str, checkpoint: str | None = None, **strengths) -> Graph:
    g = Graph()
    model = base(g, checkpoint) if checkpoint else base(g)
    g.model = model
    g.load = g.add(
        "SODALoadAdapter", model=(model, 0), adapter_name=name, clip=(model, 1), **{**STRENGTHS, **strengths}
    )
    g.picture = sampling(g, (g.load, 0), model)
    return g


def picture(server, graph: Graph) -> torch.Tensor:
    (image,) = server.images(server.queue(graph.nodes), graph.picture)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()


def test_files_go_where_extra_model_paths_say_and_are_listed_at_once(server, trained) -> None:
    info = server.object_info(refresh=True)["SODALoadAdapter"]["input"]["required"]["adapter_name"]
    options = info[1].get("options") or info[0]
    assert set(trained.values()) <= set(options)
    assert (server.soda / trained["subject"]).is_file(), "the user's own soda folder comes first"


def test_the_file_carries_its_graph_and_no_folder(server, trained) -> None:
    with safe_open(server.soda / trained["subject"], "pt") as file:
        header = dict(file.metadata())
    assert "SODATrain" in header["prompt"] and header["modelspec.trigger_phrase"] == "sks fox"
    assert str(server.base) not in str(header)


def test_loading_changes_the_picture_and_strength_zero_does_not(server, trained) -> None:
    plain = Graph()
    model = base(plain)
    plain.picture = sampling(plain, (model, 0), model)
    nothing = picture(server, plain)
    assert torch.equal(picture(server, loading_graph(trained["subject"], strength_model=0.0)), nothing)
    linear = picture(server, loading_graph(trained["subject"]))
    assert not torch.equal(linear, nothing)
    assert torch.equal(picture(server, loading_graph(trained["subject"], mode="geodesic")), linear)
    assert torch.equal(picture(server, plain), nothing), "the base comes back"


def test_trained_in_the_graph_equals_loaded_from_disk(server) -> None:
    g = training_graph(server, filename_prefix="same", shift_lr=0.05, rotation_lr=0.02)
    g.picture = sampling(g, (g.train, 1), "1")
    fresh = picture(server, g)
    name = max(server.soda.glob("same_*.safetensors"), key=os.path.getmtime).name
    assert torch.equal(picture(server, loading_graph(name)), fresh)


@pytest.mark.parametrize("method", ["delta", "geodesic", "tsv"])
def test_merge_apply_save_inspect_in_one_graph(server, trained, method) -> None:
    g = Graph()
    model = base(g)
    loads = [
        g.add("SODALoadAdapter", model=(model, 0), adapter_name=trained[k], **STRENGTHS) for k in ("subject", "style")
    ]
    merged = g.add(
        "SODAMerge", subject=(loads[0], 2), style=(loads[1], 2), subject_strength=0.8, style_strength=0.6,
        method=method, model=(model, 0),
    )  # fmt: skip
    applied = g.add("SODAApplyAdapter", model=(model, 0), adapter=(merged, 0), **STRENGTHS)
    g.picture = sampling(g, (applied, 0), model)
    g.add("SODASaveAdapter", adapter=(merged, 0), filename_prefix=f"merged/{method}")
    inspect = g.add("SODAInspectAdapter", adapter=(merged, 0), model=(model, 0))
    portrait = g.add("PreviewImage", images=(inspect, 0))
    said = g.add("PreviewAny", source=(inspect, 1))
    report = g.add("PreviewAny", source=(merged, 1))
    entry = server.queue(g.nodes)
    text = entry["outputs"][report]["text"][0]
    assert text.startswith(f"**{method} merge**\n\n- subject: 0.8 x subject") and "\n- style: 0.6 x style" in text
    assert "| down " in text and "**Verdict**: " in text.splitlines()[-1] and "connect the base" not in text
    assert server.images(entry, portrait)[0].size[0] == 1024
    assert "| down | 8 |" in entry["outputs"][inspect]["text"][0]
    metadata = entry["outputs"][said]["text"][0]
    assert "spectral part off by 0.0" in metadata and metadata.count("attn") >= 8
    (saved,) = (server.soda / "merged").glob(f"{method}_*.safetensors")
    reloaded = picture(server, loading_graph(f"merged/{saved.name}"))
    (shown,) = server.images(entry, g.picture)
    assert torch.equal(torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).int(), reloaded)
    if method == "delta":
        chain = Graph()
        model = base(chain)
        one = chain.add("SODALoadAdapter", model=(model, 0), adapter_name=trained["style"],
                        **{**STRENGTHS, "strength_model": 0.6})  # fmt: skip
        two = chain.add("SODALoadAdapter", model=(one, 0), adapter_name=trained["subject"],
                        **{**STRENGTHS, "strength_model": 0.8})  # fmt: skip
        chain.picture = sampling(chain, (two, 0), model)
        assert (picture(server, chain) - reloaded).abs().max() <= 1


def test_a_stock_lora_beside_soda_in_both_orders(server, trained) -> None:
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_v"
    g = torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_up.weight": torch.randn(320, 2, generator=g),
        f"{name}.lora_down.weight": torch.randn(2, 320, generator=g),
    }
    save_file(lora, server.base / "models" / "loras" / "l.safetensors")

    def graph(soda_first: bool) -> Graph:
        g = Graph()
        model = base(g)
        link = (model, 0)
        for soda in (soda_first, not soda_first):
            if soda:
                link = (g.add("SODALoadAdapter", model=link, adapter_name=trained["subject"], **STRENGTHS), 0)
            else:
                link = (g.add("LoraLoaderModelOnly", model=link, lora_name="l.safetensors", strength_model=0.3), 0)
        g.picture = sampling(g, link, model)
        return g

    a, b = picture(server, graph(True)), picture(server, graph(False))
    assert (a - b).abs().max() <= 1
    assert (a - picture(server, loading_graph(trained["subject"]))).abs().max() > 1


def test_progress_and_a_second_prompt_after_the_first(server) -> None:
    steps, events = [], []
    g = training_graph(server, steps=6, preview_every=3, filename_prefix="progress", seed=11)
    entry = server.queue(
        g.nodes,
        lambda node, value, total: steps.append((node, value, total)),
        on_event=lambda kind, data: events.append((time.monotonic(), kind, data)),
    )
    assert (g.train, 6, 6) in steps
    name = "progress_00001_.safetensors"
    assert ("soda.saved", {"name": name, "folder": "soda"}) in [event[1:] for event in events], "lists are refreshed"
    (file,) = entry["outputs"][g.train]["soda_saved"]
    assert file == {"name": name, "filename": name, "subfolder": "", "type": "soda"}
    told = [(when, data) for when, kind, data in events if kind == "soda.training"]
    # (the last word is sent up to half a second later, when this client has gone: it is kept for whoever opens a page)
    (kept,) = [state for state in server.connection.json("/soda/trainings") if state["id"] == told[-1][1]["id"]]
    assert kept["status"] == "done" and kept["saved"] == name
    assert [picture["step"] for picture in kept["pictures"]] == [0, 3, 6]
    assert all(server.view(picture) for picture in kept["pictures"])
    assert len(told) <= 2 * (told[-1][0] - told[0][0]) + 2, "not more often than twice a second"
    first = server.submit(training_graph(server, seed=12).nodes)
    second = server.submit(training_graph(server, seed=13).nodes)
    for prompt in (first, second):
        server.wait(prompt, 120)
    assert len(list((server.base / "output" / "soda-previews").glob("progress-step*.png"))) == 3


def test_finish_now_ends_a_run_in_good_order_and_the_graph_goes_on(server) -> None:
    g = training_graph(server, seed=31, steps=500, filename_prefix="finished")
    g.picture = sampling(g, (g.train, 1), "1")

    def finish(kind: str, data: dict) -> None:
        if kind == "soda.training" and data["status"] == "training" and data["step"]:
            server.connection.post("/soda/finish", {"id": data["id"]})

    entry = server.queue(g.nodes, on_event=finish)
    assert entry["outputs"][g.train]["soda_saved"][0]["name"] == "finished_00001_.safetensors"
    assert entry["outputs"][g.train]["soda_training"][0]["step"] < 500
    assert server.images(entry, g.picture)


@pytest.mark.parametrize(("body", "code"), [({}, 400), ({"id": "none"}, 404), ({"id": ["x"]}, 404)])
def test_finish_of_what_does_not_run(server, body, code) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.connection.post("/soda/finish", body)
    assert refused.value.code == code


def test_saving_nodes_tell_the_history_which_file(server, trained) -> None:
    g = loading_graph(trained["subject"])
    save = g.add("SODASaveAdapter", adapter=(g.load, 2), filename_prefix="kept/again")
    (file,) = server.queue(g.nodes)["outputs"][save]["soda_saved"]
    assert (server.soda / file["subfolder"] / file["filename"]).is_file() and file["type"] == "soda"


def test_the_loss_map_feeds_the_core_plot(server) -> None:
    g = training_graph(server, seed=21)
    plot = g.add("LossGraphNode", loss=(g.train, 2), filename_prefix="loss")
    assert server.images(server.queue(g.nodes), plot)


def test_cancel_over_http_keeps_a_loadable_file(server) -> None:
    prompt = server.submit(training_graph(server, steps=100000, filename_prefix="cancelled", seed=31).nodes)
    deadline = time.monotonic() + 120
    while "step 1/100000" not in server.log:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    server.interrupt()
    with pytest.raises(PromptInterrupted, match="SODATrain"):
        server.wait(prompt, 60)
    (file,) = server.soda.glob("cancelled-interrupted_*.safetensors")
    picture(server, loading_graph(file.name))
    assert not list(server.soda.rglob("*.partial"))
    # the next prompt runs as if nothing had happened
    picture(server, plain := training_graph_with_picture(server, seed=32))
    assert plain.picture


def offered(server) -> list[str]:
    """What ``continue_from`` lists."""
    return server.object_info(refresh=True)["SODATrain"]["input"]["optional"]["continue_from"][1]["options"]


def test_a_cancelled_training_is_continued_from_the_list_and_then_gone_from_it(server) -> None:
    settings = {"filename_prefix": "resumed", "seed": 41, "steps": 40}
    prompt = server.submit(training_graph(server, **settings, preview_every=1, preview_steps=1).nodes)
    deadline = time.monotonic() + 120
    while len(list((server.base / "output" / "soda-previews").glob("resumed-step*.png"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.interrupt()
    with pytest.raises(PromptInterrupted):
        server.wait(prompt, 60)
    (choice,) = (name for name in offered(server) if name.startswith("unfinished: resumed "))
    other = training_graph(server, **{**settings, "seed": 42}, continue_from=choice)
    fails(server, other, "another one: seed .was 41, is 42.", "SODATrain")
    told: list[tuple[int, int]] = []
    g = training_graph(server, **settings, continue_from=choice)
    g.picture = sampling(g, (g.train, 1), "1")
    entry = server.queue(g.nodes, lambda node, value, total: told.append((value, total)) if node == g.train else None)
    steps = [value for value, total in told if total == 40]
    assert min(steps) > 1 and max(steps) == 40
    assert choice not in offered(server)
    # the node still holds the run that is gone, and its result: another picture trains nothing
    g.nodes[g.picture]["inputs"]["images"] = [
        g.add("ImageInvert", image=tuple(g.nodes[g.picture]["inputs"]["images"])),
        0,
    ]
    assert server.images(server.queue(g.nodes), g.picture) and server.images(entry, g.picture)
    assert len(list(server.soda.glob("resumed_*.safetensors"))) == 1
    g.nodes[g.train]["inputs"]["steps"] = 41
    fails(server, g, "continue_from: .*is gone", "SODATrain")
    whole = training_graph(server, **{**settings, "filename_prefix": "unbroken"})
    server.queue(whole.nodes)
    (continued,), (unbroken,) = server.soda.glob("resumed_*.safetensors"), server.soda.glob("unbroken_*.safetensors")
    tensors, expected = load_file(continued), load_file(unbroken)
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[k], expected[k]) for k in expected)


def test_an_adapter_is_offered_to_start_from(server, trained) -> None:
    assert trained["subject"] in offered(server) and offered(server)[0] == "(none)"
    g = training_graph(server, filename_prefix="further", seed=43, continue_from=trained["subject"])
    server.queue(g.nodes)
    (file,) = server.soda.glob("further_*.safetensors")
    with safe_open(file, "pt") as opened:
        assert '"started_from"' in opened.metadata()["soda"]


def training_graph_with_picture(server, **settings) -> Graph:
    g = training_graph(server, **settings)
    g.picture = sampling(g, (g.train, 1), "1")
    return g


# ------------------------------------------------------------------------------------------------------- bad input


def damage(source: Path, target: Path, change) -> None:
    tensors = load_file(source)
    with safe_open(source, "pt") as file:
        header = dict(file.metadata())
    header.pop("sshs_model_hash")
    document = json.loads(header["soda"])
    document.pop("digest")
    header["soda"] = json.dumps(document)
    change(tensors, header)
    save_file(tensors, target, header)


def first(tensors, part: str) -> str:
    return next(k for k in sorted(tensors) if k.endswith(part))


BAD_FILES = {
    "nan": (lambda t, h: t[first(t, "soda_shift")].fill_(float("nan")), "soda_shift.*NaN"),
    "off-manifold": (lambda t, h: t[first(t, "soda_factor_0")].mul_(1.2), "not orthogonal.*0.44"),
    "version": (
        lambda t, h: h.update(soda=h["soda"].replace('"format_version": 1', '"format_version": 9')),
        "version 9",
    ),
    "missing": (lambda t, h: t.pop(first(t, "soda_factor_1")), "soda_factor_1.*missing"),
    "not-soda": (lambda t, h: h.pop("soda"), "not a SODA adapter"),
}


def fails(server, graph: Graph, match: str, node: str) -> None:
    """The prompt fails in that node with that message; the server lives and nothing is half-written."""
    before = set(server.soda.rglob("*"))
    with pytest.raises(PromptError, match=f"(?s){match}") as caught:
        server.queue(graph.nodes)
    assert caught.value.node_type == node
    assert server.system()["system"]["comfyui_version"]
    assert set(server.soda.rglob("*")) == before


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(server, trained, case) -> None:
    change, match = BAD_FILES[case]
    damage(server.soda / trained["subject"], server.soda / f"bad-{case}.safetensors", change)
    fails(server, loading_graph(f"bad-{case}.safetensors"), f"bad-{case}.safetensors.*{match}", "SODALoadAdapter")


def test_a_lora_and_a_truncated_file(server, trained) -> None:
    save_file({"unet.x.lora_up.weight": torch.zeros(2, 2)}, server.soda / "lora.safetensors")
    fails(server, loading_graph("lora.safetensors"), "lora.safetensors.*LoRA", "SODALoadAdapter")
    whole = (server.soda / trained["subject"]).read_bytes()
    (server.soda / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    fails(server, loading_graph("cut.safetensors"), "cut.safetensors.*complete", "SODALoadAdapter")


def test_an_adapter_of_another_architecture(server, trained) -> None:
    fails(server, loading_graph(trained["subject"], "sd3.safetensors"), "no layer of.*SD3", "SODALoadAdapter")


def test_shapes_that_differ_and_a_base_that_fails_the_check(server, trained) -> None:
    source = server.soda / trained["subject"]
    damage(
        source,
        server.soda / "shape.safetensors",
        lambda t, h: h.update(soda=h["soda"].replace('"shape": [320, 320]', '"shape": [321, 320]')),
    )
    fails(server, loading_graph("shape.safetensors"), r"\(321, 320\).*\(320, 320\)", "SODALoadAdapter")
    damage(
        source, server.soda / "base.safetensors", lambda t, h: [t[k].mul_(1.5) for k in t if k.endswith("soda_shift")]
    )
    match = "does not fit this base model.*trained on.*ignore_base_check"
    fails(server, loading_graph("base.safetensors"), match, "SODALoadAdapter")
    picture(server, loading_graph("base.safetensors", ignore_base_check=True))


def test_counts_presets_and_numbers(server) -> None:
    g = training_graph(server, count=3)
    extra = g.add("CLIPTextEncode", text="another", clip=("1", 1))
    both = g.add(
        "ConditioningCombine", conditioning_1=(g.nodes[g.train]["inputs"]["positive"][0], 0), conditioning_2=(extra, 0)
    )
    g.nodes[g.train]["inputs"]["positive"] = [both, 0]
    fails(server, g, "positive: 2 captions for 3 pictures", "SODATrain")
    fails(server, training_graph(server, layers="pattern", layer_pattern="*none*"), "matches none", "SODATrain")
    for steps in (0, -1):
        fails(server, training_graph(server, steps=steps), "smaller than min", "SODATrain")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "C:\\x"])
def test_names_that_leave_the_folder(server, trained, name) -> None:
    fails(server, training_graph(server, filename_prefix=name), "not allowed", "SODATrain")
    g = loading_graph(trained["subject"])
    g.add("SODASaveAdapter", adapter=(g.load, 2), filename_prefix=name)
    fails(server, g, "not allowed", "SODASaveAdapter")
    fails(server, loading_graph(name), "not in list", "SODALoadAdapter")


def test_a_base_that_gives_nan_stops_the_training(server) -> None:
    """(A run that diverges half-way is in tests/host: this small model bounds its own loss at any allowed rate.)"""
    parts = build("sd15-min", clip="sparse")
    parts["unet"]["model.diffusion_model.out.2.weight"].fill_(float("inf"))
    server.add_checkpoint(write(server.base / "broken.safetensors", parts), "broken.safetensors")
    g = training_graph(server)
    g.nodes["1"]["inputs"]["ckpt_name"] = "broken.safetensors"
    fails(server, g, "cannot start: at step 1 the loss is (nan|inf).*base model", "SODATrain")


def test_a_folder_that_cannot_be_written(server, trained) -> None:
    """A file where the folder should be: what a read-only or full disk gives, for root too."""
    (server.soda / "blocked").write_text("a file", "utf-8")
    g = loading_graph(trained["subject"])
    g.add("SODASaveAdapter", adapter=(g.load, 2), filename_prefix="blocked/x")
    fails(server, g, "writable|cannot", "SODASaveAdapter")
    fails(server, training_graph(server, filename_prefix="blocked/x"), "writable|cannot", "SODATrain")
