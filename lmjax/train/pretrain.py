"""The main job: from posts to a trained language model, in one task that can be stopped anywhere."""

from pathlib import Path
from typing import ClassVar, Literal

import jax

from lmjax.checkpoint.store import Checkpoint
from lmjax.core.config import leaf, part, to_json
from lmjax.core.errors import UserError
from lmjax.core.metrics import Writers
from lmjax.core.task import Report, Task
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.generate.sampler import Sampler
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.optim.optimizer import AdamW, Optimizer
from lmjax.parallel import hosts
from lmjax.parallel.hosts import Hosts
from lmjax.parallel.mesh import Mesh
from lmjax.parallel.sharding import check_mesh
from lmjax.train import results
from lmjax.train.guard import Guard
from lmjax.train.header import header
from lmjax.train.job import Job
from lmjax.train.profile import step_range


class Pretrain(Task):
  """Trains a decoder on posts, evaluates it on held-out ones and generates a few."""

  resumes: ClassVar[bool] = True

  steps: int = leaf(
    1000, 'Updates of the whole run; the schedule spans them.', low=1, high=2**31 - 1
  )
  stop_at: int | None = leaf(
    None, 'Stop cleanly after this step, schedule unchanged; none: run to the end.', low=1, run=True
  )
  batch: int = leaf(16, 'Rows a step, all devices together.', low=1)
  length: int = leaf(128, 'Positions of a row, in tokens.', low=2)
  accumulate: int = leaf(1, 'Microbatches a step, one after another, to save memory.', low=1)
  seed: int = leaf(0, 'Of the first weights and the order of the data.', low=0, high=2**32 - 1)
  source: Posts = part(Posts(), 'What to train on.', inline=True)
  mixture: str = leaf('', 'A JSON file of sources and weights, in place of --posts.')
  split: Split = part(Split(), 'What is held out.')
  text: TokenizerConfig = part(TokenizerConfig(), 'How text becomes tokens.', inline=True)
  packing: Literal['best_fit', 'split'] = leaf(
    'best_fit', 'Whole posts in the fullest row with room, or one after another and cut.'
  )
  model: Decoder = part(Decoder(), 'What is trained.')
  objective: Language = part(Language(), 'What it is trained for.')
  optimizer: Optimizer = part(AdamW(), 'How it moves.')
  mesh: Mesh = part(Mesh(), 'How work is split over devices.', run=True)
  checkpoint: Checkpoint = part(Checkpoint(), 'When the state is saved.', run=True)
  hosts: Hosts = part(Hosts(), 'The processes of the run.', run=True)
  writers: Writers = part(Writers(), 'Where metrics go.', run=True)
  evaluate_every: int = leaf(200, 'Steps between evaluations on held-out posts.', low=1, run=True)
  evaluate_posts: int = leaf(
    500, 'Held-out posts of such an evaluation; the last uses all.', low=1, run=True
  )
  final_posts: int = leaf(20_000, 'Held-out posts of the last evaluation at most.', low=1, run=True)
  samples: int = leaf(5, 'Posts to generate at the end.', low=0, run=True)
  sampler: Sampler = part(Sampler(), 'How their tokens are drawn.', run=True)
  audit: bool = leaf(
    False, 'Write hashes of all rows read and parameters saved to audit/.', run=True
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
    if (
      self.text.tokenizer
      and self.model.vocab is None
      and self.text.vocab != TokenizerConfig().vocab
    ):
      raise UserError(
        '--tokenizer and --vocab contradict: a file has its own vocabulary, drop --vocab'
      )
    model = self.model if self.text.tokenizer else self.model.with_vocab(self.text.vocab)
    rows = self.batch // self.accumulate
    check_mesh(self.mesh.sizes, model, rows, self.length, self.accumulate)
    step_range(self.profile_steps)

  @property
  def last_step(self) -> int:
    """Where this start of the run stops."""
    return self.steps if self.stop_at is None else min(self.steps, self.stop_at)

  def run(self, workdir: Path) -> Report:
    """Trains from the newest checkpoint, or anew, to `last_step`; exits with 75 after a signal."""
    if (finished := results.finished_report(workdir, self.last_step)) is not None:
      return finished
    with Guard() as guard, Job(self, workdir, guard) as job:
      state, first = job.start()
      hosts.say(header(job, first))
      batches = job.feed.batches(first, self.last_step)
      with jax.set_mesh(job.mesh):
        train_step = job.compile_step(state)
        state, step = job.loop(train_step, first).run(state, batches, first, self.last_step)
      job.close()
      guard.release(f'saved at step {step:,}; run the same command to go on')
      return results.conclude(job, state, step)

  def connect(self) -> int:
    return self.hosts.connect(to_json(self))

  def leave(self, error: BaseException | None) -> None:
    hosts.leave(error)
