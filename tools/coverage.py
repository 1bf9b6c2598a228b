"""Which lines of fastbit do notebooks and tests run?

    python tools/coverage.py [--fail-under 90] [--results benchmarks/coverage.json]

nbdev runs the cells of a notebook, not the module that they become, so a tracer sees nothing of a notebook's own
module. Here the exported cells are compiled under the name of their module, moved to the lines where they stand in it,
and count as what they are. `tests/` run in one process and in those that they start.
"""
import argparse, ast, json, os, re, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT/'fastbit'
CONFIG = f'--rcfile={ROOT/"setup.cfg"}'


def cell_lines(module: Path) -> dict:
    "Id of an exported cell -> the line of the module that its code begins after"
    borders = (re.match(r'# %% \S+\.ipynb #([\w-]+)$', line) for line in module.read_text().splitlines())
    return {m[1]: n for n, m in enumerate(borders, 1) if m}


def module_of(cells) -> Path | None:
    "The file that the exported cells of a notebook become, by its `default_exp`; `None`: the notebook is a page"
    found = (re.match(r'#\|\s*default_exp ([\w.]+)', text) for text in cells)
    name = next((m[1] for m in found if m), None)
    return PACKAGE/f"{name.replace('.', '/')}.py" if name else None


def sources(path: Path) -> list:
    "The text of each cell of a notebook"
    return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


def module_notebooks() -> list:
    "The notebooks that become modules, in the order of rooms and numbers"
    nbs = ROOT/'nbs'
    hidden = lambda p: any(o.startswith(('.', '_')) for o in p.relative_to(nbs).parts)
    return [p for p in sorted(nbs.rglob('*.ipynb')) if not hidden(p) and module_of(sources(p))]


def run_exported(text, module, after, names):
    "Run an exported cell as lines of its module"
    code = re.sub(r'^#\|.*\n', '', text, flags=re.M)
    tree = ast.increment_lineno(ast.parse(code), after)
    exec(compile(tree, str(module), 'exec'), names)


def run_notebook(path: Path):
    "Run a notebook as nbdev does, its exported cells as lines of their module"
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb
    cells, texts = read_nb(path).cells, sources(path)
    module = module_of(texts)
    begins = cell_lines(module) if module else {}
    os.chdir(path.parent)
    shell = CaptureShell(path.parent)
    for cell, text in zip(cells, texts):
        if cell.cell_type != 'code' or re.search(r'^#\|\s*eval:\s*false', text, re.M): continue
        if cell.id in begins and '#| export' in text:
            run_exported(text, module, begins[cell.id], shell.user_ns)
            continue
        shell.run(text)
        if shell.exc: raise RuntimeError(f'{path}: {text}') from shell.exc


def module_name(file: str) -> str:
    "'data.loaders' of 'fastbit/data/loaders.py', wherever the package lies"
    parts = Path(file).with_suffix('').parts
    at = len(parts) - 1 - parts[::-1].index('fastbit')
    return '.'.join(parts[at+1:])


def spans(numbers):
    "(first, last) of each run of numbers without a gap"
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1]+1: runs[-1][1] = n
        else: runs.append([n, n])
    return runs


def in_words(missing) -> str:
    return ', '.join(f'{a}' if a == b else f'{a}-{b}' for a, b in spans(missing))


def of_file(found: dict) -> list:
    return [found['summary']['num_statements'], found['summary']['missing_lines'], in_words(found['missing_lines'])]


def summary(report: dict) -> dict:
    "What the documentation shows of coverage's JSON: lines, lines that nothing ran, and which, by module"
    return dict(
        statements=report['totals']['num_statements'],
        missing=report['totals']['missing_lines'],
        modules={module_name(f): of_file(o) for f, o in sorted(report['files'].items())})


def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--fail-under', type=float, default=90., metavar='PERCENT')
    p.add_argument('--only', choices=['notebooks', 'tests'])
    p.add_argument('--results', type=Path, metavar='FILE', help='write what the documentation shows')
    p.add_argument('--notebook', type=Path, help=argparse.SUPPRESS)
    return p.parse_args()


def runner(tmp: Path):
    "Runs a module of Python in the repository, with its coverage and its caches below `tmp`"
    env = os.environ | dict(
        COVERAGE_FILE=str(tmp/'.coverage'),
        FASTBIT_CACHE=str(tmp/'cache'),
        IPYTHONDIR=str(tmp),
        IN_TEST='1',
        HF_HUB_OFFLINE='1',
        MPLBACKEND='agg')
    return lambda *words: subprocess.run([sys.executable, '-m', *words], cwd=ROOT, env=env).returncode


def run_all(run, only) -> list:
    "Run notebooks and tests under coverage; the names of what failed"
    failed = []
    for nb in module_notebooks() if only != 'tests' else []:
        if run('coverage', 'run', CONFIG, '-p', __file__, '--notebook', str(nb)):
            failed.append(nb.relative_to(ROOT).as_posix())
    tests = ('pytest', '-q', 'tests', '--cov=fastbit', f'--cov-config={ROOT/"setup.cfg"}', '--cov-report=')
    if only != 'notebooks' and run(*tests): failed.append('tests')
    return failed


def main():
    args = options()
    if args.notebook: return run_notebook(args.notebook.resolve())
    tmp = Path(tempfile.mkdtemp())
    run = runner(tmp)
    failed = run_all(run, args.only)
    run('coverage', 'combine', CONFIG, '--append', str(tmp), str(ROOT))
    code = run('coverage', 'report', CONFIG, f'--fail-under={args.fail_under}')
    if args.results and not failed:
        report = tmp/'coverage.json'
        run('coverage', 'json', CONFIG, '-q', '-o', str(report))
        args.results.write_text(json.dumps(summary(json.loads(report.read_text())), indent=1) + '\n')
    if failed: print('failed:', *failed)
    return code or bool(failed)


if __name__ == '__main__': sys.exit(main())
