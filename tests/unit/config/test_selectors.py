import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.selectors import check_selectors, select
from mtl_dist.errors import UserError

TASKS = ["sentiment", "topic"]
EMBEDDINGS, HEADS = ("embeddings",), ("heads.sentiment", "heads.topic")
BLOCKS = tuple(f"blocks.{index}" for index in range(6))


@pytest.mark.parametrize(
    ("selectors", "units"),
    [
        ([], ()),
        (["all"], (*EMBEDDINGS, *BLOCKS, *HEADS)),
        (["backbone"], (*EMBEDDINGS, *BLOCKS)),
        (["heads"], HEADS),
        (["heads.topic"], ("heads.topic",)),
        (["heads.topic", "heads.sentiment"], HEADS),
        (["heads", "blocks[-1]", "blocks[0]", "embeddings"], (*EMBEDDINGS, BLOCKS[0], BLOCKS[5], *HEADS)),
        (["blocks[:]", "heads"], (*BLOCKS, *HEADS)),
        (["blocks[4:6]", "blocks[:2]"], (*BLOCKS[:2], *BLOCKS[4:])),
        (["blocks[-6:6]"], BLOCKS),
    ],
)
def test_units_in_canonical_order(selectors: list[str], units: tuple[str, ...]) -> None:
    assert select(selectors, TASKS, 6, "freeze") == units
    check_selectors(selectors, TASKS, "freeze")


@settings(deadline=None)
@given(st.integers(1, 30), st.data())
def test_index_is_a_python_index(num_blocks: int, data: st.DataObject) -> None:
    blocks = [f"blocks.{index}" for index in range(num_blocks)]
    index = data.draw(st.integers(-num_blocks, num_blocks - 1))
    assert select([f"blocks[{index}]"], [], num_blocks, "freeze") == (blocks[index],)


@settings(deadline=None)
@given(st.integers(1, 30), st.none() | st.integers(-40, 40), st.none() | st.integers(-40, 40))
def test_range_is_a_python_slice_or_refused(num_blocks: int, start: int | None, stop: int | None) -> None:
    blocks = [f"blocks.{index}" for index in range(num_blocks)]
    selector = f"blocks[{'' if start is None else start}:{'' if stop is None else stop}]"
    inside = (start is None or start in range(-num_blocks, num_blocks)) and (
        stop is None or stop in range(-num_blocks, num_blocks + 1)
    )
    expected = tuple(blocks[start:stop])
    if inside and expected:
        assert select([selector], ["a"], num_blocks, "freeze") == expected
    else:
        with pytest.raises(UserError, match=rf"^freeze: .*encoder has {num_blocks}"):
            select([selector], ["a"], num_blocks, "freeze")


@settings(deadline=None)
@given(st.lists(st.text() | st.from_regex(r"(heads|blocks)[.\[]-?[0-9:]*\]?")), st.integers(0, 4))
def test_only_user_errors_of_one_line(selectors: list[str], num_blocks: int) -> None:
    for function in (lambda: select(selectors, ["a"], num_blocks, "w"), lambda: check_selectors(selectors, ["a"], "w")):
        message = "w: "
        try:
            function()
        except UserError as error:
            message = str(error)
        assert message.startswith("w: ")
        assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        (["blocks"], "phases[1].train: 'blocks' is not one of heads, "),
        (["blocks[]"], "phases[1].train: 'blocks[]' is not one of "),
        (["blocks[1:2:3]"], "phases[1].train: 'blocks[1:2:3]' is not one of "),
        (["blocks[-]"], "phases[1].train: 'blocks[-]' is not one of "),
        (["blocks[99999]"], "phases[1].train: 'blocks[99999]' is not one of "),
        (["Heads"], "phases[1].train: 'Heads' is not one of "),
        (["heads.sentimnet"], "phases[1].train: no task 'sentimnet'; did you mean sentiment?"),
        (["heads."], "phases[1].train: no task ''; choose from sentiment, topic"),
        (["all", "heads"], "phases[1].train: all and heads both name heads.sentiment"),
        (["heads.topic", "heads"], "phases[1].train: heads.topic and heads both name heads.topic"),
        (["backbone", "embeddings"], "phases[1].train: backbone and embeddings both name embeddings"),
        (["heads", "heads"], "phases[1].train: heads and heads both name heads.sentiment"),
    ],
)
def test_mistakes_known_without_the_encoder(selectors: list[str], message: str) -> None:
    for function in (check_selectors, lambda s, t, where: select(s, t, 6, where)):
        with pytest.raises(UserError) as error:
            function(selectors, TASKS, "phases[1].train")
        assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "selectors", [["all", "blocks[-2:]"], ["blocks[0]", "backbone"], ["blocks[:2]", "heads", "blocks[:2]"]]
)
def test_sure_overlap_of_blocks_needs_no_encoder(selectors: list[str]) -> None:
    with pytest.raises(UserError, match=r"^freeze: .* both name blocks\["):
        check_selectors(selectors, TASKS, "freeze")


def test_overlap_of_ranges_depends_on_the_encoder() -> None:
    selectors = ["blocks[:4]", "blocks[-4:]"]
    check_selectors(selectors, TASKS, "freeze")
    assert len(select(selectors, TASKS, 8, "freeze")) == 8
    with pytest.raises(UserError, match=r"^freeze: blocks\[:4\] and blocks\[-4:\] both name blocks.2$"):
        select(selectors, TASKS, 6, "freeze")


@pytest.mark.parametrize("selector", ["blocks[6]", "blocks[-7]", "blocks[6:]", "blocks[-7:]", "blocks[2:7]"])
def test_block_beyond_the_encoder(selector: str) -> None:
    with pytest.raises(UserError) as error:
        select([selector], TASKS, 6, "freeze")
    assert str(error.value) == f"freeze: {selector}: the encoder has 6 blocks, 0 to 5"


def test_range_without_blocks() -> None:
    with pytest.raises(UserError, match=r"^freeze: blocks\[3:3\]: names no block"):
        select(["blocks[3:3]"], TASKS, 6, "freeze")
