"""What samples of both kinds of privacy add to the sums of a mixed learner, to be taken out again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from streamcl.heads.statistics import Statistics


@dataclass(frozen=True, slots=True, eq=False)
class MixedStatistics:
    """What samples add to the core's branches, to the core's sums, and to users' by cohort ("": none)."""

    branches: Any
    core: Statistics | None
    users: Mapping[str, Statistics]

    @property
    def of_users(self) -> Statistics | None:
        """What all cohorts together add; None where no user is among the samples."""
        return reduce(operator.add, self.users.values()) if self.users else None

    def joined(self, other: MixedStatistics, branches: Callable[[Any, Any], Any]) -> MixedStatistics:
        """Both as one; `branches` joins what the core's branches are given."""
        names = {**self.users, **other.users}
        return MixedStatistics(
            _either(self.branches, other.branches, branches),
            _either(self.core, other.core, operator.add),
            {name: _either(self.users.get(name), other.users.get(name), operator.add) for name in names},
        )


def _either(one: Any, other: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Both joined, or the one that there is."""
    if one is None or other is None:
        return other if one is None else one
    return join(one, other)
