"Several processes are one run: the same weights, metrics over everything once, one that writes, and an end within seconds when one dies"
import json, os, random, re, signal, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest
from safetensors.torch import load_file

from fastbit.cli.launch import environment, unused_port
from conftest import run_fastbit, start_fastbit, wait_for_rows, write_folder
from forks import COMMAND, LAUNCH, TORCHRUN, Fork
from tasks import CASES

accelerate = pytest.importorskip('accelerate', reason='pip install accelerate')
pytestmark = pytest.mark.slow   # `make test-slow`
BODY = ('--arch', 'test_efficientnet_gn', '--weights', 'random', '--size', '32', '--device', 'cpu')
NORMS = ('--arch', 'test_efficientnet', *BODY[2:])
BY_RULE = ('--recipe', 'hyperrule', *BODY, '--bs', '4', '--batch-size', '13', '--steps', '20', '--eval-every', '7', '--mixup', '.3', '--workers', '0')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "43 images: a remainder for two and for four processes, in training, validation and their batches"
    return write_folder(tmp_path_factory.mktemp('processes')/'data', dict(blue=15, green=14, red=14))


def run(data, out, *words, how=run_fastbit):
    done = how('baseline', data, *words, '--out', out, cwd=out.parent, FASTBIT_CACHE=str(out.parent/f'cache-{out.name}'))
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run_forked(*words, cwd, **env):
    "The command with `--procs`, and forks for its processes"
    with begun(words[1:], cwd, **env) as p: out, err = p.communicate(timeout=300)
    return subprocess.CompletedProcess(words, p.returncode, out, err)


def far(a, b) -> float:
    "The largest difference of the weights of two runs, relative to the largest weight of its tensor"
    a, b = (load_file(o/'model'/'model.safetensors') for o in (a, b))
    return max(((a[k]-b[k]).abs().max()/a[k].abs().max().clamp_min(1e-12)).item() for k in a)


@pytest.fixture(scope='module')
def alone(data, tmp_path_factory):
    root = tmp_path_factory.mktemp('alone')
    run(data, root/'rule', *BY_RULE)
    run(data, root/'onecycle', *BODY, '--recipe', 'onecycle', '--epochs', '3', '--bs', '9')
    run(data, root/'auto', *NORMS, '--steps', '20', '--bs', '9')
    run(data, root/'all', *NORMS, '--steps', '8', '--bs', '9', '--lr', '8')   # too high for the upper stages: all layers follow
    return root


@pytest.mark.parametrize('n', [2, 4])
def test_the_rule_in_several_processes_gives_the_weights_of_one(data, alone, tmp_path, n):
    "After 20 steps of 13 images with mixup; a GroupNorm body on CPUs, by gloo"
    done = run(data, tmp_path/'out', *BY_RULE, '--procs', n, how=start_fastbit if n == 2 else run_forked)
    assert far(alone/'rule', tmp_path/'out') <= 1e-5
    one, many = (pd.read_csv(o/'history.csv') for o in (alone/'rule', tmp_path/'out'))
    assert np.allclose(one.drop(columns=['phase', 'seconds']), many.drop(columns=['phase', 'seconds']), rtol=1e-4) and one.accuracy.tolist() == many.accuracy.tolist()
    one, many = (pd.read_csv(o/'predictions.csv') for o in (alone/'rule', tmp_path/'out'))
    assert one.path.tolist() == many.path.tolist() and np.abs(one.probability - many.probability).max() < 1e-5   # all of them once, in order
    one, many = (json.loads((o/'results.json').read_text())['evaluation'] for o in (alone/'rule', tmp_path/'out'))
    assert one['n'] == many['n'] and one['accuracy'] == many['accuracy']
    assert done.stdout.count('all layers:') == 1 and done.stdout.count('\naccuracy ') == 1   # one prints
    assert len((tmp_path/'out'/'log.jsonl').read_text().splitlines()) == 3                     # one writes


@pytest.mark.parametrize('balance', ['loss', 'batches'])
def test_balanced_classes_in_two_processes(tmp_path, balance):
    data = write_folder(tmp_path/'data', dict(blue=26, green=10, red=7))
    for name, words in (('rule', BY_RULE), ('onecycle', (*BODY, '--recipe', 'onecycle', '--epochs', '3', '--bs', '9'))):
        run(data, tmp_path/name, *words, '--balance', balance)
        run(data, tmp_path/f'{name}2', *words, '--balance', balance, '--procs', '2', how=run_forked)
        one, many = (pd.read_csv(tmp_path/o/'history.csv') for o in (name, f'{name}2'))
        assert np.allclose(one.train_loss, many.train_loss, rtol=1e-5, equal_nan=True)
        assert far(tmp_path/name, tmp_path/f'{name}2') <= (1e-5 if name == 'rule' else 1e-3)   # Adam divides by what may be tiny


@pytest.mark.parametrize('task', CASES)
def test_each_task_in_two_processes(tmp_path, task):
    "By the rule, and by the head and what follows it: the same weights, predictions, thresholds and intervals"
    case = CASES[task]
    df = case.table(tmp_path/'images', 63)
    if task == 'labels': df = df.assign(label=['|'.join(o) for o in df.label])
    df.to_csv(tmp_path/'t.csv', index=False)
    words = ('--task', task, '--label-col', case.column, *(('--label-sep', '|') if task == 'labels' else ()))
    for name, how in (('rule', BY_RULE), ('auto', (*NORMS, '--steps', '8', '--bs', '9'))):
        run(tmp_path/'t.csv', tmp_path/name, *how, *words)
        run(tmp_path/'t.csv', tmp_path/f'{name}2', *how, *words, '--procs', '2', how=run_forked)
        assert far(tmp_path/name, tmp_path/f'{name}2') <= 1e-4, name
        one, two = (pd.read_csv(tmp_path/o/'predictions.csv') for o in (name, f'{name}2'))
        numbers = one.select_dtypes('number').columns
        assert one.path.tolist() == two.path.tolist() and np.allclose(one[numbers], two[numbers], rtol=1e-4, atol=1e-4, equal_nan=True)
        one, two = (json.loads((tmp_path/o/'results.json').read_text()) for o in (name, f'{name}2'))
        assert one['evaluation']['n'] == two['evaluation']['n'] and one['metric']['value'] == pytest.approx(two['metric']['value'], rel=1e-3)
        for key in ('thresholds', 'number'): assert str(one.get(key))[:6] == str(two.get(key))[:6]


def test_auto_in_two_processes(data, alone, tmp_path):
    "Each has all activations, trains alike, and keeps the same of two phases"
    run(data, tmp_path/'out', *NORMS, '--steps', '20', '--bs', '9', '--procs', '2', how=run_forked)
    assert far(alone/'auto', tmp_path/'out') <= 1e-4
    one, many = (json.loads((o/'results.json').read_text()) for o in (alone/'auto', tmp_path/'out'))
    assert one['chosen'] == many['chosen'] and ' rather than ' in one['chosen']


def test_auto_with_a_third_phase_in_two_processes(data, alone, tmp_path):
    run(data, tmp_path/'out', *NORMS, '--steps', '8', '--bs', '9', '--lr', '8', '--procs', '2', how=run_forked)
    one, many = (json.loads((o/'results.json').read_text()) for o in (alone/'all', tmp_path/'out'))
    assert [p['stage'] for p in many['phases']] == ['head', 'from blocks.2', 'all layers'] == [p['stage'] for p in one['phases']]
    assert one['chosen'].split(', by')[-1][:20] == many['chosen'].split(', by')[-1][:20] and 'all layers' in many['chosen']
    assert far(alone/'all', tmp_path/'out') <= 1e-4


def test_the_metric_that_is_watched_is_the_same_in_two_processes(data, tmp_path):
    "It is over the whole validation set in each, not over a process's share of it"
    words = (*BODY, '--recipe', 'onecycle', '--epochs', '3', '--bs', '9', '--metric', 'roc_auc', '--keep-best', 'metric')
    run(data, tmp_path/'one', *words)
    run(data, tmp_path/'two', *words, '--procs', '2', how=run_forked)
    one, two = (pd.read_csv(tmp_path/o/'history.csv').roc_auc for o in ('one', 'two'))
    assert len(one) == 3 and np.allclose(one, two, atol=.02)
    results = json.loads((tmp_path/'two'/'results.json').read_text())
    assert results['metric']['name'] == 'roc_auc' and results['chosen'].endswith('by roc_auc')
    if results['chosen'].startswith('the weights of all layers'): assert results['metric']['value'] == pytest.approx(two.max(), abs=1e-6)


def test_onecycle_and_the_features_in_two_processes(data, alone, tmp_path):
    run(data, tmp_path/'out', *BODY, '--recipe', 'onecycle', '--epochs', '3', '--bs', '9', '--procs', '2', how=run_forked)
    assert far(alone/'onecycle', tmp_path/'out') <= 5e-4   # Adam divides by what may be tiny: 2e-4 in one bias, 2e-5 in the others
    one, many = (pd.read_csv(o/'predictions.csv') for o in (alone/'onecycle', tmp_path/'out'))
    assert one.path.tolist() == many.path.tolist() and np.abs(one.probability - many.probability).max() < 1e-4
    assert len(pd.read_csv(tmp_path/'out'/'history.csv')) == 3


ACCELERATE = ['-m', 'accelerate.commands.launch', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
LAUNCHERS = dict(accelerate=[*ACCELERATE, '--multi_gpu'], torchrun=['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'])
MODULE = 'import runpy, sys; del sys.argv[:2]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)'   # `python -m MODULE ARGS`


def launched(launcher, data, cwd, *words, code=TORCHRUN):
    "Two processes that another launcher than ours starts, or forks"
    port = ['--main_process_port', unused_port()] if launcher == 'accelerate' else []
    return Fork(code, *LAUNCHERS[launcher], *port, '-m', 'fastbit', 'baseline', data, *words, cwd=cwd, env={**os.environ, 'FASTBIT_CACHE': str(cwd/'cache')})


@pytest.mark.parametrize('launcher', list(LAUNCHERS))
def test_other_launchers(data, alone, tmp_path, launcher):
    "torchrun's processes are new Pythons; accelerate calls torchrun, and its are forks"
    code = dict(torchrun=MODULE, accelerate=TORCHRUN)[launcher]
    done = launched(launcher, data, tmp_path, *BY_RULE, '--out', tmp_path/'out', code=code)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err[-3000:]
    assert ', 2 processes' in out and out.count('all layers:') == 1
    assert far(alone/'rule', tmp_path/'out') <= 1e-5


def test_mpi_says_it_by_other_names(data, alone, tmp_path):
    env = {**os.environ, 'FASTBIT_CACHE': str(tmp_path/'cache'), 'MASTER_PORT': str(unused_port()), 'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_LOCAL_SIZE': '2'}
    start = lambda i: Fork(COMMAND, 'baseline', data, *BY_RULE, '--out', 'out', cwd=tmp_path, env={**env, 'OMPI_COMM_WORLD_RANK': str(i), 'OMPI_COMM_WORLD_LOCAL_RANK': str(i)})
    (first, err), (second, _) = [p.communicate(timeout=300) for p in [start(0), start(1)]]
    assert ', 2 processes' in first and not second, err[-3000:]
    assert far(alone/'rule', tmp_path/'out') <= 1e-5


def test_one_process_in_the_place_of_two_is_said(data, tmp_path):
    with Fork(MODULE, *ACCELERATE, '--cpu', '-m', 'fastbit', 'baseline', data, *BY_RULE, '--dry-run', cwd=tmp_path) as done: out, err = done.communicate(timeout=300)
    assert done.returncode == 0 and 'was asked for several processes and started this one alone' in err and 'processes' not in out, err


NOISE = '''
import hashlib, json, sys, warnings
warnings.simplefilter('ignore')
import torch
from fastai.callback.core import Callback
from fastai.vision.augment import Brightness
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
from fastbit.core.processes import join_processes, leave_processes, rank
join_processes('cpu')
data, how = sys.argv[1:]
torch.manual_seed(0)
learn = transfer_learner(image_dataloaders(data, 'test_efficientnet_gn', size=32, bs=8, num_workers=0, device='cpu', batch_tfms=[Brightness(max_lighting=.5, p=1.)], crop=False, flip=False), 'test_efficientnet_gn', 'random', drop_rate=.5)
masks = []
learn.model.net.classifier.register_forward_pre_hook(lambda m, x: masks.append(hashlib.sha256((x[0][0] == 0).numpy().tobytes()).hexdigest()) if m.training else None)
light = []
class Look(Callback):
    order = -5
    def before_batch(self):
        if self.training: light.append(float(self.xb[0].mean()))
learn.unfreeze()
with learn.no_logging(), learn.no_bar():
    if how == 'rule': learn.fit_hyperrule(batch_size=8, n_steps=4, eval_every=4, show=False, cbs=Look())
    else: learn.fit_one_cycle(1, 1e-3, cbs=Look())
print(json.dumps(dict(rank=rank(), masks=masks, light=light, weights=hashlib.sha256(b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values())).hexdigest(), next=torch.rand(1).item())))
leave_processes()
'''


@pytest.mark.parametrize('how', ['rule', 'cycle'])
def test_dropout_and_batch_transforms_differ_between_processes(tmp_path, how):
    "of the same images, so that they could agree; and the weights do not"
    (tmp_path/'data').mkdir()
    for label in ('blue', 'red'):
        write_folder(tmp_path/'data', {label: 1})
        first = (tmp_path/'data'/label/'000.png').read_bytes()
        for i in range(1, 16): (tmp_path/'data'/label/f'{i:03d}.png').write_bytes(first)
    def run():
        port = unused_port()
        ps = [Fork(NOISE, tmp_path/'data', how, env=environment(r, 2, port)) for r in range(2)]
        outs = [p.communicate(timeout=300) for p in ps]
        assert all(p.returncode == 0 for p in ps), outs[0][1][-2000:] + outs[1][1][-2000:]
        return [json.loads(o.splitlines()[-1]) for o, _ in outs]
    (a, b), again = run(), run()
    assert a['weights'] == b['weights'] and a['next'] == b['next']
    assert a['masks'] and all(x != y for x, y in zip(a['masks'], b['masks'])) and all(x != y for x, y in zip(a['light'], b['light']))
    assert again == [a, b]


def children(pid) -> list:
    return [int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def begun(words, cwd, **env):
    "A run of two processes"
    return Fork(LAUNCH, 'baseline', *words, cwd=cwd, env={**os.environ, **env})


LONG = [w for k, v in {**dict(zip(BY_RULE[::2], BY_RULE[1::2])), '--steps': '120', '--eval-every': '15'}.items() for w in (k, v)] + ['--checkpoint-every', '5']
LONG_CYCLE = [*BODY, '--recipe', 'onecycle', '--bs', '9', '--epochs', '21', '--checkpoint-every', '5', '--workers', '0']   # a row of the head, 20 of everything


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory):
    "The histories of the two long runs, which one process has made and nobody has stopped"
    root = tmp_path_factory.mktemp('straight')
    for name, words in (('rule', LONG), ('cycle', LONG_CYCLE)): run(data, root/name, *words)
    return {name: pd.read_csv(root/name/'history.csv').drop(columns=['phase', 'seconds']) for name in ('rule', 'cycle')}


@pytest.mark.parametrize('which, recipe, first', [(0, 'rule', 1), (1, 'rule', 1), (1, 'cycle', 3)])
def test_a_killed_process_ends_the_run_and_it_goes_on_with_another_number(data, straight, tmp_path, which, recipe, first):
    words = dict(rule=LONG, cycle=LONG_CYCLE)[recipe]
    env = dict(FASTBIT_CACHE=str(tmp_path/'cache'))
    p = begun([data, *words, '--procs', 2, '--out', tmp_path/'out'], tmp_path, **env)
    wait_for_rows(p, tmp_path/'out', first + random.SystemRandom().randint(0, 3))
    workers = children(p.pid)
    assert len(workers) == 2
    os.kill(workers[which], signal.SIGKILL)
    out, err = p.communicate(timeout=90)   # it ends within seconds; gloo alone would wait for half an hour
    assert p.returncode == 2, err
    last = err.strip().splitlines()[-1]
    assert f'process {which} of 2 was ended by SIGKILL' in last and 'resume from the last checkpoint' in last and 'Traceback' not in err, err
    assert all(not Path(f'/proc/{w}').exists() or 'zombie' in Path(f'/proc/{w}/status').read_text() for w in workers)
    resumed = run_forked('baseline', data, *words, '--procs', 3, '--out', tmp_path/'out', cwd=tmp_path, **env)
    assert resumed.returncode == 0 and 'resume from step' in resumed.stdout, resumed.stderr
    assert np.allclose(straight[recipe], pd.read_csv(tmp_path/'out'/'history.csv').drop(columns=['phase', 'seconds']), rtol=1e-2, equal_nan=True)


@pytest.mark.parametrize('launcher', list(LAUNCHERS))
def test_a_killed_process_of_another_launcher(data, tmp_path, launcher):
    "It ends the others itself, and we say how to go on; torchrun's SIGTERM stops after the step"
    p = launched(launcher, data, tmp_path, *LONG, '--out', 'out')
    wait_for_rows(p, tmp_path/'out', 2)
    workers = children(p.pid)
    assert len(workers) == 2
    os.kill(workers[random.SystemRandom().randint(0, 1)], signal.SIGKILL)
    _, err = p.communicate(timeout=90)   # it ends within seconds; gloo alone would wait for half an hour
    assert p.returncode != 0
    assert 'of 2 waits for another one that is gone (' in err and 'resume from the last checkpoint' in err, err
    # which of the two it notices first is chance: the first is in a sentence, the other one in a table (CI)
    assert re.search(r'exitcode *: -9', err), err
    if launcher == 'accelerate':
        again = run_forked('baseline', data, *LONG, '--procs', 2, '--out', 'out', cwd=tmp_path, FASTBIT_CACHE=str(tmp_path/'cache'))
        assert again.returncode == 0 and 'resume from step' in again.stdout, again.stderr[-3000:]
        return
    again = launched(launcher, data, tmp_path, *LONG, '--out', 'out')
    wait_for_rows(again, tmp_path/'out', 4)
    again.send_signal(signal.SIGTERM)
    out, err = again.communicate(timeout=300)
    assert 'resume from step' in out, err[-3000:]
    assert err.count('saved in out/checkpoint.safetensors; run the same command to resume') == 1, err


def test_ctrl_c_stops_all_of_them_after_the_step(data, tmp_path):
    p = begun([data, *LONG, '--procs', 2, '--out', tmp_path/'out'], tmp_path, FASTBIT_CACHE=str(tmp_path/'cache'))
    wait_for_rows(p, tmp_path/'out', 1)
    os.kill(children(p.pid)[1], signal.SIGINT)   # one is enough: they agree on the step
    _, err = p.communicate(timeout=180)
    assert p.returncode in (130, 143) and 'saved in' in err and 'run the same command to resume' in err and 'Traceback' not in err, err


def test_errors_come_once(data, tmp_path):
    for words, message in ((('--budget', '10m'), 'it measures one process'), (('--procs', '0'), '--procs 0'), (('--arch', 'resnet5O'), 'is not the name of a timm model'), (('--bn', 'x'), "it can be 'frozen', 'affine', 'train'")):
        done = run_forked('baseline', data, *BODY[2:], *(() if '--procs' in words else ('--procs', '2')), *words, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('error:') == 1, done.stderr


def test_what_each_process_does_is_everything_once():
    from fastbit.core import processes
    for n in (0, 1, 5, 13):
        for k in (1, 2, 3, 4, 7):
            parts = []
            for r in range(k):
                processes_world, processes_rank = processes.world, processes.rank
                try:
                    processes.world, processes.rank = lambda: k, lambda: r
                    parts += list(processes.rank_range(n))
                finally: processes.world, processes.rank = processes_world, processes_rank
            assert parts == list(range(n))


def test_alone_nothing_of_it_is_imported():
    code = "import sys, fastbit.training; assert not [m for m in sys.modules if m.startswith('accelerate')]"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
