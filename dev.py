#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""For developers: one command that sets up everything and runs it. Standard library only, Python 3.11 or newer.

    python dev.py setup            build the environment and fetch ComfyUI (every command below does it when needed)
    python dev.py demo [ARGS]      train a subject and a style on pictures, merge them, write a page and a sheet
    python dev.py test [ARGS]      lint, type-check and test; with ARGS only pytest with these arguments
    python dev.py test --hosts     every test that needs a ComfyUI, on each version in testbed/hosts.py; writes the
                                   table of docs/hosts.md. Version numbers and ARGS after it choose hosts and tests
    python dev.py test --oldest    of these the ones that matter most, on the oldest version
    python dev.py serve [ARGS]     a ComfyUI for the browser, with the demo's model, pictures and workflows
    python dev.py python ARGS      the environment's Python
    python dev.py bench [NAME]     run benchmarks/NAME.py
    python dev.py pretrain [PART]  train the demo's base model anew, or go on; --help says how
    python dev.py gpu [ARGS]       what waits for a GPU, on one rented for half an hour; --help says how

The environment lives outside the tree, in a cache folder keyed by requirements-dev.lock; SODA_DEV_CACHE moves it.
COMFYUI_PATH uses a ComfyUI of your own instead of the fetched one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from testbed import hosts, hosts_table
from testbed.gpu import pack, parts
from testbed.hosts import Host
from testbed.paths import ROOT, cache_root, free_port

LOCK = ROOT / "requirements-dev.lock"
BUILD = ("torch", "torchaudio", "torchvision")

#: What ``test --oldest`` runs on the oldest host: where versions differ, and all that a user does in a graph.
ON_THE_OLDEST = (
    "tests/host/test_apply.py", "tests/host/test_families.py", "tests/host/test_resume.py",
    "tests/host/test_versions.py", "tests/nodes/test_nodes.py", "tests/nodes/test_workflows.py",
)  # fmt: skip
#: What ``test --hosts`` runs on each.
NEEDS_A_HOST = ("tests/host", "tests/nodes")


class SetupError(Exception):
    """Something a person has to put right; shown without a traceback."""


def environment_folder() -> Path:
    key = f"{LOCK.read_text('utf-8')}\n{platform.python_version()}\n{sys.platform}\n{platform.machine()}"
    return cache_root() / f"env-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def environment_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def locked(names: Collection[str]) -> str:
    """The lock's entries of these packages, each with its hashes."""
    entries = re.findall(r"^[\w.-]+==.*(?:\n    .*)*", LOCK.read_text("utf-8"), re.MULTILINE)
    return "\n".join(entry for entry in entries if entry.partition("==")[0] in names)


def say(text: str) -> None:
    print(f"dev.py: {text}", flush=True)


def run(command: list[str | Path], failure: str, **options: object) -> None:
    try:
        subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]
    except subprocess.CalledProcessError as error:
        raise SetupError(f"{failure} (exit code {error.returncode}; see above)") from error
    except OSError as error:
        raise SetupError(f"{failure}: {error}") from error


# -------------------------------------------------------------------------------------------------------------- setup


def setup() -> tuple[Path, Path]:
    """``(python, comfyui)``, built when missing. Safe to interrupt: an unfinished part is thrown away next time."""
    folder = environment_folder()
    python = environment_python(folder)
    own = own_host()
    if own and not (own / "main.py").is_file():
        raise SetupError(f"COMFYUI_PATH={own} holds no main.py; point it at the folder of a ComfyUI")
    try:
        if not (folder / ".ready").exists():
            build_environment(folder)
    except OSError as error:  # a full disk, a folder that may not be written
        raise SetupError(f"{error}; SODA_DEV_CACHE chooses another place than {cache_root()}") from error
    return python, own or fetched(hosts.NEWEST, python)


def own_host() -> Path | None:
    own = os.environ.get("COMFYUI_PATH")
    return Path(own).expanduser().resolve() if own else None


def fetched(host: Host, python: Path) -> Path:
    """The folder of a host, downloaded when missing."""
    if host.is_ready:
        return host.folder
    started = time.monotonic()
    say(f"fetching ComfyUI {host.version}")
    try:
        hosts.fetch(host, python)
    except hosts.FetchError as error:
        raise SetupError(str(error)) from error
    except OSError as error:
        raise SetupError(f"{error}; SODA_DEV_CACHE chooses another place than {cache_root()}") from error
    say(f"ComfyUI {host.version} ready after {time.monotonic() - started:.0f} s")
    return host.folder


def build_environment(folder: Path) -> None:
    started = time.monotonic()
    say(f"building the environment in {folder} (some minutes and about 6 GB, once)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free / 2**30
    if free < 8:
        raise SetupError(
            f"only {free:.1f} GB free in {folder.parent}, 8 are needed; SODA_DEV_CACHE chooses another place"
        )
    try:
        install_environment(folder)
    except BaseException:  # also Ctrl+C: half an environment is gigabytes nobody can use
        say(f"set-up did not finish; removing {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / ".ready").touch()
    say(f"environment ready after {time.monotonic() - started:.0f} s")


def install_environment(folder: Path) -> None:
    run([sys.executable, "-m", "venv", folder], "could not make a virtual environment")
    python = environment_python(folder)
    pip = [python, "-m", "pip"]
    install = ["install", "-qq", "--no-input", "--disable-pip-version-check", "--require-hashes"]
    say("1/3 torch")
    with requirements(locked(BUILD)) as file:
        # These three must come from one build; a locally configured index may hold only one of them.
        run([*pip, "--isolated", *install, "--no-deps", "-r", file], "could not install torch; is there a network?")
    say("2/3 ComfyUI's requirements and the development tools")
    run([*pip, *install, "-r", LOCK], "could not install the packages of requirements-dev.lock")
    say("3/3 check")
    run([python, "-c", "import torch, torchvision, torchaudio"],
        "torch, torchvision and torchaudio are installed but do not fit together")  # fmt: skip


@contextlib.contextmanager
def requirements(text: str) -> Iterator[Path]:
    """A requirements file for a while."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requirements.txt")
        file.write_text(text, "utf-8")
        yield file


def environment(host: Path) -> dict[str, str]:
    """Variables for everything that runs in the environment."""
    # The checkout's own packages, for modules run with -m from anywhere.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Idle OpenMP threads that spin make small steps many times slower when other work shares the cores.
    return {
        **os.environ, "COMFYUI_PATH": str(host), "SODA_DEV_CACHE": str(cache_root()), "PYTHONPATH": path,
        "OMP_WAIT_POLICY": "passive",
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- commands


def stage(name: str, command: list[str | Path], env: dict[str, str]) -> int:
    started = time.monotonic()
    say(f"{name} …")
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env=env, check=False).returncode
    say(f"{name}: {'ok' if code == 0 else f'FAILED (exit code {code})'} after {time.monotonic() - started:.0f} s")
    return code


def test(arguments: list[str]) -> int:
    if arguments[:1] == ["--hosts"]:
        return test_hosts(arguments[1:])
    if arguments[:1] == ["--oldest"]:
        return test_hosts([hosts.OLDEST.version, *ON_THE_OLDEST])
    python, host = setup()
    env = environment(host)
    if not arguments:
        with tempfile.TemporaryDirectory() as folder:
            link_pack(Path(folder, "soda"))  # as the host imports it: the pack's own imports are relative
            for name, command in (
                ("lint", [python, "-m", "ruff", "check", "."]),
                ("format", [python, "-m", "ruff", "format", "--check", "."]),
                ("types", [python, "-m", "mypy", "soda_core"]),
                ("imports", [python.with_name("lint-imports"), "--no-cache"]),
            ):
                if code := stage(name, command, {**env, "PYTHONPATH": f"{folder}{os.pathsep}{env['PYTHONPATH']}"}):
                    return code
    return stage("tests", [python, "-m", "pytest", *arguments], env)


def test_hosts(arguments: list[str]) -> int:
    """What needs a host, on every one; all of them run, whatever fails on one. The table is kept of whole runs only."""
    chosen = [host for host in hosts.HOSTS if host.version in arguments]
    rest = [argument for argument in arguments if argument not in {host.version for host in chosen}]
    python, _ = setup()
    if (newest := hosts.newest_archive(python)) not in (None, hosts.NEWEST.archive):
        say(f"{hosts.PACKAGE} {newest} is out, the newest here is {hosts.NEWEST.archive}: add it to testbed/hosts.py")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for host in chosen or hosts.HOSTS:
            report = Path(folder, f"{host.version}.xml")
            command = [python, "-m", "pytest", *(rest or NEEDS_A_HOST), f"--junit-xml={report}"]
            stage(f"tests on ComfyUI {host.version}", command, environment(fetched(host, python)))
            rows.append(hosts_table.Row.read(host, report))
            say(rows[-1].text)
    if not chosen and not rest:
        hosts_table.write(rows)
    return int(any(row.failed for row in rows))


def demo(arguments: list[str]) -> int:
    python, host = setup()
    return subprocess.run([python, "-m", "demo.run", *arguments], env=environment(host), check=False).returncode


SERVE_HELP = """python dev.py serve [ARGS]

A ComfyUI with the pack and something to click on: the demo's checkpoint and pictures, the adapters that the last
`python dev.py demo` trained, and the example workflows set to them (Workflows > SODA demo). What you make there stays.

ARGS go to ComfyUI; without --port it takes 8188 or any free one, without a GPU --cpu is added.
"""


def serve(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(SERVE_HELP, end="")
        return 0
    python, host = setup()
    base = cache_root() / "serve"
    link_pack(base / "custom_nodes" / "soda")
    for name in ("input", "output", "user", "temp"):
        (base / name).mkdir(parents=True, exist_ok=True)
    run([python, "-m", "demo.serve", base], "could not prepare the demo", env=environment(host), cwd=ROOT)
    probe = "import torch, sys; sys.exit(not torch.accelerator.is_available())"
    has_gpu = subprocess.run([python, "-c", probe], check=False).returncode == 0
    chosen = []
    if not has_gpu and "--cpu" not in arguments:
        chosen.append("--cpu")
    if not any(argument.split("=")[0] == "--port" for argument in arguments):
        port = free_port(8188)
        chosen += ["--port", str(port)]
        say(f"open http://127.0.0.1:{port} once it says so; Ctrl+C ends it")
    say(f"models, inputs and outputs are in {base}")
    command = [python, host / "main.py", "--base-directory", base, "--database-url", "sqlite:///:memory:",
               "--disable-api-nodes", *chosen, *arguments]  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        return subprocess.run([str(c) for c in command], env=environment(host), check=False).returncode
    return 0


def link_pack(target: Path) -> None:
    """The pack in a ``custom_nodes`` folder: a link, or a copy where links are not allowed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".git", "demo-output", "__pycache__"))


def bench(arguments: list[str]) -> int:
    available = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("_"))
    if not arguments or arguments[0] not in available:
        say(f"benchmarks: {', '.join(available) or 'none yet'}")
        return 0 if not arguments else 2
    python, host = setup()
    command = [python, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]]
    return subprocess.run(command, env=environment(host), check=False).returncode


def pretrain(arguments: list[str]) -> int:
    python, host = setup()
    command = [python, "-m", "testbed.pretrain", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(host), check=False).returncode


GPU_HELP = """python dev.py gpu --pack [FOLDER]             on this machine: the host for one without network or ComfyUI
python dev.py gpu [--minutes 25] [--again]   on the GPU's: all parts that are not done, one after the other
python dev.py gpu --rehearse                 every part at toy size on the CPU, with the packages of that machine alone

The packed folder (build/gpu, which git ignores; SODA_GPU_PACK names another) and the checkout go to the machine. There
the machine's own Python runs: it needs torch, torchvision, torchaudio, scipy, safetensors, einops, transformers, peft
and Pillow. Parts, in order of worth: correctness; the base model with ten times the samples; what training and loading
take; the quality benchmark. Each has its time limit, and a row in results.jsonl, which is copied to $OUT (or build/)
after every part, with the trained weights in pieces. The same command goes on with what is not done; --again forgets
all rows, --only NAME runs parts whose names begin so. Where a command may run ten minutes, say --minutes 9.5 and call
it three times.
"""


def gpu(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py gpu", add_help=False)
    parser.add_argument("--pack", nargs="?", type=Path, const=pack.FOLDER)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    if {"-h", "--help"} & set(arguments):
        print(GPU_HELP, end="")
        return 0
    args = parser.parse_args(arguments)
    if args.pack:
        return pack_for_gpu(args.pack)
    if args.rehearse and Path(sys.prefix).resolve() != environment_folder().resolve():
        python, _ = setup()
        return subprocess.run([python, ROOT / "dev.py", "gpu", *arguments], check=False).returncode
    work = ROOT / "build" / ("gpu-rehearsal" if args.rehearse else "gpu-work")
    chosen = [part for part in parts.parts(work) if not args.only or part.name.startswith(tuple(args.only))]
    packed = Path(os.environ.get("SODA_GPU_PACK") or pack.FOLDER)
    probe = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if not args.rehearse and subprocess.run([sys.executable, "-c", probe], stderr=subprocess.DEVNULL).returncode:
        say(f"{sys.executable} has no torch that finds a GPU; on a machine where it does, this would run:")
        print("\n".join(f"    {part.name}" for part in chosen))
        return 0
    if not (packed / pack.HOST).is_dir():
        raise SetupError(f"no packed host in {packed}: python dev.py gpu --pack makes it, on a machine with a network")
    if args.again:
        shutil.rmtree(work, ignore_errors=True)
    out = Path(os.environ.get("OUT") or work / "out")
    return int(parts.run_all(chosen, packed, work, out, args.minutes, args.rehearse) > 0)


def pack_for_gpu(folder: Path) -> int:
    python, host = setup()
    places = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", places], capture_output=True, text=True, check=True).stdout.strip()
    try:
        taken, tree = pack.pack(host, Path(packages), folder), pack.checkout_size()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise SetupError(str(error)) from error
    say(f"{folder}: {taken / 2**20:.1f} MiB, with the checkout {(taken + tree) / 2**20:.1f}")
    if taken + tree > pack.LIMIT:
        raise SetupError(f"that is more than {pack.LIMIT / 2**20:.0f} MiB")
    return 0


def run_python(arguments: list[str]) -> int:
    python, host = setup()
    return subprocess.run([python, *arguments], env=environment(host), check=False).returncode


def main(arguments: list[str]) -> int:
    commands = {
        "demo": demo, "test": test, "serve": serve, "python": run_python, "bench": bench, "pretrain": pretrain,
        "gpu": gpu,
    }  # fmt: skip
    if sys.version_info < (3, 11):
        say(f"needs Python 3.11 or newer, this is {platform.python_version()}")
        return 2
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    try:
        if arguments[0] == "setup":
            python, host = setup()
            say(f"ready: {python} and ComfyUI in {host}")
            return 0
        if arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    say(f"unknown command {arguments[0]!r}; choose one of setup, {', '.join(commands)}")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
