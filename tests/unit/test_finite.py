import pytest
import torch

from mtl_dist.finite import find_nonfinite

LARGE = torch.finfo(torch.float32).max


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_first_tensor_with_a_value_that_is_not_finite_is_named(dtype: torch.dtype) -> None:
    def broken(*values: float) -> torch.Tensor:
        tensor = torch.ones(5, 3, dtype=dtype)
        tensor[4, : len(values)] = torch.tensor(values, dtype=dtype)
        return tensor

    good = "good", torch.ones(4, 4, dtype=dtype)
    assert find_nonfinite([good]) is None
    assert find_nonfinite([good, ("a", broken(torch.nan)), ("b", broken(torch.inf))]) == "a holds NaN"
    assert find_nonfinite([good, ("b", broken(-torch.inf)), ("a", broken(torch.nan))]) == "b holds an infinite value"
    assert find_nonfinite([("both", broken(torch.inf, -torch.inf))]) == "both holds an infinite value"


def test_finite_values_whose_sum_is_not_are_finite() -> None:
    assert find_nonfinite([("large", torch.full((4,), LARGE)), ("half", torch.full((4,), 6e4).half())]) is None
    assert find_nonfinite([("large", torch.tensor([LARGE, LARGE, torch.nan]))]) == "large holds NaN"


def test_what_holds_no_floating_point_values_is_finite() -> None:
    assert find_nonfinite([("empty", torch.ones(0)), ("ids", torch.ones(2).long())]) is None
    assert find_nonfinite([("skeleton", torch.empty(2, device="meta"))]) is None
