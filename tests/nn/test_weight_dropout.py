"""One model for each perturbation: the same for all samples, gone afterwards."""

import pytest
import torch
from pictures import make_batch
from tiny_learners import LABELS, online_lora, teach

from streamcl.nn.weight_dropout import perturbed

SAMPLES = make_batch(4000, LABELS * 2).samples


@pytest.fixture
def model(tiny_backbone, fp32):
    learner = online_lora(tiny_backbone, fp32)
    teach(learner, batches=6)
    return learner.model


def up_weights(model):
    return [layer.lora_B for layer in model.adapters.layers]


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_inside_the_block_it_is_one_other_model_and_afterwards_the_same(model, kind):
    before = model.logits(SAMPLES)
    with perturbed(up_weights(model), kind, 0.5, torch.Generator().manual_seed(1)):
        together = model.logits(SAMPLES)
        assert torch.equal(model.logits(SAMPLES), together)  # not drawn anew for each pass
        turned = model.logits(SAMPLES[::-1])
    assert torch.allclose(turned.flip(0), together, atol=1e-5)  # nor for each sample
    assert not torch.equal(together, before)
    assert torch.equal(model.logits(SAMPLES), before)


def test_weights_are_dropped_at_the_rate_and_kept_as_they_are_otherwise():
    weight = torch.full((200, 50), 3.0)
    with perturbed([weight], "bernoulli", 0.2, torch.Generator().manual_seed(0)):
        assert set(weight.unique().tolist()) == {0.0, 3.0}
        assert float((weight == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    with perturbed([weight], "gaussian", 0.1, torch.Generator().manual_seed(0)):
        assert float((weight / 3).std()) == pytest.approx(0.1, abs=0.01)
        assert float((weight / 3).mean()) == pytest.approx(1.0, abs=0.01)


def test_a_rate_of_0_and_an_error_inside_leave_the_weights():
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    before = weight.clone()
    with perturbed([weight], "bernoulli", 0.0, torch.Generator()):
        assert torch.equal(weight, before)
    with pytest.raises(ValueError, match="inside"), perturbed([weight], "gaussian", 1.0, torch.Generator()):
        raise ValueError("inside")
    assert torch.equal(weight, before)


def test_the_same_generator_gives_the_same_model():
    weight = torch.ones(40)
    drawn = []
    for _ in range(2):
        with perturbed([weight], "bernoulli", 0.5, torch.Generator().manual_seed(7)):
            drawn.append(weight.clone())
    assert torch.equal(*drawn)
