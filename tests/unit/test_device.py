"""Configuration of cuBLAS without leaving an environment variable behind; tests/gpu has it on a real GPU."""

import os

import pytest
import torch

from mtl_dist import device as devices
from mtl_dist.device import WORKSPACES


@pytest.mark.parametrize(("checks_each_time", "left"), [(False, None), (True, ":4096:8")])
def test_the_variable_is_set_as_long_as_torch_checks_for_it(
    monkeypatch: pytest.MonkeyPatch, checks_each_time: bool, left: str | None
) -> None:
    def multiply(device: torch.device) -> None:
        seen.append(os.environ.get(WORKSPACES))
        if checks_each_time and seen[-1] is None:
            raise RuntimeError(f"you must set an environment variable {WORKSPACES}=:4096:8")

    seen: list[str | None] = []
    monkeypatch.setattr(devices, "_multiply", multiply)
    monkeypatch.setenv(WORKSPACES, "to be restored")
    monkeypatch.delenv(WORKSPACES)
    devices._configure_cublas(torch.device("cuda"))
    assert seen == [":4096:8", None]
    assert os.environ.get(WORKSPACES) == left


def test_the_users_variable_stays_and_other_errors_are_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(device: torch.device) -> None:
        if WORKSPACES not in os.environ:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(devices, "_multiply", fails)
    monkeypatch.setenv(WORKSPACES, ":16:8")
    devices._configure_cublas(torch.device("cuda"))
    assert os.environ[WORKSPACES] == ":16:8"
    monkeypatch.delenv(WORKSPACES)
    with pytest.raises(RuntimeError, match="out of memory"):
        devices._configure_cublas(torch.device("cuda"))
