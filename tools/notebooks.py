"""Run all notebooks as nbdev-test does, each in a process that nothing else has run in

    python tools/notebooks.py [PATH] [--workers 2] [--timing]

`nbdev-test` gives a worker one notebook after the other, and a notebook that defines a module replaces its classes and
methods in that process: what the next one sees depends on which worker was free first. Here fastbit and what it needs
are imported once, and each notebook runs in a fork of that process. So does the command in their shells.
"""
import argparse, gc, importlib, multiprocessing, pkgutil, sys, time
from multiprocessing.connection import wait
from pathlib import Path

from forked_command import forked_command

ROOT = Path(__file__).parents[1]
# the longest first, so that none of them is left for the end
FIRST = ('tutorials', 'how_to', 'concepts', 'coming_from')
SLOWEST = 25 # that are listed


def notebooks(path=None) -> list:
    "The notebooks that nbdev-test would run, long ones first"
    from nbdev.processors import nbglob
    found = sorted(Path(p).absolute() for p in nbglob(path, as_path=True))
    room = lambda p: FIRST.index(p.parent.name) if p.parent.name in FIRST else len(FIRST)
    return sorted(found, key=lambda p: (room(p), p))


def import_all():
    "Import what notebooks need, once for all of them; what is absent is for the notebook to say"
    import fastbit
    for module in pkgutil.walk_packages(fastbit.__path__, 'fastbit.'):
        if module.name.endswith(('__main__', '_modidx')): continue
        importlib.import_module(module.name)
    # a collection in a fork would otherwise write to each of a million objects, and so copy all of their memory
    gc.collect()
    gc.freeze()


def run(file: Path, root: Path):
    "Run a notebook and end this process: 0 if it passed"
    from nbdev.config import get_config
    from nbdev.test import test_nb
    config = get_config(file.parent)
    passed, _ = test_nb(file, skip_flags=config.tst_flags.split(), basepath=root, cell_timeout=config.cell_timeout)
    sys.exit(0 if passed else 1)


def run_all(files, workers, run=run, root=ROOT) -> dict:
    "Exit status and seconds of each notebook; a negative status is the signal that ended it"
    fork = multiprocessing.get_context('fork')
    todo, running, done = list(reversed(files)), {}, {}
    while todo or running:
        while todo and len(running) < workers:
            file = todo.pop()
            process = fork.Process(target=run, args=(file, root))
            process.start()
            running[process.sentinel] = file, process, time.monotonic()
        for sentinel in wait(list(running)):
            file, process, start = running.pop(sentinel)
            process.join()
            done[file] = process.exitcode, time.monotonic() - start
    return done


def report(done: dict, timing: bool) -> int:
    "Print what failed, and the slowest notebooks if asked; return the exit status"
    slowest = sorted(done.items(), key=lambda o: -o[1][1])[:SLOWEST if timing else 0]
    for file, (_, seconds) in slowest: print(f'{seconds:6.1f} s  {file.parent.name}/{file.name}')
    failed = {file: status for file, (status, _) in done.items() if status}
    for file, status in failed.items():
        how = f'was ended by signal {-status}' if status < 0 else 'failed'
        print(f'{file.parent.name}/{file.name} {how}', file=sys.stderr)
    print(f'{len(done) - len(failed)} of {len(done)} notebooks passed')
    return 1 if failed or not done else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('path', nargs='?', help='a notebook or a folder; default: all')
    parser.add_argument('--workers', type=int, default=2, help='notebooks at a time')
    parser.add_argument('--timing', action='store_true', help='print the slowest notebooks')
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import_all()
    with forked_command(): done = run_all(notebooks(options.path), options.workers)
    sys.exit(report(done, options.timing))


if __name__ == '__main__': main()
