"""Generators of pictures."""

from lmjax.checkpoint.store import Checkpoint
from lmjax.core.registry import experiment
from lmjax.models.diffusion import Diffusion
from lmjax.optim.average import AveragedAdamW
from lmjax.train.images import TrainImages


@experiment
def emoji_flow() -> TrainImages:
  """A rectified flow that draws emoji of prompts, in five minutes on 2 cores with AVX-512."""
  return TrainImages(
    steps=2900,
    batch=256,
    model=Diffusion(dtype='bfloat16'),
    optimizer=AveragedAdamW(peak_lr=1e-3, b2=0.99, weight_decay=0.01),
    checkpoint=Checkpoint(every_steps=1000, keep_latest=1),
    evaluate_every=10_000,
  )
