"""Drawing the next token from logits. B batch, V vocab."""

import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf


class Sampler(Config):
  """Which tokens may be drawn, and how sharply. Filters apply in the order of the fields."""

  temperature: float = leaf(0.8, 'Divides the logits; 0 takes the likeliest token.', low=0.0)
  top_k: int | None = leaf(None, 'Keep the k likeliest tokens.', low=1)
  top_p: float | None = leaf(
    None, 'Keep the likeliest tokens that together reach p.', above=0.0, high=1.0
  )
  min_p: float | None = leaf(
    None, 'Keep tokens at least this fraction as likely as the likeliest.', above=0.0, high=1.0
  )

  def __call__(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """One token id i32 [B], drawn with a key of its own for every row."""
    if self.temperature == 0.0:
      return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = self.filter(logits_BV.astype(jnp.float32) / self.temperature)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)

  def filter(self, logits_BV: jax.Array) -> jax.Array:
    """The logits with those of tokens that may not be drawn at -inf; the likeliest always may."""
    if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
      least_B1 = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
      logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if self.top_p is not None and self.top_p < 1.0:
      logits_BV = _nucleus(logits_BV, self.top_p)
    if self.min_p is not None:
      least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(self.min_p)
      logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV


def _nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
  """Nucleus sampling, Holtzman et al. 2020 (arXiv:1904.09751) section 3.1.

  Keeps the smallest set of likeliest tokens whose probability reaches top_p.
  """
  sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
  probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
  before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
  least_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def row_keys(seed: jax.Array, rows_B: jax.Array, positions_B: jax.Array) -> jax.Array:
  """A key for each row's draw at a position: the same whatever else is in the batch."""
  fold = jax.random.fold_in
  return jax.vmap(lambda row, position: fold(fold(seed, row), position))(rows_B, positions_B)
