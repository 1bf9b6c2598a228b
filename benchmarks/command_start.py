"""How long does the command take to report a mistake, or to start at all?

    python benchmarks/command_start.py [--repeats 5] [--old CHECKOUT] [--only 'baseline empty' …]

Runs `python -m fastbit` with each mistake, and with commands that need no training, in a fresh process each time, and
notes the median of the seconds until it ends. `--old` is a checkout of another version, whose runs alternate with
these. The folder of images is drawn, so nothing is read but what is made here.
"""
import os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
from PIL import Image

from peers import note, parser, spread

MISTAKES = {   # words: what they show
    'baseline phtos': 'a folder that is not there',
    'baseline images --sise 3': 'an unknown option',
    'baseline images --epochs -1': 'an invalid number',
    'baseline images --recipe onecycle --steps 20': 'an option of another recipe',
    'baseline images --arch resnet5O': 'an unknown body',
    'baseline images --weights imagenet': 'unknown weights',
    'baseline images --out /dev/null/out': 'a folder that cannot be written',
    'baseline empty': 'an empty folder',
    'baseline images/red': 'a folder without classes',
    'baseline one': 'a folder with one class',
    'baseline table.csv --label-col species': 'a table without the column',
    'baseline images --label-col species': 'a column where there is no table',
    'leaderboard images --arch resnet5O': 'an unknown body of a leaderboard',
    'check empty': 'an empty folder to check',
    'rule empty': 'an empty folder for a rule',
    'predict images images': 'a folder that has no model',
    'evaluate nowhere images': 'a model that is not there'}
COMMANDS = ('--version', 'baseline --help', 'bodies', 'bodies resnet50', 'cache')


def make_sources(root):
    "Images of three classes, a table of them, a folder with one class, and an empty one"
    rows = []
    for folder, label in [('images', c) for c in ('blue', 'green', 'red')] + [('one', 'red')]:
        (root/folder/label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root/folder/label/f'{i}.png')
            if folder == 'images': rows.append(f'images/{label}/{i}.png,{label}')
    (root/'empty').mkdir()
    (root/'table.csv').write_text('\n'.join(['path,label', *rows]) + '\n')


def ended(words, root, checkout, status):
    "Seconds until the command ends"
    env = {**os.environ, 'PYTHONPATH': str(checkout), 'FASTBIT_CACHE': str(root/'cache')}
    start = time.perf_counter()
    run = subprocess.run([sys.executable, '-m', 'fastbit', *words.split()], cwd=root, env=env, capture_output=True)
    took = time.perf_counter() - start
    if run.returncode != status: raise SystemExit(f'{words}: exit status {run.returncode}\n{run.stderr.decode()}')
    return took


def measured(words, root, versions, repeats):
    "Seconds of each run, per version, which alternate"
    times = {name: [] for name in versions}
    for _ in range(repeats):
        for name, checkout in versions.items():
            times[name].append(ended(words, root, checkout, 2 if words in MISTAKES else 0))
    shown = ', '.join(f'{name} {statistics.median(t):.2f} s' for name, t in times.items())
    print(f'fastbit {words} ({MISTAKES.get(words, "no mistake")}): {shown}', flush=True)
    return times


def note_one(args, question, times, goal=''):
    "A row of one command; `before` is the other version's median"
    more = dict(range=spread(times['new']))
    if 'old' in times: more['before'] = round(statistics.median(times['old']), 2)
    note(args, question, round(statistics.median(times['new']), 2), goal, **more)


def main():
    p = parser(__doc__, repeats=5, data='')
    next(a for a in p._actions if a.dest == 'data').required = False   # the images are drawn
    p.add_argument('--old', metavar='CHECKOUT', help='a checkout of another version, to compare with')
    p.add_argument('--only', nargs='+', metavar='WORDS', default=[*MISTAKES, *COMMANDS], help='some of the commands')
    args = p.parse_args()
    versions = dict(new=Path(__file__).resolve().parents[1])
    if args.old: versions['old'] = Path(args.old).resolve()
    with tempfile.TemporaryDirectory() as tmp:
        make_sources(Path(tmp))
        times = {words: measured(words, Path(tmp), versions, args.repeats) for words in args.only}
    mistakes = [words for words in times if words in MISTAKES]
    if mistakes:
        slowest = max(mistakes, key=lambda words: statistics.median(times[words]['new']))
        what = f'the slowest of {len(mistakes)} mistakes, `fastbit {slowest}`, seconds until the error'
        note_one(args, what, times[slowest], '1')
    for words in ('baseline phtos', *COMMANDS):
        if words in times: note_one(args, f'`fastbit {words}`, seconds', times[words], '1' if words in MISTAKES else '')


if __name__ == '__main__': main()
