# SPDX-License-Identifier: GPL-3.0-or-later
"""An adapter: named layers and what is known about them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import fileformat
from .errors import BaseMismatchError
from .layer import AdaptedLayer, BaseCheck, StrengthMode
from .spectral import Decomposition, Spectrum

#: Thresholds of the base check on the overall relative error of the spectral part.
WARN_ABOVE = 0.02
REFUSE_ABOVE = 0.20
#: And on the distance of the weights, where it warns.
DISTANT_ABOVE = 0.10


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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically; see :mod:`.fileformat`."""
        fileformat.write(path, self.layers, self.metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SodaAdapter:
        """Read and check a file; raises ``FileFormatError`` naming the file and the key at fault."""
        layers, metadata = fileformat.read(path)
        return cls(layers, metadata)

    def adapt(
        self,
        name: str,
        weight: Tensor,
        strength: float = 1.0,
        mode: StrengthMode = "linear",
        spectra: dict[Decomposition, Spectrum] | None = None,
    ) -> Tensor:
        """The adapted weight of layer ``name``; see :meth:`.layer.AdaptedLayer.adapt`."""
        if name not in self.layers:
            raise BaseMismatchError(
                f"the adapter has no layer {name!r}; the first of its {len(self.layers)} is {next(iter(self.layers))!r}"
            )
        layer = self.layers[name]
        layer.check_shape(name, weight)
        return layer.adapt(weight, strength, mode, spectra)

    def parameters(self) -> int:
        """How many numbers it stores: of a shift all its values, also where fewer knots were trained."""
        return sum(layer.parameters() for layer in self.layers.values())

    @property
    def trigger_phrase(self) -> str:
        return str(self.metadata.get("trigger_phrase") or "")

    @property
    def title(self) -> str:
        return str(self.metadata.get("title") or "unnamed adapter")

    @property
    def base_model(self) -> Mapping[str, Any]:
        """What is known of the model it was trained on, see ``metadata``; may be empty."""
        return self.metadata.get("base_model") or {}

    @property
    def trained_on(self) -> str:
        """The base model as a user knows it: "photo.safetensors (SD1.5, float16)"."""
        base = self.base_model
        kind = ", ".join(str(base[key]) for key in ("family", "dtype") if base.get(key))
        name = base.get("name") or "a base model without a name"
        return f"{name} ({kind})" if kind else str(name)

    def identity(self) -> str:
        """SHA-256 (hex) of the tensors."""
        return fileformat.identity(self.layers)


@dataclass(frozen=True)
class BaseReport:
    """The base check over a whole adapter: one number per layer and one overall (0.02 = 2 %)."""

    layers: Mapping[str, BaseCheck]

    @property
    def spectral_error(self) -> float:
        """Relative error of the spectral part over all layers, as one vector."""
        norm = math.hypot(*(c.spectral_norm for c in self.layers.values()))
        error = math.hypot(*(c.spectral_error * c.spectral_norm for c in self.layers.values() if c.spectral_norm), 0.0)
        return error / norm if norm else 0.0

    @property
    def base_distance(self) -> float:
        """Root mean square over layers of how far the base's weights are from the trained-on ones."""
        if not self.layers:
            return 0.0
        return math.sqrt(sum(c.base_distance**2 for c in self.layers.values()) / len(self.layers))

    def worst(self, count: int = 3) -> list[tuple[str, BaseCheck]]:
        return sorted(self.layers.items(), key=lambda item: -item[1].spectral_error)[:count]

    def summary(self) -> str:
        """One line for a log, more when the error is worth it."""
        if not self.layers:
            return "base check: nothing to compare"
        text = (
            f"base check: spectral part off by {self.spectral_error:.2%} overall, "
            f"base weights differ by {self.base_distance:.2%}"
        )
        if self.spectral_error > WARN_ABOVE:
            worst = ", ".join(f"{name} {check.spectral_error:.1%}" for name, check in self.worst())
            text += f"; worst layers: {worst}"
        return text

    def table(self) -> str:
        """A line per layer, worst first."""
        lines = [f"{'spectral':>9}  {'base':>9}  layer"]
        for name, check in self.worst(len(self.layers)):
            lines.append(f"{check.spectral_error:>9.2%}  {check.base_distance:>9.2%}  {name}")
        return "\n".join(lines)

    @property
    def doubtful(self) -> bool:
        """Whether a user should hear of it. Without a shift only the distance tells; fp8 copies are off by 3 %."""
        return self.spectral_error > WARN_ABOVE or self.base_distance > DISTANT_ABOVE

    def enforce(self, adapter: SodaAdapter, ignore: bool) -> None:
        """Raise above :data:`REFUSE_ABOVE` unless told to go on."""
        if self.spectral_error > REFUSE_ABOVE and not ignore:
            raise BaseMismatchError(
                f"{adapter.title} does not fit this base model: {self.summary()} (allowed {REFUSE_ABOVE:.0%}). It was "
                f"trained on {adapter.trained_on}: load that file in that precision, or turn on 'ignore_base_check' "
                "to use it all the same"
            )
