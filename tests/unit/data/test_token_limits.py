"""Tokenizers that exceed their encoder, fitted to it or refused, and rows refused with their place."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers.processors import TemplateProcessing

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import ModelConfig, Recipe
from mtl_dist.data.dataset import prepare
from mtl_dist.data.token_limits import TokenLimits
from mtl_dist.data.tokenization import load_tokenizer
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from tests.utils.tiny import add_word_beyond_table, tiny_recipe_file, tiny_tokenizer

TYPES = "token_type_ids"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return tiny_recipe_file(tmp_path)


def recipe_of(path: Path, *overrides: str) -> Recipe:
    return parse(["--config", str(path), *overrides]).recipe


def pair_types(tokenizer: Any) -> list[int] | None:
    """Token types that a user of the tokenizer gets for a pair; None without any."""
    return tokenizer("cat1", "sea1").get(TYPES)


def with_second_type(number: int) -> Any:
    """A tokenizer that returns token type 0 for the first text of a pair and `number` for the second."""
    tokenizer: Any = tiny_tokenizer()
    template = {"single": "[CLS] $A [SEP]", "pair": f"[CLS] $A [SEP] $B:{number} [SEP]:{number}"}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        **template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def test_token_types_are_left_out_where_the_encoder_has_one() -> None:
    for types, left_out in ((None, False), (2, False), (1, True), (0, True)):
        tokenizer = tiny_tokenizer()
        before = tokenizer.backend_tokenizer.to_str()
        TokenLimits(token_types=types).fit_tokenizer(tokenizer, pairs=True, source="x")
        assert tokenizer.backend_tokenizer.to_str() == before
        assert pair_types(tokenizer) == (None if left_out else [0, 0, 0, 1, 1])


def test_a_tokenizer_within_the_types_of_its_encoder_stays_as_it_is() -> None:
    """So that runs on it keep the digest of their data."""
    for types, left_out in ((1, False), (0, True)):
        tokenizer = with_second_type(0)
        TokenLimits(token_types=types).fit_tokenizer(tokenizer, pairs=True, source="x")
        assert pair_types(tokenizer) == (None if left_out else [0] * 5)


def test_a_token_type_beyond_the_table_of_several_is_refused_for_pairs() -> None:
    tokenizer = with_second_type(2)
    TokenLimits(token_types=2).fit_tokenizer(tokenizer, pairs=False, source="x")
    words = r"^x: its tokenizer gives pairs of texts the token type 2, and the encoder has 2 types, 0 to 1$"
    with pytest.raises(UserError, match=words):
        TokenLimits(token_types=2).fit_tokenizer(tokenizer, pairs=True, source="x")
    TokenLimits(token_types=3).fit_tokenizer(tokenizer, pairs=True, source="x")


def test_a_pad_token_without_a_vector_is_refused() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    size = len(tokenizer)
    TokenLimits(tokens=size).fit_tokenizer(tokenizer, pairs=False, source="x")
    with pytest.raises(UserError, match=rf"^x: its .* pad token '<pad>' has ID {size - 1}, .* has {size - 1} of them"):
        TokenLimits(tokens=size - 1).fit_tokenizer(tokenizer, pairs=False, source="x")


def test_the_first_row_at_fault_is_found_in_any_slice() -> None:
    tokenizer = tiny_tokenizer()
    ids = pa.array([[9], [5, 6], [7, 8, 9], [], [9]], pa.list_(pa.int32()))
    limits = TokenLimits(tokens=9)
    word = tokenizer.convert_ids_to_tokens(9)
    beyond = f"its token {word!r} has ID 9, and the encoder has 9 of them"
    nothing = "the tokenizer makes no token of it"
    assert limits.first_fault(ids, tokenizer) == (0, beyond)
    assert limits.first_fault(ids[1:], tokenizer) == (1, beyond)
    assert limits.first_fault(ids[3:], tokenizer) == (0, nothing)
    assert TokenLimits().first_fault(ids, tokenizer) == (3, nothing)
    assert limits.first_fault(ids[1:2], tokenizer) is None
    assert limits.first_fault(ids[:0], tokenizer) is None


def test_a_tokenizer_that_never_exceeds_its_encoder_needs_no_check_of_rows() -> None:
    tokenizer = tiny_tokenizer()
    assert not TokenLimits().exceeded_by(tokenizer)
    assert not TokenLimits(tokens=len(tokenizer)).exceeded_by(tokenizer)
    assert TokenLimits(tokens=len(tokenizer) - 1).exceeded_by(tokenizer)
    bare: Any = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    assert TokenLimits().exceeded_by(bare)  # without special tokens, a text may give none at all


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_with_a_token_beyond_the_table_is_refused_with_its_place(recipe_file: Path, split: str) -> None:
    token = add_word_beyond_table(recipe_file.parent / "encoder", "zebra")
    limits, recipe = TokenLimits(tokens=token), recipe_of(recipe_file, "data.empty_text=skip")
    prepare(recipe, ProcessGroup(), limits)  # a token that no row has does no harm
    file = recipe_file.parent / f"data/mood.{split}.json"
    lines = file.read_text().splitlines()
    lines[1] = '{"text": "", "label": 1}'  # left out, and counted
    lines[5] = '{"text": "good1 zebra", "label": 2}'
    file.write_text("\n".join(lines) + "\n")
    words = rf"^tasks.mood: {split} row 5 \(from 0\): its token 'zebra' has ID {token}, and the encoder has {token}"
    for _ in range(2):  # tokenized, and from the cache, which other encoders share
        with pytest.raises(UserError, match=words):
            prepare(recipe, ProcessGroup(), limits)
    prepare(recipe, ProcessGroup(), TokenLimits(tokens=token + 1))


def test_the_tokenizer_of_a_run_is_saved_as_it_was_fitted(recipe_file: Path, tmp_path: Path) -> None:
    data = prepare(recipe_of(recipe_file), ProcessGroup(), TokenLimits(token_types=1))
    data.tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_text((recipe_file.parent / "encoder/config.json").read_text())
    assert pair_types(load_tokenizer(ModelConfig(encoder=str(tmp_path / "saved")))) is None
