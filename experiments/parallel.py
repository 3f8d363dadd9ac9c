"""Checks of how work is split over devices."""

from lmjax.core.registry import experiment
from lmjax.train.elastic import Elastic
from lmjax.train.equality import ParallelSmoke


@experiment
def parallel_smoke() -> ParallelSmoke:
  """Train over several meshes of 8 virtual devices and compare with one device: a minute."""
  return ParallelSmoke()


@experiment
def elastic_smoke() -> Elastic:
  """Stop and restart a run on 1, 4, 2, 3 and 1 processes and compare it with one never stopped."""
  return Elastic()
