"""The tasks that teach a trained model: to answer as conversations show, or to write as posts do."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.core import tree
from lmjax.core.config import leaf, part
from lmjax.core.task import Report
from lmjax.core.types import Batch
from lmjax.data import packing
from lmjax.data.conversations import Chats, Conversations, encode_chat, lay, pack, sort_rows
from lmjax.data.loader import Rows
from lmjax.data.prepare import prepare_all
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.objectives.language import Language
from lmjax.parallel.accelerator import Preset
from lmjax.train.evaluate import Evaluator
from lmjax.train.feed import place
from lmjax.train.state import TrainState, batch_sharding
from lmjax.train.tune import Tune, Tuning


class TuneChat(Tune):
  """Goes on from a model with conversations, of which it learns what the assistant says."""

  source: Conversations = part(Chats(), 'Conversations to learn from.', inline=True)
  objective: Language = part(Language(), 'What it is trained for.')

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'TuningChat':
    return TuningChat(self, mesh, preset)


class TuningChat(Tuning):
  """Conversations, packed into rows, and a model to go on from."""

  def __init__(self, task: TuneChat, mesh: jax.sharding.Mesh, preset: Preset) -> None:
    super().__init__(task, mesh, preset)
    template, length = self.template, task.length
    make = lambda values: encode_chat(values, template, self.tokenizer, length)
    self.rows = sort_rows(task.source.rows(), make, task.source.held_out)
    texts = self.rows.train
    packed = pack(texts, length)
    read = lambda rows: lay([[texts[text] for text in packed[row]] for row in rows], length)
    self.source = Rows(read, len(packed), batch=task.batch, length=length, seed=task.seed)
    self.objective = task.objective
    self.data.append(
      tree.sha256({'tokens': np.concatenate([t.tokens for t in (*texts, *self.rows.held_out)])})
    )
    held_out = self.rows.held_out
    self._held_out = [[held_out[text] for text in row] for row in pack(held_out, length)]
    self._loss = jax.jit(
      lambda params, batch: task.objective(self.model, params, batch, jax.random.key(0))[1]['loss'],
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

  def lines(self, job: Any) -> list[str]:
    return [*super().lines(job), f'rows        {counts_text(self.rows.counts)}']

  def measure(self, state: TrainState) -> dict[str, float]:
    """Cross-entropy of what assistants say in the conversations that are held out, in nats a token."""
    params, size = self.whole(state), self.task.batch
    total = weight = 0.0
    with jax.set_mesh(self._mesh):
      for first in range(0, len(self._held_out), size):
        rows = self._held_out[first : first + size]
        rows = [*rows, *[[]] * (size - len(rows))]
        loss = self._loss(
          params, place(lay(rows, self.task.length), batch_sharding(self._mesh), size)
        )
        total, weight = total + float(loss.total), weight + float(loss.weight)
    return {'loss': total / max(weight, 1.0)}

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    report = super().conclude(job, state, step)
    return report and report | {'rows': self.rows.counts}


class TunePosts(Tune):
  """Goes on from a model with posts, until it writes as they do."""

  source: Posts = part(Posts(), 'What to train on.', inline=True)
  split: Split = part(Split(), 'What is held out.')
  objective: Language = part(Language(), 'What it is trained for.')
  evaluate_posts: int = leaf(300, 'Held-out posts of an evaluation.', low=1, run=True)

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'TuningPosts':
    return TuningPosts(self, mesh, preset)


class TuningPosts(Tuning):
  """Posts in the model's own tokens, packed into rows."""

  def __init__(self, task: TunePosts, mesh: jax.sharding.Mesh, preset: Preset) -> None:
    super().__init__(task, mesh, preset)
    (shards,) = prepare_all([task.source], task.split, TokenizerConfig())
    texts = {
      name: [shards.tokenizer.decode(post) for post in shards.stream(name)]
      for name in ('train', 'held_out')
    }
    posts, length = self.tokenizer.encode_batch(texts['train']), task.length
    pieces = packing.plan(np.array([len(post) for post in posts]), length, 'best_fit')
    starts = np.searchsorted(pieces.row, np.arange(int(pieces.row[-1]) + 2))
    ends = {'start': self.tokenizer.start, 'end': self.tokenizer.end}

    def read(rows: Sequence[int]) -> Batch:
      found = packing.join([pieces.take(slice(*starts[row : row + 2])) for row in rows])
      chosen = [posts[post] for post in found.post]
      return packing.fill(found, chosen, len(rows), length, **ends)

    self.source = Rows(read, len(starts) - 1, batch=task.batch, length=length, seed=task.seed)
    self.objective = task.objective
    self.data.append(shards.sha256)
    self.notes = shards.notes
    self._counts = shards.manifest['rows']
    self._held_out = self.tokenizer.encode_batch(texts['held_out'][: task.evaluate_posts])
    size = {'batch': task.batch, 'length': length}
    self._evaluator = Evaluator(self.model, self.tokenizer, mesh, **size)

  def measure(self, state: TrainState) -> dict[str, float]:
    params = self.whole(state)
    return {'bits_per_byte': self._evaluator.bits_per_byte(params, self._held_out)}

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    report = super().conclude(job, state, step)
    return report and report | {'rows': self._counts, 'evaluated_posts': len(self._held_out)}


def counts_text(counts: dict[str, Any]) -> str:
  """The counts of rows in a line."""
  dropped = ', '.join(f'{count:,} {reason}' for reason, count in counts['dropped'].items())
  return f'{counts["in"]:,} = {counts["used"]:,} to train on + {counts["held_out"]:,} held out' + (
    f' + dropped: {dropped}' if dropped else ''
  )
