"""How long a training lasts, and by which arithmetic."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Plateau", "TrainingSettings"]


class Plateau(BaseModel):
    """Multiply every learning rate by `factor` after `patience` validations without a better score."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    factor: float = Field(0.5, gt=0, lt=1)
    patience: int = Field(30, ge=0)


class TrainingSettings(BaseModel):
    """How long and by which arithmetic; what is learnt stands in the method.

    Attributes:
        epochs: passes over the training cases.
        precision: "auto" is bf16-mixed where the hardware multiplies bf16 (GPU, AVX512-BF16 or AMX), else 32.
        clip_norm: bound on the gradient norm of a player; None leaves gradients alone.
        compile: `torch.compile` the blocks of the networks. Off: it has not been measured to pay yet.
        deterministic: ask PyTorch for deterministic kernels on GPUs as well (on CPUs results are bit-equal without).
        validate_every: epochs between validations.
        checkpoint_minutes: at most so much work is lost by a power cut (0: a checkpoint after every step).
        plateau: learning-rate schedule on the validation score; None keeps the rates.
        seed: of initial weights, order of cases, augmentation and dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int = Field(400, ge=1)
    precision: Literal["auto", "32", "bf16-mixed"] = "auto"
    clip_norm: float | None = Field(None, gt=0)
    compile: bool = False
    deterministic: bool = False
    validate_every: int = Field(1, ge=1)
    checkpoint_minutes: float = Field(10.0, ge=0)
    plateau: Plateau | None = None
    seed: int = Field(0, ge=0)
