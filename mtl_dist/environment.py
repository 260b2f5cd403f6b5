"""What a process needs from its environment before it imports libraries: a home folder, caches, readable variables.

torch, Hugging Face's libraries and W&B look at home and variables while they are imported, and end with a traceback, or
write into a folder named `~`, where they find nothing. Imports none of them.
"""

import atexit
import getpass
import logging
import os
import shutil
import tempfile
from pathlib import Path

from mtl_dist.errors import UserError

CACHE_VARIABLE = "MTL_DIST_CACHE"

TRUTH_VALUES = {
    **dict.fromkeys(("1", "true", "yes", "on", "y", "t"), True),
    **dict.fromkeys(("0", "false", "no", "off", "n", "f"), False),
}
"""Words that Accelerate takes for a truth value, in any case."""
ATTEMPT_VARIABLE = "TORCHELASTIC_RESTART_COUNT"
"""Set by torchrun, and by `accelerate launch` for more than one process."""
MPI_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Set by mpirun of MPICH and Intel, of Open MPI, and of MVAPICH; any of them."""
_FLAGS = (
    "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_BYPASS_DEVICE_MAP",
    "ACCELERATE_ALLOW_CP_STANDALONE",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH",
    "ACCELERATE_DYNAMO_USE_DYNAMIC",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    "FORK_LAUNCHED",
)
"""Variables that Accelerate reads as a truth value; another word there is a traceback, some at its import."""
_LOG_LEVEL = "ACCELERATE_LOG_LEVEL"
_NUMBERS = {
    "RANK": 0,
    "LOCAL_RANK": 0,
    "WORLD_SIZE": 1,
    "LOCAL_WORLD_SIZE": 1,
    "MASTER_PORT": 0,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": 1,
}
"""Variables that are whole numbers -> the smallest."""
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")
"""Variables that name the folder for temporary files; the first one counts."""


def is_set(variable: str) -> bool:
    """Whether a variable has one of the words for true. Raises UserError for a word that is no truth value."""
    word = os.environ.get(variable)
    if word is None:
        return False
    if word.lower() not in TRUTH_VALUES:
        raise UserError(f"{variable}: {word!r} is no truth value; use true or false, or unset it")
    return TRUTH_VALUES[word.lower()]


def has_launcher() -> bool:
    """Whether a launcher of several processes has started this one, whose variables then say which it is."""
    return any(variable in os.environ for variable in (ATTEMPT_VARIABLE, *MPI_VARIABLES))


def is_rank_0() -> bool:
    """Whether this process prints what concerns all: rank 0, or the only one."""
    return not has_launcher() or os.environ.get("RANK", "0") == "0"


def check_variables() -> None:
    """Raises UserError for a variable whose value cannot be used, of a launcher, of Accelerate, or TMPDIR."""
    _check_temporary_folder()
    for variable in _FLAGS:
        is_set(variable)
    for variable, least in _NUMBERS.items():
        word = os.environ.get(variable)
        if word is not None and not (word.isascii() and word.isdecimal() and int(word) >= least):
            raise UserError(f"{variable}: {word!r} is not a whole number from {least} on; unset it")
    level = os.environ.get(_LOG_LEVEL)
    if level is not None and level.upper() not in logging.getLevelNamesMapping():
        raise UserError(f"{_LOG_LEVEL}: {level!r} is no level of logging; use e.g. INFO, or unset it")


def _check_temporary_folder() -> None:
    """Raises UserError where the folder for temporary files is not the one that was named, or where there is none."""
    variable = next((name for name in _TEMPORARY if os.environ.get(name)), "TMPDIR")
    named = os.environ.get(variable)
    if named and not (Path(named).is_dir() and os.access(named, os.W_OK | os.X_OK)):
        # `tempfile` would take another folder, which may be on a disk that is too small.
        raise UserError(f"{variable}: {named} is no folder that can be written; name another, or unset it")
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise UserError(f"TMPDIR: {error.strerror}; set it to a folder that can be written") from error


def expand_home(key: str, path: str) -> str:
    """`path` with a leading `~` or `~user` replaced by the home folder; `key` begins messages.

    Raises UserError where there is no such folder, and for what can be no path.
    """
    if "\0" in path:
        raise UserError(f"{key}: {path!r} has a NUL character, and no path has one")
    if not path.startswith("~"):
        return path
    user = path[1:].partition("/")[0]
    if not user and _home() is None:
        raise UserError(f"{key}: {path}: HOME is not set, and this user has no home folder; name a folder without ~")
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise UserError(f"{key}: {path}: there is no user {user}; name a folder without ~user") from None


def cache_root(cache_dir: str | None) -> Path:
    """The folder for tokenized data: `cache_dir` of the recipe, else `$MTL_DIST_CACHE`, else one in the home folder.

    Raises UserError where none is named and there is no home folder.
    """
    named = cache_dir or os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(expand_home("data.cache_dir" if cache_dir else CACHE_VARIABLE, named))
    home = _home()
    if home is None:
        raise UserError(
            "HOME: not set, and this user has no home folder;"
            f" set {CACHE_VARIABLE} or data.cache_dir, and HF_HOME for what comes from the hub"
        )
    return home / ".cache" / "mtl_dist"


def prepare_home(cache: Path | None) -> None:
    """Gives libraries a user name, a home and caches that they can write, before they are imported.

    Changes nothing where the home folder can be written. Where there is none, it is `cache`; where there is one that
    cannot be written, caches are in `cache`. Without `cache`, that is a temporary folder, removed at exit. Raises
    UserError for a HOME that is no absolute path.
    """
    _name_user()
    home = _home()
    if home is None:
        os.environ["HOME"] = str(cache or _temporary_folder())
    elif "XDG_CACHE_HOME" not in os.environ and not _can_write(home / ".cache"):
        folder = (cache or _temporary_folder()).absolute()
        if (hub := home / ".cache" / "huggingface").exists():  # its models can be read, and nothing prepared there
            os.environ.setdefault("HF_DATASETS_CACHE", f"{os.environ.get('HF_HOME', folder / 'huggingface')}/datasets")
            os.environ.setdefault("HF_HOME", str(hub))
        os.environ["XDG_CACHE_HOME"] = str(folder)
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))


def _home() -> Path | None:
    """The home folder; None where there is none. Raises UserError for a HOME that is no absolute path."""
    named = os.environ.get("HOME")
    if named and not named.startswith("/"):
        raise UserError(f"HOME: {named} is not an absolute path")
    if not named:
        os.environ.pop("HOME", None)  # an empty one would mean the root folder to os.path.expanduser
    try:
        return Path.home()
    except RuntimeError:
        return None


def _name_user() -> None:
    """Sets USER for a user id without a name, which `getpass.getuser` cannot find out."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = str(os.getuid())


def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="mtl_dist-home-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _can_write(folder: Path) -> bool:
    """Whether `folder` can be written, or be made where it is missing."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
