"""Escaping of markup made in Python, and the formats of numbers."""

from markupsafe import Markup

from mtl_dist.report.formatting import duration
from mtl_dist.report.markup import joined, json_script, tag


def test_text_is_escaped_and_markup_is_not() -> None:
    assert joined("<b>", tag("i", "&", title='"'), None, ["<"]) == '&lt;b&gt;<i title="&#34;">&amp;</i>&lt;'
    assert tag("p", "\ud800") == "<p>?</p>"
    assert isinstance(joined("a", Markup("<b>")), Markup)


def test_json_in_the_page_cannot_end_its_element() -> None:
    written = json_script({"n": "</script><script>x</script>&amp;", "y": [None, 1.5]})
    assert written.count("<") == 2
    assert "&" not in written


def test_durations_have_units_by_their_length() -> None:
    assert [duration(one) for one in (1.26, 59.99, 61, 3599.6, 7325)] == [
        "1.3 s",
        "60.0 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 02 min",
    ]
