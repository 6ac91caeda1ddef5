"""Every shipped learner on a tiny backbone, and batches to teach it."""

from __future__ import annotations

import numpy as np
import torch
from pictures import make_batch

from streamcl.heads.ncm import NCMHead
from streamcl.heads.patch_decoder import PatchDecoder
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.heads.user_weights import UserWeights
from streamcl.heads.view_pair_head import ViewPairRidgeHead
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.adapter_model import AdapterModel
from streamcl.learners.baselines.ewc import EWCPlusPlus
from streamcl.learners.baselines.finetune import FinetuneLearner
from streamcl.learners.baselines.replay import DERPlusPlus, ExperienceReplay
from streamcl.learners.block_features import FrozenReader
from streamcl.learners.cohort import CohortRule
from streamcl.learners.cohort_adapters import CohortAdaptersLearner
from streamcl.learners.factory import LearnerContext
from streamcl.learners.keys import KeysOptions, build_keys
from streamcl.learners.latent_ridge_lora import LatentRidgeLoRALearner
from streamcl.learners.latent_training import LatentTraining
from streamcl.learners.masked_patches import MaskedPatchReader
from streamcl.learners.mixed_privacy import MixedPrivacyLearner
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.reconstruction import Reconstruction, ReconstructLearner
from streamcl.learners.retrained_branch import RetrainedBranch
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.learners.robust_view import RobustReader
from streamcl.learners.tangent_features import TangentReader
from streamcl.memory.latent_replay import LatentReplay
from streamcl.memory.latent_store import LatentSchedule, LatentStore
from streamcl.nn.adapted_blocks import Adapters

LABELS = ["ant", "bee", "cat", "dog"]


def online_lora(backbone, compute, **options):
    chosen = {"first_block": 1, "learning_rate": 1e-2, "regularisation": 0.0, "hard_buffer_size": 4} | options
    return OnlineLoRALearner(backbone, compute, **chosen)


def latent_replay(backbone, compute, *, rows=40, dtype="int4", **options):
    """Online-LoRA with a store of latents for so many samples."""
    latents = LatentReplay(LatentStore(dtype, key=b"key"), rows)
    return online_lora(backbone, compute, hard_buffer_size=0, latents=latents, **options)


def ridge(backbone, compute):
    return RidgeLearner(backbone, compute, RidgeHead(3 * 64, trace_ridge=1e-3), blocks=(0, 1, 2))


def hybrid(backbone, compute, *, adapt=20, blocks=(0, 1, 2)):
    exact = RidgeLearner(backbone, compute, RidgeHead(3 * 64, variance_ridge=3.0), blocks=blocks, tta_views=2)
    head = RidgeHead(2 * 64, variance_ridge=3.0)
    return RidgeLoRALearner(
        exact, AdaptedBranch(backbone, compute, head, blocks=blocks, first_block=1, warmup_samples=adapt)
    )


def latent(backbone, compute, *, first=24, rows=60, blocks=(0, 1, 2), dtype="int4", seed=0, views=1):
    """The hybrid with a store of latents for `rows` samples."""
    exact = RidgeLearner(backbone, compute, RidgeHead(3 * 64, variance_ridge=3.0), blocks=blocks, tta_views=2)
    training = LatentTraining(
        backbone=backbone, compute=compute, first_block=1, learning_rate=1e-2, views=views
    )

    def branch():
        return RetrainedBranch(
            training,
            lambda: RidgeHead(2 * 64, variance_ridge=3.0),
            LatentStore(dtype, key=b"key"),
            LatentSchedule(first, rows),
            blocks=blocks,
            predicted_views=2,
            seed=seed,
        )

    return LatentRidgeLoRALearner(exact, branch(), branch)


def with_robust_views(learner, share=0.3):
    """The learner, which has learned nothing yet, with a frozen head that learns robust views."""
    exact = getattr(getattr(learner, "core", learner), "exact", learner)
    exact.head = ViewPairRidgeHead(exact.head.width, robust_share=share, variance_ridge=3.0)
    reader = FrozenReader(exact.backbone, exact.compute, exact.reader.blocks)
    exact.robust = RobustReader(reader, exact.backbone.image_size)
    return learner


def robust(backbone, compute):
    return with_robust_views(hybrid(backbone, compute))


def ncm(backbone, compute):
    return RidgeLearner(backbone, compute, NCMHead(3 * 64), blocks=(0, 1, 2))


def slda(backbone, compute):
    return RidgeLearner(backbone, compute, SLDAHead(3 * 64), blocks=(0, 1, 2), sharpness=1.0)


def reconstruct(backbone, compute, *, block=1, hidden=0.5):
    reader = MaskedPatchReader(backbone, compute, block=block, hidden=hidden, cells=4, seed=0)
    decoder = PatchDecoder(reader.context_width, reader.values)
    return ReconstructLearner(ridge(backbone, compute), Reconstruction(reader, decoder))


def keys(backbone, compute):
    context = LearnerContext(backbone, compute)
    return build_keys(KeysOptions(blocks=[0, 1, 2], keys=64), context)


def trained(backbone, compute, *, adapted=True):
    generator = torch.Generator().manual_seed(0)
    adapters = Adapters(backbone, rank=4, first_block=1, generator=generator) if adapted else None
    return AdapterModel(
        backbone, compute, adapters, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), generator=generator
    )


def naive_lora(backbone, compute):
    return FinetuneLearner(trained(backbone, compute))


def frozen_linear(backbone, compute):
    return FinetuneLearner(trained(backbone, compute, adapted=False))


def er(backbone, compute):
    return ExperienceReplay(trained(backbone, compute), replay_size=20)


def der_pp(backbone, compute):
    return DERPlusPlus(trained(backbone, compute), replay_size=20)


def ewc_pp(backbone, compute, **options):
    return EWCPlusPlus(trained(backbone, compute), **options)


BASELINES = [naive_lora, frozen_linear, er, der_pp, ewc_pp]


CLOSED_FORMS = [ridge, hybrid, robust, latent, ncm, slda, reconstruct, keys]


LEARNERS = [online_lora, latent_replay, *CLOSED_FORMS, *BASELINES]


def teach(learner, *, labels=LABELS, batches=6, size=8, start=0):
    rng = np.random.default_rng(start)
    lessons = []
    for k in range(batches):
        batch = make_batch(start + k * size, [labels[i] for i in rng.integers(0, len(labels), size)])
        lessons.append(learner.learn(batch))
    return lessons


def cohorts(backbone, compute, *, by="domain", limit=8, stretch=24, adapt=10):
    blocks = (0, 1, 2)

    def branch(name):
        head = RidgeHead(2 * 64, variance_ridge=3.0)
        seed = sum(name.encode())
        return AdaptedBranch(
            backbone, compute, head, blocks=blocks, first_block=1, warmup_samples=adapt, seed=seed, steps=2
        )

    reader = FrozenReader(backbone, compute, blocks, tta_views=2)
    return CohortAdaptersLearner(
        reader, CohortRule(by, stretch, limit), branch, width=3 * 64, cut=1, variance_ridge=3.0
    )


def mixed(backbone, compute, *, adapt=16, noise=1e-3, cohorts=8):
    blocks = (0, 1, 2)
    exact = RidgeLearner(backbone, compute, RidgeHead(3 * 64, variance_ridge=3.0), blocks=blocks, tta_views=2)
    head = RidgeHead(2 * 64, variance_ridge=3.0)
    branch = AdaptedBranch(backbone, compute, head, blocks=blocks, first_block=1, warmup_samples=adapt)
    tangents = TangentReader(branch, width=24, linearised_blocks=2, seed=3)
    users = UserWeights(1 + 64 + 24, variance_ridge=3.0, noise=noise, max_tracked_subjects=cohorts)
    return MixedPrivacyLearner(RidgeLoRALearner(exact, branch), users, tangents, frozen=64)


def statistics_by_class(learner):
    """Gram matrix, Q and counts of a learner's head, the classes in alphabetical order."""
    known = learner.head.statistics
    order = [learner.classes.index(name) for name in sorted(learner.classes)]
    return known.gram.full(), known.Q[:, order], known.counts[order]
