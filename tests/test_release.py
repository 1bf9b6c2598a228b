"What is handed out: wheels and source archives with what they should have, versions that are told, requirements with lower bounds"
import configparser, re, subprocess, sys, tarfile, venv, zipfile
from pathlib import Path

import pytest

import fastbit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tools'))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A wheel and a source archive, from the files that git has"
    root = tmp_path_factory.mktemp('built')
    if not (ROOT/'.git').exists(): pytest.skip('not a git checkout')
    files = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, check=True).stdout.decode().split('\0')
    for f in filter(None, files):
        if not (ROOT/f).is_file(): continue
        (root/'src'/f).parent.mkdir(parents=True, exist_ok=True)
        (root/'src'/f).write_bytes((ROOT/f).read_bytes())
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', root/'dist', root/'src'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((root/'dist').glob('*.whl')), next((root/'dist').glob('*.tar.gz'))


def test_the_wheel_has_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as z: names = z.namelist()
    modules = {p.relative_to(ROOT).as_posix() for s in ('py', 'html', 'css', 'js', 'csv') for p in (ROOT/'fastbit').rglob(f'*.{s}')}
    assert {n for n in names if n.startswith('fastbit/')} == modules
    assert {n.split('/')[0] for n in names} == {'fastbit', f'fastbit-{fastbit.__version__}.dist-info'}
    assert any(n.endswith('LICENSE') for n in names)


def test_the_archive_builds_without_the_repository(built):
    with tarfile.open(built[1]) as t: names = {n.split('/', 1)[1] for n in t.getnames() if '/' in n}
    assert {'pyproject.toml', 'README.md', 'LICENSE', 'fastbit/baseline/run.py', 'setup.cfg'} <= names
    assert not [n for n in names if n.startswith(('.git/', 'models/', '_docs/', '_proc/', 'fastbit-runs/'))]


def test_it_installs_in_an_empty_environment(built, tmp_path):
    "Without what it requires, which .ci/run installs: the files are where they should be, and the command says its version"
    venv.create(tmp_path/'env')
    python = next(p for p in (tmp_path/'env'/'bin'/'python', tmp_path/'env'/'Scripts'/'python.exe') if p.exists())
    subprocess.run([sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', built[0]], check=True, capture_output=True)
    said = subprocess.run([python.parent/'fastbit', '--version'], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout == f'fastbit {fastbit.__version__}\n', said.stderr


def test_every_requirement_has_a_lower_bound_that_is_tested():
    from oldest import oldest
    ini = configparser.ConfigParser(); ini.read(ROOT/'settings.ini')
    assert len(oldest()) >= len(ini['DEFAULT']['requirements'].split()) and all(re.fullmatch(r'[\w.-]+==[\w.]+', o) for o in oldest())
    assert 'tools/oldest.py' in (ROOT/'.ci'/'run').read_text()


def test_extras_are_installed_and_tested_too():
    "Named by the errors that ask for them; `dev` has all, and .ci/run installs those that the oldest versions' tests need"
    import tomllib
    from config import EXTRAS
    from oldest import EXTRAS as TESTED
    found = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['optional-dependencies']
    assert set(found) == {*EXTRAS, 'dev'} and all(set(found[e]) <= set(found['dev']) for e in EXTRAS)
    assert set(TESTED) < set(EXTRAS) and f".[{','.join(TESTED)}]" in (ROOT/'.ci'/'run').read_text()


def test_a_migration_that_writes_something_else_is_noticed():
    import config
    with pytest.raises(ValueError, match='nbdev writes it differently'): config.complete('[project]', config.settings())


def test_this_version_is_in_the_changelog():
    "Every released version has its heading and its day, and what is not released yet says so"
    heads = re.findall(r'^## (.+)$', (ROOT/'CHANGELOG.md').read_text(), re.M)
    assert all(re.fullmatch(r'Unreleased \(\d+\.\d+\.\d+\)|\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)', h) for h in heads) and any(fastbit.__version__ in h for h in heads)
    assert sum('Unreleased' in h for h in heads) <= 1 and all('Unreleased' not in h for h in heads[1:])
