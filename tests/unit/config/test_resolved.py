"""The resolved recipe, which runs write into their folders, is read back as it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.data_recipe import ReadConfig, SourceConfig, SplitConfig
from mtl_dist.config.load import parse, resolved_yaml
from mtl_dist.config.recipe import PhaseConfig, Recipe, TaskConfig, UntilConfig

# "${" begins an interpolation and "???" marks a missing value in OmegaConf: a resolved recipe can contain neither.
TEXTS = st.text(min_size=1).filter(lambda text: "${" not in text and not text.lstrip("\\").startswith("???"))
AWKWARD_TEXTS = st.sampled_from(["yes", "null", "~", "3e-5", "1_0", "0o7", "1:30", "2024-01-01", "a: b", "#", " ", "="])


NAMES = TEXTS | AWKWARD_TEXTS
VALUES = NAMES.filter(str.strip)
SHARES = st.none() | st.floats(0.001, 0.49)


@st.composite
def read_configs(draw: st.DrawFn) -> ReadConfig:
    delimiter, quotechar = draw(st.permutations([",", ";", "\t", "|", " ", "'", '"', ":", "#", "ä"]))[:2]
    return ReadConfig(
        delimiter=draw(st.sampled_from([None, delimiter])),
        encoding=draw(st.sampled_from(["utf-8", "cp1252", "utf-16"])),
        quotechar=draw(st.sampled_from([None, quotechar])),
        header=draw(st.booleans()),
    )


@st.composite
def split_configs(draw: st.DrawFn) -> SplitConfig:
    validation, column = draw(SHARES), draw(NAMES)
    by, stratify = draw(st.sampled_from([(None, None), (column, None), (None, column)]))
    return SplitConfig(validation=validation, test=draw(st.floats(0.001, 0.49)), by=by, stratify=stratify)


@settings(max_examples=30, deadline=None)
@given(
    text=TEXTS | AWKWARD_TEXTS,
    labels=st.none() | st.dictionaries(VALUES, NAMES, min_size=2).filter(lambda of: len({*of.values()}) == len(of)),
    read=read_configs(),
    split=split_configs(),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1),
)
def test_resolved_yaml_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    labels: dict[str, str] | None,
    read: ReadConfig,
    split: SplitConfig,
    lr: float,
    seed: int,
    steps: int,
) -> None:
    folder = text.replace("\0", "0").lstrip("~") or "a"  # home folders are replaced, and NUL is refused
    recipe = Recipe(output_dir=folder, seed=seed, tasks={"a": TaskConfig(path=folder, data_files={}, labels=labels)})
    recipe.tasks["a"].data_files = {"train": [folder, "x"], "test": [folder], "validation": [folder]}
    recipe.sources["s"] = SourceConfig(path="csv", data_files={"train": [folder]}, read=read, split=split, text=[text])
    recipe.tasks["b"] = TaskConfig(source="s", label=text, text=[text, text], missing="error", labels=labels)
    recipe.optimizer.lr = lr
    until = UntilConfig(metric="a/loss", every_steps=steps, min_delta=lr)
    recipe.phases = [
        PhaseConfig(name=text, train=["heads", "blocks[-4:]"], steps=steps, until=until if labels else None)
    ]
    file = tmp_path_factory.getbasetemp() / "resolved.yaml"
    file.write_text(resolved_yaml(recipe), encoding="utf-8")
    again = parse(["--config", str(file)]).recipe
    assert again == recipe
    assert list((again.tasks["b"].labels or {}).items()) == list((labels or {}).items())  # the order of the classes
