"""Model cards: valid metadata for the hub, and no folder of this machine."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.models.model_card import MOST_LABELS, run_card
from tests.utils.tiny import tiny_recipe

LABELS = {"topic": ("art", "a|b"), "mood": ("0", "1")}
SUMMARY = {f"test/{task}/{name}": value for task in LABELS for name, value in (("accuracy", 0.75), ("macro_f1", 1 / 3))}


def test_the_metadata_are_what_the_hub_reads(tmp_path: Path) -> None:
    card: Any = ModelCard(run_card(tiny_recipe(tmp_path), LABELS, SUMMARY))
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model is None
    assert card.data.get("datasets") is None
    assert [(one.task_name, one.metric_name, one.metric_type, one.metric_value) for one in card.data.eval_results] == [
        ("topic", "topic/accuracy", "accuracy", 0.75),
        ("topic", "topic/macro_f1", "f1", 1 / 3),
        ("mood", "mood/accuracy", "accuracy", 0.75),
        ("mood", "mood/macro_f1", "f1", 1 / 3),
    ]


def test_tasks_labels_figures_and_how_to_load_are_in_the_text(tmp_path: Path) -> None:
    text = run_card(tiny_recipe(tmp_path), LABELS, SUMMARY)
    assert "| topic | `art`, `a\\|b` | 0.7500 | 0.3333 |" in text
    assert "MultitaskTransformer.from_pretrained(FOLDER)" in text


def test_the_recipe_in_it_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, f"data.cache_dir={tmp_path}/cache", "seed=77", f"cache.folder={tmp_path}")
    text = run_card(recipe, LABELS, {})
    assert str(tmp_path.parent) not in text
    written = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "again.yaml").write_text(written)
    again = parse(["--config", str(tmp_path / "again.yaml")]).recipe
    assert (again.seed, again.phases, again.optimizer) == (77, recipe.phases, recipe.optimizer)
    assert again.tasks["mood"].data_files["test"] == ["mood.test.json"]


def test_what_came_from_the_hub_is_named(tmp_path: Path) -> None:
    recipe: Recipe = tiny_recipe(tmp_path)
    model = recipe.model.model_copy(update={"encoder": "roberta-base"})
    origin = {"path": "owner/moods", "name": "big", "data_files": {}}
    tasks = {"mood": recipe.tasks["mood"].model_copy(update=origin)}
    named = recipe.model_copy(update={"model": model, "tasks": tasks})
    card: Any = ModelCard(run_card(named, {"mood": ("0", "1")}, SUMMARY))
    assert card.data.base_model == "roberta-base"
    assert card.data.get("datasets") == ["owner/moods"]
    assert {(one.dataset_name, one.dataset_config) for one in card.data.eval_results} == {("owner/moods", "big")}


def test_a_source_that_tasks_share_is_shown_as_theirs_and_without_its_folder(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        *(
            f"sources.pairs={{path: csv, data_files: {tmp_path}/x/pairs.csv, text: [p, q]}}",
            "sources.pairs.split.test=0.2",
        ),
        *("sources.moods={path: owner/moods, name: big}", "tasks={pair: {source: pairs}, more: {source: moods}}"),
        "tasks.hub={source: moods, text: [p, q]}",
    )
    names = ("x", "y")
    labels = {"pair": names, "more": names, "hub": names}
    text = run_card(recipe, labels, {f"test/{task}/accuracy": 0.5 for task in labels})
    card: Any = ModelCard(text)
    assert card.data.get("datasets") == ["owner/moods"]
    assert [(one.dataset_type, one.dataset_name, one.dataset_config) for one in card.data.eval_results] == [
        ("csv", "pair", "pair"),
        ("owner/moods", "owner/moods", "big"),
        ("owner/moods", "owner/moods", "big"),
    ]
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith(("| pair", "| more", "| hub"))] == [
        "| pair (pair)",
        "| more",
        "| hub (pair)",
    ]
    assert str(tmp_path.parent) not in text
    (tmp_path / "again.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    again = parse(["--config", str(tmp_path / "again.yaml")]).recipe
    assert again.sources["pairs"].data_files == {"train": ["pairs.csv"]}
    assert {task: again.tasks[task] for task in labels} == {task: recipe.tasks[task] for task in labels}


def test_a_card_of_many_classes_is_short(tmp_path: Path) -> None:
    names = [f"department {index}" for index in range(2000)]
    recipe = tiny_recipe(tmp_path)
    tasks = {"topic": recipe.tasks["topic"].model_copy(update={"labels": dict(zip(names, names, strict=True))})}
    text = run_card(recipe.model_copy(update={"tasks": tasks}), {"topic": names}, SUMMARY)
    assert f"`{names[MOST_LABELS - 1]}` and 1,980 more, in config.json |" in text
    assert "... and 1,980 more" in text.split("```yaml\n")[1]
    assert names[MOST_LABELS] not in text
    assert len(text) < 10_000
