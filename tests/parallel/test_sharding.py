"""A mesh moves arrays, never numbers: losses and gradients over it are those of one device."""

import functools
import math
import os
import tempfile
from typing import NamedTuple

import jax
import numpy as np
import pytest
from small_models import QUICK, assert_close, make_posts, pack, random_params

from lmjax.core import tree
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.ops import moe
from lmjax.parallel import sharding
from lmjax.parallel.mesh import Mesh
from lmjax.train.state import batch_sharding
from lmjax.train.step import make_gradients

SIZES = {'vocab': 96, 'width': 32, 'layers': 2, 'heads': 8, 'kv_heads': 4, 'head_dim': 8, 'mlp': 48}
MODELS = {
  'dense': Decoder(**SIZES),
  'moe': Decoder(**SIZES, head='untied', moe=MoE(experts=4, top_k=2, shared=1)),
}
MESHES = {
  'data': Mesh(data=8),
  'fsdp': Mesh(fsdp=8),
  'tensor': Mesh(tensor=4),
  'all': Mesh(data=2, fsdp=2, tensor=2),
}
# With it, experts are chosen by a clear margin; the last test sees to that.
SEED = 4
# Above so many numbers a parameter is not replicated: the largest norm has 64, the least matrix 128.
LARGE = 100
# What crosses devices: gradients over data; also weights over fsdp; also partial sums over tensor.
COLLECTIVES = {
  'data': {'all-reduce'},
  'fsdp': {'all-reduce', 'all-gather'},
  'tensor': {'all-reduce'},
  'all': {'all-reduce', 'all-gather'},
}

each_model = pytest.mark.parametrize('model', MODELS)
each_mesh = pytest.mark.parametrize('mesh', MESHES)


class Found(NamedTuple):
  """What a compiled gradient gave and how it was compiled."""

  grads: dict
  loss: float
  text: str
  warnings: str


def test_an_unknown_dimension_is_refused():
  with pytest.raises(ValueError, match=r"unknown dimension 'lenght': add it to the table"):
    sharding.spec(('batch', 'lenght'))


@pytest.mark.parametrize('dims', [('embed', 'batch'), ('heads', 'vocab'), ('mlp', 'mlp')])
def test_an_axis_used_twice_is_refused(dims):
  with pytest.raises(ValueError, match='both want axis'):
    sharding.spec(dims)


@each_model
@each_mesh
def test_loss_and_gradients_are_those_of_one_device(model, mesh):
  found, expected = gradients(model, mesh), gradients(model, None)
  assert found.loss == pytest.approx(expected.loss, rel=1e-6)
  assert_close(found.grads, expected.grads, 1e-5)


@each_model
@each_mesh
def test_the_compiled_step_has_the_collectives_of_its_mesh(model, mesh):
  text = gradients(model, mesh).text
  assert {name for name in ('all-reduce', 'all-gather') if f' {name}(' in text} >= COLLECTIVES[mesh]
  if mesh == 'data':
    assert ' all-gather(' not in text


@each_model
@each_mesh
def test_nothing_is_rematerialised_on_every_device(model, mesh):
  assert 'Involuntary full rematerialization' not in gradients(model, mesh).warnings


@each_model
@pytest.mark.parametrize('mesh', ['fsdp', 'tensor', 'all'])
def test_every_large_parameter_and_its_gradient_are_sharded(model, mesh):
  shapes = jax.eval_shape(MODELS[model].init, jax.random.key(0))
  layout = sharding.shardings(MESHES[mesh].build(), MODELS[model].dims())
  large = {path for path, x in tree.paths(shapes) if x.size > LARGE}
  whole = {path for path, where in tree.paths(layout) if where.is_fully_replicated}
  # Split by experts, of which meshes have no axis yet, and too small to matter.
  assert large & whole <= {'layers/mlp/router'}


def test_the_experts_of_these_tests_are_chosen_by_a_clear_margin(monkeypatch):
  """Else rounding on a mesh could choose others, and the gradients would be of another function."""
  margins = []

  def record(scores_BLE):
    sorted_BLE = np.sort(scores_BLE)
    margins.append(np.min(sorted_BLE[..., -2] - sorted_BLE[..., -3]))

  def watched(scores_BLE, k):
    jax.debug.callback(record, scores_BLE)
    return choose(scores_BLE, k)

  choose = moe.choose
  monkeypatch.setattr(moe, 'choose', watched)
  model, batch = MODELS['moe'], make_batch()
  apply = lambda params: (
    model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL).hidden_BLD
  )
  jax.block_until_ready(jax.jit(apply, compiler_options=QUICK)(random_params(model, SEED)))
  jax.effects_barrier()
  assert len(margins) == model.layers
  assert min(margins) > 1e-4


def make_batch():
  """Eight rows of 16, with two posts and padding in some."""
  posts = make_posts([16, 9, 16, 12, 16, 16, 7, 16, 5, 6], vocab=SIZES['vocab'])
  return pack([[posts[0]], posts[1:2] + posts[8:9], *([post] for post in posts[2:8])], 16)


@functools.cache
def gradients(name: str, mesh_name: str | None) -> Found:
  """Loss and gradients of model `name` over a mesh, or on one device without any."""
  model, params, batch = MODELS[name], random_params(MODELS[name], SEED), make_batch()
  rng = jax.random.key(0)
  step = make_gradients(Language(chunk=8), model, 1)
  if mesh_name is None:
    grads, loss, _ = jax.jit(step, compiler_options=QUICK)(params, batch, rng)
    return Found(jax.device_get(grads), loss.total.item(), '', '')
  mesh = MESHES[mesh_name].build()
  layout = sharding.shardings(mesh, model.dims())
  params = jax.device_put(params, layout)
  batch = jax.device_put(batch, batch_sharding(mesh))
  jitted = jax.jit(step, out_shardings=(layout, None, None), compiler_options=QUICK)
  with jax.set_mesh(mesh):
    compiled, warnings = with_warnings(lambda: jitted.lower(params, batch, rng).compile())
    grads, loss, _ = compiled(params, batch, rng)
  return Found(jax.device_get(grads), loss.total.item(), compiled.as_text(), warnings)


def with_warnings(compile_it):
  """(what `compile_it` returns, what XLA wrote to stderr meanwhile).

  Never kept in the cache of compiled programs: read back from there, one comes without warnings.
  """
  name = 'jax_persistent_cache_min_compile_time_secs'
  kept, least = os.dup(2), getattr(jax.config, name)
  jax.config.update(name, math.inf)
  with tempfile.TemporaryFile() as log:
    os.dup2(log.fileno(), 2)
    try:
      result = compile_it()
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      jax.config.update(name, least)
    log.seek(0)
    return result, log.read().decode(errors='replace')
