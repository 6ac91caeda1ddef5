"""Makes the learner of a run."""

from __future__ import annotations

from streamcl.config.options.learner import learner_factory, learner_name
from streamcl.config.options.run import RunConfig
from streamcl.config.options.variants import ClassOptions, PluginOptions
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.errors import ConfigError
from streamcl.learners.factory import LearnerContext
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streamcl.protocols import Learner
from streamcl.registry import call_with


def build_learner(
    config: RunConfig, backbone: Backbone, compute: Compute, group: ProcessGroup = SINGLE_PROCESS
) -> Learner:
    """Return the learner that the configuration names, knowing nothing yet.

    Args:
        group: the processes that learn each batch together.

    Raises:
        ConfigError: the options do not fit the backbone or the learner.
    """
    options, factory = config.learner, learner_factory(config.learner)
    context = LearnerContext(backbone, compute, config.seed, group, config.refuse)
    if not isinstance(options, ClassOptions | PluginOptions):
        built_in: Learner = factory.build(options, context)
        return built_in
    try:
        own: Learner = call_with(factory, f"learner {learner_name(options)!r}", options.args, context)
    except ConfigError as error:
        raise config.refuse("learner.args", str(error)) from error
    return own
