import hashlib

import numpy as np
import pytest
import torch

from mtl_dist.distributed.consistency import combined_digest, require_equal, tensor_digest
from mtl_dist.distributed.process_group import ProcessGroup


def test_a_digest_is_sha256_over_name_shape_and_bytes() -> None:
    values = np.arange(6, dtype=np.float64).reshape(2, 3) / 7
    expected = hashlib.sha256(b"some.weight(2, 3)" + values.tobytes()).hexdigest()
    assert tensor_digest("some.weight", torch.from_numpy(values)) == expected


def test_a_digest_depends_on_name_shape_and_every_byte() -> None:
    tensor = torch.linspace(0, 1, 12)
    others = [tensor.reshape(3, 4), tensor.reshape(4, 3), tensor.flip(0), tensor.nextafter(tensor + 1)]
    for index in range(12):
        other = tensor.clone()
        other[index] = torch.nextafter(other[index], torch.tensor(2.0))
        others.append(other)
    digests = {tensor_digest("a", one) for one in (tensor, *others)} | {tensor_digest("b", tensor)}
    assert len(digests) == len(others) + 2
    assert tensor_digest("a", torch.zeros(1)) != tensor_digest("a", -torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_a_digest_does_not_depend_on_the_memory_layout(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    for same in (
        tensor.t().contiguous().t(),
        torch.nn.Parameter(tensor, requires_grad=False),
        tensor.repeat(1, 2)[:, :4],
    ):
        assert tensor_digest("a", same) == tensor_digest("a", tensor)
    assert tensor_digest("a", tensor[:, 1]) == tensor_digest("a", tensor[:, 1].clone())
    assert tensor_digest("a", tensor[0, 0]) == hashlib.sha256(b"a()" + bytes(dtype.itemsize)).hexdigest()


def test_digests_combine_in_their_order() -> None:
    assert combined_digest({"b": "12", "a": "34"}) == hashlib.sha256(b"1234").hexdigest()


def test_one_process_is_equal_to_itself() -> None:
    require_equal(ProcessGroup(), "start", {"a": "1"})
