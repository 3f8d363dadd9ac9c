"""How a learning rate that was found at some widths is carried to others.

transfer.json is the one place of the law that large experiments take theirs from, and says whose it is;
`--experiment=posts_ladder --update` writes it: the rate of the ladder at its widths, carried on to one that
was published. The ladder's own exponent, of widths within a factor of 3, is not trusted over five octaves.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from lmjax.core.task import write_json

# Llama 3 8B (arXiv:2407.21783, table 3), as two notes that quote the table have it.
PUBLISHED_WIDTH, PUBLISHED_RATE = 4096, 3e-4
COMMITTED = Path(__file__).with_name('transfer.json')


class WidthLaw(NamedTuple):
  """Best peak learning rate of a model: rate * (width of the law / width of the model)^exponent.

  muP's exponent for the hidden matrices of Adam is 1 (Yang et al. 2022, arXiv:2203.03466); where one
  rate serves all parameters, it is measured: `posts_ladder`.
  """

  width: float
  rate: float
  exponent: float

  def peak_lr(self, width: float) -> float:
    return self.rate * (self.width / width) ** self.exponent

  def through(self, width: float, rate: float) -> 'WidthLaw':
    """The law that has the same rate at this one's width, and `rate` at `width`."""
    return self._replace(exponent=math.log(self.rate / rate) / math.log(width / self.width))

  def commit(self, source: str, path: Path = COMMITTED) -> None:
    """Writes the law to `path`; `source` says from where it is."""
    write_json(path, {'law': self._asdict(), 'source': source})


def peak_lr(width: int, path: Path = COMMITTED) -> float:
  """Peak learning rate at a width by the committed law, to two digits: it is not known better."""
  law = WidthLaw(**json.loads(path.read_text(encoding='utf-8'))['law'])
  return float(f'{law.peak_lr(width):.2g}')
