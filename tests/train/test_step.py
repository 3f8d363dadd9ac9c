"""The training step: sums that do not depend on how work is cut, and updates that are left out."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import optax
import pytest
from small import POSTS, small
from small_models import QUICK, assert_close, make_posts, pack, random_params

from lmjax.core import registry, tree
from lmjax.core.task import save_config
from lmjax.models.layers import Norm
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.optim.optimizer import AdamW, Muon
from lmjax.optim.schedule import WarmupStableDecay
from lmjax.parallel.mesh import Mesh
from lmjax.train.guard import Guard
from lmjax.train.job import Job
from lmjax.train.pretrain import open_data
from lmjax.train.state import (
  batch_sharding,
  init_state,
  make_state,
  state_shardings,
  with_moments_in,
)
from lmjax.train.step import make_step

SIZES = {'vocab': 96, 'width': 32, 'layers': 2, 'heads': 4, 'head_dim': 8, 'mlp': 64}
MODELS = {
  'dense': Decoder(**SIZES, kv_heads=2, qk_norm=Norm()),
  'moe': Decoder(**SIZES, kv_heads=2, moe=MoE(experts=4, top_k=2)),
}
# Rows of unequal weight, one of them empty.
ROWS = [[20, 9], [31], [5, 5, 5], [], [12, 12], [30], [3], [8, 20]]

ONE = Mesh().build()
# Its state holds the mean gradients of the step before.
KEEP_GRADIENTS = optax.trace(0.0)


def make_batch():
  posts = iter(make_posts(list(itertools.chain(*ROWS)), vocab=96))
  return pack([[next(posts) for _ in row] for row in ROWS], 32)


def compile_step(model, tx, mesh, batch, accumulate=1):
  """The step and the state to begin with, of random parameters, on `mesh`."""
  layout = state_shardings(model, tx, mesh)
  state = make_state(model, tx, 0, mesh)
  state = state.replace(params=jax.device_put(random_params(model), layout.params))
  step = make_step(Language(chunk=8), model, tx, accumulate)
  with jax.set_mesh(mesh):
    lowered = jax.jit(step, out_shardings=(layout, None)).lower(state, batch)
    return lowered.compile(compiler_options=QUICK), state


def gradients(model, mesh=ONE, accumulate=1):
  """Mean gradients and metrics of one step over `make_batch`."""
  batch = jax.device_put(make_batch(), batch_sharding(mesh))
  step, state = compile_step(model, KEEP_GRADIENTS, mesh, batch, accumulate)
  state, metrics = step(state, batch)
  return jax.device_get((state.opt_state.trace, metrics))


@pytest.fixture(scope='module', params=MODELS)
def whole(request):
  """A model, and what a step over the whole batch on one device gives."""
  model = MODELS[request.param]
  return model, gradients(model)


@pytest.mark.parametrize(
  ('mesh', 'accumulate'),
  [
    pytest.param(Mesh(), 4, id='accumulated', marks=pytest.mark.slow),
    pytest.param(Mesh(data=2, fsdp=2, tensor=2), 1, id='sharded', marks=pytest.mark.slow),
    pytest.param(Mesh(data=2, fsdp=2, tensor=2), 2, id='both'),
  ],
)
def test_how_the_work_is_cut_changes_no_gradient(whole, mesh, accumulate):
  model, expected = whole
  found = gradients(model, mesh.build(), accumulate)
  assert_close(found, expected)


@pytest.fixture(scope='module', params=[AdamW(), Muon()], ids=['adamw', 'muon'])
def stepped(request):
  """A batch, the step of an optimizer, and the state to begin with."""
  model, batch = MODELS['dense'], make_batch()
  return batch, *compile_step(model, request.param.build(model.dims(), 10), ONE, batch)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_non_finite_update_is_counted_and_left_out(stepped, bad):
  batch, step, start = stepped
  weights_BL = np.array(batch.weights_BL)
  weights_BL[0, 0] = bad
  skipped, metrics = step(start, batch.replace(weights_BL=weights_BL))
  assert int(metrics['skipped']) == int(skipped.skipped) == int(skipped.step) == 1
  for part in ('params', 'opt_state'):
    assert tree.sha256(getattr(skipped, part)) == tree.sha256(getattr(start, part))
  after, metrics = step(skipped, batch)
  expected, _ = step(start, batch)
  assert (int(after.step), int(after.skipped)) == (2, 1)
  assert np.isfinite(metrics['loss'])
  assert tree.sha256(after.params) == tree.sha256(expected.params) != tree.sha256(start.params)


def test_a_small_model_learns_32_posts_by_heart():
  texts = [json.loads(line)['text'] for line in POSTS.read_text().splitlines()[:40]]
  distinct = list(dict.fromkeys(text.encode()[:23] for text in texts if text.strip()))[:32]
  # Each post begins with a token of its own, so that nothing of it is left to chance.
  posts = [np.array([256 + i, *text]) for i, text in enumerate(distinct)]
  assert len(posts) == 32
  batch = pack([[post] for post in posts], 24)
  model = Decoder(vocab=288, width=64, layers=2, heads=4, kv_heads=4, head_dim=16, mlp=128)
  tx = Muon(weight_decay=0.0, schedule=WarmupStableDecay()).build(model.dims(), 100)
  state = make_state(model, tx, 0, ONE)
  step = jax.jit(make_step(Language(), model, tx, 1), donate_argnums=0)
  losses = []
  for _ in range(100):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[0] > 5
  assert losses[-1] < 0.02


def test_the_step_of_a_run_takes_over_the_memory_of_its_state(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'cache'))
  task = dataclasses.replace(small(), steps=1)
  save_config(task, 'small:small', tmp_path)
  with Guard() as guard, Job(task, tmp_path, guard) as job:
    state, _ = job.start()
    with jax.set_mesh(job.mesh):
      step = job.compile_step(state)
      after, _ = step(state, next(job.feed.batches(0, 1)))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize('mesh', [Mesh(), Mesh(fsdp=2, tensor=2)], ids=['one', 'mesh'])
def test_moments_and_block_inputs_in_the_hosts_memory_change_nothing(mesh):
  """XLA:CPU has a pinned_host memory of its own, so arrays really move."""
  model, mesh = MODELS['dense'], mesh.build()
  found = []
  for remat, memory in (('none', 'device'), ('offload', 'pinned_host')):
    changed = dataclasses.replace(model, remat=remat)
    tx = AdamW().build(changed.dims(), 10)
    batch = jax.device_put(make_batch(), batch_sharding(mesh))
    state = with_moments_in(memory, make_state(changed, tx, 0, mesh))
    layout = jax.tree.map(lambda x: x.sharding, state)
    with jax.set_mesh(mesh):
      step = jax.jit(make_step(Language(chunk=8), changed, tx, 1), out_shardings=(layout, None))
      lowered = step.lower(state, batch)
      state, metrics = lowered.compile(compiler_options=QUICK)(state, batch)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert kinds == {memory}
    assert ('pinned_host' in lowered.as_text()) == (memory == 'pinned_host')
    found.append(jax.device_get((state.params, metrics)))
  assert_close(found[1][0], found[0][0])
  assert found[1][1]['loss'] == pytest.approx(found[0][1]['loss'], rel=1e-6)


@pytest.mark.slow
def test_losses_of_fifty_steps_in_bf16_are_those_in_f32():
  """Each batch is another, so that a loss tells of the weights so far; at 3e-3 f32 itself has spikes."""
  task = registry.find('posts_rung')
  optimizer = dataclasses.replace(task.optimizer, peak_lr=1e-3)
  _, loader = open_data(task)
  batches = list(loader.iterate(0, 50))

  def losses(dtype):
    model = dataclasses.replace(task.model.with_vocab(task.text.vocab), dtype=dtype)
    tx = optimizer.build(model.dims(), 50)
    step = jax.jit(make_step(task.objective, model, tx, 1), donate_argnums=0)
    state = jax.jit(lambda: init_state(model, tx, 0))()
    found = []
    for batch in batches:
      state, metrics = step(state, batch)
      found.append(float(metrics['loss']))
    return np.asarray(found)

  f32, bf16 = losses('float32'), losses('bfloat16')
  assert f32[-1] < f32[0] - 1
  np.testing.assert_allclose(bf16, f32, rtol=1e-3)
