"""What columns are taken for, by their values and names."""

import random

import pyarrow as pa
import pytest

from mtl_dist.inspection import column_profile
from mtl_dist.inspection.column_profile import ColumnProfile
from mtl_dist.inspection.column_roles import choose_texts, is_fractional, kind_of, role_of

SENTENCES = [f"Sentence number {index} of many, which all differ." for index in range(200)]


def profile(name: str, values: list[str | None], parts: int = 3) -> ColumnProfile:
    """The statistics of a column that is read in several batches."""
    column = ColumnProfile(name)
    for start in range(0, len(values), max(1, len(values) // parts)):
        column.add(pa.array(values[start : start + max(1, len(values) // parts)], pa.large_string()))
    return column


def cycle(*values: str | None, rows: int = 200) -> list[str | None]:
    return [values[row % len(values)] for row in range(rows)]


@pytest.mark.parametrize(
    ("name", "values", "use", "why"),
    [
        ("a", SENTENCES, "text", "mostly different"),
        ("a", [f"<p>Row {index} <b>is</b> HTML</p>" for index in range(200)], "text", ""),
        ("a", [f"第{index}行的文字没有空格也能读懂" for index in range(200)], "text", ""),
        ("a", ["word " * 30_000 + str(index) for index in range(5)], "text", ""),
        ("a", [f"red shoes {index}" for index in range(200)], "text", ""),
        ("text", ["ok thanks", *SENTENCES[:50]] * 3, "text", ""),
        ("a", cycle("billing", "technical", "sales", None), "label", "strings"),
        (
            "a",
            cycle("Credit reporting, credit repair services, or other reports", "Mortgage and other loans"),
            "label",
            "",
        ),
        ("a", cycle(*(f"intent {index}" for index in range(30))), "label", ""),
        ("stars", cycle("1", "2", "3", "4", "5"), "label", "whole numbers"),
        ("a", cycle("1.0", "2.0", None), "label", "whole numbers"),
        ("a", cycle("True", "false", None), "label", "true and false"),
        ("a", cycle("0", "1"), "label", "whole numbers"),
        ("a", cycle("007", "008"), "label", "strings"),
        ("a", cycle("1", "2", "3", "other"), "label", "strings"),
        ("label", cycle(*map(str, range(60))), "label", "whole numbers"),
        ("a", cycle(*map(str, range(60))), "none", "too many for classes"),
        ("a", [str(index) for index in range(200)], "none", "all different"),
        ("id", [str(index) for index in range(200)], "none", "all different"),
        ("a", [f"{index / 7:.3f}" for index in range(200)], "none", "fractions"),
        ("a", cycle("0.5", "1.5"), "none", "fractions"),
        ("a", cycle("0,5", "1,5"), "none", "fractions"),
        ("a", [f"2024-{1 + index % 12:02d}-{1 + index % 28:02d}" for index in range(200)], "none", "dates"),
        ("created", cycle("2024-01-01", "2024-01-02"), "none", "dates"),
        ("a", cycle("2024-01-01T10:00:00Z", "01.02.2023 10:00"), "none", "dates"),
        ("year", cycle("2021", "2022", "2023"), "none", "dates"),
        ("customer_id", cycle(*(f"C{index}" for index in range(40))), "none", "ids by its name"),
        ("CustomerID", cycle(*(f"C{index}" for index in range(40))), "none", "ids by its name"),
        ("a", [f"{index:032x}" for index in range(200)], "none", "as ids are"),
        ("a", [f"someone{index}@example.org" for index in range(200)], "none", "as ids are"),
        ("", [str(index) for index in range(200)], "none", "numbers of rows"),
        ("Unnamed: 0", [str(index % 7) for index in range(200)], "none", "numbers of rows"),
        ("a", cycle("train", "test", "dev"), "none", "names of splits"),
        ("a", cycle("same"), "none", "the same value"),
        ("a", cycle("same", None), "none", "only one value"),
        ("a", cycle(None), "none", "empty"),
        ("a", cycle(*(f"v{index}" for index in range(90))), "none", "too many for classes and too few for texts"),
    ],
)
def test_a_column_is_taken_for_what_it_is(name: str, values: list[str | None], use: str, why: str) -> None:
    for order in (values, sorted(values, key=str), random.Random(0).sample(values, len(values))):
        role = role_of(profile(name, order))
        assert (role.use, why in role.why) == (use, True), role


def test_the_kind_of_a_label_is_that_of_all_its_values() -> None:
    kinds = {
        "whole numbers": [cycle("1", "2"), cycle("-1", "0", "1.0"), cycle("1.00", None, "2")],
        "true and false": [cycle("TRUE", "False"), cycle("true", "false", None)],
        "strings": [cycle("01", "02"), cycle("1", "x"), cycle("true", "maybe"), cycle("yes", "no")],
    }
    for kind, columns in kinds.items():
        assert [kind_of(profile("a", values)) for values in columns] == [kind] * len(columns)
    assert [is_fractional(profile("a", cycle(*values))) for values in (("1", "1.5"), ("1", "2"), ("01", "02"))] == [
        *(True, False, False),
    ]


def test_statistics_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    values = cycle("a b", "c", None, "long enough", "7", rows=101)
    present = [value for value in values if value is not None]
    for parts in (1, 7):
        column = profile("x", values, parts)
        assert (column.rows, column.missing, column.present) == (101, 20, 81)
        assert column.counts == {value: present.count(value) for value in present}
        assert column.characters == sum(map(len, present))
        assert column.longest == 11
        assert column.matches["spaced"] == sum(" " in value for value in present)
        assert column.distinct_share == 4 / 81
    halves = profile("x", values[:50]), profile("x", values[50:])
    halves[0].include(halves[1])
    assert halves[0] == profile("x", values)
    monkeypatch.setattr(column_profile, "MAX_LISTED", 3)
    column = profile("x", values)
    assert (column.counts, column.distinct, column.characters) == (None, None, sum(map(len, present)))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("sentence1", "sentence2"), ["sentence1", "sentence2"]),
        (("text_b", "text_a"), ["text_a", "text_b"]),
        (("q1", "q2", "notes"), ["q1", "q2"]),
        (("hypothesis", "premise"), ["premise", "hypothesis"]),
        (("subject", "body"), ["subject", "body"]),
        (("Title", "Description"), ["Title", "Description"]),
        (("remarks", "text"), ["text"]),
        (("first", "second"), ["second"]),
        (("data", "table"), ["table"]),
        ((), []),
    ],
)
def test_one_text_is_chosen_or_a_pair_by_its_names(names: tuple[str, ...], chosen: list[str]) -> None:
    columns = {name: profile(name, [f"{text} {'x' * index}" for text in SENTENCES]) for index, name in enumerate(names)}
    assert choose_texts(columns, names) == chosen
