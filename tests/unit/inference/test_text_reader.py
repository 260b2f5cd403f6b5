"""Rows of text files: values that are read, and errors with their line."""

import io

import pytest

from mtl_dist.errors import UserError
from mtl_dist.inference.text_reader import TextSource

Row = tuple[str, ...] | None


def rows(kind: str, content: bytes, *columns: str, skip: bool = False) -> list[Row]:
    source = TextSource("a file", kind, columns or ("text",), "skip" if skip else "error")
    return list(source.rows(io.BytesIO(content)))


def test_plain_text_has_one_row_per_line() -> None:
    assert rows("text", b"\xef\xbb\xbfone\r\ntwo, \xc3\xa9 \nthree") == [("one",), ("two, é ",), ("three",)]
    assert rows("text", b"") == []


def test_the_chosen_columns_of_json_lines_are_read() -> None:
    content = b'{"b": "2", "a": "1", "c": 7}\n\n{"a": "x\\ny", "b": "\xc3\xa9"}\n'
    assert rows("jsonl", content, "a", "b") == [("1", "2"), ("x\ny", "é")]


def test_csv_records_may_span_lines_and_NA_is_text() -> None:
    content = b'label,text\n0,"a ""b"",\nc"\n\n1,NA\r\n'
    assert rows("csv", content) == [('a "b",\nc',), ("NA",)]


def test_csv_fields_may_be_long() -> None:
    assert rows("csv", b"text\n" + b"x" * 300_000) == [("x" * 300_000,)]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("text", b"one\n \nthree\n", r"a file line 2: text is empty; data.empty_text=skip leaves such rows out"),
        ("text", b"one\ntwo\xff\n", r"a file line 2: byte 3 of its line is not UTF-8"),
        ("jsonl", b'{"text": "a"}\n\n{"text": 5}\n', r"a file line 3: text column 'text' holds 5, no string"),
        ("jsonl", b'{"text": "a"}\n{"text": "b"\n', r"a file line 2: no valid JSON \(Expecting ',' delimiter"),
        ("jsonl", b'["a"]\n', r"a file line 1: no JSON object"),
        ("jsonl", b'{"texts": "a"}\n', r"a file line 1: no column 'text'; did you mean texts\?"),
        ("jsonl", b'{"text": null}\n', r"a file line 1: text is empty"),
        ("jsonl", b'{"text": "\\ud800"}\n', r"a file line 1: 'text' has half of a surrogate pair"),
        ("csv", b"id,text\n1,a\n2\n", r"a file line 3: 1 fields, and 2 columns"),
        ("csv", b'id,text\n1,"a\nb"\n2,\n', r"a file line 4: text is empty"),
        ("csv", b"id,txt\n1,a\n", r"a file line 1: no column 'text'; did you mean txt\?"),
        ("csv", b'text\na\n"b\n', r"a file line 3: no valid CSV \(unexpected end of data\)"),
    ],
)
def test_the_error_for_a_bad_row_names_its_line(kind: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows(kind, content)


def test_rows_without_text_are_none_where_they_are_skipped() -> None:
    assert rows("jsonl", b'{"text": ""}\n{"text": "a"}\n{"text": null}\n', skip=True) == [None, ("a",), None]
    assert rows("csv", b"a,b\n1,\n1,2\n", "a", "b", skip=True) == [None, ("1", "2")]


def test_rows_are_read_one_by_one() -> None:
    source = TextSource("a file", "text", ("text",)).rows(io.BytesIO(b"one\ntwo\n\n"))
    assert next(source) == ("one",)
    assert next(source) == ("two",)
    with pytest.raises(UserError, match="line 3"):
        next(source)
