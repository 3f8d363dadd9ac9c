"""The baseline of copy: a brief's own words put into fixed sentences, always faithful."""

import itertools
from collections.abc import Iterator, Sequence

from lmjax.ads.brief import Brief
from lmjax.ads.creative import Copy, Limits, find_problems, unlike, vocabulary


def write_templates(brief: Brief, limits: Limits, count: int) -> list[Copy]:
  """Up to `count` copies without a problem, the fullest first."""
  good = [copy for copy in _all(brief, limits) if not find_problems(brief, copy, limits)]
  return unlike(good)[:count]


def _all(brief: Brief, limits: Limits) -> Iterator[Copy]:
  product, facts = _begin(brief.product), [_begin(fact).rstrip('.') for fact in brief.facts]
  heads = [
    product,
    *(f'{product}: {fact}' for fact in brief.facts),
    f'Meet {brief.product}',
    *facts,
  ]
  heads.append(f'Discover {brief.product}')
  actions = vocabulary()['actions']
  for place, (start, head) in enumerate(itertools.product(range(max(1, len(facts))), heads)):
    if len(head) > limits.headline:
      continue
    rest = [
      fact for fact in facts[start:] + facts[:start] if fact.casefold() not in head.casefold()
    ]
    said = head.casefold()
    lines = [] if brief.product.casefold() in said else [product]
    musts = [_begin(word) for word in brief.must if word.casefold() not in said]
    body = _fill([*musts, *lines], rest, limits.body)
    fitting = [action for action in actions if len(action) <= limits.action]
    yield Copy(head, body or f'Discover {brief.product}.', fitting[place % len(fitting)])


def _fill(needed: Sequence[str], more: Sequence[str], limit: int) -> str:
  """Sentences: all of `needed`, then what fits of `more`."""
  body = ' '.join(f'{one}.' for one in needed)
  for one in more:
    longer = f'{body} {one}.'.strip()
    if one.casefold() not in body.casefold() and len(longer) <= limit:
      body = longer
  return body


def _begin(text: str) -> str:
  return text[:1].upper() + text[1:]
