from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedkd.data.sources.download import download, written_whole
from fedkd.errors import UserError

CONTENT = b"x" * 3_000_000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "source").write_bytes(CONTENT)
    return f"file://{tmp_path}/source"


def test_a_download_reports_progress_and_is_complete(url: str, tmp_path: Path):
    lines: list[str] = []
    path = download(["http://dead/a", url], tmp_path / "to" / "a", md5=MD5, hint="", progress=lines.append)
    assert path.read_bytes() == CONTENT
    assert "[##########] 3.0 of 3.0 MB" in lines[-1]


def test_a_wrong_checksum_leaves_no_file(url: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"checksum .*put it there"):
        download([url], tmp_path / "to" / "a", md5="0" * 32, hint="put it there", progress=print)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_complete_file_is_not_downloaded_again(tmp_path: Path):
    (tmp_path / "a").write_bytes(CONTENT)
    assert download([], tmp_path / "a", md5=MD5, hint="", progress=print) == tmp_path / "a"


def test_an_unwritable_folder_is_a_user_error(url: str, tmp_path: Path):
    (tmp_path / "blocked").write_text("a file, no folder")
    with pytest.raises(UserError, match="cannot download a"):
        download([url], tmp_path / "blocked" / "a", md5=MD5, hint="", progress=print)


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a") as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
