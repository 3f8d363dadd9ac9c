"""The task that trains a small model to predict what a larger one predicts."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from lmjax.core import tree
from lmjax.core.assets import cache_folder
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report
from lmjax.core.types import Batch, Mean, Params
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.interop.load import CHECKPOINT, Loaded, load
from lmjax.objectives.distill import Distillation, Taught
from lmjax.parallel.accelerator import Preset
from lmjax.train.arithmetic import ArithmeticBase
from lmjax.train.pretrain import Pretraining
from lmjax.train.state import TrainState
from lmjax.train.work import suited


class Distill(ArithmeticBase):
  """Pretrains a student on a teacher's probabilities, with the teacher's tokenizer."""

  teacher: str = leaf('arithmetic_base', CHECKPOINT)
  kept: int | None = leaf(
    None, 'Likeliest tokens of the teacher, kept for each place; none: all, in the step.', low=1
  )
  distillation: Distillation = part(Distillation(), 'What the student is trained for.')

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'Distilling':
    if self.mesh.devices != 1:
      raise UserError('students are trained on one device so far: leave --mesh.* at 1')
    teacher = load(self.teacher, mesh)
    path = cache_folder() / 'teachers' / f'{teacher.tokenizer.sha256}.json'
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      teacher.tokenizer.save(path)
    task = dataclasses.replace(self.with_corpus(), text=TokenizerConfig(tokenizer=str(path)))
    return Distilling(task, teacher, mesh, preset)


class Distilling(Pretraining):
  """Posts, a student, and the teacher's predictions of each batch."""

  task: Distill

  def __init__(
    self, task: Distill, teacher: Loaded, mesh: jax.sharding.Mesh, preset: Preset
  ) -> None:
    super().__init__(task, mesh, preset)
    self.teacher = suited(teacher.model, preset)
    self.frozen = teacher.params if task.kept is None else None
    sha256 = tree.sha256(tree.stack(teacher.params))
    self.data = [*self.data, sha256]
    self.objective = self._objective
    self._teacher_params = teacher.params
    said = (sha256, *self.data, task.seed, task.batch, task.length, task.packing, task.kept)
    name = hashlib.sha256(repr((*said, task.distillation.temperature)).encode()).hexdigest()
    self._kept = cache_folder() / 'teachers' / name[:16]
    keep = functools.partial(task.distillation.keep, self.teacher, k=task.kept or 1)
    self._keep = jax.jit(lambda params, batch: keep(params, batch))

  def assemble(self, params: Params, frozen: Any) -> Any:
    return {'student': params, 'teacher': frozen}

  def _objective(
    self, model: Any, params: Any, batch: Any, rng: jax.Array
  ) -> tuple[Mean, dict[str, Mean]]:
    del rng
    distillation, student = self.task.distillation, params['student']
    if self.task.kept is None:
      return distillation.live(model, student, self.teacher, params['teacher'], batch)
    return distillation.cached(model, student, batch)

  def complete(self, state: TrainState, batch: Batch) -> Any:
    """The batch, with what the teacher's likeliest tokens are where they are kept on disk."""
    if self.task.kept is None:
      return batch
    path = self._kept / f'{int(state.step)}.npz'
    if not path.exists():
      taught = self._keep(self._teacher_params, batch)
      path.parent.mkdir(parents=True, exist_ok=True)
      draft = path.with_suffix('.draft.npz')
      np.savez(draft, ids=taught.ids_BLK, logprobs=np.asarray(taught.logprobs_BLK, np.float16))
      draft.replace(path)
    with np.load(path) as kept:
      ids, logprobs = kept['ids'], kept['logprobs'].astype(np.float32)
    fields: Any = {'ids_BLK': ids, 'logprobs_BLK': logprobs}
    return Taught(batch=batch, **fields)

  def abstract(self, batch: Batch) -> Any:
    if self.task.kept is None:
      return batch
    shape = (*batch.tokens_BL.shape, self.task.kept)
    fields: Any = {
      'ids_BLK': jax.ShapeDtypeStruct(shape, np.int32),
      'logprobs_BLK': jax.ShapeDtypeStruct(shape, np.float32),
    }
    return Taught(batch=batch, **fields)

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    posts = list(self.held_out())[: self.task.final_posts]
    bits = type(self.evaluator)(
      self.teacher, self.tokenizer, job.mesh, batch=self.task.batch, length=self.task.length
    ).bits_per_byte(self._teacher_params, posts)
    report = super().conclude(job, state, step)
    return report | {'teacher_bits_per_byte': bits} if report else report
