# SPDX-License-Identifier: GPL-3.0-or-later
"""A private copy of a MODEL to train layers in, whatever kind of layers these are."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...base_weight import BaseWeight
from ...errors import SettingsError
from ...spectral import Spectrum, basis_numbers
from ...targets import select
from ...training.options import TrainingDtype
from ...training.settings import TrainSettings
from ...training.trainable import TrainableAdapter
from .. import base
from ..progress import ProgressBar
from ..spectra import store
from .checkpointing import checkpoint_blocks
from .dataset import batch_conds
from .frozen import adapt, keep_exact
from .parametrisation import check_trainable
from .residuals import Residuals
from .training_copy import ordinary, training_copy

_DTYPES: dict[str, torch.dtype | None] = {"fp32": torch.float32, "bf16": torch.bfloat16, "model": None}


class TrainingSession:
    """A training copy of a model, its layers to train, and the model's prediction; see :meth:`open`.

    A session does not train: :func:`...training.loop.train` does, with parameters that :meth:`attach` or anybody else
    has put into ``model``.

    Args:
        patcher: the host's ModelPatcher; only read.
        settings: layers, and what is trained of them.
        dtype: of the model's computation; "auto": bfloat16 where the device is fast at it, else float32.
        gradient_checkpointing: less memory for more time.
    """

    def __init__(
        self, patcher: Any, settings: TrainSettings, dtype: TrainingDtype = "auto", gradient_checkpointing: bool = False
    ) -> None:
        check_trainable(patcher.model)
        self.source, self.settings = patcher, settings
        self.device = base.compute_device(patcher)
        self.dtype: TrainingDtype = dtype if dtype != "auto" else _auto_dtype(self.device)
        self.shapes = _target_shapes(patcher, settings)  #: of the weights to train, by layer name
        self.weights = base.PristineWeights(patcher, list(self.shapes))
        self.patcher = training_copy(patcher)
        if (compute := _DTYPES[self.dtype]) is not None:
            self.patcher.set_model_compute_dtype(compute)
        self._residuals = Residuals()
        if gradient_checkpointing:
            checkpoint_blocks(self.model, self._residuals)
        self._attached: list[TrainableAdapter] = []

    @classmethod
    @contextmanager
    def open(
        cls, patcher: Any, settings: TrainSettings, dtype: TrainingDtype = "auto", gradient_checkpointing: bool = False
    ) -> Iterator[TrainingSession]:
        """A session, within which gradients are on and the host trains; everything is as it was afterwards.

        Raises:
            SettingsError: no layer can be trained. TrainingError: the MODEL denoises no pictures or cannot be copied.
        """
        with _host_state(patcher):
            session = cls(patcher, settings, dtype, gradient_checkpointing)
            try:
                yield session
            finally:
                session.close()

    @property
    def model(self) -> Any:
        """The copy: the host's BaseModel."""
        return self.patcher.model

    def spectra(self, show: Callable[..., None] = lambda *_, **values: None) -> dict[str, Spectrum]:
        """The decompositions that the settings' shifts need, by layer name: slow the first time for a base model.

        Args:
            show: takes a line as :meth:`.live.Live.note` does.
        """
        if not self.settings.shifts:
            return {}
        progress = ProgressBar(len(self.shapes))
        count = len(self.shapes)
        show(f"decomposing {count} weights, once for each base model", "note_decomposing", count=count)
        # in bfloat16 a step would round what it computes with them anyway, and they are most of the memory
        compute = _DTYPES[self.dtype] or self.model.get_dtype_inference()
        bases = torch.bfloat16 if compute == torch.bfloat16 else None
        if self.device.type != "cpu":  # other models must make room
            size = sum(basis_numbers(shape, self.settings.decomposition) for shape in self.shapes.values())
            mm.free_memory(size * (2 if bases else 4), self.device)
        spectra = {}
        for name, weight in self.weights.items():
            progress.advance()
            spectra[name] = store().get(BaseWeight(weight, self.device), self.settings.decomposition, bases)
        return spectra

    def fingerprint(self) -> str:
        """Of the untouched weights to train."""
        digest = hashlib.blake2b(digest_size=8)
        for name, weight in self.weights.items():
            digest.update(f"{name} {BaseWeight(weight).fingerprint}".encode())
        return digest.hexdigest()

    def load(self, batch_shape: Sequence[int]) -> None:
        """The model on its device, with room for a step; again after something else may have moved it off.

        Args:
            batch_shape: of the largest batch of latents.
        """
        with torch.no_grad():
            mm.load_models_gpu([self.patcher], memory_required=3 * self.model.memory_required(list(batch_shape)))
        self.patcher.pre_run()
        keep_exact(self.model)

    def attach(self, trainable: TrainableAdapter) -> None:
        """Route the model's layers through an adapter in training, made for :attr:`shapes`."""
        for name, layer in trainable.layers.items():
            patched = base.weight_key(name) in self.source.patches
            pristine = ordinary(self.weights[name]).to(self.device) if patched else None
            adapt(comfy.utils.get_attr(self.model, name), layer, pristine)
        self._attached.append(trainable)

    def denoise(self, noised: Tensor, sigma: Tensor, conds: Sequence[dict[str, Any]]) -> Tensor:
        """The model's denoised prediction ``(batch, C, …)`` for noised latents of that shape, attached to the graph.

        Args:
            sigma: ``(batch,)`` noise levels.
            conds: the host's COND objects of each example.
        """
        options = {
            "cond_or_uncond": [0], "sigmas": sigma, **self.patcher.model_options["transformer_options"],
            "optimized_attention_override": _differentiable_attention,
        }  # fmt: skip
        with self._residuals.kept():
            return self.model.apply_model(  # type: ignore[no-any-return]
                noised, sigma, transformer_options=options, **batch_conds(conds, self.device)
            )

    def close(self) -> None:
        """Take the copy out of the host's list of loaded models, and apart, so that its memory goes at once."""
        for i, loaded in reversed(list(enumerate(mm.current_loaded_models))):
            if loaded.model is self.patcher:
                mm.current_loaded_models.pop(i)
                if loaded.model_finalizer is not None:
                    loaded.model_finalizer.detach()
        for module in self.model.modules():  # replaced forward passes hold decompositions
            module.__dict__.pop("forward", None)
        for trainable in self._attached:
            trainable.layers.clear()
        del self.patcher


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


def _target_shapes(patcher: Any, settings: TrainSettings) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights to train, by layer name; layers that no factors fit are left out."""
    shapes = base.layer_shapes(patcher)
    names = select(shapes, settings.layers, settings.layer_pattern)
    kept, skipped = {}, []
    for name in names:
        try:
            settings.rotation_sizes(shapes[name])
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


def _auto_dtype(device: torch.device) -> TrainingDtype:
    return "bf16" if device.type != "cpu" and mm.should_use_bf16(device) else "fp32"


#: The host's kinds of attention that autograd can follow. SageAttention cuts the gradient off without a word.
_DIFFERENTIABLE = tuple(f"attention_{kind}" for kind in ("basic", "sub_quad", "split", "xformers", "pytorch"))


def _differentiable_attention(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """In place of the host's choice for sampling, and of a MODEL's own."""
    return (attention if attention.__name__ in _DIFFERENTIABLE else attention_pytorch)(*args, **kwargs)
