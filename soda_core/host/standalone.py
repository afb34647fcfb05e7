# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's modules in a process without its server, for the command. Imports nothing of the host by itself."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import SettingsError


def start(folder: Path, flags: Sequence[str] = ()) -> None:
    """Make the host's modules importable, with its folders as its own start would set them.

    Args:
        folder: of a ComfyUI.
        flags: ComfyUI's own (``--lowvram``, ``--base-directory D``).
    Raises:
        SettingsError: there is no ComfyUI, or its packages are missing.
    """
    folder = folder.expanduser().resolve()
    if not (folder / "comfy" / "sd.py").is_file() or not (folder / "main.py").is_file():
        raise SettingsError(f"--host {folder}: is no ComfyUI; give the folder with its main.py")
    if "comfy.cli_args" not in sys.modules:
        sys.path.insert(0, str(folder))
        argv, sys.argv = sys.argv, ["comfyui", *flags]
        try:
            importlib.import_module("comfy.options").enable_args_parsing()
            importlib.import_module("comfy.cli_args")
        finally:
            sys.argv = argv
        importlib.import_module(f"{__package__}.versions").check()
        _set_folders(folder)
    try:
        importlib.import_module("nodes")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--host {folder}: ComfyUI's packages are not installed beside this command ({error}); install it with "
            "the Python that runs ComfyUI"
        ) from error
    importlib.import_module(f"{__package__}.folders").register()


def _set_folders(folder: Path) -> None:
    """Those of ``extra_model_paths.yaml`` and of the flags that only the host's start looks at.

    Raises:
        SettingsError: one of these flags chooses a device.
    """
    args: Any = importlib.import_module("comfy.cli_args").args
    paths: Any = importlib.import_module("folder_paths")
    for flag in ("cuda_device", "default_device", "oneapi_device_selector"):
        if getattr(args, flag, None) is not None:
            raise SettingsError(
                f"--{flag.replace('_', '-')} comes too late here; choose the device by CUDA_VISIBLE_DEVICES (of Intel "
                "by ONEAPI_DEVICE_SELECTOR) in front of the command"
            )
    load: Any = importlib.import_module("utils.extra_config").load_extra_path_config
    listed = [path for group in args.extra_model_paths_config or [] for path in group]
    usual = folder / "extra_model_paths.yaml"
    for config in [str(usual)] * usual.is_file() + listed:
        load(config)
    for name in ("output", "input", "user"):
        if chosen := getattr(args, f"{name}_directory"):
            getattr(paths, f"set_{name}_directory")(str(Path(chosen).resolve()))


@contextmanager
def progress_to(show: Callable[[int, int], None]) -> Iterator[None]:
    """Within, the host's progress bars call ``show(done, total)``."""
    utils: Any = importlib.import_module("comfy.utils")
    utils.set_progress_bar_global_hook(lambda value, total, preview=None, node_id=None: show(int(value), int(total)))
    try:
        yield
    finally:
        utils.set_progress_bar_global_hook(None)


class Cancelled(Exception):
    """A person or the system asked the process to stop, and what runs has been ended as a cancel ends it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def cancelled_by_signals(insist: bool) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM are the host's cancel.

    Args:
        insist: a second Ctrl-C gives up at once. Launchers of several processes send the first one twice.
    Raises:
        Cancelled: the cancel took effect.
    """
    management: Any = importlib.import_module("comfy.model_management")
    received: list[int] = []

    def cancel(number: int, frame: FrameType | None) -> None:
        if received and insist and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        management.interrupt_current_processing(True)

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except management.InterruptProcessingException as error:
        raise Cancelled(received[0] if received else signal.SIGINT) from error
    finally:
        management.interrupt_current_processing(False)
        for number, handler in before.items():
            signal.signal(number, handler)
