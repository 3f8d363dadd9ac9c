"""What each device of this process computes, and how fast: our kernels, a product, a read.

A device that is wrong or slow holds up, or spoils, a run on thousands: it is to be found before.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.ops.attention import attend_blocked
from lmjax.ops.attention_gpu import attend_kernel

_WIDTH = 8192  # of the square product
_BYTES = 4 << 30  # that are read
_TAKES = 5


def look() -> list[dict[str, Any]]:
  """What `measure` tells of each device of this process, one after another; none of CPUs."""
  devices = jax.local_devices()
  return [] if devices[0].platform == 'cpu' else [measure(device) for device in devices]


def measure(
  device: Any, *, width: int = _WIDTH, size: int = _BYTES, interpret: bool = False
) -> dict[str, Any]:
  """How fast `device` is, and how far our kernels on it are from their references.

  Args:
    interpret: do the kernels' arithmetic with XLA, on any platform.

  Returns:
    `flops` of a bf16 product and `bytes` of a read, both a second; `errors`, as of `errors`.
  """
  with jax.default_device(device):
    rates = {'flops': _product_rate(width), 'bytes': read_rate(size)}
    return rates | {'errors': errors(interpret)}


def errors(interpret: bool) -> dict[str, float]:
  """By kernel, with operands in bf16: the largest difference of its results and gradients from those
  of the reference, relative to the largest value."""
  from lmjax.ops.grouped import grouped_dot  # here: Pallas takes 0.1 s to import

  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  segments_BL = jnp.asarray(np.sort(rng.integers(1, 4, (2, 256)), axis=1), jnp.int32)
  attend = lambda kernel: (
    lambda q, k, v: kernel(q, k, v, segments_BL, window=0, block=64, scale=0.125, dtype='bfloat16')
  )
  expert_N = jnp.asarray([0, 0, 2], jnp.int32)
  one_by_one = lambda x, w: jnp.einsum(
    'NTD,NDF->NTF',
    x.astype(jnp.bfloat16),
    w[expert_N].astype(jnp.bfloat16),
    preferred_element_type=jnp.float32,
  )
  return {
    'attention': difference(
      attend(functools.partial(attend_kernel, interpret=interpret)),
      attend(attend_blocked),
      *(normal(2, 256, heads, 64) for heads in (4, 2, 2)),
    ),
    'grouped product': difference(
      lambda x, w: grouped_dot(x, w, expert_N, 'bfloat16', interpret),
      one_by_one,
      normal(3, 128, 256),
      normal(3, 256, 384),
    ),
  }


def difference(kernel: Callable, reference: Callable, *operands: jax.Array) -> float:
  """The largest difference of results and gradients, relative to the largest value of each."""

  def all_of(function: Callable, operands: tuple[jax.Array, ...]) -> list[jax.Array]:
    y, pull = jax.vjp(function, *operands)
    return [y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))]

  both = jax.jit(lambda *operands: (all_of(kernel, operands), all_of(reference, operands)))
  found, expected = both(*operands)
  return max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(found, expected, strict=True))


def _product_rate(width: int) -> float:
  """FLOPs a second of a square product in bf16."""
  # Random, as zeros and ones take less power, and GPUs then run faster than they do in a run.
  x = jax.random.normal(jax.random.key(0), (width, width), jnp.bfloat16)
  multiply = jax.jit(lambda x: x @ x)
  return 2 * width**3 / _seconds(lambda: multiply(x))


def read_rate(size: int) -> float:
  """Bytes a second that a sum over an array of `size` reads."""
  x = jnp.zeros(size // 4, jnp.float32)
  add = jax.jit(jnp.sum)
  return size / _seconds(lambda: add(x))


def _seconds(work: Callable[[], jax.Array]) -> float:
  """The least of some takes of `work`, ten calls each."""
  work().block_until_ready()
  takes = []
  for _ in range(_TAKES):
    start = time.perf_counter()
    for _ in range(9):
      work()
    work().block_until_ready()
    takes.append((time.perf_counter() - start) / 10)
  return min(takes)
