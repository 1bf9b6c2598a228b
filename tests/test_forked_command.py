"The command that notebooks find in `make test`: like the installed one, without its imports"
import os, signal, subprocess
from pathlib import Path

import pytest
from conftest import import_tool, write_folder

tool = import_tool('forked_command')


@pytest.fixture(scope='module')
def server():
    before = os.environ['PATH']
    with tool.forked_command() as server: yield server
    assert os.environ['PATH'] == before and not server.is_alive()


@pytest.fixture(scope='module')
def path(server): return os.environ['PATH']


def children(pid) -> list: return [int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def shell(words, cwd, path, **env):
    env = {**os.environ, 'PATH': path, **env}
    return subprocess.run(words, shell=True, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_it_is_first_on_the_path_and_starts_no_python(path, tmp_path):
    where = shell('command -v fastbit', tmp_path, path).stdout.strip()
    assert Path(where).parent == Path(path.split(os.pathsep)[0]) and ' -SE\n' in Path(where).read_text()


def test_words_folder_environment_and_status_are_the_caller_s(path, tmp_path):
    done = shell('fastbit cache', tmp_path, path, FASTBIT_CACHE=str(tmp_path/'own'))
    assert done.returncode == 0 and str(tmp_path/'own') in done.stdout and not done.stderr
    (tmp_path/'a').mkdir()
    done = shell('fastbit baseline a --recipe hypperrule; echo "exit status $?"', tmp_path, path)
    assert done.stdout == 'exit status 2\n' and 'hypperrule' in done.stderr and 'Traceback' not in done.stderr


def test_its_output_goes_into_pipes_and_files(path, tmp_path):
    assert shell('fastbit --help > help.txt; fastbit --help | head -n 1', tmp_path, path).stdout.startswith('usage')
    assert 'baseline' in (tmp_path/'help.txt').read_text()


def test_a_killed_one_is_an_error(path, tmp_path, server):
    write_folder(tmp_path/'photos', dict(blue=20, red=20))
    words = ['fastbit', 'baseline', 'photos', '--out', 'out']
    caller = subprocess.Popen(words, cwd=tmp_path, env={**os.environ, 'PATH': path}, stdout=subprocess.DEVNULL)
    while not (forks := children(server.pid)): assert caller.poll() is None
    os.kill(forks[0], signal.SIGKILL)
    assert caller.wait(60) == 137
    assert shell('fastbit --version', tmp_path, path).returncode == 0   # the next one is answered
