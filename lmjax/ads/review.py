"""Harmful text: a classifier trained on a user's own labelled texts, and how well it tells them.

S texts, F buckets of n-grams.
"""

import csv
import functools
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.ads.policy import review_text
from lmjax.core import assets
from lmjax.core.config import from_json, leaf, part, to_json
from lmjax.core.errors import UserError, nearest, need
from lmjax.core.storage import at
from lmjax.core.task import Report, Task, write_json
from lmjax.data.files import matches, numbered_lines
from lmjax.models.classifier import NgramHash, inverse_frequency, linear_logits, weigh

_CONFIG, _WEIGHTS = 'classifier.json', 'classifier.npz'
_HARM = ('hate', 'sexual', 'violence')
_SMALLEST = 20  # texts of a class that are worth learning from
_HARMLESS = 2000  # texts of posts, and of passages, beside the prompts of an asset
TEXTS = 'JSONL, plain or compressed: text and label of each; several with commas.'
POSITIVE = 'The labels that count as harmful, with commas.'


class Classifier(NamedTuple):
  """A text is harmful where its logit is at least `threshold`."""

  hash: NgramHash
  idf_F: np.ndarray
  weights_F: np.ndarray
  bias: float
  threshold: float

  def logits(self, texts: Sequence[str]) -> np.ndarray:
    """f32 [S]."""
    # In NumPy: a server asks for one text at a time, and JAX would compile for each length.
    grams = weigh(self.hash.count(texts), self.idf_F)
    terms_N = grams.values_N * self.weights_F[grams.buckets_N]
    return np.bincount(grams.rows_N, terms_N, minlength=grams.size).astype('f4') + np.float32(
      self.bias
    )

  def is_harmful(self, texts: Sequence[str]) -> np.ndarray:
    """bool [S]."""
    return self.logits(texts) >= self.threshold

  def moderate(self, text: str, side: str) -> str | None:
    """Why a server refuses `text`, or None; `side` is 'input' or 'output', judged alike."""
    del side
    return 'it may be harmful' if text.strip() and self.is_harmful([text])[0] else None

  def save(self, folder: Path) -> None:
    np.savez(folder / _WEIGHTS, idf=self.idf_F, weights=self.weights_F)
    said = {'hash': to_json(self.hash), 'bias': self.bias, 'threshold': self.threshold}
    write_json(folder / _CONFIG, said)


def load_classifier(checkpoint: str, flag: str = 'checkpoint') -> Classifier:
  """UserError, naming the flag, where the folder is no run of review_train."""
  folder = at(checkpoint)
  try:
    said = json.loads((folder / _CONFIG).read_text(encoding='utf-8'))
    with np.load(folder / _WEIGHTS) as arrays:
      idf_F, weights_F = arrays['idf'], arrays['weights']
    grams = from_json(NgramHash(), said['hash'])
    return Classifier(grams, idf_F, weights_F, said['bias'], said['threshold'])
  except (OSError, ValueError, KeyError):
    raise UserError(
      f'--{flag}={folder} holds no classifier: pass the folder of a run of review_train'
    ) from None


def fit_classifier(
  texts: Sequence[str], harmful_S: np.ndarray, grams: NgramHash, decay: float, steps: int
) -> Classifier:
  """Logistic regression by L-BFGS: mean cross-entropy + decay / 2 * |weights|^2; threshold 0."""
  counts = grams.count(texts)
  idf_F = inverse_frequency(counts, grams.buckets)
  rows, buckets, values, size = weigh(counts, idf_F)
  target_S = jnp.asarray(harmful_S, jnp.float32)

  def loss(params, data):
    logits_S = linear_logits(params['weights'], params['bias'], data[0], data[1], data[2], size)
    errors_S = optax.sigmoid_binary_cross_entropy(logits_S, target_S)
    return errors_S.mean() + decay / 2 * jnp.sum(params['weights'] ** 2)

  solver = optax.lbfgs()

  @jax.jit
  def step(params, state, data):
    one = functools.partial(loss, data=data)
    value, grads = optax.value_and_grad_from_state(one)(params, state=state)
    updates, state = solver.update(grads, state, params, value=value, grad=grads, value_fn=one)
    return optax.apply_updates(params, updates), state

  params: Any = {'weights': jnp.zeros(grams.buckets), 'bias': jnp.zeros(())}
  state, data = solver.init(params), tuple(map(jnp.asarray, (rows, buckets, values)))
  for _ in range(steps):
    params, state = step(params, state, data)
  return Classifier(grams, idf_F, np.asarray(params['weights']), float(params['bias']), 0.0)


def best_threshold(logits_S: np.ndarray, harmful_S: np.ndarray) -> float:
  """The threshold of the best macro-F1, of up to 200 between the logits."""
  tried = np.unique(np.quantile(logits_S, np.linspace(0.005, 0.995, 200)))
  scores = [measure_review(harmful_S, logits_S >= one)['macro_f1'] for one in tried]
  return float(tried[int(np.argmax(scores))])


def measure_review(harmful_S: np.ndarray, decided_S: np.ndarray) -> dict[str, Any]:
  """macro_f1 is the mean F1 of harmful and harmless; precision and recall are of harmful."""
  hit = int((harmful_S & decided_S).sum())
  miss, false = int((harmful_S & ~decided_S).sum()), int((~harmful_S & decided_S).sum())
  clear = len(harmful_S) - hit - miss - false
  share = lambda part, whole: part / whole if whole else 0.0
  f1 = [share(2 * right, 2 * right + miss + false) for right in (hit, clear)]
  return {
    'macro_f1': sum(f1) / 2,
    'precision': share(hit, hit + false),
    'recall': share(hit, hit + miss),
    'n': len(harmful_S),
  }


class ReviewTrain(Task):
  """Learns to tell harmful texts from a user's own labels; the run is review_eval's --checkpoint."""

  texts: tuple[str, ...] = leaf((), TEXTS)
  positive: tuple[str, ...] = leaf((), POSITIVE)
  held_out: float = leaf(0.2, 'Share of texts the threshold is chosen on.', low=0.01, high=0.5)
  decay: float = leaf(2e-5, 'Weight of half the squared weights in the loss.', low=0)
  steps: int = leaf(40, 'Steps of L-BFGS.', low=1)
  seed: int = leaf(0, 'Which texts are held out.', low=0)
  hash: NgramHash = part(NgramHash(), 'How texts become n-grams.')

  def run(self, workdir: Path) -> Report:
    """The report's figures are of texts held out of a first fit, on which the threshold was chosen.

    What is saved is a second fit, to all texts.
    """
    texts, harmful_S = read_labelled(self.texts, self.positive)
    fewest = min(int(harmful_S.sum()), int((~harmful_S).sum()))
    if fewest < _SMALLEST:
      raise UserError(
        f'--texts has {fewest} texts of one of the two classes: give at least {_SMALLEST} of each'
      )
    order = np.random.default_rng(self.seed).permutation(len(texts))
    held = order[: max(1, round(len(texts) * self.held_out))]
    kept = order[len(held) :]
    pick = lambda places: [texts[i] for i in places]
    fitted = fit_classifier(pick(kept), harmful_S[kept], self.hash, self.decay, self.steps)
    logits_S = fitted.logits(pick(held))
    threshold = best_threshold(logits_S, harmful_S[held])
    figures = measure_review(harmful_S[held], logits_S >= threshold)
    print(f'held out of {len(texts):,} texts: {_line(figures)}')
    whole = fit_classifier(texts, harmful_S, self.hash, self.decay, self.steps)
    whole._replace(threshold=threshold).save(workdir)
    return {'trained_on': len(texts), 'threshold': threshold, **figures}


class ReviewEval(Task):
  """Says how well harmful texts are told, by a trained classifier or by the policy's words."""

  texts: tuple[str, ...] = leaf((), TEXTS)
  positive: tuple[str, ...] = leaf((), POSITIVE)
  checkpoint: str = leaf('', "A run of review_train; empty = the policy's words.")

  def run(self, workdir: Path) -> Report:
    """Trains nothing."""
    texts, harmful_S = read_labelled(self.texts, self.positive)
    if self.checkpoint:
      decided_S = load_classifier(self.checkpoint).is_harmful(texts)
    else:
      print(f"no --checkpoint: judged by the policy's words for {', '.join(_HARM)}")
      decided_S = np.array([bool(review_text(text, _HARM)) for text in texts])
    figures = measure_review(harmful_S, decided_S)
    print(_line(figures))
    return {'judged_by': self.checkpoint or f'policy: {", ".join(_HARM)}', **figures}


def _line(figures: dict[str, Any]) -> str:
  return ', '.join(f'{name} {round(value, 4)}' for name, value in figures.items())


def read_labelled(paths: Sequence[str], positive: Sequence[str]) -> tuple[list[str], np.ndarray]:
  """(texts, bool [S] whether harmful) of JSONL files; UserError at the first row that is none."""
  need('texts', ','.join(paths), 'FILE.jsonl, rows with text and label')
  need('positive', ','.join(positive), 'hate,offensive, the labels that are harmful')
  texts, labels = [], []
  for path in [found for named in paths for found in matches(named) or [named]]:
    for number, line in numbered_lines('texts', path):
      text, label = _row(path, number, line)
      texts.append(text)
      labels.append(label)
  if unknown := [label for label in positive if label not in labels]:
    raise UserError(f'no text has the label {unknown[0]!r}: {nearest(unknown[0], set(labels))}')
  return texts, np.isin(np.array(labels), positive)


def asset_texts() -> tuple[list[str], np.ndarray]:
  """(texts, bool [S] whether harmful) of assets: toxic prompts, and posts and sentences of passages."""
  rows = lambda name: map(json.loads, assets.fetch(name).read_text(encoding='utf-8').splitlines())
  harmful = [row['text'] for row in rows('toxicity-prompts')]
  path = assets.fetch('healthtweets')
  with zipfile.ZipFile(path) as archive, archive.open('healthtweets.csv') as file:
    posts = [row['text'] for row in csv.DictReader(io.TextIOWrapper(file, encoding='utf-8'))]
  passages = list(dict.fromkeys(row['passage'] for row in rows('boolq-passages')))
  every = lambda texts: texts[:: max(1, len(texts) // _HARMLESS)][:_HARMLESS]
  plain = every(posts) + [text.rpartition(' -- ')[2].partition('. ')[0] for text in every(passages)]
  return harmful + plain, np.arange(len(harmful) + len(plain)) < len(harmful)


@functools.cache
def _of_assets() -> Classifier:
  return fit_classifier(
    *asset_texts(), ReviewTrain().hash, ReviewTrain().decay, ReviewTrain().steps
  )


def toxicity(texts: Sequence[str]) -> list[float]:
  """Probability that each text is harmful, for chat_eval's --toxicity=lmjax.ads.review:toxicity.

  By a classifier of `asset_texts`, fitted when first asked: to be compared between models, not to be
  taken for what people would say.
  """
  return (1 / (1 + np.exp(-_of_assets().logits(texts)))).tolist()


def _row(path: str, number: int, line: str) -> tuple[str, str]:
  try:
    row = json.loads(line)
    if isinstance(row['text'], str) and isinstance(row['label'], str | int):
      return row['text'], str(row['label'])
  except (ValueError, KeyError, TypeError):
    pass
  raise UserError(
    f'--texts={path}: line {number} is not of the form {{"text": "...", "label": "..."}}: '
    'mend or drop it'
  )
