from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mtl_dist.config.json_schema import recipe_json_schema
from mtl_dist.config.load import parse
from mtl_dist.errors import UserError

RECIPES = Path(__file__).parents[3] / "recipes"
VALIDATOR = jsonschema.Draft202012Validator(recipe_json_schema())


def accepts(text: str) -> bool:
    return VALIDATOR.is_valid(yaml.safe_load(text))


def properties(node: Any) -> Iterator[tuple[str, Any]]:
    """Name and schema of each key, wherever in the schema."""
    if isinstance(node, dict):
        yield from node.get("properties", {}).items()
        for item in node.values():
            yield from properties(item)


def test_it_is_a_json_schema() -> None:
    schema = recipe_json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["title"], bool(schema["description"])) == ("mtl_dist recipe", True)
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_key_has_a_description() -> None:
    schema = recipe_json_schema()
    sections = {f"#/$defs/{name}" for name, section in schema["$defs"].items() if section["description"]}
    keys = dict(properties(schema))
    assert {"lr", "tasks", "until"} <= keys.keys()
    for name, key in keys.items():
        inner = [key, key.get("items", {}), key.get("additionalProperties", {}), *key.get("anyOf", [])]
        described = "description" in key or any(isinstance(one, dict) and one.get("$ref") in sections for one in inner)
        assert described, name


@pytest.mark.parametrize("name", ["quickstart.yaml", "seed.yaml"])
def test_shipped_recipes_are_valid(name: str) -> None:
    VALIDATOR.validate(yaml.safe_load((RECIPES / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "phases: [{name: a, train: all, steps: 1}]",
        "tasks: {a: {text: body, labels: [x, y]}}",
        "tasks: {a: {labels: [0, 0.5, yes, x]}}",
        "tasks: {a: {labels: {0: low, 0.5: 1, yes: high}}}",
        "sources: {s: {path: csv, data_files: s.csv, split: {test: 0.2}}}",
        "sources: {s: {path: csv, data_files: [a.csv, b.csv], split: {test: '${oc.env:LR}'}}}",
        "sources: {s: {path: json, data_files: {train: a, test: [b, c]}, text: [x, y]}}",
        "{sources: {s: {path: hub, name: x}}, tasks: {b: {source: s, text: body, missing: error}}}",
        "phases: [{name: a, train: [all], steps: 1, until: null}]",
        "optimizer: {lr: 1, warmup_steps: '${batch_size}', max_grad_norm: null}",
        "optimizer: {lr: '${oc.env:LR}', schedule: '${oc.env:SCHEDULE}'}",
        "tracking: {wandb: '${oc.env:WANDB}', tags: '${oc.env:TAG}'}",
        "output_dir: 'runs/${seed}'",
        "{}",
    ],
)
def test_what_the_loader_accepts_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for name, value in {"LR": "1e-3", "SCHEDULE": "cosine", "WANDB": "false", "TAG": "x"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "recipe.yaml").write_text(text)
    parse(["--config", str(tmp_path / "recipe.yaml"), "tasks.a.path=hub"])
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "optimiser: {lr: 1}",
        "optimizer: {lrr: 1}",
        "optimizer: {lr: abc}",
        "optimizer: {lr: null}",
        "optimizer: {lr: -1.0}",
        "optimizer: '${model}'",
        "phases: [{nam: a}]",
        "phases: '${oc.env:PHASES}'",
        "phases: [{name: a, train: all, steps: 0}]",
        "phases: [{name: a, train: all, steps: 1, until: {metrc: loss}}]",
        "tasks: {a: {wieght: 1}}",
        "phases: [{name: '', train: all, steps: 1}]",
        "model: {pooling: men}",
        "tracking: {wandb: 1}",
        "seed: '5'",
    ],
)
def test_what_the_loader_refuses_is_invalid(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError):
        parse(["--config", str(tmp_path / "recipe.yaml"), "tasks.a.path=hub"])
    assert not accepts(text)
