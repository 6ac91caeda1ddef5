"""The live page of a run that is served: beside its records, its images and predictors, and buttons."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.report.following import RunFollower
from streamcl.report.live import RunState, render_part
from streamcl.report.wording import count
from streamcl.serving.page.feed import PageFeed
from streamcl.serving.page.recent_images import RecentImage
from streamcl.serving.service import ServingService

MAX_CHOICES = 5
"""Classes up to which each has a button below an image; with more, the predicted one has."""


def served_feed(service: ServingService) -> PageFeed:
    """Return the page of the run that a service serves."""

    def state(follower: RunFollower) -> RunState:
        del follower
        newest = service.newest()
        return RunState(service.learning(newest), time.time(), service.lag(), _served(service), service.name)

    def more(follower: RunFollower) -> Mapping[str, str]:
        classes = list(follower.log.predictions.support)
        shown = [_shown(each, classes) for each in service.recent.newest()]
        arguments = {"images": shown, "takes_labels": service.takes_labels}
        return {"images": render_part("images", arguments), "actions": render_part("actions", {})}

    return PageFeed(service.folder, state, more)


def _served(service: ServingService) -> str:
    pool = service.pool
    text = f"{pool.ready} of {pool.options.count} predictors ready"
    if pool.model is None:
        return text
    return f"{text}, with the model after {count(pool.model.offset)} records (version {pool.model.number})"


def _shown(image: RecentImage, classes: Sequence[str]) -> dict[str, Any]:
    """Return an image as the template takes it, with the labels that it may have instead."""
    others = classes if len(classes) <= MAX_CHOICES else []
    choices = dict.fromkeys([*([] if image.predicted is None else [image.predicted]), *others])
    known = image.label is not None
    title = f"Image of class {image.label}" if known else "Image without a label"
    return {
        "number": image.number,
        "record": image.record,
        "label": image.label,
        "predicted": image.predicted,
        "confidence": image.confidence,
        "wrong": known and image.label != image.predicted,
        "title": f"{title}, predicted as {image.predicted}",
        "choices": [each for each in choices if each != image.label],
    }
