"""Code that splits work wrongly, in place of ours: what `mistakes` plants before it compiles a step.

B batch, L length, D width, H query heads, G key/value heads, K head dim, E experts.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from lmjax.models import layers
from lmjax.ops import moe
from lmjax.ops.attention import attend_blocked
from lmjax.parallel import sharding
from lmjax.train import state

Plant = Callable[[], AbstractContextManager]
"""Puts a mistake into the code while it is entered."""

CONSTRAIN, DECLARE = sharding.constrain, layers.declare
CHOOSE, MOMENT_DIMS = moe.choose, state._moment_dims


def table(**rows: tuple[str, ...]) -> Plant:
  """Other axes for some dimensions."""
  return lambda: mock.patch.dict(sharding.TABLE, rows)


def instead(module: Any, name: str, function: Callable) -> Plant:
  return lambda: mock.patch.object(module, name, function)


def undonated() -> AbstractContextManager:
  jit = jax.jit

  def keep(*arguments: Any, donate_argnums: Any = None, **options: Any) -> Any:
    del donate_argnums
    return jit(*arguments, **options)

  return mock.patch.object(jax, 'jit', keep)


def gathered_in_f32(module, name, start, shape, dims) -> jax.Array:
  """A weight that is gathered as it is kept, before anybody rounds it."""
  x = DECLARE(module, name, start, shape, dims)
  return sharding.constrain(x, *(None if dim == 'embed' else dim for dim in dims))


def constrain_less(x: jax.Array, *dims: str | None) -> jax.Array:
  """Forgets the table, which is then looked up as it lies."""
  return x if dims == ('vocab', None) else CONSTRAIN(x, *dims)


def constrain_wide(x: jax.Array, *dims: str | None) -> jax.Array:
  """Has what goes from layer to layer in f32."""
  return CONSTRAIN(x.astype(jnp.float32) if 'stream' in dims else x, *dims)


def constrain_whole(x: jax.Array, *dims: str | None) -> jax.Array:
  """Asks for the hidden layer of the MLP on every device."""
  return CONSTRAIN(x, *(None if dim == 'mlp' else dim for dim in dims))


def constrain_logits(x: jax.Array, *dims: str | None) -> jax.Array:
  """Asks for all logits on every device of tensor."""
  return CONSTRAIN(x, *(None if dims[0] == 'batch' and dim == 'vocab' else dim for dim in dims))


def in_blocks(one: Callable, accumulate: int) -> Callable:
  """Microbatches of rows that follow each other: those of a device are in one of them alone."""

  def many(params, batch, rng):
    cut = lambda x: x.reshape(accumulate, -1, *x.shape[1:])
    micros = (jax.tree.map(cut, batch), jax.random.split(rng, accumulate))
    add = lambda sums, micro: (jax.tree.map(jnp.add, sums, one(params, *micro)), None)
    shapes = jax.eval_shape(one, params, jax.tree.map(lambda x: x[0], micros[0]), rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, micros)[0]

  return many


def whole_heads(x: jax.Array, *dims: str | None) -> jax.Array:
  """Asks for all queries, keys and values on every device of tensor."""
  return CONSTRAIN(x, *(None if dim in ('heads', 'kv_heads') else dim for dim in dims))


def rows_of_all(x: jax.Array, *dims: str | None) -> jax.Array:
  """Asks for the rows of all devices wherever a layer begins."""
  return CONSTRAIN(x, *((None, *dims[1:]) if dims == ('batch', 'length', None) else dims))


def choose_of_all(scores_BLE: jax.Array, k: int) -> jax.Array:
  """A router that has every device look at the scores of all."""
  return CHOOSE(CONSTRAIN(scores_BLE, None, None, None), k)


def whole_moments(moment: Any, names: Any, param: Any) -> tuple[None, ...]:
  del names, param
  return (None,) * moment.ndim


def whole_table_moments(moment: Any, names: Any, param: Any) -> Any:
  """Moments that forget the dimensions of token table and head."""
  dims = MOMENT_DIMS(moment, names, param)
  return (None,) * len(dims) if isinstance(dims, tuple) and 'vocab' in dims else dims


def no_ring(q_BLHK, k_BLGK, v_BLGK, segments_BL, *, window, block, **same) -> jax.Array:
  """Attention that leaves it to the compiler how queries meet the keys of other devices."""
  return attend_blocked(q_BLHK, k_BLGK, v_BLGK, segments_BL, window=window, block=block, **same)
