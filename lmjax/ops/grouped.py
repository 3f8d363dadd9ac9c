"""Products of blocks of rows with one of several matrices each, on GPUs: a Triton kernel.

XLA expands `ragged_dot` densely for NVIDIA GPUs too: every row times every matrix (seen in what jax
0.10.2 compiles for an H100), where this kernel was 7 times as fast (docs/gpu.md). Tests compile it for
GPUs and interpret it on CPUs.

N blocks, T rows of a block, D columns of a row, F columns of the result, E matrices.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lmjax.core.errors import UserError

ROWS = 128  # T, the rows of a block
MOST = 1 << 31  # elements of an operand, counted in 32 bits, are fewer
_COLUMNS = 128  # of the result, that one program computes
_DEPTH_BYTES = 128  # of a row of an operand, that a program holds at a time
_COMPILED = triton.CompilerParams(num_warps=8, num_stages=3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def grouped_dot(
  x_NTD: jax.Array, w_EDF: jax.Array, expert_N: jax.Array, dtype: str, interpret: bool = False
) -> jax.Array:
  """x[n] @ w[expert[n]], f32 [N, T, F]; zeros where expert[n] is E.

  Args:
    expert_N: i32 in 0..E, not decreasing.
    dtype: 'float32' or 'bfloat16', what the operands (and the cotangent) are rounded to; products of
      f32 are of TF32 on GPUs.
    interpret: do the kernel's arithmetic with XLA, on any platform.
  """
  return _multiply(x_NTD.astype(dtype), w_EDF.astype(dtype), expert_N, interpret)


def _forward(x_NTD, w_EDF, expert_N, dtype, interpret):
  x, w = x_NTD.astype(dtype), w_EDF.astype(dtype)
  likes = jnp.empty(0, x_NTD.dtype), jnp.empty(0, w_EDF.dtype)
  return _multiply(x, w, expert_N, interpret), (x, w, expert_N, likes)


def _backward(dtype, interpret, residuals, dy_NTF):
  x_NTD, w_EDF, expert_N, (x_like, w_like) = residuals
  dy = dy_NTF.astype(dtype)
  dx = _multiply(dy, jnp.swapaxes(w_EDF, 1, 2), expert_N, interpret)
  dw = _accumulate(x_NTD, dy, expert_N, w_EDF.shape[0], interpret)
  return dx.astype(x_like.dtype), dw.astype(w_like.dtype), None


grouped_dot.defvjp(_forward, _backward)


def _multiply(x_NTD: jax.Array, w_EDF: jax.Array, expert_N: jax.Array, interpret: bool):
  """The product, a program for each block of rows and tile of columns."""
  _check_sizes(x_NTD, w_EDF)
  N, T, D = x_NTD.shape
  E, _, F = w_EDF.shape
  depth, columns = _depth(x_NTD), _COLUMNS
  x_NTD, w_EDF = _fill(x_NTD, 1, depth), _fill(w_EDF, depth, columns)

  def kernel(x_ref, w_ref, expert_ref, y_ref):
    expert, f = expert_ref[pl.program_id(0)], pl.ds(pl.program_id(1) * columns, columns)

    def add(i, sum_TF):
      d = pl.ds(i * depth, depth)
      return sum_TF + triton.dot(x_ref[:, d], w_ref[expert, d, f])

    steps = jax.lax.select(expert < E, jnp.int32(pl.cdiv(D, depth)), jnp.int32(0))
    y_ref[...] = jax.lax.fori_loop(0, steps, add, jnp.zeros((T, columns), jnp.float32))

  y_NTF = pl.pallas_call(
    kernel,
    grid=(N, w_EDF.shape[2] // columns),
    in_specs=[
      pl.BlockSpec((None, T, x_NTD.shape[2]), lambda n, f: (n, 0, 0)),
      _whole(w_EDF),
      _whole(expert_N),
    ],
    out_specs=pl.BlockSpec((None, T, columns), lambda n, f: (n, 0, f)),
    out_shape=_result((N, T, w_EDF.shape[2]), x_NTD),
    compiler_params=_COMPILED,
    interpret=interpret,
    name='grouped_dot',
  )(x_NTD, w_EDF, expert_N)
  return y_NTF[:, :, :F]


def _accumulate(x_NTD: jax.Array, dy_NTF: jax.Array, expert_N, E: int, interpret: bool):
  """Of every matrix, the sum of x[n]^T dy[n] over its blocks, f32 [E, D, F]."""
  T, D = x_NTD.shape[1:]
  F = dy_NTF.shape[2]
  columns = _COLUMNS
  x_NTD, dy_NTF = _fill(x_NTD, 1, columns), _fill(dy_NTF, 1, columns)
  _check_sizes(x_NTD, dy_NTF)
  ends_E = jnp.searchsorted(expert_N, jnp.arange(E + 1, dtype=expert_N.dtype)).astype(jnp.int32)
  depth = min(T, _depth(x_NTD))

  def kernel(x_ref, dy_ref, ends_ref, dw_ref):
    expert = pl.program_id(0)
    d, f = (pl.ds(pl.program_id(axis) * columns, columns) for axis in (1, 2))

    def add(i, sum_DF):
      n, t = i // (T // depth), pl.ds(i % (T // depth) * depth, depth)
      return sum_DF + triton.dot(x_ref[n, t, d].T, dy_ref[n, t, f])

    first, stop = (ends_ref[expert + i] * (T // depth) for i in (0, 1))
    dw_ref[...] = jax.lax.fori_loop(first, stop, add, jnp.zeros((columns, columns), jnp.float32))

  dw_EDF = pl.pallas_call(
    kernel,
    grid=(E, x_NTD.shape[2] // columns, dy_NTF.shape[2] // columns),
    in_specs=[_whole(x_NTD), _whole(dy_NTF), _whole(ends_E)],
    out_specs=pl.BlockSpec((None, columns, columns), lambda e, d, f: (e, d, f)),
    out_shape=_result((E, x_NTD.shape[2], dy_NTF.shape[2]), x_NTD),
    compiler_params=_COMPILED,
    interpret=interpret,
    name='grouped_dot_weights',
  )(x_NTD, dy_NTF, ends_E)
  return dw_EDF[:, :D, :F]


def _check_sizes(*operands: jax.Array) -> None:
  """UserError where the kernel, which counts elements in 32 bits, would read the wrong ones."""
  largest = max(operands, key=lambda x: x.size)
  if largest.size >= MOST:
    raise UserError(
      f'experts multiply an array of {largest.shape} on one device, 2^31 elements is the most: '
      'split them with mesh.expert or mesh.tensor, or take fewer rows with mesh.data or accumulate'
    )


def _depth(x: jax.Array) -> int:
  return _DEPTH_BYTES // x.dtype.itemsize


def _fill(x: jax.Array, rows: int, columns: int) -> jax.Array:
  """`x` with zeros up to whole tiles of its last two dimensions."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % rows), (0, -x.shape[2] % columns)))


def _whole(x: jax.Array) -> pl.BlockSpec:
  """Every program sees all of `x`, and reads what it needs."""
  return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def _result(shape: tuple[int, ...], like: jax.Array) -> jax.ShapeDtypeStruct:
  """In f32; in a `shard_map`, different on the devices that `like` is different on."""
  return jax.ShapeDtypeStruct(
    shape,
    jnp.float32,
    manual_axis_type=jax.typeof(like).manual_axis_type,  # type: ignore[attr-defined]
  )
