# SPDX-License-Identifier: GPL-3.0-or-later
"""The core runs without the host, and the contract's names are where they are promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

AUTHORS_FILES = ROOT / "soda_core" / "interop" / "authors_pt.py"

CHECK = """
import sys
from soda_core import SodaLayer, SodaAdapter, StiefelAdam, merge, losses
import soda_core.report.inspection, soda_core.report.loss_curve
losses.dco
others = ("comfy", "folder_paths", "diffusers", "PIL", "matplotlib", "numpy.random")
foreign = [m for m in sys.modules if m.split(".")[0] in others]
assert not [m for m in foreign if not m.startswith("numpy")], foreign
print("pure")
"""


def test_the_core_imports_without_a_host() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "pure", done.stderr


def test_nothing_that_ships_runs_code_or_opens_connections() -> None:
    words = ("pickle", "subprocess", "eval(", "exec(", "os.system", "urlopen", "requests.", "torch.load(")
    shipped = [ROOT / "__init__.py", *ROOT.glob("nodes/**/*.py"), *ROOT.glob("soda_core/**/*.py")]
    assert len(shipped) > 20
    for path in shipped:
        text = path.read_text("utf-8")
        if path == AUTHORS_FILES:  # the one pickle that is read, and of it tensors only
            assert text.count("torch.load(") == text.count("weights_only=True") == 1
            text = text.replace("torch.load(", "").replace("pickle", "")
        assert not [w for w in words if w in text], path
        assert text.startswith("# SPDX-License-Identifier: GPL-3.0-or-later"), path


def test_the_version_is_written_once() -> None:
    from soda_core.version import VERSION

    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text("utf-8")
