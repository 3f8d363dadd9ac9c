"""Forward KL against NumPy, and a student that comes to predict as its teacher does."""

import dataclasses

import jax
import numpy as np
import pytest
from small_models import random_params
from test_policy import MODEL, make_rollouts

from lmjax.objectives.distill import Distillation

TEACHER = dataclasses.replace(MODEL, width=24)
BATCH = make_rollouts([5, 8], [0.0, 0.0]).batch


def log_softmax(model, params, temperature):
  rows = BATCH.tokens_BL, BATCH.segments_BL, BATCH.positions_BL
  logits = np.asarray(model.logits(params, model.apply(params, *rows).hidden_BLD), np.float64)
  logits /= temperature
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_live_is_the_divergence_and_all_tokens_kept_are_the_same(temperature):
  objective = Distillation(temperature=temperature, chunk=4)
  student, teacher = random_params(MODEL), random_params(TEACHER)
  p, q = log_softmax(TEACHER, teacher, temperature), log_softmax(MODEL, student, temperature)
  kl = (BATCH.weights_BL * (np.exp(p) * (p - q)).sum(-1)).sum()
  loss, means = objective.live(MODEL, student, TEACHER, teacher, BATCH)
  np.testing.assert_allclose(means['kl'].total, kl, rtol=1e-4)
  np.testing.assert_allclose(loss.total, temperature**2 * kl, rtol=1e-4)
  taught = objective.keep(TEACHER, teacher, BATCH, 16)
  kept, _ = objective.cached(MODEL, student, taught)
  np.testing.assert_allclose(kept.total, loss.total, rtol=1e-3)


def test_kept_tokens_are_the_likeliest_and_the_rest_is_one_outcome():
  objective = Distillation(chunk=4)
  student, teacher = random_params(MODEL), random_params(TEACHER)
  p, q = log_softmax(TEACHER, teacher, 1.0), log_softmax(MODEL, student, 1.0)
  order = np.argsort(-p, axis=-1)
  taught = objective.keep(TEACHER, teacher, BATCH, 3)
  np.testing.assert_array_equal(taught.ids_BLK, order[..., :3])
  merge = lambda x: np.concatenate(
    [
      np.take_along_axis(np.exp(x), order[..., :3], -1),
      np.take_along_axis(np.exp(x), order[..., 3:], -1).sum(-1, keepdims=True),
    ],
    -1,
  )
  a, b = merge(p), merge(q)
  expected = (BATCH.weights_BL * (a * (np.log(a) - np.log(b))).sum(-1)).sum()
  found, _ = objective.cached(MODEL, student, taught)
  np.testing.assert_allclose(found.total, expected, rtol=1e-4)


def test_a_teacher_that_predicts_the_same_asks_for_nothing():
  params = random_params(MODEL)
  objective = Distillation(chunk=4)
  grads = jax.grad(lambda p: objective.live(MODEL, p, MODEL, params, BATCH)[0].total)(params)
  assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e-3


def test_a_student_comes_to_predict_as_its_teacher():
  student, teacher = random_params(MODEL), random_params(TEACHER)
  objective = Distillation(chunk=4)

  @jax.jit
  def step(params):
    loss = lambda p: objective.live(MODEL, p, TEACHER, teacher, BATCH)[0].total
    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.002 * g, params, grads), value

  values = []
  for _ in range(40):
    student, value = step(student)
    values.append(float(value))
  assert values[-1] < 0.5 * values[0]
