"""A run over pictures of four classes, a tenth of them with wrong labels, for audits."""

from __future__ import annotations

import numpy as np
from pictures import TINY_VIT, picture

LABELS = ["ant", "bee", "cat", "dog"]


def configuration(folder, learner, count=200):
    """A run over pictures of 4 classes, every tenth with a wrong label, and 50 held-out ones."""
    labels = np.arange(count + 50) % 4
    images = np.stack([picture(LABELS[label], number) for number, label in enumerate(labels)])
    taught = np.where(np.arange(count + 50) % 10 == 3, (labels + 1) % 4, labels)
    split = (np.arange(count + 50) >= count).astype(np.int64)
    path = folder / "pictures.npz"
    np.savez(path, x=images, y=np.where(split, labels, taught), split=split)
    return {
        "name": "audited",
        "run_dir": str(folder / "run"),
        "source": {"name": "npz", "args": {"path": str(path)}},
        "scenario": {"name": "disjoint", "parts": 2},
        "batch": 8,
        "backbone": {
            **{"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT},
        },
        "learner": learner,
        "shift": "none",
        "threads": 1,
        "checkpoint": {"every_samples": 96},
        "precision": "32-true",
    }
