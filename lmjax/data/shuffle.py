"""The one source of random order in the data: permutations that depend on their key alone.

Knows nothing about posts, rows or steps.
"""

import hashlib

import numpy as np


def permutation(count: int, *key: int | str) -> np.ndarray:
  """0..count-1 in an order that is the same for the same key on every machine and NumPy version.

  NumPy promises to keep the stream of a bit generator; it does not promise that for
  `Generator.permutation`, and a run that resumes after an upgrade must see the same batches.

  Args:
    count: how many to order.
    key: what the order is of, e.g. `'windows', seed, epoch`.
  """
  return np.argsort(draws(count, *key), kind='stable')


def draws(count: int, *key: int | str) -> np.ndarray:
  """`count` random u64, the same for the same key on every machine and NumPy version."""
  entropy = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
  return np.random.PCG64(int.from_bytes(entropy, 'little')).random_raw(count)
