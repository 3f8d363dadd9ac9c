"""What an audience prefers: a model of its response to a copy, learnt from pairs, and how calibrated it is.

P pairs, S texts, F buckets.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.ads.audience import Taxonomy, load_taxonomy
from lmjax.ads.brief import Audience, Refused, parse_audience
from lmjax.ads.creative import words_of
from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.storage import at
from lmjax.core.task import Report, Task, write_json
from lmjax.data.files import numbered_lines
from lmjax.data.shuffle import permutation

_FILES = ('response.json', 'response.npz')
_FORM = '{"audience": {"age": "25-34"}, "chosen": "a copy", "rejected": "another"}'
_FEWEST = 20  # pairs worth learning from
_BINS = 10


class Pair(NamedTuple):
  """Of two copies the one that an audience responded to more."""

  audience: Audience
  chosen: str
  rejected: str


class Response(NamedTuple):
  """A linear score of words, and of words for groups of an audience.

  Attributes:
    weights_F: f32.
    temperature: scores are divided by it, so that their differences are logits of a preference.
  """

  weights_F: np.ndarray
  temperature: float

  def scores(self, audience: Audience, texts: Sequence[str], taxonomy: Taxonomy) -> np.ndarray:
    """f32 [S]: the logit of one text being preferred to another is the difference of theirs."""
    rows = [featurise(audience, text, taxonomy, len(self.weights_F)) for text in texts]
    found = [sum(self.weights_F[bucket] * value for bucket, value in row.items()) for row in rows]
    return np.array(found, np.float32) / self.temperature

  def save(self, folder: Path) -> None:
    np.savez(folder / _FILES[1], weights=self.weights_F)
    write_json(folder / _FILES[0], {'temperature': self.temperature})


def load_response(run: str, flag: str = 'response') -> Response:
  """UserError, naming the flag, where the folder is no run of response_train."""
  folder = at(run)
  try:
    said = json.loads((folder / _FILES[0]).read_text(encoding='utf-8'))
    with np.load(folder / _FILES[1]) as arrays:
      return Response(arrays['weights'], float(said['temperature']))
  except (OSError, ValueError, KeyError):
    raise UserError(
      f'--{flag}={run} is no model of responses: pass a run of response_train'
    ) from None


def featurise(audience: Audience, text: str, taxonomy: Taxonomy, buckets: int) -> dict[int, float]:
  """Bucket -> value: the distinct words of a text, alone and with each group of its audience."""
  groups = ['', *taxonomy.features(audience)]
  words = sorted(set(words_of(text)))
  found: dict[int, float] = {}
  for group in groups:
    for word in words:
      bucket = zlib.crc32(f'{group} {word}'.encode()) % buckets
      found[bucket] = found.get(bucket, 0.0) + len(words) ** -0.5
  return found


def fit_response(
  pairs: Sequence[Pair], taxonomy: Taxonomy, *, buckets: int, decay: float, steps: int
) -> np.ndarray:
  """f32 [F] by L-BFGS: mean of -log sigmoid(chosen - rejected) + decay / 2 * |weights|^2.

  Bradley & Terry 1952.
  """
  rows, places, values = [], [], []
  for row, pair in enumerate(pairs):
    for sign, text in ((1.0, pair.chosen), (-1.0, pair.rejected)):
      found = featurise(pair.audience, text, taxonomy, buckets)
      rows += [row] * len(found)
      places += found
      values += [sign * value for value in found.values()]
  data = jnp.array(rows), jnp.array(places), jnp.array(values, jnp.float32)

  def loss(weights_F: jax.Array) -> jax.Array:
    rows_N, places_N, values_N = data
    gaps_P = jax.ops.segment_sum(values_N * weights_F[places_N], rows_N, len(pairs))
    return -jnp.mean(jax.nn.log_sigmoid(gaps_P)) + decay / 2 * jnp.sum(weights_F**2)

  solver = optax.lbfgs()

  def step(carry: Any, _: Any) -> tuple[Any, None]:
    weights_F, state = carry
    value, grads = optax.value_and_grad_from_state(loss)(weights_F, state=state)
    updates, state = solver.update(grads, state, weights_F, value=value, grad=grads, value_fn=loss)
    return (optax.apply_updates(weights_F, updates), state), None

  start = jnp.zeros(buckets)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0][0])
  return np.asarray(run((start, solver.init(start))))


def best_temperature(gaps_P: np.ndarray) -> float:
  """The temperature of the least loss on pairs that were not learnt from (Guo et al. 2017, 1706.04599)."""
  tried = np.geomspace(0.05, 20.0, 121)
  losses = [np.mean(np.logaddexp(0.0, -gaps_P / one)) for one in tried]
  return float(tried[int(np.argmin(losses))])


def measure_response(gaps_P: np.ndarray) -> dict[str, float]:
  """Of the logits that chosen copies beat rejected ones: accuracy (ties half), loss in nats, and calibration.

  calibration_error: the mean gap between the predicted and the observed share of preferences over ten
    bins of the prediction, weighed by pairs (each seen from both sides).
  """
  share_P = 1 / (1 + np.exp(-gaps_P))
  told = np.concatenate([share_P, 1 - share_P])
  came = np.concatenate([np.ones(len(gaps_P)), np.zeros(len(gaps_P))])
  bins = np.minimum((told * _BINS).astype(int), _BINS - 1)
  apart = [abs(np.sum((told - came)[bins == one])) for one in range(_BINS)]
  return {
    'accuracy': float(np.mean((np.sign(gaps_P) + 1) / 2)),
    'loss': float(np.mean(np.logaddexp(0.0, -gaps_P))),
    'calibration_error': float(np.sum(apart) / len(told)),
    'pairs': len(gaps_P),
  }


class ResponseTrain(Task):
  """Learns what audiences prefer from pairs of copies; the run is ads_studio's --response."""

  pairs: str = leaf('', 'JSONL, plain or compressed: audience, chosen and rejected of each pair.')
  audiences: str = leaf(
    '', 'A JSON file that adds groups to the taxonomy of audiences; empty: none.'
  )
  held_out: float = leaf(
    0.4, 'Share of pairs not learnt from: half to calibrate, half to measure.', low=0.1, high=0.8
  )
  buckets: int = leaf(2**16, 'Buckets F that features are hashed to.', low=2)
  decay: float = leaf(1e-3, 'Weight of half the squared weights in the loss.', low=0.0)
  steps: int = leaf(50, 'Steps of L-BFGS.', low=1)
  seed: int = leaf(0, 'Which pairs are held out.', low=0)

  def run(self, workdir: Path) -> Report:
    """The report's figures are of pairs that neither weights nor temperature have seen."""
    need('pairs', self.pairs, 'FILE.jsonl, pairs of copies')
    taxonomy, pairs = load_taxonomy(self.audiences), read_pairs(self.pairs)
    if len(pairs) < _FEWEST:
      raise UserError(f'--pairs={self.pairs} has {len(pairs)} pairs: give at least {_FEWEST}')
    order = permutation(len(pairs), 'pairs', self.seed)
    held = max(2, round(len(pairs) * self.held_out))
    pick = lambda places: [pairs[i] for i in places]
    settings = {'buckets': self.buckets, 'decay': self.decay, 'steps': self.steps}
    model = Response(fit_response(pick(order[held:]), taxonomy, **settings), 1.0)
    tuned, tested = pick(order[: held // 2]), pick(order[held // 2 : held])
    model = model._replace(temperature=best_temperature(gaps(model, tuned, taxonomy)))
    model.save(workdir)
    figures = measure_response(gaps(model, tested, taxonomy))
    print(', '.join(f'{name} {round(value, 4)}' for name, value in figures.items()))
    return {**figures, 'trained_on': len(pairs) - held, 'temperature': model.temperature}


def gaps(model: Response, pairs: Sequence[Pair], taxonomy: Taxonomy) -> np.ndarray:
  """f32 [P]: logits that the chosen copy is preferred."""
  both = [model.scores(pair.audience, pair[1:], taxonomy) for pair in pairs]
  return np.array([chosen - rejected for chosen, rejected in both], np.float32)


def read_pairs(path: str) -> list[Pair]:
  """The pairs of a JSONL file; UserError at the first row that is none."""
  found = []
  for number, line in numbered_lines('pairs', path):
    try:
      row: Mapping[str, Any] = json.loads(line)
      texts = row['chosen'], row['rejected']
      if not all(isinstance(text, str) for text in texts):
        raise TypeError('chosen and rejected are texts')
      found.append(Pair(parse_audience(row.get('audience')), *texts))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      said = str(error) if isinstance(error, Refused) else f'is not of the form {_FORM}'
      raise UserError(f'--pairs={path}: line {number}: {said}: mend or drop it') from None
  return found
