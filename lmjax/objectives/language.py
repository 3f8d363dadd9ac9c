"""Language modelling: predict every token of a post from those before it."""

import jax

from lmjax.core.config import Config, leaf
from lmjax.core.types import Batch, Mean, Params
from lmjax.models.transformer import Decoder
from lmjax.ops.loss import cross_entropy


class Language(Config):
  """Next-token cross-entropy in nats, plus what the model's experts ask for."""

  z_loss: float = leaf(0.0, 'Weight of the squared logsumexp of the logits.', low=0.0)
  chunk: int = leaf(32, 'Positions of a row whose logits exist at a time.', low=1, run=True)

  def __call__(
    self, model: Decoder, params: Params, batch: Batch, rng: jax.Array
  ) -> tuple[Mean, dict[str, Mean]]:
    """The loss to differentiate (`total`) and its weight in tokens, and the means to log.

    Auxiliary losses are summed over layers; they are defined per row, so microbatches add.
    """
    del rng
    output = model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL)
    head, chunk = model.head_params(params), self.chunk
    rows = (output.hidden_BLD, batch.targets_BL, batch.weights_BL)
    likelihood = cross_entropy(model.logits, head, *rows, chunk=chunk, z_loss=self.z_loss)
    losses = [mean.total for name, mean in output.aux.items() if name.endswith('_loss')]
    loss = Mean(likelihood.total + sum(losses), likelihood.weight)
    return loss, {'loss': likelihood, **output.aux}
