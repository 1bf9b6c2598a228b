"""How well do distances from the training images find images of something else?

    python benchmarks/unlike.py FOLDER FOLDER … [--size 64] [--images 1500]

Each FOLDER has class folders. The features are those of the pretrained default body. The training part of each folder
(split 0) is compared with its validation part and with 200 images of each other folder (`others`), and, over five draws of a
quarter of the classes that are left out of the training part, with their validation images (`classes`). Prints the AUROC of
the distance from the nearest training image and of the Gaussian that fastbit uses, and the share of the images of other
folders that a rate of 5% false alarms marks. `fastbit.metrics.unlike` cites the figures.
"""
import argparse

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from fastbit.bodies import TransferModel, body_preprocess, build_body
from fastbit.data import image_table, split_table
from fastbit.data.features import frozen_features
from fastbit.metrics import fit_feature_gaussian, p_values
from fastbit.metrics.unlike import unit_length

ARCH = 'tf_efficientnet_lite0'


def nearest(train, x): return NearestNeighbors(n_neighbors=1).fit(unit_length(train)).kneighbors(unit_length(x))[0][:, 0]
def gaussian(train, x): return fit_feature_gaussian(train).distances(x)
def auroc(inside, outside): return roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), np.concatenate([inside, outside]))


def read(folder, size, images):
    table = split_table(image_table(folder), seed=0)
    if len(table) > images: table = table.sample(images, random_state=0)
    model, pp = TransferModel(build_body(ARCH, 2)).eval(), body_preprocess(ARCH, size)
    found = frozen_features(model, table.path.tolist(), pp)
    return found.rows[found.index[:, 0]], table.label.to_numpy(dtype=str), table.split.to_numpy(dtype=str)


def classes_left_out(distance, x, y, train, valid):
    rng, scores, names = np.random.default_rng(0), [], np.unique(y)
    for _ in range(5):
        out = np.isin(y, rng.permutation(names)[:max(1, len(names)//4)])
        known = x[train & ~out]
        scores.append(auroc(distance(known, x[valid & ~out]), distance(known, x[valid & out])))
    return np.mean(scores)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folders', nargs='+')
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--images', type=int, default=1500)
    args = p.parse_args()
    sets = {f: read(f, args.size, args.images) for f in args.folders}
    print(f'{"folder":30} {"distance":10} others  classes  marked')
    for name, (x, y, split) in sets.items():
        train, valid = split == 'train', split == 'valid'
        for distance in (nearest, gaussian):
            inside = distance(x[train], x[valid])
            others = [distance(x[train], o[:200]) for other, (o, _, _) in sets.items() if other != name]
            far = np.mean([auroc(inside, o) for o in others])
            marked = np.mean([(p_values(o, inside) <= .05).mean() for o in others])
            near = classes_left_out(distance, x, y, train, valid)
            print(f'{name[-30:]:30} {distance.__name__:10} {far:6.3f} {near:8.3f} {marked:7.2f}', flush=True)


if __name__ == '__main__': main()
