"""GS-LoRA: groups reach zero, what is forgotten stays so, the rest is kept, the backbone is untouched."""

import math

import pytest
import torch
from forgetting_repairs import LABELS, context_of, learner_of, request_of, retain_of, taught
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import make_batch
from torch import nn

from streamcl.errors import ForgettingError
from streamcl.forgetting.methods.ffn_lora import attached_updates, merge, norm, unsupported_ffn
from streamcl.forgetting.methods.gs_lora import GSLoRA, GSLoRAOptions, ProximalDescent, shrink
from streamcl.forgetting.methods.protocol import ForgettingMethod
from streamcl.nn.adapted_blocks import Adapters
from streamcl.storage.plain_state import state_hash

STRENGTH = GSLoRAOptions(blocks=2, steps=40, length=2.0, beta=0.1, doubling=1000, forget=16, retain=64)
OTHERS = ["ant", "bee", "dog"]


def generator():
    return torch.Generator().manual_seed(0)


def method_of(retain=None, **changes):
    fields = {name: getattr(STRENGTH, name) for name in STRENGTH.__slots__}
    return GSLoRA(retain or retain_of(600, OTHERS), GSLoRAOptions(**(fields | changes)))


def row_of(learner, label):
    column = learner.classes.index(label)
    return learner.head.weight[column].detach().clone(), learner.head.bias[column].detach().clone()


def shown(learner, label, row, count=24):
    """Loss and accuracy of fresh samples of a class, with its old row put back into the head."""
    samples = make_batch(7000, [label] * count).samples
    with torch.no_grad():
        features = learner.model.features(samples)
        own, others = features @ row[0] + row[1], learner.head(features)
        rest = [i for i, name in enumerate(learner.classes) if name != label]
        logits = torch.cat([others[:, rest], own[:, None]], dim=1)
    losses = -logits.log_softmax(dim=1)[:, -1]
    return float(losses.mean()), float((logits.argmax(1) == logits.shape[1] - 1).double().mean())


def accuracy(learner, labels, start=4000, each=8):
    samples = make_batch(start, labels * each).samples
    return sum(g.label == s.label for g, s in zip(learner.predict(samples), samples, strict=True)) / len(
        samples
    )


# groups


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0, 5))
def test_shrinking_takes_exactly_the_amount_off_the_norm_or_ends_at_zero(values, amount):
    group = [torch.tensor(values, dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    before = norm(group)
    shrink(group, amount)
    if before <= amount:
        assert all(torch.equal(p, torch.zeros_like(p)) for p in group)
    else:
        assert norm(group) == pytest.approx(before - amount, abs=1e-9)


def test_a_group_that_gains_nothing_reaches_exact_zero_and_the_other_does_not():
    useful, useless = nn.Parameter(torch.ones(3)), nn.Parameter(torch.full((3,), 0.5))
    descent = ProximalDescent([[useful], [useless]])
    for _ in range(40):
        loss = 10 * (useful - 3).square().sum() + 0 * useless.sum()
        gradients = torch.autograd.grad(loss, [useful, useless])
        descent.step([gradients[:1], gradients[1:]], length=0.1, threshold=0.03)
    assert torch.equal(useless.detach(), torch.zeros(3))
    assert float(useful.detach().min()) > 1.5


def test_at_zero_nothing_is_nan():
    group = [nn.Parameter(torch.zeros(2))]
    ProximalDescent([group]).step([[torch.zeros(2)]], length=0.1, threshold=0.1)
    assert torch.equal(group[0].detach(), torch.zeros(2))


# updates of the FFN


def test_fresh_updates_add_nothing_have_a_gradient_and_leave_no_trace(tiny_backbone):
    adapters = Adapters(tiny_backbone, rank=2, first_block=1, generator=generator())
    tokens = tiny_backbone.run(tiny_backbone.stem(torch.randn(2, 3, 32, 32, generator=generator())), 0, 1)[-1]
    plain = adapters.run(tokens)[-1]
    state = state_hash(adapters.export_state())
    with attached_updates(adapters, adapters.block_names, 4, generator()) as blocks:
        assert torch.equal(adapters.run(tokens)[-1], plain)
        assert [block.norm for block in blocks] == [0.0, 0.0]
        adapters.run(tokens)[-1].square().sum().backward()
        assert all(low.lora_B.grad.abs().max() > 0 for block in blocks for low in block.layers.values())
    assert state_hash(adapters.export_state()) == state
    assert torch.equal(adapters.run(tokens)[-1], plain)


def test_folding_keeps_the_outputs_and_blocks_at_zero_stay_the_backbones_own(tiny_backbone):
    adapters = Adapters(tiny_backbone, rank=2, first_block=0, generator=generator())
    tokens = tiny_backbone.stem(torch.randn(2, 3, 32, 32, generator=generator()))
    frozen = {name: p.clone() for name, p in tiny_backbone.named_parameters()}
    with attached_updates(adapters, adapters.block_names, 4, generator()) as blocks:
        for block in blocks[:2]:
            for low in block.layers.values():
                nn.init.normal_(low.lora_B, std=0.5, generator=generator())
        shrink(blocks[1].group, 1e6)
        shrink(blocks[2].group, 1e6)
        live = adapters.run(tokens)[-1]
        assert (live - adapters.backbone.run(tokens)[-1]).abs().max() > 1e-3
    assert merge(adapters, blocks) == 1
    assert torch.allclose(adapters.run(tokens)[-1], live, atol=1e-5)
    assert sorted(adapters.replaced_weights) == ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    assert all(torch.equal(p, frozen[name]) for name, p in tiny_backbone.named_parameters())


def test_an_ffn_without_the_two_linears_is_refused_by_name(tiny_backbone):
    adapters = Adapters(tiny_backbone, rank=2, first_block=1, generator=generator())
    adapters.blocks[1].mlp.fc1 = nn.Identity()
    assert unsupported_ffn(adapters) is not None
    assert "blocks.2 has no linear layer mlp.fc1" in str(unsupported_ffn(adapters))


# erasing


@pytest.fixture(scope="module")
def erased(tiny_backbone, fp32):
    """A learner before and after forgetting a class, the class's old row and the evidence."""
    frozen = {name: p.clone() for name, p in tiny_backbone.named_parameters()}
    learner = taught(tiny_backbone, fp32)
    row, before = row_of(learner, "cat"), (accuracy(learner, OTHERS), None)
    known = shown(learner, "cat", row)
    request = request_of("cat")
    method, context = method_of(), context_of(learner, request)
    assert isinstance(method, ForgettingMethod)
    assert method.unsupported_reason(request, context) is None
    evidence = method.erase(request, context)
    assert all(torch.equal(p, frozen[name]) for name, p in tiny_backbone.named_parameters())
    return learner, row, before[0], known, evidence


def test_the_class_is_forgotten_even_by_its_old_row_and_not_beyond_an_unseen_one(erased):
    learner, row, _, (loss_before, accuracy_before), evidence = erased
    assert learner.classes == ("ant", "bee", "dog")
    loss, hits = shown(learner, "cat", row)
    assert accuracy_before > 0.8
    assert hits <= 0.2
    assert loss_before < 0.7 < loss <= 3 * math.log(4)
    assert evidence.figures["bound"] == pytest.approx(math.log(4), abs=1e-4)


def test_what_is_not_forgotten_is_kept(erased):
    learner, _, before, _, evidence = erased
    assert accuracy(learner, OTHERS) >= before - 0.1
    assert evidence.figures["retained_agreement_after"] >= 0.9


def test_every_place_is_named_moments_are_new_and_held_samples_gone(erased):
    learner, _, _, _, evidence = erased
    done = {place.name: place.status for place in evidence.locations}
    assert done["head statistics"] == "erased"
    assert done["adapters"] == "remains"
    assert done["optimizer moments"] == "erased"
    assert set(done) == {"head statistics", "adapters", "optimizer moments", "importance", "hard buffer"}
    moments = learner.model.optimizer.state.values()
    assert moments
    assert all(float(each["exp_avg"].abs().max()) == 0.0 for each in moments)
    assert all(sample.label != "cat" for sample in learner.buffer.samples)
    assert evidence.guarantee == "approximate"
    assert evidence.residual.endswith(".")
    assert "'cat'" not in repr(evidence)


def test_after_a_restart_the_learner_goes_on_bit_by_bit(erased, tiny_backbone, fp32):
    learner = erased[0]
    twin = learner_of(tiny_backbone, fp32)
    twin.load_state_dict(learner.state_dict())
    assert twin.model.adapters.replaced_weights
    for start in (8000, 8016):
        batch = make_batch(start, OTHERS * 4)
        assert twin.predict(batch.samples) == learner.predict(batch.samples)
        twin.learn(batch)
        learner.learn(batch)
    assert state_hash(twin.state_dict()) == state_hash(learner.state_dict())


def test_a_second_request_keeps_the_first_forgotten(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32)
    rows = {label: row_of(learner, label) for label in ("cat", "dog")}
    for label in ("cat", "dog"):
        request = request_of(label)
        method_of(beta=0.02, doubling=6).erase(request, context_of(learner, request))
    assert learner.classes == ("ant", "bee")
    assert shown(learner, "cat", rows["cat"])[1] <= 0.2
    assert shown(learner, "dog", rows["dog"])[1] <= 0.2
    assert accuracy(learner, ["ant", "bee"]) >= 0.9


def test_strong_sparsity_leaves_groups_at_zero_and_counts_them(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32, first_block=0)
    request = request_of("cat")
    evidence = method_of(blocks=3, sparsity=0.3, length=3.0).erase(request, context_of(learner, request))
    changed = {path.split(".mlp")[0] for path in learner.model.adapters.replaced_weights}
    assert evidence.figures["groups_at_zero"] == 3 - len(changed) >= 1


def test_it_is_repeatable(tiny_backbone, fp32):
    hashes = set()
    for _ in range(2):
        learner = taught(tiny_backbone, fp32, passes=3)
        request = request_of("cat")
        method_of().erase(request, context_of(learner, request))
        hashes.add(state_hash(learner.state_dict()))
    assert len(hashes) == 1


def test_a_class_that_the_stream_never_taught_loses_its_probe(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32)
    request = request_of("emu", samples=make_batch(0, ["emu"] * 16).samples)
    evidence = method_of().erase(request, context_of(learner, request))
    assert learner.classes == tuple(LABELS)
    assert evidence.figures["forget_accuracy_before"] > 0.9
    assert evidence.figures["forget_accuracy_after"] < 0.3
    assert 0 <= evidence.figures["refitted_probe_accuracy_after"] <= 1


# refusals


def test_without_anything_to_hold_on_to_it_is_refused(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32, passes=1)
    request = request_of("cat")
    reason = GSLoRA(None, STRENGTH).unsupported_reason(request, context_of(learner, request))
    assert "destroys the model" in str(reason)
    with pytest.raises(ForgettingError, match="too few"):
        GSLoRA(lambda limit: (), STRENGTH).erase(request, context_of(learner, request))


def test_samples_of_the_request_are_nothing_to_hold_on_to(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32, passes=1)
    request = request_of("cat")
    with pytest.raises(ForgettingError, match="too few"):
        GSLoRA(retain_of(600, ["cat"]), STRENGTH).erase(request, context_of(learner, request))


@pytest.mark.parametrize(
    ("enough", "intact", "match"), [(9.0, 0.0, "the loss of the samples"), (0.0, 9.0, "would stay the same")]
)
def test_what_did_not_come_to_be_is_not_claimed(tiny_backbone, fp32, monkeypatch, enough, intact, match):
    learner = taught(tiny_backbone, fp32, passes=3)
    request = request_of("cat")
    before = state_hash(learner.state_dict())
    monkeypatch.setattr("streamcl.forgetting.methods.objective.MIN_BOUND_SHARE", enough)
    monkeypatch.setattr("streamcl.forgetting.methods.objective.MAX_RECOGNISED", 1.0)
    monkeypatch.setattr("streamcl.forgetting.methods.objective.MIN_RETAINED_AGREEMENT", intact)
    with pytest.raises(ForgettingError, match=match):
        method_of(steps=4).erase(request, context_of(learner, request))
    assert state_hash(learner.state_dict()) == before


def test_samples_of_a_subject_need_labels_to_know_how_unseen_ones_fare(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32, passes=3)
    request = request_of(kind="subject", subject="p1")
    with pytest.raises(ForgettingError, match="label"):
        method_of(retain_of(600, [None])).erase(request, context_of(learner, request))


def test_samples_of_a_subject_end_no_better_known_than_unseen_ones(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32, passes=3)
    request = request_of(kind="subject", subject="p1")
    figures = method_of().erase(request, context_of(learner, request)).figures
    assert learner.classes == tuple(LABELS)
    assert figures["bound"] < math.log(4)
    assert figures["forget_loss_after"] <= max(figures["forget_loss_before"], 3 * figures["bound"])


def test_samples_that_cannot_be_had_and_other_learners_are_refused(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32, passes=1)
    request = request_of("cat")
    assert method_of().unsupported_reason(request, context_of(learner, request, "gone")) == "gone"
    assert "no adapted blocks" in str(method_of().unsupported_reason(request, context_of(object(), request)))


def test_what_does_not_give_way_is_pressed_harder(tiny_backbone, fp32):
    """A weight that spares the rest is too weak for what was learned well; it doubles until that goes."""
    request = request_of("cat")
    for doubling, forgets in ((1000, False), (4, True)):
        learner = taught(tiny_backbone, fp32)
        row = row_of(learner, "cat")
        method = method_of(beta=0.005, doubling=doubling)
        if not forgets:
            with pytest.raises(ForgettingError, match=r"under|still recognised"):
                method.erase(request, context_of(learner, request))
            continue
        method.erase(request, context_of(learner, request))
        assert shown(learner, "cat", row)[1] <= 0.2


def test_a_class_that_is_known_for_sure_gives_way_too(tiny_backbone, fp32):
    """Its cross-entropy is flat where it is known best, and descending on it did not move it at all."""
    learner = taught(tiny_backbone, fp32)
    row = row_of(learner, "cat")
    with torch.no_grad():
        learner.head.weight[learner.classes.index("cat")] *= 8.0
    request = request_of("cat")
    sure = float(shown(learner, "cat", row_of(learner, "cat"))[0])
    figures = GSLoRA(retain_of(600, OTHERS)).erase(request, context_of(learner, request)).figures
    assert sure < 1e-3
    assert figures["forget_loss_before"] < 1e-3
    assert figures["forget_loss_after"] >= 0.75 * figures["bound"]
    assert shown(learner, "cat", row)[1] <= 0.2
