"""AttentiveHead: a learned query attends to the tokens of a frozen or finetuned backbone.

The structure is that of V-JEPA (Bardes et al. 2024) with one block, and of V-JEPA 2 (Assran et al.
2025) with four. Both papers call it an attentive probe.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_INIT_STD = 0.02


class AttentiveHead(nn.Module):
    """Classify tokens (B, N, D) by a learned query: tokens -> logits (B, K).

    Self-attention blocks transform the tokens, if there is more than one block. The last block is
    cross-attention: the query attends to the tokens. A linear layer maps the result to logits.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        blocks: int = 1,
        heads: int = 1,
        mlp_ratio: float = 4.0,
        stage: str = "",
    ) -> None:
        """Build a head with fresh weights.

        Args:
            dim: channels D of the tokens.
            classes: number of logits K.
            blocks: 1: cross-attention alone, as in V-JEPA; 4: three self-attention blocks before
                it, as in V-JEPA 2.
            heads: attention heads, a divisor of `dim`.
            mlp_ratio: width of the hidden layer of each MLP, relative to `dim`.
            stage: name of the backbone's stage whose tokens it takes; "": the last one.
        """
        super().__init__()
        self.stage = stage
        hidden = int(dim * mlp_ratio)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(SelfBlock(dim, heads, hidden) for _ in range(blocks - 1))
        self.cross = CrossBlock(dim, heads, hidden)
        self._initialise()
        self.linear = nn.Linear(dim, classes)

    @property
    def out_features(self) -> int:
        """Number of logits."""
        return self.linear.out_features

    def _initialise(self) -> None:
        """Initialise as V-JEPA 2's code does: truncated normal, residual branches scaled down."""
        nn.init.trunc_normal_(self.query, std=_INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, 1):
                assert isinstance(block, SelfBlock)
                block.out.weight.div_(math.sqrt(2 * number))
                block.mlp.shrink.weight.div_(math.sqrt(2 * number))
            # the released code counts the last self-attention block and this one as the same layer
            self.cross.mlp.shrink.weight.div_(math.sqrt(2 * max(1, len(self.blocks))))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K) of tokens (B, N, D)."""
        for block in self.blocks:
            tokens = block(tokens)
        query = self.query.expand(len(tokens), -1, -1)
        return self.linear(self.cross(query, tokens)[:, 0])


class MLP(nn.Module):
    """Two linear layers with GELU between them: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Linear(dim, hidden)
        self.shrink = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        return self.shrink(F.gelu(self.widen(x)))


class SelfBlock(nn.Module):
    """Transformer block with norms before attention and MLP: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(_attention(q, k, v, self.heads))
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Let a query attend to tokens: query (B, 1, D), tokens (B, N, D) -> (B, 1, D).

    The values are added to the query without an output projection, and the query is not normalised,
    as in the released code.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Return the query after attention and MLP."""
        k, v = self.kv(self.norm1(tokens)).chunk(2, -1)
        query = query + _attention(self.q(query), k, v, self.heads)
        return query + self.mlp(self.norm2(query))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v per head, (B, M, D) for queries (B, M, D)."""
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
