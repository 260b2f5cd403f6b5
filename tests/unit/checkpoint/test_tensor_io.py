import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mtl_dist.checkpoint.tensor_io import write_tensors

CASES = {
    "none": {},
    "one number": {"step/a": torch.tensor(3.0)},
    "an empty one": {"a": torch.zeros(0, 3), "b": torch.ones(2)},
    "both types, out of order": {
        "A": torch.randn(3, 5),
        "a": torch.randn(7, dtype=torch.float64),
        "exp_avg/A": torch.randn(3, 5),
        "B": torch.randn(2, 2, 2, dtype=torch.float64),
    },
    "that learn": {"a": torch.randn(4, 4, requires_grad=True)},
    "names that JSON escapes": {
        f"n{mark}": torch.randn(2) for mark in ('"', "\\", "/", "\n", "\x1f", "\x7f", "ä", "\U0001f600")
    },
    "many": {f"block.{number}": torch.randn(100, 100) for number in range(200)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_the_library(tmp_path: Path, case: str) -> None:
    digest = write_tensors(tmp_path / "file", CASES[case])
    expected = save({name: tensor.detach() for name, tensor in CASES[case].items()})
    assert (tmp_path / "file").read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest()


def test_of_a_part_of_a_tensor_only_that_part_is_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "file", {"a": whole[:, 1:3], "b": whole.T})
    assert (tmp_path / "file").read_bytes() == save({"a": whole[:, 1:3].contiguous(), "b": whole.T.contiguous()})


def test_the_storage_of_what_is_written_can_be_freed(tmp_path: Path) -> None:
    """FSDP2 frees what it has gathered, and a rank that fails at that leaves the others waiting."""
    tensor = torch.ones(5)
    write_tensors(tmp_path / "file", {"a": tensor})
    tensor.untyped_storage().resize_(0)
    assert tensor.untyped_storage().nbytes() == 0
