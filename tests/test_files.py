"""The guarded writer: complete or not there, whatever happens meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modistill.errors import FileError
from modistill.files import atomic_folder, read_json, run_lock, sha256, write_bytes, write_file, write_json, write_text


def only(folder, *names):
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_written_content_is_there_and_folders_are_made(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"\0\1\2")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\0\1\2"
    write_text(tmp_path / "t.txt", "ä\n")
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "ä\n"
    write_json(tmp_path / "j.json", {"a": [1, 2.5, None], "path": Path("x")})
    assert read_json(tmp_path / "j.json") == {"a": [1, 2.5, None], "path": "x"}
    only(tmp_path, "a", "t.txt", "j.json")


def test_sha256_of_the_empty_file_and_of_abc(tmp_path):
    for content, digest in ((b"", "e3b0c442"), (b"abc", "ba7816bf")):
        write_bytes(tmp_path / "x", content)
        assert sha256(tmp_path / "x").startswith(digest)


def test_file_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(FileError, match="No space left") as caught:
        write_file(path, lambda place: Path("/dev/full").write_bytes(b"new"))
    assert (caught.value.file, bool(caught.value.remedy)) == (str(path), True)
    assert read_json(path) == {"old": 1}
    only(tmp_path, "x.json")


def test_what_reads_back_differently_is_not_kept(tmp_path):
    def check(place):
        raise FileError("3 bytes read, 4 written")

    with pytest.raises(FileError, match="read back after writing, it differs: 3 bytes read"):
        write_file(tmp_path / "x", lambda place: place.write_bytes(b"123"), check)
    only(tmp_path)


def test_any_other_exception_leaves_nothing_behind(tmp_path):
    def write(place):
        place.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "x", write)
    only(tmp_path)


def test_a_folder_in_the_way_of_the_parent_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        write_text(tmp_path / "file" / "x", "x")


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    only(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FileError, match=r"x\.json: damaged JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(FileError, match="cannot be read"):
        read_json(tmp_path / "absent.json")


def test_atomic_folder_appears_complete_or_not_at_all(tmp_path):
    with atomic_folder(tmp_path / "done") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "done").exists()
    assert (tmp_path / "done" / "x").read_text() == "x"

    def break_off():
        with atomic_folder(tmp_path / "broken") as folder:
            (folder / "x").write_text("x")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        break_off()
    only(tmp_path, "done")
    with pytest.raises(FileError, match="exists already"), atomic_folder(tmp_path / "done"):
        pass


def test_a_second_process_is_locked_out_and_the_lock_dies_with_its_holder(tmp_path):
    code = f"""
import time
from pathlib import Path
from modistill.files import run_lock
with run_lock(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FileError, match="in use by another process"), run_lock(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with run_lock(tmp_path):
        pass


def test_killed_writers_never_leave_a_part_under_the_final_name(tmp_path):
    """Kill a process that rewrites one file over and over; each time the file must be whole."""
    path = tmp_path / "state.json"
    write_json(path, [0] * 3000)
    code = f"""
from pathlib import Path
from modistill.files import write_json
n = 0
print("ready", flush=True)
while True:
    n += 1
    write_json(Path({str(path)!r}), [n] * 3000)
"""
    for delay in (0.01, 0.02, 0.03):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        values = json.loads(path.read_text())
        assert len(values) == 3000
        assert len(set(values)) == 1
