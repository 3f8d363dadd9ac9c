"""What every model is made of: named weights, the norm and the dense feed-forward.

D width, F mlp hidden, H query heads, G key/value heads, K head dim.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.ops.adapted import Adapted
from lmjax.ops.dot import project
from lmjax.ops.norm import layer_norm, rms_norm
from lmjax.ops.packed import Packed
from lmjax.parallel.sharding import constrain

# Dimensions that a matrix sums over when it stands first, and never its batch.
_BATCH_DIMS = ('expert', 'layers')

_ACTIVATIONS = {
  'swiglu': lambda gate, up: jax.nn.silu(gate) * up,
  'geglu': lambda gate, up: jax.nn.gelu(gate, approximate=True) * up,
  'relu2': lambda gate, up: jnp.square(jax.nn.relu(up)),
  'gelu': lambda gate, up: jax.nn.gelu(up, approximate=True),
  'gelu_exact': lambda gate, up: jax.nn.gelu(up, approximate=False),
}
ungated = ('relu2', 'gelu', 'gelu_exact')


def activation(name: str, dtype: str) -> Callable[[jax.Array | None, jax.Array], jax.Array]:
  """The non-linearity `name`: (gate or None, up), both rounded to `dtype`, to the hidden of that dtype.

  Gradients need those two alone. Else what f32 arithmetic makes on the way is kept as well: of swiglu in
  bf16 five times the memory.
  """
  wide = lambda x: None if x is None else x.astype(jnp.float32)
  low = lambda x: None if x is None else x.astype(dtype)
  run = jax.checkpoint(lambda gate, up: low(_ACTIVATIONS[name](wide(gate), wide(up))))
  return lambda gate, up: run(low(gate), low(up))


class Norm(Config):
  """Normalisation of vectors."""

  kind: Literal['rms', 'layer'] = leaf(
    'rms', 'rms: by the root mean square; layer: less the mean too, and plus a learnt bias.'
  )
  eps: float = leaf(1e-6, 'Added to the mean square.', above=0.0)
  scale: Literal['one', 'offset', 'none'] = leaf(
    'one', 'Learnt factors: one: start at 1; offset: 1 + w (Gemma); none: no factors.'
  )


class NormLayer(nn.Module):
  """`Norm` over the last dimension, of size `size`."""

  config: Norm
  size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    scale_D = self._scale()
    if c.kind == 'rms':
      return rms_norm(x, scale_D, eps=c.eps)
    return layer_norm(x, scale_D, bias(self, 'bias', (self.size,), ('norm',)), eps=c.eps)

  def _scale(self) -> jax.Array | None:
    if self.config.scale == 'none':
      return None
    one = self.config.scale == 'one'
    start = nn.initializers.ones_init() if one else nn.initializers.zeros_init()
    scale_D = declare(self, 'scale', start, (self.size,), ('norm',))
    return scale_D if one else 1.0 + scale_D


def declare(
  module: nn.Module,
  name: str,
  start: nn.initializers.Initializer,
  shape: tuple[int, ...],
  dims: tuple[str | None, ...],
) -> jax.Array:
  """Declares an f32 parameter with its dimension names; one that is packed or adapted stays so."""
  if module.has_variable('params', name):
    given: Any = module.get_variable('params', name)
    if isinstance(given, Packed | Adapted):
      return given  # type: ignore[return-value]
  value: Any = module.param(name, nn.with_partitioning(start, dims), shape, jnp.float32)
  return value


def weight(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  dims: tuple[str | None, ...],
  *,
  inputs: int = 1,
  output: bool = False,
) -> jax.Array:
  """Declares an f32 matrix in einsum's shape.

  Args:
    dims: its dimension names, leading 'expert' first if it has one.
    inputs: how many dimensions (after 'expert') it sums over.
    output: writes to the residual stream, and so starts at zero (Zhang et al. 2019,
      arXiv:1901.09321, Fixup): every block begins as the identity.
  """
  first = sum(dim in _BATCH_DIMS for dim in dims[:1])
  fan_in = math.prod(shape[first : first + inputs])
  start = nn.initializers.normal(fan_in**-0.5)
  if output:
    start = nn.initializers.zeros_init()
  return declare(module, name, start, shape, dims)


def bias(module: nn.Module, name: str, shape: tuple[int, ...], dims: tuple[str, ...]) -> jax.Array:
  """Declares an f32 bias that starts at zero."""
  return declare(module, name, nn.initializers.zeros_init(), shape, dims)


class Mlp(nn.Module):
  """Dense feed-forward: down(activation(gate x, up x)), f32 [B, L, D]."""

  width: int
  mlp: int
  activation: str
  biased: bool
  dtype: str
  product_dtype: str

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    D, F = self.width, self.mlp
    gate_BLF = None
    if self.activation not in ungated:
      gate_DF = weight(self, 'gate', (D, F), ('embed', 'mlp'))
      gate_BLF = project('BLD,DF->BLF', x_BLD, gate_DF, self.product_dtype)
      if self.biased:
        gate_BLF += bias(self, 'gate_bias', (F,), ('mlp',))[None, None]
    up_BLF = project(
      'BLD,DF->BLF', x_BLD, weight(self, 'up', (D, F), ('embed', 'mlp')), self.product_dtype
    )
    if self.biased:
      up_BLF += bias(self, 'up_bias', (F,), ('mlp',))[None, None]
    # Else the compiler may split gradients of hidden_BLF along the length, as norms want theirs.
    hidden_BLF = activation(self.activation, self.dtype)(gate_BLF, up_BLF)
    hidden_BLF = constrain(hidden_BLF, 'batch', 'length', 'mlp')
    down_FD = weight(self, 'down', (F, D), ('mlp', 'embed'), output=True)
    y_BLD = project('BLF,FD->BLD', hidden_BLF, down_FD, self.product_dtype)
    if self.biased:
      y_BLD += bias(self, 'down_bias', (D,), ('norm',))[None, None]
    return y_BLD
