"""Compressed files, whole, broken and cut off."""

import bz2
import gzip
import io
import lzma
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from mtl_dist.data.reading.files import open_file
from mtl_dist.errors import UserError

CONTENT = b"".join(b"%d,%d\n" % (row, row * row) for row in range(20_000))


def by_arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as out:
            out.write(content)
        return sink.getvalue().to_pybytes()

    return compress


def zipped(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("in.csv",):
            archive.writestr(name, content)
    return file.getvalue()


COMPRESSED = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "zstd": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
}


def content_of(path: Path) -> bytes:
    with open_file(str(path)) as file:
        return file.read()


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("content", [b"", b"a", CONTENT])
def test_files_are_decompressed_whatever_their_name(kind: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(COMPRESSED[kind](content))
    assert content_of(tmp_path / "data.csv") == content


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zstd", "lz4"])
def test_archives_behind_each_other_are_one_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(COMPRESSED[kind](CONTENT) + COMPRESSED[kind](b"more"))
    assert content_of(tmp_path / "data") == CONTENT + b"more"


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_a_file_that_is_cut_off_is_never_short(kind: str, share: float, tmp_path: Path) -> None:
    whole = COMPRESSED[kind](CONTENT)
    (tmp_path / "data").write_bytes(whole[: max(20, int(len(whole) * share))])
    with pytest.raises(UserError, match=f"data: is a broken or cut {kind} file \\(.+\\)"):
        content_of(tmp_path / "data")


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zip"])
def test_a_file_with_a_changed_byte_is_refused(kind: str, tmp_path: Path) -> None:
    broken = bytearray(COMPRESSED[kind](CONTENT))
    broken[len(broken) // 2] ^= 255
    (tmp_path / "data").write_bytes(broken)
    with pytest.raises(UserError, match=f"is a broken or cut {kind} file"):
        content_of(tmp_path / "data")


def test_more_behind_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(gzip.compress(CONTENT) + b"a,b\n")
    with pytest.raises(UserError, match="is a broken or cut gzip file"):
        content_of(tmp_path / "data")


def test_a_zip_archive_has_one_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(zipped(b"x", "folder/", "folder/in.csv", "__MACOSX/folder/._in.csv"))
    assert content_of(tmp_path / "data") == b"x"
    (tmp_path / "data").write_bytes(zipped(b"x", "a.csv", "b.csv"))
    with pytest.raises(UserError, match="data: is a zip archive of 2 files; one is read"):
        content_of(tmp_path / "data")


@pytest.mark.parametrize("content", [b"", b"\x1f", b"BZh is no archive", b"PK", b"text\n"])
def test_other_files_are_read_as_they_are(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.csv.gz").write_bytes(content)
    assert content_of(tmp_path / "data.csv.gz") == content


def test_a_pipe_is_decompressed_too(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(gzip.compress(CONTENT))
    done = subprocess.Popen(["cat", str(tmp_path / "data")], stdout=subprocess.PIPE)
    with done:
        assert done.stdout is not None
        assert content_of(Path(f"/dev/fd/{done.stdout.fileno()}")) == CONTENT


@pytest.mark.parametrize(("name", "message"), [("no.csv", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_opened_is_a_mistake_of_the_user(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / name}: {message}"):
        content_of(tmp_path / name)
