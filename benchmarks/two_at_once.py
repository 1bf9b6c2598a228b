"""How long do two baselines at once take, against one after the other?

    python benchmarks/two_at_once.py --data FOLDER [--size 64] [--images 160] [--epochs 3] [--repeats 5]

`fastbit baseline`, from the start of the command to its results, all layers trained, on links to some of the images,
each run with an empty cache. One after the other: the time of one command, twice. At once: two commands that begin
together. 1.0 means that two runs share the cores without a loss; it can be lower, because a run leaves cores idle while
it starts and writes its results. The number of threads is not set: how threads wait is what is measured.
"""
import os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

from fastbit.data import image_table
from peers import interleaved, median, note, paired, parser, spread


def some_images(folder, data, n):
    "Class folders with links to `n` images, spread over the classes"
    table = image_table(data)
    per_class = -(-n//table.label.nunique())
    for row in table.groupby('label').head(per_class).itertuples():
        file = Path(row.path).resolve()
        (folder/str(row.label)).mkdir(parents=True, exist_ok=True)
        (folder/str(row.label)/file.name).symlink_to(file)


def start(args, work, i):
    "One `fastbit baseline` with an empty cache, begun"
    shutil.rmtree(work/f'cache{i}', ignore_errors=True)
    words = ['baseline', work/'images', '--arch', args.arch, '--weights', args.weights, '--size', args.size, '--recipe',
             'onecycle', '--epochs', args.epochs, '--out', work/f'out{i}', '--overwrite']
    env = {**os.environ, 'FASTBIT_CACHE': str(work/f'cache{i}')}
    return subprocess.Popen([sys.executable, '-m', 'fastbit', *map(str, words)], env=env, stdout=subprocess.DEVNULL)


def seconds(args, work, n):
    begun = time.perf_counter()
    for p in [start(args, work, i) for i in range(n)]:
        if p.wait(): raise SystemExit(f'fastbit baseline ended with status {p.returncode}')
    return time.perf_counter() - begun


def main():
    p = parser(__doc__, size=64, repeats=5)
    p.add_argument('--images', type=int, default=160)
    p.add_argument('--epochs', type=int, default=3)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        some_images(work/'images', args.data, args.images)
        peers = {'one after the other': lambda: 2*seconds(args, work, 1), 'at once': lambda: seconds(args, work, 2)}
        times = interleaved(peers, args.repeats)
    names = 'at once', 'one after the other'
    note(args, 'two baselines at once / one after the other', round(paired(times, *names), 2), '1.1 at most',
         seconds=median(times), range=spread(*(times[k] for k in names)))


if __name__ == '__main__': main()
