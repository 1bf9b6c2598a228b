"""How strongly should a temperature be shrunk towards 1 when there are few images to fit it on?

    python benchmarks/temperature.py [--repeats 100]

Draws logits of models with 2 to 100 classes and 65 to 88% accuracy, labels from their softmax, and multiplies the
logits by the true temperature. Prints the loss on fresh images above that of the true temperature, in nats, averaged
over models and temperatures: without scaling, and with temperatures fitted on n images under priors of several weights
(0: maximum likelihood). `PRIOR_IMAGES` of `fastbit.metrics.calibration` comes from this table. No images, no downloads;
it takes a minute.
"""
import argparse

import pandas as pd, torch, torch.nn.functional as F

from fastbit.metrics import fit_temperature

MODELS = ((2, 3.), (5, 3.), (10, 4.), (10, 8.), (100, 5.))   # classes, standard deviation of the logits
TEMPERATURES = (.7, 1., 1.5, 2.5, 4.)
PRIORS = (0, 1, 2, 4, 8, 16)
N_IMAGES = (3, 10, 30, 100, 1000)
N_FRESH = 4000


def draw(n, classes, spread, temperature, rng):
    logits = spread*torch.randn(n, classes, generator=rng)
    return temperature*logits, torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--repeats', type=int, default=100,
                   help='fits on 3 images per model and temperature; fewer on more images')
    repeats = p.parse_args().repeats
    rng, rows = torch.Generator().manual_seed(0), []
    for classes, spread in MODELS:
        for t in TEMPERATURES:
            fresh, fresh_targs = draw(N_FRESH, classes, spread, t, rng)
            def loss(temperature): return F.cross_entropy(fresh/temperature, fresh_targs)
            def excess(fitted): return (loss(fitted) - loss(t)).item()
            for n in N_IMAGES:
                for _ in range(max(3, repeats*3//(n+3))):
                    logits, targs = draw(n, classes, spread, t, rng)
                    row = dict(images=n, classes=classes, spread=spread, true=t, none=excess(1.))
                    rows.append(row | {f'prior {k}': excess(fit_temperature(logits, targs, k)) for k in PRIORS})
    df = pd.DataFrame(rows)
    columns = ['none', *(f'prior {k}' for k in PRIORS)]
    by_model = df.groupby(['images', 'classes', 'spread', 'true'])[columns].mean()
    print(by_model.groupby('images').mean().round(4).to_string())
    print('\nworst model, mean over temperatures:')
    print(by_model.groupby(['images', 'classes', 'spread']).mean().groupby('images').max().round(4).to_string())
    print('\n3 images, by true temperature:')
    print(by_model.loc[3].groupby('true').mean().round(4).to_string())


if __name__ == '__main__': main()
