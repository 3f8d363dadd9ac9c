"""What is split and what is not: the table of dimensions, parameters, and the warnings of XLA."""

import math
import os
import tempfile

import jax
import pytest
from small_models import QUICK, random_params

from lmjax.core import tree
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.parallel import sharding
from lmjax.parallel.mesh import Mesh
from lmjax.train.equality import make_batch
from lmjax.train.state import batch_sharding
from lmjax.train.step import make_gradients

SIZES = {'vocab': 96, 'width': 32, 'layers': 2, 'heads': 8, 'kv_heads': 4, 'head_dim': 8, 'mlp': 48}
MODELS = {
  'dense': Decoder(**SIZES),
  'moe': Decoder(**SIZES, head='untied', moe=MoE(experts=4, top_k=2, shared=1)),
}
MESHES = {
  'fsdp': Mesh(fsdp=8),
  'tensor': Mesh(tensor=4),
  'all': Mesh(data=2, fsdp=2, tensor=2),
  'experts': Mesh(fsdp=2, expert=2, tensor=2),
  'stages': Mesh(fsdp=2, context=2, pipe=2),
}
# Above so many numbers a parameter is not replicated: the largest norm has 64, the least matrix 128.
LARGE = 100
each_model = pytest.mark.parametrize('model', MODELS)


def test_an_unknown_dimension_is_refused():
  with pytest.raises(ValueError, match=r"unknown dimension 'lenght': add it to the table"):
    sharding.spec(('batch', 'lenght'))


@pytest.mark.parametrize('dims', [('embed', 'batch'), ('heads', 'vocab'), ('mlp', 'mlp')])
def test_an_axis_used_twice_is_refused(dims):
  with pytest.raises(ValueError, match='both want axis'):
    sharding.spec(dims)


@pytest.mark.parametrize(
  ('model', 'mesh'), [('dense', 'all'), ('moe', 'experts'), ('dense', 'stages')]
)
def test_nothing_is_rematerialised_on_every_device(model, mesh):
  assert 'Involuntary full rematerialization' not in compile_gradients(model, mesh)


@each_model
@pytest.mark.parametrize('mesh', ['fsdp', 'tensor', 'all'])
def test_every_large_parameter_and_its_gradient_are_sharded(model, mesh):
  shapes = jax.eval_shape(MODELS[model].init, jax.random.key(0))
  layout = sharding.shardings(MESHES[mesh].build(), MODELS[model].dims())
  large = {path for path, x in tree.paths(shapes) if x.size > LARGE}
  whole = {path for path, where in tree.paths(layout) if where.is_fully_replicated}
  # Too small to matter.
  assert large & whole <= {'layers/mlp/router'}


def compile_gradients(name: str, mesh_name: str) -> str:
  """What XLA says as it compiles the gradients of model `name` over a mesh."""
  model, mesh = MODELS[name], MESHES[mesh_name].build()
  layout = sharding.shardings(mesh, model.dims())
  params = jax.device_put(random_params(model), layout)
  batch = jax.device_put(make_batch(True), batch_sharding(mesh))
  jitted = jax.jit(
    make_gradients(Language(chunk=8), model, 1),
    out_shardings=(layout, None, None),
    compiler_options=QUICK,
  )
  with jax.set_mesh(mesh):
    return with_warnings(lambda: jitted.lower(params, batch, jax.random.key(0)).compile())[1]


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
