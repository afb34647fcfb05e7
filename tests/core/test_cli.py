# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``soda``, as a person and as a script use it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from soda_core import SodaAdapter, merge
from soda_core.cli import COMMANDS, main, parser
from soda_core.interop.lora_settings import LoraSettings

from .conftest import random_layer

ROOT = Path(__file__).parents[2]
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``fox.safetensors``, ``ink.safetensors`` and their ``base.safetensors`` in the working folder."""
    weights = {}
    for title, seed in (("fox", 1), ("ink", 2)):
        layers = {}
        for i, name in enumerate(("attn1.to_q", "attn2.to_k")):
            weights[f"{BLOCK}.{name}"], layers[f"{BLOCK}.{name}"] = random_layer((24, 30), (5, 6), seed=10 + i)
        metadata = {"title": title, "trigger_phrase": f"sks {title}", "seed": seed, "workflow": "{}"}
        SodaAdapter(layers, metadata).save(tmp_path / f"{title}.safetensors")
    more = {"input_blocks.0.0": torch.zeros(8, 4, 3, 3)}
    checkpoint = {f"model.{name}.weight": W for name, W in weights.items()}
    checkpoint |= {f"model.diffusion_model.{name}.weight": W for name, W in more.items()}
    checkpoint |= {
        "first_stage_model.conv.weight": torch.zeros(2, 2),
        "model.diffusion_model.out.0.bias": torch.ones(3),
    }
    save_file(checkpoint, tmp_path / "base.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def soda(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    code = main(arguments)
    return code, *capsys.readouterr()


def test_info(folder, capsys) -> None:
    code, text, errors = soda(capsys, "info", "fox.safetensors")
    assert code == 0 and not errors
    assert text.startswith("fox: 2 layers, ") and "trigger phrase: sks fox" in text and "to_q" not in text
    assert f"{BLOCK}.attn1.to_q" in soda(capsys, "info", "fox.safetensors", "--layers")[1]
    data = json.loads(soda(capsys, "info", "fox.safetensors", "--json")[1])
    assert data["title"] == "fox" and data["layers"] == 2 and "workflow" not in data


def test_check(folder, capsys) -> None:
    code, text, errors = soda(capsys, "check", "fox.safetensors", "base.safetensors")
    assert code == 0 and not errors and "off by 0.00% overall" in text
    weights = load_file("base.safetensors")
    save_file({name: torch.randn_like(W) for name, W in weights.items()}, "other.safetensors")
    code, text, errors = soda(capsys, "check", "fox.safetensors", "other.safetensors", "--json")
    assert code == 1 and not text and errors.count("\n") == 1 and "fox does not fit this base model" in errors
    half = {name: W.bfloat16() for name, W in weights.items()}
    save_file(half, "half.safetensors")
    code, text, _ = soda(capsys, "check", "fox.safetensors", "half.safetensors", "--json")
    assert code == 0 and 0 < json.loads(text)["spectral_error"] < 0.2


def test_merge_is_the_function_with_its_defaults(folder, capsys) -> None:
    code, text, _ = soda(capsys, "merge", "fox.safetensors", "ink.safetensors", "-o", "both.safetensors")
    assert code == 0 and "both.safetensors: fox + ink, 2 layers" in text
    parents = SodaAdapter.load("fox.safetensors"), SodaAdapter.load("ink.safetensors")
    assert SodaAdapter.load("both.safetensors").identity() == merge(*parents).identity()
    soda(capsys, "merge", "fox.safetensors", "ink.safetensors", "-o", "g.safetensors", "--method", "geodesic",
         "--subject-strength", "0.7", "--style-blocks", "all 0.5")  # fmt: skip
    found = SodaAdapter.load("g.safetensors")
    assert found.identity() == merge(*parents, 0.7, 0.5, method="geodesic").identity()
    assert found.metadata["settings"] == {
        "merge_method": "geodesic", "subject_strength": 0.7, "style_strength": 1.0, "style_blocks": "all 0.5",
    }  # fmt: skip
    soda(capsys, "merge", "fox.safetensors", "ink.safetensors", "-o", "n.safetensors", "--method", "normalised",
         "--balance", "0.6", "--magnitude", "orthofuse")  # fmt: skip
    expected = merge(*parents, method="normalised", balance=0.6, magnitude="orthofuse")
    found = SodaAdapter.load("n.safetensors")
    assert found.identity() == expected.identity() and found.metadata["settings"] == expected.metadata["settings"]
    assert found.layers[next(iter(found.layers))].rule == "normalised"


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ((), LoraSettings()),
        (("--rank", "3", "--naming", "kohya"), LoraSettings(rank=3, naming="kohya")),
        (("--error", "0.3", "--strength", "0.5", "--mode", "geodesic"),
         LoraSettings(by="error", error=0.3, strength=0.5, mode="geodesic")),
        (("--size-mb", "0.06", "--dtype", "float32"), LoraSettings(by="size_mb", size_mb=0.06, dtype="float32")),
        (("--exact",), LoraSettings(by="exact")),
    ],
)  # fmt: skip
def test_export_takes_the_settings_of_the_node(folder, capsys, flags, settings) -> None:
    code, text, errors = soda(capsys, "export", "fox.safetensors", "base.safetensors", "-o", "lora.safetensors", *flags)
    assert code == 0 and not errors and "lora.safetensors" in text and "leaves out" in text
    with safetensors.safe_open("lora.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["soda_export"])
    assert said["settings"] == dataclasses.asdict(settings)
    data = json.loads(
        soda(capsys, "export", "fox.safetensors", "base.safetensors", "-o", "b.safetensors", *flags, "--json")[1]
    )
    assert data["error"] == said["error"] and data["file"] == "b.safetensors"
    assert Path("b.safetensors").read_bytes() == Path("lora.safetensors").read_bytes()


def test_import(folder, capsys, monkeypatch) -> None:
    from soda_core.interop import authors_pt

    place = authors_pt.Place("diffusion_model.middle_block.1.to_q", 12, 12)
    monkeypatch.setattr(authors_pt, "unet_places", lambda: iter([place]))
    torch.save({"unet": [[torch.eye(k)] for k in (2, 2, 3)] + [[torch.zeros(12)]]}, "peft_5.pt")
    code, text, _ = soda(
        capsys, "import", "peft_5.pt", "-o", "dog.safetensors", "--decomposition", "qr", "--title", "dog"
    )
    assert code == 0 and "1 layers" in text
    assert SodaAdapter.load("dog.safetensors").title == "dog"
    with pytest.raises(SystemExit) as stopped:
        main(["import", "peft_5.pt", "-o", "cat.safetensors"])
    assert stopped.value.code == 2, "which decomposition was trained is for the user to say"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "none.safetensors"), "none.safetensors: there is no such file"),
        (("info", "base.safetensors"), "base.safetensors: is not a SODA adapter"),
        (("info", "lora.safetensors"), "looks like a LoRA file"),
        (("check", "fox.safetensors", "none.safetensors"), "none.safetensors: cannot be read"),
        (("check", "fox.safetensors", "text.safetensors"), "text.safetensors: is not a complete safetensors file"),
        (("check", "fox.safetensors", "lora.safetensors"), "lora.safetensors: holds no diffusion model"),
        (("check", "fox.safetensors", "diffusers.safetensors"), "is a diffusers file"),
        (("check", "fox.safetensors", "quantised.safetensors"), "stores quantised weights"),
        (("check", "fox.safetensors", "elsewhere.safetensors"), "no layer of fox is in elsewhere.safetensors"),
        (
            ("export", "fox.safetensors", "base.safetensors", "-o", "x.safetensors", "--rank", "0"),
            "rank must be 1 or more",
        ),
        (
            ("export", "fox.safetensors", "elsewhere.safetensors", "-o", "x.safetensors"),
            "no layer of fox is in this base",
        ),
        (("export", "fox.safetensors", "base.safetensors", "-o", "x.pt"), "--output must end in .safetensors"),
        (("export", "fox.safetensors", "base.safetensors", "-o", "fox.safetensors"), "fox.safetensors exists"),
        (("export", "lora.safetensors", "base.safetensors", "-o", "x.safetensors"), "looks like a LoRA file"),
        (("merge", "fox.safetensors", "lora.safetensors", "-o", "x.safetensors"), "looks like a LoRA file"),
        (("import", "text.safetensors", "-o", "x.safetensors", "--decomposition", "svd"), "text.safetensors: "),
        (
            ("import", "evil.pt", "-o", "x.safetensors", "--decomposition", "svd"),
            "evil.pt: is refused, because",
        ),
        (("check", "fox.safetensors", "narrow.safetensors"), "attn1.to_q"),
        (("export", "fox.safetensors", "narrow.safetensors", "-o", "x.safetensors"), "attn1.to_q"),
        (("export", "fox.safetensors", "other.safetensors", "-o", "x.safetensors"), "does not fit this base model"),
        (("info", "surplus.safetensors"), "holds 1 tensors its metadata does not list, the first is 'x.surplus'"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(folder, capsys, arguments, message) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "lora.safetensors")
    save_file({"down_blocks.0.attentions.0.proj_in.weight": torch.zeros(2, 2)}, "diffusers.safetensors")
    quantised = {"weight": torch.zeros(2, 2), "weight_scale": torch.ones(1)}
    save_file({f"model.diffusion_model.a.{name}": value for name, value in quantised.items()}, "quantised.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, "elsewhere.safetensors")
    Path("text.safetensors").write_text("hello")
    torch.save({"unet": print}, "evil.pt")
    base = load_file("base.safetensors")
    for name, change in (("narrow", lambda W: W[:, :-2].contiguous()), ("other", torch.randn_like)):
        changed = {key: change(W) if "attn" in key else W for key, W in base.items()}
        save_file(changed, f"{name}.safetensors")
    with safetensors.safe_open("fox.safetensors", framework="pt") as file:
        surplus, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**surplus, "x.surplus": torch.zeros(1)}, "surplus.safetensors", metadata)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, text, errors = soda(capsys, *arguments)
    assert code == 1 and not text
    assert errors.startswith("soda: ") and errors.count("\n") == 1 and message in errors
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_overwrite_replaces(folder, capsys) -> None:
    arguments = ("merge", "fox.safetensors", "ink.safetensors", "-o", "fox.safetensors")
    assert soda(capsys, *arguments)[0] == 1
    assert soda(capsys, *arguments, "--overwrite")[0] == 0
    assert SodaAdapter.load("fox.safetensors").title == "fox + ink"


def test_progress_is_shown_on_a_terminal_alone_and_leaves_nothing(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for command in (["check"], ["export", "-o", "x.safetensors"], ["export", "-o", "y.safetensors", "--exact"]):
        arguments = (command[0], "fox.safetensors", "base.safetensors", *command[1:])
        code, text, errors = soda(capsys, *arguments)
        assert code == 0 and "[" in errors and "0/" in errors and errors.endswith("\r\033[K"), command
        assert soda(capsys, *arguments, "--quiet", *(["--overwrite"] if "-o" in command else []))[1:] == (text, "")


COMPLETE = """
source /dev/stdin
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _soda
printf '%s\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ('soda ""', ["train", "info", "check", "merge", "export", "import", "completion"]),
        ("soda me", ["merge"]),
        ("soda export a.safetensors --nam", ["--naming"]),
        ("soda export a.safetensors --naming k", ["kohya"]),
        ("soda train --gradient-c", ["--gradient-checkpointing", "--gradient-clip"]),
        ('soda train --train ""', ["rotation\\ +\\ shift", "rotation\\ only", "shift\\ only"]),
        ("soda info fo", ["fox.safetensors"]),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_completes_commands_flags_choices_and_files(folder, capsys, shell, typed, offered) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here; the script is the same but for its first line")
    code, script, _ = soda(capsys, "completion", shell)
    assert code == 0
    done = subprocess.run(
        [shell, "-c", COMPLETE.format(words=typed)], input=script, capture_output=True, text=True, check=False
    )
    assert not done.stderr and sorted(done.stdout.split("\n")[:-1]) == sorted(offered)


def test_an_imported_adapter_says_that_nothing_tells_a_wrong_base(folder, capsys) -> None:
    adapter = SodaAdapter.load("fox.safetensors")
    bare = {name: dataclasses.replace(layer, sketches=None) for name, layer in adapter.layers.items()}
    SodaAdapter(bare, adapter.metadata).save("bare.safetensors")
    text = soda(capsys, "info", "bare.safetensors")[1]
    assert "base check: none; its file carries no base check, so nothing tells a wrong base model" in text
    assert "no base check" not in soda(capsys, "info", "fox.safetensors")[1]
    code, text, _ = soda(capsys, "check", "bare.safetensors", "base.safetensors")
    assert code == 0 and "fox: its file carries no base check" in text and "off by" not in text
    assert json.loads(soda(capsys, "check", "bare.safetensors", "base.safetensors", "--json")[1])["checked"] is False


def test_only_what_was_trained_has_settings_to_train_with(folder, capsys) -> None:
    for name, message in (("fox", "imported or made elsewhere"), ("both", "was merged")):
        soda(capsys, "merge", "fox.safetensors", "ink.safetensors", "-o", "both.safetensors")
        code, text, errors = soda(capsys, "info", f"{name}.safetensors", "--settings")
        assert code == 1 and not text and message in errors and errors.count("\n") == 1


def test_every_command_explains_itself(capsys) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([command.name, "--help"])
        text = capsys.readouterr().out
        assert stopped.value.code == 0 and "examples:" in text and f"soda {command.examples[0]}" in text
        assert "--json" in text
        for example in command.examples:  # every one is of arguments that there are
            parser().parse_args(shlex.split(example.partition(" > ")[0].partition(" >> ")[0]))
    for wrong in ([], ["frobnicate"], ["info"], ["export", "a", "b", "-o", "c", "--rank", "1", "--exact"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        capsys.readouterr()


def test_it_runs_as_a_module_without_a_host(folder) -> None:
    program = "import sys, soda_core.cli as c; sys.exit(c.main(['info', 'fox.safetensors']) or 'comfy' in sys.modules)"
    for command in (["-m", "soda_core", "info", "fox.safetensors"], ["-c", program]):
        done = subprocess.run(
            [sys.executable, *command],
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and done.stdout.startswith("fox: "), done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "soda_core", "info", "x"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr == "soda: x: there is no such file\n"
