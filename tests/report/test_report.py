"""The report of realistic, hostile, interrupted and enormous runs."""

from __future__ import annotations

import io
import json
import random
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.shift_matching import match_shifts
from streamcl.events import PredictionRecord, Sample
from streamcl.report import charts
from streamcl.report.overview import summary_of, text_summary
from streamcl.report.page import write_report
from streamcl.report.series import Point, PredictionSeries, Series
from streamcl.storage.thumbnails import Thumbnails

ANIMALS = ("heron", "otter", "lynx", "badger", "falcon", "newt", "hare", "stoat", "owl", "adder")
CONFIG = """# yaml-language-server: $schema=../schema.json
source: {class: "streams.datasets.demo:digits", args: {seed: 3}}
backbone: {model: vit_small_patch14_dinov2, depth: 11, image_size: 70}
learner: {name: ridge_lora, rank: 4, lr: 5.0e-4}
detector: {name: relative_plateau, window: 5}
batch: 64
"""


class Fake:
    """A run directory as a processor would leave it: parts of the classes come one after another, twice over
    two domains, and accuracy falls at each shift and recovers."""

    def __init__(self, folder: Path, classes=ANIMALS, batches=150, batch=64, parts=5, seed=0) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        self.classes, self.batches, self.batch, self.parts = list(classes), batches, batch, parts
        self.scores, self.history = Prequential(1000), HoldoutHistory()
        self.lines: dict[str, list[dict]] = {"predictions": [], "metrics": [], "events": []}
        self.gallery = Thumbnails(folder / "samples", per_shift=8)
        self.every = batches // parts * batch
        self.true = [self.every * part for part in range(1, parts)]
        self.detected: list[int] = []
        self.consolidations: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, finished: bool = True) -> Path:
        environment = {
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "timm": "1.0.31",
            "processor": "AMD EPYC 9J14",
        }
        self._event("start", 0, 0, "", shifts=self.true, environment=environment)
        for step in range(1, self.batches + 1):
            self._step(step)
        if finished:
            self._event("end", self.batches, self.batches * self.batch, "the stream ended")
            (self.folder / "summary.json").write_text(json.dumps(self.summary()), encoding="utf-8")
        for topic, records in self.lines.items():
            text = "".join(json.dumps(record) + "\n" for record in records)
            (self.folder / f"{topic}.jsonl").write_text(text, encoding="utf-8")
        (self.folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
        return self.folder

    def _step(self, step: int) -> None:
        offset, per_part = step * self.batch, max(1, len(self.classes) // self.parts)
        part = min((offset - self.batch) // self.every, self.parts - 1)
        since = (offset - self.batch) - part * self.every
        skill = 1 - 0.75 * 2 ** (-since / (6 * self.batch))
        known = self.classes[: (part + 1) * per_part] if part < self.parts - 1 else self.classes
        fresh = known[part * per_part :]
        predictions, domains = [], []
        for place in range(offset - self.batch, offset):
            label = self.draw.choice(fresh)
            near = self.classes[(self.classes.index(label) + 1) % len(self.classes)]
            guess = label if self.draw.random() < skill * 0.93 else self.draw.choice([near, *known])
            predictions.append(
                PredictionRecord(f"scan-{place}", place, label, guess if step > 1 else None, 0.7)
            )
            domains.append("museum scans" if part % 2 else "phone photographs")
        self.scores.update(predictions, domains)
        names = ("id", "offset", "label", "predicted", "confidence")
        self.lines["predictions"] += [
            {"step": step, **{name: getattr(p, name) for name in names}} for p in predictions
        ]
        loss = 2.2 * (1 - skill) + 0.12 + 0.1 * self.draw.random()
        self.lines["metrics"].append(
            {
                "kind": "step",
                "step": step,
                "offset": offset,
                "loss": loss,
                "accuracy": self.scores.accuracy,
                "window_accuracy": self.scores.window_accuracy,
                "classes": len(known),
                "segment": part,
                "images_per_s": 61 + self.draw.random(),
                "seconds": step * 1.04,
                "memory_mb": 900 + 2 * step**0.5,
            }
        )
        if since == 0:
            self._event("new_class", step, offset, "classes seen for the first time", classes=fresh)
        if since == self.batch and part not in (0, 3):
            self._shift(step, offset, predictions, f"mean loss of 5 batches rose from 0.21 to {loss:.2f}")
        if part == 2 and since == self.every // 2 // self.batch * self.batch:
            self._shift(step, offset, predictions, "mean loss of 5 batches rose from 0.22 to 0.37")
        if since == 12 * self.batch:
            self.consolidations.append(offset)
            self._event("consolidation", step, offset, "loss settled at 0.24 ± 0.03")
        if step % 15 == 0:
            self._examine(step, offset, part)

    def _shift(self, step, offset, predictions, reason) -> None:
        self.detected.append(offset)
        self._event("shift", step, offset, reason)
        noise = np.random.default_rng(offset).integers(0, 60, (80, 110, 3)).astype(np.uint8)
        samples = []
        for number, prediction in enumerate(predictions[:8]):
            image = noise + np.array([20 * number, 190 - 15 * number, 90], np.uint8)
            image[20:60, 30 + 5 * number : 70 + 3 * number] = (235, 220 - 20 * number, 180)
            samples.append(Sample(prediction.id, image, prediction.label))
        self.gallery.keep(offset, samples, predictions[:8])

    def _examine(self, step, offset, part) -> None:
        names = [f"part {number + 1}" for number in range(self.parts)]
        accuracy = {}
        for number, name in enumerate(names):
            age = part - number
            accuracy[name] = 0.0 if age < 0 else max(0.3, 0.9 - 0.035 * age - 0.05 * self.draw.random())
        taught = names[:part] if offset < self.batches * self.batch else names
        self.history.record(offset, accuracy, dict.fromkeys(names, 200), taught or names[:1])
        per_class = {name: 0.7 + 0.25 * self.draw.random() for name in self.classes}
        self.lines["metrics"].append(
            {
                "kind": "holdout",
                "step": step,
                "offset": offset,
                "accuracy": self.history.A_Last,
                "parts": accuracy,
                "per_class": per_class,
                "seconds": 2.5,
            }
        )

    def _event(self, kind, step, offset, reason, **more) -> None:
        record = {"kind": kind, "step": step, "offset": offset, "reason": reason, **more}
        self.lines["events"].append(record)

    def summary(self) -> dict:
        score = match_shifts(self.true, self.detected, tolerance=640)
        return {
            "run": self.folder.name,
            "streamcl": "0.1.0",
            "learner": "ridge_lora",
            "samples": self.batches * self.batch,
            "steps": self.batches,
            "classes": len(self.classes),
            "prequential": self.scores.summary(),
            "holdout": self.history.summary(),
            "shifts": score.summary(),
            "consolidations": self.consolidations,
            "quarantined": 2,
            "skipped_steps": 0,
            "timing": {
                "seconds": 156.4,
                "images_per_s": 61.4,
                "peak_memory_mb": 1187.5,
                "device": "cpu",
                "precision": "32-true",
            },
        }


class Page(HTMLParser):
    """What a browser would make of a page: balanced tags, words, and all that it would load."""

    VOID = ("meta", "img", "br", "link", "path", "use")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.loads, self.ids = [], [], [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data.strip())

    @property
    def shown(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\u202f", " ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return Fake(tmp_path_factory.mktemp("runs") / "meadow and marsh").write()


@pytest.fixture(scope="module")
def page(whole) -> Page:
    return Page(write_report(whole))


class TestWholeRun:
    def test_every_section_is_there_in_order(self, page):
        titles = [
            "meadow and marsh", "Accuracy over the stream", "Loss over the stream", "Shifts",
            "Accuracy matrix", "Domains", "Classes", "Confusion",
            "Images at shifts", "Configuration and environment",
        ]  # fmt: skip
        places = [page.words.index(title) for title in titles[1:]]
        assert places == sorted(places)
        assert titles[0] in page.shown

    def test_it_loads_nothing_and_runs_nothing(self, page):
        assert all(load.startswith(("data:image/png;base64,", "#")) for load in page.loads)
        assert "script" not in page.tags
        assert "link" not in page.tags
        assert "url(http" not in page.text
        assert "@import" not in page.text

    def test_the_figures_are_those_of_the_summary(self, page, whole):
        summary = json.loads((whole / "summary.json").read_text())
        assert f"{100 * summary['prequential']['accuracy']:.1f} %" in page.shown
        assert f"{100 * summary['holdout']['A_T']:.1f} %" in page.shown
        assert "3 of 4" in page.shown
        assert "2 min 36 s" in page.shown
        assert "1.2 GiB" in page.shown
        assert "2 records could not be read" in page.shown

    def test_names_of_papers_are_folded_behind_plain_words(self, page, whole):
        held = json.loads((whole / "summary.json").read_text())["holdout"]
        assert page.words.index("Correct before learning") < page.words.index("prequential accuracy")
        for name in ("A_Last", "A_AUC", "A_T"):
            shown = f"{name} {100 * held[name]:.1f} %"
            assert shown in " ".join(page.shown.split()), shown

    def test_batches_with_new_classes_are_marked(self, page):
        assert page.words.count("new class") == 4  # two charts, each for two widths

    def test_misses_and_false_alarms_are_told(self, page):
        assert page.words.count("missed") == 1
        assert page.words.count("false alarm") >= 1
        assert page.words.count("found") == 3
        assert "rose from 0.22 to 0.37" in page.shown

    def test_thumbnails_are_inlined(self, page):
        images = [load for load in page.loads if load.startswith("data:image/png")]
        assert len(images) == 8 * 4

    def test_the_same_run_gives_the_same_bytes(self, whole, page):
        assert write_report(whole).read_text(encoding="utf-8") == page.text

    def test_ids_are_not_used_twice_for_different_things(self, page):
        assert not [name for name in page.ids if re.fullmatch(r"[A-Za-z]+\w*_\d+", name)]

    def test_colours_come_from_the_page(self, page):
        assert not re.search(r"#0101\d\d", page.text)
        assert "var(--stream)" in page.text


class TestDamage:
    def test_figures_that_are_not_known_are_left_out(self, tmp_path):
        page = Page(write_report(tmp_path))
        assert "Correct on held-out images" not in page.shown
        assert ">–<" not in page.text

    def test_the_line_fits_a_short_stream(self, tmp_path):
        fake = Fake(tmp_path / "short", batches=6, parts=2)
        page = Page(write_report(fake.write()))
        assert "among the last 20." in page.shown

    def test_an_empty_directory(self, tmp_path):
        page = Page(write_report(tmp_path))
        assert "Nothing has been recorded" in page.shown
        assert "No image has passed" in page.shown

    def test_no_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no run directory"):
            write_report(tmp_path / "absent")

    def test_an_interrupted_run_shows_what_it_had(self, tmp_path):
        fake = Fake(tmp_path / "cut")
        run = fake.write(finished=False)
        path = run / "predictions.jsonl"
        path.write_bytes(path.read_bytes()[:-25])
        page = Page(write_report(run))
        assert "up to offset 9,600" in page.shown
        assert "predictions.jsonl has 1 unreadable line" in page.shown
        assert f"{100 * fake.scores.accuracy:.1f} %" in page.shown
        assert f"{100 * fake.history.A_AUC:.1f} %" in page.shown
        assert "Accuracy matrix" in page.words
        assert {"missed", "false alarm"} <= set(page.words)

    @pytest.mark.parametrize("topic", ["predictions", "metrics", "events"])
    @pytest.mark.usefixtures("charts_once")
    @pytest.mark.parametrize("finished", [True, False])
    def test_a_missing_topic(self, tmp_path, topic, finished):
        run = Fake(tmp_path / "run").write(finished)
        (run / f"{topic}.jsonl").unlink()
        page = Page(write_report(run))
        assert f"{topic}.jsonl is missing" in page.shown
        assert "Accuracy over the stream" in page.words

    @pytest.mark.usefixtures("charts_once")
    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"null"])
    def test_a_broken_summary(self, tmp_path, content):
        run = Fake(tmp_path / "run", batches=10).write()
        (run / "summary.json").write_bytes(content)
        assert "summary.json cannot be read" in Page(write_report(run)).shown

    @pytest.mark.usefixtures("charts_once")
    @pytest.mark.parametrize(
        "content", [b"", b"{}", b"[3]", b'[{"file": "../../secret"}]', b'[{"file": null}]']
    )
    def test_a_broken_gallery(self, tmp_path, content):
        run = Fake(tmp_path / "run", batches=10).write()
        (tmp_path / "secret").write_bytes(b"\x89PNG secret")
        (run / "samples").mkdir(exist_ok=True)
        (run / "samples" / "index.json").write_bytes(content)
        loads = Page(write_report(run)).loads
        assert not [load for load in loads if load.startswith("data:")]

    def test_values_of_the_wrong_kind_are_passed_over(self, tmp_path):
        records = [
            {"kind": "step", "step": "x", "offset": 1},
            {
                "kind": "step",
                "step": 1,
                "offset": 64,
                "loss": None,
                "window_accuracy": "high",
                "memory_mb": [],
            },
            {"kind": "holdout", "step": 1, "offset": 64, "accuracy": None, "parts": None},
            {"kind": "holdout", "step": 1, "offset": None},
            {"kind": None},
        ]
        (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n"text"\n7\n')
        (tmp_path / "events.jsonl").write_text(
            '{"kind": "shift", "offset": null, "reason": null}\n{"kind": "start"}\n'
        )
        (tmp_path / "predictions.jsonl").write_text('{"offset": 1.0, "label": 3, "predicted": 4}\n{}\n')
        page = Page(write_report(tmp_path))
        assert "metrics.jsonl has 2 unreadable line(s)" in page.shown

    def test_records_repeated_after_a_crash_count_once(self, tmp_path):
        run = Fake(tmp_path / "run").write(finished=False)
        once = write_report(run).read_text()
        for topic in ("predictions", "metrics"):
            path = run / f"{topic}.jsonl"
            path.write_text(path.read_text() + "".join(path.read_text().splitlines(keepends=True)[-20:]))
        assert write_report(run).read_text() == once


HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "$\\frac{$", "&amp;",
    "猫🐈", "a" * 300, "", "\u202egnp.exe", "</style><b>", "  ",
)  # fmt: skip


class TestHostileNames:
    def test_names_are_text_and_nothing_else(self, tmp_path):
        fake = Fake(tmp_path / "<i>run", classes=HOSTILE, parts=5)
        run = fake.write()
        config = run / "config.yaml"
        config.write_text("a: </pre><script>alert(2)</script>", encoding="utf-8")
        page = Page(write_report(run))
        assert "script" not in page.tags
        assert page.tags.count("img") == len(page.loads) - page.tags.count("use")
        assert "onerror=alert(1)>" not in page.text
        assert "{{ 7 * 7 }}" in page.shown
        assert "猫🐈" in page.shown
        assert page.words.count("(blank)") >= 6  # two names, each a bar, a row and a column

    def test_half_a_surrogate_pair(self, tmp_path):
        (tmp_path / "predictions.jsonl").write_text('{"offset": 0, "label": "\\ud83d", "predicted": null}\n')
        assert "?" in Page(write_report(tmp_path)).shown


@pytest.mark.long
class TestLargeRuns:
    def test_thousands_of_classes_and_parts(self, tmp_path):
        names = [f"species {number}" for number in range(3000)]
        run = Fake(tmp_path / "run", classes=names, batches=100, parts=50).write()
        page = Page(write_report(run))
        assert "of 50 parts" in page.shown
        assert "the 30 with the lowest" in page.shown
        assert "too many classes for the whole matrix" in page.shown
        assert len(page.text) < 3_000_000

    def test_a_shift_at_every_step(self, tmp_path):
        events = [{"kind": "shift", "step": n, "offset": 8 * n, "reason": "x"} for n in range(6000)]
        (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
        page = Page(write_report(tmp_path))
        assert "4,800 more are in events.jsonl" in page.shown
        assert "cannot be judged" in page.shown

    def test_memory_does_not_grow_with_the_stream(self):
        def peak(samples: int) -> int:
            guesses = PredictionSeries(max_pairs=500)
            tracemalloc.start()
            for offset in range(samples):
                label, guess = str(offset % 40), str(offset * 7 % 90)
                guesses.add({"offset": offset, "label": label, "predicted": guess})
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert guesses.samples == samples
            assert len(guesses.curve.points) <= 800
            return most

        assert peak(40_000) < 1.5 * peak(10_000)

    def test_a_downsampled_curve_keeps_its_mean_and_extremes(self):
        series, values = Series(limit=10), [random.Random(1).random() for _ in range(1003)]
        for offset, value in enumerate(values):
            series.add(offset, value)
        assert len(series.points) <= 10
        assert sum(p.count for p in series.points) == 1003
        assert sum(p.mean * p.count for p in series.points) == pytest.approx(sum(values))
        assert (min(p.low for p in series.points), max(p.high for p in series.points)) == (
            min(values),
            max(values),
        )
        assert series.points[-1].offset == 1002
        assert [p.offset for p in series.points] == sorted(p.offset for p in series.points)


class TestTerminal:
    def test_figures_are_aligned_and_the_last_line_is_the_place(self, whole):
        summary = json.loads((whole / "summary.json").read_text())
        text = text_summary(summary, whole / "report.html")
        *lines, last = text.splitlines()
        assert last == f"Report: {whole / 'report.html'}"
        assert text.startswith("In one pass over 9,600 images, ridge_lora saw 10 classes")
        assert "Shifts found" in text
        assert "2 records quarantined" in text
        assert max(map(len, lines)) <= 88

    def test_a_summary_of_nothing(self):
        assert text_summary({}).startswith("No image has passed")

    def test_a_source_without_truth(self):
        text = text_summary(
            {"samples": 1, "classes": 1, "shifts": {"detected": [3]}, "consolidations": [1, 2]}
        )
        assert "1 image, the learner saw 1 class." in text
        assert "It noticed 1 change of the stream (shifts)." in " ".join(text.split())
        assert "the source names none" in text


def test_thumbnails_of_the_fake_are_pictures(whole):
    for path in (whole / "samples").glob("*.png"):
        assert Image.open(io.BytesIO(path.read_bytes())).size == (96, 70)


def test_requests_to_forget_are_counted_by_their_last_attempt(tmp_path):
    fake = Fake(tmp_path / "run", batches=10, parts=2)
    fake.write()
    assert "Requests forgotten" not in text_summary(summary_of(fake.folder))
    attempts = [("a", "done"), ("b", "failed"), ("b", "done"), ("c", "refused")]
    with (fake.folder / "events.jsonl").open("a") as file:
        for request, outcome in attempts:
            file.write(json.dumps({"kind": "forget", "request": request, "outcome": outcome}) + "\n")
    told = next(
        line for line in text_summary(summary_of(fake.folder)).splitlines() if "Requests forgotten" in line
    )
    assert "2 of 3" in told
    assert "1 refused" in told
    assert "failed" not in told


@pytest.mark.parametrize("size", [charts.WIDE, charts.NARROW])
def test_a_chart_obeys_a_policy_that_forbids_styles_and_scripts(size):
    points = [Point(offset, 0.5, 0.4, 0.6) for offset in range(100)]
    every = dict.fromkeys(("true", "found", "false", "consolidations", "requests"), (40,))
    svg = charts.draw(charts.Curve("accuracy", points, True, [(50, 0.5)], 100, charts.Marks(**every)), size)
    assert "style" not in svg
    assert "script" not in svg
    assert 'stroke="var(--stream)"' in svg
    legend = re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>([^<]+)<', svg)
    assert {text for _, text in legend} > {"accuracy", "false alarm", "request to forget", "consolidation"}
    check_room(legend, size)


def check_room(legend, size):
    """The legend has as many rows as its entries need: at 5.2 points a letter none ends beyond the chart."""
    entries = [(float(x), text) for x, text in legend if not text[0].isdigit() and text != "images passed"]
    assert all(x + 5.2 * len(text) < 72 * size.width for x, text in entries)


@pytest.mark.parametrize("size", [charts.WIDE, charts.NARROW])
def test_a_legend_of_seven_entries_has_room(size):
    marks = charts.Marks(true=(40,), found=(40,), consolidations=(40,), requests=(40,), classes=(40,))
    points = [Point(offset, 0.5, 0.4, 0.6) for offset in range(100)]
    svg = charts.draw(charts.Curve("correct before learning", points, True, [(50, 0.5)], 100, marks), size)
    legend = re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>([^<]+)<', svg)
    assert "consolidation" in {text for _, text in legend}
    check_room(legend, size)
