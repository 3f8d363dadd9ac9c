"""The attention kernel for GPUs gives what the reference gives, gradients and packing included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.ops.attention import attend_blocked
from lmjax.ops.attention_gpu import attend_kernel, check, choose
from lmjax.parallel.mesh import Mesh

interpreted = functools.partial(attend_kernel, interpret=True)
FACTS = {'softcap': None, 'windows': (0,), 'head_dim': 16}


def packed(B, L, H, G, K):
  """q, k, v, segments of rows with three posts and padding, and a cotangent of the output."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  ends = np.sort(rng.choice(np.arange(1, L), (B, 3)), axis=1)
  index_BL = (np.arange(L)[None, :, None] >= ends[:, None]).sum(axis=2)
  segments_BL = jnp.asarray((index_BL + 1) % 4, jnp.int32)
  return normal(B, L, H, K), normal(B, L, G, K), normal(B, L, G, K), segments_BL, normal(B, L, H, K)


def outputs(attend, case, dtype='float32'):
  """Attention and its gradients for q, k and v, padding included."""
  run = functools.partial(attend, window=0, block=64, scale=0.3, dtype=dtype)

  def both(q, k, v, segments_BL, cotangent):
    result, pull = jax.vjp(lambda q, k, v: run(q, k, v, segments_BL), q, k, v)
    return result, *pull(cotangent)

  return jax.jit(both)(*case)


def worst(found, expected):
  """Over results and gradients, the largest difference relative to the largest value."""
  return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(found, expected))


@pytest.mark.parametrize(
  'shape',
  [
    pytest.param((2, 64, 4, 2, 16), id='grouped heads'),
    pytest.param((1, 100, 2, 1, 16), id='a row of no whole tiles'),
    pytest.param((1, 200, 2, 2, 24), id='two tiles, odd head'),
    pytest.param((2, 5, 2, 2, 16), id='shorter than a tile'),
  ],
)
def test_the_kernel_equals_the_reference_on_packed_rows(shape):
  case = packed(*shape)
  assert worst(outputs(interpreted, case), outputs(attend_blocked, case)) < 1e-5


def test_in_bfloat16_the_kernel_is_as_far_from_f32_as_blocked_attention_is():
  case = packed(1, 128, 4, 2, 32)
  exact = outputs(attend_blocked, case)
  ours = worst(outputs(interpreted, case, 'bfloat16'), exact)
  assert 0 < ours < 2 * worst(outputs(attend_blocked, case, 'bfloat16'), exact)


def test_a_post_sees_no_other_post():
  q, k, v, segments_BL, _ = packed(1, 64, 2, 2, 16)
  run = functools.partial(interpreted, window=0, block=64, scale=0.3)
  changed = jnp.where(segments_BL[:, :, None, None] == 2, 9.0, v)
  same = segments_BL[0] != 2
  before, after = run(q, k, v, segments_BL), run(q, k, changed, segments_BL)
  np.testing.assert_array_equal(before[:, same], after[:, same])
  assert not np.array_equal(before, after)


@pytest.mark.parametrize('rows', [4, 1], ids=['rows split', 'one row, which is not'])
def test_a_mesh_splits_rows_and_heads_and_no_number_changes(rows):
  case = packed(rows, 32, 4, 2, 16)
  mesh = Mesh(data=2, tensor=2).build()
  with jax.set_mesh(mesh):
    found = outputs(interpreted, case)
  assert worst(found, outputs(attend_blocked, case)) < 1e-5


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'softcap': 30.0}, r'no soft-cap, .*=30\.0: pass attention_softcap=none, or .*=blocked'),
    ({'windows': (0, 512)}, r'no sliding window, .*=512: pass window=0, or .*=blocked'),
    ({'head_dim': 8}, r'head_dim of 16 to 256, given is 8'),
    ({'head_dim': 512}, r'head_dim of 16 to 256, given is 512'),
  ],
)
def test_what_the_kernel_cannot_do_is_refused_or_left_to_blocked_attention(given, message):
  facts = FACTS | given
  with pytest.raises(UserError, match=message):
    check(**facts)
  with pytest.raises(UserError, match=message):
    choose('pallas', **facts)
  assert choose('auto', **facts) is attend_blocked


def test_blocked_attention_is_chosen_by_name_and_by_auto_on_cpus():
  assert choose('blocked', **FACTS) is attend_blocked
  case = packed(1, 32, 2, 1, 16)
  auto = outputs(choose('auto', **FACTS), case)
  for found, expected in zip(auto, outputs(attend_blocked, case)):
    np.testing.assert_array_equal(found, expected)


def test_a_row_that_the_kernel_cannot_count_is_refused():
  q = jax.ShapeDtypeStruct((1, 1 << 15, 512, 128), jnp.bfloat16)
  segments_BL = jax.ShapeDtypeStruct(q.shape[:2], jnp.int32)
  run = functools.partial(attend_kernel, window=0, block=64, scale=0.3)
  with pytest.raises(UserError, match=r'2\^31 elements is the most that the kernel counts'):
    jax.eval_shape(run, q, q, q, segments_BL)
