"""A decoder of Llama's shape in torch, as good as torch has it: what lmjax's models are timed beside."""

import torch
import torch.nn.functional as F
from torch import nn


def rotate(x, cos, sin):
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
  def __init__(self, width, heads, mlp):
    super().__init__()
    self.heads = heads
    self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-6) for _ in range(2)])
    self.qkv, self.out = (
      nn.Linear(width, 3 * width, bias=False),
      nn.Linear(width, width, bias=False),
    )
    self.gate_up, self.down = (
      nn.Linear(width, 2 * mlp, bias=False),
      nn.Linear(mlp, width, bias=False),
    )

  def forward(self, x, cos, sin):
    split = lambda y: y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)
    q, k, v = map(split, self.qkv(self.norms[0](x)).chunk(3, dim=-1))
    q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.out(y.transpose(1, 2).reshape(x.shape))
    gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)
    return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
  """Token ids [B, L] and targets [B, L] (-100: none) to the mean cross-entropy in nats."""

  def __init__(self, *, width, layers, heads, mlp, vocab, length):
    super().__init__()
    self.table, self.norm = nn.Embedding(vocab, width), nn.RMSNorm(width, eps=1e-6)
    self.blocks = nn.ModuleList([Block(width, heads, mlp) for _ in range(layers)])
    for name, weight in self.named_parameters():
      if weight.ndim == 2:
        last = name.endswith(('out.weight', 'down.weight'))
        nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)
    half = width // heads // 2
    turns = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(half) / half)
    self.register_buffer('cos', turns.cos())
    self.register_buffer('sin', turns.sin())

  def forward(self, tokens, targets, reduction='mean'):
    x, length = self.table(tokens), tokens.shape[1]
    for block in self.blocks:
      x = block(x, self.cos[:length], self.sin[:length])
    logits = F.linear(self.norm(x), self.table.weight).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
