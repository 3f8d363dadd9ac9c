"""The table of cards: every number has a source, peaks agree, and a user's own card is one dataclass."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lmjax.core.clock import PEAKS
from lmjax.core.errors import UserError
from lmjax.parallel.accelerator import PRESETS, preset
from lmjax.parallel.topology import GPUS, compile_there, describe
from lmjax.plan import cards
from lmjax.plan.cards import CARDS, Card, Link

H100 = CARDS['h100']
MODULE = """
import dataclasses
from lmjax.plan.cards import CARDS
MINE = dataclasses.replace(CARDS['h100'], name='mine', dollars=1.0)
PRICE = 1.0
"""


@pytest.fixture(scope='module')
def here() -> Card:
  return cards.measured()


@pytest.fixture
def own_module(tmp_path, monkeypatch):
  (tmp_path / 'my_cards.py').write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize('name', CARDS)
def test_every_number_of_the_table_has_a_source(name):
  sources = CARDS[name].sources
  assert set(sources) == set(cards.sourced())
  assert all(len(source) > 5 for source in sources.values())
  assert 'your own' not in sources.values()


def test_the_fields_that_need_a_source_are_those_that_hold_numbers():
  for field in dataclasses.fields(Card):
    value = getattr(H100, field.name)
    held = (
      value.values() if field.name == 'flops' else value if isinstance(value, Link) else [value]
    )
    assert (field.name in cards.sourced()) == all(isinstance(each, int | float) for each in held)


def test_there_is_a_card_for_every_gpu_that_xla_is_told_of_and_for_every_preset():
  assert set(CARDS) == set(GPUS) == set(PRESETS) - {'cpu'}
  for name, card in CARDS.items():
    assert card.gpu is GPUS[name]
    assert preset(card.name).name == name


@pytest.mark.parametrize('name', CARDS)
def test_the_peak_is_the_one_that_mfu_is_a_share_of(name):
  card = CARDS[name]
  assert card.flops['bfloat16'] == next(flops for kind, flops in PEAKS if kind in card.name)


@pytest.mark.parametrize('name', CARDS)
def test_narrower_numbers_are_faster_by_two(name):
  flops = CARDS[name].flops
  assert set(flops) == set(PRESETS[name].dtypes)
  assert flops['bfloat16'] == pytest.approx(2 * flops['float32'], rel=0.03)
  assert flops.get('float8', 2 * flops['bfloat16']) == pytest.approx(
    2 * flops['bfloat16'], rel=0.01
  )


@pytest.mark.parametrize(
  ('name', 'inside_gb', 'between_gb', 'node', 'server_kw'),
  [
    ('a100', 300, 25, 8, 6.5),
    ('h100', 450, 50, 8, 10.2),
    ('h200', 450, 50, 8, 10.2),
    ('b200', 900, 50, 8, 14.3),
    ('gb200', 900, 50, 72, 120),
  ],
)
def test_links_and_power_are_those_of_the_data_sheets(name, inside_gb, between_gb, node, server_kw):
  card = CARDS[name]
  assert card.inside.bytes_per_second == inside_gb * 1e9
  assert card.between.bytes_per_second == between_gb * 1e9
  assert card.node == node
  assert (card.watts + card.server_watts) * node / 1e3 == pytest.approx(server_kw, rel=0.01)


def test_a_program_may_take_xlas_share_less_the_reserve():
  assert H100.usable_bytes == 0.92 * 84_942_979_072 - 2.5 * 2**30


@pytest.mark.parametrize('own', [False, True], ids=['gb200', 'own'])
def test_a_card_compiles(own):
  gpu = CARDS['gb200'].gpu
  gpu = gpu._replace(name='mine', cores=100) if own else gpu
  device = describe(gpu, per_host=1).devices[0]
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
  assert device.device_kind == gpu.name
  assert 'HloModule' in compile_there(jax.jit(jnp.tanh).trace(x).lower()).as_text()


def test_a_card_is_found_by_its_name():
  assert cards.find('gb200') is CARDS['gb200']


@pytest.mark.usefixtures('own_module')
def test_a_users_own_card_is_found_in_its_module():
  assert cards.find('my_cards:MINE').name == 'mine'


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('h10', "unknown accelerator 'h10': did you mean h100"),
    ('tpu', "unknown accelerator 'tpu': did you mean cpu"),
    ('my_cards:MIN', "my_cards has no lmjax.plan.cards.Card 'MIN': did you mean MINE?"),
    ('my_cards:PRICE', "my_cards has no lmjax.plan.cards.Card 'PRICE': known are: MINE"),
    ('nowhere:MINE', "No module named 'nowhere': start from its folder, or set PYTHONPATH"),
    (':MINE', '--accelerator=:MINE: ValueError: Empty module name'),
  ],
)
@pytest.mark.usefixtures('own_module')
def test_a_card_that_is_not_there_is_refused(name, said):
  with pytest.raises(UserError) as refused:
    cards.find(name)
  assert said in str(refused.value)


@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('matmul', 1.2, 'card mine: matmul=1.2: expected a share above 0 and at most 1'),
    ('memory_fraction', 0.0, 'memory_fraction=0.0: expected a share above 0 and at most 1'),
    ('memory_bytes', 0, 'memory_bytes=0: expected a number above 0'),
    ('node', 0, 'node=0: expected a number above 0'),
  ],
)
def test_numbers_that_cannot_be_are_refused(field, value, said):
  with pytest.raises(UserError, match=said):
    dataclasses.replace(H100, **{'name': 'mine', field: value})


def test_what_a_user_gives_no_source_for_is_their_own():
  mine = dataclasses.replace(H100, sources={'dollars': 'our offer'})
  assert mine.sources['dollars'] == 'our offer'
  assert mine.sources['watts'] == 'your own'


def test_this_machine_is_measured_and_says_so(here):
  assert here.gpu is None
  assert 1e9 < here.flops['float32'] < 1e14
  assert 1e8 < here.memory_bytes_per_second < 1e13
  assert 1e8 < here.usable_bytes <= here.memory_bytes
  assert set(here.sources) == set(cards.sourced())
  assert 'your own' not in here.sources.values()
  for field in ('flops', 'memory_bytes', 'memory_bytes_per_second', 'inside', 'between', 'host'):
    assert 'measured here' in here.sources[field]


def test_this_machine_is_measured_once(here):
  assert cards.find('cpu') is here
