# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what was trained to ``demo/model/``, in 8 bits, and says what that costs."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from testbed import model_files
from testbed.paths import cache_root
from testbed.pretrain import unet
from testbed.pretrain.loop import finished


def autoencoder_tensors(work: Path) -> dict[str, Tensor]:
    """The autoencoder with its latents' mean and deviation in the host's ``vae_shift`` and ``vae_scale``."""
    latents = unet.known_latents(work)
    middle, deviation = float(latents.mean()), float(latents.std())
    weights = dict(finished(work / "autoencoder" / "state.safetensors"))
    weights["vae_scale"] = torch.tensor(unet.SD_SCALE * deviation)
    weights["vae_shift"] = torch.tensor(-middle / (unet.SD_SCALE * deviation))
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=cache_root() / "pretrain")
    args = parser.parse_args()
    for path, tensors in (
        (model_files.AUTOENCODER, autoencoder_tensors(args.work)),
        (model_files.UNET, finished(args.work / "unet" / "state.safetensors")),
        (model_files.CLASSIFIER, finished(args.work / "classifier" / "state.safetensors")),
    ):
        model_files.save(path, tensors)
        stored = model_files.load(path)
        error = sum(float((stored[n] - v).square().sum()) for n, v in tensors.items())
        error = (error / sum(float(v.square().sum()) for v in tensors.values())) ** 0.5
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, weights off by {error:.2%}")


if __name__ == "__main__":
    main()
