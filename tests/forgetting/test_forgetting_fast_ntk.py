"""Fast-NTK: the closed form is the difference of two minimisers, in both forms, and is refused elsewhere."""

import math

import pytest
import torch
from forgetting_repairs import LABELS, context_of, request_of, retain_of, taught
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import make_batch

from streamcl.errors import ForgettingError
from streamcl.forgetting.methods.fast_ntk import (
    FastNTK,
    kernel_form,
    primal_form,
    sketched_outputs,
    unlearning_step,
)
from streamcl.forgetting.methods.jacobian import ParameterSubset
from streamcl.forgetting.methods.objective import ForgetObjective
from streamcl.forgetting.methods.protocol import ForgettingMethod
from streamcl.forgetting.methods.weight_repair import RepairableBlocks
from streamcl.storage.plain_state import state_hash


def problem(outputs_f, outputs_r, parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(outputs_f + outputs_r, parameters, generator=generator, dtype=torch.float64)
    v = torch.randn(outputs_f + outputs_r, generator=generator, dtype=torch.float64)
    return J[:outputs_f], J[outputs_f:], v[:outputs_f], v[outputs_f:]


def minimiser(J, v, ridge):
    """Of |J w - v|^2 + ridge |w|^2, by QR of the stacked system and not by any formula of the module."""
    eye = math.sqrt(ridge) * torch.eye(J.shape[1], dtype=J.dtype)
    stacked = torch.cat([v, torch.zeros(J.shape[1], dtype=J.dtype)])
    return torch.linalg.lstsq(torch.cat([J, eye]), stacked[:, None], driver="gelsd").solution[:, 0]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12),
    st.integers(1, 25),
    st.integers(2, 40),
    st.sampled_from([1e-2, 1.0]),
    st.integers(0, 9),
)
def test_on_a_linear_model_the_step_leads_from_trained_to_retrained(forget, retain, parameters, ridge, seed):
    J_f, J_r, v_f, v_r = problem(forget, retain, parameters, seed)
    trained = minimiser(torch.cat([J_f, J_r]), torch.cat([v_f, v_r]), ridge)
    retrained = minimiser(J_r, v_r, ridge)
    for form in (kernel_form, primal_form, unlearning_step):
        step = form(J_f, J_r, v_f, v_r, ridge)
        assert (trained + step - retrained).norm() <= 1e-9 * (1 + retrained.norm() + trained.norm())


def test_without_a_ridge_the_error_is_rounding():
    J_f, J_r, v_f, v_r = problem(4, 60, 20, seed=1)
    J = torch.cat([J_f, J_r])
    trained = torch.linalg.lstsq(J, torch.cat([v_f, v_r])[:, None]).solution[:, 0]
    retrained = torch.linalg.lstsq(J_r, v_r[:, None]).solution[:, 0]
    step = unlearning_step(J_f, J_r, v_f, v_r, 0.0)
    assert (trained + step - retrained).norm() <= 1e-12


def test_the_smaller_system_is_solved(monkeypatch):
    sizes = []
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: (sizes.append(len(m)), real(m))[1])
    unlearning_step(*problem(2, 6, 50, seed=0), 0.1)
    assert max(sizes) == 6
    sizes.clear()
    unlearning_step(*problem(20, 60, 5, seed=0), 0.1)
    assert max(sizes) == 5


@pytest.mark.parametrize("form", [kernel_form, primal_form])
def test_a_problem_without_one_solution_is_refused_and_a_ridge_makes_it_solvable(form):
    J_f, J_r, v_f, v_r = problem(3, 10, 40 if form is kernel_form else 8, seed=2)
    if form is kernel_form:
        J_r[1] = J_r[0]  # the same sample twice
    else:
        J_f[:, 3] = J_r[:, 3] = 0.0  # a parameter that reaches no output
    with pytest.raises(ForgettingError, match="no unique solution"):
        form(J_f, J_r, v_f, v_r, 0.0)
    assert bool(form(J_f, J_r, v_f, v_r, 1e-3).isfinite().all())


@pytest.mark.parametrize("form", [kernel_form, primal_form])
def test_what_the_retained_outputs_say_alike_needs_no_step(form):
    J_f, J_r, _, v_r = problem(2, 12, 6, seed=3)
    known = torch.linalg.lstsq(J_r, v_r[:, None]).solution[:, 0]
    step = form(J_f, J_r, J_f @ known, v_r, 1e-7)
    assert step.norm() <= 1e-6


@pytest.fixture(scope="module")
def method():
    return FastNTK(retain_of(600, ["ant", "bee", "dog"]), forget=16, retain_samples=48)


def row_of(learner, label):
    column = learner.classes.index(label)
    return learner.head.weight[column].detach().clone(), learner.head.bias[column].detach().clone()


def shown(learner, label, row):
    """The share of fresh samples of a class that its old row, put back into the head, recognises."""
    samples = make_batch(7000, [label] * 24).samples
    with torch.no_grad():
        features = learner.model.features(samples)
        own, others = features @ row[0] + row[1], learner.head(features)
    rest = [i for i, name in enumerate(learner.classes) if name != label]
    return float((own > others[:, rest].amax(dim=1)).double().mean())


def test_a_class_is_forgotten_even_by_its_old_row_and_the_rest_stays(tiny_backbone, fp32, method):
    learner = taught(tiny_backbone, fp32)
    frozen = {name: p.clone() for name, p in tiny_backbone.named_parameters()}
    request, row, known = request_of("cat"), row_of(learner, "cat"), retained_hits(learner)
    assert shown(learner, "cat", row) > 0.8
    context = context_of(learner, request)
    assert isinstance(method, ForgettingMethod)
    assert method.unsupported_reason(request, context) is None
    evidence = method.erase(request, context)
    assert learner.classes == ("ant", "bee", "dog")
    assert shown(learner, "cat", row) <= 0.2
    assert all(torch.equal(p, frozen[name]) for name, p in tiny_backbone.named_parameters())
    assert evidence.guarantee == "approximate"
    assert evidence.figures["forget_loss_after"] >= 0.75 * evidence.figures["bound"]
    assert evidence.figures["retained_agreement_after"] >= 0.9
    moments = learner.model.optimizer.state.values()
    assert all(float(each["exp_avg"].abs().max()) == 0.0 for each in moments)
    assert retained_hits(learner) >= known - 2


def retained_hits(learner):
    others = [s for s in make_batch(4000, LABELS * 8).samples if s.label != "cat"]
    return sum(g.label == s.label for g, s in zip(learner.predict(others), others, strict=True))


def test_the_batched_jacobian_is_that_of_one_sample_after_the_other(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32, passes=2)
    blocks = RepairableBlocks(learner.model, learner.adapters, 2)
    tokens = blocks.entering(make_batch(0, LABELS).samples)
    few = ParameterSubset(blocks, learner.head)

    def outputs(features, logits, rows):
        return logits[:, 0] * features[:, 0] + logits.logsumexp(dim=1) * (1 + rows)

    found = few.jacobian(tokens, [outputs, lambda f, *_: f.square().sum(dim=1)], chunk=3)
    assert found.shape == (8, few.count)
    for row in range(4):
        features = blocks.features(tokens[row : row + 1])
        output = outputs(features, learner.head(features), torch.tensor([row]))
        single = torch.autograd.grad(output.sum(), few.parameters)
        assert torch.allclose(found[row], torch.cat([g.flatten() for g in single]).double(), atol=1e-4)


def test_what_is_not_forgotten_in_the_end_is_not_claimed(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    before = state_hash(learner.state_dict())
    method = FastNTK(retain_of(600, ["ant", "bee", "dog"]), forget=16, retain_samples=48, steps=0)
    with pytest.raises(ForgettingError, match="the loss of the samples to forget"):
        method.erase(request, context_of(learner, request))
    assert state_hash(learner.state_dict()) == before


def test_a_second_request_keeps_the_first_forgotten(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32)
    rows = {label: row_of(learner, label) for label in ("cat", "dog")}
    for label in ("cat", "dog"):
        request = request_of(label)
        FastNTK(retain_of(600, ["ant", "bee", "dog"]), forget=16, retain_samples=48).erase(
            request, context_of(learner, request)
        )
    assert learner.classes == ("ant", "bee")
    assert shown(learner, "cat", rows["cat"]) <= 0.2
    assert shown(learner, "dog", rows["dog"]) <= 0.2


def test_samples_of_a_subject_end_no_better_known_than_unseen_ones_or_it_fails(tiny_backbone, fp32, method):
    learner = taught(tiny_backbone, fp32)
    request = request_of(kind="subject", subject="p1")
    figures = method.erase(request, context_of(learner, request)).figures
    assert learner.classes == tuple(LABELS)
    assert figures["forget_loss_after"] >= 0.75 * figures["bound"]


def test_a_jacobian_past_the_limit_is_refused_with_its_size(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    method = FastNTK(retain_of(600, ["ant"]), limit=1000)
    before = state_hash(learner.state_dict())
    reason = method.unsupported_reason(request, context_of(learner, request))
    assert reason is not None
    assert "GB" in reason
    with pytest.raises(ForgettingError, match="more than the limit"):
        method.erase(request, context_of(learner, request))
    assert state_hash(learner.state_dict()) == before


def test_a_failed_step_leaves_the_learner_as_it_was(tiny_backbone, fp32, method, monkeypatch):
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    before = state_hash(learner.state_dict())
    monkeypatch.setattr("streamcl.forgetting.methods.objective.MIN_RETAINED_AGREEMENT", 1.1)
    with pytest.raises(ForgettingError, match="would stay the same"):
        method.erase(request, context_of(learner, request))
    assert state_hash(learner.state_dict()) == before


def test_without_anything_to_hold_on_to_it_is_refused(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    assert "destroys the model" in str(FastNTK().unsupported_reason(request, context_of(learner, request)))


def test_what_all_remaining_rows_share_holds_no_step_back(tiny_backbone, fp32):
    """Answers do not depend on it; where it was held, later requests brought earlier classes back."""
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    blocks = RepairableBlocks(learner.model, learner.adapters, 2)
    subset = ParameterSubset(blocks)
    context = context_of(learner, request)
    forgotten = context.samples([row for chunk in context.scope.chunks() for row in chunk])
    objective = ForgetObjective.of(blocks, request, forgotten, retain_of(600, ["ant", "bee", "dog"])(32))

    def held():
        generator = torch.Generator().manual_seed(0)
        return sketched_outputs(objective, subset, objective.retain, 6, generator)

    before = held()
    with torch.no_grad():
        learner.head.weight += torch.randn(
            learner.head.weight.shape[1], generator=torch.Generator().manual_seed(1)
        )
    assert (held() - before).norm() <= 1e-4 * before.norm()
