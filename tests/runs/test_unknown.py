"""Images unlike those learned get no class, by a limit that the held-out images of the run set."""

import json
import math

import pytest
from indexed_pictures import PICTURE_SOURCE
from pictures import picture
from PIL import Image
from tiny_runs import call, configuration

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.events import Sample
from streamcl.runs.learner import assess_predictions, load_run, unsupported_limit
from streamcl.runs.open import open_run


def options(folder, share=0.9, hold_out="40%", **more):
    return configuration(
        folder,
        source=PICTURE_SOURCE,
        max_samples=None,
        evaluate={"hold_out": hold_out},
        answer={"unknown": share},
        **more,
    )


@pytest.fixture(params=["ridge", "ridge_lora"])
def run(request, tmp_path):
    learner = {"name": "ridge_lora", "lora": {"warmup_samples": 32}}
    with open_run(options(tmp_path, learner="ridge" if request.param == "ridge" else learner)) as opened:
        list(opened)
        opened.finish()
    return opened


def samples(label, count):
    return [Sample(f"{label}{n}", picture(label, 5000 + n), label) for n in range(count)]


def test_the_limit_lies_above_the_given_share_of_the_held_out_images(run):
    loaded = load_run(run.folder, fitted=True)
    held = loaded.held_out_samples
    values = capabilities_of(loaded.learner).assessment.assess(held).unsupported
    for share in (0.5, 0.8, 0.9):
        limit = unsupported_limit(loaded, share)
        above = int((values > limit * (1 + 1e-9)).sum())
        assert above == len(held) - math.ceil(share * len(held))


def test_a_class_that_was_never_learned_is_unknown_and_most_of_the_others_are_not(run):
    loaded = load_run(run.folder, fitted=True)
    limit = unsupported_limit(loaded, 0.9)
    known, new = (
        sum(each.is_unknown for each in assess_predictions(loaded.learner, samples(label, 20), 1, limit))
        for label in ("ant", "zebra")
    )
    assert new == 20
    assert known < 8


def test_predict_says_unknown(run, tmp_path):
    for label in ("ant", "zebra"):
        Image.fromarray(picture(label, 7000)).save(tmp_path / f"{label}.png")
    code, output = call("predict", run.folder, tmp_path / "zebra.png", "--json")
    answer = json.loads(output)
    assert (code, answer["class"], answer["unknown"]) == (0, None, True)
    assert answer["novelty"] > 1
    code, output = call("predict", run.folder, tmp_path / "zebra.png")
    assert (code, "(unknown)" in output) == (0, True)


def test_without_enough_held_out_images_it_has_no_effect_and_says_so(tmp_path):
    with open_run(options(tmp_path, share=0.999, learner="ridge")) as opened:
        list(opened)
        opened.finish()
    Image.fromarray(picture("zebra", 7000)).save(tmp_path / "zebra.png")
    code, output = call("predict", opened.folder, tmp_path / "zebra.png", "--json")
    assert code == 0
    assert "answer.unknown has no effect" in output
    assert '"unknown"' not in output


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_share_is_between_a_half_and_one(share):
    with pytest.raises(ConfigError, match="unknown"):
        config_from_dict({"source": "demo_digits", "answer": {"unknown": share}})
