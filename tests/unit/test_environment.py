import getpass
import os
import pwd
from pathlib import Path

import pytest

from mtl_dist.config.load import parse
from mtl_dist.environment import (
    cache_root,
    check_variables,
    expand_home,
    has_launcher,
    is_rank_0,
    is_set,
    prepare_home,
)
from mtl_dist.errors import UserError
from tests.utils.tiny import tiny_recipe_file

CACHES = ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "WANDB_DATA_DIR")
FLAGS = (
    *(f"ACCELERATE_USE_{name}" for name in ("CPU", "FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")),
    *(f"ACCELERATE_{name}" for name in ("DEBUG_MODE", "CPU_AFFINITY", "ENABLE_RICH", "DYNAMO_USE_FULLGRAPH")),
)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process without HOME, whose user is in no passwd file; what is set during the test is restored."""

    def unknown(user: int | str) -> None:
        raise KeyError(user)

    for name in ("HOME", "MTL_DIST_CACHE", "LOGNAME", "USER", "LNAME", "USERNAME", *CACHES):
        monkeypatch.setenv(name, "")  # so that its value is restored even if the test sets it
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    return monkeypatch


def refusal(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as error:
        check_variables()
    return str(error.value)


@pytest.mark.parametrize("variable", FLAGS)
@pytest.mark.parametrize("word", ["junk", "", "2"])
def test_a_flag_that_is_no_truth_value_is_refused(variable: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"{variable}: {word!r} is no truth value; use true or false, or unset it"
    assert refusal(variable, word, monkeypatch) == message


@pytest.mark.parametrize("word", ["1", "true", "True", "YES", "on", "y", "t", "0", "false", "No", "off", "n", "f"])
def test_flags_are_read_as_accelerate_reads_them(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import str_to_bool

    monkeypatch.setenv("ACCELERATE_USE_CPU", word)
    check_variables()
    assert is_set("ACCELERATE_USE_CPU") == bool(str_to_bool(word))


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("word", ["abc", "", "-1", "1.5", "\u0661"])
def test_a_number_that_is_none_is_refused(variable: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(variable, word, monkeypatch).startswith(f"{variable}: {word!r} is not a whole number from ")


def test_zero_steps_of_accumulation_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    assert refusal(variable, "0", monkeypatch) == f"{variable}: '0' is not a whole number from 1 on; unset it"


def test_an_unknown_log_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("ACCELERATE_LOG_LEVEL", "loud", monkeypatch).startswith("ACCELERATE_LOG_LEVEL: 'loud' is no level")
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "info")
    check_variables()


@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "TMP"])
def test_a_folder_for_temporary_files_that_is_none_is_refused(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in {"TMPDIR", "TEMP", "TMP"} - {variable}:
        monkeypatch.delenv(other, raising=False)
    (tmp_path / "file").write_text("")
    for missing in (tmp_path / "missing", tmp_path / "file"):
        message = f"{variable}: {missing} is no folder that can be written; name another, or unset it"
        assert refusal(variable, str(missing), monkeypatch) == message
    monkeypatch.setenv(variable, str(tmp_path))
    check_variables()


@pytest.mark.parametrize("launcher", [None, "TORCHELASTIC_RESTART_COUNT", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_rank_counts_only_if_a_launcher_has_set_it(launcher: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    if launcher:
        monkeypatch.setenv(launcher, "2")
    assert has_launcher() == (launcher is not None)
    assert is_rank_0() == (launcher is None)


def test_the_cache_is_the_recipes_or_the_variables_or_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    monkeypatch.delenv("MTL_DIST_CACHE", raising=False)
    assert cache_root(None) == Path("/homes/me/.cache/mtl_dist")
    monkeypatch.setenv("MTL_DIST_CACHE", "~/c")
    assert cache_root(None) == Path("/homes/me/c")
    assert cache_root("~/d") == Path("/homes/me/d")


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_a_folder_has_to_be_named(home: str | None, homeless: pytest.MonkeyPatch) -> None:
    if home is not None:
        homeless.setenv("HOME", home)
    with pytest.raises(UserError, match=r"^HOME: not set, .*; set MTL_DIST_CACHE or data\.cache_dir, and HF_HOME "):
        cache_root(None)
    assert cache_root("cache") == Path("cache")
    homeless.setenv("MTL_DIST_CACHE", "~/cache")
    with pytest.raises(UserError, match=r"^MTL_DIST_CACHE: ~/cache: HOME is not set, .*; name a folder without ~$"):
        cache_root(None)


def test_an_empty_home_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """To os.path.expanduser it is the root folder."""
    monkeypatch.setenv("HOME", "")
    assert expand_home("key", "~/a") == f"{pwd.getpwuid(os.getuid()).pw_dir}/a"


def test_a_home_that_is_no_absolute_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "me")
    with pytest.raises(UserError, match=r"^HOME: me is not an absolute path$"):
        expand_home("key", "~")


def test_tildes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    assert [expand_home("key", path) for path in ("~", "~/a b", "a~", "./~", "/a/~")] == [
        *("/homes/me", "/homes/me/a b"),
        *("a~", "./~", "/a/~"),
    ]
    me = pwd.getpwuid(os.getuid())
    assert expand_home("key", f"~{me.pw_name}/a") == f"{me.pw_dir}/a"
    with pytest.raises(UserError, match=r"^key: ~nobody-here/a: there is no user nobody-here; "):
        expand_home("key", "~nobody-here/a")


def test_a_nul_in_a_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"^key: 'a\\x00b' has a NUL character, and no path has one$"):
        expand_home("key", "a\0b")


def test_a_recipe_may_name_folders_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"output_dir": "~/runs/first", "cache.folder": "~/c", "data.cache_dir": "~/d", "model.encoder": "~/e"}
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = parse(["--config", str(tiny_recipe_file(tmp_path)), *map("=".join, keys.items())]).recipe
    assert recipe.output_dir == f"{tmp_path}/runs/first"
    assert (recipe.cache.folder, recipe.data.cache_dir) == (f"{tmp_path}/c", f"{tmp_path}/d")
    assert recipe.model.encoder == f"{tmp_path}/e"


@pytest.mark.parametrize("key", ["output_dir", "cache.folder", "data.cache_dir", "model.encoder"])
def test_without_a_home_a_recipe_may_not_name_it(key: str, tmp_path: Path, homeless: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"^{key}: ~/x: HOME is not set, .*; name a folder without ~$"):
        parse(["--config", str(tiny_recipe_file(tmp_path)), f"{key}=~/x"])


def test_a_process_without_home_and_name_gets_both(tmp_path: Path, homeless: pytest.MonkeyPatch) -> None:
    prepare_home(tmp_path / "cache")
    assert Path.home() == tmp_path / "cache"
    assert getpass.getuser() == str(os.getuid())


def test_without_a_cache_the_home_is_a_temporary_folder(homeless: pytest.MonkeyPatch) -> None:
    prepare_home(None)
    assert Path.home().is_dir()
    assert list(Path.home().iterdir()) == []


@pytest.mark.parametrize("hub", [False, True])
def test_caches_are_elsewhere_if_the_home_cannot_be_written(
    hub: bool, tmp_path: Path, homeless: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True) if hub else home.mkdir()
    homeless.setenv("HOME", str(home))
    prepare_home(tmp_path / "cache")
    assert not os.environ.keys() & set(CACHES)
    homeless.setattr(os, "access", lambda *_: False)  # root can write everywhere
    prepare_home(tmp_path / "cache")
    expected = {"XDG_CACHE_HOME": f"{tmp_path}/cache", "WANDB_DATA_DIR": f"{tmp_path}/cache/wandb"}
    if hub:
        expected |= {
            "HF_HOME": f"{home}/.cache/huggingface",
            "HF_DATASETS_CACHE": f"{tmp_path}/cache/huggingface/datasets",
        }
    assert {name: os.environ[name] for name in CACHES if name in os.environ} == expected
    assert os.environ["HOME"] == str(home)


def test_caches_that_are_named_stay(tmp_path: Path, homeless: pytest.MonkeyPatch) -> None:
    homeless.setenv("HOME", "/dev/null/home")  # which cannot be made
    homeless.setenv("HF_HOME", "/models")
    prepare_home(tmp_path)
    assert (os.environ["HF_HOME"], os.environ["XDG_CACHE_HOME"]) == ("/models", str(tmp_path))
