"""Which images to label next: `choose_to_label` against random images, by a linear probe on cached features

python benchmarks/label_next.py --data FOLDER [--data FOLDER …]

Half of the images are held out. Of the others a few per class are labeled, then as many again, chosen by the rule, by uncertainty alone, or at random. Each choice is
measured by logistic regression on the features of all labeled images.
"""
import argparse, json, warnings
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np, torch

from fastbit.data import frozen_features, image_dataloaders
from fastbit.metrics import SINGLE_LABEL
from fastbit.studies.label_next import choose_to_label, uncertainty
from fastbit.training import transfer_learner
from fastbit.training.head import logistic_head


def features_of(folder, args):
    "(features, class numbers) of all images"
    dls = image_dataloaders(folder, args.arch, size=args.size, num_workers=0, flip=False, crop=False)
    paths = dls.table.path.tolist()
    found = frozen_features(transfer_learner(dls, args.arch).model, paths, dls.preprocess)
    return found.rows[found.index[:, 0]].reshape(len(paths), -1).astype(np.float64), np.array(dls.table.label.map(dls.vocab.o2i))


def choices(x, probs, n, seed) -> dict:
    "Name of a rule -> rows of the images that it would label next"
    rng = np.random.default_rng(seed)
    return {
        'at random': rng.permutation(len(x))[:n],
        'most uncertain': np.argsort(-uncertainty(probs), kind='stable')[:n],
        'rank_to_label': choose_to_label(x, probs, n, seed).rows}


def run(x, y, k, seed) -> dict:
    "Accuracy on the held-out half, before and after new labels"
    rng, n_classes = np.random.default_rng(seed), y.max() + 1
    pool, test = np.split(rng.permutation(len(y)), [len(y)//2])
    labeled = np.concatenate([pool[y[pool] == c][:k] for c in range(n_classes)])
    rest = np.setdiff1d(pool, labeled)
    def probs(rows, of):
        fit = logistic_head(x[rows], y[rows], n_classes, seed=seed)
        return SINGLE_LABEL.activation(torch.from_numpy(x[of]@fit.weight.T + fit.bias))
    accuracy = lambda rows: float((SINGLE_LABEL.decode(probs(rows, test)).numpy() == y[test]).mean())
    n = min(k*n_classes, len(rest)//2)
    found = choices(x[rest], probs(labeled, rest).numpy(), n, seed)
    return {'before': accuracy(labeled)} | {name: accuracy(np.r_[labeled, rest[rows]]) for name, rows in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True, action='append', metavar='FOLDER', help='a folder of class folders; repeat it for several')
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--k', type=int, default=5, help='images per class that are labeled at first, and as many again')
    p.add_argument('--seeds', type=int, nargs='+', default=[10, 11, 12])
    p.add_argument('--results', metavar='FILE', help='append the figures to this file, one JSON object per line')
    args = p.parse_args()
    for folder in args.data:
        x, y = features_of(folder, args)
        rows = [run(x, y, args.k, seed) for seed in args.seeds]
        mean = {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
        gains = [r['rank_to_label'] - r['at random'] for r in rows]
        told = ', '.join(f'{name} {v:.1%}' for name, v in mean.items())
        print(f'{Path(folder).name}: {len(y)} images, {y.max()+1} classes: {told}; '
              f'gain over random {", ".join(f"{100*g:+.1f}" for g in gains)} points', flush=True)
        if not args.results: continue
        record = dict(benchmark='label_next', data=Path(folder).name, k=args.k, seeds=args.seeds, size=args.size, **mean, gains=gains)
        with open(args.results, 'a') as f: f.write(json.dumps(record) + '\n')


if __name__ == '__main__': main()
