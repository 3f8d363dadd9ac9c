"""What a long run on many GPUs loses to failures, and what saving and two data centres ask for.

Pure arithmetic on rates and sizes. Times are seconds, sizes bytes, rates a second unless named.
"""

import math
from typing import NamedTuple

from lmjax.core.config import Config, leaf

DAY = 86_400.0
# 419 unexpected stops in 54 days on 16,384 H100s: Llama 3, arXiv:2407.21783, section 3.3.4.
FAILURES_PER_GPU_DAY = 419 / 54 / 16_384
# 2 TB/s sustained by the storage of the same run: section 3.3.1.
STORAGE_GB_PER_SECOND_GPU = 2_000 / 16_384


class Failures(Config):
  """What goes wrong, and how fast a run is back."""

  per_gpu_day: float = leaf(
    FAILURES_PER_GPU_DAY,
    'Unexpected stops for each GPU and day (419 in 54 days on 16,384: arXiv:2407.21783).',
    low=0,
  )
  # Over 90% effective time (arXiv:2407.21783) leaves at most 1,113 for each stop, lost work included.
  restart_seconds: float = leaf(
    300.0,
    'Seconds from a failure until the run computes again: a judgement.',
    low=0,
  )
  # The rest of a save is asynchronous.
  save_seconds: float = leaf(
    2.0,
    'Seconds that a save keeps a step from starting, for the copy to the host: a judgement.',
    above=0,
  )
  restore_seconds: float = leaf(
    60.0, 'Seconds in which a checkpoint is to be read back, for the bandwidth it takes.', above=0
  )
  # 2 TB/s for 16,384 GPUs: arXiv:2407.21783.
  storage_gb_per_second: float | None = leaf(
    None,
    'GB/s that storage takes from all hosts together; none: 0.12 for each GPU.',
    above=0,
  )
  sites: int = leaf(1, 'Data centres; over two, mesh.data is split between them.', low=1, high=2)
  site_gbps: float = leaf(
    1600.0,
    'Link between them in all, in Gb/s and direction: a judgement; two wavelengths of OIF 800ZR.',
    above=0,
  )
  site_latency_seconds: float = leaf(
    0.01, 'Seconds over that link, one way: light in 2,000 km of fibre.', low=0
  )


class Losses(NamedTuple):
  """What failures come to.

  Attributes:
    mean_time_seconds: between failures of the whole run; infinite without any.
    failures_a_day: expected.
    interval_seconds: of work between saves: the best, or what writing one takes.
    write_seconds: that writing a checkpoint takes after it has stopped blocking.
    goodput: share of the wall-clock that is kept work.
    write_bytes_per_second: that storage must take to write a checkpoint within an interval.
    read_bytes_per_second: and give to restore one in the time asked.
  """

  mean_time_seconds: float
  failures_a_day: float
  interval_seconds: float
  write_seconds: float
  goodput: float
  write_bytes_per_second: float
  read_bytes_per_second: float


def losses(given: Failures, gpus: int, checkpoint_bytes: float) -> Losses:
  """What a run on `gpus` loses at the best interval between saves.

  A checkpoint counts only when all of it is written: a failure before that falls back on the one
  before, so the time to write it is lost with every failure, as more time to restart is.
  """
  mean = mean_time_between(gpus, given.per_gpu_day)
  storage = given.storage_gb_per_second or STORAGE_GB_PER_SECOND_GPU * gpus
  write = checkpoint_bytes / (storage * 1e9)
  interval = max(best_interval(given.save_seconds, mean), write)
  return Losses(
    mean_time_seconds=mean,
    failures_a_day=DAY / mean,
    interval_seconds=interval,
    write_seconds=write,
    goodput=goodput(interval, given.save_seconds, given.restart_seconds + write, mean),
    write_bytes_per_second=checkpoint_bytes / interval,
    read_bytes_per_second=checkpoint_bytes / given.restore_seconds,
  )


def mean_time_between(gpus: int, per_gpu_day: float) -> float:
  """Seconds from one failure of any of `gpus` to the next; infinite without any."""
  return DAY / (gpus * per_gpu_day) if per_gpu_day else math.inf


def best_interval(save_seconds: float, mean_time_seconds: float) -> float:
  """Seconds of work between saves that lose least.

  With S seconds that a save blocks and M between failures

    sqrt(2 S M) (1 + sqrt(S / 2M) / 3 + S / 2M / 9) - S   where S < 2 M, else M

  of Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps", eq.
  37; its first factor is Young 1974, "A first order approximation to the optimum checkpoint
  interval".
  """
  if math.isinf(mean_time_seconds):
    return math.inf
  if save_seconds >= 2 * mean_time_seconds:
    return mean_time_seconds
  ratio = save_seconds / (2 * mean_time_seconds)
  first = math.sqrt(2 * save_seconds * mean_time_seconds)
  return first * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds


def goodput(
  interval_seconds: float, save_seconds: float, restart_seconds: float, mean_time_seconds: float
) -> float:
  """Share of the wall-clock that ends in kept work, failures coming at random (Daly 2006, eq. 20).

  A piece of work and its save take M e^(R/M) (e^((T + S)/M) - 1) seconds on average, for an interval
  T, a save that blocks S, a restart R and M between failures: those lost and begun again included,
  also during a restart.
  """
  if math.isinf(mean_time_seconds):
    return 1.0
  # The same with exponents below 0, which cannot overflow.
  piece = (interval_seconds + save_seconds) / mean_time_seconds
  left = math.exp(-restart_seconds / mean_time_seconds - piece) / -math.expm1(-piece)
  return interval_seconds / mean_time_seconds * left


class Sites(NamedTuple):
  """What splitting a run over two data centres asks of the link between them.

  Attributes:
    gradient_bytes: that cross it in a step and direction.
    seconds: that they take.
    exposed_seconds: of these, what the backward pass does not hide.
    hidden_gbps: the link that would hide all of it, in Gb/s; None where its latency alone is longer.
    share_left: of the GPUs, when one site is lost.
  """

  gradient_bytes: float
  seconds: float
  exposed_seconds: float
  hidden_gbps: float | None
  share_left: float


def across_sites(given: Failures, gradient_bytes: float, backward_seconds: float) -> Sites:
  """What adding up gradients between two sites takes.

  Each site adds up its own; then each sends half of the sums and gets the others' halves, and sends
  those back added: as many bytes as there are gradients, in each direction.

  Args:
    gradient_bytes: of all gradients of the model, once.
    backward_seconds: of a step, in which they may travel.
  """
  rate = given.site_gbps * 1e9 / 8
  seconds = gradient_bytes / rate + 2 * given.site_latency_seconds
  window = backward_seconds - 2 * given.site_latency_seconds
  return Sites(
    gradient_bytes=gradient_bytes,
    seconds=seconds,
    exposed_seconds=max(0.0, seconds - backward_seconds),
    hidden_gbps=gradient_bytes * 8 / window / 1e9 if window > 0 else None,
    share_left=0.5,
  )
