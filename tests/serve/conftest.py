"""One warm server for all tests of a process."""

import pytest
from small_server import make_client, make_service, serving


@pytest.fixture(scope='session')
def service():
  return make_service()


@pytest.fixture(scope='session')
def audit_folder(tmp_path_factory):
  return tmp_path_factory.mktemp('serve')


@pytest.fixture(scope='session')
def address(service, audit_folder):
  with serving(service, audit_folder) as found:
    yield found


@pytest.fixture(scope='session')
def client(address):
  return make_client(address)
