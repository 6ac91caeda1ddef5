"""Fast-NTK: the closed form is the difference of two minimisers, in both forms, and is refused elsewhere."""

import math

import pytest
import torch
from conftest import make_batch
from forgetting_repairs import LABELS, context_of, request_of, retain_of, taught
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.checkpoint import state_hash
from streamcl.errors import ForgettingError
from streamcl.forgetting.fast_ntk import FastNTK, kernel_form, primal_form, unlearning_step
from streamcl.forgetting.protocol import Method


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
    with pytest.raises(ForgettingError, match="no one solution"):
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
    return FastNTK(retain_of(600, ["ant", "bee", "dog"]), forget=6, retain_samples=12)


def test_a_class_is_dropped_and_the_rest_stays(tiny_backbone, fp32, method):
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    context = context_of(learner, request)
    assert isinstance(method, Method)
    assert method.can(request, context) is None
    evidence = method.erase(request, context)
    assert learner.classes == ("ant", "bee", "dog")
    assert evidence.guarantee == "approximate"
    assert evidence.figures["forget_loss_after"] > evidence.figures["forget_loss_before"]
    assert learner.model.optimizer.state == {}
    others = [s for s in make_batch(4000, LABELS * 4).samples if s.label != "cat"]
    hits = [g.label == s.label for g, s in zip(learner.predict(others), others, strict=True)]
    assert sum(hits) >= 0.6 * len(hits)  # a third would be chance


def test_a_jacobian_past_the_limit_is_refused_with_its_size(tiny_backbone, fp32):
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    method = FastNTK(retain_of(600, ["ant"]), limit=1000)
    before = state_hash(learner.state_dict())
    reason = method.can(request, context_of(learner, request))
    assert reason is not None
    assert "GB" in reason
    with pytest.raises(ForgettingError, match="more than the limit"):
        method.erase(request, context_of(learner, request))
    assert state_hash(learner.state_dict()) == before


def test_a_failed_step_leaves_the_learner_as_it_was(tiny_backbone, fp32, method, monkeypatch):
    learner = taught(tiny_backbone, fp32)
    request = request_of("cat")
    before = state_hash(learner.state_dict())
    monkeypatch.setattr("streamcl.forgetting.fast_ntk.INTACT", 1.1)
    with pytest.raises(ForgettingError, match="would stay the same"):
        method.erase(request, context_of(learner, request))
    assert state_hash(learner.state_dict()) == before


def test_a_class_without_a_row_and_nothing_to_hold_on_to_are_refused(tiny_backbone, fp32, method):
    learner = taught(tiny_backbone, fp32)
    unknown = request_of("emu", samples=make_batch(0, ["emu"] * 4).samples)
    assert "no row" in str(method.can(unknown, context_of(learner, unknown)))
    request = request_of("cat")
    assert "destroys the model" in str(FastNTK().can(request, context_of(learner, request)))
