"""Decoding of text files, and their lines, block by block."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import IO

from mtl_dist.errors import UserError

LINE_END = re.compile(r"\r\n|\r|\n")
_BLOCK_BYTES = 1 << 17
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the encodings that they tell."""


def text_blocks(file: IO[bytes], name: str, encoding: str) -> Iterator[str]:
    """Yields the decoded text of a file in blocks, none of which ends between a CR and its LF.

    A byte order mark is dropped. `name` begins error messages. Raises UserError, with the line, for bytes that are not
    in `encoding` and for NUL characters.
    """
    decoder = _decoder(encoding)
    line, held, begin = 1, "", None
    for data in chain(iter(partial(file.read, _BLOCK_BYTES), b""), [b""]):
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            good = held + error.object[: error.start].decode(error.encoding, "replace")
            raise _undecodable(f"{name} line {line + _line_ends(good)}", error, encoding, begin or data) from error
        if begin is None:
            begin = data
            _check_mark(name, encoding, begin)
            text = text.removeprefix("\ufeff")
        if "\0" in text:
            good = text.partition("\0")[0]
            raise UserError(f"{name} line {line + _line_ends(good)}: has a NUL character{_other_encoding(begin)}")
        held = "\r" if data and text.endswith("\r") else ""
        text = text.removesuffix(held)
        line += _line_ends(text)
        if text:
            yield text


def line_blocks(blocks: Iterable[str]) -> Iterator[list[str]]:
    """Yields the lines of the text of `text_blocks` in lists; lines keep their ends, which are LF, CR LF or CR.

    Memory grows with the longest line only.
    """
    parts: list[str] = []
    for text in blocks:
        parts.append(text)
        if LINE_END.search(text):
            lines = io.StringIO("".join(parts), newline="").readlines()
            parts = [] if lines[-1].endswith(("\n", "\r")) else [lines.pop()]
            yield lines
    if parts:
        yield ["".join(parts)]


def line_at(text: str, position: int) -> int:
    """Number of the line, from 1, on which a position of a text is."""
    return 1 + _line_ends(text[:position])


def _line_ends(text: str) -> int:
    return len(LINE_END.findall(text)) if "\r" in text else text.count("\n")


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    try:
        str(bytes(4), encoding)
    except (LookupError, UnicodeError) as error:  # for codecs such as zip too, which decode no text
        raise UserError(f"read.encoding: {encoding!r} is no encoding of text; e.g. utf-8, cp1252, utf-16") from error
    return codecs.getincrementaldecoder(encoding)()


def _check_mark(name: str, encoding: str, begin: bytes) -> None:
    """Raises UserError for a file that begins as UTF-8 and is read in an encoding that takes its bytes for others."""
    if begin.startswith(codecs.BOM_UTF8) and not codecs.lookup(encoding).name.startswith("utf"):
        raise UserError(f"{name} line 1: begins with the mark of UTF-8, and read.encoding is {encoding}")


def _undecodable(place: str, error: UnicodeDecodeError, encoding: str, begin: bytes) -> UserError:
    byte = error.object[error.start : error.start + 1].hex()
    hint = _other_encoding(begin)
    if not hint and not begin.startswith(codecs.BOM_UTF8):
        hint = "; is it another encoding, e.g. read.encoding=cp1252?"
    return UserError(f"{place}: byte 0x{byte} is not valid {encoding}{hint}")


def _other_encoding(begin: bytes) -> str:
    """End of a message: the encoding that the first bytes of a file tell, if they tell one."""
    encoding = next((encoding for mark, encoding in _MARKS.items() if begin.startswith(mark)), None)
    if encoding is None and b"\0" in begin[:2]:
        encoding = "utf-16-be" if begin.startswith(b"\0") else "utf-16-le"
    return f"; the file begins like {encoding}: set read.encoding={encoding}" if encoding else ""
