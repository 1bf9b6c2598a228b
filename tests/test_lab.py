"The laboratory of recipes: fair draws, honest scores, arithmetic of the peers, rows that are not run twice"
import json, subprocess, sys
from argparse import Namespace
from pathlib import Path

import numpy as np, pytest, torch

from fastbit.metrics import evaluate_probs
from conftest import write_folder

LAB = Path(__file__).parents[1]/'benchmarks'/'recipes'


@pytest.fixture(scope='module')
def lab():
    "Its modules, found as when `lab.py` is run"
    sys.path.insert(0, str(LAB))
    try:
        import cases, lab, others, recipes, sets
        yield Namespace(cases=cases, lab=lab, others=others, recipes=recipes, sets=sets)
    finally: sys.path.remove(str(LAB))


@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('lab')/'set', dict(blue=20, green=20, red=20))


@pytest.fixture
def case(lab, pictures): return lab.cases.Case(pictures, 8, 0, 32, 'test_efficientnet', 'random', bs=8)


def test_draws_do_not_overlap_and_depend_on_the_seed_alone(lab, pictures):
    make = lambda k, seed: lab.cases.Case(pictures, k, seed, 32, 'test_efficientnet', 'random')
    a, b, c = make(8, 0), make(8, 0), make(8, 1)
    train, valid, test = map(a.part, ('train', 'valid', 'test'))
    assert len({*train.path, *valid.path, *test.path}) == len(train) + len(valid) + len(test) == 60
    assert len(valid) == len(train)//4 == 6   # a fifth of the images that a run has
    assert train.label.value_counts().to_dict() == dict(blue=8, green=8, red=8)
    assert a.table.equals(b.table) and not a.table.equals(c.table)
    assert make(0, 0).part('train').label.value_counts().to_dict() == dict(blue=16, green=16, red=16)
    assert [a.classes[i] for i in a.targets('test')] == list(test.label)


def test_pixels_are_those_that_fastbit_trains_on(case):
    "fastai's loaders of fastbit give validation images, which are not augmented, in the same order"
    x, y = zip(*case.learner().dls[2])
    pixels = torch.cat(x).mul(255).round().as_subclass(torch.Tensor)
    assert torch.equal(pixels, case.pixels('test').float())
    assert torch.cat(y).tolist() == case.targets('test').tolist()
    assert case.pixels('train', larger=True).shape[-1] == case.preprocess.train_size > 32


def test_temperature_is_chosen_on_the_other_half(lab):
    "Labels that say nothing: a temperature chosen on the images that it is measured on would always help"
    torch.manual_seed(0)
    probs, targets = torch.randn(40, 3).mul(4).softmax(1), torch.arange(40) % 3
    scaled = lab.cases.scaled_probs(probs, targets)
    assert torch.equal(scaled.argmax(1), probs.argmax(1))
    assert evaluate_probs(scaled, targets).loss < evaluate_probs(probs, targets).loss
    ratio = lambda p: (p.log()[:, 0] - p.log()[:, 1])
    ts = (ratio(probs)/ratio(scaled)).numpy().round(3)
    assert len(np.unique(ts)) == 2   # one for each half


def test_the_soup_is_a_mean_of_states_that_does_not_lose(lab):
    states = [dict(w=torch.tensor([0., 2.]), n=torch.tensor(3)), dict(w=torch.tensor([1., 4.]), n=torch.tensor(5))]
    found = lab.others._mean(states)
    assert found['w'].tolist() == [.5, 3.] and found['n'].item() == 4 and found['n'].dtype == torch.int64

    class Toy(lab.others.Soup):
        "The score is how near the weight is to 1"
        def __init__(self, weights):
            self.plain, self.keep, self.patience = Namespace(net=torch.nn.Linear(1, 1, bias=False)), 3, 2
            self.best, self.since = [], 0
            for w in weights:
                self.plain.net.load_state_dict(dict(weight=torch.tensor([[w]])))
                self.stopped = self.after_epoch()
        def score(self): return -abs(self.plain.net.weight.item() - 1)
        def cook(self):
            super().cook()
            return self.plain.net.weight.item()

    assert Toy([.9, 5., 1.2]).cook() == pytest.approx(1.05) and Toy([.9, .5]).cook() == pytest.approx(.9)
    assert Toy([.9, 5., 6.]).stopped and not Toy([.9, 5.]).stopped


def test_the_schedule_warms_up_and_ends_at_zero(lab):
    rates = [lab.others._cosine(i, 20, 2) for i in range(21)]
    assert rates[:3] == [0, .5, 1] and max(rates) == 1 and rates[-1] == pytest.approx(0) and rates[11] == pytest.approx(.5)


@pytest.mark.parametrize('name', ['onecycle', 'logistic', 'tuned', 'upper', 'auto', 'fastai', 'autogluon', 'timm', 'linear_probe'])
def test_recipes_train_and_are_measured_on_the_same_images(lab, case, name):
    short = dict(tuned=lab.recipes.tuned(4), upper=lab.recipes.upper(2, n_steps=4, views=2), auto=lab.recipes.auto(n_steps=4), fastai=lab.others.fastai(2),
                 autogluon=lab.others.autogluon(1), timm=lab.others.timm_usual(1))
    recipe = short.get(name) or (lab.recipes.RECIPES | lab.others.PEERS)[name]
    outcome = recipe(case)
    assert outcome.probs.shape == (30, 3) and torch.allclose(outcome.probs.sum(1), torch.ones(30, dtype=outcome.probs.dtype), atol=1e-4)
    found = outcome.scores(case.targets('test'))
    assert found['n'] == 30 and 0 <= found['accuracy'] <= 1 and found['loss'] > 0 and found['seconds'] > 0


def test_a_row_is_run_once(lab, pictures, tmp_path, capsys, monkeypatch):
    options = dict(folder=pictures.parent, sets=['set'], k=[4], seeds=[100], size=32, arch='test_efficientnet', weights='random',
                   results=tmp_path/'rows.jsonl')
    work = lambda *names: lab.lab.work(Namespace(recipes=list(names), **options))
    work('logistic')
    work('logistic', 'linear_probe')
    rows = lab.lab.read(options['results'])
    assert [r['recipe'] for r in rows] == ['logistic', 'linear_probe'] and rows[0]['n'] == 45
    monkeypatch.setitem(lab.recipes.RECIPES, 'head', lambda case: 1/0)
    work('head')   # a failure is told and not written
    assert len(lab.lab.read(options['results'])) == 2 and 'ZeroDivisionError' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='unknown recipe'): work('nothing')
    found = lab.lab.paired(rows, 'linear_probe')
    assert found.runs.tolist() == [1] and found.recipe.tolist() == ['logistic']


def test_what_rows_say(lab):
    row = lambda recipe, name, seed, accuracy: dict(set=name, k=4, seed=seed, size=32, arch='a', recipe=recipe, accuracy=accuracy, loss=1., ece=.1, seconds=2.)
    rows = [row('old', 'x', 0, .5), row('new', 'x', 0, .6), row('old', 'y', 0, .5), row('new', 'y', 0, .4), row('new', 'y', 1, .9)]
    found = lab.lab.paired(rows, 'old').iloc[0]
    assert found.runs == 2 and found.accuracy.startswith('+0.0%') and found['loses on'] == 'y 4 (-10.0%)'   # seed 1 has no pair


def test_the_rows_in_the_repository_can_be_shown():
    got = subprocess.run([sys.executable, 'lab.py', '--show', '--all-seeds'], cwd=LAB, capture_output=True, text=True)
    assert got.returncode == 0 and 'against onecycle' in got.stdout, got.stderr
    for line in (LAB/'results.jsonl').read_text().splitlines(): assert {'cpu', 'threads', 'accuracy', 'seconds'} <= set(json.loads(line))


def test_pictures_are_put_on_white(lab, tmp_path):
    from PIL import Image
    Image.new('RGBA', (300, 20), (255, 0, 0, 0)).save(tmp_path/'clear.png')
    (tmp_path/'no.png').write_text('no picture')
    rows = lab.sets.save(tmp_path.glob('*.png'), tmp_path/'out')
    with Image.open(rows[0][0]) as img: assert (len(rows), img.size[0], img.mode, img.getpixel((0, 0))) == (1, 256, 'RGB', (255, 255, 255))
