from pathlib import Path

import pytest

from raysweep.files import write_bytes, write_text


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "recipe.yaml"
    write_text(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("power cut"))
    with pytest.raises(pytest.fail.Exception, match="power cut"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("write", "content"), [(write_text, "été"), (write_bytes, "été".encode())])
def test_writing_leaves_nothing_beside(tmp_path, write, content):
    write(tmp_path / "a", content[:1])
    write(tmp_path / "a", content)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("a", "été")]
