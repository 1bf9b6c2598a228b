"Signals, full disks, dead processes, clocks and divergence: what was saved stays, and the message says what to type"
import os, random, resource, signal, subprocess, sys, time

import pandas as pd, pytest, torch
from fastai.callback.core import Callback

from fastbit.baseline import baseline
from fastbit.training import FitStopped, LossNotFinite, read_checkpoint, transfer_learner
from fastbit.data import image_dataloaders
from fastbit.cli import command
from fastbit.core import processes
from fastbit.training.checkpoint import first_not_finite
from fastbit.core.text import DataWarning
from conftest import TINY, run_fastbit, wait_for_rows, write_folder
from forks import COMMAND, Fork

pytestmark = pytest.mark.slow   # `make test-slow`
ARGS = dict(batch_size=12, n_steps=8, base_lr=.3, eval_every=2, show=False)
BY_RULE = ('--recipe', 'hyperrule', '--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--bs', 4, '--batch-size', 10, '--steps', 60, '--eval-every', 4,
           '--checkpoint-every', 50, '--mixup', '.3')
ONE_CYCLE = (*BY_RULE[2:10], '--recipe', 'onecycle', '--epochs', 16)   # a row of the head, 15 of everything
AUTO = (*BY_RULE[2:10], '--recipe', 'auto', '--steps', 480, '--checkpoint-every', 7)   # a row of the head, ten of the upper stages


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=4, num_workers=0, device='cpu')


def learner(dls, **kwargs):
    torch.manual_seed(0)
    return transfer_learner(dls, **TINY, **kwargs)


def quiet(learn, f, *args, **kwargs):
    with learn.no_logging(), learn.no_bar(): f(*args, **kwargs)
    return learn


def same_weights(a, b): return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))


class Send(Callback):
    "Sends a signal within a step: in the `piece`-th forward pass of step `at`"
    order = 1
    def __init__(self, at, signum=signal.SIGINT, times=1): self.at, self.signum, self.times, self.pieces = at, signum, times, 0
    def after_pred(self):
        if not self.training or self.rule_steps.done != self.at: return
        self.pieces += 1
        if self.pieces == 2:
            for _ in range(self.times): os.kill(os.getpid(), self.signum)


# stopping

@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('at', [2, 3])   # in the middle of an evaluation's interval, and in the step that ends it
def test_one_press_finishes_the_step_and_saves(dls, tmp_path, at, signum, capsys):
    "and what goes on from there is the run that nobody stopped, bit for bit"
    straight, path, before = quiet(l := learner(dls), l.fit_hyperrule, **ARGS), tmp_path/'run.safetensors', signal.getsignal(signum)
    learn = learner(dls)
    with pytest.raises(FitStopped, match=f'Stopped after step {at+1} of 8. Progress saved in .*run.safetensors; run the same command to resume') as e: quiet(learn, learn.fit_hyperrule, **ARGS, checkpoint=path, checkpoint_every=100, cbs=Send(at, signum))
    assert e.value.signum == signum and signal.getsignal(signum) == before and 'Ctrl-C again to quit immediately' in capsys.readouterr().err
    assert read_checkpoint(path)[0]['parts']['callback rule_steps']['done'] == at+1
    resumed = quiet(l := learner(dls), l.fit_hyperrule, **ARGS, checkpoint=path)
    assert same_weights(resumed, straight)
    pd.testing.assert_frame_equal(resumed.history.steps, straight.history.steps, check_exact=True)
    pd.testing.assert_frame_equal(resumed.history.epochs.drop(columns='seconds'), straight.history.epochs.drop(columns='seconds'), check_exact=True)


@pytest.mark.parametrize('at', [2, 7])   # in the middle of an epoch, and in the step that ends it
def test_one_press_in_one_cycle(dls, tmp_path, at):
    class Press(Callback):
        def after_pred(self):
            if self.training and self.learn.train_iter == 8+at: os.kill(os.getpid(), signal.SIGINT)
    def fit(**kwargs):
        learn = learner(dls.__class__(*[dl.new() for dl in dls.loaders]), drop_rate=.3)
        learn.unfreeze()
        return quiet(learn, learn.fit_one_cycle, 3, 1e-2, **kwargs)
    straight, path = fit(), tmp_path/'run.safetensors'
    with pytest.raises(FitStopped, match=f'Stopped after epoch 2, step {at+1} of 8. Progress saved in .*run.safetensors; run the same command to resume'): fit(checkpoint=path, cbs=Press())
    assert read_checkpoint(path)[0]['done'] == 9+at
    resumed = fit(checkpoint=path)
    assert same_weights(resumed, straight) and resumed.history.steps.equals(straight.history.steps)
    assert resumed.history.epochs.drop(columns='seconds').equals(straight.history.epochs.drop(columns='seconds'))


def test_two_presses_stop_at_once(dls, tmp_path):
    path, learn = tmp_path/'run.safetensors', learner(dls)
    with pytest.raises(KeyboardInterrupt) as e: quiet(learn, learn.fit_hyperrule, **ARGS, checkpoint=path, cbs=Send(2, times=2))
    assert not isinstance(e.value, FitStopped) and read_checkpoint(path)[0]['parts']['callback rule_steps']['done'] == 2


def test_any_fit_finishes_its_step(dls):
    "Without a checkpoint the learner keeps what it has"
    class Press(Callback):
        def after_pred(self):
            if self.training and self.iter == 1: os.kill(os.getpid(), signal.SIGINT)
    learn = learner(dls)
    with pytest.raises(FitStopped, match='after epoch 1, step 2 of 8. Nothing was saved; the learner keeps'): quiet(learn, learn.fit_one_cycle, 1, cbs=Press())
    assert len(learn.history.steps) == 2 and learn.opt is not None


def test_a_handler_of_somebody_else_is_left_alone(dls):
    got = []
    old = signal.signal(signal.SIGINT, lambda *a: got.append(1))
    try: quiet(l := learner(dls), l.fit_hyperrule, **ARGS, cbs=Send(2))
    finally: signal.signal(signal.SIGINT, old)
    assert got == [1]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "A folder of images, and the results of a command that nobody stops: made once for each command"
    root, made = tmp_path_factory.mktemp('straight'), {}
    data = write_folder(root/'data', dict(blue=14, green=14, red=12))
    def results(words):
        if words not in made:
            done = run_fastbit('baseline', data, *words, '--workers', 0, '--out', root/f'{len(made)}', cwd=root)
            assert done.returncode == 0, done.stderr
            made[words] = root/f'{len(made)}'
        return made[words]
    return data, results


@pytest.mark.parametrize('signum, group, words, head', [(signal.SIGINT, True, BY_RULE, 0), (signal.SIGTERM, False, BY_RULE, 0), (signal.SIGINT, True, ONE_CYCLE, 1), (signal.SIGTERM, False, AUTO, 1)])
def test_the_command_stops_gently_and_goes_on(straight, tmp_path, signum, group, words, head):
    "A terminal sends Ctrl-C to all of its processes, loaders too"
    folder, results = straight
    with Fork(COMMAND, 'baseline', folder, *words, '--workers', 2, cwd=tmp_path, session=True) as run:
        wait_for_rows(run, tmp_path/'fastbit-runs', head + random.SystemRandom().randint(1, 6))   # of 15
        (os.killpg if group else os.kill)(run.pid, signum)
        out, err = run.communicate(timeout=180)
    assert run.returncode == 128+signum, err
    assert 'Traceback' not in err and 'Progress saved in fastbit-runs' in err.splitlines()[-1] and 'run the same command to resume' in err.splitlines()[-1], err
    resumed = run_fastbit('baseline', folder, *words, '--workers', 0, cwd=tmp_path)
    assert resumed.returncode == 0 and 'resume from step' in resumed.stdout, resumed.stderr
    there, = (tmp_path/'fastbit-runs').iterdir()
    pd.testing.assert_frame_equal(*(pd.read_csv(o/'history.csv').drop(columns='seconds') for o in (there, results(words))), check_exact=True)
    assert (there/'model'/'model.safetensors').read_bytes() == (results(words)/'model'/'model.safetensors').read_bytes()


def test_what_has_no_checkpoint_keeps_the_network_and_says_what_can_be_done(folder, tmp_path):
    with Fork(COMMAND, 'baseline', folder, '--arch', 'test_efficientnet', '--weights', 'random', '--size', '32', '--recipe', 'head', '--epochs', '5000', '--out', 'out', cwd=tmp_path) as run:
        wait_for_rows(run, tmp_path/'out', 2)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=180)
    last = err.splitlines()[-1]
    assert run.returncode == 130 and 'Traceback' not in err and 'Stopped after epoch' in last and 'in out/model' in last and 'The same command starts again' in last, err
    asked = run_fastbit('predict', 'out', folder/'red', cwd=tmp_path)
    assert asked.returncode == 0 and asked.stdout.count('.png') == 12
    again = run_fastbit('baseline', folder, '--arch', 'test_efficientnet', '--weights', 'out/model/model.safetensors', '--size', '32', '--recipe', 'head', '--epochs', '1', '--out', 'again', cwd=tmp_path)
    assert again.returncode == 0, again.stderr


# processes that die

def test_a_killed_loader_process_ends_the_run_with_a_word(folder, tmp_path):
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=4, num_workers=2, device='cpu', cache=False)   # cached squares need no workers
    class Kill(Callback):
        def after_batch(self):
            if self.training and self.rule_steps.done == 3:
                import multiprocessing
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    path, learn = tmp_path/'run.safetensors', learner(dls)
    start = time.monotonic()
    with pytest.raises(ChildProcessError, match='--workers'): quiet(learn, learn.fit_hyperrule, **ARGS | dict(eval_every=8), checkpoint=path, checkpoint_every=2, cbs=Kill())
    assert time.monotonic() - start < 60 and read_checkpoint(path)[0]['parts']['callback rule_steps']['done'] >= 2
    resumed = quiet(l := learner(dls), l.fit_hyperrule, **ARGS | dict(eval_every=8), checkpoint=path, checkpoint_every=2)
    straight = quiet(l := learner(dls), l.fit_hyperrule, **ARGS | dict(eval_every=8))
    assert same_weights(resumed, straight)


def test_a_loader_that_dies_while_it_hands_over_is_told_from_a_file_that_is_not_there(tmp_path):
    from multiprocessing.connection import Client
    from fastbit.training.guards import loader_killed
    with pytest.raises(FileNotFoundError) as gone: Client(str(tmp_path/'socket'), 'AF_UNIX')   # what torch does to take a batch of a process that is no more
    with pytest.raises(FileNotFoundError) as file: open(tmp_path/'image.png')
    assert '--workers' in str(loader_killed(gone.value)) and loader_killed(file.value) is None and loader_killed(RuntimeError('another')) is None


def test_what_torch_says_late_is_heard_at_once(tmp_path):
    "Its handler of the signal raises wherever the program is: not in what comes after"
    import threading
    from multiprocessing.connection import Client
    from fastbit.training.guards import interruptible
    def late(signum, frame): raise RuntimeError('DataLoader worker (pid 12) is killed by signal: Killed.')
    old = signal.signal(signal.SIGUSR1, late)
    try:
        with pytest.raises(ChildProcessError, match='pid 12.*--workers'), interruptible():
            threading.Timer(.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
            Client(str(tmp_path/'socket'), 'AF_UNIX')
    finally: signal.signal(signal.SIGUSR1, old)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_file_that_vanishes_in_mid_epoch(make_folder, tmp_path, workers):
    "One line, also from a loader process; what was saved is gone on from when it is back"
    data = make_folder(dict(blue=30, green=30))
    code = '''
import os, sys
from pathlib import Path
import fastbit.training.checkpoint as c
from fastbit.cli.command import main
real = c.save_checkpoint
def then_remove(*a):
    real(*a)
    for p in Path(sys.argv[1]).rglob('*.png'): p.unlink()
c.save_checkpoint = then_remove
sys.exit(main(['baseline', *sys.argv[1:]]))
'''
    words = [data, *BY_RULE[:-4], '--checkpoint-every', 5, '--workers', workers, '--no-cache', '--out', tmp_path/'out']
    with Fork(code, *words, cwd=tmp_path) as run: _, err = run.communicate(timeout=300)
    last = err.splitlines()[-1]
    assert run.returncode == 2 and 'Traceback' not in err and 'no such file' in last and 'put it back' in last and 'resume from the last checkpoint' in last, err
    write_folder(data, dict(blue=30, green=30))
    again = run_fastbit('baseline', *words, cwd=tmp_path)
    assert again.returncode == 0 and 'resume from step' in again.stdout, again.stderr


# disks

def limited(n_bytes): return lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes)), signal.signal(signal.SIGXFSZ, signal.SIG_IGN))


def test_no_room_for_the_checkpoint(folder, tmp_path):
    "The system refuses larger files; with room again the same command goes on from what was saved before"
    words = ['baseline', str(folder), *map(str, BY_RULE[:-4]), '--checkpoint-every', '3', '--out', 'out']
    with Fork(f'''
import sys, fastbit.training.checkpoint as c, resource, signal
from fastbit.cli.command import main
real = c.save_checkpoint
def save(*a):
    real(*a)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
c.save_checkpoint = save
sys.exit(main({words!r}))''', cwd=tmp_path) as stop: _, err = stop.communicate(timeout=300)
    last = err.splitlines()[-1]
    assert stop.returncode == 2 and 'Traceback' not in err and 'could not be written' in last and 'Make room' in last and 'resume from the last checkpoint' in last, err
    assert read_checkpoint(tmp_path/'out'/'checkpoint.safetensors')[0]['parts']['callback rule_steps']['done'] == 3
    assert [p.name for p in (tmp_path/'out').iterdir() if p.name.endswith('.part')] == []
    again = run_fastbit(*words, cwd=tmp_path)
    assert again.returncode == 0 and 'from step 3' in again.stdout, again.stderr


def test_no_room_for_the_results(folder, tmp_path, monkeypatch):
    "The numbers are printed, and the error says where they did not go"
    run = subprocess.run([sys.executable, '-m', 'fastbit', 'baseline', str(folder), '--arch', 'test_efficientnet', '--weights', 'random', '--size', '32', '--recipe', 'onecycle', '--epochs', '2', '--out', 'out'], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                         preexec_fn=limited(2000), env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'})
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 2 and 'Traceback' not in run.stderr and 'results could not be written into out' in last and 'accuracy' in run.stdout, run.stderr
    assert run.stderr.count('Training has finished, and its result is still in memory') == 1   # there was no room for a checkpoint either
    assert not (tmp_path/'out'/'results.json').exists() and not list((tmp_path/'out').glob('.*.part'))


def test_a_full_disk_ends_no_training_for_a_log(dls, tmp_path):
    from fastbit.training import JsonLog
    (tmp_path/'log.jsonl').mkdir()
    with pytest.warns(DataWarning, match='log.jsonl could not be written .*training continues without it'): quiet(l := learner(dls, cbs=JsonLog(tmp_path/'log.jsonl')), l.fit_one_cycle, 2)
    assert len(l.history.epochs) == 2


def no_privileges():
    "Root may read and write everything; a process of root's without these capabilities may not"
    if os.getuid() == 0:
        import ctypes
        libc = ctypes.CDLL(None)
        version, sets = (ctypes.c_uint32*2)(0x20080522, 0), (ctypes.c_uint32*6)()   # _LINUX_CAPABILITY_VERSION_3, this process; effective, permitted, inheritable, twice 32 bits
        libc.capget(version, sets)
        for i in range(3): sets[i] &= ~(1 << 1 | 1 << 2)   # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        libc.capset(version, sets)


def run_plainly(*args, cwd, code=COMMAND):
    with Fork(code, *args, cwd=cwd, before=no_privileges) as run: out, err = run.communicate(timeout=300)
    return subprocess.CompletedProcess(args, run.returncode, out, err)


def test_no_permission(folder, tmp_path):
    "Files, folders, results and cache that may not be read or written"
    secret, closed = folder/'blue'/'000.png', tmp_path/'closed'
    secret.chmod(0); closed.mkdir(0o500)
    quick = ('--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--recipe', 'head', '--epochs', 1, '--device', 'cpu')
    try:
        if run_plainly(cwd=tmp_path, code=f'open({str(secret)!r})').returncode == 0: pytest.skip('permissions do not hold here')
        ok = run_plainly('baseline', folder, *quick, '--out', 'out', cwd=tmp_path)
        assert ok.returncode == 0 and 'Permission denied' in ok.stderr and '1 of 40 images cannot be read' in ok.stderr
        for words, message in ((('baseline', folder, *quick, '--out', closed/'out'), 'cannot be written to'), (('predict', tmp_path/'out', secret, folder/'red'/'000.png'), 'Permission denied'), (('check', closed/'none'), 'no folder or file')):
            run = run_plainly(*words, cwd=tmp_path)
            assert run.returncode in (1, 2) and message in run.stderr and 'Traceback' not in run.stderr, run.stderr
        folder.chmod(0)
        run = run_plainly('baseline', folder, *quick, cwd=tmp_path)
        assert run.returncode == 2 and 'Permission denied' in run.stderr and 'Traceback' not in run.stderr, run.stderr
    finally: folder.chmod(0o755); secret.chmod(0o644); closed.chmod(0o700)


# clocks

def test_a_clock_that_goes_backwards(folder, tmp_path, monkeypatch):
    "Durations stay what they are, and nothing is written over"
    now = [2e9]
    def back(): now[0] -= 3600; return now[0]
    plain = baseline(folder, **TINY, recipe='onecycle', size=32, epochs=2, device='cpu', verbose=False)
    with monkeypatch.context() as mp:
        mp.setattr(time, 'time', back)
        res = baseline(folder, **TINY, recipe='onecycle', size=32, epochs=2, device='cpu', out=tmp_path/'out', verbose=False)
    assert all(v >= 0 for v in res.seconds.values()) and (res.epochs.seconds.dropna() >= 0).all() and torch.equal(res.probs, plain.probs)
    import fastbit.cli.runs as cli
    class Stands(cli.datetime):
        @classmethod
        def now(cls): return cls(2026, 10, 25, 2, 30)
    monkeypatch.setattr(cli, 'datetime', Stands); monkeypatch.chdir(tmp_path)
    first = cli.new_folder('photos'); first.mkdir(parents=True)
    assert str(cli.new_folder('photos')) == str(first) + '-2'


# divergence

def test_a_loss_that_is_no_number_stops_before_the_weights_are_none(dls, tmp_path):
    "with the step, the rate and what to type; the last good checkpoint stays"
    path, learn = tmp_path/'run.safetensors', learner(dls)
    class Break(Callback):
        def after_pred(self):
            if self.training and self.rule_steps.done == 5: self.learn.pred = self.learn.pred*float('nan')
    with pytest.raises(LossNotFinite, match=r'training loss is nan in step 6, at a learning rate of 0\.00.*base_lr \(--lr\) to a third or less, so that the learning rate is .* at most; the checkpoint of step 4 is kept in'): quiet(learn, learn.fit_hyperrule, **ARGS, checkpoint=path, cbs=Break())
    assert first_not_finite(learn.model.state_dict()) is None and len(learn.history.steps) == 5
    done, tensors = read_checkpoint(path)
    assert done['parts']['callback rule_steps']['done'] == 4 and first_not_finite(tensors['model']) is None


@pytest.mark.parametrize('fit', ['one_cycle', 'head', 'hyperrule'])
def test_rates_that_are_too_high_are_told(dls, fit):
    learn = learner(dls)
    learn.unfreeze() if fit == 'one_cycle' else None
    if fit == 'one_cycle': run = lambda: learn.fit_one_cycle(4, 1e30)
    if fit == 'head': run = lambda: learn.fit_head(20, 1e38)
    if fit == 'hyperrule': run = lambda: learn.fit_hyperrule(batch_size=12, n_steps=40, base_lr=1e25, show=False)
    with pytest.raises(LossNotFinite, match='loss is (nan|inf) in step .* at a learning rate of .*diverged. Set'): quiet(learn, run)


def test_weights_that_are_none_are_not_saved(dls, tmp_path):
    "A finite loss with an infinite gradient: what would be saved is looked at, too"
    path, learn = tmp_path/'run.safetensors', learner(dls)
    class Spoil(Callback):
        order = 60
        def after_batch(self):
            if self.training and self.rule_steps.done == 4: self.model.net.conv_stem.weight.data[0] = float('inf')
    with pytest.raises(LossNotFinite, match='conv_stem.weight is not finite after step 4.*the checkpoint of step 3 is kept'): quiet(learn, learn.fit_hyperrule, **ARGS | dict(eval_every=8), checkpoint=path, checkpoint_every=1, cbs=Spoil())
    assert first_not_finite(read_checkpoint(path)[1]['model']) is None


def test_a_validation_loss_that_is_none(dls):
    class Spoil(Callback):
        def after_train(self): self.model.net.classifier.weight.data[0] = float('nan')
    learn = learner(dls)
    with pytest.raises(LossNotFinite, match='validation loss is nan in step 8'): quiet(learn, learn.fit_one_cycle, 1, cbs=Spoil())


class There:
    "A loss as if on a GPU"
    def __init__(self, t): self.t, self.device = t, torch.device('cuda')
    def detach(self): return There(self.t.detach())
    def __getattr__(self, name): return getattr(self.t, name)


class Pretend(Callback):
    "The loss is on a GPU, and NaN in the fourth step"
    order = 57
    def before_step(self): self.learn.loss = There(self.learn.loss*(float('nan') if len(self.learn.history.steps) == 3 else 1))
    def after_step(self): self.learn.loss = self.learn.loss.t


def test_on_other_devices_losses_are_looked_at_together(dls, monkeypatch):
    "No step waits for the device; the error names the step, and comes when several are looked at, at the latest with the epoch"
    for every, steps in ((6, 5), (1000, 8)):
        monkeypatch.setattr('fastbit.training.guards._LOOK_EVERY', every)
        learn = learner(dls)
        with pytest.raises(LossNotFinite, match='in step 4, at a learning rate of'): quiet(learn, learn.fit_one_cycle, 1, cbs=Pretend())
        assert len(learn.history.steps) == steps


def test_losses_on_other_devices_are_looked_at_before_anything_is_saved(dls, tmp_path):
    path, learn = tmp_path/'run.safetensors', learner(dls)
    with pytest.raises(LossNotFinite, match='loss is nan in step 4, .*the checkpoint of step 2 is kept'):
        quiet(learn, learn.fit_one_cycle, 1, cbs=Pretend(), checkpoint=path, checkpoint_every=2)
    assert first_not_finite(read_checkpoint(path)[1]['model']) is None


def test_the_rate_finder_may_diverge(dls):
    learn = learner(dls)
    learn.lr_find(end_lr=1e20, num_it=40, stop_div=False, show_plot=False)


def test_the_command_tells_of_a_divergence(folder, tmp_path):
    run = run_fastbit('baseline', folder, *BY_RULE, '--base-lr', '1e25', '--workers', 0, cwd=tmp_path)
    assert run.returncode == 2 and 'diverged. Set base_lr (--lr) to a third' in run.stderr.splitlines()[-1] and 'Traceback' not in run.stderr, run.stderr


GLOO = '[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:36739: Connection reset by peer.'

def _lost(*_): raise RuntimeError(GLOO)

def _lost_then_stopped(*_):
    "torchrun notices the death as well, and its SIGTERM comes while the error of gloo unwinds"
    try: _lost()
    finally: os.kill(os.getpid(), signal.SIGTERM)

@pytest.mark.parametrize('run, late', [(_lost, True), (_lost, False), (_lost_then_stopped, False)])
def test_a_launcher_that_ends_the_others_does_not_hide_why(monkeypatch, capfd, run, late):
    "SIGTERM came while the message was being made, and a traceback was printed in its place (CI, torchrun)"
    def in_shell(text, name):
        if late: os.kill(os.getpid(), signal.SIGTERM)
        return text
    monkeypatch.setitem(command.COMMANDS, 'bodies', run)
    monkeypatch.setattr(command, 'in_shell', in_shell)
    monkeypatch.setattr(processes, 'world', lambda: 2)
    before = signal.getsignal(signal.SIGTERM)
    assert command.main(['bodies']) == 2
    err = capfd.readouterr().err
    assert 'of 2 waits for another one that is gone' in err and err.count('\n') == 1, err
    assert signal.getsignal(signal.SIGTERM) is before
