"""What is counted, as Prometheus reads it: queue, tokens, times to the first token and between tokens."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lmjax.generate.continuous import Engine

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
  """Its own registry, so that several applications can be in one process."""

  def __init__(self, engine: Callable[[], Engine | None]) -> None:
    self._registry = CollectorRegistry()
    same: Any = {'registry': self._registry}
    self._requests = Counter('lmjax_requests', 'Answers.', ['route', 'status'], **same)
    self.first_token = Histogram(
      'lmjax_time_to_first_token_seconds',
      'From a request to its first token.',
      buckets=_FIRST,
      **same,
    )
    self.between_tokens = Histogram(
      'lmjax_inter_token_seconds', 'From a token to the next.', buckets=_BETWEEN, **same
    )
    self._registry.register(_OfEngine(engine))

  def answered(self, route: str, status: int) -> None:
    self._requests.labels(route, str(status)).inc()

  def text(self) -> bytes:
    return generate_latest(self._registry)


class _OfEngine(Collector):
  """Reads the engine's own counts when asked."""

  def __init__(self, engine: Callable[[], Engine | None]) -> None:
    self._engine = engine

  def collect(self) -> Iterator[Any]:
    engine = self._engine()
    if engine is None:
      return
    counts = engine.counts
    yield GaugeMetricFamily('lmjax_queue', 'Requests that wait.', engine.waiting)
    yield GaugeMetricFamily('lmjax_running', 'Sequences under way.', engine.running)
    yield GaugeMetricFamily(
      'lmjax_cache_tokens', 'Tokens that may be taken over.', engine.cached_tokens
    )
    yield GaugeMetricFamily('lmjax_cache_capacity_tokens', 'Room for tokens.', engine.capacity)
    yield GaugeMetricFamily('lmjax_cache_bytes', 'Of all keys and values.', engine.cache_bytes)
    for name, doc, value in (
      ('steps', 'Steps of the engine.', counts.steps),
      ('busy_seconds', 'Seconds that steps took.', counts.busy_seconds),
      ('prompt_tokens', 'Tokens of prompts that were computed.', counts.prompt_tokens),
      ('reused_tokens', 'Tokens of prompts that were not computed again.', counts.reused_tokens),
      ('tokens', 'Tokens that were generated.', counts.added_tokens),
      ('guessed_tokens', 'Tokens guessed ahead.', counts.guessed_tokens),
      ('guessed_right_tokens', 'Of these, those that were right.', counts.guessed_right),
    ):
      yield CounterMetricFamily(f'lmjax_{name}', doc, value)
