"""The page of one run as a reader and a browser see it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.report.page import page_of_run, page_of_runs, write_report
from mtl_dist.report.records import read_run
from tests.utils.report_folders import (
    DIGESTS,
    LABELS,
    TASKS,
    lines_of_run,
    recipe_of_run,
    setup_of_run,
    summary_of_run,
    write_run,
)
from tests.utils.report_pages import Node, cells, parsed

HOSTILE = "<script>alert('1')</script>"
SECTIONS = [
    "Results",
    "Training",
    "Tasks",
    "Learning rates",
    "What trained",
    "Confusion",
    "Throughput",
    "Plan",
    "Events",
    "Recipe",
    "Environment",
]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def page_in(folder: Path) -> Node:
    return parsed(page_of_run(read_run(folder)))


@pytest.fixture
def finished(tmp_path: Path) -> Node:
    return page_in(write_run(tmp_path / "a run"))


def test_a_page_has_all_sections_and_links_to_each(finished: Node) -> None:
    assert [node.text for node in finished.all("h2")] == SECTIONS
    for link in finished.first("nav").all("a"):
        assert finished.by_id(link.attributes["href"].removeprefix("#")).first("h2").text == link.text
    assert finished.first("title").text == "a run \N{MIDDLE DOT} mtl_dist"
    assert finished.first("h1").text == "a run finished"


def test_a_page_loads_nothing_and_links_to_nothing_elsewhere(tmp_path: Path) -> None:
    text = page_of_run(read_run(write_run(tmp_path / "run")))
    root = parsed(text)
    for node in root.walk():
        assert not node.attributes.keys() & {"src", "srcset", "data", "action", "onclick", "onload"}, node
        assert node.attributes.get("href", "#").startswith("#")
        assert node.name not in {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"url\(|@import|//(?!www\.w3\.org/2000/svg)\w+\.\w+", text)
    policy = next(node for node in root.all("meta") if "http-equiv" in node.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'; ")


def test_figures_are_those_of_the_test_split(finished: Node) -> None:
    summary = summary_of_run()
    figures = ("accuracy", "macro_f1", "loss")
    expected = [[f"{summary[f'test/{task}/{name}']:.4f}" for name in figures] for task in TASKS]
    means = [sum(summary[f"test/{task}/{name}"] for task in TASKS) / 2 for name in figures]
    rows = cells(finished.by_id("results"))
    assert [row[0] for row in rows] == [*TASKS, "mean"]
    assert [row[1:4] for row in rows] == [*expected, [f"{mean:.4f}" for mean in means]]
    assert [row[4:] for row in rows[:2]] == [["16", "3"], ["16", "2"]]


def test_charts_have_the_numbers_of_the_lines(finished: Node) -> None:
    lines = [line for line in lines_of_run() if "train/loss" in line]
    (read_out,) = (json.loads(one.text) for one in finished.by_id("training").all("script"))
    assert read_out["total"] == 8
    (loss,) = read_out["lines"]
    assert loss["x"] == [line["step"] for line in lines]
    assert loss["y"] == pytest.approx([line["train/loss"] for line in lines], rel=1e-4)
    cards = finished.by_id("tasks").all("article")
    assert [card.first("h3").text for card in cards] == list(TASKS)
    for card, task in zip(cards, TASKS, strict=True):
        losses, figures = (json.loads(one.text)["lines"] for one in card.all("script"))
        assert [line["n"] for line in losses + figures] == ["train", "validation", "accuracy", "macro-F1"]
        assert losses[0]["y"] == pytest.approx([line[f"train/{task}/loss"] for line in lines], rel=1e-4)
        measured = [line for line in lines_of_run() if f"eval/{task}/accuracy" in line]
        assert figures[0]["x"] == [line["step"] for line in measured]
        assert figures[0]["y"] == pytest.approx([line[f"eval/{task}/accuracy"] for line in measured], rel=1e-4)


def test_learning_rates_are_drawn_once_for_units_that_share_them(finished: Node) -> None:
    lines = json.loads(finished.by_id("learning-rates").first("script").text)["lines"]
    assert [line["n"] for line in lines] == ["2 heads", "embeddings blocks[0:2]"]
    assert lines[1]["x"] == [5, 6, 7, 8]


def test_matrices_have_the_labels_and_counts_of_the_end_and_of_boundaries(finished: Node) -> None:
    cards = finished.by_id("confusion").all("article")
    for card, task in zip(cards, TASKS, strict=True):
        end, boundary = card.all("table")
        for table, line, split in ((end, lines_of_run()[-1], "test"), (boundary, lines_of_run()[4], "eval")):
            counts = {(label, other): count for label, other, count in line[f"{split}/{task}/confusion"]}
            size = range(len(LABELS[task]))
            expected = [[LABELS[task][row], *(str(counts.get((row, column), 0)) for column in size)] for row in size]
            assert [row[:-1] for row in cells(table)] == expected
        assert card.first("h4").text == "after step 4"


def test_the_plan_has_phases_and_passes(finished: Node) -> None:
    phases, draws = finished.by_id("plan").all("table")
    assert [row[:5] for row in cells(phases)] == [
        ["heads", "1\N{EN DASH}4", "4", "heads.topic heads.mood", "10 (10.0%)"],
        ["all", "5\N{EN DASH}8", "4", "embeddings blocks[0:2] heads.topic heads.mood", "100 (100.0%)"],
    ]
    assert cells(draws) == [[task, "48", "24 (0.50)", "24 (0.50)", "48 (1.00)"] for task in TASKS]


def test_shared_rows_have_the_draws_of_their_pool_and_labels_of_each_task(tmp_path: Path) -> None:
    setup = setup_of_run()
    setup["pools"] = {"tickets": {"tasks": list(TASKS), "rows": 48}}
    setup["tasks"]["mood"] |= {"rows": {"train": 40, "test": 13}, "missing": {"train": 8, "test": 3}}
    root = page_in(write_run(tmp_path / "run", setup=setup))
    _, draws, labels = root.by_id("plan").all("table")
    assert cells(draws) == [["tickets for topic, mood", "48", "24 (0.50)", "24 (0.50)", "48 (1.00)"]]
    assert cells(labels) == [["topic", "48, 0", "12, 0", "16, 0"], ["mood", "40, 8", "0, 0", "13, 3"]]
    results = cells(root.by_id("results"))
    assert [row[4] for row in results[:2]] == ["16", "13 3 without a label"]


def test_the_recipe_is_there_word_for_word(finished: Node, tmp_path: Path) -> None:
    text = (tmp_path / "a run" / "recipe.yaml").read_text()
    assert finished.by_id("recipe").first("pre").text.strip() == text.strip()


def test_the_environment_has_versions_and_digests(finished: Node) -> None:
    rows = dict(cells(finished.by_id("environment")))
    assert rows["torch"] == "2.13"
    assert rows["digest of the data"] == DIGESTS["data"]
    assert rows["digest of the final parameters"] == summary_of_run()["params_sha256"]


def test_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    """A label, a task, a phase, the encoder and the folder are all named like markup."""
    recipe, setup, summary = recipe_of_run(), setup_of_run(), summary_of_run()
    text = json.dumps([recipe, setup, summary, lines_of_run()]).replace('"sea"', json.dumps(HOSTILE))
    # The name of a task is a part of keys, which a slash would split.
    name = "<script>alert(2)"
    text = text.replace('"somewhere/encoder"', json.dumps(HOSTILE)).replace("mood", name)
    recipe, setup, summary, lines = json.loads(text.replace('"heads"', '"</style><b>"'))
    folder = write_run(tmp_path / "<i>", recipe=recipe, lines=lines, setup=setup, summary=summary)
    plain = write_run(tmp_path / "plain")
    for root, reference in (
        (page_in(folder), page_in(plain)),
        (
            parsed(page_of_runs([read_run(folder), read_run(plain)])),
            parsed(page_of_runs([read_run(plain), read_run(folder)])),
        ),
    ):
        scripts = [node.attributes for node in root.all("script")]
        assert scripts == [node.attributes for node in reference.all("script")]
        assert scripts[-1] == {}
        assert all(one == {"type": "application/json"} for one in scripts[:-1])
        assert root.all("script")[-1].text == reference.all("script")[-1].text
        assert root.first("style").text == reference.first("style").text
        assert {node.name for node in root.walk()} == {node.name for node in reference.walk()}
        assert name in root.text
    assert HOSTILE in page_in(folder).by_id("confusion").text


def test_an_unfinished_run_says_so_and_shows_what_is_logged(tmp_path: Path) -> None:
    lines = [line for line in lines_of_run() if line["step"] <= 5]
    root = page_in(write_run(tmp_path / "run", lines=lines, summary=None))
    assert root.first("h1").text == "run unfinished"
    (alert,) = root.by_class("alert")
    assert alert.text.startswith("This run is not finished: 5 of 8 steps (62%) are logged.")
    assert "after step 4" in root.by_id("results").first("p").text
    assert "as planned" in root.by_id("plan").text


@pytest.mark.parametrize("without", [("setup",), ("setup", "summary"), ("setup", "summary", "lines"), ("lines",)])
def test_a_page_is_made_whatever_files_are_missing(tmp_path: Path, without: tuple[str, ...]) -> None:
    settings: dict[str, Any] = {name: [] if name == "lines" else None for name in without}
    root = page_in(write_run(tmp_path / "run", **settings))
    assert [node.text for node in root.all("h2")][:5] == SECTIONS[:5]


def test_events_are_in_the_order_of_steps(tmp_path: Path) -> None:
    setup, lines = setup_of_run(), lines_of_run()
    setup["starts"].append({**setup["starts"][0], "step": 3, "world_size": 2, "engine": "fsdp2"})
    setup["phases"][1] |= {"stop": 20, "until": {"metric": "mood/loss", "condition": "it is enough"}}
    for line in lines:
        if line["step"] >= 6 and "train/loss" in line:
            line["optim/nonfinite_steps"] = min(line["step"], 7) - 5
    lines.insert(7, {"step": 7, "phase": "all", "safety/rolled_back_to": 4})
    root = page_in(write_run(tmp_path / "run", setup=setup, lines=lines))
    assert cells(root.by_id("events")) == [
        ["0", "started on 1 process (single, cpu), 2026-01-02 03:04:05 UTC"],
        ["3", "resumed on 2 processes (fsdp2, cpu), 2026-01-02 03:04:05 UTC"],
        ["7", "2 steps were skipped, their gradient was not finite"],
        ["7", "back to the weights of step 4"],
        ["8", "phase all ended early: mood/loss improved no more"],
        ["8", "finished"],
    ]
    marks = [node.first("title").text for node in root.by_id("training").by_class("mark") if node.all("title")]
    assert marks == ["resumed after step 3", "after step 7 back to the weights of step 4"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_runs_the_script_of_the_page(tmp_path: Path) -> None:
    """The policy allows exactly this script: with a digest that does not match, the button would be missing."""
    path = write_report(write_run(tmp_path / "run"))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *options, "--disable-sync", profile, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert ">light / dark</button>" in done.stdout
    assert "Content Security Policy" not in done.stderr
