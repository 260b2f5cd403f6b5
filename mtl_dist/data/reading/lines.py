"""Decoding of text files into lines, block by block."""

import codecs
import io
import re
from collections.abc import Iterator
from typing import IO

from mtl_dist.errors import UserError

LINE_END = re.compile(r"\r\n|\r|\n")
_BLOCK_BYTES = 1 << 20
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}
"""Byte order marks, and the encodings that they tell."""


def line_blocks(file: IO[bytes], name: str, encoding: str) -> Iterator[list[str]]:
    """Yields the lines of a file in lists of about a MiB; lines keep their ends, which are LF, CR LF or CR.

    A byte order mark is dropped. `name` begins error messages. Raises UserError, with the line, for bytes that are not
    in `encoding` and for NUL characters. Memory grows with the longest line only.
    """
    decoder = _decoder(encoding)
    data = begin = file.read(_BLOCK_BYTES)
    _check_mark(name, encoding, begin)
    before, parts = 0, [""]
    while True:
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            good = "".join(parts) + error.object[: error.start].decode(error.encoding, "replace")
            raise _undecodable(f"{name} line {before + line_at(good)}", error, encoding, begin) from error
        parts.append(text if before or len(parts) > 1 else text.removeprefix("\ufeff"))
        if "\0" in text:
            good = "".join(parts).partition("\0")[0]
            raise UserError(f"{name} line {before + line_at(good)}: has a NUL character{_other_encoding(begin)}")
        if not data or LINE_END.search(text, 0, len(text) - 1) or text.endswith("\n"):
            lines = io.StringIO("".join(parts), newline="").readlines()
            # The LF of a CR LF may be in the next block.
            parts = [lines.pop()] if data and not lines[-1].endswith("\n") else []
            before += len(lines)
            if lines:
                yield lines
        if not data:
            return
        data = file.read(_BLOCK_BYTES)


def line_at(text: str) -> int:
    """Number of the line, from 1, on which what follows `text` is."""
    return 1 + (len(LINE_END.findall(text)) if "\r" in text else text.count("\n"))


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    try:
        b"".decode(encoding)  # raises LookupError for codecs such as zip too, which decode no text
    except LookupError as error:
        raise UserError(f"read.encoding: {error}") from error
    return codecs.getincrementaldecoder(encoding)()


def _check_mark(name: str, encoding: str, begin: bytes) -> None:
    """Raises UserError for a file that begins as UTF-8 and is read in an encoding that takes its bytes for others."""
    if begin.startswith(codecs.BOM_UTF8) and not codecs.lookup(encoding).name.startswith("utf"):
        raise UserError(f"{name} line 1: begins with the mark of UTF-8, and read.encoding is {encoding}")


def _undecodable(place: str, error: UnicodeDecodeError, encoding: str, begin: bytes) -> UserError:
    byte = error.object[error.start : error.start + 1].hex()
    hint = _other_encoding(begin) or "; is it another encoding, e.g. read.encoding=cp1252?"
    return UserError(f"{place}: byte 0x{byte} is not valid {encoding}{hint}")


def _other_encoding(begin: bytes) -> str:
    """End of a message: the encoding that the first bytes of a file tell, if they tell one."""
    encoding = next((encoding for mark, encoding in _MARKS.items() if begin.startswith(mark)), None)
    if encoding is None and b"\0" in begin[:2]:
        encoding = "utf-16-be" if begin.startswith(b"\0") else "utf-16-le"
    return f"; the file begins like {encoding}: set read.encoding={encoding}" if encoding else ""
