import shutil
from pathlib import Path

import pytest

from mtl_dist.config.files_read import data_paths
from mtl_dist.config.load import parse
from mtl_dist.errors import UserError
from mtl_dist.run_layout import SETUP
from tests.utils.tiny import tiny_recipe_file


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose run folder, `run` next to it, has a model."""
    path = tiny_recipe_file(tmp_path)
    shutil.copytree(tmp_path / "encoder", tmp_path / "run" / "model")
    return path


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        parse(["--config", str(recipe), *overrides])
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


SPELLINGS = ("{}/run/model", "{}/run/../run/model", "run/model", "./run/model", "link/model", "to_model", "~/run/model")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_run_that_starts_from_its_own_model_is_refused(
    recipe: Path, spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("link").symlink_to("run")
    Path("to_model").symlink_to("run/model")
    message = refusal(recipe, f"model.encoder={spelling.format(tmp_path)}")
    named = spelling.format(tmp_path).replace("~", str(tmp_path))
    assert message == (
        f"model.encoder: {named.removeprefix('./')} is model of the run folder {tmp_path / 'run'}, or in it,"
        " which a run writes there and moves aside; name another output_dir"
    )
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("output_dir", ["run", "link", "run/../run", "~/run", "./run/"])
def test_the_run_folder_may_have_any_spelling(
    recipe: Path, output_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("link").symlink_to("run")
    assert refusal(recipe, f"model.encoder={tmp_path}/run/model", f"output_dir={output_dir}").startswith("model.enc")


def test_an_encoder_whose_files_are_links_into_the_run_folder_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for file in (tmp_path / "run" / "model").iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    assert refusal(recipe, f"model.encoder={tmp_path}/linked").startswith(f"model.encoder: {tmp_path}/linked/")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.cache_dir", "run/checkpoints/cache"),
        ("data.cache_dir", "run/model"),
        ("cache.folder", "run/wandb"),
        ("cache.folder", "run/stacks/x"),
        ("tasks.mood.data_files.test", "run/model/data.json"),
        ("tasks.mood.data_files.train", "run/metrics.jsonl"),
        ("tasks.mood.data_files.train", "run/*/data.json"),
        ("tasks.topic.path", "run/model"),
    ],
)
def test_caches_and_data_in_what_a_run_writes_are_refused(
    recipe: Path, key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "model" / "data.json").write_text("")
    key_of_message = key.rpartition(".data_files.")[0] + ".data_files" if ".data_files." in key else key
    message = refusal(recipe, f"{key}={value}")
    assert message.startswith(f"{key_of_message}: run/")
    assert message.endswith("; name another output_dir")


def test_the_cache_of_the_environment_is_checked_too(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_DIST_CACHE", str(tmp_path / "run" / "model"))
    assert refusal(recipe).startswith(f"MTL_DIST_CACHE: {tmp_path / 'run' / 'model'} is model of the run folder ")


def test_a_recipe_that_the_run_would_replace_is_refused(recipe: Path, tmp_path: Path) -> None:
    assert refusal(recipe, f"output_dir={tmp_path}") == (
        f"output_dir: a run writes its own recipe.yaml to {tmp_path}, over {recipe}, which it reads;"
        " rename the recipe, or name another folder"
    )
    other = recipe.rename(tmp_path / "tasks.yaml")
    parse(["--config", str(other), f"output_dir={tmp_path}"])


def test_the_recipe_of_a_run_may_start_it_again(recipe: Path, tmp_path: Path) -> None:
    own = recipe.rename(tmp_path / "run" / "recipe.yaml")
    (tmp_path / "run" / SETUP).write_text("{}")
    command = parse(["--config", str(own)])
    assert command.files == (str(own),)


def test_what_a_run_leaves_in_place_may_be_in_its_folder(recipe: Path, tmp_path: Path) -> None:
    """An encoder that is the run folder, or holds it; data beside the run's files; the model of an earlier run."""
    run = tmp_path / "run"
    shutil.copytree(run / "model", run / "previous" / "1" / "model")
    shutil.copytree(tmp_path / "data", run / "data")
    parse(["--config", str(recipe), f"output_dir={tmp_path}/encoder"])
    parse(["--config", str(recipe), f"output_dir={tmp_path}/encoder/run"])
    parse(["--config", str(recipe), f"model.encoder={run}/previous/1/model"])
    parse(["--config", str(recipe), f"tasks.mood.data_files.train={run}/data/mood.train.json"])
    parse(["--config", str(recipe), f"data.cache_dir={run}/cache", f"cache.folder={run}/cache"])
    parse(["--config", str(recipe), f"model.encoder={tmp_path}/run/model", f"output_dir={tmp_path}/second"])


def test_data_files_are_found_in_all_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.csv", "b.csv", "c[1].csv", "d.csv"):
        Path(name).write_text("")
    recipe = {
        "sources": {"x": {"path": "csv", "data_files": "c[1].csv"}},
        "tasks": {
            "y": {"path": "csv", "data_files": {"train": ["[ab].csv"], "test": "~/d.csv"}},
            "z": {"source": "x"},
        },
    }
    found = {(key, str(path)) for key, path in data_paths(recipe)}
    assert {("sources.x.data_files", "c[1].csv"), ("tasks.y.data_files", f"{tmp_path}/d.csv")} <= found
    assert {("tasks.y.data_files", name) for name in ("a.csv", "b.csv")} <= found


@pytest.mark.parametrize("key", ["output_dir", "model.encoder", "data.cache_dir", "tasks.topic.data_files.test"])
def test_a_nul_in_a_path_is_refused(recipe: Path, key: str) -> None:
    message = f"{key.removesuffix('.test')}: 'a\\x00b' has a NUL character, and no path has one"
    assert refusal(recipe, f'{key}="a\\0b"') == message
