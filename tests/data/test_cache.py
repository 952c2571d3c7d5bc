"""What is kept can be read again, and what cannot be kept does no harm."""

import pytest

from raysweep.data.cache import cache_folder, keep, make_once, recall


def test_values_are_kept_by_everything_that_determines_them():
    keep("things", ["a", 1], {"x": [1, 2]})
    assert recall("things", ["a", 1]) == {"x": [1, 2]}
    assert recall("things", ["a", 2]) is None
    assert recall("others", ["a", 1]) is None


def test_a_damaged_file_is_as_none():
    keep("things", 1, "whole")
    (file,) = (cache_folder() / "things").iterdir()
    file.write_text('"who')
    assert recall("things", 1) is None


@pytest.mark.parametrize("where", ["a file in its place", "a full disk"])
def test_a_cache_that_cannot_be_written_keeps_nothing(where, tmp_path, monkeypatch):
    if where == "a full disk":
        monkeypatch.setenv("RAYSWEEP_CACHE", "/dev/full")
    else:
        (tmp_path / "cache").write_text("")
        monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    keep("things", 1, "value")
    assert recall("things", 1) is None


def test_a_folder_is_made_once_and_whole(tmp_path):
    folder, made = tmp_path / "images" / "abc", []

    def fill(unfinished):
        assert list(unfinished.iterdir()) == []  # nothing of a process that was killed
        (unfinished / "half").touch()
        made.append(unfinished)
        if len(made) == 1:
            raise OSError("full")
        (unfinished / "whole").touch()

    folder.with_suffix(".part").mkdir(parents=True)
    (folder.with_suffix(".part") / "left").touch()
    with pytest.raises(OSError, match="full"):
        make_once(folder, fill)
    assert not folder.exists()
    for _ in range(2):
        make_once(folder, fill)
    assert sorted(path.name for path in folder.iterdir()) == ["half", "whole"]
    assert len(made) == 2
    assert not folder.with_suffix(".part").exists()
