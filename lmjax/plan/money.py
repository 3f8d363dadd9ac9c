"""Days, dollars and energy of a job: pure arithmetic on a rate in tokens a second."""

from typing import NamedTuple

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.plan.cards import Card
from lmjax.plan.failures import DAY

_YEAR_DAYS = 365.25
_HOPELESS = 1e-6  # goodput of a run that does not end


class Money(Config):
  """What things cost."""

  dollars_card: float | None = leaf(
    None, "Dollars to buy one card with its share of a server; none: the table's $10,000.", low=0
  )
  dollars_hour: float | None = leaf(
    None, "Dollars to rent one for an hour; none: the table's, a judgement.", low=0
  )
  years: float = leaf(
    4.0,
    'Years over which bought cards are written off: a judgement; Amazon takes 5 for servers (10-K of '
    '2024).',
    above=0,
  )
  kwh_dollars: float = leaf(
    0.08, 'Dollars for a kWh: what US industry paid on average in 2024 (EIA).', low=0
  )
  # The Uptime Institute survey of 2024 has 1.56 on average.
  pue: float = leaf(
    1.2,
    'Power of the building over that of its machines (power usage effectiveness): a judgement.',
    low=1,
  )


class Bill(NamedTuple):
  """What a job comes to; None where no price is known.

  Attributes:
    days: of wall-clock.
    purchase_dollars: for the cards, whatever else they do.
    write_off_dollars: of that, for the days of the job.
    power_dollars, megawatt, megawatt_hours: of cards, servers and building.
    bought_dollars: write-off and power.
    rented_dollars: for the days of the job.
  """

  days: float
  purchase_dollars: float | None
  write_off_dollars: float | None
  power_dollars: float | None
  megawatt: float | None
  megawatt_hours: float | None
  bought_dollars: float | None
  rented_dollars: float | None


def bill(
  given: Money, card: Card, gpus: int, tokens: float, tokens_per_second: float, goodput: float
) -> Bill:
  """What training on `tokens` costs.

  Args:
    tokens_per_second: of all GPUs together while they compute.
    goodput: share of the wall-clock that is kept work.
  """
  if goodput < _HOPELESS:
    raise UserError(
      f'goodput is {goodput:.1g}, the run fails faster than it comes back: lower '
      '--failures.restart_seconds, or raise --failures.storage_gb_per_second'
    )
  days = tokens / (tokens_per_second * goodput) / DAY
  card_dollars = card.dollars if given.dollars_card is None else given.dollars_card
  hour_dollars = card.dollars_hour if given.dollars_hour is None else given.dollars_hour
  megawatt = power_dollars = energy = write_off = None
  if card.watts is not None and card.server_watts is not None:
    megawatt = gpus * (card.watts + card.server_watts) * given.pue / 1e6
    energy = megawatt * 24 * days
    power_dollars = energy * 1000 * given.kwh_dollars
  purchase = None if card_dollars is None else gpus * card_dollars
  if purchase is not None:
    write_off = purchase * days / (given.years * _YEAR_DAYS)
  bought = None
  if write_off is not None and power_dollars is not None:
    bought = write_off + power_dollars
  rented = None if hour_dollars is None else gpus * hour_dollars * 24 * days
  return Bill(days, purchase, write_off, power_dollars, megawatt, energy, bought, rented)
