"""A generator of vectors, conditioned on features: a residual MLP whose blocks are modulated by adaLN-zero.

Peebles & Xie 2023 (arXiv:2212.09748) sec. 3.2, with an MLP in place of attention: its vectors are whole
pictures (principal components). Knows nothing about pictures, prompts or noise schedules.

B batch, Z size of a vector, D width, E some multiple of it, F mlp hidden, N blocks, K features of a row, X features there are.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.ops.dot import project
from lmjax.ops.norm import rms_norm
from lmjax.parallel.sharding import constrain

_EPS = 1e-6
_SLOWEST = 1e3  # ratio of the fastest frequency of time to the slowest


class Diffusion(Config):
  """A denoiser: from a noisy vector, its time and its features to the vector without noise."""

  latent: int = leaf(384, 'Size Z of a vector.', low=2)
  width: int = leaf(512, 'Size D of the residual stream.', low=2)
  layers: int = leaf(5, 'Blocks N.', low=1)
  mlp: int = leaf(1024, 'Hidden size F of a block.', low=1)
  features: int = leaf(8192, 'Features X that there are.', low=2)
  times: int = leaf(64, 'Sines and cosines of the time, an even number.', low=2)
  dtype: Literal['float32', 'bfloat16'] = leaf(
    'float32', 'Compute dtype (f32 on CPUs without bf16); parameters and sums are f32.'
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.times % 2:
      raise UserError(f'times={self.times} is odd: pass {self.times + 1}')

  layout = 'scan'
  """Blocks are stacked, always: `train.job` asks."""

  @property
  def dimension_sizes(self) -> dict[str, tuple[int, str]]:
    """Setting -> (its value, the dimension name that a mesh may split)."""
    return {'width': (self.width, 'embed'), 'mlp': (self.mlp, 'mlp')}

  def check_stages(self, stages: int, rows: int) -> None:
    """UserError: its blocks are not split over `mesh.pipe`."""
    del stages, rows
    raise UserError('this model has no pipeline: pass --mesh.pipe=1')

  def _arrays(self) -> dict[str, Any]:
    """Name -> (shape, dimension names, standard deviation at the start)."""
    D, F, Z, N = self.width, self.mlp, self.latent, self.layers
    return {
      'enter_ZD': ((Z, D), ('latent', 'embed'), Z**-0.5),
      'time_TD': ((self.times, D), ('latent', 'embed'), self.times**-0.5),
      'feature_XD': ((self.features, D), ('vocab', 'embed'), 1.0),
      'condition_DF': ((D, F), ('embed', 'mlp'), D**-0.5),
      'condition_FD': ((F, D), ('mlp', 'embed'), F**-0.5),
      'last_DE': ((D, 2 * D), ('embed', 'mlp'), 0.0),
      'leave_DZ': ((D, Z), ('embed', 'latent'), 0.0),
      'layers': {
        'modulate_DE': ((N, D, 3 * D), ('layers', 'embed', 'mlp'), 0.0),
        'up_DF': ((N, D, F), ('layers', 'embed', 'mlp'), D**-0.5),
        'down_FD': ((N, F, D), ('layers', 'mlp', 'embed'), F**-0.5),
      },
    }

  def init(self, key: jax.Array) -> Params:
    """Fresh f32 parameters; every block begins as the identity and the output as zero."""
    arrays = self._arrays()
    flat, structure = jax.tree.flatten(arrays, is_leaf=_is_array)
    made = [
      std * jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32)
      for i, (shape, _, std) in enumerate(flat)
    ]
    return jax.tree.unflatten(structure, made)

  def dims(self) -> dict[str, Any]:
    """The dimension names of every parameter, a tree like `init`'s."""
    return jax.tree.map(lambda array: array[1], self._arrays(), is_leaf=_is_array)

  def shapes(self) -> Params:
    return jax.eval_shape(self.init, jax.random.key(0))

  def apply(
    self,
    params: Params,
    noisy_BZ: jax.Array,
    time_B: jax.Array,
    features_BK: jax.Array,
    weights_BK: jax.Array,
  ) -> jax.Array:
    """What `noisy_BZ` would be without noise, f32 [B, Z].

    Args:
      noisy_BZ: f32, at time 1 the vector itself, at 0 noise.
      time_B: f32 in [0, 1].
      features_BK: i32, below `features`.
      weights_BK: f32, how much each counts, attributes more than 1; a row of zeros is unconditioned.
    """
    dtype = self.dtype
    table_BKD = params['feature_XD'][features_BK]
    length_B = jnp.sqrt(jnp.maximum(jnp.sum(weights_BK**2, axis=1), 1.0))
    told_BD = jnp.einsum('BKD,BK->BD', table_BKD, weights_BK) / length_B[:, None]
    waves_BT = _waves(time_B, self.times)
    c_BD = told_BD + project('BT,TD->BD', waves_BT, params['time_TD'], dtype)
    c_BF = jax.nn.silu(project('BD,DF->BF', c_BD, params['condition_DF'], dtype))
    c_BD = jax.nn.silu(c_BD + project('BF,FD->BD', c_BF, params['condition_FD'], dtype))
    x_BD = project('BZ,ZD->BD', noisy_BZ, params['enter_ZD'], dtype)

    def block(x_BD: jax.Array, layer: Params) -> tuple[jax.Array, None]:
      said = project('BD,DE->BE', c_BD, layer['modulate_DE'], dtype)
      shift_BD, scale_BD, gate_BD = jnp.split(said, 3, axis=1)
      h_BD = _norm(x_BD) * (1.0 + scale_BD) + shift_BD
      h_BF = jax.nn.gelu(project('BD,DF->BF', h_BD, layer['up_DF'], dtype))
      return x_BD + gate_BD * project('BF,FD->BD', h_BF, layer['down_FD'], dtype), None

    x_BD, _ = jax.lax.scan(block, constrain(x_BD, 'batch', None), params['layers'])
    shift_BD, scale_BD = jnp.split(project('BD,DE->BE', c_BD, params['last_DE'], dtype), 2, axis=1)
    x_BD = _norm(x_BD) * (1.0 + scale_BD) + shift_BD
    return project('BD,DZ->BZ', x_BD, params['leave_DZ'], dtype)

  def flops_per_token(self, length: int) -> float:
    """Training FLOPs a row: 6 x the weights of its matrix products."""
    del length
    D, F = self.width, self.mlp
    block = D * (3 * D + 2 * F)
    return 6.0 * (self.layers * block + D * (2 * self.latent + self.times + 2 * F + 2 * D))


def attributes_of(weights_BK: jax.Array) -> jax.Array:
  """The weights of attributes alone: of features that count more than 1."""
  return jnp.where(weights_BK > 1.0, weights_BK, 0.0)


def _is_array(node: Any) -> bool:
  return isinstance(node, tuple)


def _norm(x_BD: jax.Array) -> jax.Array:
  return rms_norm(x_BD - jnp.mean(x_BD, axis=1, keepdims=True), None, eps=_EPS)


def _waves(time_B: jax.Array, count: int) -> jax.Array:
  """Sines and cosines of the time, f32 [B, count]."""
  frequencies = jnp.pi * _SLOWEST ** jnp.linspace(0.0, 1.0, count // 2)
  angles = time_B[:, None] * frequencies[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
