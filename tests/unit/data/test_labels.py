import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtl_dist.data.labels import NO_LABEL, UNKNOWN, LabelClasses, classes_of_model, decide_classes, similar_names
from mtl_dist.errors import UserError
from tests.utils.task_rows import (
    GOOD,
    KINDS,
    Rows,
    a_task,
    checked,
    contents,
    names_of,
    refusal,
    row,
    with_class_names,
    write,
)

DECIDED: dict[str, tuple[set[str], tuple[str, ...], str]] = {
    "whole numbers": ({"10", "2", "-1"}, ("-1", "2", "10"), "whole numbers"),
    "numbers beside holes": ({"10.0", "2.0", "2", "-0.0"}, ("0", "2", "10"), "whole numbers"),
    "numbers beyond floats": (
        {"9007199254740993", "9007199254740992"},
        ("9007199254740992", "9007199254740993"),
        "whole numbers",
    ),
    "numbers beyond Python's limit of digits": ({"1", "9" * 5000}, ("1", "9" * 5000), "whole numbers"),
    "leading zeros": ({"007", "1"}, ("007", "1"), "strings"),
    "numbers and a word": ({"1", "2", "other"}, ("1", "2", "other"), "strings"),
    "signs": ({"+1", "-1"}, ("+1", "-1"), "strings"),
    "dates": ({"2021-01-01", "2021-02-01"}, ("2021-01-01", "2021-02-01"), "strings"),
    "versions": ({"1.0.1", "1.0"}, ("1.0", "1.0.1"), "strings"),
    "digits of another script": ({"\u0967", "\u0968"}, ("\u0967", "\u0968"), "strings"),
    "booleans": ({"True", "false"}, ("false", "true"), "true and false"),
    "booleans in every case": ({"TRUE", "true", "False"}, ("false", "true"), "true and false"),
    "a boolean and a word": ({"true", "maybe"}, ("maybe", "true"), "strings"),
    "yes and no": ({"yes", "no"}, ("no", "yes"), "strings"),
    "words": ({"b", "A", "a b"}, ("A", "a b", "b"), "strings"),
}


@pytest.mark.parametrize("case", DECIDED)
def test_classes_by_the_first_rule_that_applies(case: str) -> None:
    train, names, kind = DECIDED[case]
    classes = decide_classes((), train, set())
    assert classes is not None
    assert (classes.names, classes.kind) == (names, kind)
    assert {classes.index(value) for value in train} <= set(range(len(names)))


@pytest.mark.parametrize("values", [{"0.5", "1"}, {"1", "2", "1e5"}, {"-.5", "1"}, {"1.", "2"}])
def test_fractional_numbers_decide_nothing(values: set[str]) -> None:
    assert decide_classes((), values, set()) is None
    assert decide_classes((), {"1", "2"}, values) is None


def test_values_of_other_splits_take_part_in_the_decision_and_add_no_class() -> None:
    classes = decide_classes((), {"1", "2", "007"}, {"1", "x"})
    assert classes is not None
    assert (classes.names, classes.kind) == (("007", "1", "2"), "strings")
    classes = decide_classes((), {"1", "2"}, {"3", "1.0"})
    assert classes is not None
    assert (classes.names, classes.kind, classes.index("1.0"), classes.index("3")) == (
        ("1", "2"),
        "whole numbers",
        0,
        UNKNOWN,
    )


def test_class_indices_of_a_column() -> None:
    classes = LabelClasses(("low", "high"), ("1", "2"), "values of the recipe")
    column = pa.chunked_array(
        [pa.array(["2", None, "1.0"], pa.large_string()), pa.array(["x", "2"], pa.large_string())]
    )
    indices = classes.class_indices(column)
    assert indices.tolist() == [1, NO_LABEL, 0, UNKNOWN, 1]
    assert indices.dtype == np.int64
    assert classes.class_indices(pa.chunked_array([], pa.large_string())).tolist() == []


def test_forms_of_a_value_are_one_class_only_where_all_values_are_of_the_kind() -> None:
    assert LabelClasses(("a", "b"), ("true", "false"), "").index("True") == 0
    assert LabelClasses(("1", "other"), ("1", "other"), "").index("1.0") == UNKNOWN
    # Two values that a recipe tells apart stay apart.
    both = LabelClasses(("whole", "text"), ("1", "1.0"), "")
    assert (both.index("1"), both.index("1.0"), both.index("1.00")) == (0, 1, UNKNOWN)


def test_classes_of_a_trained_model_by_its_names_and_its_recipe() -> None:
    assert classes_of_model("tasks.t", ("1", "2"), None).index("2.0") == 1
    assert classes_of_model("tasks.t", ("false", "true"), None).index("True") == 1
    assert classes_of_model("tasks.t", ("1", "other"), None).index("1.0") == UNKNOWN
    # In the order of the model, whatever that of the recipe.
    named = classes_of_model("tasks.t", ("low", "high"), {"9": "high", "3": "low"})
    assert [named.index(value) for value in ("3", "9.0", "low")] == [0, 1, UNKNOWN]
    with pytest.raises(UserError, match=r"tasks\.t\.labels: the model's classes are low, high, and these low, mid"):
        classes_of_model("tasks.t", ("low", "high"), {"0": "low", "1": "mid"})


def test_names_that_differ_only_in_how_they_are_written_are_found() -> None:
    names = ["Cat", "cat", "dog ", "dog", "bird", "1", "1.0", "10"]
    assert similar_names(names) == [("Cat", "cat"), ("dog ", "dog"), ("1", "1.0")]


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_differ_only_in_case_or_space_are_reported(tmp_path: Path, kind: str) -> None:
    rows = [row("a", "Cat"), row("b", "cat"), row("c", " cat"), row("d", "dog")]
    (line,) = checked(a_task(tmp_path, rows, rows, kind)).warnings
    assert line == "tasks.t: classes differ only in case, white space or digits: ' cat' and 'Cat' and 'cat'"


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_for_a_missing_value_is_a_class_and_is_reported(tmp_path: Path, kind: str) -> None:
    rows = [row("a", "None"), row("b", "dog"), row("c", "nan"), row("d", "NA cat")]
    (line,) = checked(a_task(tmp_path, rows, rows, kind)).warnings
    assert line == "tasks.t: 'None', 'nan' is a class like others; a missing label is an empty field, or null"


def test_ratings_from_one_to_five_are_five_classes(tmp_path: Path) -> None:
    rows = [row(f"t{rating}", rating) for rating in (5, 1, 4, 2, 3)]
    for kind in KINDS:
        examples = checked(a_task(tmp_path, rows, rows, kind))
        assert names_of(examples) == ("1", "2", "3", "4", "5")
        assert contents(examples)["test"] == [(f"t{rating}", str(rating)) for rating in (5, 1, 4, 2, 3)]


def test_csv_of_numbers_and_a_word_gives_four_classes_to_a_test_file_of_numbers_only(tmp_path: Path) -> None:
    train = [row(f"t{label}", label) for label in (1, 2, 3, "other")]
    examples = checked(a_task(tmp_path, train, [row("a", 3), row("b", 1)], "csv"))
    assert names_of(examples) == ("1", "2", "3", "other")
    assert contents(examples)["test"] == [("a", "3"), ("b", "1")]
    assert examples.classes["t"].kind == "strings"


def test_long_csv_keeps_leading_zeros_where_only_its_beginning_has_words(tmp_path: Path) -> None:
    train = [row(f"a{n}", ["000", "001", "002", "other"][n % 4]) for n in range(10_000)]
    train += [row(f"b{n}", ["000", "001", "002"][n % 3]) for n in range(3_000)]
    examples = checked(a_task(tmp_path, train, [row("c", "001")], "csv"))
    assert names_of(examples) == ("000", "001", "002", "other")
    assert contents(examples)["train"] == [(one["text"], one["label"]) for one in train]


def test_csv_sorted_by_label_whose_first_word_comes_late_has_classes_of_strings(tmp_path: Path) -> None:
    train = [row(f"a{n}", 1 + n // 5_500) for n in range(11_000)] + [row("z", "zero")]
    examples = checked(a_task(tmp_path, train, [row("c", "2")], "csv"))
    assert names_of(examples) == ("1", "2", "zero")
    assert contents(examples)["train"] == [(one["text"], str(one["label"])) for one in train]


def test_shards_whose_class_names_differ_in_order_are_read_by_name(tmp_path: Path) -> None:
    write(tmp_path / "part0.parquet", with_class_names(["zebra", "ant"], ["a", "b"], [0, 1]))
    write(tmp_path / "part1.parquet", with_class_names(["ant", "owl", "zebra"], ["c", "d"], [0, 2]))
    task = a_task(tmp_path, GOOD, with_class_names(["ant", "zebra"], ["e"], [1]), "parquet")
    task.data_files["train"] = [str(tmp_path / "part*.parquet")]
    examples = checked(task)
    assert names_of(examples) == ("zebra", "ant", "owl")
    assert contents(examples) == {
        "train": [("a", "zebra"), ("b", "ant"), ("c", "ant"), ("d", "zebra")],
        "test": [("e", "zebra")],
    }


def test_class_names_and_plain_strings_meet_by_name(tmp_path: Path) -> None:
    write(tmp_path / "part0.parquet", with_class_names(["zebra", "ant"], ["a"], [0]))
    write(tmp_path / "part1.parquet", [row("b", "ant"), row("c", "owl")])
    task = a_task(tmp_path, GOOD, [row("d", "zebra")], "parquet")
    task.data_files["train"] = [str(tmp_path / "part*.parquet")]
    examples = checked(task)
    assert names_of(examples) == ("zebra", "ant", "owl")
    assert contents(examples) == {"train": [("a", "zebra"), ("b", "ant"), ("c", "owl")], "test": [("d", "zebra")]}


@pytest.mark.parametrize("kind", KINDS)
def test_booleans_are_two_classes(tmp_path: Path, kind: str) -> None:
    rows = [row("a", True), row("b", False), row("c", True)]
    examples = checked(a_task(tmp_path, rows, rows, kind))
    assert (names_of(examples), examples.classes["t"].kind) == (("false", "true"), "true and false")
    assert contents(examples)["test"] == [("a", "true"), ("b", "false"), ("c", "true")]


def test_booleans_of_different_formats_are_the_same_classes(tmp_path: Path) -> None:
    task = a_task(tmp_path, [row("a", True), row("b", False)], GOOD)
    task.data_files["test"] = [
        write(tmp_path / "t.json", '{"text": "c", "label": "TRUE"}\n{"text": "d", "label": false}')
    ]
    assert contents(checked(task))["test"] == [("c", "true"), ("d", "false")]


@pytest.mark.parametrize("kind", KINDS)
def test_dates_and_texts_of_digits_are_strings(tmp_path: Path, kind: str) -> None:
    rows = [row("123", "2021-01-01"), row("0456", "2021-02-01")]
    assert contents(checked(a_task(tmp_path, rows, rows, kind)))["test"] == [
        ("123", "2021-01-01"),
        ("0456", "2021-02-01"),
    ]


def test_numbers_beside_holes_in_parquet_are_those_of_csv(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": [1.0, None, 2.0]})
    task = a_task(tmp_path, table, table, "parquet")
    examples = checked(task)
    assert names_of(examples) == ("1", "2")
    assert contents(examples)["train"] == [("a", "1"), ("c", "2")]
    assert examples.missing == {"t": {"train": 1, "test": 1}}


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.float16(), pa.float64()], ids=str)
def test_labels_of_every_arrow_type_of_numbers_are_accepted(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": ["a", "b"], "label": pa.array(np.array([1, 0], kind.to_pandas_dtype()), kind)})
    assert contents(checked(a_task(tmp_path, table, table, "parquet")))["test"] == [("a", "1"), ("b", "0")]


def test_integers_of_any_size_are_classes(tmp_path: Path) -> None:
    rows = [row("a", 7_000_000_000), row("b", -1), row("c", 2**63)]
    examples = checked(a_task(tmp_path, rows, rows))
    assert names_of(examples) == ("-1", "7000000000", str(2**63))


NAMED: dict[str, tuple[Any, Any, Rows, list[str]]] = {
    "strings in another order": (
        ["zebra", "ant"],
        ["zebra", "ant"],
        [row("a", "ant"), row("b", "zebra")],
        ["ant", "zebra"],
    ),
    "numbers": ([5, 1], ["5", "1"], [row("a", 1), row("b", 5)], ["1", "5"]),
    "numbers written as floats": ([5, 1], ["5", "1"], [row("a", 1.0), row("b", 5.0)], ["1", "5"]),
    "numbers with names": ({0: "low", 1: "high"}, ["low", "high"], [row("a", 1), row("b", 0)], ["high", "low"]),
    "fractional numbers": ([0.5, 1.0], ["0.5", "1.0"], [row("a", 1.0), row("b", 0.5)], ["1.0", "0.5"]),
    "booleans with names": (
        {False: "no", True: "yes"},
        ["no", "yes"],
        [row("a", True), row("b", False)],
        ["yes", "no"],
    ),
    "booleans as CSV has them": (
        [True, False],
        ["true", "false"],
        [row("a", "True"), row("b", "FALSE")],
        ["true", "false"],
    ),
    "leading zeros": (["007", "08"], ["007", "08"], [row("a", "08"), row("b", "007")], ["08", "007"]),
}


@pytest.mark.parametrize("case", NAMED)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_the_recipe_are_values_in_the_data(tmp_path: Path, kind: str, case: str) -> None:
    labels, names, rows, expected = NAMED[case]
    examples = checked(a_task(tmp_path, rows, rows, kind, labels=labels))
    assert names_of(examples) == tuple(names)
    assert contents(examples)["test"] == [("a", expected[0]), ("b", expected[1])]
    assert examples.classes["t"].kind == "values of the recipe"


UNNAMED: list[tuple[Any, Any, str]] = [
    (["low", "high"], 1, "; choose from low, high; naming classes by position needs labels: {0: low, 1: high}"),
    (["low", "high"], "hihg", "; did you mean high?"),
    ([1, 2], 3, "; choose from 1, 2"),
    ([1, 2], "01", "; did you mean 1?"),
    ([True, False], "yes", "; choose from true, false; YAML reads yes, no, on and off as true and false: quote them"),
    (
        ["a1", *(f"b{n}" for n in range(20))],
        "xyz",
        f"; choose from a1, {', '.join(f'b{n}' for n in range(9))} and 11 more",
    ),
]


@pytest.mark.parametrize(("labels", "value", "hint"), UNNAMED)
def test_value_that_the_recipe_does_not_name_is_refused_with_its_row(
    tmp_path: Path, labels: Any, value: Any, hint: str
) -> None:
    task = a_task(tmp_path, [row("a", labels[0]), row("b", labels[1]), row("c", value)], labels=labels)
    assert refusal(task) == f"tasks.t: train row 2 (from 0): label '{value}' is not one of the classes{hint}"


def test_fractional_numbers_are_refused_with_the_row(tmp_path: Path) -> None:
    task = a_task(tmp_path, [row("a", 1.0), row("b", 0.5), row("c", 0.25)])
    reason = "is a fractional number; classes are whole numbers or strings, or named by labels in the recipe"
    assert refusal(task) == f"tasks.t: train row 1 (from 0): label 0.5 {reason}; 1 more like it"
    later = a_task(tmp_path, GOOD, [*GOOD, row("b", 0.5)])
    assert refusal(later).startswith("tasks.t: test row 2 (from 0): label 0.5 is a fractional number")


@pytest.mark.parametrize("label", [0, "x", True])
def test_single_class_is_refused(tmp_path: Path, label: Any) -> None:
    task = a_task(tmp_path, [row("a", label), row("b", label)], [row("c", label)])
    name = str(label).lower()
    message = f"tasks.t.label: all training rows have the label '{name}'; a task has at least two classes"
    assert refusal(task) == message


@pytest.mark.parametrize(("label", "hint"), [("goood", "did you mean good?"), (9, "choose from bad, good")])
def test_label_missing_from_the_training_split_is_refused(tmp_path: Path, label: Any, hint: str) -> None:
    task = a_task(tmp_path, [row("a", "bad"), row("b", "good")], [row("c", "bad"), row("d", label), row("e", label)])
    message = f"tasks.t: test row 1 (from 0): label '{label}' is not one of the classes; {hint}; 1 more like it"
    assert refusal(task) == message


def test_label_of_a_skipped_row_is_not_checked(tmp_path: Path) -> None:
    rows = [row("a", "no"), row(" ", "other"), row("b", "yes")]
    examples = checked(a_task(tmp_path, rows, rows), "skip")
    assert names_of(examples) == ("no", "yes")
    assert contents(examples)["test"] == [("a", "no"), ("b", "yes")]


def test_class_index_out_of_range_of_its_names_is_refused(tmp_path: Path) -> None:
    broken = with_class_names(["no", "yes"], ["a", "b"], [0, 1]).data.table
    broken = broken.set_column(1, broken.schema.field("label"), pa.array([0, 2]))
    message = refusal(a_task(tmp_path, broken, GOOD, "parquet"))
    assert message.endswith("row 1 (from 0): column 'label' holds class 2, and there are 2 classes")


def test_labels_that_a_hub_hides_are_missing(tmp_path: Path) -> None:
    train = with_class_names(["no", "yes"], ["a", "b"], [0, 1])
    test = with_class_names(["no", "yes"], ["a", "b"], [-1, -1])
    assert refusal(a_task(tmp_path, train, test, "parquet")) == "tasks.t: the test split has no rows with a label"


def test_identifiers_are_refused_as_classes(tmp_path: Path) -> None:
    rows = [row(f"t{n}", f"id{n}") for n in range(1001)]
    start = "tasks.t.label: 'label' holds 1001 different values in 1001 training rows, which is an identifier"
    assert refusal(a_task(tmp_path, rows, rows[:5])).startswith(start)
    # Not if the classes are declared, or if the rows are enough for so many.
    names = [f"id{n}" for n in range(1001)]
    assert len(names_of(checked(a_task(tmp_path, rows, rows[:5], labels=names)))) == 1001
    assert len(names_of(checked(a_task(tmp_path, rows * 2, rows[:5])))) == 1001


def test_nearly_as_many_classes_as_rows_are_reported(tmp_path: Path) -> None:
    rows = [row(f"t{n}", f"id{n}") for n in range(21)]
    (line,) = checked(a_task(tmp_path, rows, rows[:5])).warnings
    assert line == "tasks.t: 21 classes in 21 training rows; is 'label' a label?"
    assert checked(a_task(tmp_path, rows * 2, rows[:5])).warnings == ()


def test_json_with_labels_of_two_types_has_classes_of_strings(tmp_path: Path) -> None:
    lines = [json.dumps(row("a", 1)), json.dumps(row("b", "1")), json.dumps(row("c", "x"))]
    examples = checked(a_task(tmp_path, "\n".join(lines), [row("d", 1)]))
    assert names_of(examples) == ("1", "x")
    assert contents(examples) == {"train": [("a", "1"), ("b", "1"), ("c", "x")], "test": [("d", "1")]}


@pytest.mark.parametrize("names", [["neg", "pos"], ["1", "2"]])
def test_plain_numbers_beside_class_names_are_refused(tmp_path: Path, names: list[str]) -> None:
    """In a shard that has lost its class names, 0 is an index as likely as a class of its own."""
    write(tmp_path / "part0.parquet", with_class_names(names, ["a", "b"], [0, 1]))
    write(tmp_path / "part1.parquet", [row("c", 0), row("d", 1)])
    task = a_task(tmp_path, GOOD, with_class_names(names, ["e"], [1]), "parquet")
    task.data_files["train"] = [str(tmp_path / "part*.parquet")]
    assert refusal(task).startswith(
        f"tasks.t: train row 2 (from 0): label 0 has no class name, and other rows have the names {', '.join(names)}"
    )
