"""How often does the band of `probe_curve` hold what twice the training images really gain?

    python benchmarks/curve_band.py --data FOLDER … [--size 96] [--draws 40]

A fifth of each set is for testing. A draw gives two fifths, or 16%, of the images to `probe_curve`; the truth is the
gain of linear probes from twice as many, on the test images, as the mean over all draws. A folder with a CSV file of
its name and a column `group` is measured with groups kept together, too. EfficientNet-Lite0; no peer is compared.
"""
import argparse, warnings
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np, pandas as pd
from threadpoolctl import threadpool_limits

from fastbit.data import frozen_features, image_dataloaders
from fastbit.training import transfer_learner
from fastbit.training.curve import _predicted, nested_ranks, probe_curve
from fastbit.training.head import FeatureScaler

TESTED = .2
GIVEN = .4, .16   # of all images


def read(folder, size):
    "(features, class numbers, groups or `None`)"
    dls = image_dataloaders(folder, size=size, num_workers=0, flip=False, crop=False)
    paths = dls.table.path.tolist()
    found = frozen_features(transfer_learner(dls).model, paths, dls.preprocess)
    x, y = found.rows[found.index[:, 0]].reshape(len(paths), -1), np.array(dls.table.label.map(dls.vocab.o2i))
    table = Path(folder)/f'{Path(folder).name}.csv'
    if not table.exists(): return x, y, None
    group = pd.read_csv(table).set_index('path').group
    return x, y, group.loc[[Path(p).relative_to(Path(folder).resolve()).as_posix() for p in paths]].to_numpy()


def accuracy(x, y, train, test) -> float:
    scale = FeatureScaler().fit(x[train])
    return (_predicted(scale.transform(x[train]), y[train], scale.transform(x[test])) == y[test]).mean()


def measure(x, y, groups, given, draws):
    "Of each draw: training images, accuracies with these and with twice as many, and the ends of the band"
    rows = []
    for draw in range(draws):
        rank = nested_ranks(y, groups, draw)
        few, twice, test = (np.flatnonzero(o) for o in (rank < given, rank < 2*given, rank >= 1 - TESTED))
        curve = probe_curve(x[few], y[few], None if groups is None else groups[few], draw)
        band = curve.twice if curve else (np.nan, np.nan)
        rows.append((len(few), *(accuracy(x, y, o, test) for o in (few, twice)), *band))
    return pd.DataFrame(rows, columns=['n', 'few', 'twice', 'low', 'high'])


def words(rows) -> str:
    gain, told = (rows.twice - rows.few).mean(), rows.dropna()
    band = f'band {100*told.low.mean():.1f} to {100*told.high.mean():.1f}' if len(told) else 'no band'
    held = f', holds it in {((told.low <= gain) & (gain <= told.high)).mean():.0%}' if len(told) else ''
    return (f'{rows.n.mean():.0f} images, {rows.few.mean():.1%} to {rows.twice.mean():.1%}, gain {100*gain:.1f}, '
            f'{band}{held} of {len(told)} draws')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', nargs='+', required=True, metavar='FOLDER', help='folders of class folders')
    p.add_argument('--size', type=int, default=96)
    p.add_argument('--draws', type=int, default=40)
    args = p.parse_args()
    for folder in args.data:
        x, y, groups = read(folder, args.size)
        for kept in (None, *([groups] if groups is not None else [])):
            for given in GIVEN:
                with threadpool_limits(1, user_api='blas'): rows = measure(x, y, kept, given, args.draws)
                print(f'{Path(folder).name}{" by group" if kept is not None else ""}: {words(rows)}', flush=True)


if __name__ == '__main__': main()
