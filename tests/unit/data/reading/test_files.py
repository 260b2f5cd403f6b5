"""Which files a pattern names, and what their names tell."""

import os
from pathlib import Path

import fsspec
import pytest

from mtl_dist.data.reading.files import find_files, format_of
from mtl_dist.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with some files."""
    for name in (
        "b.csv",
        "a.csv",
        "a b.csv",
        "data[1].csv",
        "data1.csv",
        "what?.csv",
        "deep/er/c.csv",
        "deep/d.csv",
        "of [2]/e.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["a.csv"], ["a.csv"]),
        (["a b.csv"], ["a b.csv"]),
        (["?.csv"], ["a.csv", "b.csv"]),
        (["b.csv", "a.csv"], ["b.csv", "a.csv"]),
        (["b.csv", "?.csv", "./a.csv"], ["b.csv", "a.csv"]),
        (["data[1].csv"], ["data[1].csv"]),
        (["data[12].csv"], ["data1.csv"]),
        (["what?.csv"], ["what?.csv"]),
        (["deep/*"], ["deep/d.csv"]),
        (["deep/**"], ["deep/d.csv", "deep/er/c.csv"]),
        (["deep/**/*.csv"], ["deep/d.csv", "deep/er/c.csv"]),
        (["of [2]/*.csv"], ["of [2]/e.csv"]),
        (["of [[]2]/*"], ["of [2]/e.csv"]),
    ],
)
def test_a_pattern_names_a_file_or_the_sorted_matches_of_a_glob(
    folder: Path, patterns: list[str], found: list[str]
) -> None:
    assert find_files("tasks.a.data_files.train", patterns) == found
    absolute = [f"{folder}/{pattern.removeprefix('./')}" for pattern in patterns]
    os.chdir("/")
    assert find_files("tasks.a.data_files.train", absolute) == [f"{folder}/{name}" for name in found]


def test_many_matches_are_sorted(folder: Path) -> None:
    for number in range(50):
        (folder / f"{7 * number % 50:02}.txt").touch()
    assert find_files("key", ["*.txt"]) == [f"{number:02}.txt" for number in range(50)]


def test_equal_files_under_two_names_are_two_files(folder: Path) -> None:
    (folder / "link.csv").symlink_to("a.csv")
    assert find_files("key", ["a.csv", "link.csv"]) == ["a.csv", "link.csv"]


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "deep"))
    assert find_files("key", ["~/d.csv"]) == [f"{folder}/deep/d.csv"]
    assert find_files("key", ["~/*.csv"]) == [f"{folder}/deep/d.csv"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no.csv", "tasks.a.data_files.train: there is no file no.csv"),
        ("deep/*.json", "tasks.a.data_files.train: there is no file deep/*.json"),
        ("deep/", "tasks.a.data_files.train: deep/ is a folder; name its files, e.g. deep/*.csv"),
        ("memory://no/*.csv", "tasks.a.data_files.train: there is no file memory://no/*.csv"),
        ("nothing://a.csv", "tasks.a.data_files.train: cannot get nothing://a.csv: Protocol not known: nothing"),
    ],
)
def test_a_pattern_without_a_file_is_refused(folder: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_files("tasks.a.data_files.train", [pattern])
    assert str(error.value) == message


def test_remote_files_are_brought_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # this store is in memory
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
    store = fsspec.filesystem("memory")
    store.pipe({"/shop/2.csv": b"two", "/shop/1.csv": b"one", "/shop/other.txt": b"three"})
    paths = find_files("key", ["memory://shop/*.csv"])
    assert [Path(path).read_bytes() for path in paths] == [b"one", b"two"]
    (tmp_path / "a b.csv").touch()
    assert find_files("key", [f"file://{tmp_path}/a b.csv"]) == [f"{tmp_path}/a b.csv"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.csv", "csv"),
        ("a.TSV", "csv"),
        ("a.csv.gz", "csv"),
        ("a.json.zst", "json"),
        ("a.jsonl", "json"),
        ("a.ndjson", "json"),
        ("a.parquet", "parquet"),
        ("a.arrow", "arrow"),
        ("a.feather", "arrow"),
        ("a.txt.bz2", "text"),
        ("data.csv/part-0", None),
        ("a.xlsx", None),
        ("a.gz", None),
        ("my.data.v2.csv.gz.bz2", "csv"),
        ("a", None),
        (".csv", None),
    ],
)
def test_the_end_of_a_name_tells_the_format(name: str, found: str | None) -> None:
    assert format_of(name) == found
