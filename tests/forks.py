"""Processes that need no start of Python: forked from one that has imported fastbit

The imports take longer than what most tests run. A fork has its own folder, environment and output, it can be killed,
and its exit status is its own. What depends on how Python starts (variables that it reads then, the order of its sets,
a terminal) needs `conftest.start_fastbit`.
"""
import multiprocessing, os, shutil, signal, subprocess, sys, tempfile, time, traceback
from pathlib import Path

COMMAND = 'import sys; from fastbit.cli.command import main; sys.exit(main())'
# all that a run imports, and what it imports late
PRELOAD = ['fastbit.all', 'fastbit.cli.command', 'fastbit.studies.leaderboard', 'fastbit.studies.doctor', 'fastbit.export.predict', 'fastbit.data.streams',
           'accelerate', 'jinja2', 'matplotlib.backends.backend_agg', 'sklearn.metrics', 'safetensors.torch']
_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload(PRELOAD)


def _run(code: str, argv: list, cwd: str, env: dict, output: str, session: bool, before):
    "In the fork: `code` as `python -c` would have it"
    for fd, name in ((1, 'stdout'), (2, 'stderr')):
        file = os.open(f'{output}/{name}', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, fd)
        os.close(file)
        setattr(sys, name, open(fd, 'w', buffering=1, closefd=False, errors='backslashreplace'))
    if session: os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if before: before()
    multiprocessing.set_start_method(None, force=True)   # its own processes, which load images, are begun as ever
    sys.argv = ['-c', *argv]
    exec(compile(code, '<fork>', 'exec'), dict(__name__='__main__'))


LAUNCH = """
import subprocess, sys
from types import SimpleNamespace
import fastbit.cli.launch, forks
fastbit.cli.launch.subprocess = SimpleNamespace(Popen=forks.Rank, TimeoutExpired=subprocess.TimeoutExpired)
from fastbit.cli.command import main
sys.exit(main())
"""   # `--procs N` with forks for its processes


TORCHRUN = """
import runpy, sys
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
import forks
subprocess_handler.Popen = forks.Rank
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""   # `python -m MODULE ARGS` of a launcher that is torchrun or calls it, with forks for its processes


class Rank:
    "What `launch` or torchrun starts, forked from the process that starts it"
    def __init__(self, args, env, stdout=None, stderr=None, start_new_session=False):
        words = [w for w in args if w != '-u']
        assert words[:3] == [sys.executable, '-m', 'fastbit']
        self.args, self.returncode, self.pid = words, None, os.fork()
        if self.pid: return
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if start_new_session: os.setsid()
            for fd, file in ((1, stdout), (2, stderr)):
                if file: os.dup2(file.fileno(), fd)
            os.environ.update(env)
            from fastbit.cli.command import main
            status = main(words[3:])
        except SystemExit as e: status = e.code
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=float('inf')):
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until: raise subprocess.TimeoutExpired('fork', timeout)
            time.sleep(.02)
        return self.returncode

    def send_signal(self, signum): self.poll() is None and os.kill(self.pid, signum)
    def terminate(self): self.send_signal(signal.SIGTERM)
    def kill(self): self.send_signal(signal.SIGKILL)


class Fork:
    "As `subprocess.Popen` of `python -c CODE ARGS`; `session` makes it the first of a group, `before` is called in it"
    def __init__(self, code, *args, cwd=None, env=None, session=False, before=None):
        self.args = [str(o) for o in args]
        self.output = tempfile.mkdtemp()
        env = dict(os.environ if env is None else env)
        what = code, self.args, str(cwd or Path.cwd()), env, self.output, session, before
        self.process = _SERVER.Process(target=_run, args=what)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self): return self.process.exitcode

    def poll(self): return self.process.exitcode
    def send_signal(self, signum): self.poll() is None and os.kill(self.pid, signum)
    def kill(self): self.send_signal(signal.SIGKILL)

    def wait(self, timeout=None) -> int:
        self.process.join(timeout)
        if self.poll() is None: raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None) -> tuple:
        self.wait(timeout)
        names = ('stdout', 'stderr')
        texts = tuple((Path(self.output)/name).read_bytes().decode() for name in names)   # strictly: it prints UTF-8
        shutil.rmtree(self.output)
        return texts

    def __enter__(self): return self
    def __exit__(self, *_):
        if sys.exc_info()[0]: self.kill()
        self.wait()
