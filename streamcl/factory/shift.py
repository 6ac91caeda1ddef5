"""Makes the detector of shifts."""

from __future__ import annotations

from streamcl.config.options.run import RunConfig
from streamcl.config.options.variants import ClassOptions, PluginOptions
from streamcl.protocols import ShiftDetector
from streamcl.registry import import_callable
from streamcl.shift.detector import build_detector


def build_shift(config: RunConfig) -> ShiftDetector:
    """The shift detector that the configuration names."""
    options = config.shift
    if isinstance(options, ClassOptions):
        try:
            made: ShiftDetector = import_callable(options.class_)(**options.args)
        except TypeError as error:
            raise config.refuse("shift.args", str(error)) from error
        return made
    if isinstance(options, PluginOptions):
        return build_detector(options.plugin, **options.args)
    arguments = options.model_dump(exclude={"name", "min_samples"})
    if options.name == "river":
        return build_detector("river", name=arguments["detector"], args=arguments["args"])
    return build_detector(options.name, **arguments)
