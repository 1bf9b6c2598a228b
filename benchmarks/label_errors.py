"""How many wrong labels does `fastbit check` find, and how many of its flags are right?

    python benchmarks/label_errors.py [--data FOLDER …] [--seeds 0 1]

Swaps a twentieth of the labels of each folder, and turns 2, 5 and 10% of the labels of 800 drawn bouquets into their
opposite. Prints the share of the wrong labels that are flagged, and the share of the flagged ones that are wrong.
Features of EfficientNet-Lite0, at 128 px for folders and at 64 px for bouquets; no peer is compared.
"""
import argparse, tempfile, warnings
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np

from fastbit.data import drawn_bouquets, frozen_features, image_dataloaders, read_image_set
from fastbit.data.label_sets import hot_labels, label_names
from fastbit.studies.detect import check_labels, judge_label_sets
from fastbit.training import transfer_learner


def features_of(table, size):
    "Features of the rows of a table, in their order"
    dls = image_dataloaders(table, size=size, num_workers=0, flip=False, crop=False)
    paths = table.path.tolist()
    found = frozen_features(transfer_learner(dls).model, paths, dls.preprocess)
    return found.rows[found.index[:, 0]].reshape(len(paths), -1)


def shares(flagged, wrong) -> str:
    both = (flagged & wrong).sum()
    right = f'{both/flagged.sum():.0%} of them right' if flagged.any() else 'none'
    caught = f'{both/wrong.sum():.0%} of {wrong.sum()} wrong labels flagged, ' if wrong.any() else ''
    return f'{caught}{flagged.sum()} flags, {right}'


def swapped_classes(folder, share, seeds):
    table = read_image_set(folder).table.reset_index(drop=True)
    x = features_of(table, 128)
    for seed in seeds:
        rng, labels = np.random.default_rng(seed), table.label.to_numpy(copy=True)
        wrong = rng.random(len(labels)) < share
        for i in np.flatnonzero(wrong): labels[i] = rng.choice(sorted(set(table.label) - {labels[i]}))
        issues = check_labels(table.assign(label=labels), x, []).issues
        flagged = table.path.isin([o.path for o in issues]).to_numpy()
        print(f'{Path(folder).name}, {len(table)} images, {share:.0%} swapped, seed {seed}: {shares(flagged, wrong)}')


def turned_labels(part, seeds, n=800):
    with tempfile.TemporaryDirectory() as folder:
        table = read_image_set(drawn_bouquets(Path(folder)/'bouquets', n)).table
        x = features_of(table, 64)
    hot = hot_labels(table.label, label_names(table.label)).astype(bool)
    for seed in seeds:
        wrong = np.random.default_rng(seed).random(hot.shape) < part
        judged = judge_label_sets(x, hot ^ wrong)
        print(f'{n} bouquets, {part:.0%} turned, seed {seed}: {shares(judged.right < .5, wrong)}; '
              f'{judged.noticed:.0%} expected to be noticed')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', nargs='*', default=[], metavar='FOLDER', help='folders of class folders')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    args = p.parse_args()
    for folder in args.data: swapped_classes(folder, .05, args.seeds)
    for part in (0, .02, .05, .1): turned_labels(part, args.seeds)


if __name__ == '__main__': main()
