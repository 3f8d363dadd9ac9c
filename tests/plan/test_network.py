"""Collectives take the time of their bytes and hops, by the links that they cross."""

import dataclasses

import numpy as np
import pytest

from lmjax.parallel.collectives import Collective, Talk
from lmjax.plan import network
from lmjax.plan.cards import CARDS
from lmjax.plan.network import Group

CARD = CARDS['h100']
GB = 10**9


def sent(kind, group, size=8 * GB):
  return network.sent_bytes(Collective(kind, ('data',), size, 1, 'f32'), group)


def seconds(kind, group, size, card=CARD):
  return network.seconds(Collective(kind, ('data',), size, 1, 'f32'), group, card)


def test_a_group_knows_how_many_nodes_it_lies_on():
  rows = np.arange(32).reshape(2, 16)
  assert network.group_of(Talk(('data',), 16, rows), range(32), 8) == Group(16, 2)
  columns = rows.T.reshape(16, 2)
  assert network.group_of(Talk(('data',), 2, columns), range(32), 8) == Group(2, 2)
  # The places of a mesh may lie on other devices than their number says.
  places = [8 * (n % 4) + n // 4 for n in range(32)]
  inside = np.arange(32).reshape(8, 4)
  assert network.group_of(Talk(('tensor',), 4, inside), places, 8) == Group(4, 4)


def test_inside_a_node_everything_goes_by_nvlink():
  assert sent('all-gather', Group(8, 1)) == (7 * GB, 0)
  assert sent('all-reduce', Group(8, 1)) == (14 * GB, 0)
  assert sent('all-to-all', Group(8, 1)) == (7 * GB, 0)


def test_between_nodes_the_network_cards_of_a_node_share_what_enters_it():
  # Of 8 GB that 16 devices of two nodes gather, half enters each node, by 8 cards.
  assert sent('all-gather', Group(16, 2)) == (7.5 * GB, 0.5 * GB)
  # One device a node has one card.
  assert sent('all-gather', Group(2, 2)) == (4 * GB, 4 * GB)
  # All to all, each sends to the 8 of the other node itself.
  assert sent('all-to-all', Group(16, 2)) == (3.5 * GB, 4 * GB)


def test_large_messages_take_the_rate_of_the_slower_link():
  rate = CARD.between.bytes_per_second * CARD.link_between
  assert seconds('all-gather', Group(2, 2), 8 * GB) == pytest.approx(4 * GB / rate, rel=0.01)
  rate = CARD.inside.bytes_per_second * CARD.link_inside
  assert seconds('all-gather', Group(8, 1), 8 * GB) == pytest.approx(7 * GB / rate, rel=0.01)


def test_small_ones_take_the_latency_of_their_hops():
  ring = 15 * 0.32 * CARD.inside.latency_seconds  # of 16 GPUs: none leads from node to node
  few = seconds('all-gather', Group(16, 1), 16)
  assert few == pytest.approx(ring, rel=1e-3)
  assert seconds('all-gather', Group(2048, 256), 16) > 100 * few
  # A tree is deep as the logarithm of the nodes.
  assert seconds('all-reduce', Group(2048, 256), 16) < 0.1 * seconds(
    'all-gather', Group(2048, 256), 16
  )


@pytest.mark.parametrize(
  'kind', ['all-gather', 'reduce-scatter', 'all-reduce', 'ragged-all-to-all']
)
def test_half_the_bandwidth_never_takes_less(kind):
  halved = CARD.between._replace(bytes_per_second=CARD.between.bytes_per_second / 2)
  slow = dataclasses.replace(CARD, between=halved)
  for size in (1 << 10, 1 << 20, 1 << 30):
    assert seconds(kind, Group(64, 8), size, slow) >= seconds(kind, Group(64, 8), size)
  assert seconds(kind, Group(64, 8), 1 << 32, slow) > 1.5 * seconds(kind, Group(64, 8), 1 << 32)
