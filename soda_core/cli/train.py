# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda train``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError
from ..files import check_prefix
from ..tensor_file import EXTENSION
from ..training.options import FolderOptions, RunSettings
from ..training.ranks import joined, launched
from ..training.setting import settings_of
from ..training.settings import TrainSettings
from . import settings_file
from .common import Answer, Command, add_setting, given
from .screen import Screen, logged

if TYPE_CHECKING:  # needs ComfyUI
    from ..host.training.headless import Shown

#: Steps whose mean loss is told at the end.
_RECENT = 20


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("model and pictures")
    files.add_argument("--host", required=True, type=Path, metavar="FOLDER", help="of ComfyUI, the one with main.py")
    base = files.add_mutually_exclusive_group(required=True)
    base.add_argument("--checkpoint", default="", metavar="FILE", help="base model: a path, or a name in ComfyUI")
    base.add_argument("--diffusion-model", default="", metavar="FILE", help="the same without text encoder and VAE")
    files.add_argument(
        "--text-encoder", action="append", default=[], metavar="FILE", dest="text_encoders",
        help="where the base has none, or in place of its own; may be given several times",
    )  # fmt: skip
    files.add_argument("--text-encoder-type", default="", metavar="KIND", help="of these: flux, sd3, sdxl, …")
    files.add_argument("--vae", default="", metavar="FILE", help="where the base has none, or in place of its own")
    files.add_argument(
        "--pictures", required=True, type=Path, metavar="FOLDER",
        help="pictures, each with its caption in a text file of the same name (fox.png, fox.txt)",
    )  # fmt: skip
    files.add_argument(
        "--class-pictures", type=Path, metavar="FOLDER", help="for prior preservation, with captions as well"
    )
    files.add_argument("--out", required=True, metavar="NAME", help="of the adapter, as in the node: fox, people/anna")
    files.add_argument("--settings", type=Path, metavar="FILE", help="TOML with any of the settings below")
    groups = parser.add_argument_group("settings"), parser.add_argument_group("settings for those who look for them")
    for record in (FolderOptions, TrainSettings, RunSettings):
        for name, setting in settings_of(record).items():
            add_setting(groups[setting.advanced], record, name)
    parser.add_argument(
        "comfyui", nargs="*", metavar="-- FLAGS", help="ComfyUI's own flags, as -- --lowvram --base-directory D"
    )


def _run(arguments: argparse.Namespace) -> Answer:
    name = check_prefix(arguments.out)
    if name.endswith(EXTENSION):
        raise SettingsError(f"--out is a name that is counted up, without ending: {name.removesuffix(EXTENSION)}")
    values = settings_file.read(arguments.settings) if arguments.settings else {}
    values |= given(arguments, *(name for record in settings_file.RECORDS for name in settings_of(record)))
    train, run, folder = settings_file.sorted_out(values)
    settings, options = TrainSettings(**train), FolderOptions(**folder)
    RunSettings(**run)  # all that is wrong with the settings is said before the host is started
    with (
        joined(cpu="--cpu" in arguments.comfyui or not _has_gpu()) as ranks,
        logged(quiet=arguments.quiet or not ranks.first) as screen,
    ):
        ranks.check(settings.batch_size)  # before anything is loaded
        return _train(arguments, settings, options, {**run, "filename_prefix": name, "ranks": ranks}, screen)


def _train(
    arguments: argparse.Namespace, settings: TrainSettings, folder: FolderOptions, run: dict[str, Any], screen: Screen
) -> Answer:
    from ..host import standalone

    screen.show("starting ComfyUI's modules")
    standalone.start(arguments.host, arguments.comfyui)
    from ..host.loaders import ModelFiles
    from ..host.training.headless import Shown, saved_path, train_folder
    from ..host.training.options import RunOptions

    files = ModelFiles(**{field.name: getattr(arguments, field.name) for field in fields(ModelFiles)})
    shown = Shown(screen.show, settings.steps)
    options = RunOptions(live=shown, **run)
    try:
        with standalone.progress_to(screen.progress), standalone.cancelled_by_signals(insist=not launched()):
            result = train_folder(files, arguments.pictures, folder, settings, options, arguments.class_pictures)
    except standalone.Cancelled as cancel:
        code = 128 + cancel.number
        return _stopped(shown, code) if options.ranks.first else Answer("", {}, code, silent=True)
    if not options.ranks.first:
        return Answer("", {}, silent=True)
    digest, warning = result.adapter.identity(), result.warning
    path = saved_path(result)
    if path is None:  # nothing trained may be lost
        path = Path(f"{result.adapter.title}-{digest[:8]}{EXTENSION}").resolve()
        result.adapter.save(path)
        warning = f"no folder of ComfyUI takes the adapter; it is {path}"
    recent = result.losses[-_RECENT:]
    loss = sum(recent) / len(recent)
    data = {
        "file": str(path), "name": result.saved_name, "title": result.adapter.title, "steps": settings.steps,
        "loss": loss, "hash": digest, "processes": options.ranks.count, "warning": warning,
    }  # fmt: skip
    text = f"{path}: {settings.steps} steps, loss {loss:.4f}"
    return Answer("\n".join(filter(None, (text, warning))), data)


def _stopped(shown: Shown, code: int) -> Answer:
    """What to say of a run that a person ended."""
    if not shown.saved:
        return Answer("stopped; nothing was trained yet", {"stopped": True, "step": 0}, code)
    data = {"stopped": True, "step": shown.done, "name": shown.saved, "continue_from": shown.run}
    lines = [f"stopped after step {shown.done}: the adapter so far is {shown.saved}"]
    if shown.run:
        lines.append(f"to go on, add: --continue-from {shown.run!r}")
    return Answer("\n".join(lines), data, code)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


COMMAND = Command(
    "train",
    "an adapter, on pictures of a folder, by a ComfyUI without its browser",
    "Train an adapter as the node Train SODA does, with its settings and defaults, and save it where ComfyUI finds it. "
    "Ctrl-C keeps what was trained so far. Several processes share the batches under 'accelerate launch'.",
    (
        "train --host ComfyUI --checkpoint sd15.safetensors --pictures fox --out fox --trigger-phrase 'sks fox'",
        "train --host ComfyUI --checkpoint sdxl.safetensors --pictures fox --out fox --settings fox.toml --steps 500",
        "train --host ComfyUI --diffusion-model flux1-dev.safetensors --text-encoder clip_l.safetensors "
        "--text-encoder t5xxl_fp16.safetensors --text-encoder-type flux --vae ae.safetensors --pictures fox --out fox "
        "--resolution 1024 --decomposition qr",
        "train --host ComfyUI --checkpoint sd15.safetensors --pictures fox --out fox -- --lowvram",
    ),
    _add_arguments,
    _run,
)
