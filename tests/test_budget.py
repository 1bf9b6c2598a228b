"A run ends inside its budget, and says what it chose"
import json
from types import SimpleNamespace

import pytest, torch

from fastbit.baseline import Run, TimeLimit, baseline
from fastbit.baseline.budget import EPOCHS, BudgetOption, Speed, budget_options, choose_option, late_words, option_seconds
from fastbit.config import Auto, BodyOptions, DataOptions, HeadOnly, LoaderOptions, RunOptions, TableOptions, TrainOptions
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
from fastbit.training.upper import upper_length
from conftest import TINY, run_fastbit

small = dict(TINY, size=32, num_workers=0, verbose=False)


def test_more_time_never_buys_less():
    speed, ladder = Speed(224, 1/100, 1/30), budget_options(224)
    chosen = [ladder.index(choose_option(ladder, s, speed, 1000, 250)[0]) for s in range(40, 900, 10)]
    assert chosen == sorted(chosen, reverse=True) and chosen[-1] == 0 and len(set(chosen)) > 6
    for s in (40, 100, 300): assert option_seconds(choose_option(ladder, s, speed, 1000, 250)[0], speed, 1000, 250) < s


def test_the_ladder():
    assert {o.size for o in budget_options(224) if o.recipe == 'onecycle'} == {224, 192, 160, 128} and budget_options(224)[-1] == BudgetOption('head', 96, None)
    assert [o.epochs for o in budget_options(64, smaller=False)] == [*EPOCHS, None] and {o.recipe for o in budget_options(224, recipe='head')} == {'head'}


def test_it_ends_in_time_and_says_what_it_chose(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('fastbit.training.upper.UPPER_STEPS', 40)
    res = baseline(folder, budget='2m', out=tmp_path/'run', **small | dict(verbose=True))
    text = capsys.readouterr().out
    assert '2 min 00 s: auto at 32 px, 40 steps; more time would not improve this recipe' in res.plan.budget and res.plan.budget in str(res.plan) and text.count('of 2 min 00 s') == 2
    assert json.loads((tmp_path/'run'/'results.json').read_text())['plan']['budget'] == res.plan.budget
    fixed = baseline(folder, **small)   # the same without a clock
    assert fixed.predictions.equals(res.predictions)


def test_options_that_a_budget_has_no_use_for_are_said(folder):
    records = dict(train=TrainOptions(label_smoothing=.2, size=32), data=DataOptions(), loaders=LoaderOptions(), output=RunOptions(budget='5m'), table=TableOptions())
    head = BudgetOption('head', 32, None)
    run = lambda recipe: Run.from_options(folder, BodyOptions(TINY['arch'], TINY['weights']), recipe, **records)
    words = run(Auto(lr=.1, mixup=.4))._dropped_by(head)
    assert 'enough for the classifier alone' in words and 'mixup=0.4, lr=0.1, label_smoothing=0.2' in words
    assert run(Auto(lr=.1))._dropped_by(BudgetOption('auto', 32, None, upper_length(20, 8))) == ''
    assert 'all layers on images' in run(Auto(views=3))._dropped_by(BudgetOption('onecycle', 32, 2))
    records['train'] = TrainOptions(size=32)
    assert run(HeadOnly(lr=.1))._dropped_by(head) == ''


def test_what_is_no_budget(folder):
    for asked, message in ((dict(budget='soon'), 'a time such as'), (dict(budget='5m', recipe='onecycle', epochs=3), 'Pass one of them'), (dict(budget='5m', recipe='hyperrule'), 'n_steps'), (dict(budget=1), r'(?s)The budget of 1 s leaves.*or more'),
                           (dict(budget='1'), "budget='1' has no unit. Write budget='1s', budget='1m' or budget='1h'")):
        with pytest.raises(ValueError, match=message): baseline(folder, **small | asked)


def test_a_machine_that_slows_down_still_ends_in_time(folder):
    learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0), **TINY)
    seconds, forward = [0], learn.model.forward   # a clock that goes on by a second with each batch
    learn.model.forward = lambda x: (seconds.append(1), forward(x))[1]
    learn.unfreeze()
    limit = TimeLimit(30, evaluation=1, now=lambda: sum(seconds))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(20, 1e-3, cbs=limit)
    assert limit.shortened and limit.steps < 30 and limit.elapsed <= 30   # of 80 steps
    assert learn.history.steps.lr_last.iloc[-1] < 1e-4 and len(learn.history.epochs)   # annealed, and evaluated at the end


def test_a_phase_that_was_not_shortened_is_not_said_to_be():
    phase = SimpleNamespace(name='all layers', n_steps=lambda n_batches: 30)
    words = [late_words(SimpleNamespace(steps=steps), phase, 3) for steps in (20, 30)]
    assert 'so all layers was shortened to 20 of 30 steps to' in words[0] and 'so the learning rate of all layers fell sooner to' in words[1]


def test_in_time_it_changes_nothing(folder):
    runs = []
    for cbs in (None, TimeLimit(600)):
        torch.manual_seed(0)
        learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0), **TINY)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-3, cbs=cbs)
        runs.append(learn)
    assert runs[0].history.steps.equals(runs[1].history.steps)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].model.state_dict().values(), runs[1].model.state_dict().values()))


def test_the_command(folder, tmp_path):
    run = run_fastbit('baseline', folder, '--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--budget', '2s', cwd=tmp_path)
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1 and 'or more' in run.stderr
    assert not (tmp_path/'fastbit-runs').exists()
