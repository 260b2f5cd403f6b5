"""The recipe of the seed design, with local substitutes for the data sets and the encoder on the hub."""

from pathlib import Path

import datasets
import pytest

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.data.dataset import prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.schedule.phases import compile_schedule
from mtl_dist.training.build import check_encoder
from tests.utils.tiny import MOODS, TOPICS, tiny_encoder

SEED = Path(__file__).parents[3] / "recipes" / "seed.yaml"


def write_hub_folder(folder: Path, config: str, text: str, names: tuple[str, ...]) -> None:
    """A data set as stored on the hub: parquet files, class names in the features, configurations in the README."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    for split, rows in (("train", 40), ("validation", 8), ("test", 8)):
        columns = {
            "text": [f"{text}{row % 8} {split} {row}" for row in range(rows)],
            "label": [row % len(names) for row in range(rows)],
        }
        datasets.Dataset.from_dict(columns, features).to_parquet(folder / config / f"{split}.parquet")
    readme = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
    readme += "".join(f"  - split: {split}\n    path: {config}/{split}.parquet\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"{readme}---\n")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    tiny_encoder(tmp_path / "roberta-base", "roberta", layers=12)
    write_hub_folder(tmp_path / "ag_news", "default", "cat", TOPICS)
    write_hub_folder(tmp_path / "tweet_eval", "sentiment", "good", MOODS)
    return tmp_path


def test_the_seed_recipe_is_the_seeds() -> None:
    recipe = parse(["--config", str(SEED)]).recipe
    assert recipe.model.encoder == "roberta-base"
    assert (recipe.model.pooling, recipe.model.dropout) == ("first_token", 0.1)
    assert [(task.path, task.name) for task in recipe.tasks.values()] == [
        ("ag_news", None),
        ("tweet_eval", "sentiment"),
    ]
    assert recipe.optimizer == OptimizerConfig(lr=2e-5, head_lr_multiplier=5, weight_decay=0.01, warmup_steps=500)
    assert recipe.optimizer.max_grad_norm == 1.0
    assert recipe.batch_size == 8


def test_it_loads_and_compiles(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)  # hub ids are folders there
    recipe = parse(["--config", str(SEED), "data.max_length=30", f"data.cache_dir={hub / 'cache'}"]).recipe
    _, skeleton = check_encoder(recipe)
    data = prepare(recipe, ProcessGroup())
    assert {task: source.labels for task, source in data.tasks.items()} == {"topic": TOPICS, "sentiment": MOODS}
    assert [task.rows("train") for task in data.tasks.values()] == [40, 40]
    schedule = compile_schedule(recipe, skeleton.config.num_hidden_layers, rows=80)
    assert [phase.steps for phase in schedule.phases] == [10, 10, 10]
    # "Layers 9-12" of the seed, counted from 0.
    assert schedule.phases[1].unfrozen == ("blocks.8", "blocks.9", "blocks.10", "blocks.11")
