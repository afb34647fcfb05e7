# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what the nodes say in English, ``locales/en/nodeDefs.json``, from what a running host reports.

Other languages are written by hand, with the same keys. The help pages are by hand in every language; the English ones
are copied to where the front end looks when it finds none in the user's language.

    COMFYUI_PATH=... python -m demo.build_locales
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.graph import read_object_info
from testbed.paths import ROOT

LOCALES, HELP = ROOT / "locales", ROOT / "web" / "docs"


def node_definitions(object_info: dict[str, Any]) -> dict[str, Any]:
    """The front end's ``nodeDefs`` of our nodes: node -> names and tooltips."""
    return {_key(name): _definition(info) for name, info in object_info.items() if name.startswith("SODA")}


def _key(name: str) -> str:
    """As the front end looks names up: a dot would be a level."""
    return name.replace(".", "_")


def _definition(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {}
    for name, path, options in _inputs(info["input"]):
        inputs[_key(path)] = _texts(options.get("display_name") or name, options.get("tooltip"))
        if options.get("control_after_generate"):
            inputs["control_after_generate"] = {"name": "control after generate"}
    outputs = {}
    for slot, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True)):
        # an output named like its type is called as that type is everywhere
        outputs[str(slot)] = _texts(None if name == kind else name, info["output_tooltips"][slot])
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def _inputs(specs: dict[str, Any], parent: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, name below the dynamic combos it belongs to, options) of every input, also of those in combos."""
    for part in ("required", "optional"):
        for name, (kind, *rest) in specs.get(part, {}).items():
            options = rest[0] if rest else {}
            path = f"{parent}{name}"
            yield name, path, options
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for choice in options["options"]:
                    yield from _inputs(choice["inputs"], f"{path}.")


def _texts(name: str | None, tooltip: str | None) -> dict[str, str]:
    return {key: text for key, text in (("name", name), ("tooltip", tooltip)) if text}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the English names and tooltips of the nodes.")
    parser.add_argument("--object-info", type=Path, help="a saved /object_info, instead of starting ComfyUI")
    args = parser.parse_args()
    object_info = read_object_info(args.object_info)
    definitions = node_definitions(object_info)
    target = LOCALES / "en" / "nodeDefs.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(definitions, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    for name in definitions:
        shutil.copyfile(HELP / name / "en.md", HELP / f"{name}.md")
    print(f"{target.relative_to(ROOT)}: {len(definitions)} nodes")


if __name__ == "__main__":
    main()
