"""The train step of a run, compiled for eight H100s that are not here: what it holds and what it says."""

import math

import jax
import pytest
from programs import DENSE, compiled

from lmjax.core import config, registry
from lmjax.core.errors import UserError
from lmjax.parallel import collectives
from lmjax.parallel.mesh import Mesh
from lmjax.plan.compile import compile_step
from lmjax.train.state import abstract_state

MESHES = {'posts_tiny': Mesh(fsdp=4, tensor=2), 'posts_moe_tiny': Mesh(fsdp=4, expert=2)}


@pytest.fixture(
  params=['small', *(pytest.param(experiment, marks=pytest.mark.slow) for experiment in MESHES)]
)
def made(request, tmp_path):
  """A task and its program: of an experiment, or the one that the tests of estimates have anyway."""
  if request.param == 'small':
    return compiled(DENSE, Mesh(data=2, fsdp=4))
  mesh = MESHES[request.param]
  axes = {f'mesh.{axis}': size for axis, size in mesh.sizes.items()}
  task = config.override(registry.find(request.param), axes)
  return task, compile_step(request.param, task, 'h100', tmp_path)


def test_a_step_holds_its_share_of_the_state_and_takes_it_over(made):
  task, program = made
  mesh = task.mesh
  model = task.model.with_vocab(task.text.vocab)
  state = abstract_state(model, task.optimizer.build(model.dims(), task.steps), mesh.build())
  held = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  state_bytes = sum(map(held, jax.tree.leaves(state)))
  rows = task.batch * task.length // (mesh.data * mesh.fsdp * mesh.expert)
  assert program.argument_bytes == pytest.approx(state_bytes + 5 * 4 * rows, rel=0.01)
  assert program.alias_bytes == pytest.approx(state_bytes, rel=0.01)
  assert program.peak_bytes > program.argument_bytes
  assert program.warnings == []
  assert program.mesh == mesh.sizes
  assert sorted(program.places) == list(range(8))
  assert '__gpu$xla.gpu.triton' in program.text
  kinds = {each.kind for each in collectives.read(program.text, mesh.sizes)}
  assert ('ragged-all-to-all' in kinds) == (mesh.expert > 1)  # rows alone, no whole buffers


def test_what_cannot_be_compiled_is_told_in_the_words_of_the_compiler(tmp_path):
  task = registry.find('posts_tiny')
  with pytest.raises(UserError, match="unknown accelerator 'h1000'"):
    compile_step('posts_tiny', task, 'h1000', tmp_path)
