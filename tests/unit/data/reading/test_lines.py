"""Decoding of text files: lines whatever their ends, and bytes that are not valid."""

import io
import re

import pytest

from mtl_dist.data.reading import lines
from mtl_dist.data.reading.lines import DecodedFile
from mtl_dist.errors import UserError


@pytest.fixture(params=[2, 3, 7, 1 << 17])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that are read at a time."""
    monkeypatch.setattr(lines, "_BLOCK_BYTES", request.param)
    return request.param


def read(content: bytes, encoding: str = "utf-8") -> list[str]:
    return [line for one in DecodedFile(io.BytesIO(content), "a.txt", encoding).lines() for line in one]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "a\n", "\n\n", "a\r\n\r\nb", "a\rb\r", "a\n\rb", "\r\n\r\r\n", "\r\r\n", "a\nb\rc\r"),
        *("a\rb\nc\r\nd\r", "é\u2028\x0b\x1c\x85b\r\nlonger than a block\r\n\r"),
    ],
)
def test_lines_end_at_LF_or_at_any_end_if_the_first_is_a_CR(text: str, encoding: str, block: int) -> None:
    ends_at_any = re.match(r"[^\r\n]*\r(?!\n)", text)
    pattern = r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+" if ends_at_any else r"[^\n]*\n|[^\n]+"
    assert read(text.encode(encoding), encoding) == re.findall(pattern, text)


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"one\ntwo\xff\n", "utf-8", "line 2: byte 0xff is not valid utf-8; is it another encoding, e.g."),
        (b"one\r\ntwo\r\n\xe9", "utf-8", "line 3: byte 0xe9 is not valid utf-8; is it another encoding, e.g."),
        (b"\xef\xbb\xbfone\rtwo\r\xc3\n", "utf-8", "line 3: byte 0xc3 is not valid utf-8"),
        (b"one\ntw\x81", "cp1252", "line 2: byte 0x81 is not valid cp1252; is it another encoding"),
        ("one\nétwo".encode("utf-16"), "utf-8", "line 1: byte 0xff is not valid utf-8; the file begins like utf-16"),
        ("one\nétwo".encode("utf-32"), "utf-8", "line 1: byte 0xff is not valid utf-8; the file begins like utf-32"),
        ("one\nétwo".encode("utf-16-le"), "utf-8", "read.encoding=utf-16-le"),
        ("one\nétwo".encode("utf-16-be"), "utf-8", "read.encoding=utf-16-be"),
        ("one\ntwo".encode("utf-16-le"), "utf-8", "line 1: has a NUL character; the file begins like utf-16-le"),
        (b"one", "undefined", "read.encoding: 'undefined' is no encoding of text; e.g."),
        (b"one\n\ntwo\0", "utf-8", "line 3: has a NUL character"),
        (b"\xef\xbb\xbfone", "cp1252", "line 1: has the mark of UTF-8, and read.encoding is cp1252"),
        (b"one", "hex", "read.encoding: 'hex' is no encoding of text; e.g."),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_line(
    content: bytes, encoding: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (4, 7, 100):
        monkeypatch.setattr(lines, "_BLOCK_BYTES", size)
        with pytest.raises(UserError, match=re.escape(message)):
            read(content, encoding)


@pytest.mark.parametrize(("content", "written"), [(b"a\0b\0", "utf-16-le"), (b"\0a\0b", "utf-16-be")])
def test_utf_16_without_a_mark_is_refused_with_the_order_of_its_bytes(content: bytes, written: str) -> None:
    with pytest.raises(UserError, match=f"does not start with BOM; the file begins like {written}: set read.encoding"):
        read(content, "utf-16")
