# SPDX-License-Identifier: GPL-3.0-or-later
"""An adapter: named layers and what is known about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import fileformat
from .base_check import BaseReport
from .base_weight import BaseWeight
from .errors import BaseMismatchError
from .layer import AdaptedLayer, StrengthMode
from .text import printable


@dataclass(frozen=True, eq=False)
class SodaAdapter:
    """Layers by the base model's module path, and metadata.

    Args:
        layers: ``{"diffusion_model.….attn1.to_q": layer}``; text-encoder layers start with ``text_encoders.``.
        metadata: plain JSON. Known keys: title, trigger_phrase, base_model {name, hash, family, architecture,
            prediction_type}, settings, steps, seed, date, versions, parents.
    """

    layers: Mapping[str, AdaptedLayer]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"SodaAdapter({self.title!r}, {len(self.layers)} layers, {self.num_parameters:,} parameters, "
            f"trained on {self.trained_on!r})"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically; see :mod:`.fileformat`."""
        fileformat.write(path, self.layers, self.metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SodaAdapter:
        """Read and check a file; raises ``FileFormatError`` naming the file and the key at fault."""
        layers, metadata = fileformat.read(path)
        return cls(layers, metadata)

    def adapt(
        self, name: str, weight: Tensor | BaseWeight, strength: float = 1.0, mode: StrengthMode = "linear"
    ) -> Tensor:
        """The adapted weight of layer ``name``; see :meth:`.layer.AdaptedLayer.adapt`."""
        if name not in self.layers:
            raise BaseMismatchError(
                f"the adapter has no layer {name!r}; the first of its {len(self.layers)} is {next(iter(self.layers))!r}"
            )
        layer = self.layers[name]
        layer.check_shape(name, weight.shape)
        return layer.adapt(weight, strength, mode)

    def check_base(self, base: Callable[[str], BaseWeight | None]) -> BaseReport:
        """How well the layers fit a base model; nothing is applied.

        Args:
            base: the weight of a layer by name; None of a layer that the model does not have.
        Raises:
            BaseMismatchError: a weight of another shape.
        """
        checks = {}
        for name, layer in self.layers.items():
            weight = base(name)
            if weight is None:
                continue
            layer.check_shape(name, weight.shape)
            if (check := layer.check_base(weight)) is not None:
                checks[name] = check
        return BaseReport(checks)

    @property
    def carries_base_check(self) -> bool:
        """Whether it can tell its base from others: an imported adapter cannot."""
        return any(term.sketches is not None for layer in self.layers.values() for _, term in layer.terms)

    @property
    def num_parameters(self) -> int:
        """How many numbers were trained; a file also holds the values of shifts that are curves."""
        return sum(layer.num_parameters for layer in self.layers.values())

    @property
    def trigger_phrase(self) -> str:
        return str(self.metadata.get("trigger_phrase") or "")

    @property
    def title(self) -> str:
        return str(self.metadata.get("title") or "unnamed adapter")

    @property
    def label(self) -> str:
        """The title for a log or an error: one line, whatever a file says."""
        return printable(self.title)

    @property
    def base_model(self) -> Mapping[str, Any]:
        """What is known of the model it was trained on, see ``metadata``; may be empty."""
        return self.metadata.get("base_model") or {}

    @property
    def trained_on(self) -> str:
        """The base model for a log or an error: "photo.safetensors (SD1.5, float16)"."""
        base = self.base_model
        kind = ", ".join(str(base[key]) for key in ("family", "dtype") if base.get(key))
        name = base.get("name") or "a base model without a name"
        return printable(f"{name} ({kind})" if kind else str(name))

    def identity(self) -> str:
        """SHA-256 (hex) of the tensors."""
        return fileformat.identity(self.layers)
