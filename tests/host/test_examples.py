# SPDX-License-Identifier: GPL-3.0-or-later
"""The example workflows' pictures in the input folder: whole, and nothing of the user's touched."""

from __future__ import annotations


def test_what_is_there_stays_and_what_is_not_comes_whole(host) -> None:
    examples = host.core("host.examples")
    inputs = host.base / "input"
    first, second = sorted(path.name for path in examples.PICTURES.iterdir())
    (inputs / first).mkdir()
    (inputs / first / "mine.png").write_bytes(b"a picture")
    for _ in range(2):
        examples.install()
        assert [path.name for path in (inputs / first).iterdir()] == ["mine.png"]
        copied = {path.name: path.read_bytes() for path in (inputs / second).iterdir()}
        assert copied == {path.name: path.read_bytes() for path in (examples.PICTURES / second).iterdir()}
        assert sorted(path.name for path in inputs.iterdir()) == [first, second]


def test_a_folder_that_takes_nothing_is_no_error(host, monkeypatch, caplog, tmp_path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("where the input folder should be", "utf-8")
    monkeypatch.setattr("folder_paths.get_input_directory", lambda: str(blocked))
    with caplog.at_level("INFO"):
        host.core("host.examples").install()
    assert "are not in the input folder" in caplog.text
