"""One canonical form of JSON for checkpoints, receipts, the ledger and fingerprints."""

import ast
import hashlib
import json
import math
from pathlib import Path

import pytest

from streamcl.storage.canonical_json import canonical_json, sha256_of_json

ROOT = Path(__file__).parents[2]


def test_keys_are_sorted_and_nothing_is_left_to_the_machine():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    assert json.loads(canonical_json(0.1 + 0.2)) == 0.1 + 0.2


def test_the_hash_is_that_of_the_bytes():
    assert sha256_of_json([1]) == hashlib.sha256(b"[1]").hexdigest()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([value])


def test_no_other_module_writes_canonical_json():
    """A second writer could differ in a byte: whoever sorts keys and drops spaces calls this one."""
    for path in [*(ROOT / "streamcl").rglob("*.py"), *(ROOT / "streams").rglob("*.py")]:
        text = path.read_text()
        if "sort_keys" not in text or "separators" not in text:
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        options = [{each.arg for each in call.keywords} for call in calls]
        if any({"sort_keys", "separators"} <= each for each in options):
            assert path.name == "canonical_json.py", path
