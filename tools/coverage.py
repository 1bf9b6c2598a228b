"""Which lines of fastbit do notebooks and tests run? `python tools/coverage.py [--fail-under 90] [--results benchmarks/coverage.json]`

nbdev runs the cells of a notebook, not the module that they become, so a tracer sees nothing of a notebook's own module. Here the exported cells are compiled under the name of their module, moved to
the lines where they stand in it, and count as what they are. `tests/` run in one process and in those that they start.
"""
import argparse, ast, json, os, re, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def cell_lines(module: Path) -> dict:
    "Id of an exported cell -> the line of the module that its code begins after"
    return {m[1]: n for n, line in enumerate(module.read_text().splitlines(), 1) if (m := re.match(r'# %% \S+\.ipynb #([\w-]+)$', line))}


def run_notebook(path: Path):
    "Run a notebook as nbdev does, its exported cells as lines of their module"
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb
    nb = read_nb(path)
    source = [''.join(c.source) for c in nb.cells]
    name = next((m[1] for s in source if (m := re.match(r'#\|\s*default_exp (\w+)', s))), None)
    module = ROOT/'fastbit'/f'{name}.py' if name else None
    begins = cell_lines(module) if name else {}
    os.chdir(path.parent)
    shell = CaptureShell(path.parent)
    for cell, text in zip(nb.cells, source):
        if cell.cell_type != 'code' or re.search(r'^#\|\s*eval:\s*false', text, re.M): continue
        if cell.id in begins and '#| export' in text:
            code = re.sub(r'^#\|.*\n', '', text, flags=re.M)
            tree = ast.increment_lineno(ast.parse(code), begins[cell.id])
            exec(compile(tree, str(module), 'exec'), shell.user_ns)
        else:
            shell.run(text)
            if shell.exc: raise RuntimeError(f'{path}: {text}') from shell.exc


def summary(report: dict) -> dict:
    "What the documentation shows of coverage's JSON: lines, lines that nothing ran, and which, by module"
    lines = lambda missing: ', '.join(f'{a}' if a == b else f'{a}-{b}' for a, b in spans(missing))
    modules = {Path(f).stem: [o['summary']['num_statements'], o['summary']['missing_lines'], lines(o['missing_lines'])] for f, o in sorted(report['files'].items())}
    return dict(statements=report['totals']['num_statements'], missing=report['totals']['missing_lines'], modules=modules)


def spans(numbers):
    "(first, last) of each run of numbers without a gap"
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1]+1: runs[-1][1] = n
        else: runs.append([n, n])
    return runs


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--fail-under', type=float, default=90., metavar='PERCENT'); p.add_argument('--notebook', type=Path, help=argparse.SUPPRESS); p.add_argument('--only', choices=['notebooks', 'tests'])
    p.add_argument('--results', type=Path, metavar='FILE', help='write what the documentation shows')
    args = p.parse_args()
    if args.notebook: return run_notebook(args.notebook.resolve())
    tmp = Path(tempfile.mkdtemp())
    env = {**os.environ, 'COVERAGE_FILE': str(tmp/'.coverage'), 'FASTBIT_CACHE': str(tmp/'cache'), 'IPYTHONDIR': str(tmp), 'IN_TEST': '1', 'HF_HUB_OFFLINE': '1', 'MPLBACKEND': 'agg'}
    run = lambda *words, **more: subprocess.run([sys.executable, '-m', *words], cwd=ROOT, env={**env, **more})
    config = f'--rcfile={ROOT/"setup.cfg"}'
    failed = []
    if args.only != 'tests':
        for nb in sorted(ROOT.glob('nbs/[0-9]*.ipynb')):
            if run('coverage', 'run', config, '-p', __file__, '--notebook', str(nb)).returncode: failed.append(nb.name)
    if args.only != 'notebooks' and run('pytest', '-q', 'tests', '--cov=fastbit', f'--cov-config={ROOT/"setup.cfg"}', '--cov-report=').returncode: failed.append('tests')
    run('coverage', 'combine', config, '--append', str(tmp), str(ROOT))
    code = run('coverage', 'report', config, f'--fail-under={args.fail_under}').returncode
    if args.results and not failed:
        run('coverage', 'json', config, '-q', '-o', str(tmp/'coverage.json'))
        args.results.write_text(json.dumps(summary(json.loads((tmp/'coverage.json').read_text())), indent=1) + '\n')
    if failed: print('failed:', *failed)
    return code or bool(failed)


if __name__ == '__main__': sys.exit(main())
