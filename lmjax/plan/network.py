"""How long a collective takes: an alpha-beta model of rings and trees over nodes of GPUs.

Bandwidth: NCCL's rings enter and leave a node through the network card of every GPU of the group
that is in it, so a group with g GPUs in each of m nodes sends through g cards a node; inside it
NVLink carries what a ring of all n = g m passes on. The slower of the two counts, they overlap.
Latency: a ring of n has n - 1 hops in turn, of which m lead from node to node; an all-reduce that is
small goes up and down a tree instead. So NCCL itself estimates them to choose. Hockney 1994; Thakur et al. 2005, "Optimization of Collective
Communication Operations in MPICH"; NCCL's own counting of bandwidth.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.parallel.collectives import Collective, Talk
from lmjax.plan.cards import Card

# NCCL's protocol for small messages, LL, beside LL128: its shares of the latency of a hop inside a
# node and between nodes (.6 of 1.9 us, 2.7 of 4.0 us), and the most that a ring carries with it in
# one node and over several, bytes a second (src/graph/tuning.cc of NCCL 2.19 to 2.27, for Hopper).
_SMALL = (0.32, 0.675)
_SMALL_RATES = {False: 141e9, True: 35e9}


class Group(NamedTuple):
  """How the devices of a collective lie: `size` of them in all over `nodes` nodes."""

  size: int
  nodes: int

  @property
  def per_node(self) -> float:
    return self.size / self.nodes


def group_of(talk: Talk, places: Sequence[int], per_node: int) -> Group:
  """The group of a collective that crosses most nodes.

  Args:
    places: number of the device at each place of the mesh.
    per_node: devices of a node, which have numbers in a row.
  """
  nodes = np.asarray(places)[talk.places] // per_node
  return Group(talk.size, max(len(set(row)) for row in _distinct_rows(nodes)))


def _distinct_rows(nodes: np.ndarray) -> np.ndarray:
  """Rows of which others are shifted copies: groups of one collective lie alike."""
  return np.unique(nodes - nodes.min(axis=1, keepdims=True), axis=0)


def sent_bytes(collective: Collective, group: Group) -> tuple[float, float]:
  """(inside, between): bytes that a device sends over NVLink, and its network card from node to node."""
  n, m, g = group.size, group.nodes, group.per_node
  size, kind = collective.bytes, collective.kind
  if kind in ('collective-permute', 'collective-broadcast'):
    return (size, 0.0) if m == 1 else (0.0, size)
  if kind in ('all-to-all', 'ragged-all-to-all'):
    return size * (g - 1) / n, size * (n - g) / n
  passes = 2 if kind == 'all-reduce' else 1
  return passes * size * (n - 1) / n, passes * size * (m - 1) / m / g


def seconds(collective: Collective, group: Group, card: Card) -> float:
  """Of one execution: by the protocol of NCCL that is faster for so many bytes."""
  inside, between = sent_bytes(collective, group)
  rate_inside = card.inside.bytes_per_second * card.link_inside
  rate_between = card.between.bytes_per_second * card.link_between
  large = latency(collective, group, card) + max(inside / rate_inside, between / rate_between)
  if card.gpu is None:
    return large
  slow = _SMALL_RATES[group.nodes > 1]
  small = latency(collective, group, card, _SMALL) + max(inside / slow, between / rate_between)
  return min(large, small)


def latency(
  collective: Collective, group: Group, card: Card, shares: tuple[float, float] = (1.0, 1.0)
) -> float:
  """Of the hops that follow each other, in seconds; `shares` of the links' latencies."""
  n, m, g = group.size, group.nodes, group.per_node
  near = card.inside.latency_seconds * shares[0]
  far = card.between.latency_seconds * shares[1]
  if collective.kind in ('collective-permute', 'collective-broadcast'):
    return near if m == 1 else far
  if collective.kind in ('all-to-all', 'ragged-all-to-all'):
    return near if m == 1 else far + near
  ring = (n - m) * near + (m if m > 1 else 0) * far
  if collective.kind != 'all-reduce':
    return ring
  tree = 2 * (math.ceil(math.log2(m)) * far + (g - 1) * near)
  return min(2 * ring, tree)
