"""A run of milliseconds a step, for tests that start it as a process of its own."""

from pathlib import Path

from lmjax.checkpoint.store import Checkpoint
from lmjax.data.sources import Posts
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.models.transformer import Decoder
from lmjax.optim.optimizer import AdamW
from lmjax.train.pretrain import Pretrain

POSTS = Path(__file__).parents[1] / 'data' / 'fixture' / 'posts.jsonl'


def small() -> Pretrain:
  """60 steps of a decoder of width 32 on the committed posts, saved every 5."""
  return Pretrain(
    steps=60,
    batch=4,
    length=128,  # held-out posts then need programs of two lengths, not of four
    source=Posts(posts=str(POSTS)),
    text=TokenizerConfig(vocab=300),
    model=Decoder(width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp=64),
    optimizer=AdamW(peak_lr=3e-3),
    checkpoint=Checkpoint(every_steps=5),
    evaluate_every=30,
    evaluate_posts=4,
    samples=0,
  )
