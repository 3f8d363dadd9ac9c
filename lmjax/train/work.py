"""What one kind of training brings to a job: data, model, objective, evaluation and the conclusion.

A task that trains opens its `Work`; the job around it (loop, signals, checkpoints, mesh, writers) is the
same for all. Subclasses override what differs from training a model from scratch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import optax

from lmjax.core.task import Report
from lmjax.core.types import Params
from lmjax.data.loader import Batches
from lmjax.models.transformer import Decoder
from lmjax.parallel import hosts
from lmjax.parallel.accelerator import Preset
from lmjax.train.state import TrainState, make_state

if TYPE_CHECKING:
  from lmjax.train.job import Job


class Work:
  """The work of a job, open for one start of it.

  Attributes:
    model: a model's configuration, with `init`, `dims`, `shapes`, `dimension_sizes`,
      `flops_per_token`, and the leaves `dtype` and `layout`.
    trained: what the optimizer moves, with `init`, `dims` and `shapes`, hashable; the model, or what is
      put beside it.
    frozen: arrays on their shards that a step reads and does not change, or None. They are neither
      donated nor saved: whoever opens the work finds them again.
    source: the batches, of any pytree whose arrays have a first dimension for the rows.
    objective: `(model, assembled, batch, rng) -> (Mean, means)`.
    files: name -> content of what is put in every checkpoint beside the state.
    data: hashes of all that it trains on; a run whose hashes are others is not resumed.
    notes: lines to show last of all before the first step.
  """

  model: Any
  source: Batches
  objective: Any
  files: Mapping[str, bytes]
  data: list[str]
  frozen: Any = None
  notes: Sequence[str] = ()

  @property
  def trained(self) -> Any:
    return self.model

  @property
  def flops_per_token(self) -> float:
    """Of training, for each of the tokens that a step's metrics count."""
    return self.model.flops_per_token(self.source.length or 1)

  def begin(
    self, tx: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
  ) -> TrainState:
    """The state before the first step."""
    return dataclasses.replace(make_state(self.trained, tx, seed, mesh), frozen=self.frozen)

  def begun(self, state: TrainState, workdir: Path) -> None:
    """Notes what is to be known of the state before the first step."""

  def assemble(self, params: Params, frozen: Any) -> Any:
    """What the objective takes as its parameters; traced within the step."""
    del frozen
    return params

  def complete(self, state: TrainState, batch: Any) -> Any:
    """What a step trains on, of what the source gave, both on their devices: rollouts, say."""
    del state
    return batch

  def abstract(self, batch: Any) -> Any:
    """What `complete` returns of such a batch, all without numbers."""
    return batch

  def lines(self, job: 'Job') -> list[str]:
    """What the header says of the data and the model."""
    del job
    return []

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Metrics `held_out/...` of a state, now and then."""
    del state
    return {}

  def conclude(self, job: 'Job', state: TrainState, step: int) -> Report:
    """Evaluates, closes the job, and shows and returns the report; see `results.run_report`."""
    raise NotImplementedError


def suited(model: Decoder, preset: Preset) -> Decoder:
  """The model as these devices compute it; UserError where they cannot."""
  dtype = preset.compute_dtype(model.dtype)
  hosts.check_equal(
    'compute dtype', dtype, 'use one kind of machine, or pass --model.dtype=float32'
  )
  model = dataclasses.replace(model, dtype=dtype)
  preset.check(model.attention, model.product_dtype)
  return model
