"""Parts of a user's own that raise while a run is built: the error names the part."""

import pytest
from tiny_runs import configuration

from streamcl.errors import ConfigError, SourceError
from streamcl.registry import call_with
from streamcl.runs.open import open_run

PARTS = """
import numpy as np

def part(*context, fault):
    raise {"value": ValueError, "type": TypeError, "key": KeyError, "runtime": RuntimeError}[fault]("torn")

class Pictures:
    def __init__(self, length=4, torn=None):
        self.length, self.torn = length, torn

    def __len__(self):
        if self.length < 0:
            raise RuntimeError("no length")
        return self.length

    def __getitem__(self, index):
        if index == self.torn:
            raise RuntimeError("torn")
        return np.zeros((4, 4, 3), np.uint8), index % 2
"""


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    (tmp_path / "raising_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))


def opened(folder, **more):
    with open_run(configuration(folder, **more)):
        raise AssertionError("it opened")


@pytest.mark.parametrize("fault", ["value", "type", "key", "runtime"])
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("shift", "shift.args: the detector 'raising_parts:part' cannot be made"),
        ("learner", "learner.args: the learner 'raising_parts:part' cannot be made"),
        ("sinks", "the sink 'raising_parts:part' cannot be made"),
    ],
)
def test_a_part_that_cannot_be_made_is_named(tmp_path, own_parts, kind, named, fault):
    part = {"class": "raising_parts:part", "args": {"fault": fault}}
    with pytest.raises(ConfigError, match=rf"{named}: .*torn"):
        opened(tmp_path, **{kind: [part] if kind == "sinks" else part})


@pytest.mark.parametrize("kind", ["shift", "learner"])
def test_the_message_has_the_nearest_argument(tmp_path, own_parts, kind):
    with pytest.raises(ConfigError, match="did you mean 'fault'"):
        opened(tmp_path, **{kind: {"class": "raising_parts:part", "args": {"fualt": "value"}}})


@pytest.mark.parametrize(
    "made",
    [
        lambda context, /, depth, rank=2: (context, depth, rank),
        lambda *context, depth, rank=2: (*context, depth, rank),
    ],
    ids=["positional only", "any number"],
)
def test_the_arguments_after_the_context_are_the_configurations(made):
    assert call_with(made, "learner 'own'", {"depth": 3}, "context") == ("context", 3, 2)
    with pytest.raises(ConfigError, match="needs the argument 'depth'"):
        call_with(made, "learner 'own'", {}, "context")


@pytest.mark.parametrize("scenario", [None, "iid"])
@pytest.mark.parametrize("fault", ["value", "type", "key"])
def test_a_source_that_cannot_be_made_is_named(tmp_path, own_parts, scenario, fault):
    source = {"class": "raising_parts:part", "args": {"fault": fault}}
    with pytest.raises(SourceError, match=r"part could not be made: .*torn"):
        opened(tmp_path, source=source, scenario=scenario)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"length": -1}, "Pictures cannot be inspected: RuntimeError: no length"),
        ({"torn": 2}, "Pictures failed at record 2: RuntimeError: torn"),
    ],
)
def test_a_data_set_in_a_scenario_that_raises_is_named(tmp_path, own_parts, args, said):
    with pytest.raises(SourceError, match=said):
        opened(tmp_path, source={"class": "raising_parts:Pictures", "args": args}, scenario="iid")
