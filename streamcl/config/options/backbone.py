"""Options of the frozen backbone."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from streamcl.config.options.base import Args, Options, Safe

_WEIGHTS = (
    r"^(pretrained|none|file:.+|local-dir:.+|hf-hub:[^/]+/.+|fetch:[\w.-]+|[^:]+\.(safetensors|pth|pt|onnx))$"
)


class BackboneOptions(Options):
    """The frozen vision transformer and where its weights come from."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    name: str = Field(
        "vit_small_patch14_dinov2", pattern=r"^[\w.:/-]+$", max_length=200, description="A timm model."
    )
    weights: str = Field(
        "pretrained",
        pattern=_WEIGHTS,
        examples=[
            "pretrained",
            "none",
            "file:PATH",
            "local-dir:PATH",
            "hf-hub:owner/name",
            "fetch:vit-s-focus",
        ],
        description="pretrained: timm's own; none: random, for tests; file:PATH (or a path that ends in "
        ".safetensors, .pth or .onnx), local-dir:PATH, hf-hub:owner/name, or fetch:NAME.",
    )
    image_size: int | None = Field(None, ge=8, le=4096, description="Side in pixels; null: the model's own.")
    depth: int | None = Field(None, ge=1, le=512, description="Keep the first blocks only; null: all.")
    compile: bool = Field(
        False, description="Compile the frozen blocks (torch.compile); on a CPU it needs a C++ compiler."
    )
    cuda_graphs: Safe[bool] = Field(
        False, description="Replay the frozen blocks as CUDA graphs; on a GPU only, and not yet seen on one."
    )
    int8: bool | None = Field(
        None,
        description="Multiply in int8 in the frozen blocks, for features without gradients: faster on a CPU "
        "without bf16, for features that are a little less exact.",
    )
    args: Args = Field({}, description="Further keyword arguments for timm.create_model.")
