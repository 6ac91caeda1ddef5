"""A taught learner on the tiny ViT, and requests to repair its shared weights."""

from pictures import make_batch

from streamcl.events import ForgetRequest
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.methods.protocol import Context, RequestScope
from streamcl.learners.online_lora import OnlineLoRALearner

LABELS = ["ant", "bee", "cat", "dog"]
PER_CLASS = 16


def learner_of(backbone, compute, **options):
    return OnlineLoRALearner(
        backbone,
        compute,
        **{
            **{"first_block": 1, "learning_rate": 1e-2, "regularisation": 0.0, "mask_absent": False},
            "buffer_weight": "batch",
            "hard_buffer_size": 4,
        }
        | options,
    )


def taught(backbone, compute, *, passes=6, **options):
    """A learner that was given the samples s0 .. s63, `passes` times over."""
    learner = learner_of(backbone, compute, **options)
    batch = make_batch(0, LABELS * PER_CLASS)
    for _ in range(passes):
        for start in range(0, len(batch), 16):
            learner.learn(type(batch)(start, batch.samples[start : start + 16]))
    return learner


def request_of(label=None, *, kind="class", subject=None, samples=()):
    named = {} if kind != "samples" or samples else {"ids": ["nobody"]}
    return ForgetRequest(id="r1", label=label, subject=subject, samples=tuple(samples), **named)


def context_of(learner, request, unavailable=None):
    """As the forgetter makes it, for a learner that was given the samples of `taught`."""
    samples = make_batch(0, LABELS * PER_CLASS).samples
    hit = [
        (i, s)
        for i, s in enumerate(samples)
        if (s.label == request.label if request.kind == "class" else s.subject == request.subject)
    ]
    traces = [LineageRow(i, s.id, s.label, True, 0, b"") for i, s in hit]
    by_id = {s.id: s for _, s in hit}
    scope = RequestScope(request, len(traces), len(traces), False, lambda: iter([traces] if traces else []))
    return Context(learner, scope, lambda wanted: [by_id[t.id] for t in wanted], unavailable)


def retain_of(offset, labels, count=64):
    """A retain source of fresh samples of these classes (None: unlabelled)."""
    samples = make_batch(offset, labels * (count // len(labels) + 1)).samples
    return lambda limit: samples[: min(count, limit)]
