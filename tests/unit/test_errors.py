from mtl_dist.errors import MOST_LISTED, clip, did_you_mean, list_some


def test_a_list_of_names_is_cut_and_says_how_many_there_are_beyond() -> None:
    names = [f"n{index}" for index in range(2000)]
    assert list_some(names[:MOST_LISTED]) == ", ".join(names[:MOST_LISTED])
    assert list_some(names[: MOST_LISTED + 1]).endswith(", n9 and 1 more")
    assert list_some(names).endswith(", n9 and 1990 more")
    assert list_some([]) == ""


def test_names_to_choose_from_stay_readable() -> None:
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", ["a", "b"]) == "; choose from a, b"
    assert did_you_mean("zzz", (f"n{index}" for index in range(12))).endswith("n9 and 2 more")
    assert did_you_mean("n3", ["n3x"], prefix="tasks.") == "; did you mean tasks.n3x?"
    texts = [f"{index} is a text in place of a label; {'it is long ' * 999}" for index in range(2000)]
    assert len(did_you_mean("zzz", texts)) < 1000
    assert len(did_you_mean(texts[0] + "!", texts)) < 120


def test_a_long_text_is_clipped() -> None:
    assert (clip("abc", 3), clip("abcd", 3)) == ("abc", "ab…")


def test_names_with_line_ends_leave_a_message_on_one_line() -> None:
    assert list_some(["a\nb", "\u200b", "é x"]) == r"a\nb, \u200b, é x"
    assert did_you_mean("a\nb", ["a\nbc"]) == r"; did you mean a\nbc?"
