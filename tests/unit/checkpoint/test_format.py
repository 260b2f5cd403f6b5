"""Corrupt checkpoints are refused with the reason: damaged by accident, or manipulated with a valid manifest."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtl_dist.checkpoint.format import FILES, folder_name, manifest_text, sha256_of, step_of
from mtl_dist.checkpoint.storage import changed_keys, load, newest_valid, save
from mtl_dist.config.recipe import CheckpointConfig
from tests.utils.checkpoints import bits, found, like, renew_manifest, saved, state_at, tensors

Corruption = Callable[[Path], object]


def change(name: str, do: Callable[[bytes], bytes]) -> Corruption:
    """Rewrites a file of a checkpoint and leaves its manifest as it was."""
    return lambda folder: (folder / name).write_bytes(do((folder / name).read_bytes()))


def renewed(do: Corruption) -> Corruption:
    """Changes a checkpoint and gives it a valid manifest, as an attacker would."""

    def damage(folder: Path) -> None:
        do(folder)
        renew_manifest(folder)

    return damage


def in_state(**changes: Any) -> Corruption:
    return renewed(change("state.json", lambda content: json.dumps(json.loads(content) | changes).encode()))


def in_train_state(**changes: Any) -> Corruption:
    return in_state(train_state=state_at(5)["train_state"] | changes)


def in_tensors(name: str, do: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Corruption:
    return renewed(lambda folder: save_file(do(load_file(folder / name)), folder / name))


def in_manifest(**changes: Any) -> Corruption:
    return change("manifest.json", lambda content: json.dumps(json.loads(content) | changes, indent=1).encode() + b"\n")


def in_names(old: str, new: str) -> Corruption:
    """Another name in a manifest that is sealed as ours are."""

    def damage(folder: Path) -> None:
        said = json.loads((folder / "manifest.json").read_bytes())
        del said["sha256"]
        said["files"] = {new if name == old else name: of for name, of in said["files"].items()}
        digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps({**said, "sha256": digest}, indent=1) + "\n")

    return damage


def as_link(name: str) -> Corruption:
    def damage(folder: Path) -> None:
        target = folder.parent / "elsewhere"
        (folder / name).rename(target)
        (folder / name).symlink_to(target)

    return damage


def as_pipe(folder: Path) -> None:
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")


def folder_as_link(folder: Path) -> None:
    target = folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(target)


def of_another_step(*names: str) -> Corruption:
    """Takes files from the checkpoint of step 3."""

    def damage(folder: Path) -> None:
        for name in names:
            shutil.copy(folder.parent / folder_name(3) / name, folder / name)

    return damage


def header(length: int) -> Corruption:
    """A safetensors file that claims a header of this length."""
    return renewed(change("model.safetensors", lambda content: length.to_bytes(8, "little") + content[8:]))


def longer_header(content: bytes) -> bytes:
    """A header of more bytes than are allowed, nearly all of them blanks, which safetensors reads."""
    length = int.from_bytes(content[:8], "little")
    blanks = b" " * (1 << 24)
    return (length + len(blanks)).to_bytes(8, "little") + content[8 : 8 + length] + blanks + content[8 + length :]


DAMAGES: dict[str, tuple[Corruption, str]] = {
    "a bit of the weights": (
        change("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        "model.safetensors does not match its SHA-256",
    ),
    "optimizer state cut short": (
        change("optimizer.safetensors", lambda content: content[:-1]),
        "optimizer.safetensors has 275 bytes instead of 276",
    ),
    "optimizer state of zeros": (
        change("optimizer.safetensors", lambda content: bytes(len(content))),
        "optimizer.safetensors does not match its SHA-256",
    ),
    "a bit of the state": (
        change("state.json", lambda content: content.replace(b"1", b"2", 1)),
        "state.json does not match its SHA-256",
    ),
    "no state": (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "another file": (
        lambda folder: (folder / "model.pkl").touch(),
        "'model.pkl' does not belong to a checkpoint",
    ),
    "weights of another step": (of_another_step("model.safetensors"), "model.safetensors does not match its SHA-256"),
    "state of another step, rewritten": (
        renewed(of_another_step("state.json")),
        "state.json is of another step",
    ),
    "all of another step": (of_another_step(*FILES, "manifest.json"), "manifest.json is of another step"),
    "manifest cut short": (change("manifest.json", lambda content: content[:-3]), "manifest.json is no JSON"),
    "manifest of zeros": (change("manifest.json", lambda content: bytes(300)), "manifest.json is no JSON"),
    "manifest without its end": (
        change("manifest.json", lambda content: content[:-1]),
        "manifest.json does not match its own SHA-256",
    ),
    "a blank in the manifest": (
        change("manifest.json", lambda content: content.replace(b": ", b":  ", 1)),
        "manifest.json does not match its own SHA-256",
    ),
    "manifest is a list": (change("manifest.json", lambda content: b"[]"), "manifest.json is no JSON object"),
    "manifest of brackets": (change("manifest.json", lambda content: b"[" * 60000), "manifest.json is no JSON"),
    "manifest without end": (
        change("manifest.json", lambda content: b" " * 70000),
        "manifest.json is too long to be one",
    ),
    "manifest without files": (in_manifest(files=None), "manifest.json lists other files than a checkpoint has"),
    "fewer files": (in_manifest(files={}), "manifest.json lists other files than a checkpoint has"),
    "files without sizes": (
        in_manifest(files={name: [] for name in FILES}),
        "manifest.json does not say size and SHA-256 of each file",
    ),
    "a path that leads out": (
        in_names("state.json", "../step-0000000003/state.json"),
        "manifest.json lists other files than a checkpoint has",
    ),
    "an absolute path": (
        in_names("state.json", "/etc/passwd"),
        "manifest.json lists other files than a checkpoint has",
    ),
    "another format": (in_manifest(format=2), "format 2, this version reads 3 and 4"),
    "a format that is none": (in_manifest(format=[[]]), "format unknown, this version reads 3 and 4"),
    "another step": (in_manifest(step=4), "manifest.json is of another step"),
    "a link for a file": (as_link("model.safetensors"), "model.safetensors is a link or no plain file"),
    "a pipe for a file": (as_pipe, "state.json is a link or no plain file"),
    "a link for the folder": (folder_as_link, "it is a link or no folder"),
    "state is a list": (
        renewed(change("state.json", lambda content: b"[]")),
        "state.json is no JSON object",
    ),
    "state is no JSON": (renewed(change("state.json", lambda content: b"{")), "state.json is no JSON"),
    "state without train_state": (in_state(train_state={}), "state.json is no state of a run"),
    "state with more": (in_state(code="import os"), "state.json is no state of a run"),
    "steps are text": (in_train_state(step="5"), "state.json is no state of a run"),
    "counters are lists": (in_train_state(phase_seconds=[1.0]), "state.json is no state of a run"),
    "measured is text": (in_train_state(measured={"heads": ["0.5"]}), "state.json is no state of a run"),
    "figures without tasks": (in_state(figures={"topic": 0.5}), "state.json is no state of a run"),
    "a header that is too long": (
        renewed(change("model.safetensors", longer_header)),
        "model.safetensors: its header claims ",
    ),
    "a header beyond the file": (header(1 << 40), "model.safetensors: its header claims 1099511627776 bytes"),
    "a header beyond all": (header((1 << 64) - 1), "model.safetensors: its header claims 18446744073709551615 bytes"),
    "a header cut short": (header(9), "model.safetensors: Error while deserializing header: "),
    "no weights": (
        renewed(change("model.safetensors", lambda content: b"")),
        "model.safetensors: its header claims ",
    ),
    "a header that lies": (
        renewed(change("model.safetensors", lambda content: content.replace(b"[2,3]", b"[2,9]"))),
        "model.safetensors: Error while deserializing header: ",
    ),
    "a pickle for weights": (
        renewed(change("model.safetensors", lambda content: b"\x80\x04cos\nsystem\n." + content)),
        "model.safetensors: its header claims ",
    ),
    "weights of another type": (
        in_tensors("model.safetensors", lambda held: held | {"frozen": held["frozen"].half()}),
        "model.safetensors: 'frozen' is of type F16, not one of F32, F64",
    ),
    "optimizer state of no parameter": (
        in_tensors("optimizer.safetensors", lambda held: held | {"exp_avg/another": torch.ones(1)}),
        "optimizer.safetensors: there is no parameter 'another'",
    ),
    "a moment is missing": (
        in_tensors("optimizer.safetensors", lambda held: {"step/unfrozen": held["step/unfrozen"]}),
        "optimizer.safetensors: 'exp_avg/unfrozen' is not optimizer state of its parameter",
    ),
    "a decay of another type": (
        in_tensors("optimizer.safetensors", lambda held: held | {"decay/unfrozen": torch.ones(())}),
        "optimizer.safetensors: 'decay/unfrozen' is not optimizer state of its parameter",
    ),
    "a decay by row": (
        in_tensors("optimizer.safetensors", lambda held: held | {"decay/unfrozen": torch.ones(2).double()}),
        "optimizer.safetensors: 'decay/unfrozen' is not optimizer state of its parameter",
    ),
    "a decay of what never trained": (
        in_tensors("optimizer.safetensors", lambda held: held | {"decay/frozen": torch.ones(()).double()}),
        "optimizer.safetensors: 'exp_avg/frozen' is not optimizer state of its parameter",
    ),
    "a moment of another kind": (
        in_tensors("optimizer.safetensors", lambda held: held | {"exp/unfrozen": torch.ones(2, 3)}),
        "optimizer.safetensors: 'exp/unfrozen' is not optimizer state of its parameter",
    ),
    "a moment of another shape": (
        in_tensors("optimizer.safetensors", lambda held: held | {"exp_avg/unfrozen": torch.ones(3, 2)}),
        "optimizer.safetensors: 'exp_avg/unfrozen' is not optimizer state of its parameter",
    ),
    "a moment of another type": (
        in_tensors("optimizer.safetensors", lambda held: held | {"exp_avg/unfrozen": torch.ones(2, 3).double()}),
        "optimizer.safetensors: 'exp_avg/unfrozen' is not optimizer state of its parameter",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_an_older_one(tmp_path: Path, damage: str) -> None:
    older, newer = (saved(tmp_path, step) for step in (3, 5))
    do, reason = DAMAGES[damage]
    do(newer)
    checkpoint, skipped = newest_valid(tmp_path)
    assert checkpoint is not None
    assert checkpoint.folder == older
    assert [bits(part) for part in load(checkpoint, like())] == [bits(part) for part in tensors(seed=3)]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"checkpoint step-0000000005 skipped: {reason}")
    assert len(skipped[0].splitlines()) == 1


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    path = saved(tmp_path, 5) / "manifest.json"
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            assert newest_valid(tmp_path)[0] is None
    path.write_bytes(content)
    assert newest_valid(tmp_path)[0] is not None


def test_a_whole_checkpoint_under_another_steps_name_is_refused(tmp_path: Path) -> None:
    for name in ("step-0000000009", "step-000000000003", "step-3"):
        folder = saved(tmp_path / name, 3)
        folder.rename(folder.with_name(name))
        checkpoint, (line,) = newest_valid(tmp_path / name)
        assert checkpoint is None
        reason = "manifest.json is of another step" if "9" in name else "its name is not that of a checkpoint"
        assert line == f"checkpoint {name} skipped: {reason}"


def test_what_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    (saved(tmp_path, 3) / "model.safetensors").rename(tmp_path / "moved")
    (tmp_path / folder_name(3) / "model.safetensors").mkdir()
    assert newest_valid(tmp_path) == (
        None,
        ["checkpoint step-0000000003 skipped: model.safetensors is a link or no plain file"],
    )


def as_format_3(folder: Path) -> None:
    """Rewrites a checkpoint as the version before 0.2 wrote it."""
    state = json.loads((folder / "state.json").read_bytes())
    state["progression"] = state.pop("train_state")
    optimizer = state["identity"]["optimizer"]
    optimizer["thaw_warmup_steps"] = optimizer.pop("unfreeze_warmup_steps")
    (folder / "state.json").write_text(json.dumps(state))
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    files = {name: {"bytes": size, "sha256": sha256_of(folder / name)} for name, size in sizes.items()}
    (folder / "manifest.json").write_text(manifest_text(step_of(folder), files, 3))


def test_a_checkpoint_of_format_3_is_read_with_todays_names(tmp_path: Path) -> None:
    identity = {"seed": 1, "optimizer": {"lr": 2e-5, "unfreeze_warmup_steps": 7}}
    state = state_at(5, identity=identity)
    folder = save(tmp_path, 5, *tensors(seed=5), state, CheckpointConfig())
    as_format_3(folder)
    assert b"progression" in (folder / "state.json").read_bytes()
    checkpoint = found(tmp_path)
    assert checkpoint.state == state
    assert changed_keys(checkpoint.state["identity"], identity) == []
    assert [bits(part) for part in load(checkpoint, like())] == [bits(part) for part in tensors(seed=5)]
