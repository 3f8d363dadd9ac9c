"""tools/launch/slurm.sbatch under a real Slurm: a controller and two nodes, all on this machine.

Slurm and munge come from the system's packages (slurm-wlm and munge); .ci/run installs them.
"""

import contextlib
import getpass
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ports import free_port

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'tools' / 'launch' / 'slurm.sbatch'
NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'scancel')
SEARCHED = os.pathsep.join([os.environ['PATH'], '/usr/sbin', '/sbin'])
MISSING = [name for name in NEEDED if not shutil.which(name, path=SEARCHED)]
TIMEOUT = 300.0
JOB_TIMEOUT = 300.0  # a job that is queued again starts Python twice, maybe beside another test
STEPS = 200

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(bool(MISSING), reason='install slurm-wlm and munge'),
]

ALLOTTED = 'import os; from lmjax.parallel.hosts import allotted; print(allotted(os.environ))'

# The first node bears this machine's name, which resolves: its processes are told to connect there.
# A requeued job waits until its old credentials have expired, and then for the scheduler to look again.
CONFIGURATION = """
ClusterName=lmjax
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:2
NodeName={host}-b NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=10:00
"""


def wait_until(is_so, what, log=None, timeout=TIMEOUT):
  end = time.monotonic() + timeout
  while not is_so():
    said = log.read_text() if log and log.exists() else ''
    assert time.monotonic() < end, f'not within {timeout:.0f} s: {what}\n{said}'
    time.sleep(0.1)


class Cluster:
  """Slurm's commands against the cluster of `folder`; jobs run in `folder`."""

  def __init__(self, folder):
    self.folder = folder
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM', 'JAX', 'XLA'))}
    self.environment = kept | {
      'PATH': os.pathsep.join([str(Path(sys.executable).parent), SEARCHED]),
      'SLURM_CONF': str(folder / 'slurm.conf'),
      'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'train')]),
      'JAX_PLATFORMS': 'cpu',
      # The last that is given counts; what is compiled is shared with the other tests of runs.
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=1',
      'JAX_COMPILATION_CACHE_DIR': str(Path(tempfile.gettempdir()) / 'lmjax-test-xla-runs'),
      'LMJAX_CACHE': str(folder / 'cache'),
    }

  def __call__(self, *command):
    done = subprocess.run(
      command,
      env=self.environment,
      cwd=self.folder,
      capture_output=True,
      text=True,
      timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  def submit(self, *flags):
    """Submits the script with `flags` for lmjax: one process on each of two nodes."""
    small = ['--ntasks-per-node=1', '--gpus-per-node=1', '--cpus-per-task=1', '--time=5']
    said = self('sbatch', '--parsable', *small, str(SCRIPT), *flags)
    return Job(self, said.strip())


class Job:
  """A job that was submitted to `cluster`."""

  def __init__(self, cluster, number):
    self.cluster, self.number = cluster, number
    self.log = cluster.folder / f'lmjax-{number}.log'

  def says(self, key):
    """What Slurm says of the job: JobState, Restarts, ExitCode."""
    told = self.cluster('scontrol', 'show', 'job', '-o', self.number)
    return re.search(rf'\b{key}=(\S+)', told)[1]

  def end(self):
    """Waits for the end of the job; what Slurm then says of it."""
    ended = ('COMPLETED', 'FAILED', 'TIMEOUT', 'CANCELLED', 'NODE_FAIL')
    is_over = lambda: self.says('JobState') in ended
    wait_until(is_over, 'the end of the job', self.log, JOB_TIMEOUT)
    return self.says('JobState')


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  """A running cluster of two nodes with two make-believe GPUs each."""
  folder = tmp_path_factory.mktemp('slurm')
  (folder / 'state').mkdir()
  (folder / 'munge.key').write_bytes(secrets.token_bytes(1024))
  (folder / 'munge.key').chmod(0o600)
  host = socket.gethostname()
  ports = [free_port() for _ in range(3)]
  text = CONFIGURATION.format(host=host, user=getpass.getuser(), folder=folder, ports=ports)
  (folder / 'slurm.conf').write_text(text)
  (folder / 'gres.conf').write_text('Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n')
  cluster = Cluster(folder)
  munge = [
    f'--{key}={folder}/munge.{key.split("-")[0]}'
    for key in ('socket', 'pid-file', 'log-file', 'seed-file')
  ]
  daemons = [
    ['munged', '--foreground', '--force', f'--key-file={folder}/munge.key', *munge],
    ['slurmctld', '-D'],
    ['slurmd', '-D', '-N', host],
    ['slurmd', '-D', '-N', f'{host}-b'],
  ]
  with contextlib.ExitStack() as stack:
    for number, daemon in enumerate(daemons):
      stack.enter_context(running(daemon, cluster.environment, folder / f'daemon-{number}.log'))
      if daemon[0] == 'munged':
        wait_until((folder / 'munge.socket').exists, 'munged')
    wait_until(lambda: is_ready(cluster), 'two idle nodes', folder / 'slurmctld.log')
    yield cluster
    subprocess.run(
      ['scancel', f'--user={getpass.getuser()}'], env=cluster.environment, timeout=TIMEOUT
    )
    wait_until(lambda: not cluster('squeue', '-h'), 'an empty queue', folder / 'slurmctld.log')


def is_ready(cluster):
  command = ['sinfo', '--noheader', '--Node', '--format=%T']
  done = subprocess.run(
    command, env=cluster.environment, capture_output=True, text=True, timeout=TIMEOUT
  )
  return done.stdout.split() == ['idle', 'idle']


@contextlib.contextmanager
def running(command, environment, log):
  """A process that is ended with the block."""
  path = shutil.which(command[0], path=SEARCHED)
  with log.open('wb') as output:
    process = subprocess.Popen(
      [path, *command[1:]], env=environment, stdout=output, stderr=subprocess.STDOUT
    )
  try:
    yield
  finally:
    process.terminate()
    try:
      process.wait(20)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def test_the_doctor_finds_two_nodes_that_share_all_they_should(cluster):
  workdir = cluster.folder / 'doctor'
  flags = ['--expected_devices=2', '--disk_gb=0', '--memory_gb=0', f'--workdir={workdir}']
  job = cluster.submit('--experiment=doctor', *flags)
  assert job.end() == 'COMPLETED', job.log.read_text()
  report = json.loads((workdir / 'report.json').read_text())
  assert report['ok']
  (devices,) = (check['found'] for check in report['checks'] if check['name'] == 'devices')
  assert devices.endswith('in 2 processes')


@pytest.mark.parametrize(('gpus', 'tasks', 'each'), [(2, 1, 2), (1, 1, 1), (2, 2, 1)])
def test_a_process_knows_how_many_gpus_slurm_gave_it(cluster, gpus, tasks, each):
  shape = ['--nodes=2', f'--ntasks-per-node={tasks}', f'--gpus-per-node={gpus}']
  said = cluster('srun', *shape, sys.executable, '-c', ALLOTTED)
  assert said.split() == [str(each)] * 2 * tasks


def test_what_is_wrong_fails_the_job_and_is_not_queued_again(cluster):
  job = cluster.submit('--experiment=doctor', '--expected_devices=16', '--workdir=wrong')
  assert job.end() == 'FAILED'
  assert (job.says('ExitCode'), job.says('Restarts')) == ('1:0', '0')
  assert 'wrong: devices' in job.log.read_text()


def test_a_run_on_two_nodes_that_gets_sigterm_is_queued_again_and_finished(cluster):
  workdir = cluster.folder / 'run'
  flags = ['--mesh.data=2', f'--steps={STEPS}', f'--workdir={workdir}']
  seldom = [f'--checkpoint.every_steps={STEPS}', f'--evaluate_every={STEPS}']
  job = cluster.submit('--experiment=small:small', *flags, *seldom)
  metrics = workdir / 'metrics.jsonl'

  def is_under_way():
    assert job.says('JobState') in ('PENDING', 'CONFIGURING', 'RUNNING'), job.log.read_text()
    return metrics.exists() and metrics.read_text().count('\n') >= 10

  wait_until(is_under_way, 'ten steps', job.log)
  cluster('scancel', '--signal=TERM', job.number)  # as Slurm itself does before the time is over
  assert job.end() == 'COMPLETED', job.log.read_text()
  assert job.says('Restarts') == '1'
  said = job.log.read_text()
  assert f'queueing job {job.number} again' in said
  assert said.index('saving after this step') < said.index('again')
  report = json.loads((workdir / 'report.json').read_text())
  assert report['steps'] == STEPS
  steps = [json.loads(line)['step'] for line in metrics.read_text().splitlines()]
  assert steps == list(range(1, STEPS + 1))
