# SPDX-License-Identifier: GPL-3.0-or-later
"""Training in the graph: a MODEL and pictures in, an adapter out. The glue between the host and :mod:`...training`."""

from __future__ import annotations

import datetime
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.ops
import comfy.sample
import comfy.utils
import comfyui_version
import latent_preview
import torch
import torch.utils.checkpoint
from comfy.ldm.modules.attention import attention_pytorch
from PIL import Image
from torch import Tensor

from ...adapter import SodaAdapter
from ...base_weight import BaseWeight
from ...errors import SettingsError, SodaError, TrainingError
from ...spectral import basis_numbers
from ...targets import select
from ...training import losses
from ...training.columns import Columns
from ...training.loop import Losses, Progress, train
from ...training.memory import peak_bytes
from ...training.settings import TrainSettings
from ...training.trainable import Side, TrainableAdapter, TrainableLayer, layer_factor_sizes
from ...version import VERSION
from .. import base, folders
from ..progress import ProgressBar
from ..spectra import store
from .dataset import Buckets, Example, batch_conds, prepare
from .objective import draw_sigmas, output_error, output_scale, signal_to_noise
from .options import RunOptions, TrainingDtype
from .training_copy import checkpointed_blocks, ordinary, shadow_patcher

_DTYPES: dict[str, torch.dtype | None] = {"fp32": torch.float32, "bf16": torch.bfloat16, "model": None}

_OUT_OF_MEMORY = (
    "the device ran out of memory; turn on gradient_checkpointing, lower batch_size (and raise accumulation instead), "
    "train smaller pictures or fewer layers"
)

PREVIEW_SAMPLER = ("euler", "normal")


@dataclass(frozen=True)
class TrainingData:
    """What the graph hands over; every sequence holds the host's own types."""

    latents: Sequence[dict[str, Any]]
    positive: Sequence[Any]
    base_positive: Sequence[Any] | None = None  #: captions without the placeholder word, for DCO
    class_latents: Sequence[dict[str, Any]] | None = None  #: prior preservation
    class_positive: Sequence[Any] | None = None
    negative: Sequence[Any] | None = None  #: previews only
    vae: Any | None = None  #: previews only


@dataclass(frozen=True)
class TrainingResult:
    adapter: SodaAdapter
    losses: list[float]
    learning_rates: list[float]
    saved_name: str


def train_in_graph(patcher: Any, data: TrainingData, settings: TrainSettings, options: RunOptions) -> TrainingResult:
    """Train an adapter for ``patcher``'s model and save it.

    The input model, the host's flags and the global random state are as found afterwards, also after an error or a
    cancel; then the adapter so far is saved as ``<prefix>-interrupted``.

    Raises:
        SettingsError, TrainingError: with what to change. Cancel raises the host's own exception.
    """
    folders.check_writable(options.filename_prefix)
    if (data.class_latents is None) != (data.class_positive is None):
        raise SettingsError("prior preservation needs both class_latents and class_positive; connect both or neither")
    with _host_state(patcher):
        run = _Run(patcher, data, settings, options)
        try:
            return run.run()
        finally:
            run.close()


@contextmanager
def _host_state(patcher: Any) -> Iterator[None]:
    """Ordinary tensors, gradients on, a private random state; everything put back.

    No asynchronous offloading: it casts all weights in one buffer, which a backward pass would find overwritten.
    """
    was_training, streams = mm.in_training, mm.NUM_STREAMS
    cuda = [torch.device(patcher.load_device)] if torch.device(patcher.load_device).type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=cuda):
        mm.in_training, mm.NUM_STREAMS = True, 0
        try:
            yield
        finally:
            mm.in_training, mm.NUM_STREAMS = was_training, streams
            gc.collect()  # module trees hold cycles; a GPU's memory must not wait for the collector
            mm.soft_empty_cache()


@dataclass(frozen=True)
class Drawn:
    """A batch with its random numbers."""

    batch: list[Example]
    noise: Tensor  #: ``(batch, C, …)``
    sigma: Tensor  #: ``(batch,)``


#: values, gradients, two moments, and the last good state
_COPIES = 5


class _Run:
    """One training run: owns the shadow model for its lifetime."""

    def __init__(self, patcher: Any, data: TrainingData, settings: TrainSettings, options: RunOptions) -> None:
        self.source, self.data, self.settings, self.options = patcher, data, settings, options
        self.device = base.compute_device(patcher)
        self.dtype = options.dtype if options.dtype != "auto" else _auto_dtype(self.device)
        self.shapes = self._targets()
        self.patcher = shadow_patcher(patcher)
        if (dtype := _DTYPES[self.dtype]) is not None:
            self.patcher.set_model_compute_dtype(dtype)
        self.progress = Progress()
        self.trainable: TrainableAdapter | None = None
        self.adapter_on = True

    # -------------------------------------------------------------------------------------------------- life cycle

    def run(self) -> TrainingResult:
        try:
            self.prepare()
            self.fit()
        except BaseException as error:  # the host's cancel is no Exception; nothing trained may be lost
            kept = self._rescue()
            if isinstance(error, Exception) and mm.is_oom(error):
                raise TrainingError(_OUT_OF_MEMORY + kept) from error
            if isinstance(error, TrainingError):
                error.args = (f"{error}{kept}",)
            raise
        adapter = self._adapter()
        saved_name = folders.save_adapter(adapter, self.options.filename_prefix, anywhere=True)
        return TrainingResult(adapter, self.progress.losses, self.progress.learning_rates, saved_name)

    def prepare(self) -> None:
        """Everything up to the first step."""
        self.pictures, self.class_pictures = self._datasets()
        self.weights = base.PristineWeights(self.source, list(self.shapes))
        self.metadata = self._metadata()
        self.trainable = self._new_trainable(self.shapes)
        self._load()
        self._attach(self.trainable)
        self._announce(self.trainable)

    def _new_trainable(self, shapes: dict[str, tuple[int, ...]]) -> TrainableAdapter:
        return TrainableAdapter(shapes, self.settings, self._spectra(), self.device)

    def fit(self) -> None:
        """All steps; the trained state is in ``trainable`` also when this raises."""
        assert self.trainable is not None
        self._start_reporting()
        if self.options.preview_every:
            self._preview()
        train(self.trainable, self._batch_loss, self._on_step, self.progress)

    def close(self) -> None:
        """Take the shadow out of the host's list of loaded models, and apart, so that its memory goes at once."""
        for i, loaded in reversed(list(enumerate(mm.current_loaded_models))):
            if loaded.model is self.patcher:
                mm.current_loaded_models.pop(i)
                if loaded.model_finalizer is not None:
                    loaded.model_finalizer.detach()
        for module in self.patcher.model.modules():  # replaced forwards refer back to this run
            module.__dict__.pop("forward", None)
        if self.trainable is not None:
            self.trainable.layers.clear()
        del self.patcher

    def _rescue(self) -> str:
        """Save the adapter so far; says where, to end an error with."""
        step = self.progress.step
        if not step:
            return ""
        try:
            name = folders.save_adapter(self._adapter(), f"{self.options.filename_prefix}-interrupted", anywhere=True)
        except Exception as second:
            logging.error("SODA: the adapter of step %d could not be saved: %s", step, second)
            return f" (the adapter of step {step} could not be saved: {second})"
        logging.warning("SODA: stopped, the adapter of step %d is saved as %s", step, name)
        return f" (the adapter of step {step} is saved as {name})"

    # ------------------------------------------------------------------------------------------------- preparation

    def _targets(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights to adapt, by layer name."""
        shapes = base.layer_shapes(self.source)
        names = select(shapes, self.settings.layers, self.settings.layer_pattern)
        kept, skipped = {}, []
        for name in names:
            try:
                layer_factor_sizes(shapes[name], self.settings)
            except SettingsError as error:
                skipped.append((name, error))
            else:
                kept[name] = shapes[name]
        if skipped:
            logging.warning("SODA: %d of %d layers are left out, the first is %s: %s",
                            len(skipped), len(names), *skipped[0])  # fmt: skip
        if not kept:
            raise SettingsError(f"none of the {len(names)} chosen layers can be rotated: {skipped[0][1]}")
        return kept

    def _datasets(self) -> tuple[Buckets, Buckets | None]:
        convert = functools.partial(prepare, self.patcher.model, self.device)
        data = self.data
        pictures = convert(data.latents, data.positive, data.base_positive)
        logging.info("SODA: training on %d pictures in %d sizes", len(pictures), len(pictures.groups))
        if data.class_latents is None or data.class_positive is None:
            return pictures, None
        return pictures, convert(data.class_latents, data.class_positive, None, "class_")

    def _spectra(self) -> dict[str, Any]:
        if not self.settings.shifts:
            return {}
        progress = ProgressBar(len(self.shapes))
        self.options.show(f"decomposing {len(self.shapes)} weights, once for each base model")
        # in bfloat16 a step would round what it computes with them anyway, and they are most of the memory
        compute = _DTYPES[self.dtype] or self.patcher.model.get_dtype_inference()
        bases = torch.bfloat16 if compute == torch.bfloat16 else None
        if self.device.type != "cpu":  # other models must make room
            size = sum(basis_numbers(shape, self.settings.decomposition) for shape in self.shapes.values())
            mm.free_memory(size * (2 if bases else 4), self.device)
        spectra = {}
        for name, weight in self.weights.items():
            progress.advance()
            spectra[name] = store().get(BaseWeight(weight, self.device), self.settings.decomposition, bases)
        return spectra

    def _load(self) -> None:
        """The model on its device, with room for a step; again after something else may have moved it off."""
        (largest,) = self.pictures.largest(1)
        shape = [self.settings.batch_size, *largest.latent.shape[1:]]
        with torch.no_grad():
            mm.load_models_gpu([self.patcher], memory_required=3 * self.patcher.model.memory_required(shape))
        self.patcher.pre_run()
        adapted = self.trainable.layers if self.trainable is not None else {}
        for name, module in self.patcher.model.named_modules():
            # the host multiplies in fp8 where nothing changes a weight, or no gradient is asked for; but the base model
            # must be computed as the adapted one is
            quick = isinstance(module, comfy.ops.fp8_ops.Linear) or (name in adapted and hasattr(module, "layout_type"))
            if quick and not module.weight_function:
                module.weight_function = [_unchanged]

    def _attach(self, trainable: TrainableAdapter) -> None:
        """Route the shadow's modules through the adapter; they are ours alone."""
        for name, layer in trainable.layers.items():
            module = comfy.utils.get_attr(self.patcher.model, name)
            key = base.weight_key(name)
            pristine = ordinary(self.weights[name]).to(self.device) if key in self.source.patches else None
            module.forward = _AdaptedForward(self, module, layer, pristine)
        if self.options.gradient_checkpointing:
            for block in checkpointed_blocks(self.patcher.model):
                block.forward = _Checkpointed(block.forward)  # type: ignore[method-assign]

    def _announce(self, trainable: TrainableAdapter) -> None:
        """Say how much is trained and what memory it takes, before the first step."""
        rotation = sum(p.numel() for p in trainable.rotations.values())
        shift = 0 if trainable.shifts is None else trainable.shifts.numel()
        logging.info("SODA: %s trained parameters (%s rotation, %s shift) in %d layers",
                     *(f"{n:,}" for n in (rotation + shift, rotation, shift)), len(trainable.layers))  # fmt: skip
        self._first_forward()
        try:
            needs = self.memory()
        except Exception as error:  # a model that decides by values, say; training itself does not mind
            logging.info("SODA: how much memory a step takes cannot be told beforehand (%s)", error)
            return
        parts = ", ".join(f"{name} {_mib(size)}" for name, size in needs.items())
        logging.info("SODA: memory above the loaded model: %s (%s)", _mib(sum(needs.values())), parts)
        self.options.show(
            f"{rotation + shift:,} trained parameters, {_mib(sum(needs.values()))} above the loaded model"
        )
        free = mm.get_free_memory(self.device)
        if needs["a step"] > free:
            logging.warning("SODA: a step takes %s and %s are free; turn on gradient_checkpointing, or train with "
                            "smaller batches or pictures", _mib(needs["a step"]), _mib(free))  # fmt: skip

    def _first_forward(self) -> None:
        """What a model computes once and keeps must be there before the estimate runs on tensors without content."""
        (example,) = self.pictures.largest(1)
        drawn = self._noised([example], torch.Generator())
        with torch.no_grad():
            self._forward(drawn.noise, drawn.sigma, [example.conds])

    def memory(self) -> dict[str, int]:
        """Bytes that training takes above the loaded model, by what they are for; call after :meth:`prepare`."""
        assert self.trainable is not None
        trainable = self.trainable
        parameters = list(trainable.parameters())

        def largest(pictures: Buckets) -> Drawn:
            return self._noised(pictures.largest(self.settings.batch_size), torch.Generator())

        drawn = largest(self.pictures)
        prior = None if self.class_pictures is None else largest(self.class_pictures)

        def step() -> None:
            trainable.begin_step()
            torch.autograd.grad(self._losses(drawn, prior).objective, parameters)

        try:
            peak = peak_bytes(step)
        finally:
            trainable.begin_step()  # real tensors again
        return {
            "decompositions": sum(layer.spectrum.nbytes() for layer in trainable.layers.values() if layer.spectrum)
            + sum(knots.nbytes for _, knots in trainable.curves),
            "adapter and optimiser": _COPIES * sum(p.nbytes for p in parameters),
            "a step": peak,
        }

    def _metadata(self) -> dict[str, Any]:
        heights = {tuple(g[0].latent.shape[-2:]) for g in self.pictures.groups}
        factor = getattr(self.patcher.model.latent_format, "spacial_downscale_ratio", 8)
        return {
            "title": self.options.filename_prefix.rsplit("/", 1)[-1],
            "trigger_phrase": self.options.trigger_phrase.strip(),
            "base_model": base.describe(self.source, with_hash=True),
            "settings": self.settings.as_metadata() | {"dtype": self.dtype},
            "pictures": len(self.pictures),
            "resolution": ", ".join(f"{int(w * factor)}x{int(h * factor)}" for h, w in sorted(heights)),
            "seed": self.settings.seed,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "versions": {
                "soda": VERSION,
                "torch": torch.__version__,
                "comfyui": comfyui_version.__version__,
            },
            **self.options.graph,
        }

    # -------------------------------------------------------------------------------------------------------- loss

    def _batch_loss(self, generator: torch.Generator) -> Losses:
        drawn = self._draw(self.pictures, generator)
        prior = None if self.class_pictures is None else self._draw(self.class_pictures, generator)
        return self._losses(drawn, prior)

    def _draw(self, pictures: Buckets, generator: torch.Generator) -> Drawn:
        return self._noised(pictures.draw(self.settings.batch_size, generator), generator)

    def _noised(self, batch: list[Example], generator: torch.Generator) -> Drawn:
        shape = (len(batch), *batch[0].latent.shape[1:])
        noise = torch.randn(shape, generator=generator).to(self.device)
        return Drawn(batch, noise, draw_sigmas(self.patcher.model.model_sampling, len(batch), generator, self.device))

    def _losses(self, drawn: Drawn, prior: Drawn | None) -> Losses:
        settings = self.settings
        loss, objective = self._denoising(drawn, settings.loss)
        if prior is not None and settings.prior_weight:
            kind, pull = ("mse", settings.dco_beta / 2) if settings.loss == "dco" else (settings.loss, 1.0)
            # dco starts beta / 2 times as steep as a plain loss
            objective = objective + settings.prior_weight * pull * self._denoising(prior, kind)[1]
        return Losses(objective, loss)

    def _denoising(self, drawn: Drawn, kind: str) -> tuple[Tensor, Tensor]:
        """Plain denoising loss (detached) and objective of one batch, both scalars."""
        sampling, batch, sigma = self.patcher.model.model_sampling, drawn.batch, drawn.sigma
        clean = torch.cat([example.latent for example in batch])
        noised = sampling.noise_scaling(sigma, drawn.noise, clean, False)
        error = output_error(sampling, sigma, self._forward(noised, sigma, [e.conds for e in batch]), clean)
        loss = losses.mse(error, torch.zeros_like(error))
        if kind == "min-snr":
            snr, scale = signal_to_noise(sampling, sigma), output_scale(sampling, sigma)
            objective = losses.min_snr_weight(snr, scale, self.settings.min_snr_gamma) * loss
        elif kind == "dco":
            conds = [e.conds if e.base_conds is None else e.base_conds for e in batch]
            with torch.no_grad(), self._base_model():
                base_error = output_error(sampling, sigma, self._forward(noised, sigma, conds), clean)
            objective = losses.dco(loss, losses.mse(base_error, torch.zeros_like(error)), self.settings.dco_beta)
        else:
            objective = loss
        return loss.detach().mean(), objective.mean()

    def _forward(self, noised: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor:
        """The model's denoised prediction ``(batch, C, …)``."""
        options = {
            "cond_or_uncond": [0], "sigmas": sigma, **self.patcher.model_options["transformer_options"],
            "optimized_attention_override": _differentiable_attention,
        }  # fmt: skip
        return self.patcher.model.apply_model(  # type: ignore[no-any-return]
            noised, sigma, transformer_options=options, **batch_conds(conds, self.device)
        )

    @contextmanager
    def _base_model(self) -> Iterator[None]:
        self.adapter_on = False
        try:
            yield
        finally:
            self.adapter_on = True

    # --------------------------------------------------------------------------------------------------- reporting

    def _start_reporting(self) -> None:
        self._bar = ProgressBar(self.settings.steps)
        self._started = self._logged = self._shown = time.monotonic()

    def _on_step(self, progress: Progress) -> None:
        step, total = progress.step, self.settings.steps
        now = time.monotonic()
        if now - self._shown > 0.5 or step in (1, total):
            self._shown = now
            recent = progress.losses[-20:]
            rate = step / (now - self._started)
            self.options.show(
                f"step {step}/{total}   loss {sum(recent) / len(recent):.4f}   {rate:.2f} steps/s   "
                f"{_duration((total - step) / rate)} left"
            )
        if now - self._logged > 5 or step in (1, total):
            self._logged = now
            recent = progress.losses[-20:]
            logging.info("SODA: step %d/%d, loss %.4f, %.2f steps/s",
                         step, total, sum(recent) / len(recent), step / (now - self._started))  # fmt: skip
        if self.options.save_every and step % self.options.save_every == 0 and step < total:
            try:
                folders.save_adapter(self._adapter(), f"{self.options.filename_prefix}-step{step:05}")
            except SodaError as error:  # the run itself can go on, and is saved at its end
                logging.warning("SODA: step %d is not saved: %s", step, error)
        if self.options.preview_every and step % self.options.preview_every == 0:
            self._preview()
        else:
            self._bar.show(step)

    @torch.no_grad()
    def _preview(self) -> None:
        """Sample one picture at the run's seed and show it on the node."""
        assert self.trainable is not None
        self.trainable.begin_step()
        latent = torch.zeros_like(self.pictures.groups[0][0].latent, device="cpu")
        noise = comfy.sample.prepare_noise(latent, self.settings.seed)
        positive = self.data.positive[0]
        negative = self.data.negative[0] if self.data.negative else positive
        sampler, scheduler = PREVIEW_SAMPLER
        try:
            samples = comfy.sample.sample(
                self.patcher, noise, self.options.preview_steps, 6.0 if self.data.negative else 1.0, sampler,
                scheduler, positive, negative, latent, disable_pbar=True, seed=self.settings.seed,
            )  # fmt: skip
            picture = self._decode(samples)
        finally:
            self._load()
        if picture is not None:
            folders.save_preview(picture, self.options.filename_prefix, self.progress.step)
        self._bar.show(self.progress.step, picture)

    def _decode(self, samples: Tensor) -> Image.Image | None:
        if self.data.vae is not None:
            pixels = self.data.vae.decode(samples)[0]
            pixels = pixels[0] if pixels.ndim == 4 else pixels
            return Image.fromarray(pixels.clamp(0, 1).mul(255).byte().cpu().numpy())
        space = self.patcher.model.latent_format
        if space.latent_rgb_factors is None:
            return None
        previewer = latent_preview.Latent2RGBPreviewer(
            space.latent_rgb_factors, space.latent_rgb_factors_bias, space.latent_rgb_factors_reshape
        )
        return previewer.decode_latent_to_preview(space.process_in(samples))  # type: ignore[no-any-return]

    def _adapter(self) -> SodaAdapter:
        assert self.trainable is not None
        return self.trainable.to_adapter(self.weights, self.metadata | {"steps": self.progress.step})


#: The host's kinds of attention that autograd can follow. SageAttention cuts the gradient off without a word.
_DIFFERENTIABLE = tuple(f"attention_{kind}" for kind in ("basic", "sub_quad", "split", "xformers", "pytorch"))


def _differentiable_attention(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """In place of the host's choice for sampling, and of a MODEL's own."""
    return (attention if attention.__name__ in _DIFFERENTIABLE else attention_pytorch)(*args, **kwargs)


def _unchanged(weight: Tensor) -> Tensor:
    return weight


def _auto_dtype(device: torch.device) -> TrainingDtype:
    return "bf16" if device.type != "cpu" and mm.should_use_bf16(device) else "fp32"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _AdaptedForward:
    """Replaces a shadow module's forward; rotation and shift go where they cost least for the activations at hand.

    Args:
        pristine: the base weight of a module that the MODEL's own patches change (a LoRA in front).
    """

    def __init__(
        self, run: _Run, module: torch.nn.Module, layer: TrainableLayer, pristine: Tensor | None = None
    ) -> None:
        self.run, self.module, self.layer, self.plain = run, module, layer, module.forward
        self.pristine = pristine
        self.columns = Columns(module) if Columns.fit(module) else None
        self.by_weight = pristine is not None or (len(layer.shape) > 2 and self.columns is None)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.run.adapter_on:
            return self.plain(x, *args, **kwargs)  # type: ignore[no-any-return]
        columns = self.columns
        tokens = x.numel() // x.shape[-1] if columns is None else columns.count(x)
        rotation, shift = self.layer.sides(tokens, x.dtype)
        if self.by_weight or rotation == "weight":
            return self._with_weight(self.layer.weight, self.plain, x, *args, **kwargs)
        if columns is None:
            return self._on_rotated(functools.partial(self.plain, *args, **kwargs), self.layer.rotate_input(x), shift)
        x = self.layer.rotate_input(columns.split(x))
        return columns.join(self._on_rotated(functools.partial(columns.linear, self.plain), x, shift))

    def _on_rotated(self, linear: Callable[[Tensor], Tensor], x: Tensor, shift: Side) -> Tensor:
        """The rest of the layer for rotated activations ``(*batch, in) -> (*batch, out)``."""
        if self.layer.shift is None:
            return linear(x)
        if shift == "weight":
            return self._with_weight(functools.partial(self.layer.weight, rotated=False), linear, x)
        if not self.module.bias_function:
            whole = self.layer.whole_output(x)
            if whole is not None:
                bias: Tensor | None = self.module.bias  # type: ignore[assignment]
                return whole if bias is None else whole + bias.to(whole)
        spectral = self.layer.spectral_output(x)
        y = linear(x)
        return y if spectral is None else y + spectral

    def _with_weight(
        self, weight: Callable[..., Tensor], forward: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """``forward`` with the adapted weight in place of the module's."""
        functions = self.module.weight_function
        adapt = functools.partial(weight, pristine=self.pristine)
        self.module.weight_function = [*list(functions), adapt]  # type: ignore[arg-type, assignment]
        try:
            return forward(*args, **kwargs)
        finally:
            self.module.weight_function = functions


class _Checkpointed:
    """Replaces a block's forward by one that recomputes it in the backward pass."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(
            self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
