"""How long does an epoch of training all layers take, next to fastai's and to a bare loop over tensors in memory?

    python benchmarks/fine_tuning.py --data FOLDER [--arch tf_efficientnet_lite0] [--size 128] [--repeats 3]

One epoch of one-cycle with validation, every stage unfrozen. fastai is an unfrozen `vision_learner`; fastbit finds its
decoded images in the cache, as in every epoch but the first of the first run. The bare loop has the same model
in the same memory format, with BatchNorm frozen like fastbit's, torch's fused AdamW, and its pixels in memory, without
augmentation; it does not validate, so it is compared with fastbit's training images per second.
"""
import torch, torch.nn.functional as F
from fastai.callback.core import Callback, CancelValidException

from fastbit.bodies import TransferModel, build_body
from peers import (fastai_learner, fastbit_learner, interleaved, median, note, paired, parser, pixels_in_memory,
                   prepare, quiet, seconds, split, spread)


class NoValid(Callback):
    def before_validate(self): raise CancelValidException


def bare_loop(table, args):
    train = table[table.split == 'train']
    x = pixels_in_memory(train.path, args)
    y = torch.tensor(train.label.astype('category').cat.codes.to_numpy().copy()).long()
    model = TransferModel(build_body(args.arch, table.label.nunique(), args.weights)).train()
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    def epoch():
        order = torch.randperm(len(x))
        for rows in order.split(args.bs):
            F.cross_entropy(model.net(x[rows].contiguous(memory_format=model.format)), y[rows]).backward()
            opt.step()
            opt.zero_grad()
    return epoch


def fit(learn, cbs=None):
    with quiet(learn): return seconds(lambda: learn.fit_one_cycle(1, 1e-4, cbs=cbs))


def main():
    args = parser(__doc__).parse_args()
    prepare(args)
    table = split(args)
    theirs, ours, bare = fastai_learner(table, args), fastbit_learner(table, args), bare_loop(table, args)
    for learn in (theirs, ours): learn.unfreeze()
    for dl in ours.dls.loaders[:2]:
        for _ in dl: pass   # decoded once
    alone = 'fastbit, training alone'
    peers = {
        'fastai': lambda: fit(theirs),
        'fastbit': lambda: fit(ours),
        alone: lambda: fit(ours, NoValid()),
        'bare loop': lambda: seconds(bare)}
    for f in (peers['fastbit'], bare): f()   # prepared once
    times = interleaved(peers, args.repeats)
    t, n = median(times), int((table.split == 'train').sum())
    print(f'\n{args.arch}, {args.size} px, {n} images to train, {len(table)-n} to validate, batches of {args.bs}, '
          f'{args.repeats} repeats: ' + ', '.join(f'{k} {v:.2f} s' for k, v in t.items()))
    goal = '1.4' if 'efficientnet' in args.arch else '1.05'
    note(args, 'one epoch of training everything, fastai / fastbit', round(paired(times, 'fastai', 'fastbit'), 2), goal,
         seconds=t, range=spread(times['fastai'], times['fastbit']))
    ratio = round(paired(times, 'bare loop', alone), 2)
    note(args, 'training everything, images per second, fastbit / bare loop', ratio, '0.9',
         range=spread(times['bare loop'], times[alone]), images_a_second=round(n/t[alone], 1))


if __name__ == '__main__': main()
