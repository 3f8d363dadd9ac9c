"""Mixture-of-experts arithmetic: choosing experts, and running each token through its own.

B batch, L length, T tokens (rows to feed, one for each chosen expert), D width, F mlp hidden,
E experts, C capacity, k experts a token. Router arithmetic is f32.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.ops.dot import dot
from lmjax.parallel.sharding import by_platform, constrain

_CPU_BLOCK = 64  # rows of one product on CPUs


class Experts(NamedTuple):
  """The weights of all experts; `gate` is None for an ungated MLP."""

  gate_EDF: jax.Array | None
  up_EDF: jax.Array
  down_EFD: jax.Array


Activation = Callable[[jax.Array | None, jax.Array], jax.Array]
"""(gate, up) -> hidden, elementwise."""


def choose(scores_BLE: jax.Array, k: int) -> jax.Array:
  """The k best experts of every token, i32 [B, L, k], best first, ties to the lower index.

  Rounds of argmax: `lax.top_k` is not partitioned along the batch (40 GiB a step gathered at
  10,240 GPUs).
  """
  E = scores_BLE.shape[-1]
  chosen = []
  for _ in range(k):
    best_BL = jnp.argmax(scores_BLE, axis=-1)
    chosen.append(best_BL)
    scores_BLE = jnp.where(jax.nn.one_hot(best_BL, E, dtype=bool), -jnp.inf, scores_BLE)
  return jnp.stack(chosen, axis=-1).astype(jnp.int32)


def load(experts_BLk: jax.Array, weights_BL: jax.Array, experts: int) -> jax.Array:
  """How many of a row's counted tokens chose each expert, f32 [B, E]."""
  picked_BLE = jnp.sum(jax.nn.one_hot(experts_BLk, experts, dtype=jnp.float32), axis=2)
  return jnp.sum(picked_BLE * weights_BL[:, :, None], axis=1)


def slots(experts_BLk: jax.Array, weights_BL: jax.Array, experts: int) -> jax.Array:
  """The place of every choice in its expert's queue of one row, in token order, i32 [B, L, k].

  Padding (weight 0) takes no place: it is given one beyond every capacity.
  """
  B, L, k = experts_BLk.shape
  counted_BL1 = weights_BL[:, :, None] > 0
  picked = jax.nn.one_hot(experts_BLk, experts, dtype=jnp.int32) * counted_BL1[..., None]
  flat = picked.reshape(B, L * k, experts)
  before = (jnp.cumsum(flat, axis=1) - flat).reshape(B, L, k, experts)
  place_BLk = jnp.take_along_axis(before, experts_BLk[..., None], axis=-1)[..., 0]
  return jnp.where(counted_BL1, place_BLk, L * k)


def run_dropless(
  x_BLD: jax.Array,
  experts_BLk: jax.Array,
  gates_BLk: jax.Array,
  experts: int,
  run: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """Sum over a token's experts of gate * expert(x), f32 [B, L, D]; no token is ever dropped.

  Args:
    run: (rows x_TD sorted by expert, their number sizes_E) -> the experts' answers y_TD, such as
      `run_sorted` gives with its weights bound.
  """
  B, L, D = x_BLD.shape
  k = experts_BLk.shape[-1]
  expert_T = experts_BLk.reshape(-1)
  order_T = jnp.argsort(expert_T, stable=True)
  sizes_E = jnp.bincount(expert_T, length=experts)
  y_TD = run(x_BLD.reshape(-1, D)[order_T // k], sizes_E)
  y_BLkD = y_TD[jnp.argsort(order_T)].reshape(B, L, k, D)
  return jnp.sum(y_BLkD * gates_BLk[..., None], axis=2)


def run_sorted(
  weights: Experts, activation: Activation, dtype: str, x_TD: jax.Array, sizes_E: jax.Array
) -> jax.Array:
  """Each expert on its run of sorted rows, f32 [T, D]: a grouped matmul.

  Rows beyond the sum of sizes_E come back as anything.
  """
  rows = min(_CPU_BLOCK, x_TD.shape[0])
  return by_platform(
    x_TD,
    sizes_E,
    weights,
    cpu=functools.partial(_run_blocks, _dot_blocks, rows, activation, dtype),
    cuda=functools.partial(_run_grouped, activation, dtype),
    default=functools.partial(_run_ragged, activation, dtype),
  )


def _run_grouped(activation, dtype, x_TD, sizes_E, weights: Experts) -> jax.Array:
  """Each expert on its run of sorted rows, by our kernel for GPUs."""
  from lmjax.ops.grouped import ROWS, grouped_dot  # here: Pallas takes 0.1 s to import

  return _run_blocks(grouped_dot, ROWS, activation, dtype, x_TD, sizes_E, weights)


def _run_ragged(activation, dtype, x_TD, sizes_E, weights: Experts) -> jax.Array:
  """Each expert on its run of sorted rows, by the grouped matmul that TPUs have."""
  product = lambda x, w: jax.lax.ragged_dot(
    x.astype(dtype), w.astype(dtype), sizes_E, preferred_element_type=jnp.float32
  )
  gate_TF = None if weights.gate_EDF is None else product(x_TD, weights.gate_EDF)
  return product(activation(gate_TF, product(x_TD, weights.up_EDF)), weights.down_EFD)


def _run_blocks(product, rows, activation, dtype, x_TD, sizes_E, weights: Experts) -> jax.Array:
  """The same in blocks of `rows` rows, each of one expert.

  XLA expands ragged_dot densely, each row times every expert, on CPUs (9x slower) and NVIDIA GPUs.
  Every run is padded to whole blocks, at most one part-filled block an expert.

  Args:
    product: (x_NTD, w_EDF, expert_N, dtype) -> x[n] @ w[expert[n]] in f32, a block that nobody fills
      being of expert E.
  """
  T, D = x_TD.shape
  E = sizes_E.shape[0]
  blocks = -(-T // rows) + E
  ends_E = jnp.cumsum(-(-sizes_E // rows))
  expert_N = jnp.searchsorted(ends_E, jnp.arange(blocks), side='right').astype(jnp.int32)
  expert_T = jnp.repeat(jnp.arange(E), sizes_E, total_repeat_length=T)
  first_E = (ends_E - -(-sizes_E // rows)) * rows - (jnp.cumsum(sizes_E) - sizes_E)
  place_T = first_E[expert_T] + jnp.arange(T)
  x_NTD = jnp.zeros((blocks * rows, D), x_TD.dtype).at[place_T].set(x_TD).reshape(-1, rows, D)
  times = lambda x, w: product(x, w, expert_N, dtype)
  gate = None if weights.gate_EDF is None else times(x_NTD, weights.gate_EDF)
  y_NTD = times(activation(gate, times(x_NTD, weights.up_EDF)), weights.down_EFD)
  return y_NTD.reshape(-1, D)[place_T]


def _dot_blocks(x_NTD, w_EDF, expert_N, dtype) -> jax.Array:
  return dot('NTD,NDF->NTF', x_NTD, w_EDF[jnp.minimum(expert_N, w_EDF.shape[0] - 1)], dtype)


def run_capacity(
  x_BLD: jax.Array,
  experts_BLk: jax.Array,
  gates_BLk: jax.Array,
  place_BLk: jax.Array,
  weights: Experts,
  activation: Activation,
  capacity: int,
  dtype: str,
) -> jax.Array:
  """The same with at most `capacity` tokens of a row an expert; a choice beyond it adds nothing.

  Switch Transformer (arXiv:2101.03961) section 2.2, a group being one row of the batch.

  Args:
    place_BLk: from `slots`; choices at `capacity` or beyond are dropped.
  """
  B, L, D = x_BLD.shape
  E = weights.up_EDF.shape[0]
  k = experts_BLk.shape[-1]
  kept_BLk = place_BLk < capacity
  flat_BLk = jnp.where(kept_BLk, experts_BLk * capacity + place_BLk, E * capacity)
  rows_B11 = jnp.arange(B)[:, None, None]
  token_BLk = jnp.broadcast_to(jnp.arange(L)[None, :, None], (B, L, k))
  source = jnp.full((B, E * capacity + 1), L).at[rows_B11, flat_BLk].set(token_BLk)[:, :-1]
  x_padded = jnp.concatenate([x_BLD, jnp.zeros((B, 1, D), x_BLD.dtype)], axis=1)
  x_BECD = jnp.take_along_axis(x_padded, source[..., None], axis=1).reshape(B, E, capacity, D)
  x_BECD = constrain(x_BECD, 'rows', 'expert', None, None)
  product = lambda x, w: dot('BECD,EDF->BECF', x, w, dtype)
  gate = None if weights.gate_EDF is None else product(x_BECD, weights.gate_EDF)
  y_BECD = product(activation(gate, product(x_BECD, weights.up_EDF)), weights.down_EFD)
  y_flat = constrain(y_BECD, 'batch', None, None, None).reshape(B, E * capacity, D)
  index_BTk = jnp.minimum(flat_BLk, E * capacity - 1).reshape(B, L * k, 1)
  y_BLkD = jnp.take_along_axis(y_flat, index_BTk, axis=1).reshape(B, L, k, D)
  return jnp.sum(y_BLkD * (gates_BLk * kept_BLk)[..., None], axis=2)
