"""Arrays that take minutes to compute, kept in LMJAX_CACHE under a hash of all that they depend on."""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from lmjax.core.assets import cache_folder


def kept(folder: str, key: Iterable[str], make: Callable[[], np.ndarray]) -> np.ndarray:
  """What `make` returns, read from LMJAX_CACHE/`folder` where it was made for this key before.

  Args:
    key: texts, in order, that say what is made; each counts by its content and its end.
  """
  digest = hashlib.sha256()
  for text in key:
    encoded = text.encode('utf-8', 'surrogatepass')
    digest.update(f'{len(encoded)} '.encode() + encoded)
  path = cache_folder() / folder / f'{digest.hexdigest()[:32]}.npy'
  if path.exists():
    return np.load(path)
  made = make()
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_suffix('.draft.npy')
  np.save(draft, made)
  draft.replace(path)
  return made
