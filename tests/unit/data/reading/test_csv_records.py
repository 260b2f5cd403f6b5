"""CSV as people have it, and CSV that is refused with its line."""

import codecs
from pathlib import Path

import pytest

from mtl_dist.data.reading import csv_records
from mtl_dist.data.reading.table import TableFile
from mtl_dist.errors import UserError
from tests.utils.tables import read_columns, table_of

Options = dict[str, str | bool | None]


def refusal(table: TableFile, *values: str) -> str:
    with pytest.raises(UserError) as error:
        read_columns(table, ["text"], values or ["label"])
    return str(error.value)


def test_fields_stay_as_they_are_written(tmp_path: Path) -> None:
    table = table_of(
        tmp_path / "a.csv", 'id,text,label\n1,"a ""b"",\nc", 007\n\n2,NA,NA\r\n3,,\n4," ",""\n5, x ,1.50\n'
    )
    assert table.columns() == ["id", "text", "label"]
    assert table.class_names() == {}
    assert read_columns(table, ["text"], ["label", "id"]) == {
        "text": ['a "b",\nc', "NA", "", " ", " x "],
        "label": [" 007", "NA", None, None, "1.50"],
        "id": ["1", "2", "3", "4", "5"],
    }


def test_a_column_that_is_wanted_twice_comes_once(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", "text,label\na,\n ,1\n")
    assert read_columns(table, ["text", "text"], ["label", "text"]) == {"text": ["a", None], "label": [None, "1"]}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_any_line_end_will_do(end: str, last: bool, tmp_path: Path) -> None:
    lines = end.join(["text,label", f'"a{end}b",1', "", "c,2"]) + (end if last else "")
    table = table_of(tmp_path / "a.csv", lines)
    assert read_columns(table, ["text"], ["label"]) == {"text": [f"a{end}b", "c"], "label": ["1", "2"]}


def test_a_file_of_a_macintosh_has_CR_between_records_and_LF_in_texts(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", 'text,label\r"a\nb",1\rc,2\rd\r')
    assert refusal(table) == "a.csv line 5: the header has 2 fields, and this row 1"


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("text,label\na,1\n", {}),
        ("text;label\na;1\n", {}),
        ("text\tlabel\na\t1\n", {}),
        ("text|label\na|1\n", {}),
        ("\n\r\ntext;label\na;1\n", {}),
        ('"text";"label"\n"a";"1"\n', {}),
        ('"label,";text;label\n0;a;1\n', {}),
        ('text,"a;b|c",label\na,0,1\n', {}),
        ('"a;\nb",text,label\n0,a,1\n', {}),
        ('"a ""b"", c";text;label\n0;a;1\n', {}),
        ("'a,b';text;label\n0;a;1\n", {"quotechar": "'"}),
        ("a|b,text,label\n1,a,1\n", {}),
        ("text;label;a,b\na;1;2,3\na;1;2\n", {}),
        ("text;label;a,b\ra;1;2\r", {}),
        ("text;label;a,b\na;1;" + "x" * 200_000 + "\n", {}),
        ('text;label;a,b\na;1;x\nb;1;"' + "x\n" * 200_000 + '"\n', {}),
        ("text^label\na^1\n", {"delimiter": "^"}),
        ("text,label,a;b\na,1,x;y\n", {"delimiter": ","}),
        ("text,label,\na,1,\n", {}),
        (",text,label\n0,a,1\n", {}),
        ("text,label,label2,text2,text2\na,1,2,,\n", {}),
    ],
)
def test_the_delimiter_is_the_one_of_the_header(content: str, options: Options, tmp_path: Path) -> None:
    columns = read_columns(table_of(tmp_path / "a.csv", content, **options), ["text"], ["label"])
    assert {column[0] for column in columns.values()} == {"a", "1"}


def test_a_tsv_file_has_tabs(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.tsv", "text,\tlabel\na,b\t1\n")
    assert read_columns(table, ["text,"], ["label"]) == {"text,": ["a,b"], "label": ["1"]}
    table = table_of(tmp_path / "a.tsv", "text;label\na;1\n", delimiter=";")
    assert read_columns(table, ["text"], ["label"]) == {"text": ["a"], "label": ["1"]}


def test_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", 'text\nwell, no\nyes\n"a ""b"""\n')
    assert read_columns(table, ["text"]) == {"text": ["well, no", "yes", 'a "b"']}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label;x\na,1;2\n", "line 1: the first line could be divided by ',' ';'; set read.delimiter"),
        ("text;label,x\na\n", "line 1: the first line could be divided by ',' ';'; set read.delimiter"),
        ("text\n0,a\n1,b\n", "line 1: every line but the first could be divided by ','; set read.delimiter"),
    ],
)
def test_a_delimiter_that_is_not_plain_is_asked_for(content: str, message: str, tmp_path: Path) -> None:
    assert refusal(table_of(tmp_path / "a.csv", content)) == f"a.csv {message}"


def test_a_file_without_header_has_numbered_columns(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", "a,1\nb,2\n", header=False)
    assert table.columns() == ["0", "1"]
    assert read_columns(table, ["0"], ["1"]) == {"0": ["a", "b"], "1": ["1", "2"]}
    table = table_of(tmp_path / "a.csv", "a,1\nb\n", header=False)
    with pytest.raises(UserError, match=r"^a.csv line 2: the first row has 2 fields, and this row 1$"):
        read_columns(table, ["0"])


def test_quotes_are_characters_where_there_is_no_quotechar(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", 'text\tlabel\n"a" 5"\t"x\n', quotechar=None)
    assert read_columns(table, ["text"], ["label"]) == {"text": ['"a" 5"'], "label": ['"x']}


QUOTES = "; a quote within quotes is doubled, and read.quotechar=null takes quotes as they are"
MORE = "; a text with a delimiter needs quotes, and a column of row numbers a name"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\na,1\n"b,2\nc,3\n', f" line 3: a quote opens in this row and never closes{QUOTES}"),
        ('text,label\n"x\ny",1\n\n"b,2\nc,3\n', f" line 5: a quote opens in this row and never closes{QUOTES}"),
        (
            'text,label\na,1\n"b" c,2\n',
            f" line 3: text behind a closing quote, or a quote before it was left open{QUOTES}",
        ),
        ("text,label\na,1\nb, c,2\n", f" line 3: the header has 2 fields, and this row 3{MORE}"),
        ("text,label\nb, c,2\na,1\n", f" line 2: the header has 2 fields, and this row 3{MORE}"),
        ("text,label\n0,b,2\n1,a,1\n", f" line 2: the header has 2 fields, and this row 3{MORE}"),
        (
            'text,label\n"a\n\nb",1\n\na,b,c,1\n',
            " line 6: the header has 2 fields, and this row 4; a text with delimiters needs quotes",
        ),
        ("text,label\na,1\nb\n", " line 3: the header has 2 fields, and this row 1"),
        ("text,label\na,1\n \n", " line 3: the header has 2 fields, and this row 1"),
        ('text,label\na,1\nb\n"c,\n', " line 3: the header has 2 fields, and this row 1"),
        ("text,label\na,1\nb\rc,1\n", " line 3: a CR inside of a field; a text with line ends needs quotes"),
        ('text,label\na,1\nb"\0",1\n', " line 3: has a NUL character"),
        ("text,id\na,1\n", ": no column 'label'; choose from text, id"),
        ("text,lable\na,1\n", ": no column 'label'; did you mean lable?"),
        ("\ntext,label,label\na,1,2\n", " line 2: several columns have the name 'label'"),
        ("", ": the file is empty; a CSV file begins with the names of its columns"),
        ("\n\r\n", ": the file is empty; a CSV file begins with the names of its columns"),
        ("\ufeff", ": the file is empty; a CSV file begins with the names of its columns"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    assert refusal(table_of(tmp_path / "a.csv", content)) == f"a.csv{message}"


def test_a_fault_far_down_is_found_at_its_line(tmp_path: Path) -> None:
    rows = '"a\nb",1\n\n' * 2500
    table = table_of(tmp_path / "a.csv", f"text,label\n{rows}c,1,2\n")
    assert refusal(table).startswith("a.csv line 7502: the header has 2 fields, and this row 3")
    table = table_of(tmp_path / "a.csv", f'text,label\n{rows}"c\n,1,2\n')
    assert refusal(table) == f"a.csv line 7502: a quote opens in this row and never closes{QUOTES}"
    table = table_of(tmp_path / "a.csv", f"text,label\n{rows}c,1\n")
    places = [place(row) for batch, place in table.blocks(["text"], []) for row in range(batch.num_rows)][::1000]
    assert places == [f"a.csv line {2 + 3 * row}" for row in range(0, 2501, 1000)]


def test_a_quote_that_never_closes_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = csv_records.csv.field_size_limit(10_000)
    try:
        table = table_of(tmp_path / "a.csv", 'text,label\na,1\n"b,2\n' + "c,3\n" * 100_000)
        assert "line 3: a field of more than" in refusal(table)
    finally:
        csv_records.csv.field_size_limit(limit)


def test_fields_may_be_long(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", "text\n" + "x" * 3_000_000 + "\n")
    assert read_columns(table, ["text"]) == {"text": ["x" * 3_000_000]}


def test_long_texts_come_in_small_batches(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", "text\n" + ("x" * 10_000 + "\n") * 1000)
    assert max(batch.num_rows for batch in table.batches(["text"], [])) <= 64
    table = table_of(tmp_path / "a.csv", "text\n" + "x\n" * 10_000)
    assert max(batch.num_rows for batch in table.batches(["text"], [])) > 1000


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-8-sig", codecs.BOM_UTF8),
        ("cp1252", b""),
        ("utf-16", b""),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", b""),
        ("utf-32", b""),
        ("gb18030", b""),
    ],
)
def test_encodings(encoding: str, mark: bytes, tmp_path: Path) -> None:
    content = "text;label\nçà;é\n"
    table = table_of(tmp_path / "a.csv", mark + content.encode(encoding.removesuffix("-sig")), encoding=encoding)
    assert read_columns(table, ["text"], ["label"]) == {"text": ["çà"], "label": ["é"]}
