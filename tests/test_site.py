"The documentation site: built without a warning, every link leads somewhere, and a browser opens every page"
import functools, http.server, importlib, json, os, re, subprocess, sys, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from filelock import FileLock

from conftest import chromium

ROOT = Path(__file__).parents[1]
WIDTHS = dict(desktop=1280, phone=390)


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "`make docs`, which fails on a warning; pages that have not changed since the last time are kept"
    run = os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())   # several processes test the one site
    built = tmp_path_factory.getbasetemp().parent/f'site-{run}'
    with FileLock(f'{built}.lock'):
        if built.exists(): return ROOT/'_docs'
        out = subprocess.run([sys.executable, 'tools/docs.py'], cwd=ROOT, capture_output=True, text=True, timeout=1800, env={**os.environ, 'PYTHONWARNINGS': 'ignore'})
        assert out.returncode == 0, out.stdout + out.stderr
        built.touch()
    return ROOT/'_docs'


@pytest.fixture(scope='session')
def docs():
    "The tool that builds the site"
    sys.path.insert(0, str(ROOT/'tools'))
    try: import docs as module
    finally: sys.path.pop(0)
    return module


def pages(site) -> list: return sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if 'site_libs' not in p.parts)


class Links(HTMLParser):
    "Where a page leads, what it loads, and its anchors"
    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag in ('script', 'img', 'iframe', 'source') and a.get('src'): self.loaded.append(a['src'])
        if tag == 'link' and a.get('href') and a.get('rel') not in ('canonical', 'alternate', 'llms-txt'): self.loaded.append(a['href'])


@pytest.fixture(scope='session')
def parsed(site): return {p: Links((site/p).read_text()) for p in pages(site)}


def test_every_notebook_is_a_page_and_in_the_sidebar(site, docs):
    nbs = [p.relative_to(ROOT/'nbs') for p in docs.notebooks(ROOT/'nbs')]
    expected = {p.with_name(docs.page_name(p)).as_posix() for p in nbs if p.name not in docs.UNLISTED}
    listed = set(re.findall(r'[\w/]+\.ipynb', docs.site_config()))
    assert listed == expected
    assert len(pages(site)) == len(nbs) + len(docs.redirects()) > 100


def test_old_addresses_lead_to_the_new_ones(site, docs):
    for old, new in docs.redirects().items():
        assert f'url={"../"*old.count("/")}{new}"' in (site/old).read_text() and (site/new).is_file()
        assert (site/f'{old}.md').read_text() == (site/f'{new}.md').read_text()


def test_every_page_names_an_icon(site, parsed):
    "A page that names none makes the browser ask for /favicon.ico, which is not there: old addresses too"
    for page, p in parsed.items():
        icons = [urljoin(page, link) for link in p.loaded if link.endswith('favicon.svg')]
        assert len(icons) == 1 and (site/icons[0]).is_file(), page


def test_every_link_leads_somewhere_anchors_included(site, parsed):
    wrong = []
    for page, p in parsed.items():
        for href in p.links:
            u = urlsplit(href)
            if u.scheme or href.startswith(('//', 'javascript:')): continue
            target = unquote(urlsplit(urljoin(f'http://x/{page}', href)).path)[1:] or 'index.html'
            if not (site/target).is_file(): wrong.append((page, href, 'no such page'))
            elif u.fragment and target in parsed and unquote(u.fragment) not in parsed[target].ids: wrong.append((page, href, 'no such place on it'))
    assert not wrong, wrong[:10]


def test_no_markdown_is_left_in_the_text(site):
    "As where a link stands in the text of another"
    left = {page: m[0] for page in pages(site) if (m := re.search(r'.{20}\]\([^)\s]*\.(ipynb|html).{5}', re.sub(r'<(script|pre)\b.*?</\1>|<[^>]+>', '', (site/page).read_text(), flags=re.S)))}
    assert not left


def test_nothing_is_loaded_from_another_host(site, parsed):
    assert not [p.name for p in site.rglob('*.css') if re.search(r'(@import|url\()[^;)]*//', re.sub(r'url\("?data:[^)]*\)', '', p.read_text()))]
    assert not [(page, src) for page, p in parsed.items() for src in p.loaded if urlsplit(src).netloc and not src.startswith('data:')]


def test_docstrings_lead_to_their_pages(site):
    "Each module says where its documentation is: `learner.html.md`"
    import fastbit.training.learner
    name = re.search(r'Docs: \S*?fastbit/(\S+)', fastbit.training.learner.__doc__)[1]
    text = (site/name).read_text()
    assert name == 'training/learner.html.md' and 'transfer_learner' in text and '.llms.md' not in text + (site/'llms.txt').read_text()


def test_a_definition_has_signature_table_source_and_methods(site):
    text = (site/'training'/'learner.html').read_text()
    for part in ('id="transfer_learner"', 'Stochastic depth, probability at the last block', 'blob/main/fastbit/training/learner.py#L', '>Details<'): assert part in text, part
    assert 'id="transferlearner.tta"' in (site/'training'/'tta.html').read_text()
    assert 'id="transferlearner.lr_find"' in (site/'training'/'rate_finder.html').read_text()   # what a learner is put together from has pages of its own
    text = (site/'hyperrule.html').read_text()
    for part in ('id="hyperrule.for_data"', 'optimizer steps of the whole schedule'): assert part in text, part   # a class method, a field of a dataclass


@pytest.mark.parametrize('full_name, begins', [
    ('fastbit.training.learner:transfer_learner', 'def transfer_learner('), ('fastbit.training.learner:TransferLearner', 'class TransferLearner('), ('fastbit.training.learner:TransferLearner.lr_table', 'def lr_table('),
    ('fastbit.hyperrule:HyperRule', 'class HyperRule'), ('fastbit.hyperrule:HyperRule.for_data', 'def for_data('), ('fastbit.core.text:track', 'def track(')])
def test_a_source_link_leads_to_the_definition(docs, full_name, begins):
    "A function, a class, a method patched in from elsewhere, a dataclass, a class method, a generator"
    module, names = full_name.split(':')
    names = names.split('.')
    sym = functools.reduce(getattr, names, importlib.import_module(module))
    file, _, line = docs.source_link(sym, full_name.replace(':', '.')).rpartition('/blob/main/')[2].partition('#L')
    here = (ROOT/file).read_text().splitlines()[int(line)-1:]
    assert next(o.strip() for o in here if not o.strip().startswith('@')).startswith(begins)   # a decorator belongs to it


def test_a_link_without_a_line_fails_the_build(docs, tmp_path):
    link = '<a href="https://x/blob/main/fastbit/a.py{}" class="source-link">'
    (tmp_path/'good.html').write_text(link.format('#L12') + '<a href="https://x/blob/main/README.md">')
    (tmp_path/'none.html').write_text(link.format('#LNone'))
    (tmp_path/'bare.html').write_text(link.format(''))
    assert [p.partition(':')[0] for p in docs.links_without_line(tmp_path)] == ['bare.html', 'none.html']


def test_a_page_that_loads_from_another_host_is_an_error(docs, site, tmp_path):
    (tmp_path/'good.html').write_text('<script src="a.js"></script><a href="https://x/y">y</a><link rel="canonical" href="https://x/z">')
    (tmp_path/'script.html').write_text('<script defer src="https://x/katex.js"></script>')
    (tmp_path/'style.html').write_text('<link rel="stylesheet" href="//x/katex.css">')
    assert [p.partition(':')[0] for p in docs.loads_from_others(tmp_path)] == ['script.html', 'style.html']
    assert not docs.loads_from_others(site)


def test_every_source_link_of_the_site_has_a_line(site, docs):
    links = [(p, m) for p in pages(site) for m in re.findall(r'blob/main/fastbit/[\w/]+\.py[^"]*', (site/p).read_text())]
    assert len(links) > 300 and not [o for o in links if not re.search(r'#L\d+$', o[1])] and not docs.links_without_line(site)


def test_a_broken_link_or_a_warning_fails_the_build(docs, tmp_path):
    (tmp_path/'_quarto.yml').write_text('project:\n  type: website\n  output-dir: out\nwebsite:\n  title: t\n  no-such-option: 1\n')
    (tmp_path/'index.md').write_text('# Home\n\n[nowhere](nowhere.md)\n')
    problems = '\n'.join(docs.render(tmp_path))
    assert 'broken link' in problems and 'no-such-option' in problems


# In a browser

class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def url(site):
    "The site over HTTP: from files, a browser does not let the search read its index"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown(); server.server_close()


@pytest.fixture(scope='module')
def browser():
    with chromium() as b: yield b


def set_width(browser, width): browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=False))


def open_page(browser, url, width, scheme='light'):
    set_width(browser, width)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=scheme)]))
    browser.get(url)


TOO_WIDE = '''
const seen = [], w = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > w) seen.push('the page: ' + document.documentElement.scrollWidth);
for (const pre of document.querySelectorAll('pre.python, pre.sh')) if (pre.scrollWidth > pre.clientWidth + 1) seen.push('code: ' + pre.innerText.slice(0, 60));
for (const img of document.images) if (!img.naturalWidth) seen.push('picture: ' + img.src.slice(0, 60));
return seen'''


def test_every_page_in_a_browser(site, url, browser):
    "No console error, no failed or foreign request, no broken picture, nothing wider than the window of a desktop, and then of a phone"
    problems = []
    for page in pages(site):
        browser.get_log('browser'); browser.get_log('performance')
        open_page(browser, url + page, WIDTHS['desktop'])
        browser.execute_async_script('const done = arguments[0]; Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => done())')
        for where, width in WIDTHS.items():
            set_width(browser, width)
            problems += [(page, where, o) for o in browser.execute_script(TOO_WIDE)]
        problems += [(page, o['message']) for o in browser.get_log('browser') if o['level'] in ('SEVERE', 'WARNING')]
        for m in (json.loads(line['message'])['message'] for line in browser.get_log('performance')):
            if m['method'] == 'Network.requestWillBeSent' and not m['params']['request']['url'].startswith((url, 'data:')): problems.append((page, m['params']['request']['url']))
            if m['method'] == 'Network.responseReceived' and m['params']['response']['status'] >= 400: problems.append((page, m['params']['response']['url']))
            if m['method'] == 'Network.loadingFailed' and not m['params'].get('canceled'): problems.append((page, m['params']['errorText']))
    assert not problems, problems[:10]


def test_the_search_finds_fit_hyperrule(url, browser):
    from selenium.webdriver.support.ui import WebDriverWait
    open_page(browser, url + 'index.html', WIDTHS['desktop'])
    box = browser.find_element('css selector', '#quarto-search input')
    box.click(); box.send_keys('fit_hyperrule')
    found = WebDriverWait(browser, 20).until(lambda b: [a.get_attribute('href') for a in b.find_elements('css selector', '.smalldocs-search-results a')])
    assert any('training/rule.html' in h for h in found), found
    browser.get(next(h for h in found if 'training/rule.html' in h))
    assert 'fit_hyperrule' in browser.find_element('tag name', 'main').text


def test_light_and_dark(url, browser):
    light, dark = [], []
    for scheme, colours in (('light', light), ('dark', dark)):
        open_page(browser, url + 'training/learner.html', WIDTHS['desktop'], scheme)
        browser.execute_script('localStorage.clear()'); browser.refresh()
        for what in ('body', 'pre.sourceCode', '.docments td:last-child'):
            colours.append(browser.execute_script('const s = getComputedStyle(document.querySelector(arguments[0])); return [s.color, s.backgroundColor]', what))
    bright = lambda c: sum(map(int, re.findall(r'\d+', c)[:3]))
    assert bright(light[0][1]) > 600 > 200 > bright(dark[0][1])          # the page
    assert all(bright(l[0]) < 450 for l in light) and all(bright(d[0]) > 400 for d in dark)   # text can be read on it
