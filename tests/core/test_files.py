# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest

from soda_core.errors import SettingsError
from soda_core.files import check_prefix, check_text, check_writable, numbered, replacing


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
