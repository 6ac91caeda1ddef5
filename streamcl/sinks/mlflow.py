"""Copies figures and events to an MLflow server; needs the extra `mlflow`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl.errors import MissingExtra
from streamcl.protocols import State
from streamcl.sinks.figures import figures, message

FORBIDDEN_CHARACTERS = re.compile(r"[^\w\-. /]", re.ASCII)
"""Characters that MLflow refuses in the name of a metric."""


def mlflow_sink(folder: Path, uri: str | None = None, experiment: str = "streamcl") -> MLflowSink:
    """Return the sink of a run; on the server the run is named after its directory."""
    return MLflowSink(tracking_uri=uri, experiment=experiment, run_name=folder.name)


class MLflowSink:
    """Sends metrics named kind/figure over the step, and events as tags; never images or predictions.

    The run on the server is made with the first record: there the failure of a server that is down can be
    survived. tracking_uri: None takes MLFLOW_TRACKING_URI, as MLflow does.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment: str = "streamcl",
        run_name: str | None = None,
        client: Any = None,
    ) -> None:
        self._client = client if client is not None else _client(tracking_uri)
        self._experiment, self._run_name = experiment, run_name
        self._run: str | None = None

    def write(self, topic: str, record: Mapping[str, Any]) -> None:
        """Send the finite figures of a metrics record, or an event's reason; anything else is left out."""
        step = int(record.get("step", 0))
        if topic == "metrics":
            for name, value in figures(record).items():
                self._client.log_metric(self._run_id(), FORBIDDEN_CHARACTERS.sub("_", name), value, step=step)
        elif topic == "events":
            self._client.set_tag(self._run_id(), f"event.{step:08d}.{record.get('kind')}", message(record))

    def flush(self) -> None:
        """Every record was sent when it was written."""

    def close(self) -> None:
        """Mark the run on the server as finished."""
        if self._run is not None:
            self._client.set_terminated(self._run)

    def state_dict(self) -> State:
        """Return the id of the run on the server."""
        return {"run": self._run}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the same run on the server; a figure sent twice for a step is stored once."""
        self._run = state.get("run")

    def _run_id(self) -> str:
        if self._run is None:
            found = self._client.get_experiment_by_name(self._experiment)
            number = found.experiment_id if found else self._client.create_experiment(self._experiment)
            self._run = str(self._client.create_run(number, run_name=self._run_name).info.run_id)
        return self._run


def _client(tracking_uri: str | None) -> Any:
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise MissingExtra(
            "the sink mlflow needs the package mlflow", hint='pip install "streamcl[mlflow]"'
        ) from error
    return MlflowClient(tracking_uri=tracking_uri)
