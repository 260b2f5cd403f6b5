from pathlib import Path

import pytest

from mtl_dist.distributed import launch_request


@pytest.fixture
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a launcher's variables and without a config file of the user's own."""
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch_request, "default_config_file", str(tmp_path / "default_config.yaml"))
