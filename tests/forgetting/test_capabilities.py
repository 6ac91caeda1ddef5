"""What a learner can do is what it declares; methods that happen to have a telling name declare nothing."""

import json
from types import SimpleNamespace

import pytest
from forgetting_fakes import ForgettingLearner, Opened

from streamcl.capabilities.declaration import Capabilities, capabilities_of
from streamcl.events import ForgetRequest
from streamcl.testing import FakeLearner, ScriptedSource


class Homonyms(ForgettingLearner):
    """Its methods mean something else to whoever wrote it."""

    noise = model = importance = over_capacity = widths = None
    buffer = SimpleNamespace(samples=())

    def shared(self, *_):
        return ("adapters",)

    shared_weights = weights_trained_on = selected_cohorts = sample_count = drop_cohorts = shared
    features = read = refresh_features = scores = drop_adapted = purge = shared
    user_sample_count = forget_subject = forget_users = listen = rows = gathered = shared


def claims(folder, learner):
    """The receipt of a class, as far as it depends on the learner."""
    schedule = [ForgetRequest(label="odd", offset=12, id="r1", on_return="learn")]
    with Opened(folder, ScriptedSource([4] * 6), learner=learner, schedule=schedule) as run:
        run.run()
    receipt = json.loads((folder / "receipts" / "r1.json").read_text())
    return {
        name: receipt[name]
        for name in ("outcome", "method", "guarantee", "locations", "figures", "method_reason")
    }


def test_methods_with_telling_names_change_nothing_that_a_receipt_claims(tmp_path):
    plain = claims(tmp_path / "plain", ForgettingLearner())
    assert plain["guarantee"] == "exact"
    assert claims(tmp_path / "homonyms", Homonyms()) == plain


def test_a_learner_that_declares_nothing_has_no_capability():
    assert capabilities_of(FakeLearner()) == Capabilities()


def test_a_declaration_of_another_type_is_refused():
    class Method(FakeLearner):
        def capabilities(self):
            return Capabilities()

    with pytest.raises(TypeError, match="expected a property"):
        capabilities_of(Method())
