import json
import math

import pytest

from mtl_dist.io import valid_json


def test_numbers_that_are_not_finite_are_null_wherever_they_are() -> None:
    content = {
        "a": math.nan,
        "b": [1.5, -math.inf, {"c": (math.inf, 2)}],
        "d": "NaN",
        "e": True,
        "f": None,
        "g": 10**400,
    }
    expected = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": True, "f": None, "g": 10**400}
    for indent in (None, 2):
        assert json.loads(valid_json(content, indent), parse_constant=pytest.fail) == expected
    assert valid_json({"a": 0.1, "b": 1}, 2) == json.dumps({"a": 0.1, "b": 1}, indent=2)
