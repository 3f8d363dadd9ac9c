import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.optim.schedule import Cosine, WarmupStableDecay


def course(part, steps):
  schedule = part.build(steps)
  return np.array([float(schedule(step)) for step in range(steps + 1)])


@pytest.mark.parametrize(
  'part',
  [
    Cosine(warmup_fraction=0.1, final_fraction=0.0),
    WarmupStableDecay(warmup_fraction=0.1, decay_fraction=0.5, final_fraction=0.0),
  ],
)
def test_warmup_peak_and_end_are_where_they_should_be(part):
  scale = course(part, 100)
  np.testing.assert_allclose(scale[:10], np.arange(1, 11) / 11, rtol=1e-6)
  assert scale[10] == scale.max() == 1
  assert scale[100] == pytest.approx(0, abs=1e-7)
  assert (scale[:100] > 0).all()
  assert (np.diff(scale[10:]) <= 1e-7).all()


@pytest.mark.parametrize('part', [Cosine, WarmupStableDecay])
def test_without_warmup_the_first_step_is_at_the_peak(part):
  scale = course(part(warmup_fraction=0.0, final_fraction=0.25), 8)
  assert scale[0] == 1
  assert scale[8] == pytest.approx(0.25)


def test_cosine_is_halfway_down_in_the_middle():
  assert course(Cosine(warmup_fraction=0.0, final_fraction=0.2), 10)[5] == pytest.approx(0.6)


def test_plateau_lasts_until_the_share_of_the_fall_begins():
  scale = course(WarmupStableDecay(warmup_fraction=0.0, decay_fraction=0.7, final_fraction=0), 10)
  np.testing.assert_allclose(scale, [1, 1, 1, 1, *np.arange(6, -1, -1) / 7], atol=1e-6)


@pytest.mark.parametrize(
  'part', [Cosine(), WarmupStableDecay(warmup_fraction=0.3, decay_fraction=0.7)]
)
@pytest.mark.parametrize('steps', [1, 2, 3, 7])
def test_a_run_of_any_length_has_a_course(part, steps):
  scale = course(part, steps)
  assert ((scale[:steps] > 0) & (scale[:steps] <= 1)).all()


def test_warmup_that_overlaps_the_fall_is_refused():
  with pytest.raises(UserError, match='overlap: pass shares .* warmup_fraction=0.3'):
    WarmupStableDecay(warmup_fraction=0.4, decay_fraction=0.7)
