from __future__ import annotations

import os
import stat

import pytest

from fedkd.storage.atomic import write_json_atomically, write_text_atomically


def test_a_replacement_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "note.txt"
    write_text_atomically(path, "old")
    write_text_atomically(path, "new ±\n")
    assert path.read_bytes() == "new ±\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_before_the_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    write_text_atomically(path, "old")

    def crash(source, target):
        assert os.path.dirname(source) == str(tmp_path), "a rename is atomic only within a file system"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_synced_before_the_rename(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), real_fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), real_replace(a, b)))
    write_text_atomically(tmp_path / "note.txt", "text")
    assert calls[:2] == ["fsync", "replace"]


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text_atomically(tmp_path / "atomic", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_json_refuses_unsupported_values(tmp_path):
    with pytest.raises(ValueError):
        write_json_atomically(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
