"""The joint trunk: layers behind the towers that all modalities share.

Song and Tan, "Sequential Learning for Cross-modal Retrieval", ICCV workshops 2019, have one unified model for all modalities; how theirs
is built was not found, and this is ours: a stem for each kind of input (the towers), and behind them the same layers for all.
H width of the stems, D embedding.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["JointOptions", "JointTrunk", "SharedProjection"]


class JointOptions(BaseModel):
    """What a joint trunk looks like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(default=256, ge=1, description="H, of what the towers give and of the layer that is shared")

    @staticmethod
    def stem_dim(joint: "JointOptions | None", embedding_dim: int) -> int:
        """What the towers give: H, or D where nothing comes behind them."""
        return embedding_dim if joint is None else joint.hidden


class JointTrunk(nn.Module):
    """z = W_2 relu(W_1 norm(f) + b_1) + b_2, norm without parameters: stems of all modalities speak at one loudness.

    Args:
        hidden: H.
        embedding_dim: D.
    """

    def __init__(self, hidden: int, embedding_dim: int) -> None:
        super().__init__()
        self.shared = nn.Linear(hidden, hidden)
        self.projection = nn.Linear(hidden, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, H) what a tower gave -> (B, D) float32 before normalisation, also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            features = functional.layer_norm(features.float(), features.shape[1:])
            return self.projection(functional.relu(self.shared(features)))


class SharedProjection(nn.Linear):
    """z = W f + b: the last layer alone is shared.

    Args:
        embedding_dim: D, also of what the towers give.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__(embedding_dim, embedding_dim)

    def forward(self, input: Tensor) -> Tensor:
        """(B, D) what a tower gave -> (B, D) float32 before normalisation, also under autocast."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())
