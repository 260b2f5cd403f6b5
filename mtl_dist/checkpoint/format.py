"""The files of a checkpoint, their manifest, and the verification that they are still what was written.

A checkpoint is two safetensors files and JSON, so nothing in it can run code. Verification trusts neither names nor
sizes nor the manifest itself, and checks everything before a caller gets any of it.
"""

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from safetensors import SafetensorError, safe_open

from mtl_dist.engines.state import ADAMW_STATE
from mtl_dist.errors import root_cause
from mtl_dist.io import fsync
from mtl_dist.models.vocab_trimming import DECAY
from mtl_dist.train_state import TrainState

FORMAT = 4
FORMATS_READ = (3, FORMAT)
"""Format 3 calls the train state `progression` and has `optimizer.thaw_warmup_steps` in its identity."""
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
FILES = (WEIGHTS, OPTIMIZER, STATE)
"""The files that the manifest lists."""
MAX_MANIFEST_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 24
"""Longest header of a safetensors file that is accepted: room for some 100,000 tensors."""

Tensors = dict[str, tuple[tuple[int, ...], str]]
"""Shape and type (as safetensors calls it) of each tensor, by name."""
TYPES = ("F32", "F64")
ADAMW_STEP: tuple[tuple[int, ...], str] = ((), "F32")
UNUSED_ROWS_DECAY: tuple[tuple[int, ...], str] = ((), "F64")


class CorruptCheckpoint(Exception):
    """A checkpoint that cannot be used; the message is one line that says why."""


def folder_name(step: int) -> str:
    """Name of the folder of the checkpoint of `step`."""
    return f"step-{step:010d}"


def step_of(folder: Path) -> int:
    """Returns the step in a checkpoint's name. Raises CorruptCheckpoint where it is not such a name."""
    digits = re.fullmatch(r"step-([0-9]{10,18})", folder.name)
    if digits is None or folder.name != folder_name(int(digits[1])):
        raise CorruptCheckpoint("its name is not that of a checkpoint")
    return int(digits[1])


def write_manifest(folder: Path, step: int, digests: Mapping[str, str]) -> None:
    """Writes the manifest of the FILES in `folder` and flushes it to the disk, where the files are already.

    `digests` has the SHA-256 of the content that each file was to have.
    """
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digests[name]} for name in FILES}
    (folder / MANIFEST).write_text(manifest_text(step, files), encoding="utf-8")
    fsync(folder / MANIFEST)
    fsync(folder)


def read_state(folder: Path, step: int) -> dict[str, Any]:
    """Returns the state of the checkpoint of `step`; verifies manifest and state. Raises CorruptCheckpoint."""
    return _state(folder, step, _manifest(folder, step))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, step: int, sha256: Callable[[Path], str] = sha256_of) -> dict[str, Any]:
    """Verifies every file of the checkpoint of `step`, by the digests that `sha256` computes; returns its state.

    Raises CorruptCheckpoint.
    """
    files = _manifest(folder, step)
    state = _state(folder, step, files)
    for name in (WEIGHTS, OPTIMIZER):
        _check_content(folder, name, files[name], sha256)
    weights, optimizer_state = (_tensors(folder, name) for name in (WEIGHTS, OPTIMIZER))
    _check_optimizer_state(weights, optimizer_state)
    return state


def manifest_text(step: int, files: Mapping[str, Any], form: int = FORMAT) -> str:
    """The only text that a manifest of these files may have; it ends with a SHA-256 of its own content."""
    said = {"format": form, "step": step, "files": dict(sorted(files.items()))}
    return json.dumps({**said, "sha256": hashlib.sha256(json.dumps(said).encode()).hexdigest()}, indent=1) + "\n"


def _manifest(folder: Path, step: int) -> dict[str, Any]:
    """Returns the manifest's entry of each file, after every check that does not read those files."""
    try:
        _check_names(folder)
        if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise CorruptCheckpoint(f"{MANIFEST} is too long to be one")
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise CorruptCheckpoint(f"unreadable: {error.strerror}") from error
    manifest = _json(MANIFEST, content)
    form, files = manifest.get("format"), manifest.get("files")
    if type(form) is not int or form not in FORMATS_READ:
        known = " and ".join(map(str, FORMATS_READ))
        raise CorruptCheckpoint(f"format {form if type(form) is int else 'unknown'}, this version reads {known}")
    if not isinstance(files, dict) or files.keys() != set(FILES):
        raise CorruptCheckpoint(f"{MANIFEST} lists other files than a checkpoint has")
    if not all(
        isinstance(entry, dict) and _fits_fields(entry, {"bytes": int, "sha256": str}) for entry in files.values()
    ):
        raise CorruptCheckpoint(f"{MANIFEST} does not say size and SHA-256 of each file")
    if manifest.get("step") != step:
        raise CorruptCheckpoint(f"{MANIFEST} is of another step")
    # Compared as a whole rather than key by key, so that no byte of it can differ.
    if content != manifest_text(step, files, form).encode():
        raise CorruptCheckpoint(f"{MANIFEST} does not match its own SHA-256")
    return files


def _check_names(folder: Path) -> None:
    """Refuses links and everything else that is not a regular file: reading one could lead elsewhere or never end."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise CorruptCheckpoint("it is a link or no folder")
    modes = {path.name: path.lstat().st_mode for path in folder.iterdir()}
    for name in (*FILES, MANIFEST):
        if name not in modes:
            raise CorruptCheckpoint(f"{name} is missing")
    for name, mode in sorted(modes.items()):
        if name not in (*FILES, MANIFEST):
            raise CorruptCheckpoint(f"{name[:80]!r} does not belong to a checkpoint")
        if not stat.S_ISREG(mode):
            raise CorruptCheckpoint(f"{name} is a link or no plain file")


def _check_content(folder: Path, name: str, expected: Mapping[str, Any], sha256: Callable[[Path], str]) -> None:
    try:
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            raise CorruptCheckpoint(f"{name} has {size} bytes instead of {expected['bytes']}")
        if sha256(folder / name) != expected["sha256"]:
            raise CorruptCheckpoint(f"{name} does not match its SHA-256")
    except OSError as error:
        raise CorruptCheckpoint(f"{name}: unreadable: {error.strerror}") from error


def _state(folder: Path, step: int, files: Mapping[str, Any]) -> dict[str, Any]:
    _check_content(folder, STATE, files[STATE], sha256_of)
    state = upgraded(_json(STATE, (folder / STATE).read_bytes()))
    hints = {"identity": dict[str, Any], "train_state": dict[str, Any], "figures": dict[str, dict[str, float]]}
    if not _fits_fields(state, hints) or not _fits_fields(state["train_state"], get_type_hints(TrainState)):
        raise CorruptCheckpoint(f"{STATE} is no state of a run")
    if state["train_state"]["step"] != step:
        raise CorruptCheckpoint(f"{STATE} is of another step")
    return state


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the state of a checkpoint of format 3 in format 4; a state of format 4 is returned unchanged."""
    if "progression" not in state:
        return state
    state = {"train_state" if key == "progression" else key: value for key, value in state.items()}
    identity = state.get("identity")
    optimizer = identity.get("optimizer") if isinstance(identity, dict) else None
    if isinstance(identity, dict) and isinstance(optimizer, dict):
        renamed = {key.replace("thaw_warmup_steps", "unfreeze_warmup_steps"): value for key, value in optimizer.items()}
        state["identity"] = {**identity, "optimizer": renamed}
    return state


def _fits_fields(value: Mapping[str, Any], hints: Mapping[str, Any]) -> bool:
    return value.keys() == hints.keys() and all(_fits(value[name], hint) for name, hint in hints.items())


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value read from JSON has the type `hint`, one of those that a TrainState has."""
    if hint is Any:
        return True
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, get_args(hint)[1]) for item in value.values())
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    # The exact type, because True is an int; a float may have been written as a whole number.
    return type(value) is hint or (hint is float and type(value) is int)


def _json(name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{name} is no JSON") from error
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{name} is no JSON object")
    return value


def _tensors(folder: Path, name: str) -> Tensors:
    """Reads the header of a safetensors file; the library checks sizes and offsets against the file."""
    path = folder / name
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise CorruptCheckpoint(f"{name}: its header claims {length} bytes")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {tensor: file.get_slice(tensor) for tensor in file.keys()}  # noqa: SIM118 - no mapping
            held = {tensor: (tuple(part.get_shape()), part.get_dtype()) for tensor, part in slices.items()}
    except SafetensorError as error:
        raise CorruptCheckpoint(f"{name}: {root_cause(error)}") from error
    for tensor, (_, dtype) in held.items():
        if dtype not in TYPES:
            raise CorruptCheckpoint(f"{name}: {tensor[:80]!r} is of type {dtype}, not one of {', '.join(TYPES)}")
    return held


def _check_optimizer_state(weights: Tensors, optimizer_state: Tensors) -> None:
    """Refuses optimizer state that is not what AdamW keeps: all tensors of a parameter or none, of its shape and type.

    The step count is a scalar. The token embeddings may also have the factor by which their unused rows have decayed.
    """
    trained = {name.partition("/")[2] for name in optimizer_state}
    if unknown := sorted(trained - weights.keys()):
        raise CorruptCheckpoint(f"{OPTIMIZER}: there is no parameter {unknown[0][:80]!r}")
    expected = {
        f"{key}/{name}": ADAMW_STEP if key == ADAMW_STATE[0] else weights[name]
        for name in trained
        for key in ADAMW_STATE
    }
    decays = {f"{DECAY}/{name}" for name in trained} & optimizer_state.keys()
    expected |= dict.fromkeys(decays, UNUSED_ROWS_DECAY)
    different = sorted(name for name in expected | optimizer_state if expected.get(name) != optimizer_state.get(name))
    if different:
        raise CorruptCheckpoint(f"{OPTIMIZER}: {different[0][:80]!r} is not optimizer state of its parameter")
