"""A branch whose adapters are trained from stored latents alone, and again where one of these is removed.

Adapters and head are a function of the seed, the store and the position in the stream. So where a sample is
removed from the store, training again gives, to the last bit, what would be there had it never been stored.
The store is that of latent replay (arXiv 1912.01100), with places in it that depend on nobody else.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from streamcl.learners.blending import BlendedBranch
from streamcl.learners.class_index import ClassIndex
from streamcl.protocols import Rollback, State, savepoint_of

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.ridge import RidgeHead
    from streamcl.learners.latent_training import LatentTraining
    from streamcl.memory.latent_store import LatentGroup, LatentSchedule, LatentStore
    from streamcl.nn.adapted_blocks import Adapters

FILLING_ROWS = 64
"""Stored samples that are added to the head at once, where they did not come in one batch."""
UNSTORED_WEIGHT = 0.5
"""Of a view that is predicted from but not stored, beside one that is, as the head has not learned it."""
END_GROWTH = 1.25
"""How much longer than at its last training a stream must be for another one at its end."""
Outdated: TypeAlias = Literal["nothing", "head", "adapters"]


class RetrainedBranch(BlendedBranch):
    """LoRA on the later blocks, a ridge head on what those blocks give, and the store that both come from.

    At each position of the schedule the store is thinned, fresh adapters are trained on it, and the head is
    filled anew from it. Later samples are added to the head as they enter the store. This is done when the
    branch is next used, so that a step of the stream is done or not done.

    Args:
        training: how adapters are trained.
        new_head: returns a head that knows nothing.
        store: of the samples' tokens, empty.
        schedule: of training and of shares.
        predicted_views: views of an image that predictions are of; the first `training.views` are stored.
        share: largest weight of this branch's score of a class in the blend.
        blocks: whose outputs are the head's features; those before the first adapted one are left out.
        seed: of adapters.
    """

    def __init__(
        self,
        training: LatentTraining,
        new_head: Callable[[], RidgeHead],
        store: LatentStore,
        schedule: LatentSchedule,
        *,
        blocks: Sequence[int],
        predicted_views: int = 1,
        share: float = 1 / 3,
        seed: int = 0,
    ) -> None:
        self.predicted_views, self._share = predicted_views, share
        self.training, self.store, self.schedule = training, store, schedule
        self.blocks = tuple(block for block in sorted(blocks) if block >= training.first_block)
        self._new_head, self._seed = new_head, seed
        self._head, self._adapters = new_head(), training.untrained(seed)
        self._index = ClassIndex()
        self._trainings = 0  # that the stream has had, repeated ones not counted
        self._due = 0  # the number of the next position of the schedule
        self._trained_at = self._version = 0
        self._outdated: Outdated = "nothing"

    @property
    def trained(self) -> bool:
        """Whether adapters have been trained, so that the branch has a say."""
        self.update()
        return self._trainings > 0

    @property
    def version(self) -> int:
        """Changes whenever features do."""
        self.update()
        return self._version

    @property
    def head(self) -> RidgeHead:
        """The head on the adapted features, of what is stored."""
        self.update()
        return self._head

    @property
    def adapters(self) -> Adapters:
        """The adapted blocks."""
        self.update()
        return self._adapters

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head learns and what it predicts from, [B, F] each, of tokens [B, P N, d]."""
        self.update()
        stored = torch.from_numpy(self.store.round_trip(tokens.float().cpu().numpy())).to(tokens.device)
        of_views, views = self._features(stored, self.predicted_views), self.training.views
        weights = of_views.new_tensor([1.0] * views + [UNSTORED_WEIGHT] * (self.predicted_views - views))
        return of_views[:, :views].mean(1), torch.einsum("bvf,v->bf", of_views, weights / weights.sum())

    @property
    def shares(self) -> Tensor:
        """The branch's weight on each class of the head, float64 [C].

        It is `share` for a class if all of its samples are stored, else less by the root of the part that is,
        as the error of what is learned of them grows.
        """
        stored = Counter[str]()
        for group in self.store.groups:
            stored.update(group.labels)
        counts = self._head.statistics.counts
        rows = counts.new_tensor([stored[name] for name in self._index.names])
        return self._share * (rows.double() / counts.clamp(min=1)).sqrt()

    def chosen(self, names: Sequence[str]) -> list[int]:
        """Return the positions, among the ids of samples, of those that are to be stored now."""
        limit = 1 / self.schedule.weight(self._due)
        return [row for row, name in enumerate(names) if self.store.place(name) < limit]

    def add(
        self,
        tokens: Tensor,
        features: Tensor | None,
        labels: Sequence[str],
        offsets: Sequence[int],
        names: Sequence[str],
    ) -> None:
        """Store samples that were chosen, and add them to the head once adapters have been trained.

        Args:
            tokens: [n, P N, d].
            features: what `features` gives for them to learn, [n, F]; None before any training.
            labels: n class names, all of them classes of the index.
            offsets: n places in the stream.
            names: n ids.
        """
        if not labels:
            return
        group = self.store.add(
            tokens[:, : tokens.shape[1] // self.predicted_views * self.training.views].float().cpu().numpy(),
            labels,
            offsets,
            [self.store.place(name) for name in names],
            trainings=self._trainings,
            weight=self.schedule.weight(self._due),
        )
        if features is not None:
            self._add_to_head(group, features)

    def grow(self, index: ClassIndex) -> None:
        """Have the columns of an index, which includes all classes known."""
        self._index = index
        self._head.grow(len(index))

    def advance(self, offset: int) -> None:
        """Have what is stored train adapters at each position of the schedule up to an offset.

        It is called before samples of a batch at that offset are stored. So who is in a training depends on
        where they came, and not on who came with them.
        """
        while offset >= self.schedule.position(self._due):
            if self.schedule.trains(self._due):
                self._thin(self.schedule.position(self._due))
            self._due += 1

    def remove(self, offsets: Collection[int]) -> int:
        """Remove stored samples by their offsets; adapters and head become those of a store without them.

        Return how many there were. Training is done when the branch is next used.
        """
        entered = self.store.remove(offsets)
        if entered and self._trainings:
            trained = min(entered) < self._trainings
            self._outdated = "adapters" if trained or self._outdated == "adapters" else "head"
        return len(entered)

    def drop_class(self, column: int) -> None:
        """Lose a class column of which no sample is stored any more."""
        if self._outdated == "nothing":
            self._head.drop_class(column)
        self._index = self._index.without(self._index.names[column])

    def seconds(self, offsets: Collection[int]) -> float:
        """Return how long it would take to become the branch without stored samples at these offsets."""
        self.update()
        touched = [group for group in self.store.groups if set(group.offsets.tolist()) & set(offsets)]
        if not touched or not self._trainings:
            return 0.0
        some, began = next(touched[0].chunks(FILLING_ROWS)), time.perf_counter()
        self._features(self._restored(some), self.training.views)
        filling = (time.perf_counter() - began) * len(self.store) / len(some)
        trained = any(group.trainings < self._trainings for group in touched)
        return filling + (self.training.seconds(self._trained_on) if trained else 0.0)

    def update(self) -> None:
        """Do what is due: train where the schedule asks for it, and again after a removal."""
        if self._outdated == "adapters":
            self._adapters = self.training.train(self._trained_on, self._seed + self._trainings)
            self._version, self._outdated = self._version + 1, "head"
        if self._outdated == "head":
            self._fill_head()
            self._outdated = "nothing"

    def end_stream(self, offset: int) -> Mapping[str, Any]:
        """Train once more, where the stream has grown by a quarter since the last time; return figures.

        A stream that goes on afterwards keeps to the schedule.
        """
        if offset < max(END_GROWTH * self._trained_at, 1):
            return {}
        self.advance(offset)
        if self._trained_at < offset:
            self._note_training(offset)
        self.update()
        return {"samples": len(self.store), "trainings": self._trainings}

    def savepoint(self) -> Rollback:
        """Return a callable that restores the state before one `grow`, `advance` and `add`."""
        self.update()
        store = savepoint_of(self.store, "groups")
        names = ("_index", "_head", "_adapters", "_trainings", "_due", "_trained_at", "_outdated", "_version")
        return savepoint_of(self, *names, parts=(self._head.savepoint(), store))

    def state_dict(self) -> State:
        """Return store, adapters and head, as they are once what is due is done."""
        self.update()
        return {
            "store": self.store.state_dict(),
            "adapters": self._adapters.export_state(),
            "head": self._head.state_dict(),
            "classes": list(self._index.names),
            "trainings": self._trainings,
            "trained_at": self._trained_at,
            "due": self._due,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the branch that returned `state`."""
        self.store.load_state_dict(state["store"])
        self._index = ClassIndex(state["classes"])
        self._trainings, self._trained_at = int(state["trainings"]), int(state["trained_at"])
        self._due = int(state["due"])
        self._head = self._new_head()
        self._head.load_state_dict(state["head"])
        self._adapters = self.training.untrained(self._seed)
        self._adapters.import_state(state["adapters"])
        if self._trainings:
            self._adapters.bypass_lora()
        self._version += 1
        self._outdated = "nothing"

    def _thin(self, position: int) -> None:
        """Have all that is stored train adapters at a position, as far as its place allows."""
        weight = self.schedule.weight(self._due)
        self.store.thin(1 / weight, trainings=self._trainings, weight=weight)
        self._note_training(position)

    def _note_training(self, position: int) -> None:
        """Have all that is stored train adapters at a position, when the branch is next used."""
        self._trainings += 1
        self._trained_at, self._outdated = position, "adapters"

    @property
    def _trained_on(self) -> LatentGroup | None:
        return self.store.entered_before(self._trainings)

    def _fill_head(self) -> None:
        self._head = self._new_head()
        self._head.grow(len(self._index))
        for group in self.store.groups:
            is_old = group.trainings < self._trainings
            for part in group.chunks(FILLING_ROWS) if is_old else [group]:
                features = self._features(self._restored(part), self.training.views)
                self._add_to_head(part, features.mean(1))
        if any(self._head.counts):
            self._head.exact_weights()

    def _restored(self, group: LatentGroup) -> Tensor:
        """Return the tokens of a group, float32 [n, V N, d]."""
        return torch.from_numpy(group.tokens.restored()).to(self.training.backbone.device)

    def _add_to_head(self, group: LatentGroup, features: Tensor) -> None:
        targets = self._index.columns(group.labels, features.device)
        self._head.update(features, targets, group.weight)

    def _features(self, tokens: Tensor, views: int) -> Tensor:
        """Return float32 [B, V, F] of tokens [B, V N, d]; each view by itself, so in one shape always."""
        read = functools.partial(self.training.read, self._adapters, self.blocks)
        return torch.stack([read(view) for view in tokens.chunk(views, dim=1)], dim=1)
