"""sentence-transformers encoding posts: one side of lmjax's bench_search.

usage: python tools/bench/peers/embed.py '{"posts": "posts.json", "encoder": "FOLDER"}', where posts.json is a
list of texts and FOLDER holds config.json, model.safetensors and tokenizer.json. Batches and sorting by
length are its own; needs pip install sentence-transformers.
"""

import json
import sys
import time
from pathlib import Path

from sentence_transformers import SentenceTransformer


def main() -> None:
  settings = json.loads(sys.argv[1])
  texts = json.loads(Path(settings['posts']).read_text(encoding='utf-8'))
  model = SentenceTransformer(settings['encoder'], device='cpu')
  model.max_seq_length = 256

  def turn() -> dict:
    begun = time.perf_counter()
    model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return {'posts_per_second': len(texts) / (time.perf_counter() - begun)}

  turn()
  print(json.dumps({'ready': True}), flush=True)
  for _ in sys.stdin:
    print(json.dumps(turn()), flush=True)


if __name__ == '__main__':
  main()
