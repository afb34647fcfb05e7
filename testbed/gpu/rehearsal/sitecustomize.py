# SPDX-License-Identifier: GPL-3.0-or-later
"""In a rehearsal an environment looks like the GPU machine's Python: packages that it lacks are not found."""

from __future__ import annotations

import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder

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


class Hidden:
    """Comes before the usual finders."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if path is not None or name in THERE:
            return None
        spec = PathFinder.find_spec(name)
        if spec is not None and str(spec.origin).startswith(sysconfig.get_path("purelib")):
            raise ModuleNotFoundError(f"No module named {name!r} (hidden: the GPU machine lacks it)", name=name)
        return None


sys.meta_path.insert(0, Hidden)
