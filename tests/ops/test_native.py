"""What the kernels for decoding compute is what NumPy and plain JAX do; without a compiler all still runs."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.attention import cache_mask, read_cache, round_int8, write_cache
from lmjax.ops import attention, native
from lmjax.ops.dot import dot
from lmjax.ops.packed import Packed, packed_dot, unpack

# Some that fill no vector, one that fills many, and more outputs than one thread takes at a time.
SHAPES = ((5, 3), (72, 9), (100, 37), (768, 400))

needs_kernels = pytest.mark.skipif(not native.available(), reason='no C++ compiler')


@pytest.fixture
def without_compiler(monkeypatch, tmp_path):
  """A machine that has neither g++ nor what it once built."""
  monkeypatch.setenv('PATH', '')
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  # A process registers its kernels once: what it found before has to be what it finds afterwards.
  monkeypatch.setattr(native, 'available', functools.cache(native.available.__wrapped__))


def make_weights(kind: str, shape: tuple[int, ...]) -> Packed:
  rng = np.random.default_rng(0)
  values = rng.normal(size=shape)
  if kind != 'int8':
    return Packed(jnp.asarray(values, kind))
  inputs = shape[-1]
  groups = max(s for s in (1, 2, 4) if inputs % s == 0)
  scale = jnp.asarray(rng.uniform(0.01, 0.02, (shape[0], groups)), jnp.float32)
  return Packed(jnp.asarray(np.round(values * 40), jnp.int8), scale)


def assert_close(found, expected, tolerance=1e-5):
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@needs_kernels
@pytest.mark.parametrize('kind', ['float32', 'bfloat16', 'int8'])
def test_products_of_few_rows_are_those_of_numpy(kind):
  rng = np.random.default_rng(1)
  for inputs, outputs in SHAPES:
    weights = make_weights(kind, (outputs, inputs))
    exact = np.asarray(unpack(weights), np.float64)
    for rows in (1, 2, 4, 7, native.MOST_ROWS):
      x = rng.normal(size=(rows, inputs)).astype(np.float32)
      assert_close(native.multiply(jnp.asarray(x), *weights), x.astype(np.float64) @ exact.T)


@pytest.mark.parametrize('rows', [1, native.MOST_ROWS + 1])
@pytest.mark.parametrize('kind', ['float32', 'bfloat16', 'int8'])
def test_a_packed_weight_gives_what_the_unpacked_one_does(kind, rows):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, 1, 2, 6)), jnp.float32)
  weights = make_weights(kind, (5, 12))
  scale = None if weights.scale is None else weights.scale.reshape(5, 2, -1)
  packed = Packed(weights.values.reshape(5, 2, 6), scale)
  plain = jnp.moveaxis(unpack(weights).reshape(5, 2, 6), 0, -1)
  # The CPUs that have them round x to bf16 in products of many rows.
  tolerance = 1e-2 if kind == 'bfloat16' and rows > native.MOST_ROWS else 1e-5
  expected = dot('BLHK,HKD->BLD', x, plain)
  assert_close(dot('BLHK,HKD->BLD', x, packed), expected, tolerance)


@needs_kernels
@pytest.mark.parametrize('window', [0, 3])
@pytest.mark.parametrize('softcap', [None, 2.0])
@pytest.mark.parametrize('kind', ['float32', 'int8'])
def test_attention_to_the_cache_is_the_reference(window, softcap, kind):
  S, M, H, G, K = 4, 9, 6, 2, 10
  B = 5  # of which three are of one row, and one is written nowhere
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q, k, v = array(B, 1, H, K), array(B, 1, G, K), array(B, 1, G, K)
  rows = jnp.array([3, 0, 2, 0, 0])
  cache = {'k': array(S, M, G, K), 'v': array(S, M, G, K)}
  if kind == 'int8':
    rounded = {name: round_int8(x) for name, x in cache.items()}
    cache = {name: values for name, (values, _) in rounded.items()}
    cache |= {f'{name}_scale': scale for name, (_, scale) in rounded.items()}
  positions, segments = jnp.array([[0], [8], [5], [6], [7]]), jnp.array([[1], [1], [0], [1], [1]])
  same = {'scale': 0.3, 'softcap': softcap}
  written = write_cache({**cache, 'row': rows}, k, v, segments, positions)
  mask = cache_mask(positions, M, window)
  seen = [x[rows] for x in read_cache(written)]
  expected = attention.attend(q, *seen, mask, **same)[:, 0]
  slots = jnp.where(segments > 0, positions, M)[:, 0]
  new = q[:, 0], k[:, 0], v[:, 0], rows, positions[:, 0], slots
  step = jax.jit(lambda cache: native.attend(*new, cache, window=window, **same), donate_argnums=0)
  y, found = step(jax.tree.map(jnp.copy, cache))
  assert_close(y, expected)
  assert found.keys() == cache.keys()
  for name, x in found.items():
    np.testing.assert_allclose(x, written[name], rtol=1e-6, err_msg=name)


def test_without_a_compiler_one_line_says_so_and_products_are_the_same(without_compiler, caplog):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 72)), jnp.float32)
  weights = make_weights('float32', (9, 72))
  with caplog.at_level(logging.WARNING):
    found = [packed_dot('TI,IO->TO', x, weights) for _ in range(2)]
  assert_close(found[0], x @ weights.values.T)
  (record,) = caplog.records
  assert record.getMessage() == (
    'decoding on this CPU is plain JAX, slower above all in bf16: '
    'there is no g++ here to build its kernels with: install it'
  )


def test_a_product_that_cannot_be_packed_is_refused():
  with pytest.raises(AssertionError, match='BDL,DF->BLF: w cannot be packed'):
    dot('BDL,DF->BLF', jnp.ones((1, 2, 3)), Packed(jnp.ones((4, 2))))
