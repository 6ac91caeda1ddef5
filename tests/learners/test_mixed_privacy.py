"""Mixed privacy: users reach a linear part alone, come out of it again, and the bound is what it says."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from forgetting_fakes import holds
from pictures import picture
from tiny_learners import mixed
from tiny_runs import configuration as tiny_run

from streamcl.cli import cli
from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import Batch, ForgetRequest, RejectedRecord, Sample
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.mixed_privacy import AllUsers, MixedPrivacy
from streamcl.forgetting.methods.protocol import Context, RequestScope
from streamcl.forgetting.methods.select import select_method
from streamcl.heads.solving import Quadratic
from streamcl.heads.user_weights import UserWeights
from streamcl.learners.statistics import subject_cohort
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash
from streamcl.testing import check_learner

pytestmark = pytest.mark.long

LABELS = ("ant", "bee", "cat", "dog")
METHODS = [AllUsers(), ClosedFormRemoval(), MixedPrivacy()]


def core(number):
    label = LABELS[number % 3]
    return Sample(f"c{number}", picture(label, number), label, privacy="core")


def user(number, subject, label=None):
    label = label or LABELS[number % 4]
    return Sample(f"u{number}", picture(label, 1000 + number), label, subject=subject, privacy="user")


def batches(*, subjects, count=6):
    """Core samples, the same whoever the users are, and the subjects' own; absent ones keep their places."""
    made = []
    for step in range(count):
        samples = [core(step * 8 + i) for i in range(8)]
        absent = 3 * (3 - len(subjects))
        for place, subject in enumerate(("ann", "bob", "cid")):
            if subject in subjects:
                own = [user(100 * place + step * 3 + i, subject) for i in range(3)]
                samples[2 * place : 2 * place] = own
        refused = tuple(RejectedRecord(17 * step + 17 - absent + i, "", "forgotten") for i in range(absent))
        made.append(Batch(17 * step, tuple(samples), refused))
    return made


def teach(learner, made):
    for batch in made:
        assert learner.learn(batch).learned
    return learner


def context(learner, made, *, subject=None, all_users=False, available=True):
    request = ForgetRequest(id="r", subject=subject or (None if all_users else "nobody"), all_users=all_users)
    private = [s for b in made for s in b.samples if s.privacy == "user"]
    chosen = [s for s in private if all_users or s.subject == subject]
    offset = {s.id: b.offset for b in made for s in b.samples}
    traces = [LineageRow(offset[s.id], s.id, s.label, True, 0, b"", private=True) for s in chosen]
    by_id = {s.id: s for s in chosen}
    scope = RequestScope(
        request, len(traces), len(traces), forgotten_before=False, chunks=lambda: iter([traces])
    )
    why = None if available else "the source cannot fetch"
    return request, Context(learner, scope, lambda asked: [by_id[each.id] for each in asked], why)


def close(one, other, tolerance=1e-9):
    return float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def quadratic(weights, variance_ridge=5.0):
    return Quadratic(weights.core + weights.users, variance_ridge)


def in_use(weights, name):
    """W, without noise, or V, of which the scores are made."""
    return torch.from_numpy(weights.state_dict()["used"][name])


def minimiser(learner, names):
    order = [learner.classes.index(name) for name in names]
    return quadratic(learner.users, 3.0).minimiser()[:, order]


def test_the_learner_keeps_the_contract(tiny_backbone, fp32):
    check_learner(lambda: mixed(tiny_backbone, fp32), memory_failures=6)


def test_tangent_features_are_the_slopes_of_the_reading_in_lora(tiny_backbone, fp32):
    learner = teach(mixed(tiny_backbone, fp32), batches(subjects=(), count=3))
    reader, branch = learner.tangents, learner.core.adapted
    assert reader.fixed
    tokens = learner.core.read([core(n) for n in range(90, 98)]).views[0]
    found = reader(tokens)
    assert found.shape == (8, 24)
    assert torch.allclose(found.square().mean(1), torch.ones(8))
    slopes = []
    for row in range(2):  # the same by autograd, one sample at a time, without hooks
        last = branch.backbone.class_and_centre_tokens(branch.adapters.run(tokens[row : row + 1])[-1])
        score = (last @ reader.reading).sum()
        own = torch.autograd.grad(score, [layer.lora_B for layer in reader.layers])
        pairs = zip(own, reader.sketches, strict=True)
        slopes.append(sum(slope.flatten() @ sketch for slope, sketch in pairs))
    expected = torch.stack(slopes)
    expected = expected / expected.square().mean(1, keepdim=True).sqrt()
    assert torch.allclose(found[:2], expected, atol=1e-4)
    alone = reader(tokens[:8])
    assert torch.equal(alone, found)


def test_users_never_touch_what_the_core_has_learned(tiny_backbone, fp32):
    never = teach(mixed(tiny_backbone, fp32), batches(subjects=()))
    with_users = teach(mixed(tiny_backbone, fp32), batches(subjects=("ann", "bob")))
    assert state_hash(with_users.core.state_dict()) == state_hash(never.core.state_dict())
    assert with_users.users.users.total == 6 * 6
    assert "dog" in with_users.classes
    assert "dog" not in never.classes


def test_while_the_adapters_move_the_detector_sees_core_losses_only(tiny_backbone, fp32):
    learner = mixed(tiny_backbone, fp32, adapt=16)
    shown = [len(learner.learn(batch).losses) for batch in batches(subjects=("ann",), count=4)]
    assert shown == [8, 8, 11, 11]


def test_early_samples_of_users_reach_the_frozen_tokens_alone(tiny_backbone, fp32):
    learner = mixed(tiny_backbone, fp32, adapt=1000)
    teach(learner, batches(subjects=("ann",), count=2))
    assert float(learner.users.users.Q[65:].abs().max()) == 0
    assert float(learner.users.users.Q[1:65].abs().max()) > 0
    learner.consolidate()
    teach(learner, batches(subjects=("ann",), count=1))
    assert float(learner.users.users.Q[65:].abs().max()) > 0


def test_every_user_is_forgotten_as_if_none_had_come(tiny_backbone, fp32):
    never = teach(mixed(tiny_backbone, fp32), batches(subjects=()))
    made = batches(subjects=("ann", "bob", "cid"))
    learner = teach(mixed(tiny_backbone, fp32), made)
    request, found = context(learner, made, all_users=True)
    method, _ = select_method(METHODS, request, found)
    evidence = method.erase(request, found)
    assert (evidence.method, evidence.guarantee) == ("all_users", "exact")
    state, expected = learner.state_dict(), never.state_dict()
    assert state_hash(state) == state_hash(expected)


def test_a_subject_comes_out_as_if_it_had_never_been(tiny_backbone, fp32):
    made = batches(subjects=("ann", "bob"))
    learner = teach(mixed(tiny_backbone, fp32), made)
    request, found = context(learner, made, subject="bob", available=False)
    method, why = select_method(METHODS, request, found)
    assert method.name == "mixed_privacy"
    assert "closed_form" in why
    evidence = method.erase(request, found)
    never = teach(mixed(tiny_backbone, fp32), batches(subjects=("ann",)))
    assert sorted(learner.classes) == sorted(never.classes)
    assert close(minimiser(learner, never.classes), minimiser(never, never.classes))
    assert close(
        in_use(learner.users, "W")[:, [learner.classes.index(n) for n in never.classes]],
        minimiser(never, never.classes),
    )  # the Newton step ends there
    assert evidence.guarantee == "bounded"
    figures = evidence.figures
    assert figures["bound_nats"] < 1e-9 < figures["nats_without_the_step"]
    assert figures["user_samples_left"] == never.users.users.total
    assert "nats" in evidence.residual
    assert {place.name for place in evidence.locations} >= {"user weights", "adapters", "head statistics"}
    state = learner.state_dict()
    assert subject_cohort("bob") not in state["users"]["cohorts"]
    with pytest.raises(ForgettingError, match="no sums"):
        learner.forget_subject("bob")


def test_samples_that_can_be_had_again_are_subtracted_exactly(tiny_backbone, fp32):
    # Of bob, only what came after the adapters had settled can be derived again.
    made = [*batches(subjects=("ann",))[:3], *batches(subjects=("ann", "bob"))[3:]]
    learner = teach(mixed(tiny_backbone, fp32), made)
    request, found = context(learner, made, subject="bob")
    method, _ = select_method(METHODS, request, found)
    assert method.name == "closed_form"
    method.erase(request, found)
    never = teach(mixed(tiny_backbone, fp32), batches(subjects=("ann",)))
    assert close(minimiser(learner, never.classes), minimiser(never, never.classes))
    assert subject_cohort("bob") not in learner.users.cohorts


@pytest.mark.parametrize(
    ("options", "subject", "reason"),
    [
        ({"noise": 0.0}, "bob", "no noise"),
        ({"cohorts": 1}, "bob", "no sums of this subject"),
        ({}, "nobody", "no sums of this subject"),
    ],
)
def test_what_cannot_be_bounded_is_refused(tiny_backbone, fp32, options, subject, reason):
    made = batches(subjects=("ann", "bob"), count=3)
    learner = teach(mixed(tiny_backbone, fp32, **options), made)
    request, found = context(learner, made, subject=subject, available=False)
    assert reason in str(MixedPrivacy().unsupported_reason(request, found))


def test_sums_that_lack_a_sample_in_scope_are_not_enough(tiny_backbone, fp32):
    made = batches(subjects=("bob",), count=3)
    learner = teach(mixed(tiny_backbone, fp32), made)
    also_core = Sample("x", picture("ant", 5), "ant", subject="bob", privacy="core")
    request, found = context(learner, [*made, Batch(640, (user(9, "bob"), also_core))], subject="bob")
    assert "of its samples were learned" in MixedPrivacy().unsupported_reason(request, found)


def test_early_samples_of_users_are_not_derived_again(tiny_backbone, fp32):
    made = batches(subjects=("bob",), count=3)
    learner = teach(mixed(tiny_backbone, fp32), made)
    request, found = context(learner, made, subject="bob")
    assert "unsettled adapters" in ClosedFormRemoval().unsupported_reason(request, found)


def test_a_restored_learner_goes_on_bit_equal(tiny_backbone, fp32):
    made = batches(subjects=("ann", "bob", "cid"), count=5)
    for stop in (1, 2, 4):
        first = teach(mixed(tiny_backbone, fp32), made[:stop])
        other = mixed(tiny_backbone, fp32)
        other.load_state_dict(first.state_dict())
        asked = [core(n) for n in range(60, 66)]
        assert first.predict(asked) == other.predict(asked)
        teach(first, made[stop:])
        teach(other, made[stop:])
        assert state_hash(first.state_dict()) == state_hash(other.state_dict())


def test_a_class_of_users_is_dropped_once_its_samples_are_gone(tiny_backbone, fp32):
    made = batches(subjects=("ann",), count=4)
    learner = teach(mixed(tiny_backbone, fp32), made)
    dogs = [s for b in made[3:] for s in b.samples if s.label == "dog"]
    with pytest.raises(ForgettingError):
        learner.drop_class("dog")
    learner.statistics.subtract(learner.statistics.of(dogs))
    early = [s for b in made[:3] for s in b.samples if s.label == "dog"]
    assert early  # their share, derived again, is not what was learned: it is refused
    with pytest.raises(ForgettingError):
        learner.statistics.subtract(learner.statistics.of(early))


def linear(seed=0):
    """Users' and core's data of a linear model, [N, D] and columns."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(300, 12, generator=generator).double() * torch.linspace(0.2, 3, 12).double()
    targets = (z[:, :3] + 0.3 * torch.randn(300, 3, generator=generator).double()).argmax(1)
    return z, targets


def filled(z, targets, parts):
    weights = UserWeights(12, variance_ridge=5.0, noise=0.01)
    weights.grow(3)
    for name, rows in parts.items():
        share = weights.statistics_of(z[rows], targets[rows])
        weights.add_core(share) if name == "core" else weights.add_users(share, name)
    weights.refit_if_due()
    return weights


PARTS = {"core": slice(0, 120), "ann": slice(120, 200), "bob": slice(200, 300)}


def retrained(z, targets, rows):
    """The minimiser by plain linear algebra on the data, without sums."""
    x, y = z[rows], torch.nn.functional.one_hot(targets[rows], 3).double()
    centred = x - x.mean(0)
    counts = y.sum(0)
    raised = (len(x) / 3 / counts) ** 0.5
    ridge = torch.diag(5.0 * centred.square().mean(0))
    return torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (y - y.mean(0))) * raised


def test_the_newton_step_is_retraining_on_a_linear_model():
    z, targets = linear()
    weights = filled(z, targets, PARTS)
    assert close(in_use(weights, "W"), retrained(z, targets, slice(0, 300)))
    weights.forget_cohort("bob")
    assert close(in_use(weights, "W"), retrained(z, targets, slice(0, 200)))
    weights.forget_cohort("ann")
    assert float(in_use(weights, "V").abs().max()) == 0
    assert float(weights.scores(z).abs().max()) == 0


def test_the_bound_is_the_divergence_of_the_two_noisy_weights():
    """|w - w_r*|^2 / (2 sigma^2) from the data themselves, and by sampling the two Gaussians."""
    z, targets = linear()
    weights = filled(z, targets, PARTS)
    before = in_use(weights, "W")
    figures = weights.forget_cohort("bob")
    apart = before - retrained(z, targets, slice(0, 200))
    deviation = (z[:200] - z[:200].mean(0)).square().mean(0).sqrt()[:, None]
    expected = float((apart * deviation).square().sum()) / (2 * 0.01**2)
    assert math.isclose(figures["nats_without_the_step"], expected, rel_tol=1e-9)
    assert figures["bound_nats"] <= 1e-15 * expected
    rng = np.random.default_rng(0)
    shift = (apart * deviation).flatten().numpy() / 0.01
    drawn = rng.standard_normal((20_000, shift.size)) + shift
    log_ratio = (drawn @ shift) - 0.5 * shift @ shift  # log p(w around w) / p(w around w_r*)
    assert math.isclose(log_ratio.mean(), expected, rel_tol=0.02)


def test_an_approximate_step_is_given_the_bound_that_it_has():
    """The figure is computed at the weights in use: a step that stops short shows."""
    z, targets = linear()
    weights = filled(z, targets, {"core": PARTS["core"], "ann": PARTS["ann"]})
    problem = quadratic(weights)
    best = problem.minimiser()
    short = best + 1e-3
    assert close(problem.distance(short), short - best)
    assert close(problem.newton(short), best)
    expected = float(((1e-3 * torch.ones_like(best)).square() * problem.variance[:, None]).sum()) / 2e-4
    assert math.isclose(problem.nats(short, 0.01), expected, rel_tol=1e-9)
    assert problem.nats(short, 0.0) is None


def noise_in(weights, z):
    """The noise in the weights in use, [D, C], in units of 1 / its feature's standard deviation."""
    core = Quadratic(weights.core, 5.0).minimiser()
    return (in_use(weights, "V") - (in_use(weights, "W") - core)) * z.std(0)[:, None]


def test_noise_has_its_size_and_comes_again_with_the_same_sums():
    z, targets = linear()
    weights, other = filled(z, targets, PARTS), filled(z, targets, PARTS)
    assert torch.equal(in_use(weights, "V"), in_use(other, "V"))
    noise = noise_in(weights, z)
    assert 0.5 < float(noise.std()) / 0.01 < 1.6
    weights.add_users(weights.statistics_of(z[:60], targets[:60]), "ann")
    weights.refit_if_due()
    assert 0.5 < float(noise_in(weights, z).std()) / 0.01 < 1.6
    assert not torch.equal(noise_in(weights, z).sign(), noise.sign())  # other sums, another draw


def test_restored_weights_give_the_same_scores_to_the_last_bit():
    """Sums and products of the same numbers round otherwise where they lie otherwise in memory."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 130, generator=generator)
    targets = torch.arange(400) % 37
    live = UserWeights(130)
    live.grow(37)
    live.add_core(live.statistics_of(z[:200], targets[:200]))
    live.add_users(live.statistics_of(z[200:300], targets[200:300]), "ann")
    live.refit_if_due()
    other = UserWeights(130)
    other.load_state_dict(live.state_dict())
    for each in (live, other):
        each.add_users(each.statistics_of(z[300:], targets[300:]), "bob")
    assert torch.equal(live.scores(z[:7]), other.scores(z[:7]))
    assert torch.equal(live.scores_refit(z[:7]), other.scores_refit(z[:7]))
    for each in (live, other):
        each.refit_if_due()
        each.forget_cohort("ann")
    assert torch.equal(live.scores(z[:7]), other.scores(z[:7]))
    assert state_hash(live.state_dict()) == state_hash(other.state_dict())


def test_sums_that_were_never_added_cannot_be_taken_out():
    z, targets = linear()
    weights = filled(z, targets, PARTS)
    before = state_hash(weights.state_dict())
    with pytest.raises(ForgettingError):
        weights.remove(None, {}, weights.statistics_of(10 * z[:50], targets[:50]))
    assert state_hash(weights.state_dict()) == before


def stream():
    """What the runs below are given: three core samples, then one of Ann's or Bob's, again and again."""
    for number in range(96):
        private = number % 4 == 3
        subject = ("Ann Other", "Bob Other")[number // 4 % 2] if private else None
        label = LABELS[number % 3]
        yield Sample(
            f"s{number}",
            picture(label, number),
            label,
            subject=subject,
            privacy="user" if private else "core",
        )


def configuration(folder, **more):
    learner = {"name": "mixed_privacy", "lora": {"warmup_samples": 16}, "users": {"tangents": 16}}
    source = {"class": "test_mixed_privacy:stream", "deterministic": True}
    return tiny_run(folder, learner, source=source, batch=8, checkpoint={"every_samples": 32}, **more)


def test_a_run_forgets_a_subject_with_a_bound_and_then_all_users(tmp_path):
    with open_run(configuration(tmp_path)) as run:
        for prediction in run:
            if prediction.offset == 63:
                run.forget(subject="Ann Other", id="ann")
                run.forget(subject="Bob Other", guarantee="exact", id="bob")
        run.forget(all_users=True, id="all")
        run.processor.forget()
        assert run.learner.users.users.total == 0
        assert not run.learner.users.cohorts
    receipts = {
        name: json.loads((run.folder / "receipts" / f"{name}.json").read_text())
        for name in ("ann", "bob", "all")
    }
    ann = receipts["ann"]
    assert (ann["method"], ann["guarantee"], ann["scope"]["learned"]) == ("mixed_privacy", "bounded", 8)
    assert {"noise", "bound_nats", "nats_without_the_step", "linear_since"} <= set(ann["figures"])
    assert (receipts["bob"]["outcome"], receipts["all"]["method"]) == ("refused", "all_users")
    assert receipts["all"]["guarantee"] == "exact"
    assert holds(tmp_path, "Ann Other", "Bob Other") == {}


def test_the_command_line_forgets_all_users(tmp_path):
    with open_run(configuration(tmp_path)) as run:
        list(run)
        assert run.learner.users.users.total
    result = CliRunner().invoke(cli, ["forget", str(run.folder), "--all-users", "--execute"])
    assert result.exit_code == 0, result.output
    assert "done: exact, by all_users" in result.output
    with open_run(configuration(tmp_path)) as run:
        assert run.learner.users.users.total == 0


def test_a_request_for_all_users_names_nothing_else():
    assert ForgetRequest(all_users=True).kind == "subject"
    for more in ({"subject": "ann"}, {"ids": ["a"]}, {"label": "cat"}):
        with pytest.raises(ForgettingError):
            ForgetRequest(all_users=True, **more)
    with pytest.raises(ConfigError, match="excludes every other selection"):
        config_from_dict(
            {"source": "demo_digits", "forgetting": {"requests": [{"all_users": True, "class": "cat"}]}}
        )


def test_no_user_is_learned_again_after_all_were_forgotten(tmp_path):
    forget = [{"offset": 32, "all_users": True}]
    with open_run(configuration(tmp_path, forgetting={"requests": forget})) as run:
        offsets = [prediction.offset for prediction in run]
        assert run.learner.users.users.total == 0
    assert {offset for offset in offsets if offset >= 32 and offset % 4 == 3} == set()


def test_a_run_that_stopped_goes_on_bit_equal(tmp_path):
    forget = [{"offset": 64, "subject": "Ann Other"}]
    with open_run(configuration(tmp_path / "a", forgetting={"requests": forget})) as run:
        whole = list(run)
        expected = state_hash(run.learner.state_dict())
    with open_run(configuration(tmp_path / "b", forgetting={"requests": forget})) as run:
        first = [p for p in run if p.offset < 72 or run.processor.stop()]
    with open_run(configuration(tmp_path / "b", forgetting={"requests": forget})) as run:
        rest = list(run)
        assert state_hash(run.learner.state_dict()) == expected
    assert first + rest == [p for p in whole if p in {*first, *rest}]
