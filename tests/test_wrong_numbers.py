"Numbers that may be wrong: clean sets are left alone, and gross errors are found"
import numpy as np, pytest

from fastbit.studies.wrong_numbers import number_table

NOISES = dict(
    normal=lambda rng, s: rng.normal(size=len(s)),
    heavy=lambda rng, s: rng.standard_t(4, len(s)),
    growing=lambda rng, s: rng.normal(size=len(s))*(.3 + np.abs(s)/s.std()),
)


def draw(seed, noise, n=120, d=20):
    "Features that tell most of a number"
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    signal = x[:, :5].sum(1)
    return rng, x, 100 + 10*(signal + .4*signal.std()*NOISES[noise](rng, signal))


@pytest.mark.parametrize('noise', NOISES)
def test_clean_numbers_are_left_alone(noise):
    flagged = [number_table(*draw(seed, noise)[1:]).wrong.mean() for seed in range(15)]
    assert np.mean(flagged) < (.001 if noise == 'normal' else .01)


def test_slipped_points_are_found_even_if_there_are_several():
    found, false = [], []
    for seed in range(10):
        rng, x, y = draw(seed, 'normal')
        rows = rng.choice(len(y), 4, replace=False)
        y[rows] *= rng.choice([.1, 10, 100], 4)
        wrong = number_table(x, y).wrong.to_numpy(copy=True)
        found.append(wrong[rows].mean())
        wrong[rows] = False
        false.append(wrong.mean())
    assert np.mean(found) > .95 and np.mean(false) < .005


def test_groups_are_judged_by_others():
    "Copies of an image with a wrong number would teach it to the model that judges them"
    rng, x, y = draw(0, 'normal')
    groups = np.r_[np.arange(len(y)), [3]*10]
    x, y = np.r_[x, x[[3]*10]], np.r_[y, np.full(10, y[3] + 100)]
    y[3] += 100
    assert number_table(x, y, groups).wrong[groups == 3].all()
