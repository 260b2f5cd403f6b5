"""Settings of a new recipe, and YAML words."""

from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mtl_dist.inspection.settings import lengths_of, settings_for
from mtl_dist.inspection.yaml_words import comment, word, words


def test_the_length_covers_95_percent_and_fits_the_encoder() -> None:
    tokens = [*range(3, 103)]
    lengths = lengths_of(tokens)
    assert (lengths.median, lengths.percentile_95, lengths.longest) == (53, 98, 102)
    assert settings_for(5000, lengths, 12, 512, False, 1).max_length == 104
    assert settings_for(5000, lengths, 12, 64, False, 1).max_length == 64
    assert settings_for(5000, lengths_of([4, 5]), 12, 512, False, 1).max_length == 16
    assert settings_for(5000, lengths_of([9000]), 12, None, False, 1).max_length == 512


def test_more_rows_take_fewer_passes_and_steps_and_warm_up_follow() -> None:
    lengths, before = lengths_of([20]), 99.0
    for rows in (50, 1999, 2000, 20_000, 200_000, 10**7):
        found = settings_for(rows, lengths, 6, 512, True, 1)
        assert sum(found.epochs) <= before
        before = sum(found.epochs)
        steps = sum(-(-int(part * rows * 100) // (found.batch_size * 100)) for part in found.epochs)
        assert abs(found.total_steps - steps) <= 3
        assert 1 <= found.warmup_steps <= max(1, 0.1 * found.total_steps)
    assert settings_for(50, lengths, 6, 512, True, 11).batch_size == 11  # a row of each source


def test_the_encoder_decides_on_blocks_and_rates() -> None:
    for blocks, upper in ((1, 1), (2, 1), (4, 1), (6, 2), (12, 4), (24, 8)):
        assert settings_for(5000, lengths_of([20]), blocks, 512, False, 1).upper == upper
    assert [settings_for(5000, lengths_of([20]), 6, 512, small, 1).lr for small in (True, False)] == [3e-4, 2e-5]


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\n\r\x85\u2028${}\\\"'[],:# -"))


@example(["${a}", "\\${oc.env:HOME}", "\\\\${"])
@example(["${a}.csv"])
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_words_are_read_back_by_the_recipe_loader(values: list[str]) -> None:
    for text in (f"key: {words(values)}", f"key: {{inner: {words(values)}}}", f"{word(values[0])}: 1"):
        read = OmegaConf.to_container(OmegaConf.create(text), resolve=not text.endswith(": 1"))
        assert isinstance(read, dict)
        if text.endswith(": 1") and text.startswith(word(values[0])) and "${" not in values[0]:
            assert list(read) == [values[0]]
        elif not text.endswith(": 1"):
            (found,) = read.values()
            found = found["inner"] if isinstance(found, dict) else found
            assert found == (values[0] if len(values) == 1 else values)


@given(TEXT)
def test_a_comment_ends_with_its_line(text: str) -> None:
    assert OmegaConf.to_container(OmegaConf.create(f"a: 1  # {comment(text)}\nb: 2")) == {"a": 1, "b": 2}
