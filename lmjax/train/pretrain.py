"""The main job: from posts to a trained language model, in one task that can be stopped anywhere."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from lmjax.core import tree
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report
from lmjax.data.loader import Loader
from lmjax.data.mixture import Mixture
from lmjax.data.prepare import prepare_all
from lmjax.data.shards import Shards
from lmjax.data.sources import Posts
from lmjax.data.split import Part, Split
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.generate.sampler import Sampler
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.parallel import hosts
from lmjax.parallel.accelerator import Preset
from lmjax.parallel.sharding import check_mesh
from lmjax.train import bigrams, results
from lmjax.train.evaluate import Evaluator
from lmjax.train.header import decoder_lines, rows_text
from lmjax.train.state import TrainState
from lmjax.train.training import Training
from lmjax.train.work import Work, suited

_PREPARE_SECONDS = 86400.0  # in which the slowest process has its posts ready


class Pretrain(Training):
  """Trains a decoder on posts, evaluates it on held-out ones and generates a few."""

  length: int = leaf(128, 'Positions of a row, in tokens.', low=2)
  source: Posts = part(Posts(), 'What to train on.', inline=True)
  mixture: str = leaf('', 'A JSON file of sources and weights, in place of --posts.')
  split: Split = part(Split(), 'What is held out.')
  text: TokenizerConfig = part(TokenizerConfig(), 'How text becomes tokens.', inline=True)
  packing: Literal['best_fit', 'split'] = leaf(
    'best_fit', 'Whole posts in the fullest row with room, or one after another and cut.'
  )
  model: Decoder = part(Decoder(), 'What is trained.')
  start: Literal['random', 'bigrams'] = leaf(
    'random', "First token table and head; bigrams: those of the posts' bigrams, if untied."
  )
  objective: Language = part(Language(), 'What it is trained for.')
  evaluate_posts: int = leaf(
    500, 'Held-out posts of such an evaluation; the last uses all.', low=1, run=True
  )
  final_posts: int = leaf(20_000, 'Held-out posts of the last evaluation at most.', low=1, run=True)
  baselines: bool = leaf(True, 'Compute what simpler models reach, at the end.', run=True)
  samples: int = leaf(5, 'Posts to generate at the end.', low=0, run=True)
  sampler: Sampler = part(Sampler(), 'How their tokens are drawn.', run=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if (
      self.text.tokenizer
      and self.model.vocab is None
      and self.text.vocab != TokenizerConfig().vocab
    ):
      raise UserError(
        '--tokenizer and --vocab contradict: a file has its own vocabulary, drop --vocab'
      )
    if self.start == 'bigrams' and self.model.head == 'tied':
      raise UserError(
        'start=bigrams contradicts model.head=tied, what comes next needs vectors of its own: '
        'pass --model.head=untied or --start=random'
      )
    model = self.model if self.text.tokenizer else self.model.with_vocab(self.text.vocab)
    rows = self.batch // self.accumulate
    check_mesh(self.mesh.sizes, model, rows, self.length, self.accumulate)

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'Pretraining':
    return Pretraining(self, mesh, preset)

  def closing_text(self, report: Report, workdir: Path) -> str:
    return results.closing_text(report, workdir)


class Pretraining(Work):
  """Posts, and a decoder to train on them from nothing.

  Attributes:
    task: the configuration.
    model: `task.model` with the tokenizer's vocabulary.
    shards: the prepared posts, one for each source.
  """

  def __init__(self, task: Pretrain, mesh: jax.sharding.Mesh, preset: Preset) -> None:
    self.task = task
    self.shards, self.source = open_data(task)
    self.tokenizer = self.shards[0].tokenizer
    self.model = suited(self._model(), preset)
    self.objective = task.objective
    self.files = {'tokenizer.json': (self.shards[0].folder / 'tokenizer.json').read_bytes()}
    self.data = [shards.sha256 for shards in self.shards]
    self.notes = [note for shards in self.shards for note in shards.notes]
    shape = {'batch': task.batch, 'length': task.length}
    self.evaluator = Evaluator(self.model, self.tokenizer, mesh, **shape)

  def _model(self) -> Decoder:
    """The model for the tokenizer and the posts; refused where it cannot be."""
    model = self.task.model
    longest = lambda: max(int(shards.lengths('held_out').max()) + 1 for shards in self.shards)
    if (
      model.positions is not None and (needed := max(self.task.length, longest())) > model.positions
    ):
      raise UserError(
        f'model.positions={model.positions} are fewer than the {needed} tokens of a row or of the '
        f'longest post that is held out: pass --model.positions={needed} or more'
      )
    return model.with_vocab(self.tokenizer.vocab)

  def lines(self, job: Any) -> list[str]:
    rows = self.shards[0].manifest['rows'] if len(self.shards) == 1 else None
    size = tree.count(self.model.shapes())
    return [
      *decoder_lines(job, self.task.model.dtype),
      f'posts       {rows_text(rows)}' if rows else f'posts       {len(self.shards)} sources',
      f'model       {size:,} parameters, vocabulary {self.model.vocab:,}',
    ]

  def posts(self, part: Part) -> Iterator[np.ndarray]:
    """Token ids of the posts of a part, one of each source in turn."""
    each = [shards.stream(part) for shards in self.shards]
    return (post for group in itertools.zip_longest(*each) for post in group if post is not None)

  def begin(
    self, tx: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
  ) -> TrainState:
    state = super().begin(tx, seed, mesh)
    if self.task.start == 'random':
      return state
    marks = (self.tokenizer.start, self.tokenizer.end)
    return bigrams.begin(state, self.posts('train'), marks, self.model, seed)

  def held_out(self) -> Iterator[np.ndarray]:
    return self.posts('held_out')

  def evaluate(self, state: TrainState) -> dict[str, float]:
    posts = list(itertools.islice(self.held_out(), self.task.evaluate_posts))
    return {'held_out/bits_per_byte': self.evaluator.bits_per_byte(state.params, posts)}

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    return results.conclude(self, job, state, step)


def open_data(task: Pretrain) -> tuple[list[Shards], Loader]:
  """The prepared posts of a task, one for each source, and its batches."""
  mixture = Mixture.load(task.mixture) if task.mixture else None
  sources = [source.posts for source in mixture.sources] if mixture else [task.source]
  shards = prepare_all(sources, task.split, task.text, progress=_show_progress())
  data = json.dumps([one.sha256 for one in shards])
  hosts.check_equal(
    'the prepared posts',
    data,
    'give every host the same files, or one LMJAX_CACHE that all see',
    _PREPARE_SECONDS,
  )
  rows = {'batch': task.batch, 'length': task.length, 'method': task.packing}
  return shards, Loader(shards, **rows, seed=task.seed, mixture=mixture)


def _show_progress() -> Callable[[str, int, int], None]:
  """Says what preparation is doing, each thing once."""
  said: set[str] = set()

  def show(what: str, done: int, total: int) -> None:
    del done
    if what not in said:
      said.add(what)
      hosts.say(f'{what}{f" ({total:,})" if total else ""} ...')

  return show
