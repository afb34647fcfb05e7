# SPDX-License-Identifier: GPL-3.0-or-later
"""The loss of a batch: examples, noise and noise levels drawn, the model's error on them, and what is minimised."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import SodaError, TrainingError
from ...training import losses
from ...training.loop import Losses, Trainable
from ...training.ranks import ALONE, Ranks
from .. import base
from ..versions import is_cancel, is_out_of_memory
from .dataset import Buckets, Example, Examples
from .parametrisation import draw_sigmas, output_error, output_scale, sigmas_at, signal_to_noise
from .session import TrainingSession


@dataclass(frozen=True)
class Drawn:
    """A batch with its random numbers."""

    batch: list[Example]
    noise: Tensor  #: ``(batch, C, …)``
    sigma: Tensor  #: ``(batch,)``


class Objective:
    """The settings' loss on a session's model.

    Args:
        trainable: what is trained in the model; for ``dco`` it can be disabled.
        ranks: of every batch this process computes its share.
    """

    def __init__(
        self, session: TrainingSession, trainable: Trainable, examples: Examples, ranks: Ranks = ALONE
    ) -> None:
        self.session, self.trainable, self.examples, self.ranks = session, trainable, examples, ranks
        self.settings = session.settings

    def batch_loss(self, generator: torch.Generator) -> Losses:
        """Of a batch that the generator decides; of several processes, this one's part of its losses."""
        drawn = self.draw(self.examples.pictures, generator)
        prior = self.examples.class_pictures
        losses = self.losses(drawn, None if prior is None else self.draw(prior, generator))
        part = len(drawn.batch) / self.settings.batch_size
        return Losses(part * losses.objective, part * losses.denoising)

    def draw(self, pictures: Buckets, generator: torch.Generator) -> Drawn:
        """A batch, and of it this process's share: random numbers are those of the whole batch."""
        size = self.settings.batch_size
        return self._noised(pictures.draw(size, generator), generator, self.ranks.share(size))

    def largest(self) -> tuple[Drawn, Drawn | None]:
        """A batch of the largest pictures, and of the largest class pictures: what takes most memory."""

        def drawn(pictures: Buckets) -> Drawn:
            share = range(len(self.ranks.share(self.settings.batch_size)))
            return self._noised(pictures.largest(len(share)), torch.Generator(), share)

        prior = self.examples.class_pictures
        return drawn(self.examples.pictures), None if prior is None else drawn(prior)

    def losses(self, drawn: Drawn, prior: Drawn | None) -> Losses:
        """Of a batch, and a batch of class pictures beside it."""
        settings = self.settings
        loss, objective = self._denoising(drawn, settings.loss)
        if prior is not None and settings.prior_weight:
            kind, pull = ("mse", settings.dco_beta / 2) if settings.loss == "dco" else (settings.loss, 1.0)
            # dco starts beta / 2 times as steep as a plain loss
            objective = objective + settings.prior_weight * pull * self._denoising(prior, kind)[1]
        return Losses(objective, loss)

    def spread(self, count: int, generator: torch.Generator) -> list[Drawn]:
        """``count`` single pictures, spread over all, at noise levels spread over the schedule."""
        pictures = [example for group in self.examples.pictures.groups for example in group]
        shares = (torch.arange(count) + 0.5) / count
        drawn = [self._noised([pictures[i * len(pictures) // count]], generator, range(1)) for i in range(count)]
        sigmas = sigmas_at(self._sampling, shares, self.session.device)
        return [dataclasses.replace(one, sigma=sigma[None]) for one, sigma in zip(drawn, sigmas, strict=True)]

    @torch.no_grad()
    def plain(self, drawn: Drawn) -> Tensor:
        """The plain denoising loss of a batch, a scalar, whatever is minimised."""
        return self._denoising(drawn, "mse")[0]

    def base_prediction(self) -> Tensor:
        """One and the same of the base model; what a model computes once and keeps is there afterwards.

        Raises:
            TrainingError: the model does not take what it is given.
        """
        (example,) = self.examples.pictures.largest(1)
        drawn = self._noised([example], torch.Generator().manual_seed(0), range(1))
        try:
            with torch.no_grad(), self.trainable.disabled():
                return self.session.denoise(drawn.noise, drawn.sigma, [example.conds])
        except Exception as error:
            if isinstance(error, SodaError) or is_cancel(error) or is_out_of_memory(error):
                raise
            family = base.describe(self.session.source, with_hash=False)["family"]
            raise TrainingError(
                f"{family} cannot predict anything from these latents and captions ({error}); encode the pictures with "
                "its own VAE and the captions with its own text encoder"
            ) from error

    @property
    def _sampling(self) -> Any:
        return self.session.model.model_sampling  # another one once the model is loaded, where a node has set it

    def _noised(self, batch: list[Example], generator: torch.Generator, share: range) -> Drawn:
        """Of a batch the examples of a share, with their random numbers."""
        device = self.session.device
        noise = torch.randn((len(batch), *batch[0].latent.shape[1:]), generator=generator)
        sigma = draw_sigmas(self._sampling, len(batch), generator, device)
        mine = slice(share.start, share.stop, share.step)
        return Drawn(batch[mine], noise[mine].to(device), sigma[mine])

    def _denoising(self, drawn: Drawn, kind: str) -> tuple[Tensor, Tensor]:
        """Plain denoising loss (detached) and objective of one batch, both scalars."""
        sampling, batch, sigma = self._sampling, drawn.batch, drawn.sigma
        clean = torch.cat([example.latent for example in batch])
        noised = sampling.noise_scaling(sigma, drawn.noise, clean, False)

        def output_loss(conds: list[dict[str, Any]]) -> Tensor:
            error = output_error(sampling, sigma, self.session.denoise(noised, sigma, conds), clean)
            return losses.mse(error, torch.zeros_like(error))

        loss = output_loss([example.conds for example in batch])
        if kind == "min-snr":
            snr, scale = signal_to_noise(sampling, sigma), output_scale(sampling, sigma)
            objective = losses.min_snr_weight(snr, scale, self.settings.min_snr_gamma) * loss
        elif kind == "dco":
            with torch.no_grad(), self.trainable.disabled():
                base_loss = output_loss([e.conds if e.base_conds is None else e.base_conds for e in batch])
            objective = losses.dco(loss, base_loss, self.settings.dco_beta)
        else:
            objective = loss
        return loss.detach().mean(), objective.mean()
