"""Which files make one table."""

from pathlib import Path

import pytest

from mtl_dist.errors import UserError
from mtl_dist.inspection.table_groups import Group, group_files, split_of
from mtl_dist.inspection.table_scan import scan


@pytest.mark.parametrize(
    ("path", "rest", "split"),
    [
        ("train.csv", "", "train"),
        ("data/tickets.test.csv.gz", "tickets", "test"),
        ("tickets_train.jsonl", "tickets", "train"),
        ("dev-tickets.tsv", "tickets", "validation"),
        ("tickets valid.parquet", "tickets", "validation"),
        ("train-00000-of-00002.parquet", "", "train"),
        ("Tickets_TEST_2024.csv", "Tickets_2024", "test"),
        ("latest.csv", "latest", None),
        ("contest_results.csv", "contest_results", None),
        ("trainers.csv", "trainers", None),
        ("train_test.csv", "train_test", None),
    ],
)
def test_a_name_tells_its_split_only_as_a_word_of_its_own(path: str, rest: str, split: str | None) -> None:
    assert split_of(path) == (rest, split)


def grouped(folder: Path, files: dict[str, str]) -> tuple[list[Group], list[str]]:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    groups, lines = group_files([scan(str(folder / name), lambda rows: None) for name in files])
    return groups, [line.replace(f"{folder}/", "") for line in lines]


def files_of(groups: list[Group]) -> list[tuple[str, dict[str, list[str]]]]:
    return [
        (one.name, {split: [Path(scan.table.path).name for scan in scans] for split, scans in one.splits.items()})
        for one in groups
    ]


TABLE = "text,label\nx,1\n"


@pytest.mark.parametrize(
    ("files", "groups", "lines"),
    [
        ({"a.csv": TABLE}, [("a", {"train": ["a.csv"]})], []),
        ({"test.csv": TABLE}, [("test", {"train": ["test.csv"]})], []),
        (
            {"x.train.csv": TABLE, "x.test.csv": TABLE, "x.dev.csv": TABLE},
            [("x", {"train": ["x.train.csv"], "test": ["x.test.csv"], "validation": ["x.dev.csv"]})],
            [f"x.{name}.csv: the {split} split, by its name" for name, split in
             (("train", "train"), ("test", "test"), ("dev", "validation"))],
        ),
        (
            {"imdb/train.csv": TABLE, "imdb/test.csv": TABLE},
            [("imdb", {"train": ["train.csv"], "test": ["test.csv"]})],
            ["imdb/train.csv: the train split, by its name", "imdb/test.csv: the test split, by its name"],
        ),
        (
            {"part-1.csv": TABLE, "part-2.csv": TABLE},
            [("part-1", {"train": ["part-1.csv", "part-2.csv"]})],
            ["part-1.csv, part-2.csv: parts of one table (train), because their columns and names agree"],
        ),
        (
            {"t-1.csv": TABLE, "t-2.csv": "text,other\nx,1\n"},
            [("t-1", {"train": ["t-1.csv"]}), ("t-2", {"train": ["t-2.csv"]})],
            [],
        ),
        (
            {"mails.csv": TABLE, "calls.csv": TABLE},
            [("mails", {"train": ["mails.csv"]}), ("calls", {"train": ["calls.csv"]})],
            [
                (
                    "calls.csv: has the columns of mails.csv and another name, so it is a source of its own; to make"
                    " them one table, list both files in one data_files"
                )
            ],
        ),
    ],
)  # fmt: skip
def test_files_are_grouped_by_name_and_columns(
    tmp_path: Path, files: dict[str, str], groups: list[tuple[str, dict[str, list[str]]]], lines: list[str]
) -> None:
    found, said = grouped(tmp_path, files)
    assert (files_of(found), said) == (groups, lines)


def test_what_would_be_read_wrongly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x_test\.csv: is no training file by its name"):
        grouped(tmp_path, {"x_test.csv": TABLE, "x_dev.csv": TABLE})
    (tmp_path / "y.train.csv").write_bytes("text,label\nCafé,1\nx,2\n".encode("cp1252"))
    scans = [scan(str(tmp_path / "y.train.csv"), lambda rows: None)]
    (tmp_path / "y.test.csv").write_text(TABLE)
    scans.append(scan(str(tmp_path / "y.test.csv"), lambda rows: None))
    with pytest.raises(UserError, match=r"y\.test\.csv: is written in another way than .*y\.train\.csv"):
        group_files(scans)
