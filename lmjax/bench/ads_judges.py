"""What generated copy is judged by: a classifier of audiences, readers that are made up, and self-BLEU.

S texts, G labels, D size of a vector.
"""

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.generator import make_pairs, make_samples
from lmjax.ads.maker import limits_for
from lmjax.ads.response import Response, fit_response
from lmjax.ads.studio import accept_brief
from lmjax.ads.template import write_templates
from lmjax.ads.writer import draw_copies
from lmjax.core import assets
from lmjax.core.errors import UserError
from lmjax.data.files import numbered_lines
from lmjax.search.embed import Embedder

_PASSAGES = 40  # real texts of a group of interests
_BRIEFS, _DRAWN, _PAIRS = 96, 12, 12  # what made-up readers choose from, and how often
_FORM = '{"text": "...", "label": "outdoors"}'

Labelled = list[tuple[str, str]]
"""(text, label) pairs."""


class AudienceJudge:
  """Says whose text it is: the label whose texts' mean vector is most alike, the mean of all taken off."""

  def __init__(self, embedder: Embedder, rows: Labelled) -> None:
    """UserError where all of `rows` have one label."""
    self.names = sorted({label for _, label in rows})
    if len(self.names) < 2:
      raise UserError(f'--audience_texts has the labels {self.names}: give two or more')
    self._embedder = embedder
    vectors_SD = embedder.embed([text for text, _ in rows])
    labels = np.array([label for _, label in rows])
    means_GD = np.stack([vectors_SD[labels == name].mean(axis=0) for name in self.names])
    self._mean_D = means_GD.mean(axis=0)
    means_GD -= self._mean_D
    self._means_GD = means_GD / np.linalg.norm(means_GD, axis=1, keepdims=True)

  def labels_of(self, texts: Sequence[str]) -> list[str]:
    if not texts:
      return []
    scores_SG = (self._embedder.embed(texts) - self._mean_D) @ self._means_GD.T
    return [self.names[i] for i in np.argmax(scores_SG, axis=1)]


def passages_of_interests() -> Labelled:
  """Passages of the asset boolq-passages that name the interests of one group of the taxonomy, and no other's."""
  rows = map(json.loads, assets.fetch('boolq-passages').read_text(encoding='utf-8').splitlines())
  groups = {
    name: re.compile(rf'\b(?:{"|".join(map(re.escape, (name, *words)))})s?\b', re.IGNORECASE)
    for name, words in load_taxonomy().interests.items()
  }
  found: dict[str, Labelled] = {name: [] for name in groups}
  for text in dict.fromkeys(row['passage'] for row in rows):
    named = [name for name, pattern in groups.items() if pattern.search(text)]
    if len(named) == 1 and len(found[named[0]]) < _PASSAGES:
      found[named[0]].append((text, named[0]))
  return [row for rows in found.values() for row in rows]


def read_audience_texts(path: str) -> Labelled:
  """Rows of text and label; UserError at the first line that is none."""
  found = []
  for number, line in numbered_lines('audience_texts', path):
    try:
      row = json.loads(line)
      found.append((str(row['text']), str(row['label'])))
    except (ValueError, KeyError, TypeError):
      raise UserError(
        f'--audience_texts={path}: line {number} is not of the form {_FORM}: mend or drop it'
      ) from None
  return found


def made_up_response(seed: int) -> Response:
  """What readers that are made up prefer, learnt from pairs of copies that no model wrote."""
  random = np.random.default_rng((seed, 7))
  samples = []
  for sample in make_samples(_BRIEFS, seed + 1):
    brief = accept_brief(sample.brief)
    limits = limits_for(brief)
    copies = draw_copies(brief, limits, _DRAWN, random) + write_templates(brief, limits, 4)
    samples.append((sample, copies))
  pairs = make_pairs(samples, _PAIRS, random)
  weights_F = fit_response(pairs, load_taxonomy(), buckets=2**16, decay=1e-3, steps=50)
  return Response(weights_F, 1.0)


def self_bleu(texts: Iterable[str]) -> float:
  """The mean BLEU-4 of each text against the others, 0 to 1: less is more diverse (Zhu et al. 2018, 1802.01886).

  Raises:
    UserError: sacrebleu is missing.
  """
  try:
    import sacrebleu
  except ImportError:
    raise UserError("self-BLEU needs sacrebleu: pip install 'lmjax[ads]'") from None
  texts = list(texts)
  scores = [
    sacrebleu.sentence_bleu(text, [*texts[:i], *texts[i + 1 :]]).score
    for i, text in enumerate(texts)
  ]
  return float(np.mean(scores)) / 100
