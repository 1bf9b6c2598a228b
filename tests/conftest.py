"What the tests share: folders of made-up images, a tiny body, and no network"
import os

os.environ.update(HF_HUB_OFFLINE='1', MPLBACKEND='agg')  # before anything imports the hub's client or pyplot
os.environ.setdefault('OMP_NUM_THREADS', '1')  # tests run in two processes, and OpenMP's threads wait by spinning

import atexit, gc, importlib, random, shutil, signal, subprocess, sys, time, zlib
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from forks import COMMAND, Fork

# what a shell without job control starts in the background ignores Ctrl-C, and so would all that tests press it in
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = dict(arch='test_efficientnet', weights='random')  # timm's own test body: 9 BatchNorms' worth of everything, 0.4 M parameters


def pytest_collection_finish(session):
    "A million objects of torch and its friends are there until the end: the garbage collector need not look at them each time"
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory):
    "Nor do the fixtures that several tests share"
    os.environ['FASTBIT_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    "No test writes into the user's cache, or leaves files in the working directory"
    monkeypatch.setenv('FASTBIT_CACHE', str(tmp_path_factory.mktemp('cache')))
    random.seed(0)


def picture(i: int, label: int, size=(24, 20)) -> Image.Image:
    "A noisy picture whose colour tells its class"
    rng = np.random.default_rng(1000*label + i)
    px = rng.integers(0, 120, (size[1], size[0], 3))
    px[..., label % 3] += 120
    return Image.fromarray(px.astype(np.uint8))


def write_folder(root: Path, counts: dict, size=(24, 20)) -> Path:
    "write_folder(root, {'a': 3, 'b': 2}): class folders of pictures, which depend on the folder's name"
    for k, (label, n) in enumerate(counts.items()):
        (root/label).mkdir(parents=True, exist_ok=True)
        for i in range(n): picture(zlib.crc32(f'{root.name}{i}'.encode()), k, size).save(root/label/f'{i:03d}.png')
    return root


@pytest.fixture
def make_folder(tmp_path):
    "make_folder({'a': 3, 'b': 2}, 'data') -> folder of class folders"
    return lambda counts, name='data': write_folder(tmp_path/name, counts)


@pytest.fixture
def folder(make_folder) -> Path: return make_folder(dict(blue=14, green=14, red=12))


def run_fastbit(*args, cwd, timeout=300, **env) -> subprocess.CompletedProcess:
    "The command in a process of its own, which has imported what it needs (see forks.py)"
    with Fork(COMMAND, *args, cwd=cwd, env={**os.environ, **env}) as run:
        out, err = run.communicate(timeout)
    return subprocess.CompletedProcess(args, run.returncode, out, err)


def start_fastbit(*args, cwd, timeout=300, **env) -> subprocess.CompletedProcess:
    "The installed command's module in a new Python, for what depends on how that starts"
    return subprocess.run([sys.executable, '-m', 'fastbit', *map(str, args)], cwd=cwd, timeout=timeout, capture_output=True, text=True,
                          env={**os.environ, **env})


def wait_for_rows(run: Fork, cwd: Path, n: int, timeout=300) -> None:
    "Until a run that lives has `n` rows in its log, and then up to a step longer: a place in the work, since a time is another place on each machine"
    deadline = time.monotonic() + timeout
    while sum(len(f.read_text().splitlines()) for f in cwd.rglob('log.jsonl')) < n:
        assert run.poll() is None, f'the run ended with {run.returncode} before row {n}'
        assert time.monotonic() < deadline, f'no row {n} in {timeout} s'
        time.sleep(.002)
    time.sleep(random.SystemRandom().uniform(0, .03))


def small_bit(classes=3):
    "A BiT body as timm builds it, small"
    import torch
    from functools import partial
    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import ResNetV2
    from fastbit.bodies import build_body
    torch.manual_seed(0)
    layers = dict(conv_layer=partial(StdConv2d, eps=1e-8), norm_layer=partial(GroupNormAct, num_groups=8))
    net = ResNetV2([1, 1, 1, 1], channels=(32, 64, 96, 128), num_classes=classes, stem_type='fixed', **layers)
    with torch.device('meta'): large = build_body('BiT-M-R50x1', classes, weights='random')
    net.pretrained_cfg = dict(large.pretrained_cfg, architecture='small_bit')
    return net


@pytest.fixture
def few_resamples(monkeypatch):
    "A thousand draws take seconds: a bootstrap of 100, and each of Wilson's intervals once, for which scipy computes a p-value as well"
    from fastbit.metrics import calibration, intervals
    once = cache(intervals.wilson_interval)
    for module in (intervals, calibration): monkeypatch.setattr(module, 'wilson_interval', once)
    monkeypatch.setattr(intervals, 'RESAMPLES', 100)


CHROMES = ('chromium', 'chromium-browser', 'google-chrome')
CHROME_OPTIONS = ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
                  'disable-background-networking', 'disable-component-update', 'disable-sync', 'disable-dev-shm-usage')


@cache
def _chromium():
    "The one browser of this process: a start takes seconds"
    from selenium import webdriver
    binary = next(filter(None, map(shutil.which, CHROMES)), None)
    driver = shutil.which('chromedriver')
    if not binary or not driver: pytest.skip('no Chromium here: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for o in CHROME_OPTIONS: options.add_argument(f'--{o}')
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    options.add_experimental_option('perfLoggingPrefs', dict(enableNetwork=True, enablePage=False))   # a message costs time
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_script_timeout(120)   # a large page on a slow machine
    atexit.register(browser.quit)
    return browser


@contextmanager
def chromium(dark=False):
    "Headless Chromium with a log of console and network, empty to begin with; the test is skipped where there is none"
    browser = _chromium()
    scheme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[scheme]))
    for log in ('browser', 'performance'): browser.get_log(log)
    try: yield browser
    finally: browser.get('about:blank')


# `decode()` waits for the renderer, which a busy machine may leave waiting for half a minute; a lazy picture does not load where nobody scrolls
PICTURES = '''Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.complete || new Promise(r => { i.onload = i.onerror = r }) }))'''


def look_at(page: Path, width: int, dark=False) -> dict:
    "Open a page in headless Chromium and say what went wrong: {errors, broken pictures, pixels wider than the window, requests}, with what is folded opened"
    with chromium(dark) as browser:
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=False))   # windows are not made narrower than 500
        browser.get(Path(page).resolve().as_uri())
        browser.execute_async_script(f'const done = arguments[0]; {PICTURES}.then(() => done())')
        run = browser.execute_script
        folded = run('return [...document.querySelectorAll("details:not([open])")].map(d => { d.open = true; return d.querySelector("summary").innerText })')
        requests = [r for line in browser.get_log('performance') if '"Network.requestWillBeSent"' in line['message'] for r in [__import__('json').loads(line['message'])['message']['params']['request']['url']] if not r.startswith(('data:', 'file:'))]
        return dict(errors=[o['message'] for o in browser.get_log('browser') if o['level'] in ('SEVERE', 'WARNING')], pictures=run('return document.images.length'), broken=run('return [...document.images].filter(i => !i.naturalWidth).map(i => i.alt)'),
                    too_wide=run('return document.documentElement.scrollWidth - window.innerWidth'), requests=requests, folded=folded, text=run('return document.body.innerText'))


def import_tool(name: str):
    "A module of tools/, which is not a package"
    sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
    try: return importlib.import_module(name)
    finally: sys.path.pop(0)
