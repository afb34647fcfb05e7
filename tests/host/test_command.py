# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda train``: the node's run from a shell, with its settings in a file, and what a person does to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from soda_core import SodaAdapter
from soda_core.cli import main
from testbed import checkpoints
from testbed.world.tasks import SUBJECT

from .processes import ROOT, Running, train_command

pytestmark = pytest.mark.host

PRESET = "sd15-min"
QUICK = ("--resolution", "64", "--rotation-lr", "1e-3", "--shift-lr", "1e-3", "--decomposition", "qr")


@pytest.fixture(scope="module")
def checkpoint(host) -> Path:
    path = host.base / "models" / "checkpoints" / "whole.safetensors"
    return checkpoints.write(path, checkpoints.build(PRESET, clip="sparse", seed=0))


@pytest.fixture(scope="module")
def pictures(host) -> Path:
    """Three of the five, with their captions."""
    folder = host.base / "pictures"
    SUBJECT.write(folder, side=96)
    for path in sorted(folder.iterdir())[6:]:
        path.unlink()
    return folder


def soda(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def train(capsys, checkpoint: Path, pictures: Path, *arguments: object) -> dict:
    """What a training answers, in this process."""
    given = ("--host", os.environ["COMFYUI_PATH"], "--checkpoint", checkpoint, "--pictures", pictures, *arguments)
    code, text, errors = soda(capsys, "train", *given, "--json", "--quiet")
    assert code == 0, errors
    return json.loads(text)


def by_nodes(host, checkpoint: Path, pictures: Path, **settings):
    """The same by the nodes of the shipped workflow."""
    import comfy_extras.nodes_dataset as dataset
    import folder_paths

    import nodes

    training, config = host.core("host.training"), host.core("training.settings")
    paths = sorted(path for path in pictures.iterdir() if path.suffix != ".txt")
    with torch.inference_mode():
        model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)
        images = dataset.load_and_process_images([path.name for path in paths], str(pictures))
        images = [nodes.ImageScale().upscale(image, "lanczos", 64, 64, "center")[0] for image in images]
        texts = [path.with_suffix(".txt").read_text("utf-8").strip() for path in paths]
        latents, positive = dataset.MakeTrainingDataset.execute(images, [vae], [clip], texts).result
        plain = [nodes.CLIPTextEncode().encode(clip, text.replace("sks ", ""))[0] for text in texts]
        data = training.TrainingData(latents, positive, base_positive=plain)
        options = training.RunOptions(filename_prefix="by-nodes")
        result = training.train_in_graph(model, data, config.TrainSettings(**settings), options)
    assert folder_paths.get_full_path("soda", result.saved_name)
    return result.adapter


def test_it_is_the_run_of_the_nodes_to_the_bit(host, checkpoint, pictures, capsys) -> None:
    said = train(capsys, checkpoint, pictures, *QUICK, "--out", "t/fox", "--steps", 3, "--batch-size", 2,
                 "--placeholder", "sks ", "--trigger-phrase", "sks flower")  # fmt: skip
    made = SodaAdapter.load(said["file"])
    settings = {"steps": 3, "batch_size": 2, "rotation_lr": 1e-3, "shift_lr": 1e-3, "decomposition": "qr"}
    expected = by_nodes(host, checkpoint, pictures, **settings)
    assert made.identity() == expected.identity() == said["hash"]
    for key in ("settings", "base_model", "steps", "pictures", "resolution", "seed", "versions"):
        assert made.metadata[key] == expected.metadata[key], key
    assert made.metadata["settings"]["loss"] == "dco" and made.trigger_phrase == "sks flower"
    assert said["name"].replace("\\", "/") == "t/fox_00001_.safetensors" and said["processes"] == 1
    assert Path(said["file"]).is_relative_to(host.base / "models" / "soda")


def test_the_settings_of_an_adapter_train_it_again(host, checkpoint, pictures, capsys, tmp_path) -> None:
    file = tmp_path / "first.toml"
    phrase = 'sks "flower"\\\x7f\t狐'
    file.write_text(
        f'trigger_phrase = {json.dumps(phrase, ensure_ascii=False)}\nsteps = 2\nrotation_lr = 0.001\nshift_lr = 1e-3\n'
        'loss = "mse"\nseed = 18446744073709551615\ngradient_checkpointing = true\nresolution = 64\nshift_knots = 4\n'
        'layers = "pattern"\nlayer_pattern = "*attn1.to_q, *attn2.to_k"\n[factor_sizes]\n320 = [10, 32]\n'.replace(
            "\x7f", "\\u007f"),
        "utf-8",
    )  # fmt: skip
    first = train(capsys, checkpoint, pictures, "--settings", file, "--out", "t/again", "--steps", 3)
    adapter = SodaAdapter.load(first["file"])
    assert adapter.trigger_phrase == phrase and adapter.metadata["steps"] == 3, "a flag counts more than the file"
    code, text, _ = soda(capsys, "info", first["file"], "--settings")
    assert code == 0
    (tmp_path / "again.toml").write_text(text, "utf-8")
    second = train(capsys, checkpoint, pictures, "--settings", tmp_path / "again.toml", "--out", "t/again")
    assert second["hash"] == first["hash"] and second["file"] != first["file"]
    again = SodaAdapter.load(second["file"])
    own = {"date": "", "title": "", "thumbnail": ""}
    assert {**again.metadata, **own} == {**adapter.metadata, **own}
    assert soda(capsys, "info", second["file"], "--settings")[1] == text.replace(adapter.title, again.title)
    said = json.loads(soda(capsys, "info", second["file"], "--settings", "--json")[1])
    assert said["factor_sizes"] == {"320": [10, 32]} and said["training_dtype"] == "fp32"


def test_model_files_by_themselves_and_pictures_of_their_own_size(host, checkpoint, pictures, capsys, tmp_path) -> None:
    """A diffusion model, a text encoder and a VAE apart are the checkpoint; without scaling, sizes stay."""
    from safetensors.torch import load_file

    parts = {"model.diffusion_model.": "unet", "cond_stage_model.transformer.": "clip", "first_stage_model.": "vae"}
    whole = load_file(checkpoint)
    for prefix, name in parts.items():
        save_file(
            {key.removeprefix(prefix): W for key, W in whole.items() if key.startswith(prefix)},
            tmp_path / f"{name}.safetensors",
        )
    own = tmp_path / "own"
    shutil.copytree(pictures, own)
    flags = ("--pictures", own, *QUICK, "--resolution", 0, "--steps", 1, "--loss", "mse", "--json", "--quiet")
    host_flag = ("--host", os.environ["COMFYUI_PATH"])
    code, text, errors = soda(
        capsys, "train", *host_flag, "--diffusion-model", tmp_path / "unet.safetensors", "--text-encoder",
        tmp_path / "clip.safetensors", "--text-encoder-type", "stable_diffusion", "--vae", tmp_path / "vae.safetensors",
        "--out", "t/parts", *flags,
    )  # fmt: skip
    assert code == 0, errors
    _, expected, _ = soda(capsys, "train", *host_flag, "--checkpoint", checkpoint, "--out", "t/parts", *flags)
    assert json.loads(text)["hash"] == json.loads(expected)["hash"]
    assert SodaAdapter.load(json.loads(text)["file"]).metadata["resolution"] == "96x96"


def test_a_picture_without_a_text_file_takes_the_one_caption_and_that_is_said(
    host, checkpoint, pictures, capsys, tmp_path
) -> None:
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)
    missing = sorted(tmp_path.glob("*.txt"))[1]
    missing.unlink()
    given = ("--host", os.environ["COMFYUI_PATH"], "--checkpoint", checkpoint, "--pictures", tmp_path, *QUICK)
    code, _, errors = soda(capsys, "train", *given, "--steps", 1, "--loss", "mse", "--out", "t/some", "--quiet",
                           "--caption", "a sks flower")  # fmt: skip
    (picture,) = (path.name for path in tmp_path.glob(f"{missing.stem}.*"))
    said = f"1 of 3 pictures have no caption of their own, the first is {picture}: they are trained with"
    assert code == 0 and f"{said} the caption 'a sks flower'" in errors


@pytest.fixture(scope="module")
def wrong(host, pictures, tmp_path_factory) -> Path:
    """A folder of files that cannot be used."""
    folder = tmp_path_factory.mktemp("wrong")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, folder / "lora.safetensors")
    (folder / "text.safetensors").write_text("hello")
    torch.save({"model": print}, folder / "evil.ckpt")
    for name, text in (
        ("unknown", "stepss = 3"), ("type", 'steps = "many"'), ("broken", "steps = "), ("none", "steps = 0"),
        ("sizes", "[factor_sizes]\n320 = 10"),
    ):  # fmt: skip
        (folder / f"{name}.toml").write_text(text)
    picture = next(path for path in pictures.iterdir() if path.suffix != ".txt")
    for name in ("empty", "silent", "torn"):
        (folder / name).mkdir()
    shutil.copy(picture, folder / "silent")
    (folder / "torn" / "torn.png").write_bytes(picture.read_bytes()[:300])
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "{wrong}"), "is no ComfyUI; give the folder with its main.py"),
        (("--out", "../fox"), "is not allowed"),
        (("--out", "fox.safetensors"), "without ending: fox"),
        (("--steps", "0"), "steps must be 1 or more, got 0"),
        (("--rotation-lr", "nan"), "rotation_lr must be 0 or more, got nan"),
        (("--settings", "{wrong}/unknown.toml"), "unknown.toml: there is no setting 'stepss'; did you mean 'steps'?"),
        (("--settings", "{wrong}/type.toml"), "type.toml: steps must be a whole number, got 'many'"),
        (("--settings", "{wrong}/broken.toml"), "broken.toml: is not valid TOML"),
        (("--settings", "{wrong}/none.toml"), "steps must be 1 or more, got 0"),
        (("--settings", "{wrong}/sizes.toml"), "sizes.toml: [factor_sizes] must hold lists"),
        (("--settings", "{wrong}/absent.toml"), "absent.toml: cannot be read"),
        (("--checkpoint", "absent.safetensors"), "absent.safetensors: there is no such file"),
        (("--checkpoint", "{wrong}/lora.safetensors"), "lora.safetensors: ComfyUI cannot load it"),
        (("--checkpoint", "{wrong}/text.safetensors"), "text.safetensors: ComfyUI cannot load it"),
        (("--checkpoint", "{wrong}/evil.ckpt"), "evil.ckpt: only safetensors files are loaded"),
        (("--vae", "{wrong}/lora.safetensors"), "lora.safetensors: ComfyUI cannot load it"),
        (("--text-encoder", "{wrong}/lora.safetensors"), "--text-encoder-type must be one of"),
        (("--pictures", "{wrong}/absent"), "absent: cannot be read as a folder of pictures"),
        (("--pictures", "{wrong}/empty"), "empty: holds no pictures"),
        (("--pictures", "{wrong}/silent"), "has no caption; write one to"),
        (("--pictures", "{wrong}/torn", "--caption", "a fox"), "torn.png: cannot be read as a picture"),
        (("--placeholder", "zqx"), "placeholder 'zqx' is in no caption"),
        (("--continue-from", "unfinished: x"), "is gone"),
        (("--continue-from", "nobody.safetensors"), "no adapter 'nobody.safetensors'"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(
    host, checkpoint, pictures, wrong, capsys, arguments, message
) -> None:
    before = {path: path.stat().st_mtime_ns for path in host.base.rglob("*") if path.is_file()}
    given = {"--host": os.environ["COMFYUI_PATH"], "--checkpoint": checkpoint, "--pictures": pictures, "--out": "t/no"}
    given |= {"--resolution": 64, "--steps": 1, "--train": "rotation only"}
    given |= dict(zip(arguments[::2], (str(a).format(wrong=wrong) for a in arguments[1::2]), strict=True))
    if "--settings" in given:
        del given["--steps"]
    code, text, errors = soda(capsys, "train", *(part for pair in given.items() for part in pair), "--quiet")
    errors = "".join(line for line in errors.splitlines(True) if line.startswith("soda: "))
    assert code == 1 and not text
    assert errors.count("\n") == 1 and message in errors, errors
    assert {path: path.stat().st_mtime_ns for path in host.base.rglob("*") if path.is_file()} == before


def test_ctrl_c_keeps_what_it_had_and_says_how_to_go_on(host, checkpoint, pictures, tmp_path, capsys) -> None:
    base = tmp_path / "base"
    flags = (*QUICK, "--loss", "mse", "--train", "rotation only", "--out", "t/fox", "--json")
    command = train_command(base, checkpoint, pictures, *flags, "--steps", 100_000)
    with Running(command) as running:
        running.wait_for("SODA: step")
        running.process.send_signal(signal.SIGINT)
        code, text = running.end()
    assert code == 130, running.log
    said = json.loads(text)
    assert said["stopped"] and said["step"] > 0 and said["name"].startswith("t/fox-interrupted_00001_")
    kept = SodaAdapter.load(base / "models" / "soda" / said["name"])
    assert kept.metadata["steps"] == said["step"]
    assert "Traceback" not in running.log and "is saved as" in running.log
    more = train_command(base, checkpoint, pictures, *flags, "--steps", said["step"] + 2, "--continue-from",
                         said["continue_from"])  # fmt: skip
    done = subprocess.run(more, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    finished = SodaAdapter.load(json.loads(done.stdout)["file"])
    assert finished.metadata["steps"] == said["step"] + 2 and "continuing at step" in done.stderr
    assert not list((base / "user").rglob("*soda_states/*.safetensors")), "its state is no longer needed"


def test_a_bar_is_drawn_on_a_terminal_and_goes(host, checkpoint, pictures, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, text, errors = soda(
        capsys, "train", "--host", os.environ["COMFYUI_PATH"], "--checkpoint", checkpoint, "--pictures", pictures,
        "--out", "t/bar", *QUICK, "--steps", 2, "--loss", "mse",
    )  # fmt: skip
    assert code == 0 and "2 steps, loss " in text and "t/bar_00001_" in text.replace("\\", "/")
    assert "[=" in errors and "step 2/2" in errors and "trained parameters" in errors
    assert errors.endswith("\r\033[K"), "nothing is left on the line"


def test_what_no_folder_takes_is_put_where_the_command_was_given(
    host, checkpoint, pictures, tmp_path, capsys, monkeypatch
) -> None:
    import folder_paths

    nowhere = tmp_path / "file"
    nowhere.write_text("no folder")
    real = folder_paths.get_folder_paths

    def taken_away(kind: str) -> list[str]:
        return [str(nowhere)] if kind == "soda" and stepped else real(kind)

    stepped: list[bool] = []
    from soda_core.host.training import report

    step = report.Report.step
    monkeypatch.setattr(report.Report, "step", lambda self, progress: (stepped.append(True), step(self, progress)))
    monkeypatch.setattr(folder_paths, "get_folder_paths", taken_away)
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(nowhere))
    monkeypatch.chdir(tmp_path)
    said = train(capsys, checkpoint, pictures, *QUICK, "--steps", 1, "--loss", "mse", "--out", "t/lost")
    assert Path(said["file"]).parent == tmp_path and "no folder of ComfyUI takes the adapter" in said["warning"]
    assert SodaAdapter.load(said["file"]).identity() == said["hash"]


def test_the_help_needs_no_host() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "soda_core", "train", "--help"], capture_output=True, text=True, check=False, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0 and "--gradient-checkpointing" in done.stdout and "(default: 1000)" in done.stdout
