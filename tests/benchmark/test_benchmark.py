"""Suites: every cell is checked before one runs, finished cells stay, interrupted ones go on."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from log_messages import logged

from streamcl.benchmark import cells as cells_module
from streamcl.benchmark.cells import SharedResources, next_cell, read_summary, run_cell, run_cells
from streamcl.benchmark.joint import refit
from streamcl.benchmark.results import FIGURES, CellResult, as_csv, as_markdown, mean_and_deviation
from streamcl.benchmark.suite import SUITES, JointOptions, Suite, cells, load_suite
from streamcl.benchmark.table import fill_table
from streamcl.errors import ConfigError, NotFinite, RunBusy
from streamcl.events import Sample
from streamcl.factory.backbone import build_compute
from streamcl.learners.baselines.finetune import NaiveLoRAOptions, build_model
from streamcl.learners.block_features import FrozenReader
from streamcl.learners.factory import LearnerContext
from streamcl.report.comparison import LearnerFigure, write_comparison
from streamcl.runs.open import open_run
from streams.replay.scenarios import Order

pytestmark = pytest.mark.long

TINY = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 16,
    "args": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
}


@pytest.fixture
def images(tmp_path):
    """An .npz of 80 pictures of four classes in two domains."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = rng.integers(0, 60, (80, 8, 8, 3)) + 45 * y[:, None, None, None]
    path = tmp_path / "pack.npz"
    meta = json.dumps({"classes": list("abcd"), "domains": ["p", "q"]})
    np.savez(path, x=x.astype(np.uint8), y=y, d=np.arange(80) // 40, meta=np.array(meta))
    return path


def suite(images, **changes):
    return Suite.model_validate(
        {
            "title": "Test",
            "seeds": 1,
            "run": {"backbone": TINY, "batch": 8, "threads": 1, "report": {"samples": 0}},
            "protocols": {"disjoint": {"run": {"scenario": {"name": "disjoint", "parts": 2}}}},
            "sources": {
                "pack": {
                    "needs": [str(images)],
                    "protocols": ["disjoint"],
                    "run": {"source": {"name": "npz", "args": {"path": str(images)}}},
                }
            },
            "learners": {
                "ridge": {"run": {"learner": {"name": "ridge", "blocks": [1]}}},
                "joint": {"joint": {"epochs": 1, "blocks": [1]}},
            },
        }
        | changes
    )


def fill(chosen, out):
    return fill_table(chosen, cells(chosen, out), out)


# --- suites ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_suite_has_cells_that_could_run(path, tmp_path):
    found = cells(load_suite(path.stem), tmp_path)
    assert len({cell.id for cell in found}) == len(found)
    assert len({cell.config.run_dir for cell in found}) == len(found)


def test_parts_are_laid_over_one_another(images, tmp_path):
    chosen = suite(images, run={"backbone": {**TINY, "depth": 1}, "batch": 4})
    chosen.sources["pack"].run["backbone"] = {"depth": 2}
    cell = cells(chosen, tmp_path, pattern="*/ridge/*")[0]
    assert (cell.config.backbone.depth, cell.config.backbone.image_size) == (2, 16)
    assert (cell.config.batch.size, cell.config.seed, cell.id) == (4, 0, "pack/disjoint/ridge/seed-0")


def test_seeds_and_patterns_choose_cells(images, tmp_path):
    chosen = suite(images)
    assert len(cells(chosen, tmp_path, seeds=3)) == 6
    assert {cell.learner for cell in cells(chosen, tmp_path, pattern="*/joint/*")} == {"joint"}
    limited = suite(images, learners={"ridge": {"run": {"learner": "ridge"}, "seeds": 1}})
    assert len(cells(limited, tmp_path, seeds=3)) == 1
    elsewhere = {"ridge": {"only": ["other/*"]}, "ncm": {"run": {"learner": "ncm"}}}
    assert {cell.learner for cell in cells(suite(images, learners=elsewhere), tmp_path)} == {"ncm"}
    with pytest.raises(ConfigError, match="no cell"):
        cells(chosen, tmp_path, pattern="nothing")


def test_all_faulty_cells_are_told_before_one_runs(images, tmp_path):
    wrong = {
        "ridge": {"run": {"learner": "rigde"}},
        "er": {"run": {"learner": {"name": "er", "replay_size": 0}}},
    }
    with pytest.raises(ConfigError) as caught:
        cells(suite(images, learners=wrong), tmp_path)
    assert len(caught.value.problems) == 2
    assert "did you mean 'ridge'" in caught.value.problems[0]
    with pytest.raises(ConfigError, match="no protocol 'disjiont'"):
        cells(suite(images, sources={"pack": {"protocols": ["disjiont"], "run": {}}}), tmp_path)


def test_a_suite_file_is_read_strictly(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\nseed: 2\nprotocols: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_suite(path)
    assert any("did you mean 'seeds'" in problem for problem in caught.value.problems)
    with pytest.raises(ConfigError, match="no suite is named 'smok'") as caught:
        load_suite("smok")
    assert "smoke" in str(caught.value.hint)


# --- cells ----------------------------------------------------------------------------------------


def test_a_table_is_filled_once_and_read_again(images, tmp_path, monkeypatch):
    chosen, out = suite(images), tmp_path / "out"
    first = fill(chosen, out)
    assert [r.learner for r in first.results] == ["ridge", "joint", "joint, linear head"]
    assert all(r.figures["A_Last"] is not None for r in first.results)
    assert {path.name for path in out.iterdir()} == {
        *("cells", "results.md", "results.csv", "results.svg", "results.png")
    }
    assert not list(out.rglob("checkpoints"))
    monkeypatch.setattr(cells_module, "run_cell", None)  # nothing is run again
    with logged() as said:
        assert fill(chosen, out).results == first.results
    assert said[-1].endswith("as before")


@pytest.mark.parametrize("views", [1, 2])
def test_the_refitted_head_of_joint_training_reads_the_mean_over_views(views, images, tmp_path):
    config = cells(suite(images), tmp_path, pattern="*/joint/*")[0].config
    compute = build_compute(config)
    context = LearnerContext(SharedResources().backbone(config, compute), compute, config.seed)
    model = build_model(NaiveLoRAOptions(), context)  # its adapters add nothing before they are trained
    image = np.arange(16 * 16 * 3).astype(np.uint8).reshape(16, 16, 3)
    samples = [Sample("a", image, "x"), Sample("b", image[::-1], "y")]
    learner = refit(model, samples, JointOptions(blocks=[1], tta_views=views), 2)
    frozen = FrozenReader(context.backbone, compute, [1], tta_views=views)
    torch.testing.assert_close(learner.features(samples), frozen(samples))


def test_a_cell_that_another_process_has_finished_meanwhile_is_not_run_again(images, tmp_path):
    waiting = cells(suite(images), tmp_path / "out", seeds=2, pattern="*/ridge/*")
    attempted = run_cells(waiting, 1)
    next(attempted)
    theirs = run_cell(waiting[1], SharedResources())
    assert next(attempted)[1].summary == json.loads(json.dumps(theirs))


def test_an_interrupted_cell_goes_on_where_it_stopped(images, tmp_path):
    chosen = suite(images)
    straight = cells(chosen, tmp_path / "one", pattern="*/ridge/*")[0]
    broken = cells(chosen, tmp_path / "two", pattern="*/ridge/*")[0]
    shared = SharedResources()
    with open_run(broken.config, vit=shared.backbone) as run:
        for number, _ in enumerate(run):
            if number == 20:
                run.processor.stop()
    assert read_summary(broken) is None
    with logged() as said:
        resumed, whole = (run_cell(cell, shared) for cell in (broken, straight))
    assert any("going on from offset" in message for message in said)
    for summary in (resumed, whole):
        del summary["timing"]
    assert resumed == whole
    assert read_summary(broken)["holdout"] == whole["holdout"]


def test_cells_share_one_backbone(images, tmp_path):
    shared = SharedResources()
    made = [shared.backbone(cell.config, open_compute()) for cell in cells(suite(images), tmp_path, seeds=2)]
    assert made[0] is made[2]
    assert made[0] is not made[1]  # random weights belong to their seed


def test_an_image_is_read_once_by_all_cells(images, tmp_path, monkeypatch):
    two = {name: {"run": {"learner": {"name": name, "blocks": [1]}}} for name in ("ridge", "ncm")}
    shared, read = SharedResources(), []
    own = FrozenReader.__call__
    monkeypatch.setattr(
        FrozenReader,
        "__call__",
        lambda self, samples: read.extend(s.id for s in samples) or own(self, samples),
    )
    chosen = cells(suite(images, learners=two), tmp_path)
    figures = [run_cell(cell, shared)["holdout"]["A_Last"] for cell in chosen]
    assert len(read) == len(set(read)) == 80
    alone = run_cell(replace(chosen[0], config=elsewhere(chosen[0], tmp_path)), SharedResources())
    assert alone["holdout"]["A_Last"] == figures[0]


def test_an_image_is_read_once_by_all_hybrids(images, tmp_path, monkeypatch):
    lora = {"warmup_samples": 24, "first_block": 0}
    two = {
        f"steps_{steps}": {
            "run": {
                "learner": {"name": "ridge_lora", "lora": {**lora, "steps": steps}, "ridge": {"blocks": [1]}}
            }
        }
        for steps in (1, 2)
    }
    shared, read = SharedResources(), []
    own = FrozenReader.read
    monkeypatch.setattr(
        FrozenReader,
        "read",
        lambda self, samples, cut: read.extend(s.id for s in samples) or own(self, samples, cut),
    )
    chosen = cells(suite(images, learners=two), tmp_path)
    figures = [run_cell(cell, shared)["holdout"]["A_Last"] for cell in chosen]
    assert len(read) == len(set(read)) == 80
    alone = run_cell(replace(chosen[1], config=elsewhere(chosen[1], tmp_path)), SharedResources())
    assert alone["holdout"]["A_Last"] == figures[1]


def elsewhere(cell, tmp_path):
    return cell.config.model_copy(update={"run_dir": str(tmp_path / "elsewhere")})


def open_compute():
    from streamcl.nn.device import resolve_compute

    return resolve_compute("cpu", "32-true")


def test_a_cell_of_another_configuration_is_not_mistaken_for_this_one(images, tmp_path):
    chosen, out = suite(images), tmp_path / "out"
    fill(chosen, out)
    other = suite(images, run={**chosen.run, "batch": 16})
    with pytest.raises(ConfigError, match=r"batch\.size: 8 -> 16"):
        fill(other, out)


def test_what_cannot_run_is_named_and_the_others_go_on(images, tmp_path, monkeypatch):
    chosen, out = suite(images), tmp_path / "out"
    errors = iter([NotFinite("10 steps in a row"), RunBusy("held")])

    def fail(cell, shared):
        raise next(errors)

    monkeypatch.setattr(cells_module, "run_cell", fail)
    filled = fill(chosen, out)
    assert list(filled.open_cells.values()) == ["failed: 10 steps in a row", "another process is running it"]
    assert isinstance(filled.failure, NotFinite)
    assert "failed: 10 steps in a row" in (out / "results.md").read_text()


def test_absent_data_is_a_word_and_no_error(images, tmp_path):
    images.unlink()
    filled = fill(suite(images), tmp_path / "out")
    assert filled.results == []
    assert filled.failure is None
    assert all("skipped" in reason and "pack.npz" in reason for reason in filled.open_cells.values())


def test_a_job_stays_with_its_data_set_while_it_can(images, tmp_path):
    chosen = suite(images)
    more = dict.fromkeys(("one", "two"), chosen.sources["pack"])
    waiting = cells(chosen.model_copy(update={"sources": more}), tmp_path)
    assert next_cell(waiting, "two", ["one"]).source == "two"
    assert next_cell(waiting, None, ["one"]).source == "two"
    assert next_cell(waiting, "gone", ["one", "two"]) is waiting[0]


LETHAL = """
import os, signal

def stream():
    os.kill(os.getpid(), signal.SIGKILL)
    yield
"""


def test_jobs_fill_the_table_that_one_process_fills_and_outlive_one_that_dies(images, tmp_path, monkeypatch):
    (tmp_path / "lethal.py").write_text(LETHAL)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = suite(images)
    plain = chosen.model_dump(mode="json")
    dies = {"protocols": ["plain"], "run": {"source": {"class": "lethal:stream"}}}
    protocols = plain["protocols"] | {"plain": {}}
    both = suite(images, sources=plain["sources"] | {"dies": dies}, protocols=protocols)
    out = tmp_path / "two"
    with logged() as said:
        side_by_side = fill_table(both, cells(both, out, pattern="*/ridge/*"), out, jobs=2)
    alone = fill_table(chosen, cells(chosen, tmp_path / "one", pattern="*/ridge/*"), tmp_path / "one")
    assert [without_time(each) for each in side_by_side.results] == [
        without_time(each) for each in alone.results
    ]
    assert "its process was killed" in side_by_side.open_cells["dies/plain/ridge/seed-0"]
    assert side_by_side.failure is not None
    assert sum(message.startswith("[2/2]") for message in said) == 1


BLOCKING = """
import os, time
from pathlib import Path

def stream():
    Path("worker.tmp").write_text(str(os.getpid()))
    Path("worker.tmp").replace("worker.pid")
    time.sleep(600)
    yield
"""


@pytest.mark.slow
def test_a_worker_ends_when_the_command_that_started_it_is_killed(images, tmp_path):
    (tmp_path / "blocking.py").write_text(BLOCKING)
    blocks = {"protocols": ["plain"], "run": {"source": {"class": "blocking:stream"}}}
    chosen = suite(images, sources={"blocks": blocks}, protocols={"plain": {}})
    (tmp_path / "mine.yaml").write_text(json.dumps(chosen.model_dump(mode="json")))
    command = [sys.executable, "-m", "streamcl", "bench", "accuracy", "--suite", "mine.yaml", "--out", "out"]
    parent = subprocess.Popen([*command, "--filter", "*/ridge/*", "--jobs", "2"], cwd=tmp_path)
    pid = tmp_path / "worker.pid"
    assert within(120, pid.exists)
    worker = int(pid.read_text())
    parent.kill()
    parent.wait()
    assert within(30, lambda: not is_running(worker))


def within(seconds, condition):
    """Whether the condition holds before so many seconds have passed."""
    until = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return held


def is_running(process):
    """Whether the process exists and is no zombie."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def without_time(result):
    timeless = {k: v for k, v in result.figures.items() if k not in {"seconds", "images_per_s"}}
    return replace(result, figures=timeless)


# --- results --------------------------------------------------------------------------------------


def result(learner="ridge", seed=0, **figures):
    none = dict.fromkeys(FIGURES) | dict.fromkeys(("true_shifts", "found", "false_alarms", "images_per_s"))
    return CellResult("pack", "iid", learner, seed, none | {"samples": 8, "seconds": 1.0} | figures)


def test_mean_and_spread():
    assert mean_and_deviation([0.5, 0.6, None]) == "55.0 ± 7.1"
    assert mean_and_deviation([0.5]) == "50.0"
    assert mean_and_deviation([None]) == "-"


def test_results_as_csv_and_markdown(images):
    results = [result(seed=0, A_Last=0.5), result(seed=1, A_Last=0.75), result("ncm")]
    rows = list(csv.DictReader(as_csv(results).splitlines()))
    assert [row["A_Last"] for row in rows] == ["0.5", "0.75", ""]
    text = as_markdown(suite(images), results, {"pack/iid/er/seed-0": "not run yet"})
    assert "| ridge | 62.5 ± 17.7 |" in text
    assert "- pack/iid/er/seed-0: not run yet" in text


def test_the_plot_is_the_same_for_the_same_values(tmp_path):
    shown = [LearnerFigure("pack/iid", "ridge", 0.5), LearnerFigure("pack/iid", "ncm", None)]
    for name in ("a", "b"):
        write_comparison(shown, "accuracy", tmp_path / name)
    one, other = ((tmp_path / name).with_suffix(".svg").read_bytes() for name in ("a", "b"))
    assert one == other
    assert b"ridge" in one
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- shifts in real streams -----------------------------------------------------------------------


def shift_benchmark():
    path = SUITES.parent / "shift_streams.py"
    spec = importlib.util.spec_from_file_location("shift_streams", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["shift_streams"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_a_gradual_order_keeps_every_image_and_blends_around_the_shift():
    shift_streams = shift_benchmark()
    abrupt = Order(np.arange(90), (30, 60), ())
    slow = shift_streams.gradual(abrupt, width=20)
    assert sorted(slow.indices) == list(range(90))
    assert slow.shifts == (20, 50)
    assert set(slow.indices[:20]) <= set(range(30))
    around = slow.indices[20:40] >= 30
    assert around[:10].mean() < around[10:].mean()


def test_detections_are_scored_in_samples():
    shift_streams = shift_benchmark()
    trace = shift_streams.Trace("pack", "abrupt", 10, [100], [1.0] * 10 + [5.0] * 10)

    class AtOnce:
        shift = plateau = None

        def update(self, loss):
            self.shift = "rise" if loss > 2 and self.plateau is None else None
            self.plateau = "seen" if loss > 2 else None

    assert shift_streams.alarms(AtOnce(), trace) == [110]
    assert shift_streams.row([(trace, None)], AtOnce) == "1.00 | 1.00 | 10 | 0.0"


# --- command --------------------------------------------------------------------------------------


def test_the_command_lists_and_fills(images, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from streamcl.cli.bench import bench

    monkeypatch.chdir(tmp_path)
    plain = suite(images).model_dump(mode="json")
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(plain))  # JSON is YAML
    runner, arguments = (
        CliRunner(),
        ["accuracy", "--suite", str(path), "--out", "out", "--filter", "*/ridge/*"],
    )
    listed = runner.invoke(bench, [*arguments, "--list"], standalone_mode=False)
    assert listed.output.split() == ["pack/disjoint/ridge/seed-0"]
    assert not os.path.exists("out")  # noqa: PTH110
    filled = runner.invoke(bench, arguments, standalone_mode=False)
    assert filled.exception is None
    assert "1 results in" in filled.output


def test_a_cell_has_its_own_place(images, tmp_path):
    cell = cells(suite(images), tmp_path)[0]
    assert replace(cell, seed=3).id == "pack/disjoint/ridge/seed-3"
