"""Campaign `hostile`: checkpoints, recipes and model folders that try to run code or to read outside their folder."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import AutoModel

from mtl_dist.checkpoint.format import FILES, MANIFEST, manifest_text
from mtl_dist.checkpoint.storage import newest_valid
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import UserError
from mtl_dist.models.encoder import load_encoder, load_encoder_config
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from tests.faults.campaign import Campaign, Outcome
from tests.utils.checkpoints import renew_manifest, saved
from tests.utils.hostile import change_config, pickled, with_code, with_pickled_weights
from tests.utils.tiny import tiny_encoder

STEP = 5
Fault = Callable[[random.Random, Path, Path], tuple[str, str | None]]
"""Loads a hostile file, made in the given empty folder, that tries to create the file `mark`.

Returns a description of the file and the reason why it was refused, or None if it was not.
"""


def checkpoint_reason(root: Path) -> str | None:
    found, skipped = newest_valid(root)
    return None if found else skipped[0]


def pickle_in_a_checkpoint(rng: random.Random, folder: Path, mark: Path) -> tuple[str, str | None]:
    """Puts a pickle in place of, before, after or beside a file of a checkpoint, with a matching manifest."""
    checkpoint = saved(folder, STEP)
    name = rng.choice((*FILES, MANIFEST, "optimizer.pt", "state.pkl"))
    place = rng.choice(("alone", "before", "after"))
    content = (checkpoint / name).read_bytes() if (checkpoint / name).exists() else b""
    parts = {"alone": (pickled(mark),), "before": (pickled(mark), content), "after": (content, pickled(mark))}
    (checkpoint / name).write_bytes(b"".join(parts[place]))
    if name != MANIFEST:
        renew_manifest(checkpoint)
    return f"{name}: {place}", checkpoint_reason(folder)


def header(rng: random.Random, folder: Path, mark: Path) -> tuple[str, str | None]:
    """Writes a safetensors file whose header is said to be longer than the file."""
    path = saved(folder, STEP) / rng.choice(FILES[:2])
    content = path.read_bytes()
    length = rng.choice((len(content) - 7, 1 << rng.randrange(20, 63), (1 << 64) - 1 - rng.randrange(99)))
    path.write_bytes(length.to_bytes(8, "little") + content[8:])
    renew_manifest(path.parent)
    return f"{path.name}: {length}", checkpoint_reason(folder)


def path_in_a_manifest(rng: random.Random, folder: Path, mark: Path) -> tuple[str, str | None]:
    """Writes a manifest with a valid digest that names a file outside the checkpoint."""
    checkpoint = saved(folder, STEP)
    name = rng.choice(FILES)
    target = folder / "elsewhere"
    shutil.copy(checkpoint / name, target)
    path = rng.choice(("../elsewhere", str(target), f"./{name}", f"{name}/../{name}", f"../{checkpoint.name}/{name}"))
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    files = {path if known == name else known: of for known, of in manifest["files"].items()}
    (checkpoint / MANIFEST).write_text(manifest_text(STEP, files), encoding="utf-8")
    return f"{name}: {path}", checkpoint_reason(folder)


def link(rng: random.Random, folder: Path, mark: Path) -> tuple[str, str | None]:
    """Replaces a checkpoint or one of its files by a link to a target that would pass verification."""
    checkpoint = saved(folder / "checkpoints", STEP)
    path = rng.choice((checkpoint, *(checkpoint / name for name in (*FILES, MANIFEST))))
    target = path.rename(folder / "elsewhere")
    path.symlink_to(target)
    return path.name, checkpoint_reason(folder / "checkpoints")


def refusal(work: Callable[[], object]) -> str | None:
    """Returns the message of the UserError that `work` raises (exit code 2 of a run), or None if it raises none."""
    try:
        work()
    except UserError as error:
        return str(error)
    return None


def yaml_tag(rng: random.Random, folder: Path, mark: Path) -> tuple[str, str | None]:
    """Puts a Python tag of YAML into a recipe file or an override."""
    tag = rng.choice(("python/object/apply:os.system", "python/object/new:os.system", "python/object/apply:eval"))
    code = f"__import__('pathlib').Path('{mark}').touch()" if tag.endswith("eval") else f"touch {mark}"
    value = f"!!{tag} [{json.dumps(code)}]"
    key = rng.choice(("output_dir", "seed", "model.encoder", "tasks.topic.path"))
    if rng.random() < 0.5:
        return f"override {key}: {tag}", refusal(lambda: parse([f"{key}={value}"]))
    text = value
    for name in reversed(key.split(".")):
        text = f"{{{name}: {text}}}"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return f"file {key}: {tag}", refusal(lambda: parse(["--config", str(folder / "recipe.yaml")]))


def as_encoder(folder: Path) -> None:
    settings = ModelConfig(encoder=str(folder))
    load_encoder(settings, load_encoder_config(settings))


def model_folder(rng: random.Random, folder: Path, mark: Path) -> tuple[str, str | None]:
    """Makes an encoder, or a multitask model, that comes with code or with pickled weights."""
    model = tiny_encoder(folder / "encoder", layers=1)
    load, kind = as_encoder, rng.choice(("encoder", "model"))
    if kind == "model":
        whole = MultitaskTransformer(SentenceTransformer(AutoModel.from_pretrained(model)), {"topic": ("a", "b")})
        model, load = folder / "model", MultitaskTransformer.from_pretrained
        whole.save_pretrained(model)
    how = rng.choice(("code, unknown type", "code, known type", "pickle", "pickle under the name", "index"))
    if how == "code, unknown type":
        with_code(model, mark, model_type="own")
    elif how == "code, known type":
        with_code(model, mark)
    elif how == "pickle under the name":
        (model / "model.safetensors").write_bytes(pickled(mark))
    else:
        with_pickled_weights(model, mark)
    if how == "index":
        index = {"metadata": {}, "weight_map": {"embeddings.LayerNorm.bias": "pytorch_model.bin"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        (model / "model-extra.safetensors").touch()
    change_config(model, architectures=["OwnModel"])
    return f"{kind}: {how}", refusal(lambda: load(model))


FAULTS: tuple[Fault, ...] = (pickle_in_a_checkpoint, header, path_in_a_manifest, link, yaml_tag, model_folder)


def run(rng: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Each file passes if it is refused with one line and its code has not run."""
    for number in range(count):
        fault = FAULTS[number % len(FAULTS)]
        place, mark = folder / str(number), folder / "ran"
        place.mkdir()
        point, why = fault(rng, place, mark)
        passed = why is not None and len(why.splitlines()) == 1 and not mark.exists()
        yield Outcome(fault.__name__, point, why or "not refused", passed)
        mark.unlink(missing_ok=True)
        shutil.rmtree(place)


HOSTILE = Campaign(60, run)
