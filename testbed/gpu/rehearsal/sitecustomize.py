# SPDX-License-Identifier: GPL-3.0-or-later
"""In a rehearsal an environment looks like the GPU machine's Python: packages that it lacks are not found."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

#: What is there, as import names: torch, safetensors, einops, transformers, peft, Pillow and what comes with them.
THERE = {
    "PIL", "accelerate", "einops", "numpy", "peft", "safetensors", "scipy", "tokenizers", "torch", "torchaudio",
    "torchgen", "torchvision", "transformers",
    # what these stand on
    "anyio", "certifi", "charset_normalizer", "click", "cuda", "filelock", "fsspec", "functorch", "h11", "hf_xet",
    "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "idna", "jinja2", "markupsafe", "mpmath", "networkx",
    "nvidia", "packaging", "psutil", "regex", "requests", "setuptools", "shellingham", "sympy", "tqdm", "triton",
    "truststore", "typer", "typing_extensions", "urllib3", "yaml", "_distutils_hack", "_yaml", "annotated_doc", "rich",
}  # fmt: skip


class Finder(PathFinder):
    """The usual one, which overlooks packages of this environment that are not in :data:`THERE`."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(name, path, target)
        foreign = path is None and name not in THERE and spec is not None
        return None if foreign and str(spec.origin).startswith(sysconfig.get_path("purelib")) else spec


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
