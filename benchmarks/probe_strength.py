"""How much faster is the regularization of logistic regression chosen than by scikit-learn's `GridSearchCV`?

    python benchmarks/probe_strength.py --data FOLDER [--arch NAME] [--repeats 5]

The features of the frozen body, three folds, the eight strengths of `fit_head(solver='lbfgs')`, one thread: the search
of scikit-learn and fastbit's in turn. Both must choose the same strength.
"""
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from fastbit.data.groups import fold_numbers
from fastbit.training.head import FOLDS, STRENGTHS, FeatureScaler
from fastbit.training.strength import best_strength
from peers import fastbit_learner, interleaved, median, note, paired, parser, prepare, quiet, seconds, spread, split


def features(args):
    "Features and class numbers of the training images"
    learn = fastbit_learner(split(args), args)
    learn.freeze()
    with quiet(learn): learn.fit_head(1, cache=False)
    found = learn.head_features[0]
    labels = dict(zip(learn.dls.table.path, learn.dls.table.label))
    y = np.unique([labels[str(p)] for p in learn.dls.train.items], return_inverse=True)[1]
    return found.rows[found.index[:, 0]].reshape(len(y), -1), y


def main():
    args = parser(__doc__, repeats=5).parse_args()
    prepare(args)
    x, y = features(args)
    fold, chosen = fold_numbers(y, FOLDS, 0, np.arange(len(y))), {}
    model, scaler = LogisticRegression(max_iter=1000), FeatureScaler()

    def sklearn():
        strengths = dict(logisticregression__C=STRENGTHS)
        how = dict(scoring='neg_log_loss', cv=PredefinedSplit(fold), refit=False)
        search = GridSearchCV(make_pipeline(scaler, model), strengths, **how).fit(x, y)
        chosen['sklearn'] = search.best_params_['logisticregression__C']

    def fastbit(): chosen['fastbit'] = best_strength(model, scaler, x, y, fold, STRENGTHS)

    peers = dict(sklearn=lambda: seconds(sklearn), fastbit=lambda: seconds(fastbit))
    with threadpool_limits(1): times = interleaved(peers, args.repeats)
    assert chosen['sklearn'] == chosen['fastbit'], chosen
    shape = f'{len(x)} images, {x.shape[1]} features, {y.max()+1} classes'
    ratio, between = round(paired(times, 'sklearn', 'fastbit'), 1), spread(times['sklearn'], times['fastbit'], 1)
    took = {k: round(v, 2) for k, v in median(times).items()}
    note(args, f'strength of a linear probe ({shape}): GridSearchCV / fastbit', ratio, range=between, seconds=took)


if __name__ == '__main__': main()
