# SPDX-License-Identifier: GPL-3.0-or-later
"""A MODEL, CLIP and VAE from files, by the functions behind the host's loader nodes: every family that it knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths

from ..errors import SettingsError
from ..tensor_file import EXTENSION
from ..text import printable
from .versions import is_out_of_memory

#: No others are read: they can run programs.
_ENDINGS = (EXTENSION, ".sft")


@dataclass(frozen=True)
class ModelFiles:
    """Where a base model is: a checkpoint, or its parts; parts that are given come before the checkpoint's own.

    Each is a path, or a name in the host's folder of its kind.
    """

    checkpoint: str = ""
    diffusion_model: str = ""
    text_encoders: Sequence[str] = ()
    text_encoder_type: str = ""  #: as in the host's CLIP loaders: sd3, flux, …
    vae: str = ""


def text_encoder_types() -> list[str]:
    """What ``text_encoder_type`` may be."""
    return [kind.name.lower() for kind in comfy.sd.CLIPType]


def load(files: ModelFiles) -> tuple[Any, Any, Any]:
    """The MODEL, CLIP and VAE.

    Raises:
        SettingsError: a file is not there or cannot be loaded, or a part is in none; it says which.
    """
    if bool(files.checkpoint) == bool(files.diffusion_model):
        raise SettingsError("give either a checkpoint or a diffusion model")
    model, clip, vae = _checkpoint(files) if files.checkpoint else (_diffusion_model(files.diffusion_model), None, None)
    if files.text_encoders:
        clip = _text_encoders(files)
    if files.vae:
        vae = _vae(files.vae)
    source = files.checkpoint or files.diffusion_model
    if clip is None:
        raise SettingsError(f"{source}: holds no text encoder; give its files with --text-encoder")
    if vae is None:
        raise SettingsError(f"{source}: holds no VAE; give its file with --vae")
    return model, clip, vae


def _checkpoint(files: ModelFiles) -> tuple[Any, Any, Any]:
    path = _path("checkpoints", files.checkpoint)

    def loaded() -> tuple[Any, Any, Any]:
        found: tuple[Any, ...] = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=not files.vae, output_clip=not files.text_encoders, embedding_directory=_embeddings()
        )
        return found[0], found[1], found[2]

    model, clip, vae = _loading(files.checkpoint, loaded)
    if model is None:
        raise SettingsError(f"{files.checkpoint}: holds no diffusion model")
    return model, clip, vae if vae is None or vae.first_stage_model is not None else None


def _diffusion_model(name: str) -> Any:
    path = _path("diffusion_models", name)
    return _loading(name, lambda: comfy.sd.load_diffusion_model(path))


def _text_encoders(files: ModelFiles) -> Any:
    if files.text_encoder_type not in text_encoder_types():
        raise SettingsError(f"--text-encoder-type must be one of {', '.join(text_encoder_types())}")
    kind = comfy.sd.CLIPType[files.text_encoder_type.upper()]
    paths = [_path("text_encoders", name) for name in files.text_encoders]
    return _loading(
        ", ".join(files.text_encoders),
        lambda: comfy.sd.load_clip(paths, embedding_directory=_embeddings(), clip_type=kind),
    )


def _vae(name: str) -> Any:
    path = _path("vae", name)

    def loaded() -> Any:
        tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        vae = comfy.sd.VAE(sd=tensors, metadata=metadata)
        vae.throw_exception_if_invalid()
        return vae

    return _loading(name, loaded)


def _loading(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # the host's loaders raise whatever a strange file leads them to
        if is_out_of_memory(error):
            raise
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])
        raise SettingsError(f"{name}: ComfyUI cannot load it as that kind of file: {reason}") from error


def _path(kind: str, name: str) -> str:
    """Of a file: a path, or a name in the host's folders of that kind."""
    path = os.path.abspath(os.path.expanduser(name)) if os.path.isfile(os.path.expanduser(name)) else None
    path = path or folder_paths.get_full_path(kind, name)
    if path is None:
        raise SettingsError(
            f"{name}: there is no such file, nor is one of that name in ComfyUI's folders for {kind} "
            f"({len(folder_paths.get_filename_list(kind))} are)"
        )
    if Path(path).suffix.lower() not in _ENDINGS:
        raise SettingsError(f"{name}: only safetensors files are loaded (others can run programs); convert it first")
    return str(path)


def _embeddings() -> Any:
    return folder_paths.get_folder_paths("embeddings")
