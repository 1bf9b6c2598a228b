"""How long does `fastbit check` take to find dark, blurry or empty photos?

    python benchmarks/appearance.py [--data FOLDER] [--photos 12] [--repeats 3]

cleanvision reads each file with all its pixels, one after the other; `appearance_measures` takes the same measures at a
reduced scale, in several threads, and keeps them. Prints seconds per image of both, medians, and how many of the five
verdicts per image differ. Without `--data` the photos are drawn: JPEG, 4000 x 3000 pixels.
"""
import argparse, contextlib, io, tempfile, time, warnings
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np
from PIL import Image

from fastbit.data.check import header_size
from fastbit.studies.appearance import ODD_KINDS, appearance_issues, appearance_measures


def draw_photos(folder, n):
    "Soft shapes with the noise of a sensor"
    rng = np.random.default_rng(0)
    for i in range(n):
        scene = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize((4000, 3000), Image.Resampling.BICUBIC)
        noisy = np.asarray(scene) + rng.normal(0, 6, (3000, 4000, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(f'{folder}/{i}.jpg', quality=90)


def by_cleanvision(files):
    from cleanvision import Imagelab
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lab = Imagelab(filepaths=files)
        lab.find_issues({k: {} for k in ODD_KINDS}, n_jobs=1, verbose=False)
    return lab.issues.loc[files, [f'is_{k}_issue' for k in ODD_KINDS]].to_numpy()


def timed(f, repeats):
    "(median of seconds, result)"
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = f()
        seconds.append(time.perf_counter() - start)
    return np.median(seconds), result


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', help='folder of JPEG and PNG images')
    parser.add_argument('--photos', type=int, default=12, help='photos to draw without --data')
    parser.add_argument('--repeats', type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.data: draw_photos(folder, options.photos)
        files = sorted(str(p) for p in Path(options.data or folder).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
        sizes, n = [header_size(f)[::-1] for f in files], len(files)
        before, theirs = timed(lambda: by_cleanvision(files), options.repeats)
        after, measures = timed(lambda: appearance_measures(files, cache=False), options.repeats)
        appearance_measures(files)
        again, _ = timed(lambda: appearance_measures(files), options.repeats)
        differ = (appearance_issues(measures, sizes).to_numpy() != theirs).sum()
    print(f'{n} images: {before/n:.3f} s per image by cleanvision, {after/n:.3f} s here ({before/after:.1f} times as fast), '
          f'{again/n:.4f} s from the cache; {differ} of {len(ODD_KINDS)*n} verdicts differ')


if __name__ == '__main__': main()
