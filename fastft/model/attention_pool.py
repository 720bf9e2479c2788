"""`model.pool=attention`: an attentive probe's pooling, where a trained query per head says how much each patch counts.

AIMv2 (2411.14402) and V-JEPA (2404.08471) read frozen towers with one cross-attention layer and a learned query. A single
query can absorb its key projection, so there is none here (as in 2506.10178): head h attends with softmax(x q_h). The values
are projected after pooling, which costs a hundredth of projecting every token.
"""

import torch
from torch import Tensor, nn

NAME = "attention_pool"  # the module's name in classifiers and checkpoints
QUERIES = f"{NAME}.queries"


class AttentionPool(nn.Module):
    """Pools patch tokens (B, N, D) to weighted means (B, D).

    Until it is trained it is the mean: all patches count the same, and the value projection is the identity. A linear probe
    is thus fitted as for `model.pool=patches`, and training starts from it.

    Attributes:
        queries: (H, D), initially 0.
        values: (D, D), initially the identity. Its rows h * D / H to (h + 1) * D / H belong to head h.

    Args:
        width: D, a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(heads, width))
        self.values = nn.Parameter(torch.eye(width))

    def weights(self, tokens_BND: Tensor) -> Tensor:
        """Return how much each patch counts in each head, (B, H, N), summing to 1."""
        return (self.queries @ tokens_BND.transpose(1, 2)).softmax(-1)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        means_BHD = self.weights(tokens_BND) @ tokens_BND
        heads, width = self.queries.shape
        values_HCD = self.values.view(heads, width // heads, width)
        return (values_HCD @ means_BHD.unsqueeze(-1)).flatten(1)
