"""How fast lmjax is beside its peers on the same work, and beside what the machine can do."""

from lmjax.bench.decode import Decode
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
