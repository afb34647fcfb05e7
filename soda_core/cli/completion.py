# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda completion``: a script that teaches a shell the command, written from the commands' own arguments."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from .common import Answer, Command

SHELLS = ("bash", "zsh")

_SCRIPT = """\
_soda() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" words="" IFS=$'\\n'
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "${{COMP_WORDS[1]}} $prev" in
{values}
        esac
        case "$words${{COMP_WORDS[1]}} $cur" in
{flags}
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
        COMPREPLY=("${{COMPREPLY[@]// /\\\\ }}")
    else
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}}
complete -o filenames -F _soda soda
"""


def script(commands: dict[str, argparse.ArgumentParser], shell: str) -> str:
    """
    Args:
        commands: parsers by name.
        shell: one of :data:`SHELLS`; zsh takes bash's by its own bridge.
    """
    values, flags = [], []
    for name, parser in commands.items():
        actions = parser._actions  # noqa: SLF001  (argparse has no other list)
        for action in actions:
            if action.choices:
                values += [f'            "{name} {flag}") words={_quoted(action.choices)} ;;' for flag in
                           action.option_strings]  # fmt: skip
        names = [flag for action in actions for flag in action.option_strings if flag.startswith("--")]
        flags.append(f'            "{name} -"*) words={_quoted(names)} ;;')
    text = _SCRIPT.format(commands=_quoted(commands), values="\n".join(values), flags="\n".join(flags))
    return text if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{text}"


def _quoted(words: Iterable[str]) -> str:
    """For the shell: a line each. (No name or choice of the command's holds a quote.)"""
    return "$'" + "\\n".join(words) + "'"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def _run(arguments: argparse.Namespace) -> Answer:
    from . import command_parsers

    text = script(command_parsers(), arguments.shell)
    return Answer(text, {"script": text})


COMMAND = Command(
    "completion",
    "a script for the shell's Tab key",
    "Print a script that lets a shell complete commands, flags and their choices.",
    ('completion bash > ~/.local/share/bash-completion/completions/soda', 'completion zsh >> ~/.zshrc'),
    _add_arguments,
    _run,
)  # fmt: skip
