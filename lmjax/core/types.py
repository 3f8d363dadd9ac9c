"""The types that every floor shares: a batch of tokens, an exact mean, and what a model returns.

Dimensions: B batch, L length, D width.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Params = dict[str, Any]
"""A nested dict of f32 arrays: the one form of a model's parameters above floor 2."""


@flax.struct.dataclass
class Batch:
  """Rows of packed posts. Position l of a row predicts `targets_BL[:, l]` from tokens 0..l.

  Attributes:
    tokens_BL: i32 token ids; what stands in padding does not matter.
    targets_BL: i32 the next token of the same post.
    weights_BL: f32 weight of each target in the loss, 0 = no loss.
    segments_BL: i32 which post of the row a token is of, from 1; 0 = padding.
    positions_BL: i32 place within the post, from 0.
  """

  tokens_BL: jax.Array
  targets_BL: jax.Array
  weights_BL: jax.Array
  segments_BL: jax.Array
  positions_BL: jax.Array


@flax.struct.dataclass
class Mean:
  """A weighted mean kept as its two sums, so that means of parts add to the mean of the whole.

  Attributes:
    total: f32[] sum of weight x value.
    weight: f32[] sum of the weights.
  """

  total: jax.Array
  weight: jax.Array

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.weight + other.weight)

  @property
  def value(self) -> jax.Array:
    """total / weight, 0 where nothing was weighed. For logging only."""
    return self.total / jnp.maximum(self.weight, 1e-30)


@flax.struct.dataclass
class Output:
  """What a decoder returns; the head turns `hidden` into logits, so that the loss can chunk them.

  Attributes:
    hidden_BLD: f32 or bf16 final hidden states, after the last norm.
    cache: keys and values for decoding, or None.
    aux: auxiliary losses and counts by name, each a `Mean`.
  """

  hidden_BLD: jax.Array
  cache: Any
  aux: dict[str, Mean]
