"""`mtl-dist init`: a recipe that is right for the table, reads well, and is written over nothing."""

import json
from pathlib import Path

import pytest
import yaml

from mtl_dist.cli.main import main
from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.inspection import encoder_choice
from tests.utils.tickets import csv_text, write_tickets
from tests.utils.tiny import SPECIAL, WORDS, tiny_encoder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_encoder(tmp_path_factory.mktemp("encoder"), positions=64))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a cache of its own and nothing of the Hugging Face hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTL_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder_choice, "_cached", list)
    return tmp_path


def recipe_of(path: str = "tickets.yaml") -> Recipe:
    return parse(["--config", path]).recipe


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line of a refusal, after which nothing is written."""
    before = set(Path().iterdir())
    assert main(["init", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert set(Path().iterdir()) == before
    return line.removeprefix("error: ")


def test_a_table_becomes_a_recipe_that_trains(folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_tickets(Path("tickets.csv"), rows=150)
    assert main(["init", "tickets.csv", "--encoder", encoder]) == 0
    out = capsys.readouterr().out
    recipe = recipe_of()
    assert recipe.sources["tickets"].data_files == {"train": ["tickets.csv"]}
    assert recipe.sources["tickets"].text == ["text"]
    assert recipe.sources["tickets"].split.held_out == ("validation", "test")
    assert {name: (task.source, task.label) for name, task in recipe.tasks.items()} == {
        name: ("tickets", name) for name in ("team", "urgency", "mood")
    }
    assert (recipe.model.encoder, recipe.output_dir) == (encoder, "runs/tickets")
    assert [phase.name for phase in recipe.phases] == ["heads", "upper", "all"]
    assert recipe.phases[1].train == ["heads", "blocks[-1:]"]
    assert recipe.data.max_length % 8 == 0
    assert out.splitlines()[-1] == "train with: mtl-dist train tickets.yaml"
    without = sum(not row["mood"] for row in rows)
    assert f"mood      label: strings, 2 classes: calm ({sum(row['mood'] == 'calm' for row in rows)})" in out
    assert f"; {without} rows without" in out
    assert "created   left out: dates or times" in out
    assert main(["data", "tickets.yaml"]) == 0


def test_the_recipe_trains(folder: Path, encoder: str) -> None:
    write_tickets(Path("tickets.csv"), rows=60)
    assert main(["init", "tickets.csv", "--encoder", encoder]) == 0
    assert main(["plan", "tickets.yaml"]) == 0
    assert main(["train", "tickets.yaml", "--engine", "cpu"]) == 0
    assert (folder / "runs" / "tickets" / "summary.json").is_file()


def test_the_recipe_is_valid_by_its_schema_and_within_the_line(folder: Path, encoder: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from mtl_dist.config.json_schema import recipe_json_schema

    write_tickets(Path("tickets.csv"))
    Path("recipe.schema.json").write_text("{}")
    assert main(["init", "tickets.csv", "--encoder", encoder]) == 0
    text = Path("tickets.yaml").read_text()
    jsonschema.validate(yaml.safe_load(text), recipe_json_schema())
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert all(len(line) <= 120 for line in text.splitlines())


def test_nothing_is_written_over(folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_tickets(Path("tickets.csv"), rows=60)
    Path("tickets.yaml").write_text("mine")
    line = refused(capsys, "tickets.csv", "--encoder", encoder)
    assert line == "tickets.yaml: is there already; --to FILE writes the recipe elsewhere"
    assert Path("tickets.yaml").read_text() == "mine"
    assert main(["init", "tickets.csv", "--encoder", encoder, "--to", "other.yaml"]) == 0
    assert recipe_of("other.yaml").output_dir == "runs/other"


@pytest.mark.parametrize(
    "name", ["my tickets.csv", "t[1].csv", "it's {x}, #1: é.csv", "${oc.env:HOME}.csv", "07.csv", "a~.csv"]
)
def test_names_of_files_and_columns_are_read_back(folder: Path, encoder: str, name: str) -> None:
    columns = {"text": "Der Text: [lang]", "team": "Team, {intern} # ${x}", "mood": "no"}
    rows = [{columns.get(key, key): value for key, value in row.items()} for row in write_tickets(Path("x"), rows=80)]
    Path(name).write_text(csv_text(rows, list(rows[0])))
    assert main(["init", name, "--encoder", encoder, "--to", "r.yaml"]) == 0
    recipe = recipe_of("r.yaml")
    (source,) = recipe.sources.values()
    assert (source.data_files, source.text) == ({"train": [name]}, ["Der Text: [lang]"])
    assert [task.label for task in recipe.tasks.values()] == ["Team, {intern} # ${x}", "urgency", "no"]
    assert main(["data", "r.yaml"]) == 0


def test_what_the_file_needs_stands_under_read(folder: Path, encoder: str) -> None:
    write_tickets(Path("tickets.csv"), rows=80, delimiter=";", encoding="cp1252")
    assert main(["init", "tickets.csv", "--encoder", encoder]) == 0
    assert recipe_of().sources["tickets"].read == ReadConfig(encoding="cp1252")
    Path("b.tsv").write_text("".join(f'{label}\t"text {index} of many\n' for index, label in enumerate("xyxyxyxy" * 4)))
    assert main(["init", "b.tsv", "--encoder", encoder]) == 0
    source = recipe_of("b.yaml").sources["b"]
    assert source.read == ReadConfig(delimiter="\t", quotechar=None, header=False)
    assert (source.text, recipe_of("b.yaml").tasks["task_0"].label) == (["1"], "0")


def test_splits_shards_and_several_sources(folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.train.csv", "a.test.csv", "b-1.csv", "b-2.csv"):
        write_tickets(Path(name), rows=80, seed=len(name))
    Path("a.valid.csv").write_text("id,text\n1,no label here\n2,nor here\n")
    words = ["a.train.csv", "a.test.csv", "a.valid.csv", "b-1.csv", "b-2.csv"]
    assert main(["init", *words, "--encoder", encoder]) == 0
    recipe = recipe_of("a.yaml")
    assert recipe.sources["a"].data_files == {"train": ["a.train.csv"], "test": ["a.test.csv"]}
    assert recipe.sources["a"].split.held_out == ("validation",)
    assert recipe.sources["b-1"].data_files == {"train": ["b-1.csv", "b-2.csv"]}
    assert list(recipe.tasks) == [f"{source}_{task}" for source in ("a", "b-1") for task in ("team", "urgency", "mood")]
    assert "a.valid.csv: left out, because it has no values in the column 'team'" in capsys.readouterr().out


def test_kinds_of_labels_and_blank_texts(folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "review": f"This is review {index} of many." if index % 10 else "",
            "stars": 1 + index % 5,
            "good": index % 2 == 0,
        }
        for index in range(100)
    ]
    Path("r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["init", "r.jsonl", "--encoder", encoder]) == 0
    out = capsys.readouterr().out
    assert "stars   label: whole numbers, 5 classes: 1 (20)" in out
    assert "good    label: true and false, 2 classes: true (50), false (50)" in out
    recipe = recipe_of("r.yaml")
    assert recipe.data.empty_text == "skip"
    assert main(["data", "r.yaml"]) == 0
    assert "Classes of stars\n  class  train  validation  test\n  1  " in capsys.readouterr().out


def test_columns_can_be_named(folder: Path, encoder: str) -> None:
    rows = [f"{index % 50},note {index} here,some words {index % 60} long,x{index % 2}" for index in range(200)]
    Path("t.csv").write_text("number,note,other,label\n" + "\n".join(rows))
    words = ["t.csv", "--encoder", encoder, "--text", "other", "--text", "note", "--label", "number"]
    assert main(["init", *words]) == 0
    recipe = recipe_of("t.yaml")
    assert recipe.sources["t"].text == ["other", "note"]
    assert list(recipe.tasks) == ["number"]


IDS = "id,when,price\n" + "".join(f"{index},2024-01-{1 + index % 28:02d},{index / 7:.2f}\n" for index in range(100))
TEXTS = "id,text\n" + "".join(f"{index},a text of {index} words\n" for index in range(100))
NO_TEXT = (
    "t.csv: no column looks like a text: id (whole numbers that are all different, as ids are), when (dates or times),"
    " price (numbers with fractions, which are no classes); name it: --text COLUMN"
)


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (IDS, [], NO_TEXT),
        (
            "text\n" + "some text\nanother text\n" * 5,
            [],
            "t.csv: no column looks like a text: text (label: strings); name",
        ),
        (TEXTS, [], "t.csv: no column looks like a label: id (whole numbers that are all different, as ids are), text"),
        (TEXTS, ["--label", "label"], "--label: no column 'label'; choose from id, text"),
        (TEXTS, ["--text", "txt"], "--text: no column 'txt'; did you mean text?"),
        (TEXTS, ["--text", "text", "--label", "text"], "--label: 'text' is given as text too"),
        (IDS, ["--text", "id", "--label", "price"], "--label: 'price' holds numbers with fractions"),
        ("text,a\nx y,1\nz y,1\n", ["--text", "text", "--label", "a"], "--label: 'a' has 1 value;"),
        ("", [], "t.csv: the file is empty"),
        ("text,label\n", [], "t.csv: has no rows"),
        (TEXTS, ["--encoder", "./none"], "--encoder: there is no folder ./none"),
        (TEXTS, ["--to", "none/r.yaml"], "--to: none is no folder"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_a_line(
    folder: Path, encoder: str, capsys: pytest.CaptureFixture[str], content: str, words: list[str], message: str
) -> None:
    Path("t.csv").write_text(content)
    if "--label" not in words and words:
        words = [*words, "--label", "id"]
    assert refused(capsys, "t.csv", *words).startswith(message)


def test_a_file_that_is_not_there_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "none.csv") == "FILE: there is no file none.csv"


def test_the_encoder_is_one_that_is_there(
    folder: Path, encoder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tickets(Path("tickets.csv"), rows=60)
    monkeypatch.setattr("mtl_dist.cli.init.IS_CHECKOUT", False)
    assert main(["init", "tickets.csv", "--to", "none.yaml"]) == 0
    assert (
        "encoder: roberta-base: none is on this machine; the first start downloads this one" in capsys.readouterr().out
    )
    assert recipe_of("none.yaml").model.encoder == "roberta-base"
    Path("q/assets").mkdir(parents=True)
    Path("q/assets/encoder").symlink_to(encoder)
    Path("q/assets/manifest.json").write_text("{}")
    assert main(["init", "tickets.csv"]) == 0
    model = recipe_of().model
    assert (model.encoder, model.pooling) == ("q/assets/encoder", "mean")


def test_a_tokenizer_decides_on_the_length(folder: Path, encoder: str) -> None:
    words = [word for word in WORDS if word not in SPECIAL]
    rows = [f"{' '.join(words[: 5 + index % 20])} {words[index % 50]},{'xy'[index % 2]}" for index in range(100)]
    Path("t.csv").write_text("text,label\n" + "\n".join(rows))
    assert main(["init", "t.csv", "--encoder", encoder]) == 0
    lengths = sorted(2 + len(row.split(",")[0].split()) for row in rows)
    assert recipe_of("t.yaml").data.max_length == -(-lengths[95] // 8) * 8
