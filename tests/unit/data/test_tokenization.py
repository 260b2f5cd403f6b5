import json
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import BertConfig, ByT5Tokenizer

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.data.tokenization import ColumnTokenizer, load_tokenizer
from mtl_dist.errors import UserError
from tests.utils.tiny import tiny_tokenizer

FIRST = ["cat1 sea2", "law3", "cat1 cat2 cat3 cat4 cat5 cat6", "unheard-of words"]
SECOND = ["good1", "bad1 bad2 bad3 bad4 bad5 bad6", "so1 so2 so3", "?"]
COLUMNS = pa.table({"a": FIRST, "b": SECOND})


@pytest.mark.parametrize("max_length", [4, 7, 128])
def test_single_texts_are_tokenized_as_one_by_one(max_length: int) -> None:
    tokens, _ = ColumnTokenizer(tiny_tokenizer(), ["a"], max_length)(COLUMNS)
    reference = [tiny_tokenizer()(text, truncation=True, max_length=max_length)["input_ids"] for text in FIRST]
    assert {name: lists.to_pylist() for name, lists in tokens.items()} == {"input_ids": reference}
    assert tokens["input_ids"].type == pa.list_(pa.int32())


@pytest.mark.parametrize("max_length", [4, 7, 128])
def test_sentence_pairs_are_tokenized_with_token_types(max_length: int) -> None:
    tokens, _ = ColumnTokenizer(tiny_tokenizer(), ["b", "a"], max_length)(COLUMNS)
    reference = [
        tiny_tokenizer()(*pair, truncation=True, max_length=max_length) for pair in zip(SECOND, FIRST, strict=True)
    ]
    assert {name: lists.to_pylist() for name, lists in tokens.items()} == {
        name: [row[name] for row in reference] for name in ("input_ids", "token_type_ids")
    }
    assert tokens["token_type_ids"].type == pa.list_(pa.int32())


def test_sentence_pairs_have_no_token_types_if_the_encoder_takes_none() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokens, _ = ColumnTokenizer(tokenizer, ["a", "b"], 128)(COLUMNS)
    assert list(tokens) == ["input_ids"]


def test_text_hashes_are_equal_exactly_if_all_texts_are_equal() -> None:
    columns = pa.table({"a": ["x y", "x", "x y", "x y"], "b": ["z", "y z", "z", ""]})
    _, single = ColumnTokenizer(tiny_tokenizer(), ["a"], 128)(columns)
    assert single.tolist() == [single[0], single[1], single[0], single[0]]
    assert single[0] != single[1]
    _, pairs = ColumnTokenizer(tiny_tokenizer(), ["a", "b"], 128)(columns)
    assert pairs[2] == pairs[0]
    assert len(set(pairs.tolist())) == 3


def test_tokenization_does_not_change_the_tokenizer_that_is_saved() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    ColumnTokenizer(tokenizer, ["a"], 4)(COLUMNS)
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(("text", "special"), [(["a"], 2), (["a", "b"], 3)])
def test_max_length_without_room_for_text_is_refused(text: list[str], special: int) -> None:
    with pytest.raises(UserError) as error:
        ColumnTokenizer(tiny_tokenizer(), text, special)
    message = f"data.max_length: {special} leaves no room for text; {special} tokens are special ones"
    assert str(error.value) == message
    tokens, _ = ColumnTokenizer(tiny_tokenizer(), text, special + 1)(COLUMNS)
    assert tokens["input_ids"].value_lengths().to_pylist() == [special + 1] * len(FIRST)


def test_load_tokenizer_loads_that_of_the_encoder(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(ModelConfig(encoder=str(tmp_path)))
    assert tokenizer("cat1 sea2")["input_ids"] == tiny_tokenizer()("cat1 sea2")["input_ids"]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_tokenizer(ModelConfig(encoder=str(folder)))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_missing_encoder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    assert refusal(folder).startswith(f"model.encoder: cannot load the tokenizer of {folder}: ")


def test_encoder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    complaint = "has no vocabulary; its files are missing, e.g. tokenizer.json"
    assert refusal(tmp_path) == f"model.encoder: the tokenizer of {tmp_path} {complaint}"


def test_tokenizer_without_pad_token_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    complaint = "has no pad token; set pad_token in its tokenizer_config.json"
    assert refusal(tmp_path) == f"model.encoder: the tokenizer of {tmp_path} {complaint}"


def test_tokenizer_without_fast_version_is_refused(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    complaint = "is not a fast one; add its tokenizer.json"
    assert refusal(tmp_path) == f"model.encoder: the tokenizer of {tmp_path} {complaint}"
