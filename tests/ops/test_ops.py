"""The array maths against naive NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from small_models import QUICK, kept_bytes

from lmjax.ops import attention, moe, rope
from lmjax.ops.dot import dot
from lmjax.ops.grouped import ROWS, grouped_dot
from lmjax.ops.loss import cross_entropy
from lmjax.ops.norm import layer_norm, rms_norm

RNG = np.random.default_rng(0)

# Op by op, every one of them would be compiled on its own.
jit = functools.partial(jax.jit, compiler_options=QUICK)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def naive_attention(q, k, v, segments, window, scale, softcap):
  B, L, H, _ = q.shape
  share = H // k.shape[2]
  out = np.zeros(q.shape)
  for b, i, h in np.ndindex(B, L, H):
    seen = [
      j for j in range(i + 1) if segments[b, j] == segments[b, i] and (not window or i - j < window)
    ]
    scores = np.array([scale * q[b, i, h] @ k[b, j, h // share] for j in seen])
    if softcap:
      scores = softcap * np.tanh(scores / softcap)
    probs = np.exp(scores - scores.max())
    out[b, i, h] = (probs / probs.sum()) @ np.array([v[b, j, h // share] for j in seen])
  return out


@pytest.mark.parametrize('block', [3, 4, 100])
@pytest.mark.parametrize(('window', 'softcap'), [(0, None), (4, None), (0, 2.0), (3, 2.0)])
def test_blocked_attention_is_naive_attention(block, window, softcap):
  q, k, v = normal(2, 12, 4, 6), normal(2, 12, 2, 6), normal(2, 12, 2, 6)
  segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
  found = jit(
    functools.partial(
      attention.attend_blocked, window=window, block=block, scale=0.4, softcap=softcap
    )
  )(q, k, v, segments)
  expected = naive_attention(*map(np.asarray, (q, k, v, segments)), window, 0.4, softcap)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_blocked_attention_has_the_reference_gradient():
  q, k, v = normal(1, 20, 2, 4), normal(1, 20, 2, 4), normal(1, 20, 2, 4)
  segments = jnp.array([[1] * 6 + [2] * 11 + [0] * 3])
  total = lambda block, q, k, v: jnp.sum(
    attention.attend_blocked(q, k, v, segments, window=0, block=block, scale=0.5) ** 2
  )
  grads = lambda block: jit(jax.grad(functools.partial(total, block), argnums=(0, 1, 2)))(q, k, v)
  expected = grads(20)
  for block in (3, 1):  # 7 blocks, one by one, and 20, in loops
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), grads(block), expected)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 0.03)])
def test_attention_has_the_gradient_of_einsums_and_a_softmax(dtype, tolerance):
  q, k, v = normal(2, 12, 2, 4), normal(2, 12, 2, 4), normal(2, 12, 2, 4)
  mask = attention.causal_mask(jnp.ones((2, 12), jnp.int32), 0)

  def plain(q, k, v):
    scores = jnp.einsum('BLHK,BMHK->BHLM', q, k) * 0.5
    probs = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.sum(jnp.einsum('BHLM,BMHK->BLHK', probs, v) ** 2)

  ours = lambda q, k, v: jnp.sum(attention.attend(q, k, v, mask, scale=0.5, dtype=dtype) ** 2)
  for found, expected in zip(
    *(jit(jax.grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (ours, plain)), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=tolerance * float(jnp.max(jnp.abs(expected))))


def test_a_norm_keeps_its_operands_alone():
  x, scale, bias = normal(4, 32).astype(jnp.bfloat16), normal(32), normal(32)
  rms = functools.partial(rms_norm, eps=1e-6)
  assert kept_bytes(rms, x, scale) == x.nbytes + scale.nbytes
  layer = functools.partial(layer_norm, eps=1e-6)
  assert kept_bytes(layer, x, scale, bias) <= x.nbytes + scale.nbytes + bias.nbytes


def test_memory_of_blocked_attention_grows_with_the_length_and_not_its_square():
  def temporary_bytes(length):
    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    total = lambda q, k, v, segments: jnp.sum(
      attention.attend_blocked(q, k, v, segments, window=0, block=64, scale=0.5) ** 2
    )
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x, segments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes(4096) < 2.5 * temporary_bytes(2048)


def test_rms_norm_is_the_formula():
  x, scale = normal(3, 8), normal(8)
  expected = np.asarray(x) / np.sqrt(np.mean(np.asarray(x) ** 2, -1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
    jit(functools.partial(rms_norm, eps=1e-6))(x, scale), expected * np.asarray(scale), atol=1e-6
  )


def test_layer_norm_is_the_formula():
  x, scale, bias = normal(3, 8), normal(8), normal(8)
  less = np.asarray(x) - np.mean(np.asarray(x), -1, keepdims=True)
  size = np.sqrt(np.mean(less**2, -1, keepdims=True) + 1e-6)
  expected = less / size * np.asarray(scale) + np.asarray(bias)
  found = jit(functools.partial(layer_norm, eps=1e-6))(x, scale, bias)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rotation_is_the_complex_product_and_depends_on_distance_alone():
  x, positions = normal(1, 5, 2, 8), jnp.arange(5)[None]
  rates = rope.frequencies(8, 100.0, None)
  rotate = jit(lambda x, positions: rope.rotate(x, rope.angles(positions, rates)))
  turned = np.asarray(rotate(x, positions))
  x64 = np.asarray(x, np.float64)
  z = (x64[..., :4] + 1j * x64[..., 4:]) * np.exp(1j * np.arange(5)[None, :, None, None] * rates)
  np.testing.assert_allclose(turned, np.concatenate([z.real, z.imag], -1), atol=1e-5)
  shifted = np.asarray(rotate(x, positions + 7))
  scores = lambda y: np.einsum('blhk,bmhk->bhlm', y, y)
  np.testing.assert_allclose(scores(turned), scores(shifted), atol=1e-4)


def test_llama3_scaling_leaves_fast_frequencies_and_stretches_slow_ones():
  scaling = rope.RopeScaling(kind='llama3', factor=8.0, original_length=8192)
  plain, scaled = rope.frequencies(64, 5e5, None), rope.frequencies(64, 5e5, scaling)
  turns = 8192 * plain / (2 * np.pi)
  np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
  np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8)
  between = (turns >= 1) & (turns <= 4)
  assert between.any()
  assert np.all((scaled[between] <= plain[between]) & (scaled[between] >= plain[between] / 8))


def test_dot_gradients_are_those_of_einsum():
  x, w = normal(2, 3, 4), normal(4, 5, 6)
  ours, theirs = (
    jit(jax.grad(lambda x, w, f=f: jnp.sum(f('BLD,DHK->BLHK', x, w) ** 2), argnums=(0, 1)))(x, w)
    for f in (dot, jnp.einsum)
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, theirs)


def test_bfloat16_dots_sum_in_float32_forward_and_backward():
  x, w = normal(4, 8), normal(8, 4)
  text = jax.jit(
    jax.grad(lambda x, w: jnp.sum(dot('LD,DF->LF', x, w, 'bfloat16') ** 2), argnums=(0, 1))
  )
  lines = [line for line in text.lower(x, w).as_text().split('\n') if 'dot_general' in line]
  assert len(lines) == 3
  assert all(
    'bf16' in line and '-> tensor<' in line and 'xf32>' in line.split('->')[1] for line in lines
  )


@pytest.mark.parametrize('chunk', [1, 4, 12, 5])
@pytest.mark.parametrize('z_loss', [0.0, 0.1])
def test_chunked_cross_entropy_is_the_whole_one_with_its_gradient(chunk, z_loss):
  hidden, head = normal(2, 12, 6), {'w': normal(6, 9)}
  targets = jnp.asarray(RNG.integers(0, 9, (2, 12)))
  weights = jnp.asarray(RNG.integers(0, 3, (2, 12)), jnp.float32)
  logits_of = lambda head, hidden: jnp.einsum('BLD,DV->BLV', hidden, head['w'])

  def ours(head, hidden):
    return cross_entropy(
      logits_of, head, hidden, targets, weights, chunk=chunk, z_loss=z_loss
    ).total

  def naive(head, hidden):
    logits = logits_of(head, hidden)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return jnp.sum(weights * (-logprobs + z_loss * jax.nn.logsumexp(logits, -1) ** 2))

  found, expected, plain = jit(
    lambda *at: (*(jax.value_and_grad(f, argnums=(0, 1))(*at) for f in (ours, naive)), ours(*at))
  )(head, hidden)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5), found, expected)
  np.testing.assert_allclose(plain, expected[0], rtol=1e-5)


def test_cross_entropy_gradient_is_its_finite_difference():
  with jax.enable_x64(True):
    hidden = jnp.asarray(RNG.normal(size=(1, 4, 3)))
    head = {'w': jnp.asarray(RNG.normal(size=(3, 5)))}
    targets = jnp.array([[0, 4, 2, 1]])
    weights = jnp.array([[1.0, 0.5, 0.0, 2.0]], jnp.float64)
    logits_of = lambda head, hidden: hidden @ head['w']
    loss = jax.jit(
      lambda head, hidden: (
        cross_entropy(logits_of, head, hidden, targets, weights, chunk=2, z_loss=0.1).total
      )
    )
    check_grads(loss, (head, hidden), order=1, modes=['rev'], atol=1e-3, rtol=1e-3, eps=1e-4)


def experts_and_choices(experts=4, top_k=2, width=6, mlp=5, batch=2, length=10):
  weights = moe.Experts(
    normal(experts, width, mlp), normal(experts, width, mlp), normal(experts, mlp, width)
  )
  x, scores = normal(batch, length, width), normal(batch, length, experts)
  gates = jax.nn.softmax(normal(batch, length, top_k))
  return weights, x, choose(scores, top_k), gates


choose = jit(moe.choose, static_argnums=1)


slots = jit(moe.slots, static_argnums=2)


def activation(gate, up):
  return jax.nn.silu(gate) * up


def naive_experts(weights, x, chosen, gates):
  weights, x, chosen, gates = jax.tree.map(np.asarray, (weights, x, chosen, gates))
  silu = lambda x: x / (1.0 + np.exp(-x))
  y = np.zeros(x.shape)
  for b, l, c in np.ndindex(*chosen.shape):
    e = int(chosen[b, l, c])
    h = silu(x[b, l] @ weights.gate_EDF[e]) * (x[b, l] @ weights.up_EDF[e])
    y[b, l] += gates[b, l, c] * (h @ weights.down_EFD[e])
  return y


def test_choose_is_top_k():
  scores = normal(3, 7, 8)
  np.testing.assert_array_equal(choose(scores, 3), jax.lax.top_k(scores, 3)[1])


@pytest.mark.parametrize('skew', [False, True])
def test_dropless_experts_are_the_naive_sum(skew):
  weights, x, chosen, gates = experts_and_choices()
  chosen = jnp.broadcast_to(jnp.array([3, 1]), chosen.shape) if skew else chosen
  run = functools.partial(moe.run_sorted, weights, activation, 'float32')
  found = jit(lambda *given: moe.run_dropless(*given, 4, run))(x, chosen, gates)
  np.testing.assert_allclose(found, naive_experts(weights, x, chosen, gates), atol=1e-4)


def test_all_dropless_forms_agree_with_gradients():
  weights, x, _, _ = experts_and_choices()
  rows, sizes = x.reshape(-1, 6), jnp.array([7, 0, 12, 1])
  for_gpus = lambda *given: grouped_dot(*given, True)
  forms = (
    functools.partial(moe._run_blocks, moe._dot_blocks, 8),
    functools.partial(moe._run_blocks, for_gpus, ROWS),
    moe._run_ragged,
  )
  total = lambda form, rows, weights: jnp.sum(
    form(activation, 'float32', rows, sizes, weights) ** 2
  )
  found = [
    jit(jax.value_and_grad(functools.partial(total, form), argnums=(0, 1)))(rows, weights)
    for form in forms
  ]
  same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  for other in found[1:]:
    jax.tree.map(same, other, found[0])


def test_capacity_large_enough_drops_nothing_and_a_small_one_drops_the_last():
  weights, x, chosen, gates = experts_and_choices()
  place = slots(chosen, jnp.ones(x.shape[:2]), 4)
  run = lambda capacity: jit(
    functools.partial(moe.run_capacity, activation=activation, capacity=capacity, dtype='float32')
  )(x, chosen, gates, place, weights)
  np.testing.assert_allclose(run(20), naive_experts(weights, x, chosen, gates), atol=1e-4)
  kept = np.asarray(gates) * (np.asarray(place) < 2)
  np.testing.assert_allclose(run(2), naive_experts(weights, x, chosen, kept), atol=1e-4)
  assert (np.asarray(place) >= 2).any()


def test_slots_count_up_in_token_order_and_skip_padding():
  chosen = jnp.array([[[0], [1], [0], [0], [1]]])
  weights = jnp.array([[1.0, 1.0, 0.0, 1.0, 1.0]])
  np.testing.assert_array_equal(slots(chosen, weights, 2)[0, :, 0], [0, 0, 5, 1, 1])
