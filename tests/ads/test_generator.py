"""Briefs that are made up are ordinary ones, and what a copy gets wrong of one is counted."""

import itertools

import numpy as np
import pytest

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import parse_audience
from lmjax.ads.creative import Copy
from lmjax.ads.generator import appeal, count_slot_errors, goods, make_pairs, make_samples
from lmjax.ads.policy import judge_brief
from lmjax.ads.studio import accept_brief


def test_every_product_and_value_passes_the_policy():
  assert set(goods()) == set(load_taxonomy().interests)
  names = [(product, slots) for products in goods().values() for product, slots in products.items()]
  facts = [list(itertools.chain(*slots)) for _, slots in names]
  every = [*(product for product, _ in names), *itertools.chain(*facts)]
  for first in range(0, len(every), 32):  # as many as a brief may have
    assert judge_brief({'product': 'Goods', 'facts': every[first : first + 32]}) is None
  assert all(len(one) == len(set(one)) == 8 for one in facts)


def test_briefs_are_the_same_for_a_seed_and_of_every_group_alike():
  samples = make_samples(48, 3)
  assert samples == make_samples(48, 3)
  assert samples != make_samples(48, 4)
  groups = [one.group for one in samples]
  assert all(groups.count(name) == 3 for name in goods())
  assert len({one.brief['product'] for one in samples}) == 48
  for one in samples:
    assert set(accept_brief(one.brief).facts).isdisjoint(one.others)


def test_products_that_copy_is_taught_of_are_not_those_it_is_measured_on():
  taught, kept = (make_samples(64, 0, part) for part in ('taught', 'kept'))
  products = [{one.brief['product'] for one in samples} for samples in (taught, kept)]
  assert [len(one) for one in products] == [32, 16]
  assert products[0].isdisjoint(products[1])


@pytest.mark.parametrize(
  ('text', 'errors'),
  [
    ('Tent: sleeps two, 89 euros.', 0),
    ('Tent: sleeps two.', 1),
    ('Tent: sleeps two, sleeps two, 89 euros.', 1),
    ('Tent: sleeps two, sleeps four, 89 euros.', 1),
    ('Tent: sleeps two, 89 euros, 3 kg.', 1),
    ('Tent.', 2),
  ],
)
def test_slot_errors_are_counted(text, errors):
  assert count_slot_errors(text, ['sleeps two', '89 euros'], ['sleeps four', '140 euros']) == errors


def test_made_up_readers_choose_what_they_like_more_often():
  (sample,) = make_samples(1, 0)
  full = Copy('Yours', '. '.join(sample.brief['facts']), 'See more')
  bare = Copy('Hello', 'Make it', 'See more')
  audience = parse_audience(sample.brief['audience'])
  facts = sample.brief['facts']
  gap = appeal(audience, full, facts) - appeal(audience, bare, facts)
  pairs = make_pairs([(sample, [full, bare])], 2000, np.random.default_rng(0))
  share = np.mean([pair.chosen == full.text for pair in pairs])
  assert share == pytest.approx(1 / (1 + np.exp(-gap)), abs=0.02)
  assert share > 0.9
