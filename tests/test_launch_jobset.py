"""The JobSet and the Dockerfile: of the right form, and saying what lmjax relies on."""

import ast
import configparser
import copy
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from lmjax.core.task import EXIT_AGAIN
from lmjax.parallel import hosts

ROOT = Path(__file__).parents[1]
JOB = ('spec', 'replicatedJobs', 0, 'template', 'spec')
POD = (*JOB, 'template', 'spec')
JOBSET = yaml.safe_load((ROOT / 'tools/launch/jobset.yaml').read_text())


def strict(schema):
  """`schema`, that takes no field it does not name, and null nowhere."""
  if isinstance(schema, list):
    return [strict(item) for item in schema]
  if not isinstance(schema, dict):
    return schema
  if {'type': 'null'} in schema.get('anyOf', ()):
    return strict(schema['anyOf'][0])
  closed = (
    {'additionalProperties': False}
    if isinstance(schema.get('type'), str) and 'properties' in schema
    else {}
  )
  return {key: strict(value) for key, value in schema.items()} | closed


@pytest.fixture(scope='module')
def validator():
  """Of a JobSet and its pods: the package has it from the OpenAPI of JobSet and of Kubernetes."""
  whole = strict(JobsetV1alpha2JobSet.model_json_schema(by_alias=True))
  # The package says in words alone what an action may be, and takes an amount for an object.
  whole['$defs']['IoK8sApimachineryPkgApiResourceQuantity'] = {
    'type': ['integer', 'string'],
    'pattern': r'^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$',
  }
  rule = whole['$defs']['JobsetV1alpha2FailurePolicyRule']['properties']['action']
  rule['enum'] = re.findall(r'\b(?:Fail|Restart)\w+', rule['description'])
  return jsonschema.Draft202012Validator(whole)


def job():
  (replicated,) = JOBSET['spec']['replicatedJobs']
  return replicated['name'], replicated['template']['spec']


def container():
  (only,) = job()[1]['template']['spec']['containers']
  return only


def environment():
  return {each['name']: each for each in container()['env']}


def test_the_jobset_is_of_its_schema(validator):
  assert [error.message for error in validator.iter_errors(JOBSET)] == []


@pytest.mark.parametrize(
  ('path', 'value', 'told'),
  [
    ((*JOB, 'paralelism'), 2, 'paralelism'),
    ((*JOB, 'completions'), 'two', 'two'),
    (('spec', 'failurePolicy', 'rules', 0, 'action'), 'Ignore', 'Ignore'),
    (('spec', 'network', 'subDomain'), 'x', 'subDomain'),
    ((*POD, 'volumes', 1, 'emptyDir', 'sizeLimit'), '32GB', '32GB'),
    ((*POD, 'containers', 0, 'resourses'), {}, 'resourses'),
    ((*POD, 'restartPolicy'), None, 'None'),
  ],
)
def test_the_schema_refuses_what_the_cluster_would(validator, path, value, told):
  wrong = copy.deepcopy(JOBSET)
  place = wrong
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  (error,) = validator.iter_errors(wrong)
  assert told in error.message


def test_every_pod_is_told_who_the_others_are():
  name, spec = job()
  env, subdomain = environment(), JOBSET['spec']['network']['subdomain']
  port = container()['ports'][0]['containerPort']
  first = f'{JOBSET["metadata"]["name"]}-{name}-0-0.{subdomain}:{port}'
  told = {name: each['value'] for name, each in env.items() if 'value' in each}
  place = hosts.find(hosts.Hosts(), {**told, 'JOB_COMPLETION_INDEX': '1'})
  assert place
  assert (place.address, place.process) == (first, 1)
  assert place.processes == spec['completions'] == spec['parallelism']
  field = env['JOB_COMPLETION_INDEX']['valueFrom']['fieldRef']['fieldPath']
  assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert spec['completionMode'] == 'Indexed'


def test_exit_75_starts_all_pods_again_and_does_not_count_as_a_failure():
  _, spec = job()
  first = spec['podFailurePolicy']['rules'][0]
  assert first['action'] == 'FailJob'
  assert first['onExitCodes'] == {
    'containerName': container()['name'],
    'operator': 'In',
    'values': [EXIT_AGAIN],
  }
  # Kubernetes takes a podFailurePolicy with this restart policy alone.
  assert spec['template']['spec']['restartPolicy'] == 'Never'
  assert spec['backoffLimit'] == 0
  (rule,) = JOBSET['spec']['failurePolicy']['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']


def test_the_workdir_and_the_cache_lie_on_the_shared_volume():
  mounts = {each['name']: each['mountPath'] for each in container()['volumeMounts']}
  assert environment()['LMJAX_CACHE']['value'].startswith(f'{mounts["shared"]}/')
  (workdir,) = (arg for arg in container()['args'] if arg.startswith('--workdir='))
  assert workdir.startswith(f'--workdir={mounts["shared"]}/')
  volumes = {each['name']: each for each in job()[1]['template']['spec']['volumes']}
  assert 'persistentVolumeClaim' in volumes['shared']
  assert volumes['shm']['emptyDir']['medium'] == 'Memory'


def instructions():
  """(instruction, rest) of each of the Dockerfile, its lines joined."""
  text = (ROOT / 'tools/launch/Dockerfile').read_text()
  lines = [line for line in text.split('\n') if line.strip() and not line.startswith('#')]
  joined = '\n'.join(lines).replace('\\\n', ' ')
  return [tuple(line.split(maxsplit=1)) for line in joined.split('\n')]


def test_the_image_is_built_from_files_that_are_there_and_are_all_that_pip_needs():
  copied = [
    source for name, rest in instructions() if name == 'COPY' for source in shlex.split(rest)[:-1]
  ]
  assert [source for source in copied if not (ROOT / source).exists()] == []
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  named = {
    config['metadata']['long_description'].removeprefix('file: '),
    config['metadata']['license_files'],
  }
  packages = {
    pattern for pattern in config['options.packages.find']['include'].split() if '.' not in pattern
  }
  assert set(copied) == {'setup.cfg', 'pyproject.toml', *named, *packages}


def test_the_image_installs_an_extra_that_there_is_and_runs_as_a_user():
  done = instructions()
  arguments = dict(rest.split('=') for name, rest in done if name == 'ARG')
  (extra,) = re.findall(
    r'pip install "\.\[\$(\w+)\]"', ' '.join(rest for name, rest in done if name == 'RUN')
  )
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  assert arguments[extra] in config['options.extras_require']
  assert [rest for name, rest in done if name == 'USER'] == ['1000']
  assert ast.literal_eval(done[-1][1]) == ['python', '-m', 'lmjax.main']
  assert done[-1][0] == 'ENTRYPOINT'
