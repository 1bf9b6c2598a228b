"""How many images per second does training all layers take, next to a bare channels-last loop over tensors in memory?

    python benchmarks/training_step.py --data FOLDER [--arch tf_efficientnet_lite0] [--size 64] [--images 256]
        [--repeats 5] [--threads 1]

One epoch of one-cycle over the first images of the training set, without validation. fastbit finds its decoded images
in the cache, crops and flips them; `plain` is fastbit with `fused=False`. The bare loop has the same model, BatchNorm
frozen like fastbit's, torch's fused AdamW, and normalized pixels in memory.
`benchmarks/all.py --without-avx512` hides AVX-512 from PyTorch and oneDNN, as on a machine that has none.
"""
import torch

from fastbit.bodies import TransferModel, build_body
from fine_tuning import NoValid, fit
from peers import (fastbit_learner, interleaved, median, note, paired, parser, pixels_in_memory, prepare, seconds,
                   split, spread)

LAST = dict(memory_format=torch.channels_last)


def bare_loop(table, args):
    train = table[table.split == 'train']
    x = pixels_in_memory(train.path, args).contiguous(**LAST)
    y = torch.tensor(train.label.astype('category').cat.codes.to_numpy().copy()).long()
    model = TransferModel(build_body(args.arch, table.label.nunique(), args.weights)).train()
    net = model.net.to(**LAST)
    opt = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-4, fused=True)
    def epoch():
        for rows in torch.randperm(len(x)).split(args.bs):
            torch.nn.functional.cross_entropy(net(x[rows].contiguous(**LAST)), y[rows]).backward()
            opt.step()
            opt.zero_grad()
    return epoch


def few(table, args):
    "The first training images, in whole batches, and one held-out batch"
    train, held_out = (table[table.split == k] for k in ('train', 'valid'))
    train = train.sample(args.images, random_state=0)
    return table.loc[[*train.index, *held_out.index[:args.bs]]].reset_index(drop=True)


def main():
    p = parser(__doc__, size=64, repeats=5)
    p.add_argument('--images', type=int, default=256)
    p.add_argument('--threads', type=int)
    args = p.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    prepare(args)
    table = few(split(args), args)
    ours, bare = fastbit_learner(table, args), bare_loop(table, args)
    ours.unfreeze()
    for _ in ours.dls.train: pass   # decoded once
    def ours_with(fused):
        ours.model.fused = fused
        return fit(ours, NoValid())
    peers = {'fastbit': lambda: ours_with(True), 'bare loop': lambda: seconds(bare)}
    peers['plain'] = lambda: ours_with(False)
    for f in peers.values(): f()   # prepared once
    times = interleaved(peers, args.repeats)
    t = median(times)
    goal = '1.05' if 'efficientnet' not in args.arch else '1.4' if args.size == 64 else '1.1'
    more = dict(size=args.size, bs=args.bs, images=args.images, repeats=args.repeats, seconds=t)
    name = f'training everything at {args.size} px, images per second'
    note(args, f'{name}, fastbit / bare channels_last loop', round(paired(times, 'bare loop', 'fastbit'), 2), goal,
         range=spread(times['bare loop'], times['fastbit']), images_a_second=round(args.images/t['fastbit'], 1), **more)
    note(args, f'{name}, fastbit / fastbit with fused=False', round(paired(times, 'plain', 'fastbit'), 2), '',
         range=spread(times['plain'], times['fastbit']), **more)


if __name__ == '__main__': main()
