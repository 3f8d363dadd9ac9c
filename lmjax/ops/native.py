"""Products and attention for decoding on CPUs, in C++: `native.cc`, built on first use and kept.

XLA:CPU converts a whole bf16 or int8 matrix to multiply it with one row, and attends to empty slots
as to filled ones. Where there is no compiler all is plain JAX, and one line of the log says so.

T rows, I inputs, O outputs; B batch, S rows of the cache, M its slots, H query heads, G key/value heads, K head dim.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core import processor
from lmjax.core.assets import cache_folder

MOST_ROWS = 32  # of a product; from here on converting the weights is worth it

_SOURCE = Path(__file__).with_name('native.cc')
_FLAGS = ('-O3', '-march=native', '-std=c++17', '-shared', '-fPIC', '-w')
_HANDLERS = {
  'lmjax_product': 'LmjaxProduct',
  'lmjax_attend': 'LmjaxAttend',
  'lmjax_attend_int8': 'LmjaxAttendInt8',
}


@functools.cache
def available() -> bool:
  """Whether the CPU's kernels can be called, building them if they are not yet."""
  try:
    library = ctypes.cdll.LoadLibrary(str(_built()))
  except (OSError, subprocess.SubprocessError) as error:
    said = getattr(error, 'stderr', None) or str(error)
    logging.getLogger(__name__).warning(
      'decoding on this CPU is plain JAX, slower above all in bf16: %s', said.strip().split('\n')[0]
    )
    return False
  for name, symbol in _HANDLERS.items():
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, symbol)), platform='cpu')
  return True


def _built() -> Path:
  """The shared library for this kind of CPU, source and jaxlib.

  Raises:
    OSError: there is no compiler, or no folder to write to.
    SubprocessError: the compiler failed.
  """
  said = (
    _SOURCE.read_text(encoding='utf-8'),
    *_FLAGS,
    importlib.metadata.version('jaxlib'),
    processor.kind(),
  )
  key = hashlib.sha256('\n'.join(said).encode()).hexdigest()[:16]
  path = cache_folder() / 'native' / f'{key}.so'
  if path.exists():
    return path
  compiler = shutil.which('g++')
  if compiler is None:
    raise FileNotFoundError('there is no g++ here to build its kernels with: install it')
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_suffix(f'.{os.getpid()}')
  command = [compiler, *_FLAGS, f'-I{jax.ffi.include_dir()}', str(_SOURCE), '-o', str(draft)]
  subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
  os.replace(draft, path)  # another process may have built the same
  return path


def multiply(x_TI: jax.Array, w_OI: jax.Array, scale_OS: jax.Array | None) -> jax.Array:
  """x w^T f32 [T, O] of f32 rows and a matrix in f32, bf16 or int8; see `ops.packed.Packed`."""
  result = jax.ShapeDtypeStruct((x_TI.shape[0], w_OI.shape[0]), jnp.float32)
  scales = jnp.zeros(0, jnp.float32) if scale_OS is None else scale_OS
  return jax.ffi.ffi_call('lmjax_product', result)(x_TI, w_OI, scales)  # type: ignore[return-value]


def attend(
  q_BHK: jax.Array,
  k_BGK: jax.Array,
  v_BGK: jax.Array,
  row_B: jax.Array,
  position_B: jax.Array,
  slot_B: jax.Array,
  cache: Mapping[str, jax.Array],
  *,
  window: int,
  scale: float,
  softcap: float | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """New tokens, each against its row of the cache, which is written in place first.

  Args:
    q_BHK, k_BGK, v_BGK: f32, of the new tokens.
    row_B: i32, the row of the cache that each token is of; several may be of one.
    position_B: i32, the slots up to it are seen, within the window.
    slot_B: i32, where the new key and value go; M: nowhere.
    cache: k and v [S, M, G, K] in f32, or in int8 with f32 k_scale and v_scale [S, M, G, 1].
    window, scale, softcap: as in `ops.attention`.

  Returns:
    y_BHK in f32 and the cache.
  """
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  names = ('k', 'v', 'k_scale', 'v_scale') if 'k_scale' in cache else ('k', 'v')
  kept = [cache[name] for name in names]
  call = jax.ffi.ffi_call(
    'lmjax_attend_int8' if 'k_scale' in cache else 'lmjax_attend',
    (like(q_BHK), *map(like, kept)),
    input_output_aliases={6 + i: 1 + i for i in range(len(kept))},
  )
  y_BHK, *kept = call(
    *(q_BHK, k_BGK, v_BGK, row_B, position_B, slot_B, *kept),
    scale=np.float32(scale),
    softcap=np.float32(softcap or 0.0),
    window=np.int64(window),
  )
  return y_BHK, dict(zip(names, kept, strict=True))
