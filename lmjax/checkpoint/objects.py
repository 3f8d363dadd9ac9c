"""Has orbax write to and read from s3:// by TensorStore, which can, as it does gs:// by itself.

The one place that reaches into orbax's private modules, of the versions that setup.cfg allows.
"""

import os
from typing import Any
from urllib.parse import urlsplit

_RETRIES = 8  # TensorStore's own 32 wait a quarter of an hour for an endpoint that is not there


def teach_s3() -> None:
  """To be called before orbax is handed a path on s3://."""
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils

  private: Any = tensorstore_utils
  if getattr(gcs_utils.get_kvstore_for_gcs, 'knows_s3', False):
    return
  of_gcs = gcs_utils.get_kvstore_for_gcs
  of_any = lambda path: _s3_spec(path) if path.startswith('s3://') else of_gcs(path)
  of_any.knows_s3 = True
  gcs_utils.get_kvstore_for_gcs = of_any
  private._use_gcs_driver = lambda path: path.startswith(('gs://', 's3://'))
  normal = private._normalize_path
  private._normalize_path = lambda path: normal(path).replace('s3:/', 's3://')


def _s3_spec(path: str) -> dict[str, Any]:
  """TensorStore's name for a folder, with the environment variables that AWS's own tools go by."""
  get = os.environ.get
  parts = urlsplit(path)
  spec = {
    'driver': 's3',
    'bucket': parts.netloc,
    'path': parts.path.strip('/'),
    'endpoint': get('AWS_ENDPOINT_URL_S3') or get('AWS_ENDPOINT_URL'),
    'aws_region': get('AWS_REGION') or get('AWS_DEFAULT_REGION'),
    'aws_credentials': {'type': 'environment'} if get('AWS_ACCESS_KEY_ID') else None,
    's3_request_retries': {'max_retries': _RETRIES},
  }
  return {name: value for name, value in spec.items() if value is not None}
