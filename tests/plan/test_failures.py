"""What failures cost: formulas against a simulation, published figures and values by hand."""

import math

import numpy as np
import pytest

from lmjax.core import config
from lmjax.core.errors import UserError
from lmjax.plan.failures import (
  FAILURES_PER_GPU_DAY,
  Failures,
  across_sites,
  best_interval,
  goodput,
  losses,
  mean_time_between,
)

MINUTE, HOUR = 60.0, 3600.0


def simulate(interval, save, restart, write, mean, failures=1_000_000):
  """Share of the wall-clock that is kept work, by playing out `failures` times between two failures.

  After a failure a run restarts, then works and saves in turn; a save counts once it is written.
  """
  between = np.random.default_rng(0).exponential(mean, failures)
  written = np.floor((between - restart - write) / (interval + save))
  return interval * np.maximum(written, 0).sum() / between.sum()


def test_failures_are_those_of_llama_3():
  assert mean_time_between(16_384, FAILURES_PER_GPU_DAY) == pytest.approx(54 * 86_400 / 419)
  assert round(FAILURES_PER_GPU_DAY, 7) == 4.736e-4


def test_half_the_gpus_fail_half_as_often():
  assert mean_time_between(512, 1e-3) == 2 * mean_time_between(1024, 1e-3) == 86_400 / 0.512


@pytest.mark.parametrize(('mean', 'best'), [(24 * HOUR, 117), (6 * HOUR, 57), (15 * MINUTE, 9.1)])
def test_the_best_interval_is_the_one_that_daly_printed(mean, best):
  found = best_interval(5 * MINUTE, mean) / MINUTE
  assert found == pytest.approx(best, abs=0.5 if best > 10 else 0.05)


def test_with_short_saves_the_best_interval_is_youngs():
  assert best_interval(1.0, 1e8) == pytest.approx(math.sqrt(2e8), rel=1e-3)


def test_saves_longer_than_failures_are_apart_leave_the_mean_time():
  assert best_interval(100.0, 40.0) == 40.0


@pytest.mark.parametrize(('save', 'mean'), [(2.0, 11_135.0), (60.0, 3_600.0), (300.0, 21_600.0)])
def test_no_other_interval_keeps_more(save, mean):
  best = best_interval(save, mean)
  kept = [goodput(best * factor, save, 300.0, mean) for factor in np.linspace(0.5, 2, 301)]
  assert goodput(best, save, 300.0, mean) == pytest.approx(max(kept), rel=1e-4)


@pytest.mark.parametrize(
  ('interval', 'save', 'restart', 'write', 'mean'),
  [
    (211.0, 2.0, 300.0, 3.0, 11_135.0),
    (1_800.0, 60.0, 600.0, 0.0, 3_600.0),
    (100.0, 5.0, 50.0, 80.0, 200.0),
  ],
)
def test_goodput_is_what_a_simulation_finds(interval, save, restart, write, mean):
  found = goodput(interval, save, restart + write, mean)
  assert found == pytest.approx(simulate(interval, save, restart, write, mean), rel=0.01)


def test_goodput_is_dalys_formula():
  spent = 3_600 * math.exp(600 / 3_600) * (math.exp(1_860 / 3_600) - 1)
  assert goodput(1_800.0, 60.0, 600.0, 3_600.0) == pytest.approx(1_800 / spent)


def test_a_run_that_fails_all_the_time_keeps_nothing():
  assert goodput(1e6, 10.0, 1e6, 1.0) == 0.0


def test_a_run_as_llama_3_keeps_over_nine_tenths():
  found = losses(Failures(), 16_384, 12 * 405e9)
  assert found.failures_a_day == pytest.approx(419 / 54)
  assert 0.9 < found.goodput < 0.97


def test_losses_by_hand():
  given = Failures(
    per_gpu_day=1e-3,
    restart_seconds=600,
    save_seconds=4,
    restore_seconds=100,
    storage_gb_per_second=50,
  )
  found = losses(given, 1_000, 1e12)
  assert found.mean_time_seconds == 86_400
  assert found.failures_a_day == 1
  assert found.write_seconds == 20
  assert found.interval_seconds == best_interval(4, 86_400) == pytest.approx(828.72, abs=0.01)
  assert found.goodput == goodput(found.interval_seconds, 4, 620, 86_400)
  assert found.write_bytes_per_second == pytest.approx(1e12 / found.interval_seconds)
  assert found.read_bytes_per_second == 1e10


def test_saves_are_no_closer_than_storage_can_write_them():
  found = losses(Failures(storage_gb_per_second=1), 10_000, 3e12)
  assert found.interval_seconds == found.write_seconds == 3_000


def test_storage_that_nobody_gave_grows_with_the_gpus():
  assert losses(Failures(), 16_384, 2e12).write_seconds == pytest.approx(1.0)
  assert losses(Failures(), 8_192, 2e12).write_seconds == pytest.approx(2.0)


def test_without_failures_all_work_is_kept():
  found = losses(Failures(per_gpu_day=0), 10_000, 1e12)
  assert (found.goodput, found.failures_a_day, found.write_bytes_per_second) == (1.0, 0.0, 0.0)
  assert math.isinf(found.mean_time_seconds)
  assert math.isinf(found.interval_seconds)


def test_gradients_between_two_sites_by_hand():
  given = Failures(sites=2, site_gbps=800, site_latency_seconds=0.01)
  found = across_sites(given, 10e9, 0.05)
  assert found.seconds == pytest.approx(0.1 + 0.02)
  assert found.exposed_seconds == pytest.approx(0.07)
  assert found.hidden_gbps == pytest.approx(80 / 0.03)
  assert found.share_left == 0.5


def test_the_link_that_hides_all_of_it_does():
  given = Failures(sites=2)
  needed = across_sites(given, 3e11, 1.0).hidden_gbps
  wider = config.override(given, {'site_gbps': needed})
  assert across_sites(given, 3e11, 1.0).exposed_seconds > 0.1
  assert across_sites(wider, 3e11, 1.0).exposed_seconds == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
  ('leaf', 'value', 'said'),
  [
    ('sites', 3, 'sites=3: expected an integer from 1 to 2'),
    ('per_gpu_day', -1, 'per_gpu_day=-1: expected a number of 0 or more'),
    ('save_seconds', 0, 'save_seconds=0: expected a number above 0'),
    ('storage_gb_per_second', 0, 'storage_gb_per_second=0: expected none or a number above 0'),
  ],
)
def test_what_cannot_be_is_refused(leaf, value, said):
  with pytest.raises(UserError, match=said):
    config.override(Failures(), {leaf: value})
