"""Uploads a run's model, or a folder written by `export`, to the Hugging Face hub."""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from mtl_dist.errors import TrainingError, UserError, root_cause
from mtl_dist.models.multitask import WEIGHTS
from mtl_dist.run_layout import MODEL, RECIPE


class Pushed(NamedTuple):
    """An upload that is done."""

    folder: Path
    """The folder that was uploaded."""
    url: str
    """Address of the commit."""


def push_model(folder: Path, repo: str, *, private: bool = False) -> Pushed:
    """Uploads the model of the run in `folder`, or `folder` itself where `export` wrote it, to `repo`.

    `repo` is OWNER/NAME and made where there is none, private if asked for. Raises UserError before anything is sent,
    and TrainingError where the hub refuses.
    """
    folder = _model_folder(folder)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo} is no name at the hub: {root_cause(error)}") from error
    if get_token() is None:
        raise UserError("push: no token for the hub; `hf auth login` keeps one, or set HF_TOKEN")
    api = HfApi()
    try:
        repo_id = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Model from mtl_dist")
    except OfflineModeIsEnabled as error:
        raise UserError("push: HF_HUB_OFFLINE is set, and the hub is not reached so") from error
    except (HfHubHTTPError, OSError) as error:
        raise TrainingError(f"push: {repo}: {root_cause(error)}") from error
    return Pushed(folder, done.commit_url)


def _model_folder(named: Path) -> Path:
    """The folder to upload. Raises UserError where there is no model in it."""
    folder = named / MODEL if (named / RECIPE).is_file() else named
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; name a finished run, or a folder from export")
    return folder
