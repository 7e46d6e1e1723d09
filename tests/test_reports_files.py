"""Reports are written whole or not at all, and only where a report may be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ia_core.conformance._files import check_paths, clean, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "r.html"
    write_whole(target, "old\n")
    target.chmod(0o640)
    with pytest.raises(UnicodeEncodeError):
        write_whole(target, "new \ud800")
    assert target.read_text() == "old\n" and os.listdir(target.parent) == ["r.html"]

    def full(self: Path, other: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            write_whole(target, "new")
    assert target.read_text() == "old\n" and os.listdir(target.parent) == ["r.html"]
    (tmp_path / "link").symlink_to(target)
    write_whole(tmp_path / "link", "new")
    assert target.read_text() == "new" and (tmp_path / "link").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no such device here")
def test_devices_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    write_whole("/dev/null", "x")
    assert not os.path.isfile("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "x")
    assert os.read(reader, 9) == b"x" and not (tmp_path / "pipe").is_file()
    os.close(reader)


def test_paths_are_checked_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_paths({"--json": str(tmp_path / "file"), "--html": str(tmp_path / "a" / "b"), "--badge": None})
    assert not (tmp_path / "a").exists()
    for path, why in ((tmp_path, "it is a folder"), (tmp_path / "file" / "x", "file is not a folder")):
        with pytest.raises(ValueError, match=rf"`--json` must name a file that can be written.*{why} \[IA-X-21\]"):
            check_paths({"--json": str(path)})


def test_clean() -> None:
    assert clean("plain\ttext\nwith ä, 漢 and ✗") == "plain\ttext\nwith ä, 漢 and ✗"
    assert clean("\x00\x7f\ufffe\u2028") == "\\x00\\x7f\\ufffe\\u2028"
