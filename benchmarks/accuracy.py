"""How accurate is a baseline, by each recipe, and how far does that depend on the split?

    python benchmarks/accuracy.py --data FOLDER [--arch tf_efficientnet_lite0] [--size 128] [--seeds 0 1 2 3 4]

A seed is a split, 20 % of the images held out, and everything that is random in training. Nothing is chosen on the held-out images. `onecycle` and `head` with their defaults; `hyperrule` made short, 80 steps of 32 images at the rate of 0.003.
"""
from fastbit.baseline import baseline
from peers import note, parser, spread

RECIPES = dict(head={}, onecycle={}, hyperrule=dict(batch_size=32, scale=None, n_steps=80, eval_every=80))


def main():
    p = parser(__doc__)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    args = p.parse_args()
    for recipe, options in RECIPES.items():
        results = [baseline(args.data, args.arch, args.weights, recipe, args.size, seed=seed, verbose=False, **options) for seed in args.seeds]
        plain, tta = ([r.evaluation.accuracy for r in results], [r.tta.accuracy for r in results])
        seconds = [r.seconds['training'] for r in results]
        print(recipe, [f'{v:.4f}' for v in plain], flush=True)
        for what, v in (('accuracy', plain), ('accuracy with TTA', tta)):
            note(args, f'{recipe}, {what}', round(sum(v)/len(v), 4), range=spread(v, digits=4), seeds=args.seeds, n=results[0].evaluation.n, training_seconds=spread(seconds, digits=0))


if __name__ == '__main__': main()
