"""A head that learns views beside images: weighted sums, a sample counts once, forgetting is exact."""

import numpy as np
import pytest
import torch

from streamcl.errors import ForgettingError
from streamcl.forgetting.statistics.block import StatisticsBlock
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.view_pair_head import ViewPairRidgeHead

WIDTH, CLASSES, SHARE = 6, 3, 0.3
OPTIONS = [{"variance_ridge": 3.0}, {"trace_ridge": 1e-2}, {"projection": 10, "seed": 1}]


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2 * WIDTH, generator=generator), torch.arange(count) % CLASSES


def head(share=SHARE, **options):
    made = ViewPairRidgeHead(WIDTH, robust_share=share, **options)
    made.grow(CLASSES)
    return made


def test_sums_are_the_weighted_ones_of_both_and_a_sample_counts_once():
    pairs, targets = rows(20)
    learned = head()
    learned.update(pairs, targets)
    image, view = pairs.double().split(WIDTH, dim=1)
    weighted = 0.7 * image.T @ image + 0.3 * view.T @ view
    torch.testing.assert_close(learned.statistics.gram.full(), weighted)
    means = 0.7 * image + 0.3 * view
    expected = torch.stack([means[targets == column].sum(0) for column in range(CLASSES)], dim=1)
    torch.testing.assert_close(learned.statistics.Q, expected)
    assert learned.counts == (7, 7, 6)


@pytest.mark.parametrize("options", OPTIONS)
def test_views_that_are_the_images_make_the_plain_head(options):
    pairs, targets = rows(30)
    image = pairs[:, :WIDTH]
    plain, learned = RidgeHead(WIDTH, **options), head(**options)
    plain.grow(CLASSES)
    plain.update(image, targets)
    learned.update(torch.cat([image, image], dim=1), targets)
    torch.testing.assert_close(learned.scores_refit(image), plain.scores_refit(image))


@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_forgotten_was_never_there(options):
    pairs, targets = rows(40)
    learned, fresh, removed = head(**options), head(**options), head(**options)
    for each in (learned, removed):
        each.update(pairs, targets)
    learned.downdate(pairs[:15], targets[:15])
    removed.remove(removed.statistics_of(pairs[:15], targets[:15]))
    fresh.update(pairs[15:], targets[15:])
    asked = rows(9, seed=1)[0][:, :WIDTH]
    for each in (learned, removed):
        assert each.statistics.relative_error(fresh.statistics) < 1e-12
        torch.testing.assert_close(each.scores_refit(asked), fresh.scores_refit(asked), rtol=1e-9, atol=1e-9)
    with pytest.raises(ForgettingError):
        learned.downdate(*rows(39, seed=2))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_sums_of_samples_follow_from_a_block_that_was_stored_of_them(options):
    pairs, targets = rows(25)
    learned = head(**options)
    stored = learned.learned_rows(pairs).numpy()
    assert stored.shape == (25, learned.row_width)
    labels = [bytes([column]) for column in targets.tolist()]
    block = StatisticsBlock.of(stored[:11], labels[:11]) + StatisticsBlock.of(stored[11:], labels[11:])
    sums = {label[0]: total for label, total in block.sums.items()}
    again = learned.statistics_from_parts([(block.root, sums)])
    assert again.relative_error(learned.statistics_of(pairs, targets)) < 1e-12
    assert np.array_equal(again.counts.numpy(), np.bincount(targets.numpy()))


def test_a_head_on_rows_has_the_same_share():
    pairs, targets = rows(20)
    learned = head(variance_ridge=3.0)
    learned.update(pairs, targets)
    again = learned.empty_on_rows(CLASSES)
    again.update(learned.learned_rows(pairs), targets)
    assert again.statistics.relative_error(learned.statistics) < 1e-12


def test_impossible_shares_and_widths_are_refused():
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="robust_share"):
            head(share)
    with pytest.raises(ValueError, match="expected \\[N, 12\\]"):
        head().update(rows(4)[0][:, :WIDTH], rows(4)[1])
