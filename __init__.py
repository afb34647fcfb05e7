# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA for ComfyUI: train, load and merge Spectral Orthogonal Decomposition adapters in the graph.

Importing this package costs nothing and needs no host; the host calls :func:`comfy_entrypoint`.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # the host's contract: returns a ComfyExtension
    from .soda_core.host import versions

    versions.check()
    from .nodes import SodaExtension

    return SodaExtension()
