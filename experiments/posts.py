"""Language models trained on posts, from a laptop's to 314 billion parameters."""

import dataclasses

from lmjax.checkpoint.store import Checkpoint
from lmjax.core.registry import experiment
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.models.layers import Norm
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder, Rope
from lmjax.objectives.language import Language
from lmjax.optim.optimizer import AdamW, Muon
from lmjax.optim.schedule import Cosine, WarmupStableDecay
from lmjax.optim.transfer import peak_lr
from lmjax.parallel.mesh import Mesh
from lmjax.train.ladder import Ladder
from lmjax.train.pretrain import Pretrain
from lmjax.train.sample import Sample

PLAIN = Norm(scale='none')


@experiment
def posts_tiny() -> Pretrain:
  """Train a small model on 63,326 real posts: some minutes on 2 cores."""
  return Pretrain(
    steps=600,
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
      head='untied',
      attention_block=32,
      layout='list',
      dtype='bfloat16',
    ),
    start='bigrams',
    objective=Language(chunk=32),
    checkpoint=Checkpoint(every_steps=100),
    optimizer=Muon(
      matrix_lr=0.012,
      preconditioning='aol',
      ns_steps=4,
      peak_lr=6e-3,
      weight_decay=0.0,
      clip_norm=None,
      schedule=WarmupStableDecay(warmup_fraction=0.03, decay_fraction=0.7),
    ),
  )


@experiment
def posts_sample() -> Sample:
  """Generate posts with a trained model: --checkpoint=RUN --prompt="..."."""
  return Sample()


@experiment
def posts_moe_tiny() -> Pretrain:
  """The same with 4 experts a layer, 2 for each token."""
  dense = posts_tiny()
  model = dataclasses.replace(dense.model, mlp=512, moe=MoE(experts=4, top_k=2))
  return dataclasses.replace(dense, model=model)


@experiment
def posts_rung() -> Pretrain:
  """One size of the ladder: a small Llama under AdamW, a minute or less."""
  return Pretrain(
    steps=300,
    batch=16,
    length=128,
    model=Decoder(
      width=128, layers=3, heads=4, kv_heads=4, head_dim=32, mlp=384, attention_block=32
    ),
    optimizer=AdamW(peak_lr=3e-3, schedule=Cosine(warmup_fraction=0.05)),
    checkpoint=Checkpoint(every_steps=1000),
  )


@experiment
def posts_ladder() -> Ladder:
  """Fit laws to four sizes, predict a fifth, and train it: a quarter of an hour on 2 cores."""
  return Ladder()


@experiment
def posts_dense_1b() -> Pretrain:
  """1.5 billion parameters, for one node of 8 GPUs."""
  model = _llama(width=2048, layers=16, heads=32, kv_heads=8, head_dim=64, mlp=8192)
  return _large(model, Mesh(fsdp=8), batch=128)


@experiment
def posts_dense_8b() -> Pretrain:
  """8 billion parameters, for 256 GPUs: sharded inside groups of 32, replicated across them."""
  model = _llama(width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14336)
  return _large(model, Mesh(data=8, fsdp=32), batch=512)


@experiment
def posts_dense_70b() -> Pretrain:
  """70 billion parameters, for 1,024 GPUs: heads and MLP split inside a node of 8."""
  model = _llama(width=8192, layers=80, heads=64, kv_heads=8, head_dim=128, mlp=28672)
  return _large(model, Mesh(data=2, fsdp=64, tensor=8), batch=1024)


@experiment
def posts_moe_314b() -> Pretrain:
  """314 billion parameters, the size of Grok-1 as published, for 1,024 GPUs.

  Sizes and multipliers are those of xAI's release (github.com/xai-org/grok-1). Its attention
  soft-cap of 30 is left out: cuDNN's attention has none.
  """
  model = Decoder(
    vocab=131_072,
    width=6144,
    layers=64,
    heads=48,
    kv_heads=8,
    head_dim=128,
    mlp=32_768,
    activation='geglu',
    norm=Norm(eps=1e-5),
    post_norm=Norm(eps=1e-5),
    embedding_scale=78.38367176906169,
    logit_scale=0.5773502691896257,
    moe=MoE(experts=8, top_k=2),
    dtype='bfloat16',
    remat='full',
  )
  return _large(model, Mesh(fsdp=128, tensor=8), batch=1024)


def _llama(**sizes: int) -> Decoder:
  """A decoder of Llama 3's shape."""
  return Decoder(
    vocab=128_256,
    norm=Norm(eps=1e-5),
    rope=Rope(base=500_000.0),
    head='untied',
    dtype='bfloat16',
    remat='full',
    **sizes,  # type: ignore[arg-type]
  )


def _large(model: Decoder, mesh: Mesh, batch: int) -> Pretrain:
  """A run over posts of one's own (`--posts=GLOB`) in rows of 8,192 tokens."""
  return Pretrain(
    steps=100_000,
    batch=batch,
    length=8192,
    model=model,
    objective=Language(chunk=1024, z_loss=1e-4),
    optimizer=AdamW(peak_lr=peak_lr(model.width), schedule=Cosine(warmup_fraction=0.02)),
    mesh=mesh,
    text=TokenizerConfig(vocab=model.vocab or 128_000),
    checkpoint=Checkpoint(every_steps=500, keep_latest=3, keep_every=10_000),
    evaluate_every=1000,
    evaluate_posts=10_000,
  )
