"""How fast are training batches made from cached pixels?

    python benchmarks/batches.py --data FOLDER [--sizes 64 128 224]

One core and one thread, no worker processes, every square cached. Images per second of three loops over the training
images, in turns: fastbit's training loader, with random crops and flips; the same loader image by image, as fastai's
transforms work and as fastbit's worked before; and a bare loop that gathers squares from an array in memory, crops and
scales them into the same kind of batch, without flips or files. The last figure is the part of an epoch that batches
take: the time to make one over that of a training step of all layers on it.
"""
import gc, os, time

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np, torch

from fastbit.data import ImageDL
from peers import fastbit_learner, interleaved, median, note, paired, parser, prepare, seconds, split, spread


class OneByOne(ImageDL):
    "A loader whose items somebody else could make, so that its batches are not cut whole"
    def do_item(self, s): return super().do_item(s)


def bare_pass(squares, targets, size, bs):
    "Gather, crop and scale all images once, in a random order"
    room = squares.shape[1] - size
    order = np.random.permutation(len(squares))
    for lo in range(0, len(order), bs):
        rows = order[lo:lo+bs]
        corners = np.random.randint(room+1, size=(len(rows), 2))
        images = np.empty((len(rows), 3, size, size), np.uint8)
        for image, square, (left, top) in zip(images, squares[rows], corners):
            image[:] = square[top:top+size, left:left+size].transpose(2, 0, 1)
        yield torch.from_numpy(images).float().div_(255), targets[rows]


def squares_of(dl):
    "The cached squares of a loader, in one array"
    pp = dl.pixels.pp
    paths = list(dl.items)
    squares = np.empty((len(paths), pp.train_size, pp.train_size, 3), np.uint8)
    dl.pixels.fill(paths, [squares])
    return squares


def timed(batches, passes):
    def run():
        gc.collect()
        return seconds(lambda: [sum(len(y) for _, y in batches()) for _ in range(passes)])
    return run


def measure(args, size):
    args.size = size
    learn = fastbit_learner(split(args), args, num_workers=0)
    train = learn.dls.train
    one_by_one = train.new(cls=OneByOne)
    list(train)     # from now on its squares are cached
    time.sleep(4)   # those of a file that was just written are checked in each pass
    squares, targets = squares_of(train), torch.zeros(train.n, dtype=torch.long)
    bare = lambda: bare_pass(squares, targets, size, args.bs)
    passes = max(1, 2_000_000//(size**2*train.n//10))
    peers = dict(fastbit=timed(lambda: train, passes), bare=timed(bare, passes), item=timed(lambda: one_by_one, 1))
    for run in peers.values(): run()   # warm
    times = interleaved(peers, args.repeats)
    of_a_pass = {k: [t/n for t in times[k]] for k, n in dict(fastbit=passes, bare=passes, item=1).items()}
    per_second = {k: round(train.n/t) for k, t in median(of_a_pass).items()}
    of = f'training batches from cached pixels at {size} px, images per second'
    goal = '0.5' if size == 128 else ''
    note(args, f'{of}, fastbit / bare loop', round(paired(of_a_pass, 'bare', 'fastbit'), 2), goal, size=size,
         range=spread(of_a_pass['bare'], of_a_pass['fastbit']), images_a_second=per_second)
    note(args, f'{of}, fastbit / image by image', round(paired(of_a_pass, 'item', 'fastbit'), 1), size=size,
         range=spread(of_a_pass['item'], of_a_pass['fastbit'], 1))
    return learn


def share(args, learn, size):
    "Time to make a batch over the time to train everything on it"
    learn.unfreeze()
    learn.create_opt()
    x, y = learn.dls.train.one_batch()
    learn.model.train()

    def step():
        learn.loss_func(learn.model(x), y).backward()
        learn.opt.step()
        learn.opt.zero_grad()

    def batches(): return seconds(lambda: list(learn.dls.train))/len(learn.dls.train)

    step()
    parts = [batches()/seconds(step) for _ in range(max(5, args.repeats))]
    note(args, f'making a batch / training everything on it, {size} px', round(float(np.median(parts)), 3), size=size,
         range=spread(parts, digits=3))


def main():
    p = parser(__doc__, repeats=7)
    p.add_argument('--sizes', type=int, nargs='+', default=[64, 128, 224])
    args = p.parse_args()
    torch.set_num_threads(1)
    prepare(args)
    for size in args.sizes:
        learn = measure(args, size)
        share(args, learn, size)


if __name__ == '__main__': main()
