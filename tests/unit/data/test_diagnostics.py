import json
from pathlib import Path

import pytest

from mtl_dist.data.diagnostics import find_faulty_line

GOOD = b'{"text": "a", "label": 0}\n'


def fault_of(path: Path, content: bytes, builder: str = "json") -> str | None:
    path.write_bytes(content)
    return find_faulty_line(builder, str(path), ["text", "label"])


LINES = [
    (b'{"text": "b", "la\n', "no valid JSON (Invalid control character at: line 1 column 18 (char 17))"),
    (b"[1]", "no JSON object"),
    (b'{"text": "b", "text": "c", "label": 1}', "the key 'text' occurs twice"),
    (b'{"text": "\xff", "label": 1}', "byte 10 of its line is not UTF-8"),
    (b'{"text": "\\ud800", "label": 1}', "'text' has half of a surrogate pair"),
    (b'{"text": "b", "label": 9223372036854775808}', "'label' is 9223372036854775808, beyond 64 bits"),
    (b'{"text": "b", "label": "1"}', "'label' is '1', no int as in the rows before"),
    (
        b"[" * 100_000,
        "no valid JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string)",
    ),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_faulty_json_line_is_located_by_its_row(tmp_path: Path, line: bytes, message: str) -> None:
    assert fault_of(tmp_path / "x.json", GOOD + b"\n" + GOOD + line) == f"row 2 (from 0): {message}"


def test_rows_are_counted_across_all_files_of_a_split(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(GOOD * 3)
    (tmp_path / "b.json").write_bytes(GOOD + b"x")
    assert str(find_faulty_line("json", f"{tmp_path}/*.json", ["text"])).startswith("row 4 (from 0): no valid JSON")


@pytest.mark.parametrize(
    "line",
    [
        b'\xef\xbb\xbf{"text": "mark", "label": 0}',
        b'{"text": null, "label": 0}',
        b'{"other": {"x": 1, "y": {"x": 2}}, "label": 0}',
        b'{"text": "a pair of surrogates \\ud83d\\ude00", "label": 0}',
        json.dumps([{"text": "a", "label": 0}, {"text": 1, "label": "x"}], indent=1).encode(),
    ],
)
def test_unusual_but_valid_line_is_no_fault(tmp_path: Path, line: bytes) -> None:
    assert fault_of(tmp_path / "x.json", line) is None


def test_csv_line_that_is_not_utf8_is_located(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    assert fault_of(path, b"text,label\na,0\n\xff,1\n", "csv") == f"line 3 of {path}: byte 0 of its line is not UTF-8"
    assert fault_of(path, b"text,label\na,0\n", "csv") is None


@pytest.mark.parametrize(("builder", "pattern"), [("parquet", "x.parquet"), ("json", "hf://x.json"), ("json", "")])
def test_sources_other_than_local_text_files_are_not_searched(builder: str, pattern: str) -> None:
    assert find_faulty_line(builder, pattern, ["text"]) is None
