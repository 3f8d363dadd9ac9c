"""Steps compiled for 8, 16 and 64 H100s: what they hold and send follows from the sizes of the model."""

import math

import jax
import pytest
from programs import DENSE, EXPERTS, compiled

from lmjax.parallel.mesh import Mesh
from lmjax.plan import estimate, formula
from lmjax.plan.cards import CARDS
from lmjax.train.state import abstract_state

pytestmark = pytest.mark.slow

EXPERIMENTS = (DENSE, EXPERTS)
GIB = 2**30


@pytest.mark.parametrize('experiment', EXPERIMENTS)
@pytest.mark.parametrize('mesh', [Mesh(fsdp=8), Mesh(data=8, fsdp=8)])
def test_a_step_holds_its_share_and_takes_it_over_without_a_warning(experiment, mesh):
  task, program = compiled(experiment, mesh)
  model = estimate.model_of(task)
  state = abstract_state(
    model, task.optimizer.build(model.dims(), task.steps), Mesh(fsdp=8).build()
  )
  held = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  state_bytes = sum(map(held, jax.tree.leaves(state)))
  batch_bytes = 5 * 4 * task.batch * task.length // mesh.devices
  assert program.argument_bytes == pytest.approx(state_bytes + batch_bytes, rel=0.01)
  assert program.alias_bytes == pytest.approx(state_bytes, rel=0.01)
  assert program.warnings == []


def traffic(experiment, mesh):
  task, program = compiled(experiment, mesh)
  found = estimate.estimate(task, CARDS['h100'], program)
  return task, estimate.traffic_rows(found)


def sent(rows, *kinds, axis='fsdp'):
  return GIB * sum(row['gib'] for row in rows if row['kind'] in kinds and row['axis'] == axis)


@pytest.mark.parametrize('experiment', EXPERIMENTS)
def test_weights_are_gathered_and_gradients_scattered_by_the_formula(experiment):
  mesh = Mesh(fsdp=8)
  task, rows = traffic(experiment, mesh)
  sizes = formula.sizes_of(task, estimate.model_of(task))
  split = [(n, dims[0] == 'layers') for n, dims in sizes.parameters if 'embed' in dims]
  layers, ends = (sum(n for n, inside in split if inside == wanted) for wanted in (True, False))
  share = (mesh.fsdp - 1) / mesh.fsdp
  # Layers go in bf16, forward and backward; the tied table in f32, to look up and as head.
  tables = 2 if task.model.head == 'tied' else 1
  gathered = share * (2 * 2 * layers + 4 * tables * ends)
  # Gradients in f32, once; to a tied table they are two sums, added before they are scattered.
  scattered = share * 4 * (layers + ends)
  assert sent(rows, 'all-gather') == pytest.approx(gathered, rel=0.05)
  assert sent(rows, 'reduce-scatter') == pytest.approx(scattered, rel=0.05)


@pytest.mark.parametrize('experiment', EXPERIMENTS)
def test_only_gradients_grow_with_replicas(experiment):
  few, many = (traffic(experiment, Mesh(data=data, fsdp=8))[1] for data in (2, 8))
  for kinds in (('all-gather',), ('reduce-scatter',), ('all-to-all', 'ragged-all-to-all')):
    # The batch is the same: each replica has fewer rows, and what it sends of them shrinks.
    assert sent(many, *kinds) <= 1.01 * sent(few, *kinds)
