"""How much of a linear probe's accuracy goes when similar images are kept together, and is the gap then reported?

    python benchmarks/similarity_gap.py --data FOLDER … [--size 64] [--seeds 0 1 2]

Each FOLDER has class folders. Prints the accuracy with random folds, the one with similar images in one fold, the gap
in points, and whether fastbit warns. `fastbit.training.similar` cites the figures; no peer is compared.
"""
import argparse, warnings
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np

from fastbit.data import frozen_features, image_dataloaders
from fastbit.data.groups import group_numbers
from fastbit.training import transfer_learner
from fastbit.training.similar import similarity_risk


def features_of(folder, size):
    "(features, class numbers, near-duplicates as groups) of all images"
    dls = image_dataloaders(folder, size=size, num_workers=0, flip=False, crop=False)
    paths = dls.table.path.tolist()
    found = frozen_features(transfer_learner(dls).model, paths, dls.preprocess)
    x = found.rows[found.index[:, 0]].reshape(len(paths), -1)
    return x, np.array(dls.table.label.map(dls.vocab.o2i)), group_numbers(dls.table, paths)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', nargs='+', required=True, metavar='FOLDER', help='folders of class folders')
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = p.parse_args()
    for folder in args.data:
        x, y, copies = features_of(folder, args.size)
        for seed in args.seeds:
            risk = similarity_risk(x, y, copies, seed)
            told = 'reported' if risk.matters else 'not reported'
            print(f'{Path(folder).name}, seed {seed}: random {risk.random:.1%}, apart {risk.apart:.1%}, '
                  f'gap {100*risk.gap:.1f} points, {told}', flush=True)


if __name__ == '__main__': main()
