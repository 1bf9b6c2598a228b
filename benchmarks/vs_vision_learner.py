"""Does a baseline of fastbit beat fastai's `vision_learner`, given the same weights, split, image size, batch size and number of epochs?

    python benchmarks/vs_vision_learner.py --data FOLDER [--size 128] [--epochs 6] [--seeds 0 1 2]

Both run in this process, one after the other, seed by seed, in an order that alternates. fastai is used as its documentation does:
`fine_tune` (one frozen epoch, then the rest), once with `Resize` alone and once with `aug_transforms`. Training time is that of the fits,
without checking, planning and evaluation. Prints a table a seed and the means.
"""
import argparse, json, time, warnings

warnings.simplefilter('ignore')
import pandas as pd, torch
from fastai.vision.all import (CategoryBlock, ColReader, DataBlock, ImageBlock, IndexSplitter, Normalize, Resize, accuracy, aug_transforms, set_seed,
                               vision_learner)

from fastbit.baseline import onecycle_phases
from fastbit.bodies import body_preprocess, build_body
from fastbit.data import image_dataloaders, image_table, split_table
from fastbit.training import transfer_learner

ARCH = 'tf_efficientnet_lite0'


def run_fastai(table, args, seed, augment):
    pp = body_preprocess(ARCH)
    set_seed(seed)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=IndexSplitter(table.index[table.split == 'valid']),
                      item_tfms=Resize(args.size), batch_tfms=(aug_transforms() if augment else []) + [Normalize.from_stats(pp.mean, pp.std)])
    dls = block.dataloaders(table, bs=args.bs)
    learn = vision_learner(dls, ARCH, pretrained=False, metrics=accuracy)
    learn.model[0].model.load_state_dict(build_body(ARCH, 0).state_dict())   # the same weights, without its head
    learn.freeze()
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs-1)
    seconds = time.perf_counter() - start
    with learn.no_bar():
        preds, targs = learn.get_preds()
        tta = learn.tta()[0]
    return dict(seconds=seconds, accuracy=accuracy(preds, targs).item(), tta=accuracy(tta, targs).item(), n=len(targs))


def run_fastbit(table, args, seed):
    set_seed(seed)
    dls = image_dataloaders(table, ARCH, args.size, args.bs, seed=seed, check=False)
    learn = transfer_learner(dls, ARCH)
    start = time.perf_counter()
    with learn.no_logging():
        for s in onecycle_phases(args.epochs, cache=False): s.fit(learn)
    seconds = time.perf_counter() - start
    report = learn.tta(show=False).report
    return dict(seconds=seconds, accuracy=report.accuracy['plain'], tta=report.accuracy['TTA'], n=int(report.n['plain']))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True); p.add_argument('--size', type=int, default=128); p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--bs', type=int, default=32); p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = p.parse_args()
    peers = dict(fastbit=run_fastbit, fastai=lambda *a: run_fastai(*a, False), fastai_augmented=lambda *a: run_fastai(*a, True))
    rows = []
    for i, seed in enumerate(args.seeds):
        table = split_table(image_table(args.data), .2, seed)
        for name in (list(peers) if i % 2 == 0 else list(peers)[::-1]):
            rows.append(dict(seed=seed, peer=name, **peers[name](table, args, seed)))
            print(json.dumps(rows[-1]), flush=True)
    df = pd.DataFrame(rows)
    mean = df.groupby('peer', sort=False)[['accuracy', 'tta', 'seconds']].mean()
    lo_hi = df.groupby('peer')[['accuracy']].agg(['min', 'max'])
    print(f'\n{ARCH}, {args.size} px, {args.epochs} epochs, batches of {args.bs}, seeds {args.seeds}, n = {df.n.iloc[0]}, {torch.get_num_threads()} threads')
    print(mean.assign(low=lo_hi['accuracy', 'min'], high=lo_hi['accuracy', 'max'], time_ratio=mean.seconds/mean.seconds['fastbit']).round(4).to_string())


if __name__ == '__main__': main()
