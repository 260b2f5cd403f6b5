"""Labels, files and the way of reading them, in the forms in which recipes give them, and their merging."""

from pathlib import Path
from typing import Any

import pytest

from mtl_dist.config.data_recipe import ReadConfig, SplitConfig, value_text
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import UserError

BASE = """
sources:
  t: {path: csv, data_files: {train: t.csv, test: [u.csv, v.csv]}, split: {validation: 0.1}, read: {delimiter: ";"}}
tasks:
  a: {source: t, labels: {0: low, 1: high}, text: [title, body]}
  b: {source: t, label: x, labels: [p, q]}
"""


def read(tmp_path: Path, *layers: str) -> Recipe:
    """The recipe from BASE with more files (those with a colon and no `=`) and overrides."""
    (tmp_path / "0.yaml").write_text(BASE)
    arguments = ["--config", str(tmp_path / "0.yaml")]
    for number, layer in enumerate(layers, 1):
        if "=" in layer:
            arguments.append(layer)
        else:
            (tmp_path / f"{number}.yaml").write_text(layer)
            arguments += ["--config", str(tmp_path / f"{number}.yaml")]
    return parse(arguments).recipe


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ("[low, high]", {"low": "low", "high": "high"}),
        ("[0, 1]", {"0": "0", "1": "1"}),
        ("[2, 0.5, -1]", {"2": "2", "0.5": "0.5", "-1": "-1"}),
        ('["007", "7"]', {"007": "007", "7": "7"}),
        ("[2021-01-01, 1.5.2]", {"2021-01-01": "2021-01-01", "1.5.2": "1.5.2"}),
        ("[true, false]", {"true": "true", "false": "false"}),
        ("[no, yes]", {"false": "false", "true": "true"}),  # what YAML reads, without quotes
        ('["no", "yes"]', {"no": "no", "yes": "yes"}),
        ('["False", "True"]', {"False": "False", "True": "True"}),
        ("{1: high, 0: low}", {"1": "high", "0": "low"}),
        ("{high: 1, low: 0.5}", {"high": "1", "low": "0.5"}),
        ("{yes: 1, no: 0}", {"true": "1", "false": "0"}),
        ("{a: no, b: yes}", {"a": "false", "b": "true"}),
        ("{a: b, b: a}", {"a": "b", "b": "a"}),
        ("null", None),
    ],
)
def test_labels_are_values_and_names_in_the_order_of_the_classes(
    tmp_path: Path, labels: str, classes: dict[str, str] | None
) -> None:
    for layer in (f"tasks: {{b: {{labels: {labels}}}}}", f"tasks.b.labels={labels}", f"tasks.b={{labels: {labels}}}"):
        found = read(tmp_path, layer).tasks["b"].labels
        assert (found and list(found.items())) == (classes and list(classes.items()))


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (False, "false"), (1, "1"), (1.0, "1.0"), ("True", "True")]
)
def test_a_value_as_text(value: Any, text: str) -> None:
    assert value_text(value) == text


def test_a_name_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "7")
    assert read(tmp_path, "tasks.b.labels={x: '${oc.env:NAME}', y: z}").tasks["b"].labels == {"x": "7", "y": "z"}


FILES = {"train": ["t.csv"], "test": ["u.csv", "v.csv"]}


@pytest.mark.parametrize(
    ("layer", "files"),
    [
        ("sources: {t: {data_files: {test: w.csv}}}", FILES | {"test": ["w.csv"]}),
        ("sources: {t: {data_files: {test: [w.csv]}}}", FILES | {"test": ["w.csv"]}),
        ("sources.t.data_files.test=w.csv", FILES | {"test": ["w.csv"]}),
        ("sources.t.data_files.test=[w.csv, x.csv]", FILES | {"test": ["w.csv", "x.csv"]}),
        ("sources.t.data_files.test.1=w.csv", FILES | {"test": ["u.csv", "w.csv"]}),
        ("sources.t.data_files={test: w.csv}", FILES | {"test": ["w.csv"]}),
        ("sources: {t: {data_files: w.csv, split: {test: 0.1}}}", {"train": ["w.csv"]}),
        ("sources: {t: {data_files: [w.csv, x.csv], split: {test: 0.1}}}", {"train": ["w.csv", "x.csv"]}),
        ("sources.t={data_files: w.csv, split: {test: 0.1}}", {"train": ["w.csv"]}),
    ],
)
def test_files_of_a_later_layer(tmp_path: Path, layer: str, files: dict[str, list[str]]) -> None:
    """A mapping is merged split by split; a file or a list replaces all of them."""
    source = read(tmp_path, layer).sources["t"]
    assert source.data_files == files
    assert (source.path, source.read.delimiter, source.split.validation) == ("csv", ";", 0.1)


@pytest.mark.parametrize("layer", ["sources.t.data_files=w.csv", "sources.t.data_files=[w.csv]"])
def test_a_file_by_override_replaces_the_files_of_all_splits(tmp_path: Path, layer: str) -> None:
    assert read(tmp_path, layer, "sources.t.split.test=0.1").sources["t"].data_files == {"train": ["w.csv"]}
    assert read(tmp_path, layer, "sources.t.data_files.test=x.csv").sources["t"].data_files == {
        "train": ["w.csv"],
        "test": ["x.csv"],
    }


def test_files_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    files = read(tmp_path, "sources.t.data_files={train: '${oc.env:DATA}/a.csv', test: '${oc.env:DATA}'}").sources["t"]
    assert files.data_files == {"train": ["/data/a.csv"], "test": ["/data"]}
    whole = read(tmp_path, "sources.t.data_files=${oc.env:DATA}", "sources.t.split.test=0.1").sources["t"]
    assert whole.data_files == {"train": ["/data"]}


@pytest.mark.parametrize("labels", ["[x, y, z]", "{x: x, y: y, z: z}"])
def test_labels_of_a_later_layer_replace_all_earlier_ones(tmp_path: Path, labels: str) -> None:
    for layer in (f"tasks: {{a: {{labels: {labels}}}}}", f"tasks.a.labels={labels}", f"tasks.a={{labels: {labels}}}"):
        assert read(tmp_path, layer).tasks["a"].labels == {"x": "x", "y": "y", "z": "z"}
    assert read(tmp_path, "tasks.a.labels=null").tasks["a"].labels is None
    other = read(tmp_path, "tasks: {a: {weight: 2}}", "tasks.b.weight=3", "tasks.a.missing=error")
    assert (other.tasks["a"].labels, other.tasks["b"].labels) == ({"0": "low", "1": "high"}, {"p": "p", "q": "q"})


def test_one_class_is_renamed_by_its_value(tmp_path: Path) -> None:
    assert read(tmp_path, "tasks.a.labels.1=big").tasks["a"].labels == {"0": "low", "1": "big"}


@pytest.mark.parametrize(("text", "columns"), [("body", ["body"]), ("[p, q]", ["p", "q"]), ("null", None)])
def test_text_of_a_later_layer_replaces_the_earlier_one(tmp_path: Path, text: str, columns: list[str] | None) -> None:
    for layer in (f"tasks: {{a: {{text: {text}}}}}", f"tasks.a.text={text}"):
        assert read(tmp_path, layer).tasks["a"].text == columns


def test_shares_by_override(tmp_path: Path) -> None:
    split = read(tmp_path, "sources.t.split.validation=0.3", "sources.t.split.by=customer").sources["t"].split
    assert split == SplitConfig(validation=0.3, by="customer")
    assert read(tmp_path, "sources.t.split.validation=null").sources["t"].split == SplitConfig()
    other = read(tmp_path, "sources.t.data_files=t.csv", "sources.t.split.test=0.3").sources["t"].split
    assert other == SplitConfig(validation=0.1, test=0.3)


def test_by_may_stand_in_another_file_than_the_shares(tmp_path: Path) -> None:
    layers = ["sources: {t: {split: {validation: null, by: x}}}", "sources: {t: {split: {validation: 0.2}}}"]
    assert read(tmp_path, *layers).sources["t"].split == SplitConfig(validation=0.2, by="x")


@pytest.mark.parametrize(
    ("written", "delimiter"),
    [
        ('"|"', "|"),
        (";", ";"),
        ("\\t", "\t"),
        ("'\\t'", "\t"),
        ('"\\t"', "\t"),
        ("tab", "\t"),
        ("null", None),
        ("ä", "ä"),
    ],
)
def test_delimiters_as_people_write_them(tmp_path: Path, written: str, delimiter: str | None) -> None:
    for layer in (f"sources: {{t: {{read: {{delimiter: {written}}}}}}}", f"sources.t.read.delimiter={written}"):
        assert read(tmp_path, layer).sources["t"].read == ReadConfig(delimiter=delimiter)


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-8-sig", "cp1252", "latin-1", "utf-16", "shift_jis"])
def test_known_encodings(encoding: str) -> None:
    assert ReadConfig(encoding=encoding).encoding == encoding


def test_a_task_of_a_file_gets_rows_of_its_own_by_overrides(tmp_path: Path) -> None:
    task = read(tmp_path, "tasks.b.source=null", "tasks.b.path=hub/b").tasks["b"]
    assert (task.source, task.path, task.label) == (None, "hub/b", "x")


def test_building_a_recipe_in_code_takes_the_short_forms_too() -> None:
    content: dict[str, Any] = {"path": "csv", "data_files": "a.csv", "labels": ["x", "y"], "text": "body"}
    task = Recipe.model_validate({"tasks": {"a": content}}).tasks["a"]
    assert (task.data_files, task.labels, task.text) == ({"train": ["a.csv"]}, {"x": "x", "y": "y"}, ["body"])
    assert task.model_dump()["data_files"] == {"train": ["a.csv"]}


MISTAKES = [
    ("tasks: {a: {labels: 5}}", "tasks.a.labels: 5 is not a list of values, or a mapping of values to "),
    ("tasks: {a: {labels: x}}", "tasks.a.labels: 'x' is not a list of values, or a mapping of "),
    ("tasks: {a: {labels: '${seed}'}}", "tasks.a.labels: '${seed}' is not a list of values, or a mapping of "),
    ("tasks: {a: {labels: [[a], b]}}", "tasks.a.labels[0]: ['a'] is not text or a number"),
    ("tasks: {a: {labels: [a, null]}}", "tasks.a.labels[1]: null is not text or a number"),
    ("tasks: {a: {labels: [a, .nan]}}", "tasks.a.labels[1]: nan is not text or a number"),
    ("tasks: {a: {labels: [a, .inf]}}", "tasks.a.labels[1]: inf is not text or a number"),
    ("tasks: {a: {labels: {.nan: a, b: c}}}", "tasks.a.labels.nan: nan is not text or a number"),
    ("tasks: {a: {labels: [a, ' ']}}", "tasks.a.labels[1]: ' ' is blank; such a label is a missing one"),
    ("tasks: {a: {labels: [a, '${seed}']}}", "tasks.a.labels[1]: '${seed}' is an interpolation, and values "),
    ("tasks: {a: {labels: {'${seed}': a, b: c}}}", "tasks.a.labels.${seed}: '${seed}' is an interpolation"),
    ("tasks: {a: {labels: [a, b, a]}}", "tasks.a.labels: 'a' stands twice"),
    ("tasks: {a: {labels: [1, b, '1']}}", "tasks.a.labels: '1' stands twice"),
    ("tasks: {a: {labels: [true, b, 'true']}}", "tasks.a.labels: 'true' stands twice"),
    ("tasks: {a: {labels: {a: [x], b: y}}}", "tasks.a.labels.a: ['x'] is not text"),
    ("tasks: {a: {labels: {a: {b: c}}}}", "tasks.a.labels.a: {'b': 'c'} is not text"),
    ("tasks: {a: {labels: {a: x, b: null}}}", "tasks.a.labels.b: null is not text"),
    ("tasks: {a: {labels: {0: a, 1: b, true: c}}}", "line 1: 1 and true are one key"),
    ("tasks: {a: {labels: {1: a, 1.0: b, 2: c}}}", "line 1: 1 and 1.0 are one key"),
    ("tasks: {a: {labels: {1: a, '1': b}}}", "tasks.a.labels.1: Conflicting integer and string keys: 1 "),
    ("tasks: {a: {labels: {null: a, b: c}}}", "tasks.a.labels: Incompatible key type 'NoneType'"),
    ("tasks: {a: {data_files: 5}}", "tasks.a.data_files: 5 is not a file, a list of files, or a mapping of "),
    ("tasks: {a: {data_files: null}}", "tasks.a.data_files: null is not a file, a list of files, or a "),
    ("tasks: {a: {data_files: [a, 5]}}", "tasks.a.data_files[1]: 5 is not text; quote it"),
    ("tasks: {a: {data_files: [[a]]}}", "tasks.a.data_files[0]: ['a'] is not text"),
    ("tasks: {a: {data_files: {train: 5}}}", "tasks.a.data_files.train: 5 is not a list of text or a single "),
    ("tasks: {a: {data_files: {train: [a, [b]]}}}", "tasks.a.data_files.train[1]: ['b'] is not text"),
    ("tasks: {a: {data_files: {train: {a: b}}}}", "tasks.a.data_files.train: {'a': 'b'} is not a list of "),
    ("tasks: {a: {data_files: {1: a}}}", "tasks.a.data_files.1: the key 1 is not text; quote it"),
    ("tasks: {a: {data_files: {yes: a}}}", "tasks.a.data_files.True: the key True is not text; quote it"),
    ("tasks: {a: {data_files: ''}}", "tasks.a.data_files: empty; name a file"),
    ("tasks: {a: {data_files: []}}", "tasks.a.data_files: empty; name a file"),
    ("tasks: {a: {data_files: {train: [a, '']}}}", "tasks.a.data_files.train: empty; name a file"),
    ("tasks: {a: {text: 5}}", "tasks.a.text: 5 is not a list of text or a single text"),
    ("tasks: {a: {text: [a, 5]}}", "tasks.a.text[1]: 5 is not text; quote it"),
    ("tasks: {a: {missing: drop}}", "tasks.a.missing: 'drop' is not one of skip, error"),
    ("tasks: {a: {read: csv}}", "tasks.a.read: 'csv' is not a mapping"),
    ("tasks: {a: {read: {delimiter: 5}}}", "tasks.a.read.delimiter: 5 is not text; quote it"),
    ("tasks: {a: {read: {encoding: null}}}", "tasks.a.read.encoding: null is not text"),
    ("tasks: {a: {read: {header: 0}}}", "tasks.a.read.header: 0 is not true or false"),
    ("tasks: {a: {read: {skiprows: 1}}}", "tasks.a.read.skiprows: unknown key; choose from delimiter, "),
    ("tasks: {a: {split: 0.2}}", "tasks.a.split: 0.2 is not a mapping"),
    ("tasks: {a: {split: {test: 20%}}}", "tasks.a.split.test: '20%' is not a number"),
    ("sources: {s: null}", "sources.s: null is not a mapping"),
    ("sources: [s]", "sources: ['s'] is not a mapping"),
    ("sources: {s: {labels: [a, b]}}", "sources.s.labels: unknown key"),
    ("sources: {s: {data_files: [[a]]}}", "sources.s.data_files[0]: ['a'] is not text"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_mistake_in_a_file(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / '1.yaml'}: {expected}")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("[x]", "1 given; a task has at least two classes"),
        ("[]", "0 given; a task has at least two classes"),
        ("{a: x, b: x}", "'x' stands twice"),
        ("{a: 1, b: '1'}", "'1' stands twice"),
    ],
)
def test_classes_are_two_at_least_and_have_different_names(tmp_path: Path, labels: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, f"tasks: {{a: {{labels: {labels}}}}}")
    assert str(error.value) == f"tasks.a.labels: {expected}"
