"""The task that trains a generator of pictures and measures whether they show what they were asked to."""

import dataclasses
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.core import tree
from lmjax.core.config import from_json, leaf, part, to_json
from lmjax.core.errors import UserError
from lmjax.core.storage import at
from lmjax.core.task import Report
from lmjax.core.types import Params
from lmjax.data import images
from lmjax.data.images import Latent, Picture, encode_prompts
from lmjax.data.loader import Rows
from lmjax.generate.image import FlowSampler, sample_vectors
from lmjax.models.diffusion import Diffusion
from lmjax.objectives.flow import Flow, Vectors
from lmjax.optim.average import AveragedAdamW, find_average
from lmjax.optim.optimizer import Optimizer
from lmjax.parallel.accelerator import Preset
from lmjax.train import results
from lmjax.train.picture_eval import measure, most_alike, train_judges
from lmjax.train.state import TrainState
from lmjax.train.training import Training
from lmjax.train.work import Work

GENERATOR = 'generator.npz'
_GRID = 12  # pictures of a row of the grid
_BATCH = 192  # pictures made at a time


class TrainImages(Training):
  """Trains a rectified flow on pictures with prompts."""

  pictures: str = leaf(
    '', 'Folder with pictures.jsonl (file, prompt, category, tone); empty: Twemoji.'
  )
  side: int = leaf(32, 'Pixels of a side.', low=8, high=128)
  held_out: float = leaf(0.1, 'Share of concepts that are not trained on.', low=0.0, high=0.5)
  model: Diffusion = part(Diffusion(), 'What is trained.')
  objective: Flow = part(Flow(), 'What it is trained for.')
  optimizer: Optimizer = part(AveragedAdamW(), 'How it moves; it must keep an average.')
  sampler: FlowSampler = part(FlowSampler(), 'How pictures are made for the report.', run=True)
  judged: int = leaf(400, 'Pictures of each kind that are made and judged.', low=1, run=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not isinstance(self.optimizer, AveragedAdamW):
      raise UserError('optimizer keeps no average of the parameters: use AveragedAdamW')

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'Imaging':
    del mesh
    return Imaging(self, preset)

  def closing_text(self, report: Report, workdir: Path) -> str:
    lines = [f'{name:20} {value}' for name, value in report['images'].items()]
    return '\n'.join(
      ['', *lines, f'a grid to look at: {workdir}/grid.png; the generator: {GENERATOR}']
    )


class Split(NamedTuple):
  """Numbers of pictures: trained on; of a tone, or a concept, that is not."""

  train: list[int]
  tones: list[int]
  concepts: list[int]


def split_pictures(shown: Sequence[Picture], held_out: float) -> Split:
  """Whole concepts are held out, and of a third of the others with tones one of them."""
  split = Split([], [], [])
  tones = sorted({one.tone for one in shown if one.tone})
  for number, one in enumerate(shown):
    draw = zlib.crc32(one.concept.encode())
    if draw % 1000 < 1000 * held_out:
      split.concepts.append(number)
    elif one.tone and draw // 1000 % 3 == 0 and draw // 3000 % len(tones) == tones.index(one.tone):
      split.tones.append(number)
    else:
      split.train.append(number)
  if not split.train:
    raise UserError(f'no picture of {len(shown)} is left to train on: pass a smaller --held_out')
  return split


def attributes(one: Picture) -> list[str]:
  return [f'category={one.category}', *([f'tone={one.tone}'] if one.tone else [])]


class Imaging(Work):
  """Pictures as vectors, and a flow to train on them."""

  def __init__(self, task: TrainImages, preset: Preset) -> None:
    self.task = task
    if task.pictures:
      self.shown, self.pixels = images.load_folder(at(task.pictures), task.side)
    else:
      self.shown, self.pixels = images.load_pictures(task.side)
    self.split = split_pictures(self.shown, task.held_out)
    self.model = dataclasses.replace(task.model, dtype=preset.compute_dtype(task.model.dtype))
    self.objective = task.objective
    self.latent = images.fit_latent(self.pixels[self.split.train], task.model.latent, task.seed)
    self.told = encode_prompts(
      [one.prompt for one in self.shown], list(map(attributes, self.shown)), self.model.features
    )
    self._vectors = self.latent.encode(self.pixels)
    train = np.array(self.split.train)
    read = lambda rows: self._read(train[np.asarray(rows)])
    self.source = Rows(read, len(train), batch=task.batch, length=None, seed=task.seed)
    self.files = {}
    self.data = [tree.sha256({'pixels': self.pixels, 'features': self.told[0]})]

  def _read(self, numbers: np.ndarray) -> Vectors:
    features, weights = self.told
    arrays: Any = (self._vectors[numbers], features[numbers], weights[numbers])
    return Vectors(*arrays)

  def lines(self, job: Any) -> list[str]:
    del job
    counts = ' + '.join(f'{len(part):,} {name}' for name, part in self.split._asdict().items())
    size = tree.count(self.model.shapes())
    return [f'pictures    {len(self.shown):,} = {counts}', f'model       {size:,} parameters']

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    """Makes and judges pictures with the averaged parameters, and keeps these as the generator."""
    with job.ledger.measure('evaluation'):
      params = jax.tree.map(tree.gather, find_average(state.opt_state))
      known = [(self.shown[i].prompt, self.shown[i].category) for i in self.split.train]
      generator = Generator(self.model, params, self.latent, known)
      judged = self._judge(generator, job.workdir)
      generator.save(job.workdir / GENERATOR)
    report = results.run_report(job, state, step)
    if report:
      report |= {'images': judged, 'split': {k: len(v) for k, v in self.split._asdict().items()}}
      print(self.task.closing_text(report, job.workdir))
    return report

  def _judge(self, generator: 'Generator', workdir: Path) -> dict[str, Any]:
    shown, real, sampler = self.shown, self.pixels, self.task.sampler
    judges = train_judges([shown[i] for i in self.split.train], real[self.split.train])
    features, weights = self.told
    known = (features[self.split.train], weights[self.split.train])
    found, parts, seconds, count = {}, [], 0.0, 0
    for name, numbers in self.split._asdict().items():
      step = -(-len(numbers) // self.task.judged) or 1
      asked = numbers[::step]
      if not asked:
        continue
      begun = time.monotonic()
      made = generator.make(features[asked], weights[asked], sampler, self.task.seed)
      seconds, count = seconds + time.monotonic() - begun, count + len(asked)
      alike = most_alike((features[asked], weights[asked]), known, self.model.features)
      copied = real[self.split.train][alike]
      found[name] = {
        'made': measure(made, asked, shown, real, judges),
        'retrieved': measure(copied, asked, shown, real, judges),
        'real': measure(real[asked], asked, shown, real, judges),
      }
      parts += [real[asked][:_GRID], made[:_GRID]]
    images.save_grid(parts, workdir / 'grid.png')
    return _summary(found, seconds / count)


def _summary(
  found: dict[str, dict[str, dict[str, float | None]]], seconds: float
) -> dict[str, Any]:
  said = lambda part, whose, what: found.get(part, {}).get(whose, {}).get(what)
  return {
    'nearest_seen': said('train', 'made', 'nearest'),
    'nearest_unseen_tone': said('tones', 'made', 'nearest'),
    'tone_seen': said('train', 'made', 'tone'),
    'tone_unseen': said('tones', 'made', 'tone'),
    'category_held_out': said('concepts', 'made', 'category'),
    'judge_real': {
      'category': said('concepts', 'real', 'category'),
      'tone': said('concepts', 'real', 'tone'),
    },
    'retrieval': {
      'tone_unseen': said('tones', 'retrieved', 'tone'),
      'category_held_out': said('concepts', 'retrieved', 'category'),
    },
    'seconds_per_image': seconds,
  }


class Generator(NamedTuple):
  """A trained flow that makes pictures of prompts.

  Attributes:
    known: prompt and category of the pictures that it learnt from.
  """

  model: Diffusion
  params: Params
  latent: Latent
  known: Sequence[tuple[str, str]]

  def make(
    self, features: np.ndarray, weights: np.ndarray, sampler: FlowSampler, seed: int
  ) -> np.ndarray:
    """u8 [S, side, side, 3]; picture i is drawn from fold_in(key(seed), i)."""
    key, made = jax.random.key(seed), []
    for start in range(0, len(features), _BATCH):
      rows = np.arange(start, start + _BATCH) % len(features)  # one size, so one compile
      draw = lambda i: jax.random.normal(jax.random.fold_in(key, i), (self.model.latent,))
      noise = jax.vmap(draw)(np.arange(start, start + _BATCH))
      found = sample_vectors(self.model, sampler, self.params, noise, features[rows], weights[rows])
      made.append(np.asarray(found)[: len(features) - start])
    return self.latent.decode(np.concatenate(made))

  def draw(self, prompts: Sequence[str], sampler: FlowSampler, seed: int) -> np.ndarray:
    """Pictures of prompts that say all there is to show, skin tone included.

    Their category, without which nothing was learnt, is that of the known prompt with the most like words.
    """
    told = [
      [f'category={category}', *(f'tone={tone}' for tone in images.tones_in(prompt)[:1])]
      for prompt, category in zip(prompts, self._categories(prompts), strict=True)
    ]
    return self.make(*encode_prompts(prompts, told, self.model.features), sampler, seed)

  def _categories(self, prompts: Sequence[str]) -> list[str]:
    size = self.model.features
    words = lambda texts: encode_prompts(texts, [[]] * len(texts), size)
    alike = most_alike(words(prompts), words([prompt for prompt, _ in self.known]), size)
    return [self.known[i][1] for i in alike]

  def save(self, path: Path) -> None:
    flat = {f'params/{name}': value for name, value in tree.paths(self.params)}
    as_bytes = lambda value: np.frombuffer(json.dumps(value).encode(), np.uint8)
    texts = {'model': as_bytes(to_json(self.model)), 'known': as_bytes(self.known)}
    arrays: dict[str, Any] = flat | self.latent._asdict() | texts
    np.savez(path, **arrays)


def load_generator(checkpoint: str) -> Generator:
  """The generator of a run; UserError where there is none."""
  path = at(checkpoint)
  path = path / GENERATOR if path.is_dir() else path
  try:
    with np.load(path) as arrays:
      model = from_json(Diffusion(), json.loads(arrays['model'].tobytes()))
      known = [(prompt, kind) for prompt, kind in json.loads(arrays['known'].tobytes())]
      params: Params = {}
      for name in arrays.files:
        *folders, last = name.split('/')
        if folders:
          node = params
          for folder in folders[1:]:
            node = node.setdefault(folder, {})
          node[last] = arrays[name]
      latent = Latent(arrays['mean_Y'], arrays['basis_YZ'], float(arrays['scale']))
      return Generator(model, params, latent, known)
  except (OSError, ValueError, KeyError):
    raise UserError(f'{path} is no generator of pictures: pass a run of emoji_flow') from None
