"""Exports of Label Studio: images from wherever they are, and the label on which the annotations agree."""

from __future__ import annotations

import base64
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from streams_data import png

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source, first_events, samples_of
from streams.build import named_source
from streams.datasets.label_studio import label_studio


def choice(*labels: str, name: str = "class", **more):
    result = [{"type": "choices", "from_name": name, "to_name": "image", "value": {"choices": list(labels)}}]
    return {"result": result, "was_cancelled": False, "updated_at": "2026-01-01", **more}


def task(number: int, image: str, *annotations, **data):
    return {"id": number, "data": {"image": image, **data}, "annotations": list(annotations)}


def export(folder: Path, *tasks, name: str = "export.json") -> str:
    (folder / name).write_text(json.dumps(tasks))
    for number in range(10):
        (folder / f"{number}.png").write_bytes(png(number))
    return str(folder / name)


def read(path, **options):
    """Return (id, label) of each sample, and the reasons of the records that are bad."""
    events = first_events(label_studio(path, **options))
    reasons = [each.reason for event in events for each in event.rejected]
    return [(each.id, each.label) for each in samples_of(events)], reasons


def test_tasks_are_a_source_with_labels_subjects_and_domains(tmp_path):
    tasks = [task(n, f"{n}.png", choice("ab"[n % 2]), who=f"p{n}", where="lab") for n in range(5)]
    path = export(tmp_path, *tasks)
    check_source(lambda: named_source("label_studio", {"path": path}, batch_size=2), limit=None)
    samples = samples_of(first_events(label_studio(path, subject="who", domain="where")))
    assert [(s.id, s.label, s.subject, s.domain) for s in samples] == [
        (f"task-{n}", "ab"[n % 2], f"p{n}", "lab") for n in range(5)
    ]


def test_cancelled_and_empty_annotations_and_predictions_do_not_count(tmp_path):
    tasks = [
        task(1, "1.png", choice("a"), choice("b", was_cancelled=True), {"result": []}),
        {**task(2, "2.png"), "predictions": [choice("b")]},
        task(3, "3.png", choice("b", was_cancelled=True)),
    ]
    path = export(tmp_path, *tasks)
    assert read(path) == ([("task-1", "a"), ("task-2", None), ("task-3", None)], [])
    assert read(path, unlabelled="skip") == ([("task-1", "a")], [])


@pytest.mark.parametrize(
    ("disagreement", "expected"),
    [
        ("refuse", ["agree", "truth"]),
        ("majority", ["agree", "truth", "most"]),
        ("latest", ["agree", "truth", "most", "even"]),
    ],
)
def test_several_annotations(tmp_path, disagreement, expected):
    tasks = [
        task(1, "1.png", choice("agree"), choice("agree")),
        task(2, "2.png", choice("x"), choice("truth", ground_truth=True), choice("x")),
        task(3, "3.png", choice("y"), choice("most"), choice("most", updated_at="2026-02-01")),
        task(4, "4.png", choice("even", updated_at="2026-02-01"), choice("z")),
    ]
    found, reasons = read(export(tmp_path, *tasks), disagreement=disagreement)
    assert [label for _, label in found] == expected
    assert len(reasons) == 4 - len(expected)
    assert all("disagree" in reason for reason in reasons)


def test_images_from_paths_of_label_studio_data_uris_and_files(tmp_path):
    media = tmp_path / "media"
    for place in ("upload/1/a b.png", "photos/b.png"):
        (media / place).parent.mkdir(parents=True)
        (media / place).write_bytes(png(1))
    uri = f"data:image/png;base64,{base64.b64encode(png(2)).decode()}"
    places = ["/data/upload/1/a%20b.png", "/data/local-files/?d=photos/b.png", uri, "photos/b.png"]
    places += [f"file://{media}/photos/b.png"]
    tasks = [task(number, place, choice("a")) for number, place in enumerate(places)]
    found, reasons = read(export(tmp_path, *tasks), root=str(media))
    assert (len(found), reasons) == (5, [])


def test_images_out_of_reach_are_bad_records_that_name_their_task(tmp_path):
    places = ["../../etc/passwd", "/etc/hostname", "s3://bucket/a.png", "https://u:pw@x.org/a.png?key=secret"]
    places += ["absent.png", "data:image/png;base64,%%", ""]
    tasks = [task(number, place, choice("a")) for number, place in enumerate(places)]
    folder = tmp_path / "in"
    folder.mkdir()
    found, reasons = read(export(folder, *tasks))
    assert found == []
    words = [
        "outside",
        "outside",
        "copy the images",
        "download: true",
        "absent.png",
        "no base64",
        "no 'image'",
    ]
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons
    assert "secret" not in reasons[3]
    assert "pw" not in reasons[3]


def test_images_are_downloaded_where_asked(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        path = export(tmp_path, *[task(n, f"{base}/{n}.png", choice("a")) for n in (1, 99)])
        found, reasons = read(path, download=True)
        server.shutdown()
    assert found == [("task-1", "a")]
    assert "404" in reasons[0]


def test_a_task_in_several_exports_is_read_from_the_last(tmp_path):
    export(tmp_path, task(1, "1.png", choice("old")), task(2, "2.png", choice("b")), name="1.json")
    export(tmp_path, task(1, "1.png", choice("new")), name="2.json")
    assert read(f"{tmp_path}/*.json") == ([("task-2", "b"), ("task-1", "new")], [])


def minimal(number: int, image: str, choice: object = None, **more: object) -> dict[str, object]:
    entry = {"id": number, "image": image, "annotator": 1, "annotation_id": number, "lead_time": 1.5, **more}
    return entry if choice is None else {**entry, "choice": choice}


def test_json_min_gives_the_records_of_the_complete_json(tmp_path):
    entries = [
        minimal(1, "1.png", "a", who="p1"),
        minimal(2, "2.png", "a", updated_at="2026-01-01"),
        minimal(2, "2.png", "b", updated_at="2026-02-01"),
        minimal(3, "3.png", {"choices": ["a", "b"]}),
        minimal(4, "4.png"),
    ]
    path = export(tmp_path, *entries)
    found, reasons = read(path)
    assert found == [("task-1", "a"), ("task-4", None)]
    assert [word in reason for word, reason in zip(["disagree", "2 choices"], reasons, strict=True)] == [1, 1]
    assert read(path, disagreement="latest")[0] == [("task-1", "a"), ("task-2", "b"), ("task-4", None)]
    subjects = [each.subject for each in samples_of(first_events(label_studio(path, subject="who")))]
    assert subjects == ["p1", None]
    check_source(lambda: label_studio(path, batch_size=2), limit=None)


def test_choices_of_json_min_have_the_name_of_the_interface(tmp_path):
    path = export(tmp_path, {"id": 1, "image": "1.png", "kind": "a"})
    assert read(path, choices="kind") == ([("task-1", "a")], [])


def test_one_of_several_choices_is_named(tmp_path):
    both = choice("a", name="class")
    both["result"] += choice("sharp", name="quality")["result"]
    path = export(tmp_path, task(1, "1.png", both))
    with pytest.raises(ConfigError, match="several choices: class, quality"):
        label_studio(path)
    assert read(path, choices="quality")[0] == [("task-1", "sharp")]
    with pytest.raises(ConfigError, match="no choices 'x'"):
        label_studio(path, choices="x")


def test_a_task_with_two_labels_is_bad(tmp_path):
    assert "2 choices" in read(export(tmp_path, task(1, "1.png", choice("a", "b"))))[1][0]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{", SourceError, "is not JSON"),
        ('{"tasks": []}', SourceError, "not a list of tasks"),
        ('[{"image": "a.png", "choice": "a"}]', SourceError, "entry 0 has no id and data"),
        ('[{"id": 1, "image": "a.png", "class": "a"}]', ConfigError, "no choices 'choice' among class, id"),
        ('[{"id": 1, "image": "a.png", "choice": 5}]', SourceError, "'choice' of task 1 is neither"),
        ('[{"id": 1, "data": {"img": "a.png"}}]', ConfigError, "among its data: img"),
        (
            json.dumps([task(1, "a.png", {"result": [{"type": "rectanglelabels"}]})]),
            ConfigError,
            "has no choices, but rectanglelabels",
        ),
    ],
)
def test_what_is_no_export_of_images_with_choices_is_refused(tmp_path, text, error, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(error, match=said):
        label_studio(str(tmp_path / "a.json"))


def test_an_export_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no export"):
        label_studio(str(tmp_path / "a.json"))
    with pytest.raises(ConfigError, match="is not a folder"):
        label_studio(export(tmp_path), root=str(tmp_path / "x"))
