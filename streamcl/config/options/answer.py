"""Options of what is stated about predictions, beside class and confidence."""

from __future__ import annotations

from pydantic import Field

from streamcl.config.options.base import Options


class AnswerOptions(Options):
    """Further statements about predictions, beside class and confidence; of ridge and ridge_lora."""

    unknown: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="`predict` names no class, but says unknown, where an image is further from what was "
        "learned, for its best score, than this share of the held-out images; null: it always names one.",
    )
    log: bool = Field(
        False,
        description="predictions.jsonl gives the stability and the novelty of each prediction before "
        "learning, and report and live page show them; a solve takes twice as long.",
    )
    live_work: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Predictions of a live run that nothing is learned from at that moment, at arrival "
        "(`batch.predict_at`) and in an overload, use at most this share of the work of all blocks; what is "
        "learned is always read in full. null: all of it.",
    )
    stability: bool = Field(
        False,
        description="Receipts also say for how many held-out samples another class was to be expected after "
        "an erasure of that size; a request takes longer by twice the time of a solve.",
    )
