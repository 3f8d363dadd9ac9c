"""Balance, capacity and counts of the mixture of experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import assert_close, gradients

from lmjax.models.moe import MoE, MoeMlp
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import Mesh

WIDTH, MLP, LENGTH = 8, 12, 16


def layer(**settings):
  return MoeMlp(MoE(experts=4, **settings), WIDTH, MLP, 'swiglu', 'float32')


@functools.cache
def inputs():
  x_BLD = jax.random.normal(jax.random.key(0), (3, LENGTH, WIDTH))
  weights_BL = (jnp.arange(LENGTH)[None] < jnp.array([[16], [9], [5]])).astype(jnp.float32)
  return x_BLD, weights_BL


def variables(module):
  x_BLD, weights_BL = inputs()
  params = jax.tree.map(
    lambda box: box.value,
    jax.jit(module.init)(jax.random.key(1), x_BLD, weights_BL),
    is_leaf=lambda node: hasattr(node, 'names'),
  )
  down = jax.random.normal(jax.random.key(2), (4, MLP, WIDTH))
  return {'params': {**params['params'], 'down': down}}


def test_balance_loss_of_rows_adds_to_that_of_the_batch():
  module = layer(top_k=2)
  params, (x_BLD, weights_BL) = variables(module), inputs()
  run = jax.jit(lambda x, weights: module.apply(params, x, weights)[1])
  whole = run(x_BLD, weights_BL)
  rows = [run(x_BLD[i : i + 1], weights_BL[i : i + 1]) for i in range(3)]
  for name in ('balance_loss', 'router_z_loss'):
    np.testing.assert_allclose(whole[name].total, sum(row[name].total for row in rows), rtol=1e-5)
    assert whole[name].weight == 30


def test_padding_changes_neither_auxiliary_losses_nor_other_tokens():
  module = layer(top_k=2, capacity_factor=1.0)
  params, (x_BLD, weights_BL) = variables(module), inputs()
  run = jax.jit(lambda x: module.apply(params, x, weights_BL))
  noisy_BLD = jnp.where(weights_BL[:, :, None] > 0, x_BLD, 9.0)
  (y, aux), (other_y, other_aux) = run(x_BLD), run(noisy_BLD)
  real = np.asarray(weights_BL) > 0
  np.testing.assert_array_equal(np.asarray(y)[real], np.asarray(other_y)[real])
  for name in ('balance_loss', 'router_z_loss', 'dropped'):
    assert aux[name].total == other_aux[name].total


def test_router_bias_has_the_excess_load_as_its_gradient_and_changes_no_value():
  module = layer(top_k=1, balancing='bias')
  params, (x_BLD, weights_BL) = variables(module), inputs()

  def balance(bias_E):
    changed = {'params': {**params['params'], 'router_bias': bias_E}}
    return module.apply(changed, x_BLD, weights_BL)[1]['balance_loss'].total

  value, grad_E = jax.jit(jax.value_and_grad(balance))(jnp.zeros(4))
  logits = np.asarray(x_BLD) @ np.asarray(params['params']['router'])
  chosen_BL = logits.argmax(-1)
  load_E = np.array([((chosen_BL == e) * np.asarray(weights_BL)).sum() for e in range(4)])
  assert value == 0
  np.testing.assert_allclose(grad_E, load_E - 30 / 4, atol=1e-4)


def test_a_large_bias_moves_every_choice_but_not_the_gates():
  module = layer(top_k=1, balancing='bias', renormalise=False)
  params, (x_BLD, weights_BL) = variables(module), inputs()
  pushed = {'params': {**params['params'], 'router_bias': jnp.array([0.0, 0.0, 50.0, 0.0])}}
  y_BLD = jax.jit(module.apply)(pushed, x_BLD, weights_BL)[0]
  expert = jax.tree.map(
    lambda w: w[2], {name: params['params'][name] for name in ('gate', 'up', 'down')}
  )
  gate_BL = jax.nn.softmax(x_BLD @ params['params']['router'])[:, :, 2]
  h_BLF = jax.nn.silu(x_BLD @ expert['gate']) * (x_BLD @ expert['up'])
  np.testing.assert_allclose(y_BLD, gate_BL[:, :, None] * (h_BLF @ expert['down']), atol=2e-4)


def test_dropped_choices_are_counted():
  module = layer(top_k=2, capacity_factor=0.5)
  params, (x_BLD, weights_BL) = variables(module), inputs()
  dropped = jax.jit(module.apply)(params, x_BLD, weights_BL)[1]['dropped']
  logits = np.asarray(x_BLD) @ np.asarray(params['params']['router'])
  capacity, lost = MoE(experts=4, top_k=2, capacity_factor=0.5).capacity(LENGTH), 0
  for row, real in zip(logits, np.asarray(weights_BL), strict=True):
    taken = np.zeros(4, int)
    for scores in row[real > 0]:
      for expert in np.argsort(-scores)[:2]:
        lost += taken[expert] >= capacity
        taken[expert] += 1
  assert capacity == 4
  assert dropped.total == lost > 0
  assert dropped.weight == 60


def test_a_shared_expert_sees_every_token():
  module = layer(top_k=1, shared=2)
  shapes = variables(module)['params']
  assert shapes['shared']['up'].shape == (WIDTH, 2 * MLP)


@pytest.mark.slow
def test_a_mesh_drops_what_one_device_drops():
  sizes = {'vocab': 96, 'width': 32, 'layers': 2, 'heads': 4, 'kv_heads': 4, 'head_dim': 8}
  model = Decoder(**sizes, mlp=32, moe=MoE(experts=4, top_k=2, capacity_factor=1.0))
  expected = jax.device_get(gradients(model))
  assert expected[2]['dropped'].value > 0
  for axes in (('expert', 'tensor'), ('fsdp', 'context'), ('expert', 'pipe')):
    assert_close(jax.device_get(gradients(model, Mesh(**dict.fromkeys(axes, 2)))), expected)
