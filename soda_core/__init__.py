# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA: Spectral Orthogonal Decomposition Adaptation (Zhang et al., WACV 2025).

Pure torch; ``soda_core.host`` is the glue to ComfyUI and the only place that imports it.
"""

from .adapter import SodaAdapter
from .compound import SodaProduct, SodaSum
from .errors import SodaError
from .layer import SodaLayer
from .merge import merge
from .stiefel import StiefelAdam
from .training import losses

__all__ = ["SodaAdapter", "SodaError", "SodaLayer", "SodaProduct", "SodaSum", "StiefelAdam", "losses", "merge"]
