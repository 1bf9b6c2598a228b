"""How much memory does it take to compute and store the features of many images?

    python benchmarks/caching_memory.py --data ANY [--images 10000 100000]

Each run is a new process that takes a list of so many image files (hard links to a few made-up ones), runs a small
frozen body over them in batches of 32 and reads the stored features once. Printed is the peak of its resident memory
above that after imports and the first batches.
"""
import json, os, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from peers import note, parser

STEPS = '''
import json, sys, threading, time, warnings
warnings.simplefilter('ignore')
import psutil, torch
import fastbit.data.features as features
from fastbit.bodies import TransferModel, body_preprocess, build_body

folder, n = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
model = TransferModel(build_body('test_efficientnet', 4, 'random'))
pp = body_preprocess('test_efficientnet', 32)
paths = [f'{folder}/{i:06d}.png' for i in range(n)]
features.frozen_features(model, paths[:256], pp)
me, peak, done = psutil.Process(), [0], []
start = me.memory_info().rss
def watch():
    while not done:
        peak[0] = max(peak[0], me.memory_info().rss)
        time.sleep(.01)
threading.Thread(target=watch, daemon=True).start()
f = features.frozen_features(model, paths, pp)
computing = peak[0]-start
features.IN_MEMORY = 0   # read from the disk, as a set too large for the memory is
for x, y in features.FeatureDL(f, torch.zeros(n, dtype=torch.long), 32, shuffle=True): pass
done.append(1)
print(json.dumps(dict(
    computing=computing/2**20,
    with_an_epoch=(peak[0]-start)/2**20,
    rows_mb=f.rows.nbytes/2**20,
    seconds=f.seconds)))
'''


def make_images(folder, n):
    "Images on disk: one in a thousand is drawn, the others are links to it"
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        file = folder/f'{i:06d}.png'
        if i % 1000 == 0:
            drawn = file
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(drawn)
        else: os.link(drawn, file)


def measured(folder, n, cache):
    command = [sys.executable, '-c', STEPS, str(folder), str(n)]
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(FASTBIT_CACHE=cache))
    if out.returncode: raise SystemExit(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    p = parser(__doc__)
    p.add_argument('--images', type=int, nargs='+', default=[10_000, 100_000])
    args = p.parse_args()
    args.arch = 'test_efficientnet'
    least, most = min(args.images), max(args.images)
    found = {}
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'images'
        make_images(folder, most)
        for n in args.images:
            found[n] = measured(folder, n, cache=f'{tmp}/cache{n}')
            print(f'{n:,} images: {found[n]}', flush=True)
    few, many = found[least], found[most]
    question = f'peak memory above the start while caching {most:,} images, MB; {least:,} images'
    value = f"{many['computing']:.0f}; {few['computing']:.0f}"
    note(args, question, value, 'bounded by the batch', rows_mb=round(many['rows_mb']))


if __name__ == '__main__': main()
