"""Decoding of text files, and their lines, block by block."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import IO

from mtl_dist.errors import UserError

_BLOCK_BYTES = 1 << 17
_LINE_END = re.compile(r"\r\n|\r|\n")
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the encodings that they tell."""


def marked_encoding(begin: bytes) -> str | None:
    """The encoding other than UTF-8 that the first four bytes of a file tell by a byte order mark, or None."""
    return next((encoding for mark, encoding in _MARKS.items() if begin.startswith(mark)), None)


class DecodedFile:
    """The text of an open file; a byte order mark is dropped. `name` begins error messages.

    Lines end at LF, as in CR LF; if the first line ends at a CR alone, at any CR, LF or CR LF.
    """

    def __init__(self, file: IO[bytes], name: str, encoding: str) -> None:
        self.name = name
        self._file = file
        self._encoding = encoding
        self._begin = b""
        self._ends_at_lf = True

    def blocks(self) -> Iterator[str]:
        """Yields the text in blocks, none of which ends between a CR and its LF.

        Raises UserError, with the line, for bytes that are not in the encoding and for NUL characters.
        """
        decoder = _decoder(self._encoding)
        line, held = 0, ""
        for index, data in enumerate(chain(iter(partial(self._file.read, _BLOCK_BYTES), b""), [b""])):
            if index == 0:
                self._begin = data[:4]
                self._check_mark()
            try:
                text = held + decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                good = held + error.object[: error.start].decode(error.encoding, "replace")
                self._find_line_end(line, good)
                raise self._undecodable(line + self.line_at(good), error) from error
            except UnicodeError as error:  # UTF-16 and UTF-32 without the mark that tells the order of bytes
                raise UserError(f"{self.name}: {error}{self._other_encoding()}") from error
            if index == 0:
                text = text.removeprefix("\ufeff")
            held = "\r" if data and text.endswith("\r") else ""
            text = text.removesuffix(held)
            self._find_line_end(line, text)
            if "\0" in text:
                bad = line + self.line_at(text, text.index("\0"))
                raise UserError(f"{self.name} line {bad}: has a NUL character{self._other_encoding()}")
            line += self.line_ends(text)
            if text:
                yield text

    def lines(self, blocks: Iterable[str] | None = None) -> Iterator[list[str]]:
        """Yields the lines, with their ends, in lists. `blocks`: what `blocks` yields, if it has been called before.

        Memory grows with the longest line only.
        """
        parts: list[str] = []
        for text in self.blocks() if blocks is None else blocks:
            parts.append(text)
            if self.line_ends(text):
                lines = io.StringIO("".join(parts), newline="\n" if self._ends_at_lf else "").readlines()
                complete = lines[-1].endswith("\n" if self._ends_at_lf else ("\n", "\r"))
                parts = [] if complete else [lines.pop()]
                yield lines
        if any(parts):
            yield ["".join(parts)]

    def line_ends(self, text: str) -> int:
        """Number of line ends in a part of the text."""
        return text.count("\n") if self._ends_at_lf or "\r" not in text else len(_LINE_END.findall(text))

    def line_at(self, text: str, position: int | None = None) -> int:
        """Number of the line, from 1, on which a position of a text is; by default its end."""
        return 1 + self.line_ends(text[:position])

    def _find_line_end(self, before: int, text: str) -> None:
        """Decides where lines end if `text`, which follows `before` lines, has the first line end."""
        if before == 0 and (end := _LINE_END.search(text)):
            self._ends_at_lf = end.group() != "\r"

    def _check_mark(self) -> None:
        """Raises UserError for a file that begins as UTF-8, whose bytes the encoding would take for others."""
        if self._begin.startswith(codecs.BOM_UTF8) and not codecs.lookup(self._encoding).name.startswith("utf"):
            raise UserError(f"{self.name} line 1: has the mark of UTF-8, and read.encoding is {self._encoding}")

    def _undecodable(self, line: int, error: UnicodeDecodeError) -> UserError:
        byte = error.object[error.start : error.start + 1].hex()
        hint = self._other_encoding()
        if not hint and not self._begin.startswith(codecs.BOM_UTF8):
            hint = "; is it another encoding, e.g. read.encoding=cp1252?"
        return UserError(f"{self.name} line {line}: byte 0x{byte} is not valid {self._encoding}{hint}")

    def _other_encoding(self) -> str:
        """End of a message: the encoding that the first bytes of the file tell, if they tell one."""
        encoding = marked_encoding(self._begin)
        if encoding is None and b"\0" in self._begin[:2]:
            encoding = "utf-16-be" if self._begin.startswith(b"\0") else "utf-16-le"
        return f"; the file begins like {encoding}: set read.encoding={encoding}" if encoding else ""


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    try:
        str(bytes(4), encoding)
    except (LookupError, UnicodeError) as error:  # for codecs such as zip too, which decode no text
        raise UserError(f"read.encoding: {encoding!r} is no encoding of text; e.g. utf-8, cp1252, utf-16") from error
    return codecs.getincrementaldecoder(encoding)()
