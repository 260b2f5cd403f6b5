"""`mtl-dist config`, `plan` and `schema`."""

import json
from pathlib import Path

import pytest

from mtl_dist.cli.main import main
from mtl_dist.config.load import parse
from tests.utils.tiny import tiny_recipe_file


def test_config_prints_a_recipe_that_reads_back_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(tiny_recipe_file(tmp_path))
    (tmp_path / "more.yaml").write_text("seed: 5\nbatch_size: 24\n", encoding="utf-8")
    words = [recipe, "batch_size=6", str(tmp_path / "more.yaml")]
    assert main(["config", *words]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    recipe_back = parse(["--config", str(printed)]).recipe
    assert recipe_back == parse(["--config", recipe, "seed=5", "batch_size=6"]).recipe  # overrides win over all files


def test_config_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--keys"]) == 0
    assert "unfreeze_warmup_steps: whole number" in capsys.readouterr().out


def test_a_mistake_in_a_recipe_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(tiny_recipe_file(tmp_path))
    capsys.readouterr()
    for command in ("config", "plan", "train"):
        assert main([command, recipe, "optimizer.lrr=1"]) == 2
        printed = capsys.readouterr()
        line = "error: command line: optimizer.lrr: unknown key; did you mean optimizer.lr?\n"
        assert (printed.out, printed.err) == ("", line)


def test_plan_prints_the_table_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_recipe_file(tmp_path))]) == 0
    assert "whole run  12 " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_schema_prints_that_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["type"] == "object"
    assert "output_dir" in schema["properties"]
