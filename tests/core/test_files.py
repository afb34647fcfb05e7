# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from soda_core.errors import SettingsError
from soda_core.files import check_prefix, check_writable, replacing


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


@pytest.mark.parametrize("bad", ["../x", "/tmp/x", "a/../../x", "C:\\x", "", "x/", "a\0b"])
def test_names_cannot_leave_their_folder(bad) -> None:
    with pytest.raises(SettingsError, match="not allowed"):
        check_prefix(bad)


def test_a_name_may_have_a_sub_folder() -> None:
    assert check_prefix("people/anna") == "people/anna"
    assert check_prefix(" people\\anna ") == "people/anna"
