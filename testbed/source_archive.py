# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads a package's source archive and nothing more, run by a Python with pip.

    python source_archive.py NAME VERSION FOLDER

``pip download`` runs the archive's build system for its metadata, and first fetches that. So pip's own finder, with the
user's index and settings, only says where the file is. Checking it is the caller's business.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pip._internal.commands import create_command


def main(name: str, version: str, folder: str) -> None:
    command = create_command("download")
    options, _ = command.parse_args(["--no-binary", name, "--ignore-requires-python", "--quiet"])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session, ignore_requires_python=True)
        links = [found.link for found in finder.find_all_candidates(name) if str(found.version) == version]
        if not links:
            raise SystemExit(f"the package index has no source archive of {name} {version}")
        answer = session.get(links[0].url_without_fragment, headers={"Accept-Encoding": "identity"}, timeout=60)
        answer.raise_for_status()
        Path(folder, Path(links[0].filename).name).write_bytes(answer.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
