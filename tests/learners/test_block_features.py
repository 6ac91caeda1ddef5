import numpy as np
import pytest
import torch
from tiny_backbones import FAMILIES, shared

from streamcl.learners.block_features import concat_block_tokens, concat_width


@pytest.mark.parametrize("blocks", [[0], [0, 2], [1, 2]])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_width_is_that_of_the_features(family, blocks):
    backbone = shared(family)
    with torch.no_grad():
        tokens = backbone.stem(backbone.prepare([np.zeros((8, 8, 3), np.uint8)]))
        features = concat_block_tokens(backbone, backbone.run(tokens), blocks)
    assert concat_width(backbone, blocks) == features.shape[1]
