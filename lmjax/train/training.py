"""What every task that trains has: its settings, and one way to run that can be stopped anywhere."""

from pathlib import Path
from typing import ClassVar

import jax

from lmjax.checkpoint.store import Checkpoint
from lmjax.core.config import leaf, part, to_json
from lmjax.core.errors import UserError
from lmjax.core.metrics import Writers
from lmjax.core.task import Report, Task
from lmjax.optim.optimizer import AdamW, Optimizer
from lmjax.parallel import hosts
from lmjax.parallel.accelerator import Preset
from lmjax.parallel.hosts import Hosts
from lmjax.parallel.mesh import Mesh
from lmjax.train import results
from lmjax.train.guard import Guard
from lmjax.train.header import header
from lmjax.train.job import Job
from lmjax.train.profile import step_range
from lmjax.train.work import Work


class Training(Task):
  """Base of the tasks that train; a subclass says what, on what and for what by its `open`."""

  resumes: ClassVar[bool] = True

  steps: int = leaf(
    1000, 'Updates of the whole run; the schedule spans them.', low=1, high=2**31 - 1
  )
  stop_at: int | None = leaf(
    None, 'Stop cleanly after this step, schedule unchanged; none: run to the end.', low=1, run=True
  )
  batch: int = leaf(16, 'Rows a step, all devices together.', low=1)
  accumulate: int = leaf(1, 'Microbatches a step, one after another, to save memory.', low=1)
  seed: int = leaf(0, 'Of the first weights and the order of the data.', low=0, high=2**32 - 1)
  optimizer: Optimizer = part(AdamW(), 'How it moves.')
  mesh: Mesh = part(Mesh(), 'How work is split over devices.', run=True)
  checkpoint: Checkpoint = part(Checkpoint(), 'When the state is saved.', run=True)
  hosts: Hosts = part(Hosts(), 'The processes of the run.', run=True)
  writers: Writers = part(Writers(), 'Where metrics go.', run=True)
  evaluate_every: int = leaf(200, 'Steps between evaluations on held-out data.', low=1, run=True)
  audit: bool = leaf(
    False,
    'Write to audit/ hashes of all rows read and parameters saved, and the step after a stop.',
    run=True,
  )
  profile_steps: str = leaf(
    '', 'FIRST:LAST, steps to write a profiler trace of; empty = none.', run=True
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    ways = self.accumulate
    if self.batch % ways:
      raise UserError(
        f'batch={self.batch} is not a multiple of accumulate={ways}: the nearest are '
        f'{max(1, self.batch // ways) * ways} and {(self.batch // ways + 1) * ways}'
      )
    step_range(self.profile_steps)

  @property
  def last_step(self) -> int:
    """Where this start of the run stops."""
    return self.steps if self.stop_at is None else min(self.steps, self.stop_at)

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> Work:
    """Opens data and model for a start on the devices of `mesh`, of which `preset` says what they can."""
    raise NotImplementedError

  def closing_text(self, report: Report, workdir: Path) -> str:
    """What is shown of a finished run."""
    raise NotImplementedError

  def run(self, workdir: Path) -> Report:
    """Trains from the newest checkpoint, or anew, to `last_step`; exits with 75 after a signal."""
    if (finished := results.finished_report(self, workdir)) is not None:
      return finished
    with Guard() as guard, Job(self, workdir, guard) as job:
      state, first = job.start()
      hosts.say(header(job, first))
      batches = job.feed.batches(first, self.last_step)
      with jax.set_mesh(job.mesh):
        train_step = job.compile_step(state)
        state, step = job.loop(train_step, first).run(state, batches, first, self.last_step)
        job.audit_next(train_step, state, step)
      job.close()
      guard.release(f'saved at step {step:,}; run the same command to go on')
      return job.work.conclude(job, state, step)

  def connect(self) -> int:
    return self.hosts.connect(to_json(self))

  def leave(self, error: BaseException | None) -> None:
    hosts.leave(error)
