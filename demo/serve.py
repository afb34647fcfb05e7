# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a ComfyUI in which one can click: the demo's checkpoint, its adapters, and the workflows set to them.

python -m demo.serve FOLDER     prepares FOLDER as the base directory of a ComfyUI; `python dev.py serve` starts it
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.build_workflows import NEGATIVE, TITLES, workflow_file
from demo.graph import set_widgets
from demo.prompts import demo_settings
from demo.run import kept_adapters, say
from soda_core.files import replacing
from testbed.checkpoints import BASE_NAME
from testbed.demo_base import checkpoint
from testbed.paths import cache_root
from testbed.server.files import HostFolder

#: Where the front end lists a user's workflows; the folder in it is ours.
WORKFLOWS = Path("user", "default", "workflows", "SODA demo")
SETTINGS = Path("user", "default", "comfy.settings.json")
PREVIEWS = 5  #: of a training, so that one sees it learn
PREVIEW_STEPS = 10


def prepare(folder: Path) -> None:
    """Everything is renewed but what a user made."""
    base = checkpoint(cache_root())
    host = HostFolder(folder, pack=False)
    _replace_link(base, folder / "models" / "checkpoints" / BASE_NAME)
    adapters = _adapters(kept_adapters(base), host.adapters)
    _workflows(folder / WORKFLOWS, adapters)
    if not (folder / SETTINGS).exists():
        _write(folder / SETTINGS, json.dumps({"Comfy.TutorialCompleted": True}).encode())
    if adapters:
        say(f"adapters of the last demo: {', '.join(adapters.values())}")
    else:
        say("no adapters yet: run 'python dev.py demo', or train them in the browser with 'Train my subject'")
    say(f"in the browser: the sidebar's Workflows > {WORKFLOWS.name}")


def _workflows(folder: Path, adapters: Mapping[str, str]) -> None:
    """Those that nobody has changed since they were written."""
    record = folder / ".written.json"
    written: dict[str, str] = json.loads(record.read_text("utf-8")) if record.exists() else {}
    for name in TITLES:
        path = folder / workflow_file(name).name
        if path.exists() and written.get(path.name) != _digest(path.read_bytes()):
            say(f"{path.stem} was changed here and stays as it is; remove it for a fresh one")
            continue
        data = json.dumps(for_serve(name, adapters), ensure_ascii=False, indent=1).encode()
        _write(path, data)
        written[path.name] = _digest(data)
    _write(record, json.dumps(written).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def for_serve(name: str, adapters: Mapping[str, str]) -> dict[str, Any]:
    """A shipped workflow with the demo's settings, as the front end saves one.

    Args:
        adapters: file names in the soda folder by what they are; none before the first demo.
    """
    workflow: dict[str, Any] = json.loads(workflow_file(name).read_text("utf-8"))
    values = demo_settings(name)
    if train := values.get("SODATrain"):
        train |= {"preview_every": train["steps"] // PREVIEWS, "preview_steps": PREVIEW_STEPS}
    for node in workflow["nodes"]:
        if node["type"] == "SODALoadAdapter" and adapters:
            set_widgets(node, {"adapter_name": adapters[node["properties"].pop("soda_choose")]})
        elif node["widgets_values"] == [NEGATIVE]:  # words that the small model never learnt
            node["widgets_values"] = [""]
        set_widgets(node, values.get(node["type"], {}))
    return workflow


def _adapters(source: Path, target: Path) -> dict[str, str]:
    """Copy what the demo has kept; names by what they are."""
    names = {}
    for path in sorted(source.glob("demo_*")):
        with path.open("rb") as file:
            _write(target / path.name, file.read())
        if path.suffix == ".safetensors":
            names[path.stem.removeprefix("demo_")] = path.name
    return names if {"subject", "style"} <= names.keys() else {}


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def _replace_link(source: Path, target: Path) -> None:
    """A link, or a copy where links are not allowed, also where there is one to an older base."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the folder of a ComfyUI in which one can click.")
    parser.add_argument("folder", type=Path)
    prepare(parser.parse_args().folder.resolve())


if __name__ == "__main__":
    main()
