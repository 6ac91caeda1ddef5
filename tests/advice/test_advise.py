"""streamcl advise: candidates compared on the stream's own images; nothing is written, tests are not read."""

import json

import click
import pytest
import yaml
from click.testing import CliRunner
from tiny_runs import TINY

from streamcl import open_run
from streamcl.advice.advise import advise
from streamcl.advice.front import Budget
from streamcl.advice.wording import advice_patch
from streamcl.cli import cli
from streamcl.config.load import load_config
from streamcl.errors import ConfigError, SourceError
from streamcl.factory.probe import draw_probe

SOURCES = """
from pictures import picture

class Pictures:
    '''Sixty pictures by their index, of classes that take turns; test images that cannot be read.'''

    def __init__(self, labels=("ant", "bee", "cow"), labelled=True, rare=0):
        self._labels, self._labelled, self._rare = labels, labelled, rare

    def __len__(self):
        return 60

    def __getitem__(self, index):
        label = "yak" if index < self._rare else self._labels[index % len(self._labels)]
        record = {"image": picture(label, index), "id": f"picture-{index}"}
        return {**record, "label": label} if self._labelled else record

    @property
    def holdout(self):
        return TestPictures()

class TestPictures:
    def __len__(self):
        return 10

    def __getitem__(self, index):
        raise AssertionError("a test image was read")

def once():
    yield from (Pictures()[index] for index in range(60))
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "probed_pictures.py").write_text(SOURCES)
    return tmp_path


def write(folder, learner="ridge", **more):
    options = {
        "run_dir": str(folder / "run"),
        "source": {"class": "probed_pictures:Pictures"},
        "batch": 8,
        "threads": 1,
        "precision": "32-true",
        "backbone": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY},
        "learner": learner,
        "shift": "none",
        **more,
    }
    path = folder / "pictures.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def call(config, *arguments):
    command = ["advise", str(config), "--probe", "30", *arguments]
    return CliRunner().invoke(cli, command, standalone_mode=False)


def compared(config, budget=None, **more):
    return advise(lambda further: load_config(config, further), budget or Budget(), images=30, **more)


@pytest.mark.parametrize("learner", ["ridge", "ridge_lora"])
def test_the_recommendation_is_a_configuration_that_runs(work, learner):
    config = write(work, learner)
    result = call(config, "--json")
    assert result.return_value == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["images"], found["classes"]) == (30, 3)
    places = {(each["image_size"], each["depth"], *each["blocks"]) for each in found["candidates"]}
    assert places == {(size, *rest) for size in (16, 32, 48) for rest in ((2, 1), (3, 0, 2), (3, 2))}
    assert found["recommended"] in found["candidates"]
    assert found["recommended"]["within_budget"]
    assert not (work / "run").exists()
    settings = load_config(config, [*found["set"], "evaluate.at_stream_end=false"])
    with open_run(settings) as run:
        assert len(list(run)) == 60
        assert run.learner.backbone.image_size == found["recommended"]["image_size"]


def test_the_patch_goes_over_the_configuration(work):
    config = write(work)
    found = compared(config)
    patch = yaml.safe_load(advice_patch(found))
    merged = yaml.safe_load(config.read_text())
    merged["backbone"] |= patch.pop("backbone")
    config.write_text(yaml.safe_dump(merged | patch))
    chosen = found.shown.candidate
    assert load_config(config).backbone.image_size == chosen.image_size
    assert load_config(config).learner.blocks == list(chosen.blocks)


def test_the_same_images_give_the_same_accuracies(work):
    config = write(work)
    first, second = compared(config), compared(config)
    assert [each.costs.accuracy for each in first.assessed] == [
        each.costs.accuracy for each in second.assessed
    ]
    assert [each.candidate for each in first.assessed] == [each.candidate for each in second.assessed]
    assert all(0 < each.costs.seconds < 60 for each in first.assessed)


def test_a_deeper_and_larger_candidate_takes_more_memory(work):
    found = {each.candidate: each.costs.memory for each in compared(write(work)).assessed}
    small, large = (
        min(found, key=lambda each: (each.image_size, each.depth)),
        max(found, key=lambda each: (each.image_size, each.depth, len(each.blocks))),
    )
    assert found[small] < found[large]


@pytest.mark.long
def test_where_nothing_fits_the_nearest_is_shown_and_the_exit_code_says_so(work):
    config = write(work)
    result = call(config, "--memory", "1MB")
    assert result.return_value == 8
    assert "None is within 1 MB. The nearest:" in result.output
    assert "over the budget" in result.output
    found = json.loads(call(config, "--memory", "1MB", "--json").stdout)
    assert found["recommended"] is None
    assert found["nearest"]["memory_mb"] == min(each["memory_mb"] for each in found["candidates"])


def test_the_table_names_the_front_and_the_command(work):
    config = write(work)
    result = call(config, "--latency", "10s")
    assert result.return_value == 0
    assert "9 candidates on 30 images of 3 classes" in result.output
    assert f"streamcl run {config} --set backbone.image_size=" in result.output
    assert "\n>" in result.output


def test_further_backbones_are_compared(work):
    config = write(work)
    result = call(config, "--json", "--backbone", "vit_small_patch16_224=none")
    found = json.loads(result.stdout)
    assert {each["backbone"] for each in found["candidates"]} == {
        "vit_tiny_patch16_224",
        "vit_small_patch16_224",
    }
    assert len(found["candidates"]) == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--latency", "soon"], "'soon' is no duration; write 2s, 500ms"),
        (["--latency", "20"], "'20' is no duration"),
        (["--latency", "0ms"], "not more than 0"),
        (["--memory", "much"], "'much' is no size; write 64MB"),
        (["--backbone", "vit_base"], "expected NAME=WEIGHTS"),
        (["--probe", "8"], "too small for 3 classes"),
        (["--set", "learner=online_lora"], "ridge and ridge_lora"),
        (["--set", "source={class: 'probed_pictures:once'}"], "cannot be probed"),
        (["--set", "source={name: folder, args: {root: inbox}}"], "cannot be probed"),
        (["--set", "source.args={labelled: false}"], "0 labelled samples"),
        (["--set", "source.args={labels: [ant]}"], "1 classes with 3 of them or more"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(work, arguments, message):
    (work / "inbox").mkdir()
    result = call(write(work), *arguments)
    assert message in str(result.exception)
    assert isinstance(result.exception, ConfigError | SourceError | click.BadParameter)


def test_classes_with_too_few_images_are_left_out_and_counted(work):
    config = load_config(write(work, source={"class": "probed_pictures:Pictures", "args": {"rare": 2}}))
    probe = draw_probe(config, 30)
    assert probe.rare == ("yak",)
    assert probe.classes == ("ant", "bee", "cow")


def test_a_probe_has_three_of_each_class_and_each_image_once(work):
    config = load_config(write(work, source={"class": "probed_pictures:Pictures", "args": {"rare": 3}}))
    probe = draw_probe(config, 20)
    drawn = [sample for chunk in probe.chunks(8) for sample in chunk]
    assert len({sample.id for sample in drawn}) == len(drawn) == 20
    assert sum(sample.label == "yak" for sample in drawn) == 3
    assert all(sample.image.size for sample in drawn)
    assert len(draw_probe(config, 1000).labels) == 60


@pytest.mark.parametrize("delay", [None, 4])
def test_labels_that_come_later_are_labels_too(work, delay):
    scenario = {"name": "iid"} if delay is None else {"name": "iid", "delay": delay}
    config = write(work, source="demo_digits", scenario=scenario, labels={"max_waiting": 64}, max_samples=200)
    probe = draw_probe(load_config(config), 30)
    assert len(probe.classes) == 10
    assert {sample.label for chunk in probe.chunks(8) for sample in chunk} == set(probe.classes)


def test_no_more_of_the_stream_is_probed_than_the_run_learns(work):
    config = load_config(write(work, max_samples=24))
    ids = draw_probe(config, 1000).labels
    assert len(ids) == 24
    assert all(int(each.removeprefix("picture-")) < 24 for each in ids)


@pytest.mark.long
def test_proxies_and_a_plot_are_made_where_they_are_asked_for(work):
    config = write(work)
    result = call(config, "--json", "--proxies", "--plot", str(work / "advice.svg"))
    found = json.loads(result.stdout)
    names = {"params", "flops", "logme", "h_score", "zico", "grad_norm", "snip"}
    assert all(each["proxies"].keys() == names for each in found["candidates"])
    assert found["agreement"].keys() == names
    assert (work / "advice.svg").read_text().startswith("<?xml")
    text = call(config, "--proxies").output
    assert "Kendall's tau of all" in text
    assert not json.loads(call(config, "--json").stdout)["agreement"]
