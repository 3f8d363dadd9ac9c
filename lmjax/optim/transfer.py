"""How a learning rate that was found at one width is carried to another."""

from typing import NamedTuple


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
