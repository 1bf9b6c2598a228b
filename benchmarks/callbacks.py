"""How much of a step on cached features does asking only the callbacks that have an event save?

    python benchmarks/callbacks.py --data FOLDER [--epochs 10] [--repeats 7]

fastai asks each callback at each event whether it has it; fastbit asks only those that do. Both train the same
classifier on the same features in memory, with the same callbacks, in one process.
"""
from unittest.mock import patch

from fastai.learner import Learner

from fastbit.training.loop import Loop
from peers import fastbit_learner, interleaved, median, note, paired, parser, prepare, quiet, seconds, split, spread


def main():
    p = parser(__doc__, repeats=7)
    p.add_argument('--epochs', type=int, default=10)
    args = p.parse_args()
    prepare(args)
    learn = fastbit_learner(split(args), args)
    def fit():
        with quiet(learn): return seconds(lambda: learn.fit_head(args.epochs))
    def fit_asking_all():
        with patch.object(Loop, '_call_one', Learner._call_one): return fit()
    fit()   # features are computed once
    times = interleaved({'fastbit': fit, 'fastai': fit_asking_all}, args.repeats)
    t, steps = median(times), args.epochs*len(learn.dls.train)
    milliseconds = {k: round(1000*v/steps, 2) for k, v in t.items()}
    note(args, 'step on cached features, all callbacks asked / those that have the event',
         round(paired(times, 'fastai', 'fastbit'), 2), milliseconds=milliseconds, steps=steps, repeats=args.repeats,
         range=spread(times['fastai'], times['fastbit']))


if __name__ == '__main__': main()
