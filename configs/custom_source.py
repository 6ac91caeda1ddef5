"""A stand-in for a camera: three things on a conveyor belt; in the evening a fourth, in half the light."""

from collections.abc import Iterator
from typing import Any

import numpy as np

COLOURS = {"gear": (200, 60, 40), "bolt": (60, 140, 220), "washer": (90, 190, 90), "spring": (230, 200, 60)}


def frames(count: int = 640, noise: int = 12, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield `count` frames with their labels; springs come in the second half, in half the light."""
    random = np.random.default_rng(seed)
    for number in range(count):
        evening = number >= count // 2
        label = str(random.choice(list(COLOURS)[: 4 if evening else 3]))
        image = np.full((64, 64, 3), 150.0)  # [H, W, RGB]
        y, x = random.integers(0, 34, 2)
        image[y : y + 30, x : x + 10 + 5 * len(label)] = COLOURS[label]
        image = image * (0.5 if evening else 1.0) + random.normal(0, noise, image.shape)
        yield {
            "image": np.clip(image, 0, 255).astype(np.uint8),
            "label": label,
            "id": f"frame-{number:06d}",
            "domain": "evening" if evening else "day",
        }


def shared_frames(
    count: int = 640, users: int = 8, noise: int = 12, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """The same belt; from a quarter on every third frame is a user's own, who may ask for it back."""
    for number, frame in enumerate(frames(count, noise, seed)):
        if number >= count // 4 and number % 3 == 0:
            frame |= {"privacy": "user", "subject": f"user-{number // 3 % users}"}
        yield frame
