# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from soda_core.errors import SettingsError
from soda_core.files import check_prefix, check_text, check_writable, leftovers, numbered, replacing, sweep


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path) -> None:
    path = tmp_path / "a" / "b.txt"
    for text in ("first", "second"):
        with replacing(path) as unfinished:
            assert unfinished.parent == path.parent and unfinished != path
            unfinished.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_no_file_is_told_beforehand(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "x.txt")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "x.txt")


def test_names_and_space_are_tried_beforehand(tmp_path, monkeypatch) -> None:
    check_writable(tmp_path / "x.txt", b"y" * 1000)
    with pytest.raises(OSError, match="too long"):
        check_writable(tmp_path / ("x" * 240))

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        check_writable(tmp_path / "x.txt", b"y")
    assert list(tmp_path.iterdir()) == []


class TestNumbered:
    @staticmethod
    def name(number: int) -> str:
        return f"x_{number}.txt"

    def write(self, folder, first: int = 1) -> str:
        with numbered(folder, self.name, first) as path:
            path.write_text("new")
        return path.name

    def test_the_first_free_number_is_taken_and_nothing_is_left_beside_it(self, tmp_path) -> None:
        (tmp_path / "x_2.txt").write_text("old")
        assert [self.write(tmp_path) for _ in range(2)] == ["x_1.txt", "x_3.txt"]
        assert self.write(tmp_path, 9) == "x_9.txt"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x_1.txt", "x_2.txt", "x_3.txt", "x_9.txt"]
        assert (tmp_path / "x_2.txt").read_text() == "old"

    def test_a_number_that_is_being_written_is_left_alone(self, tmp_path) -> None:
        with numbered(tmp_path, self.name, 1) as slow:
            assert self.write(tmp_path) == "x_2.txt"
            slow.write_text("slow")
        assert slow.name == "x_1.txt" and slow.read_text() == "slow"

    def test_an_error_gives_the_number_back_and_a_dead_process_only_costs_it(self, tmp_path) -> None:
        with pytest.raises(RuntimeError), numbered(tmp_path, self.name, 1):
            raise RuntimeError
        (tmp_path / ".x_1.txt.00000000.partial").touch()
        assert self.write(tmp_path) == "x_2.txt"


@pytest.mark.parametrize("bad", ["../x", "/tmp/x", "a/../../x", "C:\\x", "", "x/", "a\0b"])
def test_names_cannot_leave_their_folder(bad) -> None:
    with pytest.raises(SettingsError, match="not allowed"):
        check_prefix(bad)


def test_half_a_character_is_refused() -> None:
    check_text("x", "sks 🦊 füchs")
    for check in (lambda text: check_text("trigger_phrase", text), check_prefix):
        with pytest.raises(SettingsError, match=r"fox\\udc80.*half a character at place 4"):
            check("fox\udc80")


def test_a_name_may_have_a_sub_folder() -> None:
    assert check_prefix("people/anna") == "people/anna"
    assert check_prefix(" people\\anna ") == "people/anna"


def old(path: Path, hours: float = 25) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    os.utime(path, (time.time() - 3600 * hours,) * 2)
    return path


def test_what_a_killed_process_left_is_removed_after_a_day_and_nothing_else(tmp_path) -> None:
    ours = [old(tmp_path / name) for name in (".a.safetensors.0123abcd.partial", "people/.b.png.ffffffff.partial")]
    young = old(tmp_path / ".c.safetensors.0123abcd.partial", hours=23)
    others = [
        old(tmp_path / name)
        for name in ("a.safetensors", ".partial", "a.0123abcd.partial", ".a.0123ABCD.partial", ".a.123abcd.partial",
                     ".a.0123abcd.partial.bak", ".0123abcd.partial", "download.partial")
    ]  # fmt: skip
    folder = tmp_path / ".d.0123abcd.partial"
    folder.mkdir()
    link = tmp_path / ".e.0123abcd.partial"
    link.symlink_to(others[0])
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    elsewhere = old(outside / ".f.0123abcd.partial")
    (tmp_path / "linked").symlink_to(outside)
    assert {path for path, _ in leftovers(tmp_path)} == {*ours, young}
    sweep(tmp_path)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in (*others, young, folder, link, elsewhere))
    sweep(tmp_path / "nowhere")


def test_what_is_being_written_counts_as_left_over_and_is_swept_by_the_name_it_has(tmp_path) -> None:
    with replacing(tmp_path / "x.txt") as unfinished:
        unfinished.write_text("half")
        assert [path for path, _ in leftovers(tmp_path)] == [unfinished]
        sweep(tmp_path)
        assert unfinished.exists(), "somebody is writing it"
        os.utime(unfinished, (0, 0))
        sweep(tmp_path)
        assert not unfinished.exists()
        unfinished.write_text("half")
