"""Encoders that are on this machine: in folders, and in the cache of the Hugging Face hub."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtl_dist.errors import UserError
from mtl_dist.inspection.encoder_choice import choose_encoder
from tests.utils.hostile import change_config
from tests.utils.tiny import tiny_encoder

ROOT = Path(__file__).parents[3]
CODE = """
from mtl_dist.inspection.encoder_choice import choose_encoder
for asked in (None, "a/older", "a/none"):
    found = choose_encoder(asked, [])
    print(found.name, found.blocks, found.positions, found.small, found.pooling, found.tokenizer is not None)
"""


def put_into_cache(home: Path, name: str, last_used: float, kind: str = "bert", layers: int = 2) -> Path:
    """Lays out an encoder as the cache of the hub does; returns its folder."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = tiny_encoder(repository / "snapshots" / "0123abcd", kind, layers)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    for file in snapshot.iterdir():
        os.utime(file, (last_used, last_used))
    return snapshot


def test_the_encoder_last_used_is_taken_from_the_cache(tmp_path: Path) -> None:
    now = time.time()
    put_into_cache(tmp_path, "a/older", now - 3000, "roberta", layers=3)
    recent = put_into_cache(tmp_path, "a/recent", now - 2000)
    (recent / "1_Pooling").mkdir()
    (recent / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    other = put_into_cache(tmp_path, "a/generator", now - 1000)
    change_config(other, model_type="gpt2")
    (put_into_cache(tmp_path, "a/pickled", now) / "model.safetensors").unlink()
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "a/recent 2 40 True mean True",
        "a/older 3 38 True first_token True",  # RoBERTa has positions for its padding
        "a/none 12 512 False first_token False",
    ]


def test_the_first_folder_that_is_an_encoder_is_taken(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "q" / "encoder")
    (tmp_path / "empty").mkdir()
    found = choose_encoder(None, [tmp_path / "none", tmp_path / "empty", tmp_path / "q" / "encoder"])
    assert (found.name, found.blocks, found.pooling) == (str(tmp_path / "q" / "encoder"), 4, "first_token")
    assert choose_encoder(str(tmp_path / "q" / "encoder"), []).why == "given by --encoder (bert, 4 blocks)"


@pytest.mark.parametrize("name", ["./none", "~/none", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_name(name: str) -> None:
    with pytest.raises(UserError, match="--encoder: there is no folder"):
        choose_encoder(name, [])
