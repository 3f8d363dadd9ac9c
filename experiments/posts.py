"""Language models trained on posts, from a laptop's to 314 billion parameters."""

from lmjax.core.registry import experiment
from lmjax.models.layers import Norm
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.optim.optimizer import Muon
from lmjax.optim.schedule import WarmupStableDecay
from lmjax.train.pretrain import Pretrain
from lmjax.train.sample import Sample

PLAIN = Norm(scale='none')


@experiment
def posts_tiny() -> Pretrain:
  """Train a small model on 63,326 real posts: about 150 s of training on 2 cores."""
  return Pretrain(
    steps=700,
    batch=16,
    length=128,
    model=Decoder(
      width=256,
      layers=3,
      heads=4,
      kv_heads=4,
      head_dim=64,
      mlp=1024,
      activation='relu2',
      qk_norm=PLAIN,
      embedding_norm=PLAIN,
      layout='list',
      attention_block=32,
    ),
    objective=Language(chunk=32),
    optimizer=Muon(
      matrix_lr=0.02,
      peak_lr=3e-3,
      weight_decay=0.0,
      clip_norm=None,
      schedule=WarmupStableDecay(warmup_fraction=0.03, decay_fraction=0.7),
    ),
  )


@experiment
def posts_sample() -> Sample:
  """Generate posts with a trained model: --checkpoint=RUN --prompt="..."."""
  return Sample()
