"""Every training experiment, traced at its full size under its stated mesh: none can rot."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from lmjax.core import registry, tree
from lmjax.core.types import Batch
from lmjax.parallel import sharding
from lmjax.train.pretrain import Pretrain
from lmjax.train.state import init_state, state_dims
from lmjax.train.step import make_step

REPLICATED_BYTES = 64 * 10**6
PARAMETERS = {
  'posts_dense_1b': 1.5e9,
  'posts_dense_8b': 8.03e9,
  'posts_dense_70b': 70.6e9,
  'posts_moe_314b': 314.9e9,
}


def tasks():
  found = {name: registry.find(name) for name in registry.entries()}
  return {name: task for name, task in found.items() if isinstance(task, Pretrain)}


@pytest.fixture(params=tasks())
def named_task(request):
  return request.param, tasks()[request.param]


def test_init_and_step_trace_at_full_size_under_the_stated_mesh(named_task):
  name, task = named_task
  model = task.model.with_vocab(task.text.vocab)
  tx = task.optimizer.build(model.dims(), task.steps)
  state = jax.eval_shape(lambda: init_state(model, tx, task.seed))
  mesh = task.mesh.abstract()
  layout = jax.tree.map(
    lambda dims: NamedSharding(mesh, sharding.spec(dims)),
    state_dims(model, tx),
    is_leaf=sharding.is_dims,
  )
  jax.tree.map(lambda x, where: where.shard_shape(x.shape), state, layout)  # raises where uneven
  whole = {
    path: math.prod(x.shape) * x.dtype.itemsize
    for (path, x), (_, where) in zip(tree.paths(state), tree.paths(layout), strict=True)
    if where.is_fully_replicated and mesh.size > 1
  }
  assert not {path: size for path, size in whole.items() if size > REPLICATED_BYTES}
  i32, f32 = (jax.ShapeDtypeStruct((task.batch, task.length), d) for d in (jnp.int32, jnp.float32))
  batch = Batch(tokens_BL=i32, targets_BL=i32, weights_BL=f32, segments_BL=i32, positions_BL=i32)
  step = make_step(task.objective, model, tx, task.accumulate)
  with jax.sharding.use_abstract_mesh(mesh):
    after, metrics = jax.eval_shape(step, state, batch)
  assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
  assert metrics['loss'].shape == ()
  if name in PARAMETERS:
    assert tree.count(state.params) == pytest.approx(PARAMETERS[name], rel=0.02)


def test_flops_count_the_weights_that_a_token_meets(named_task):
  _, task = named_task
  model = task.model.with_vocab(task.text.vocab)
  met, more = model, 0
  if model.moe is not None:  # those a token goes through, and the router's columns for the others
    more = model.layers * model.width * (model.moe.experts - 2)
    moe = dataclasses.replace(model.moe, experts=2, top_k=2)
    met = dataclasses.replace(model, moe=moe)
  every_matrix = more + sum(
    math.prod(x.shape)
    for path, x in tree.paths(jax.eval_shape(met.init, jax.random.key(0)))
    if not path.endswith(('scale', 'bias')) and (path != 'embed' or model.head == 'tied')
  )
  attention = 12 * model.layers * model.heads * model.head_dim * task.length
  assert model.flops_per_token(task.length) == pytest.approx(6 * every_matrix + attention)
