"""`push`: uploads a run's model, or a folder that `export` wrote, to the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from mtl_dist.errors import TrainingError, UserError, root_cause
from mtl_dist.inference.finished_run import CommandParser
from mtl_dist.models.multitask import WEIGHTS
from mtl_dist.training.run_folder import MODEL, RECIPE


def main(arguments: Sequence[str]) -> None:
    """Carries `push` out. Raises UserError before anything is sent, and TrainingError where the hub refuses."""
    parser = CommandParser("push", "Uploads the model of a run, or a folder that export wrote, with its model card.")
    parser.add_argument("folder", metavar="RUN|DIR", type=Path, help="folder of a finished run, or one from export")
    parser.add_argument("repo", metavar="OWNER/NAME", help="where to; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it private where it is new")
    options = parser.parse_args(arguments)
    folder = _folder_of(options.folder)
    try:
        validate_repo_id(options.repo)
    except HFValidationError as error:
        raise UserError(f"{options.repo} is no name at the hub: {root_cause(error)}") from error
    if get_token() is None:
        raise UserError("push: no token for the hub; `hf auth login` keeps one, or set HF_TOKEN")
    api = HfApi()
    try:
        repo = api.create_repo(options.repo, private=options.private or None, exist_ok=True).repo_id
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model from mtl_dist")
    except OfflineModeIsEnabled as error:
        raise UserError("push: HF_HUB_OFFLINE is set, and the hub is not reached so") from error
    except (HfHubHTTPError, OSError) as error:
        raise TrainingError(f"push: {options.repo}: {root_cause(error)}") from error
    print(f"{folder} is at {done.commit_url}")


def _folder_of(named: Path) -> Path:
    """What to upload. Raises UserError where there is no model in `named`."""
    folder = named / MODEL if (named / RECIPE).is_file() else named
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; name a finished run, or a folder from export")
    return folder
