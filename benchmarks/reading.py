"""How long does a first run read files, compared with decoding each once, and how do time and memory of a check grow?

    python benchmarks/reading.py --data FOLDER [--size 128] [--files 5000 20000 100000] [--repeats 5]

The first run checks all files, searches for near-duplicates and loads the squares of one epoch, batch by batch; it is
measured with the images of the folder and with drawn JPEGs of 12 megapixels. Its peer decodes each file once and
resizes it: to the one square that its split needs in an epoch, or, as a first run with `train_squares='both'`, to the
two that a head and fine-tuning need. `read_twice` is the same ratio for a check and a separate first pass. All files
are in the system's page cache, and one thread reads them.
Growth is measured with drawn PNGs of 24 x 24 pixels, each number of files in a new process.
"""
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

import numpy as np, pandas as pd
from PIL import Image

from peers import interleaved, median, note, paired, parser, seconds, spread, split
from fastbit.bodies import body_preprocess
from fastbit.data import PixelCache, check_images, duplicate_groups
from fastbit.data.check import ExpectedSplits
from fastbit.data.transforms import ImageFile

GROWTH = '''
import re, resource, sys, time
from pathlib import Path
from fastbit.data import check_images, duplicate_groups
def memory():
    status = Path('/proc/self/status')   # of Linux, where `ru_maxrss` begins with the parent's
    if status.exists(): return int(re.search(r'VmHWM:\\s*(\\d+)', status.read_text())[1])/1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
paths = sorted(map(str, Path(sys.argv[1]).iterdir()))
before, start = memory(), time.perf_counter()
report = check_images(paths, int(sys.argv[2]))
read = time.perf_counter()
groups = duplicate_groups(report)
print(read - start, time.perf_counter() - read, memory() - before, len(groups))
'''


def draw_photos(folder, n):
    "JPEGs of 12 megapixels with detail at every scale and the noise of a sensor"
    folder.mkdir()
    for i in range(n):
        rng, img = np.random.default_rng(i), np.zeros((3000, 4000, 3), np.float32)
        for k in (8, 64, 512, 2000):
            small = Image.fromarray(rng.integers(0, 256, (3*k//4, k, 3), dtype=np.uint8))
            img += np.asarray(small.resize((4000, 3000), Image.Resampling.BICUBIC), np.float32)*(.7 if k == 8 else .1)
        img += rng.integers(-16, 17, img.shape, dtype=np.int8)
        Image.fromarray(img.clip(0, 255).astype(np.uint8)).save(folder/f'{i}.jpg', quality=92)
    paths = sorted(map(str, folder.iterdir()))
    return pd.DataFrame(dict(path=paths, label='photo', split='train'))


def first_runs(table, args, size):
    "Seconds of first runs and of their peers"
    pp, cache = body_preprocess(args.arch, size), Path(os.environ['FASTBIT_CACHE'])
    sizes = [pp.size, pp.train_size]
    of_split = dict(train=[pp.train_size]).get
    rows = list(zip(table.path, table.split))

    def load(pixels):
        for split, paths in table.groupby('split').path:
            (size,) = of_split(split, [pp.size])
            for i in range(0, len(paths), args.bs):
                some = paths.iloc[i:i+args.bs].tolist()
                pixels.fill(some, [np.empty((len(some), size, size, 3), np.uint8)])

    def first_run(train_squares='augmented'):
        shutil.rmtree(cache, ignore_errors=True)
        pixels = PixelCache(pp, table, train_squares=train_squares)
        expected = ExpectedSplits(table.split.tolist(), by_files=True, by_copies=True)
        duplicate_groups(check_images(table.path, 1, pixels=pixels, expected=expected))
        load(pixels)

    def read_twice():
        shutil.rmtree(cache, ignore_errors=True)
        duplicate_groups(check_images(table.path, 1))
        load(PixelCache(pp, table))

    def one_square():
        for path, s in rows: ImageFile(path, pp).make(of_split(s, [pp.size]))

    def both_squares():
        for path, _ in rows: ImageFile(path, pp).make(sizes)

    peers = dict(first=first_run, one=one_square, twice=read_twice, both=both_squares)
    peers |= dict(first_both=lambda: first_run('both'))
    return interleaved({k: lambda f=f: seconds(f) for k, f in peers.items()}, args.repeats)


def note_ratios(args, times, what, images):
    squares = dict(first=('one', 'one square'), first_both=('both', 'both squares'))
    for run, (peer, words) in squares.items():
        more = dict(range=spread(times[run], times[peer]), images=images,
                    read_twice=round(paired(times, 'twice', peer), 2),
                    milliseconds_per_image=round(1000*median(times)[run]/images, 2))
        note(args, f'first run from files, {what}, {words} / one plain decoding', round(paired(times, run, peer), 2),
             '1.15', **more)


def note_first_runs(args, tmp):
    table = split(args)
    note_ratios(args, first_runs(table, args, args.size), f'{args.size} px', len(table))
    if not args.photos: return
    photos = draw_photos(tmp/'photos', args.photos)
    for size in args.photo_sizes:
        note_ratios(args, first_runs(photos, args, size), f'{size} px, JPEGs of 12 megapixels', len(photos))


def draw_tiny(folder, first, n):
    "PNGs of smooth pictures; each hundredth is the one before it, a little darker"
    folder.mkdir(exist_ok=True)
    for i in range(first, n):
        again = i % 100 == 99
        a = np.random.default_rng(i-again).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        img = Image.fromarray(a).resize((24, 24), Image.Resampling.BICUBIC)
        if again: img = img.point(lambda v: max(0, v-2))
        img.save(folder/f'{i:07d}.png', compress_level=1)


def growth(folder, n):
    "(seconds of reading, of the search, MB above the start) of a check in a new process, the cache being empty"
    shutil.rmtree(os.environ['FASTBIT_CACHE'], ignore_errors=True)
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', GROWTH, folder, '1'], capture_output=True, text=True)
    if out.returncode: raise SystemExit(out.stderr[-2000:])
    read, search, mb, groups = map(float, out.stdout.split()[-4:])
    print(f'{n:,} files: {read:.1f} s, search {search:.2f} s, {mb:.0f} MB, {groups:.0f} groups', flush=True)
    return read, search, mb


def main():
    p = parser(__doc__, repeats=5)   # 0: the check alone
    p.add_argument('--photos', type=int, default=6, help='drawn JPEGs of 12 megapixels; 0: none')
    p.add_argument('--photo-sizes', type=int, nargs='*', default=[128, 224])
    p.add_argument('--files', type=int, nargs='*', default=[5000, 20000, 100_000],
                   help='drawn images of the check, ascending')
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        os.environ['FASTBIT_CACHE'] = str(tmp/'cache')
        if args.repeats: note_first_runs(args, tmp)
        found, drawn = {}, 0
        for n in args.files:
            draw_tiny(tmp/'tiny', drawn, n)
            found[n], drawn = growth(str(tmp/'tiny'), n), n
        if not found: return
        words, times = '; '.join(f'{n:,}' for n in found), [f'{r+s:.1f}' for r, s, _ in found.values()]
        note(args, f'check of {words} drawn images, seconds', '; '.join(times), 'near-linear',
             search_seconds=[round(s, 2) for _, s, _ in found.values()],
             mb_above_start=[round(mb) for *_, mb in found.values()])


if __name__ == '__main__': main()
