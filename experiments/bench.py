"""How fast lmjax is beside its peers on the same work, and beside what the machine can do."""

from lmjax.bench.checkpoint import BenchCheckpoint
from lmjax.bench.data import BenchData
from lmjax.bench.decode import Decode
from lmjax.bench.growth import BenchGrowth
from lmjax.bench.guard import BenchGuard
from lmjax.bench.search import BenchSearch
from lmjax.bench.serve import BenchServe
from lmjax.bench.time_to_loss import TimeToLoss
from lmjax.bench.tour import TourPage
from lmjax.bench.train import BenchTrain
from lmjax.core.registry import experiment


@experiment
def bench_train() -> BenchTrain:
  """Time a training step beside torch's, eager and compiled: half an hour."""
  return BenchTrain()


@experiment
def bench_decode() -> Decode:
  """Measure decoding and reading of prompts beside transformers' generate: under 10 minutes."""
  return Decode()


@experiment
def bench_time_to_loss() -> TimeToLoss:
  """Time training to the loss at which a nanoGPT recipe in torch ends: half an hour."""
  return TimeToLoss()


@experiment
def bench_data() -> BenchData:
  """Time preparing and reading posts beside the training step: half an hour."""
  return BenchData()


@experiment
def bench_checkpoint() -> BenchCheckpoint:
  """Time saving and restoring a state of 1.3 GB: some minutes."""
  return BenchCheckpoint()


@experiment
def bench_growth() -> BenchGrowth:
  """Measure how a training step grows with parameters, length, devices and layers: some minutes."""
  return BenchGrowth()


@experiment
def bench_guard() -> BenchGuard:
  """Compare ratios of our work to reference computations with those held: under a minute."""
  return BenchGuard()


@experiment
def bench_serve() -> BenchServe:
  """Measure serving at 1 to 64 clients beside others behind the same API: a quarter of an hour."""
  return BenchServe()


@experiment
def bench_search() -> BenchSearch:
  """Measure encoding beside sentence-transformers, and the search of a million vectors: half an hour."""
  return BenchSearch()


@experiment
def tour_page() -> TourPage:
  """Make one page of the reports of runs: --runs=FOLDER,FOLDER."""
  return TourPage()
