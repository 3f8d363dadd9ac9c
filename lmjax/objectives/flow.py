"""Rectified flow: a model learns which vector lies behind a mixture of it and noise.

B batch, Z size of a vector, K features of a row.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Mean, Params
from lmjax.models.diffusion import Diffusion, attributes_of


@flax.struct.dataclass
class Vectors:
  """Rows to learn from.

  Attributes:
    latents_BZ: f32.
    features_BK: i32, what each is of.
    weights_BK: f32, how much each feature counts, attributes more than 1; 0 where there is none.
  """

  latents_BZ: jax.Array
  features_BK: jax.Array
  weights_BK: jax.Array


class Flow(Config):
  """Rectified flow (Liu et al. 2022, arXiv:2209.03003) on straight lines, with the data as its target.

    z = t x + (1 - t) noise,   loss = mean over Z of (model(z, t, features) - x)^2

  The velocity x - noise of eq. 1 is (x - z) / (1 - t): a target that differs by a weight alone. Times are
  sigmoid(mean + std * normal) (Esser et al. 2024, arXiv:2403.03206 sec. 3.1). Some rows lose their features,
  so that one model also learns to go without (Ho & Salimans 2022, arXiv:2207.12598), and some all but
  attributes, so that it learns what these do whatever is shown: a sampler composes both.
  """

  mean: float = leaf(-0.5, 'Of the logit of times; lower: noisier.')
  std: float = leaf(1.2, 'Standard deviation of the logit of times.', above=0.0)
  drop: float = leaf(0.1, 'Share of rows that lose their features.', low=0.0, high=1.0)
  narrow: float = leaf(
    0.1,
    'Share of rows that lose all but attributes, features that count more than 1.',
    low=0.0,
    high=1.0,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.drop + self.narrow > 1.0:
      raise UserError(
        f'drop={self.drop} and narrow={self.narrow} are more than all rows: pass shares of 1 together at most'
      )

  def __call__(
    self, model: Diffusion, params: Params, batch: Any, rng: jax.Array
  ) -> tuple[Mean, dict[str, Mean]]:
    """`batch` is a `Vectors`."""
    x_BZ = batch.latents_BZ
    B = x_BZ.shape[0]
    noise_BZ = jax.random.normal(jax.random.fold_in(rng, 0), x_BZ.shape)
    logit_B = self.mean + self.std * jax.random.normal(jax.random.fold_in(rng, 1), (B,))
    time_B = jax.nn.sigmoid(logit_B)
    draw_B = jax.random.uniform(jax.random.fold_in(rng, 2), (B,))
    mixed_BZ = time_B[:, None] * x_BZ + (1.0 - time_B[:, None]) * noise_BZ
    weights_BK = jnp.where(draw_B[:, None] >= self.drop, batch.weights_BK, 0.0)
    narrow_B = draw_B < self.drop + self.narrow
    weights_BK = jnp.where(narrow_B[:, None], attributes_of(weights_BK), weights_BK)
    found_BZ = model.apply(params, mixed_BZ, time_B, batch.features_BK, weights_BK)
    loss_B = jnp.mean(jnp.square(found_BZ - x_BZ), axis=1)
    loss = Mean(jnp.sum(loss_B), jnp.asarray(B, jnp.float32))
    return loss, {'loss': loss}
