"How pages look on a phone, in the dark and on paper: what people saw and did not like, with the names that broke them"
import pandas as pd, pytest
from selenium.webdriver.support.ui import WebDriverWait

from fastbit.baseline import baseline
from fastbit.studies import serve
from conftest import TINY, chromium, picture

# of classes: from right to left, longer than a phone is wide, what a page would run, no font for it
NAMES = ('قط جميل', 'Ελληνικά_ναυς_supercalifragilisticexpialidocious_underscored_and_longer', '<script>alert(1)</script>', '木製の古い食器棚')
PHONE, PAPER = 390, 700   # pixels; an A4 page between its margins has about 700


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    "The report of a run that is often wrong, on classes with such names"
    root = tmp_path_factory.mktemp('looks')
    rows = [(root/f'{k}_{i}.png', name) for k, name in enumerate(NAMES) for i in range(16)]
    for n, (file, _) in enumerate(rows): picture(n, n % 3).save(file)
    table = [dict(path=str(file), label=name) for file, name in rows]
    baseline(pd.DataFrame(table), **TINY, size=48, num_workers=0, recipe='onecycle', epochs=1, verbose=False, out=root/'run')
    return root/'run'/'report.html'


def opened(browser, page, width, media=''):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=False))
    if media: browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=media))
    browser.get(page.resolve().as_uri() if hasattr(page, 'resolve') else page)
    return browser.execute_script


def test_long_names_leave_room_for_the_numbers(report):
    with chromium() as browser:
        run = opened(browser, report, PHONE)
        assert run('return document.documentElement.scrollWidth') <= PHONE
        ends = run('return [...document.querySelectorAll("#classes td:nth-child(2)")].map(e => e.getBoundingClientRect().right)')
        assert len(ends) == len(NAMES) and max(ends) < PHONE   # the recall is seen without scrolling
        below = run('const [a, b] = document.querySelectorAll("table.metrics tr:nth-child(2) td:is(:first-child, .text)"); return b.getBoundingClientRect().top - a.getBoundingClientRect().top')
        assert below > 10   # the definition stands under the number


def test_names_from_right_to_left_stand_alone(report):
    "Without `<bdi>` a browser draws the confidence before such a name"
    html = report.read_text()
    assert f'<bdi>{NAMES[0]}</bdi>' in html and '<script>' not in html
    with chromium() as browser:
        run = opened(browser, report, 1280)
        assert set(run('return [...document.querySelectorAll("bdi")].map(e => e.innerText)')) == {NAMES[0]}


def test_plots_are_dark_in_the_dark_and_photographs_keep_their_colors(report):
    with chromium(dark=True) as browser:
        run = opened(browser, report, 1280)
        filters = run('return [...document.querySelectorAll("figure > img")].map(e => [e.src.slice(5, 15), e.parentElement.classList.contains("photos"), getComputedStyle(e).filter])')
    plots = [f for kind, photos, f in filters if kind == 'image/png;' and not photos]
    others = [f for kind, photos, f in filters if kind != 'image/png;' or photos]
    assert len(plots) >= 3 and all('invert' in f for f in plots)
    assert len(others) >= 10 and not any('invert' in f for f in others)
    assert any(photos for _, photos, _ in filters)   # the map of the features has images in it


def test_a_report_on_paper(report):
    "White, nothing cut off at the right, nothing folded, no links to sections"
    with chromium(dark=True) as browser:
        run = opened(browser, report, PAPER, media='print')
        assert run('return getComputedStyle(document.querySelector("nav")).display') == 'none'
        assert run('return getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
        wide = run('return [...document.querySelectorAll("main table, main figure, main img")].filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))')
        assert wide == []
        assert run('return [...document.querySelectorAll("details > :not(summary)")].every(e => e.checkVisibility())')


def test_long_names_on_the_page_to_try_a_model(report):
    "A percentage stays on one line, and a name from right to left begins where the others do"
    with serve(report.parent, 0, block=False, device='cpu', verbose=False) as page, chromium() as browser:
        run = opened(browser, page.url, PHONE)
        browser.find_element('id', 'file').send_keys(str(report.parent.parent/'0_0.png'))
        WebDriverWait(browser, 30).until(lambda b: b.find_elements('css selector', '.bars .row'))
        lines = 'const lines = e => { const r = document.createRange(); r.selectNodeContents(e); return new Set([...r.getClientRects()].map(o => o.top)).size };'
        rows = run(lines + 'return [...document.querySelectorAll(".bars .row")].map(e => [e.firstChild.innerText, lines(e.firstChild), lines(e.lastChild), getComputedStyle(e.firstChild).textAlign])')
        assert {name for name, *_ in rows} == set(NAMES) and {align for *_, align in rows} == {'left'}
        assert max(n for _, n, *_ in rows) > 1 and {n for _, _, n, _ in rows} == {1}   # the long name wraps, its percentage does not
        assert run('return document.documentElement.scrollWidth') <= PHONE
