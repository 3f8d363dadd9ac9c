"""What a job costs, by hand: days, power, bought and rented cards."""

import dataclasses

import pytest

from lmjax.core import config
from lmjax.core.errors import UserError
from lmjax.plan.cards import CARDS
from lmjax.plan.money import Money, bill

H100 = CARDS['h100']
GIVEN = Money(dollars_card=10_000, dollars_hour=2, years=4, kwh_dollars=0.1, pue=1.25)
# 864e9 tokens in a day of 1e7 a second, and a ninth more with what failures take.
TEN_DAYS = (1_000, 7.776e12, 1e7, 0.9)


def test_days_are_those_of_kept_work():
  assert bill(GIVEN, H100, 1_000, 864e9, 1e7, 1.0).days == 1
  assert bill(GIVEN, H100, 1_000, 864e9, 1e7, 0.5).days == 2


def test_a_bill_by_hand():
  found = bill(GIVEN, H100, *TEN_DAYS)
  assert found.days == pytest.approx(10)
  assert found.megawatt == pytest.approx(1_000 * (700 + 575) * 1.25 / 1e6)
  assert found.megawatt_hours == pytest.approx(1.59375 * 240)
  assert found.power_dollars == pytest.approx(382_500 * 0.1)
  assert found.purchase_dollars == 10e6
  assert found.write_off_dollars == pytest.approx(10e6 * 10 / 1_461)
  assert found.bought_dollars == pytest.approx(38_250 + 68_446.27, abs=0.01)
  assert found.rented_dollars == pytest.approx(1_000 * 2 * 240)


def test_prices_that_nobody_gave_are_the_cards():
  found = bill(Money(), H100, *TEN_DAYS)
  assert found.purchase_dollars == 1_000 * H100.dollars
  assert found.rented_dollars == pytest.approx(1_000 * H100.dollars_hour * 240)


def test_twice_the_gpus_in_half_the_time_cost_the_same():
  gpus, tokens, speed, kept = TEN_DAYS
  one, two = bill(GIVEN, H100, *TEN_DAYS), bill(GIVEN, H100, 2 * gpus, tokens, 2 * speed, kept)
  assert two.days == one.days / 2
  assert two.bought_dollars == pytest.approx(one.bought_dollars)
  assert two.rented_dollars == pytest.approx(one.rented_dollars)
  assert two.megawatt_hours == pytest.approx(one.megawatt_hours)


def test_what_is_not_known_of_a_card_is_not_made_up():
  unknown = dataclasses.replace(H100, watts=None, dollars=None, dollars_hour=None)
  found = bill(Money(), unknown, *TEN_DAYS)
  assert found.days == pytest.approx(10)
  assert set(found[1:]) == {None}


def test_a_price_that_is_given_serves_a_card_without_one():
  unknown = dataclasses.replace(H100, watts=None, dollars=None, dollars_hour=None)
  found = bill(GIVEN, unknown, *TEN_DAYS)
  assert found.purchase_dollars == 10e6
  assert found.rented_dollars == pytest.approx(480_000)
  assert found.bought_dollars is None


@pytest.mark.parametrize(
  ('leaf', 'value', 'said'),
  [
    ('pue', 0.9, 'pue=0.9: expected a number of 1 or more'),
    ('years', 0, 'years=0: expected a number above 0'),
    ('kwh_dollars', -0.1, 'kwh_dollars=-0.1: expected a number of 0 or more'),
    ('dollars_card', -1, 'dollars_card=-1: expected none or a number of 0 or more'),
  ],
)
def test_what_cannot_be_is_refused(leaf, value, said):
  with pytest.raises(UserError, match=said):
    config.override(Money(), {leaf: value})
