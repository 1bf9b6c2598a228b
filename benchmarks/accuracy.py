"""How accurate is a baseline, by each recipe, and how far does that depend on the split?

    python benchmarks/accuracy.py --data FOLDER [--arch tf_efficientnet_lite0] [--size 128] [--seeds 0 1 2 3 4]

A seed is a split, 20% of the images held out, and everything that is random in training. Nothing is chosen on the
held-out images. `onecycle` and `head` with their defaults; `hyperrule` shortened to 80 steps of 32 images at the rate
of 0.003.
"""
from fastbit.baseline import baseline
from peers import note, parser, spread

RECIPES = dict(head={}, onecycle={}, hyperrule=dict(batch_size=32, scale=None, n_steps=80, eval_every=80))


def run(args, recipe, seed):
    return baseline(args.data, args.arch, args.weights, recipe, size=args.size, seed=seed, verbose=False, **RECIPES[recipe])


def main():
    p = parser(__doc__)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    args = p.parse_args()
    for recipe in RECIPES:
        results = [run(args, recipe, seed) for seed in args.seeds]
        plain = [r.evaluation.accuracy for r in results]
        tta = [r.tta.accuracy for r in results]
        seconds = spread([r.seconds['training'] for r in results], digits=0)
        print(recipe, [f'{v:.4f}' for v in plain], flush=True)
        more = dict(seeds=args.seeds, n=results[0].evaluation.n, training_seconds=seconds)
        for what, values in (('accuracy', plain), ('accuracy with TTA', tta)):
            mean = round(sum(values)/len(values), 4)
            note(args, f'{recipe}, {what}', mean, range=spread(values, digits=4), **more)


if __name__ == '__main__': main()
