import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_dist.data.temporary_folder import temporary_folder

WRITER = """
import sys
from pathlib import Path
from mtl_dist.data.temporary_folder import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "rows").write_text("many")
    print(folder, flush=True)
    sys.stdin.read()
"""


def writer(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(root)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_folder_is_removed_when_the_block_ends_or_raises(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        (folder / "rows").write_text("many")
        assert folder.parent == tmp_path
    with pytest.raises(ZeroDivisionError), temporary_folder(tmp_path):
        print(1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_killed_process_is_removed_and_that_of_a_running_one_kept(tmp_path: Path) -> None:
    with writer(tmp_path) as killed, writer(tmp_path) as running:
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, running) if process.stdout)
        killed.kill()
        killed.wait()
        assert (left / "rows").exists()
        with temporary_folder(tmp_path) as folder:
            assert set(tmp_path.iterdir()) == {folder, used}
            with temporary_folder(tmp_path):
                assert folder.exists()  # of this process, which may hold several
        assert (used / "rows").read_text() == "many"
        running.communicate()
        assert running.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_folder_that_is_closed_to_this_user_is_left_alone(tmp_path: Path) -> None:
    closed = tmp_path / ".writing-theirs"
    closed.mkdir()
    (closed / "lock").touch()
    closed.chmod(0)
    try:
        with temporary_folder(tmp_path):
            pass
        assert closed.exists()
    finally:
        closed.chmod(0o700)


def test_folder_whose_lock_is_not_held_yet_is_kept(tmp_path: Path) -> None:
    new = tmp_path / ".writing-new"
    new.mkdir()
    (new / "lock.new").touch()
    with temporary_folder(tmp_path):
        pass
    assert new.exists()
