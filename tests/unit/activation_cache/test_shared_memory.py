"""Shared bytes of a single process; several processes are covered by tests/distributed."""

from pathlib import Path

import pytest

from mtl_dist.activation_cache.shared_memory import shared_bytes
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError


def test_bytes_in_a_folder_are_zero_and_leave_no_file_behind(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    memory = shared_bytes(5000, ProcessGroup(), folder)
    assert memory[:] == bytes(5000)
    memory[4990:] = b"0123456789"
    assert memory[4988:] == b"\0\0" + b"0123456789"
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError) as error:
        shared_bytes(10, ProcessGroup(), file / "folder")
    assert str(error.value) == f"cache.folder: cannot write 10 bytes to {file}/folder: Not a directory"
