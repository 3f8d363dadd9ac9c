"""Attention of packed rows on GPUs, by the Triton kernel that comes with JAX and knows segments.

It holds no scores in memory, and knows neither soft-cap nor sliding window. Tests compile it for GPUs
and interpret it on CPUs; docs/gpu.md has how fast it was on an H100, beside cuDNN's.

B batch, L length, H query heads, G key/value heads, K head dim.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import PartitionSpec

from lmjax.core.errors import UserError
from lmjax.ops.attention import attend_blocked
from lmjax.parallel.sharding import TABLE, Dims, axis_sizes, by_platform, spec

Choice = Literal['auto', 'blocked', 'pallas']

# Products of queries with keys (L x L x head dim) in each kernel, of which causality leaves half:
# scores and values; scores and gradients of the scores twice, and three gradients.
KERNEL_PRODUCTS = {'mha_forward': 2, 'mha_backward': 7, 'mha_preprocess_backward': 0}

_HEADS = ('batch', None, 'heads', None)
_OUTSIDE = -1  # the segment of tokens that fill up a tile
# Heads of these sizes were compiled: an operand of tensor cores has 16 columns or more.
_NARROWEST, _WIDEST = 16, 256
# Queries, and keys, that one program of the kernel holds: bytes that fit the shared memory of an A100,
# H100 and B200. Backward, heads of up to 256 bytes take 64 (JAX's default of 32 took 1.9 times as long
# on an H100, 2026-11-26), others 32.
_TILE, _TILE_BYTES = 128, 1 << 15
_BACKWARD_TILE, _BACKWARD_TILE_WIDE, _WIDE_BYTES = 64, 32, 256


def choose(
  choice: Choice, *, softcap: float | None, windows: Collection[int], head_dim: int
) -> Callable[..., jax.Array]:
  """What to call in place of `attention.attend_blocked`.

  Args:
    choice: 'auto' is the kernel on NVIDIA GPUs where it can be, else blocked, and says so once;
      'pallas' is the kernel or a UserError.
    softcap, windows, head_dim: of the model; windows are those of all its layers, 0 = none.
  """
  if choice == 'blocked':
    return attend_blocked
  try:
    check(softcap=softcap, windows=windows, head_dim=head_dim)
  except UserError as error:
    if choice == 'pallas':
      raise
    logging.log_first_n(logging.INFO, 'attention is blocked, on GPUs too: %s', 1, error)
    return attend_blocked
  return attend_kernel if choice == 'pallas' else _attend_by_platform


def check(*, softcap: float | None, windows: Collection[int], head_dim: int) -> None:
  """UserError where the kernel cannot compute a model's attention."""
  instead = 'or pass attention=blocked'
  if softcap is not None:
    raise UserError(
      f'the attention kernel for GPUs knows no soft-cap, given is attention_softcap={softcap}: '
      f'pass attention_softcap=none, {instead}'
    )
  if any(windows):
    raise UserError(
      f'the attention kernel for GPUs knows no sliding window, given is window={max(windows)}: '
      f'pass window=0, {instead}'
    )
  if not _NARROWEST <= head_dim <= _WIDEST:
    raise UserError(
      f'the attention kernel for GPUs takes a head_dim of {_NARROWEST} to {_WIDEST}, given is '
      f'{head_dim}: pass one of these, {instead}'
    )


def attend_kernel(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segments_BL: jax.Array,
  *,
  window: int,
  block: int,
  scale: float,
  softcap: float | None = None,
  dtype: str = 'float32',
  interpret: bool = False,
) -> jax.Array:
  """What `attention.attend_blocked` gives, by the kernel; on a mesh, each device its rows and heads.

  Operands in f32 are rounded to TF32 on GPUs, as in XLA's own products there; in bf16 the result is
  rounded to bf16 too.

  Args:
    block: not used: the kernel has tiles of its own.
    interpret: do the kernel's arithmetic with XLA, on any platform.
  """
  del block
  check(softcap=softcap, windows=(window,), head_dim=q_BLHK.shape[-1])
  repeats = q_BLHK.shape[2] // k_BLGK.shape[2]
  k_BLHK, v_BLHK = (jnp.repeat(x, repeats, axis=2) for x in (k_BLGK, v_BLGK))
  q, k, v = (x.astype(dtype) for x in (q_BLHK, k_BLHK, v_BLHK))
  local = functools.partial(_attend_local, scale, interpret)
  if not axis_sizes():
    return local(q, k, v, segments_BL)
  # XLA does not partition a Pallas call, and the call does not say over which axes its results vary.
  heads, rows = (_split(x.shape, dims) for x, dims in ((q, _HEADS), (segments_BL, _HEADS[:2])))
  in_specs = (heads, heads, heads, rows)
  return jax.shard_map(local, in_specs=in_specs, out_specs=heads, check_vma=False)(
    q, k, v, segments_BL
  )


def _attend_by_platform(q_BLHK, k_BLGK, v_BLGK, segments_BL, **same) -> jax.Array:
  """The kernel in a program for NVIDIA GPUs, the blocked attention in any other."""
  blocked = functools.partial(attend_blocked, **same)
  return by_platform(
    q_BLHK,
    k_BLGK,
    v_BLGK,
    segments_BL,
    cuda=functools.partial(attend_kernel, **same),
    cpu=blocked,
    default=blocked,
  )


def _attend_local(scale: float, interpret: bool, q_BLHK, k_BLHK, v_BLHK, segments_BL) -> jax.Array:
  """The kernel on rows filled up to whole tiles; f32 [B, L, H, K]."""
  # Here, as they take 0.1 s to import.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas.ops.gpu import attention as kernel

  L, K = q_BLHK.shape[1], q_BLHK.shape[3]
  width = pl.next_power_of_2(K) * q_BLHK.dtype.itemsize
  tile = min(_TILE, _TILE_BYTES // width, pl.next_power_of_2(max(L, _NARROWEST)))
  small = min(tile, _BACKWARD_TILE if width <= _WIDE_BYTES else _BACKWARD_TILE_WIDE)
  if q_BLHK.size >= 1 << 31:
    raise UserError(
      f'attention of queries {q_BLHK.shape} on one device, 2^31 elements is the most that the kernel '
      'counts: take fewer rows with mesh.data or accumulate, or pass attention=blocked'
    )
  fill = lambda x, value: jnp.pad(
    x, ((0, 0), (0, -L % tile)) + ((0, 0),) * (x.ndim - 2), constant_values=value
  )
  y_BLHK: Any = kernel.mha(
    *(fill(x, 0) for x in (q_BLHK, k_BLHK, v_BLHK)),
    fill(segments_BL, _OUTSIDE),
    sm_scale=scale,
    causal=True,
    block_sizes=kernel.BlockSizes(tile, tile, small, small, small, small),
    interpret=interpret,
  )
  return y_BLHK[:, :L].astype(jnp.float32)


def _split(shape: tuple[int, ...], dims: Dims) -> PartitionSpec:
  """The spec of an array by its dimension names; what its axes do not divide stays whole."""
  sizes = axis_sizes()
  ways = [math.prod(sizes[axis] for axis in TABLE[dim]) for dim in dims]
  return spec(tuple(d if n % w == 0 else None for d, n, w in zip(dims, shape, ways, strict=True)))
