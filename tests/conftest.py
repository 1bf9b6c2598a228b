"What the tests share: folders of made-up images, a tiny body, and no network"
import os

os.environ.update(HF_HUB_OFFLINE='1', MPLBACKEND='agg')  # before anything imports the hub's client or pyplot

import random, shutil, subprocess, sys, time, zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np, pytest
from PIL import Image

TINY = dict(arch='test_efficientnet', weights='random')  # timm's own test body: 9 BatchNorms' worth of everything, 0.4 M parameters


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
    "The installed command's module in a process of its own"
    return subprocess.run([sys.executable, '-m', 'fastbit', *map(str, args)], cwd=cwd, timeout=timeout, capture_output=True, text=True,
                          env={**os.environ, **env})


def wait_for_rows(run: subprocess.Popen, cwd: Path, n: int, timeout=120) -> None:
    "Until a run that lives has `n` rows in its log, and then up to a step longer: a place in the work, since a time is another place on each machine"
    deadline = time.monotonic() + timeout
    while sum(len(f.read_text().splitlines()) for f in cwd.rglob('log.jsonl')) < n:
        assert run.poll() is None, f'the run ended with {run.returncode} before row {n}'
        assert time.monotonic() < deadline, f'no row {n} in {timeout} s'
        time.sleep(.002)
    time.sleep(random.SystemRandom().uniform(0, .03))


@contextmanager
def chromium(dark=False):
    "Headless Chromium with a log of console and network; the test is skipped where there is none"
    from selenium import webdriver
    if not (binary := next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)) or not (driver := shutil.which('chromedriver')): pytest.skip('no Chromium here: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for o in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking', 'disable-component-update', 'disable-sync', 'disable-dev-shm-usage', *(['force-dark-mode'] if dark else [])): options.add_argument(f'--{o}')
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try: yield browser
    finally: browser.quit()


def look_at(page: Path, width: int, dark=False) -> dict:
    "Open a page in headless Chromium and say what went wrong: {errors, broken pictures, pixels wider than the window, requests}"
    with chromium(dark) as browser:
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=False))   # windows are not made narrower than 500
        browser.get(Path(page).resolve().as_uri())
        browser.execute_async_script('const done = arguments[0]; Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => done())')
        run = browser.execute_script
        requests = [r for line in browser.get_log('performance') if '"Network.requestWillBeSent"' in line['message'] for r in [__import__('json').loads(line['message'])['message']['params']['request']['url']] if not r.startswith(('data:', 'file:'))]
        return dict(errors=[o['message'] for o in browser.get_log('browser') if o['level'] in ('SEVERE', 'WARNING')], pictures=run('return document.images.length'), broken=run('return [...document.images].filter(i => !i.naturalWidth).map(i => i.alt)'),
                    too_wide=run('return document.documentElement.scrollWidth - window.innerWidth'), requests=requests, text=run('return document.body.innerText'))
