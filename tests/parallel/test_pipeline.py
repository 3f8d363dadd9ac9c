"""Pipelines of every shape give what the layers one after another give, and say what they cost."""

import dataclasses

import jax
import numpy as np
import pytest
from small_models import assert_close, gradients

from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.parallel import sharding
from lmjax.parallel.mesh import Mesh
from lmjax.parallel.pipeline import Pipeline, Plan

SIZES = {'vocab': 96, 'width': 32, 'layers': 4, 'heads': 4, 'kv_heads': 4, 'head_dim': 8, 'mlp': 32}
MODEL = Decoder(**SIZES, windows=(5,), moe=MoE(experts=4, top_k=1))


@pytest.fixture(scope='module')
def expected():
  return jax.device_get(gradients(MODEL))


@pytest.mark.parametrize(
  ('mesh', 'pipeline'),
  [
    (Mesh(pipe=2), Pipeline(microbatches=2, rounds=2)),
    (Mesh(pipe=4), Pipeline(microbatches=1)),
    (Mesh(pipe=2, data=2), Pipeline(microbatches=8, rounds=2)),
  ],
  ids=['rounds', 'one_microbatch', 'rounds_over_data'],
)
def test_a_pipeline_moves_arrays_and_no_numbers(expected, mesh, pipeline):
  model = dataclasses.replace(MODEL, pipeline=pipeline)
  assert_close(jax.device_get(gradients(model, mesh)), expected)


def test_a_plan_says_how_much_is_idle_and_alive():
  plan = Plan(stages=4, microbatches=8, rounds=1)
  assert (plan.ticks, plan.live_items) == (11, 11)
  assert plan.bubble_fraction == pytest.approx(3 / 11)
  assert Plan(stages=4, microbatches=8, rounds=2).bubble_fraction == pytest.approx(3 / 19)


@pytest.mark.parametrize(
  ('stages', 'rows', 'expected'), [(2, 16, 8), (3, 16, 8), (4, 6, 6), (2, 7, 7), (2, 1, 1)]
)
def test_microbatches_are_as_many_as_divide_up_to_four_a_stage(stages, rows, expected):
  assert Pipeline().plan(stages, rows).microbatches == expected


def test_each_stage_holds_its_own_layers_only():
  layout = sharding.shardings(Mesh(pipe=4).build(), MODEL.dims())
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
  for where, x in zip(
    jax.tree.leaves(layout['layers']), jax.tree.leaves(shapes['layers']), strict=True
  ):
    assert where.shard_shape(x.shape)[0] == 1
    assert np.prod(where.shard_shape(x.shape)) * 4 == x.size
