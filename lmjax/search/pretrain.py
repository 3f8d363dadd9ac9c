"""The task in which an encoder learns from posts alone: parts of a post, its tags and title find each other."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.core import tree
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.storage import origin
from lmjax.core.task import Report
from lmjax.data.shuffle import permutation
from lmjax.data.sources import Posts, Rows
from lmjax.interop.encoder import MINILM, LoadedEncoder, load_encoder
from lmjax.interop.load import CHECKPOINT, load
from lmjax.objectives.contrastive import InBatch
from lmjax.optim.optimizer import AdamW, Optimizer
from lmjax.parallel.accelerator import Preset
from lmjax.search.embed import Embedder, shorten
from lmjax.search.evaluate import Tuned, save_tuned
from lmjax.search.pairs import Kind, PairBatches, Source, Usable, as_source, draw_pair, find_usable
from lmjax.search.paraphrase import paraphrase
from lmjax.search.ranking import load_ranking, reciprocal_rank
from lmjax.train import results
from lmjax.train.state import TrainState, state_of, state_shardings
from lmjax.train.training import Training
from lmjax.train.work import Work


class SearchPretrain(Training):
  """An encoder learns from pairs that posts give by themselves; some posts say before and after how well."""

  source: Posts = part(Posts(), 'What it learns from.', inline=True)
  encoder: str = leaf(MINILM, 'What learns: the folder of an encoder (BERT), or an asset.')
  pairs: tuple[Kind, ...] = leaf(
    ('crops', 'hashtags', 'title'),
    'What finds what: two crops, a span the rest, hashtags, title or paraphrase the post.',
  )
  paraphraser: str = leaf('smollm2-135m-instruct', f'For pairs of that kind. {CHECKPOINT}')
  paraphrases: int = leaf(500, 'Posts that it says in other words, for such pairs.', low=1)
  objective: InBatch = part(InBatch(), 'How it learns from them.')
  length: int = leaf(64, 'Tokens of a text that teach.', low=4)
  judged: int = leaf(500, 'Posts that are not learnt from and judge the encoder.', low=2)
  steps: int = leaf(
    300, 'Updates of the whole run; the schedule spans them.', low=1, high=2**31 - 1
  )
  batch: int = leaf(64, 'Pairs a step, which are negatives of each other.', low=2)
  optimizer: Optimizer = part(AdamW(peak_lr=2e-5, weight_decay=0.01), 'How it moves.')

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.accumulate > 1:
      raise UserError(
        f'accumulate={self.accumulate}: every pair of a batch is a negative of the others, so it is no '
        'sum of parts: pass --accumulate=1'
      )
    if self.batch % self.objective.pieces:
      raise UserError(
        f'batch={self.batch} is not a multiple of objective.pieces={self.objective.pieces}: pass one '
        f'of {[n for n in range(1, self.batch + 1) if self.batch % n == 0][:8]}'
      )
    if not self.pairs or len(set(self.pairs)) < len(self.pairs):
      raise UserError(f'pairs={",".join(self.pairs)}: name one kind or more, each once')

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'Pretraining':
    return Pretraining(self, mesh, preset)

  def closing_text(self, report: Report, workdir: Path) -> str:
    lines = [f'{"":34}{"before":>10}{"after":>10}']
    for size, (before, after) in report['mrr_by_size'].items():
      lines.append(f'{f"reciprocal rank, {size} numbers":34}{before:10.3f}{after:10.3f}')
    told = (
      f'written to {workdir}: pass it to search_eval or search_posts as --checkpoint={workdir},'
    )
    return '\n'.join(
      ['', *lines, told, f'or its encoder to search_tune: --encoder={workdir}/encoder']
    )


class Pretraining(Work):
  """An encoder, and pairs of posts for it to learn from."""

  def __init__(self, task: SearchPretrain, mesh: jax.sharding.Mesh, preset: Preset) -> None:
    self.task, self._mesh = task, mesh
    self._loaded = load_encoder(task.encoder)
    model = self._loaded.model
    task.objective.check_width(model.width)
    self.model = dataclasses.replace(model, dtype=preset.compute_dtype(model.dtype))
    self.objective = task.objective
    self._rows = Rows()
    usable = find_usable(self._sources(), task.pairs)
    self.usable, self._judging = _split(usable, task.judged, task.seed)
    embedder = Embedder(self._loaded)
    length = min(task.length, embedder.length)
    settings = {'batch': task.batch, 'length': length, 'seed': task.seed}
    self.source = PairBatches(self.usable, embedder.encode, **settings)
    self.files = {}
    said = np.frombuffer(repr(usable.sources).encode('utf-8', 'surrogatepass'), np.uint8)
    self.data = [tree.sha256(self._loaded.params), tree.sha256({'posts': said})]

  def _sources(self) -> list[Source]:
    posts = self.task.source.read(self._rows)
    sources = list(dict.fromkeys(as_source(post.text, post.title) for post in posts))
    if 'paraphrase' not in self.task.pairs:
      return sources
    count = min(self.task.paraphrases, len(sources))
    chosen = permutation(len(sources), 'paraphrases', self.task.seed)[:count].tolist()
    said = paraphrase(load(self.task.paraphraser), [sources[index].text for index in chosen])
    for index, text in zip(chosen, said, strict=True):
      sources[index] = sources[index]._replace(paraphrase=text)
    return sources

  def begin(self, tx: Any, seed: int, mesh: jax.sharding.Mesh) -> TrainState:
    layout = state_shardings(self.model, tx, mesh)
    params = jax.tree.map(np.asarray, self._loaded.params)  # of no device yet
    return jax.jit(lambda params: state_of(params, tx, seed), out_shardings=layout)(params)

  def lines(self, job: Any) -> list[str]:
    del job
    usable = self.usable
    kinds = ', '.join(f'{kind} {count:,}' for kind, count in usable.counts.items())
    return [
      *self._rows.sentences(),
      f'posts       {len(usable.sources):,} teach and {len(self._judging[0]):,} judge, '
      f'{usable.left_out:,} give no pair; of all, by kind: {kinds}',
      f'model       {tree.count(self.model.shapes()):,} parameters of {self.task.encoder}',
    ]

  def evaluate(self, state: TrainState) -> dict[str, float]:
    found = self._measure(self._encoder(state))
    return {f'held_out/mrr_{size}': mean for size, mean in found.items()}

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    with job.ledger.measure('evaluation'):
      learnt = self._encoder(state)
      before, after = self._measure(self._loaded), self._measure(learnt)
    report = results.run_report(job, state, step)
    if not report:
      return report
    embedder = Embedder(learnt)
    nothing = np.zeros((embedder.size, embedder.size), np.float32)
    save_tuned(job.workdir, Tuned(load_ranking(), nothing), embedder, changed=True)
    report |= {
      'mrr_by_size': {str(size): (before[size], after[size]) for size in before},
      'pairs': self.usable.counts,
      'rows': {'total': self._rows.total, **self._rows.dropped},
      'left_out': self.usable.left_out,
    }
    print(self.task.closing_text(report, origin(job.workdir)))
    return report

  def _encoder(self, state: TrainState) -> LoadedEncoder:
    """The encoder as it is now, whole on this host."""
    return self._loaded._replace(params=jax.tree.map(tree.gather, state.params))

  def _measure(self, encoder: LoadedEncoder) -> dict[int, float]:
    """Size of vectors -> mean reciprocal rank of the post of each pair among the posts that judge."""
    embedder = Embedder(encoder)
    queries, documents = map(embedder.embed, self._judging)
    places = [{index} for index in range(len(queries))]
    return {
      size: reciprocal_rank(shorten(documents, size), shorten(queries, size), places)
      for size in (*self.task.objective.matryoshka, embedder.size)
    }


def _split(usable: Usable, judged: int, seed: int) -> tuple[Usable, tuple[list[str], list[str]]]:
  """Those that teach, and (queries, documents) of the others; UserError where too few would teach."""
  count = len(usable.sources)
  if judged > count // 2:
    raise UserError(
      f'judged={judged} of {count:,} posts that give pairs would leave too few to learn from: pass '
      f'--judged={max(2, count // 10)} or more posts'
    )
  order = permutation(count, 'judged', seed).tolist()
  pairs = [draw_pair(usable, index, seed, 'judged') for index in order[:judged]]
  queries, documents = ([pair[side] for pair in pairs] for side in (0, 1))
  rest = sorted(order[judged:])
  chosen = ([usable.sources[index] for index in rest], [usable.kinds[index] for index in rest])
  return usable._replace(sources=chosen[0], kinds=chosen[1]), (queries, documents)
