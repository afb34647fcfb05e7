# SPDX-License-Identifier: GPL-3.0-or-later
"""Small random models of every family, and a training on one: what it ends with, and what others make of its file."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Family:
    preset: str
    family: str  #: as the adapter's file says
    prediction: str
    text: tuple[int, int]  #: tokens and width
    pooled: int = 0
    latent: tuple[int, ...] = (8, 8)

    def __str__(self) -> str:
        return f"{self.preset} {'x'.join(map(str, self.latent))}"


FAMILIES = [
    Family("sd15-min", "SD 1.5", "eps", (77, 768)),
    Family("sdxl-koala-min", "KOALA_700M", "eps", (77, 2048), 1280),
    Family("sdxl-koala-min-v", "KOALA_700M", "v_prediction", (77, 2048), 1280),
    Family("sd3-d2", "SD3", "flow", (77, 4096), 2048),
    Family("sd35-d2-dual", "SD3", "flow", (77, 4096), 2048),
    Family("flux-d1", "Flux", "flux", (20, 4096), 768),
    Family("flux2-d1", "Flux2", "flux", (20, 64)),
    Family("wan-d2", "WAN21_T2V", "flow", (20, 4096), latent=(3, 8, 8)),
    Family("wan-d2", "WAN21_T2V", "flow", (20, 4096)),  # pictures: videos of one frame
]
SETTINGS = {"steps": 2, "rotation_lr": 0.02, "shift_lr": 0.02, "seed": 5, "loss": "mse"}


def conditioning(row: Family, **options: Any) -> list[Any]:
    g = torch.Generator().manual_seed(0)
    options["pooled_output"] = torch.randn(1, row.pooled, generator=g) if row.pooled else None  # as text encoders do
    return [[torch.randn(1, *row.text, generator=g), options]]


def data_of(host, row: Family, model: Any, **options: Any) -> Any:
    shape = (1, model.model.latent_format.latent_channels, *row.latent)
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return host.core("host.training").TrainingData([{"samples": samples}], [conditioning(row, **options)])


def trained(host, row: Family, model: Any, **settings: Any) -> SimpleNamespace:
    """A training, and what the adapted and the untouched model predict at its end, in the session."""
    training, sessions = host.core("host.training.run"), host.core("host.training.session")
    chosen = host.core("training.settings").TrainSettings(**{**SETTINGS, **settings})
    options = training.RunOptions(filename_prefix=f"families/{row.preset}", preview_every=2, preview_steps=1)
    with torch.inference_mode(), sessions.TrainingSession.open(model, chosen) as session, torch.no_grad():
        run = training.Run(session, data_of(host, row, model), options)
        with torch.enable_grad():
            result = run.train()
        example, sigma = run.examples.pictures.groups[0][0], torch.tensor([0.7])
        latent = torch.randn(example.latent.shape, generator=torch.Generator().manual_seed(2))
        prediction = session.denoise(latent, sigma, [example.conds])
        with run.trainable.disabled():
            untouched = session.denoise(latent, sigma, [example.conds])
        conds = host.core("host.training.dataset").batch_conds([example.conds], session.device)
    return SimpleNamespace(
        result=result, prediction=prediction, untouched=untouched, latent=latent, sigma=sigma, conds=conds
    )


def predicted(model: Any, run: SimpleNamespace, load: bool = True) -> torch.Tensor:
    import comfy.model_management

    with torch.inference_mode():
        if load:
            comfy.model_management.load_models_gpu([model])
        return model.model.apply_model(run.latent, run.sigma, **run.conds).clone()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same weights, computed on another side: float32's rounding, of the prediction's size."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=2e-5 * max(scale, 1.0), rtol=2e-4)
