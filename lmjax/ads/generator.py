"""Briefs, and readers that prefer one copy to another, made up: what advertising is measured on without data.

The products are goods.json: for each group of interests some, each with slots of which a brief takes one
value. The readers are a rule (`appeal`) with noise; no person was asked.
"""

import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import AGES, Audience, parse_audience
from lmjax.ads.creative import Copy
from lmjax.ads.response import Pair

_DATA = Path(__file__).with_name('goods.json')
_PRICES = ('low', 'mid', 'high')
_FORMATS = ['1200x628', '1080x1080']


class Sample(NamedTuple):
  """A brief that was made up.

  Attributes:
    brief: as JSON.
    group: of the taxonomy's interests, the one it is made for.
    others: values of its slots that it does not have, so that a copy which says one is wrong.
  """

  brief: dict[str, Any]
  group: str
  others: tuple[str, ...]


@functools.cache
def goods() -> Mapping[str, Mapping[str, list[list[str]]]]:
  """Group of interests -> product -> slots -> values; the last slot is the price."""
  return json.loads(_DATA.read_text(encoding='utf-8'))


def make_samples(
  count: int, seed: int, part: Literal['all', 'taught', 'kept'] = 'all'
) -> list[Sample]:
  """`count` briefs, each group of interests as often as the others, no product twice before all have been.

  `part`: of each group all products, those that copy is taught of, or the last, which is kept from that.
  """
  random = np.random.default_rng((seed, 9))
  taxonomy, groups = load_taxonomy(), list(goods())
  styles = list(taxonomy.styles)
  parts = {'all': slice(None), 'taught': slice(-1), 'kept': slice(-1, None)}
  turns = {group: random.permutation(list(goods()[group])[parts[part]]) for group in groups}
  found = []
  for number in range(count):
    turn, place = divmod(number, len(groups))
    if not place:
      groups = [str(one) for one in random.permutation(groups)]
    group = groups[place]
    product = str(turns[group][turn % len(turns[group])])
    slots = goods()[group][product]
    values = [slot[random.integers(len(slot))] for slot in slots]
    words = (group, *taxonomy.interests[group])
    audience = {
      'age': AGES[random.integers(len(AGES))],
      'interests': [words[random.integers(len(words))]],
      'style': styles[random.integers(len(styles))],
      'price': _PRICES[random.integers(len(_PRICES))],
    }
    others = tuple(one for one in itertools.chain(*slots) if one not in values)
    brief = {'product': product, 'facts': values, 'audience': audience, 'formats': _FORMATS}
    found.append(Sample(brief, group, others))
  return found


def count_slot_errors(text: str, facts: Iterable[str], others: Iterable[str] = ()) -> int:
  """Slots that `text` leaves out or says twice, and what it says of them that is not so.

  Wrong is a value of `others`, and a figure that stands in none of `facts`.
  """
  facts, said = list(facts), text.casefold()
  times = [said.count(fact.casefold()) for fact in facts]
  wrong = sum(
    one.casefold() in said and not any(one.casefold() in fact.casefold() for fact in facts)
    for one in others
  )
  figures = lambda words: set(re.findall(r'\d+(?:[.,:]\d+)*', words))
  return sum(n != 1 for n in times) + wrong + len(figures(text) - figures('\n'.join(facts)))


def appeal(audience: Audience, copy: Copy, facts: list[str]) -> float:
  """How much a made-up reader likes a copy: facts told, those for its purse twice, being spoken to, brevity."""
  said = copy.text.casefold()
  told = [fact.casefold() in said for fact in facts]
  liked = 1.0 * sum(told)
  if audience.price == 'low':
    liked += 1.0 * told[-1]
  if audience.price == 'high':
    liked += 1.0 * told[1]
  liked += 0.7 * bool(re.search(r'\byour?s?\b', said))
  return liked - len(copy.text) / 100


def make_pairs(
  samples: Iterable[tuple[Sample, list[Copy]]], per_brief: int, random: np.random.Generator
) -> list[Pair]:
  """Pairs of copies of one brief, the chosen one drawn by Bradley & Terry's rule from what readers like."""
  pairs = []
  for sample, copies in samples:
    audience = parse_audience(sample.brief['audience'])
    for _ in range(per_brief if len(copies) > 1 else 0):
      a, b = (copies[i] for i in random.choice(len(copies), 2, replace=False))
      gap = appeal(audience, a, sample.brief['facts']) - appeal(audience, b, sample.brief['facts'])
      first = random.random() < 1 / (1 + np.exp(-gap))
      pairs.append(Pair(audience, *((a.text, b.text) if first else (b.text, a.text))))
  return pairs
