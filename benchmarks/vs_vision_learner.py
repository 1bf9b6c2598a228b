"""Does a baseline of fastbit beat fastai's `vision_learner`, given the same weights, split, image size and epochs?

    python benchmarks/vs_vision_learner.py --data FOLDER [--size 128] [--epochs 6] [--seeds 0 1 2]

Both run in this process, one after the other, seed by seed, in an order that alternates, with the same batch size.
fastai is used as its documentation does: `fine_tune` (one frozen epoch, then the rest), once with `Resize` alone and
once with `aug_transforms`. Training time is that of the fits, without checking, planning and evaluation. Prints a table
per seed and the means.
"""
import argparse, json, time, warnings

warnings.simplefilter('ignore')
import pandas as pd, torch
from fastai.vision.all import accuracy, aug_transforms, set_seed

from fastbit.baseline import onecycle_phases
from fastbit.bodies import build_body
from fastbit.data import image_dataloaders, image_table, split_table
from fastbit.training import transfer_learner
from peers import fastai_learner

ARCH = 'tf_efficientnet_lite0'


def run_fastai(table, args, seed, batch_tfms=()):
    learn = fastai_learner(table, args, seed, batch_tfms)
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs-1)
    seconds = time.perf_counter() - start
    with learn.no_bar():
        preds, targs = learn.get_preds()
        tta = learn.tta()[0]
    return dict(
        seconds=seconds,
        accuracy=accuracy(preds, targs).item(),
        tta=accuracy(tta, targs).item(),
        n=len(targs))


def run_augmented(table, args, seed): return run_fastai(table, args, seed, aug_transforms())


def run_fastbit(table, args, seed):
    set_seed(seed)
    dls = image_dataloaders(table, ARCH, args.size, args.bs, seed=seed, check=False)
    learn = transfer_learner(dls, ARCH)
    start = time.perf_counter()
    with learn.no_logging():
        for phase in onecycle_phases(args.epochs, cache=False): phase.fit(learn)
    seconds = time.perf_counter() - start
    report = learn.tta(show=False).report
    return dict(
        seconds=seconds,
        accuracy=report.accuracy['plain'],
        tta=report.accuracy['TTA'],
        n=int(report.n['plain']))


PEERS = dict(fastbit=run_fastbit, fastai=run_fastai, fastai_augmented=run_augmented)


def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    return p.parse_args()


def main():
    args = options()
    args.arch, args.state = ARCH, build_body(ARCH, 0).state_dict()   # the same weights, without the classifier
    rows = []
    for i, seed in enumerate(args.seeds):
        table = split_table(image_table(args.data), .2, seed)
        for name in (list(PEERS) if i % 2 == 0 else list(PEERS)[::-1]):
            rows.append(dict(seed=seed, peer=name, **PEERS[name](table, args, seed)))
            print(json.dumps(rows[-1]), flush=True)
    df = pd.DataFrame(rows)
    mean = df.groupby('peer', sort=False)[['accuracy', 'tta', 'seconds']].mean()
    ends = df.groupby('peer')[['accuracy']].agg(['min', 'max'])
    print(f'\n{ARCH}, {args.size} px, {args.epochs} epochs, batches of {args.bs}, seeds {args.seeds}, '
          f'n = {df.n.iloc[0]}, {torch.get_num_threads()} threads')
    mean = mean.assign(
        low=ends['accuracy', 'min'],
        high=ends['accuracy', 'max'],
        time_ratio=mean.seconds/mean.seconds['fastbit'])
    print(mean.round(4).to_string())


if __name__ == '__main__': main()
