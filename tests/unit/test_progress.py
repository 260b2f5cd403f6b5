from types import SimpleNamespace

import pytest

from mtl_dist import progress
from mtl_dist.progress import show_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of `progress`, which stands still unless a test sets `now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_log_begins_with_the_total_if_asked_to() -> None:
    lines: list[str] = []
    with show_progress(
        "t: train", "rows", 25, bar=False, log=lines.append, first_line=True, last_line=False
    ) as advance:
        assert lines == ["t: train 25 rows"]
        for _ in range(25):
            advance(1)
    assert lines == ["t: train 25 rows"]


def test_a_log_has_at_most_one_line_every_ten_seconds(clock: SimpleNamespace) -> None:
    lines: list[str] = []
    with show_progress("t: train", "rows", 65, bar=False, log=lines.append, last_line=False) as advance:
        for done in range(10, 75, 10):
            clock.now += 4.0
            advance(min(10, 75 - done))
    assert lines == ["t: train 30/65 rows", "t: train 60/65 rows"]


def test_a_log_ends_with_a_line_when_all_is_done_however_fast(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_progress("predict", "rows", 25, bar=False) as advance:
        for count in (10, 10, 5):
            advance(count)
    assert capsys.readouterr() == ("", "predict 25/25 rows\n")


def test_without_a_total_a_log_has_the_number_done(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("predict", "rows", None, bar=False) as advance:
        advance(10)
        clock.now += 10.0
        advance(10)
    assert capsys.readouterr().err == "predict 20 rows\n"


def test_on_a_terminal_a_bar_ends_full(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_LINE_SECONDS", 0.0)
    lines: list[str] = []
    with show_progress("t: train", "rows", 25, bar=True, log=lines.append, first_line=True) as advance:
        for count in (10, 10, 5):
            advance(count)
    assert lines == []
    shown = capsys.readouterr().err
    assert "25/25" in shown
    assert "row/s" in shown


@pytest.mark.parametrize("is_terminal", [True, False])
def test_by_default_there_is_a_bar_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    with show_progress("predict", "rows", 3) as advance:
        advance(3)
    assert ("predict: 100%" in capsys.readouterr().err) == is_terminal
