"""Captured blocks on a simulated GPU: captured once a shape, replayed for whole chunks, the same features.

The simulated graph records which function was captured, and a replay runs it again into the same tensor: what
lies where and what is called when is shown here, what a GPU computes is not.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from pictures import TINY_VIT, make_batch
from pretend_gpu import GPU, pretended_gpu

from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.factory.backbone import build_vit
from streamcl.learners.block_features import FrozenReader
from streamcl.nn import cuda_graphs
from streamcl.nn.build import build_backbone
from streamcl.nn.cuda_graphs import GraphedBlock, graph_blocks
from streamcl.nn.device import Compute

COMPUTE = Compute(GPU, "32-true", rows=16)
SAMPLES = make_batch(0, ["ant", "bee", "cat"] * 9).samples


class RecordedGraph:
    """A CUDA graph that runs the captured block again, into the tensor that the capture returned."""

    made: list["RecordedGraph"]

    def __init__(self):
        self.calls, self.replays = [], 0
        self.made.append(self)

    def replay(self):
        self.replays += 1
        for block, tokens, result in self.calls:
            result.copy_(block(tokens))


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were made on a simulated GPU."""
    RecordedGraph.made = []
    capturing = []

    @contextmanager
    def graph(one):
        capturing.append(one)
        yield
        capturing.pop()

    def noted(block):
        def called(tokens, **options):
            assert not torch.is_autocast_cache_enabled() or not capturing
            result = block(tokens, **options)
            if capturing:
                capturing[-1].calls.append((block, tokens, result))
            return result

        return called

    for name, fake in {
        "CUDAGraph": RecordedGraph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: nullcontext(),
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    real = cuda_graphs.capture
    monkeypatch.setattr(
        cuda_graphs, "capture", lambda block, tokens, **more: real(noted(block), tokens, **more)
    )
    with pretended_gpu(monkeypatch):
        yield RecordedGraph.made


def build():
    return build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=TINY_VIT, device=GPU)


def features(backbone, samples, views=1):
    return FrozenReader(backbone, COMPUTE, [0, 2], tta_views=views)(samples).cpu()


@pytest.mark.parametrize("views", [1, 2])
def test_each_block_is_captured_once_a_shape_and_replayed(graphs, views) -> None:
    plain, graphed = build(), build()
    graph_blocks(graphed, COMPUTE)
    expected = features(plain, SAMPLES, views)
    assert torch.equal(features(graphed, SAMPLES, views), expected)
    assert [each.replays for each in graphs] == [2] * 3  # two chunks through three blocks
    assert torch.equal(features(graphed, SAMPLES[::-1], views), expected.flip(0))
    assert [each.replays for each in graphs] == [4] * 3


def test_a_result_is_not_overwritten_by_the_next_replay(graphs) -> None:
    block = GraphedBlock(lambda tokens: 2 * tokens)
    first = block(torch.ones(2, 3, 4, device=GPU))
    block(torch.zeros(2, 3, 4, device=GPU))
    assert torch.equal(first.cpu(), torch.full((2, 3, 4), 2.0))


def test_another_shape_is_another_graph(graphs) -> None:
    block = GraphedBlock(lambda tokens: tokens + 1)
    for rows in (2, 3, 2):
        assert len(block(torch.ones(rows, 3, 4, device=GPU))) == rows
    assert len(graphs) == 2


def test_other_numbers_of_images_and_gradients_go_through_the_plain_blocks(graphs) -> None:
    graphed = build()
    graph_blocks(graphed, COMPUTE)
    with torch.no_grad():
        graphed.run(graphed.stem(torch.randn(5, 3, 32, 32).to(GPU)))
    graphed.run(graphed.stem(torch.randn(16, 3, 32, 32).to(GPU)))
    assert graphs == []


def test_compiled_blocks_are_captured_as_they_are(graphs) -> None:
    backbone, through = build(), []

    def compiled(block):
        return lambda tokens: through.append(len(tokens)) or block(tokens)

    backbone.use_quick_blocks([compiled(block) for block in backbone.blocks], rows=frozenset({16}))
    graph_blocks(backbone, COMPUTE)
    features(backbone, SAMPLES[:3])
    assert through.count(16) >= 3 * (cuda_graphs.WARM_UPS + 1)


def test_a_cpu_has_no_graphs() -> None:
    with pytest.raises(ConfigError, match=r"backbone.cuda_graphs: the device is cpu"):
        graph_blocks(
            build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=TINY_VIT),
            Compute(torch.device("cpu"), "32-true"),
        )


def test_blocks_are_captured_where_the_configuration_asks_for_it(graphs) -> None:
    options = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
    for wish in (False, True):
        backbone = {**options, "cuda_graphs": wish}
        config = config_from_dict({"source": "demo_digits", "backbone": backbone})
        features(build_vit(config, COMPUTE), SAMPLES[:2])
        assert len(graphs) == 3 * wish
    build_vit(config, COMPUTE.for_requests())
    assert len(graphs) == 3
