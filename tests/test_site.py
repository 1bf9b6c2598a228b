"The documentation site: built without a warning, every link leads somewhere, and a browser opens every page"
import functools, http.server, importlib, json, os, re, subprocess, sys, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from filelock import FileLock

from conftest import PICTURES, chromium, import_tool
from fastbit.cli.parser import make_parser

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
    return import_tool('docs')


def pages(site) -> list:
    "All pages but that for wrong addresses, whose links begin at the root of the host"
    return sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if 'site_libs' not in p.parts and p.name != '404.html')


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
    listed = set(re.findall(r'[\w/]+\.(?:ipynb|md)\b', docs.site_config()))
    made = {*docs.api_pages.PAGES, *docs.LINES, 'changelog.md'}   # by the build
    assert listed == expected | made
    assert len(pages(site)) == len(nbs) + len(made) + len(docs.redirects()) > 100


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
    name = re.search(r'Docs: \S*?fastbit/([\w/.]+)', (ROOT/'fastbit'/'training'/'learner.py').read_text())[1]
    text = (site/name).read_text()
    assert name == 'training/learner.html.md' and 'transfer_learner' in text and '.llms.md' not in text + (site/'llms.txt').read_text()


def test_a_definition_has_signature_table_source_and_methods(site):
    text = (site/'training'/'learner.html').read_text()
    for part in ('id="transfer_learner"', 'Stochastic depth, probability at the last block', 'blob/main/fastbit/training/learner.py#L', '>Details<'): assert part in text, part
    assert 'id="transferlearner.tta"' in (site/'training'/'tta.html').read_text()
    assert 'id="transferlearner.lr_find"' in (site/'training'/'rate_finder.html').read_text()   # what a learner is put together from has pages of its own
    text = (site/'hyperrule.html').read_text()
    for part in ('id="hyperrule.for_data"', 'optimizer steps of the whole schedule'): assert part in text, part   # a class method, a field of a dataclass


def test_a_page_that_loads_from_another_host_is_an_error(docs, site, tmp_path):
    (tmp_path/'good.html').write_text('<script src="a.js"></script><a href="https://x/y">y</a><link rel="canonical" href="https://x/z">')
    (tmp_path/'script.html').write_text('<script defer src="https://x/katex.js"></script>')
    (tmp_path/'style.html').write_text('<link rel="stylesheet" href="//x/katex.css">')
    assert [p.partition(':')[0] for p in docs.loads_from_others(tmp_path)] == ['script.html', 'style.html']
    assert not docs.loads_from_others(site)


def test_every_source_link_of_the_site_leads_to_a_line(site, docs):
    links = [(p, m) for p in pages(site) for m in re.findall(r'blob/main/fastbit/[\w/]+\.py[^"]*', (site/p).read_text())]
    assert len(links) > 300 and not [o for o in links if not re.search(r'#L\d+$', o[1])] and not docs.wrong_source_links(site)


def test_the_index_has_every_public_name(parsed):
    "Of every door, each with a link to a place that is there"
    doors = [importlib.import_module(f'fastbit.{p.parent.name}') for p in (ROOT/'fastbit').glob('*/__init__.py')]
    names = {n for door in doors for n in getattr(door, '__all__', ())}
    links = [urlsplit(urljoin('reference/python_api.html', h)) for h in parsed['reference/python_api.html'].links if '#' in h]
    leads = {u.fragment for u in links if u.path in parsed and u.fragment in parsed[u.path].ids}
    assert len(names) > 200 and not {n for n in names if n.lower() not in leads}


def test_the_learner_s_methods_are_on_one_page(parsed):
    "Whichever module has them, each with a link to the page that explains it"
    page = parsed['reference/learner.html']
    for name, explained in dict(fit_head='head', fit_upper='upper', fit_one_cycle='one_cycle', lr_find='rate_finder', tta='tta', report='results', hyperrule='rule',
                                lr_table='learner', rule_checkpoint='rule').items():
        assert name in page.ids and f'../training/{explained}.html#transferlearner.{name}' in page.links, name
    assert {'report', 'save', 'as_dict'} <= parsed['reference/result.html'].ids and {'predict', 'embed', 'similar'} <= parsed['reference/predictor.html'].ids


def test_the_page_of_the_command_has_every_option(site, parsed):
    "As `--help` shows them; an anchor per command"
    text = re.sub(r'<[^>]+>', '', (site/'reference'/'command_line.html').read_text())
    for name, parser in make_parser().commands.items():
        assert name in parsed['reference/command_line.html'].ids
        shown = [o for a in parser._actions if a.help != '==SUPPRESS==' for o in a.option_strings if o not in ('-h', '--help')]
        assert not [o for o in shown if o not in text], name


def test_options_are_in_groups_and_internals_folded(site):
    text = (site/'baseline'/'run.html').read_text()
    groups = re.findall(r'<details class="options">\s*<summary><b>([^<]+)</b>', text)
    assert {'Recipe', 'Training', 'Data', 'Loading', 'Run and output', 'Labels and tables'} <= set(groups)
    assert len(re.findall(r'<td[^>]*>valid_pct</td>', text)) == 1
    internals = (site/'metrics'/'selective.html').read_text().split('<details class="internals">')
    assert len(internals) == 2 and 'id="threshold_for_precision"' in internals[0] and 'id="one_per_group"' in internals[1]


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
const done = arguments[0], seen = [], w = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > w) seen.push('the page: ' + document.documentElement.scrollWidth);
for (const pre of document.querySelectorAll('pre.python, pre.sh')) if (pre.scrollWidth > pre.clientWidth + 1) seen.push('code: ' + pre.innerText.slice(0, 60));
''' + PICTURES + '''.then(() => {
  for (const img of document.images) if (!img.naturalWidth) seen.push('picture: ' + img.src.slice(0, 60));
  done(seen) })'''


def test_every_page_in_a_browser(site, docs, url, browser):
    "No console error, no failed or foreign request, no broken picture, nothing wider than the window of a desktop or a phone"
    problems, widths = [], list(WIDTHS.items())
    open_page(browser, 'about:blank', widths[0][1])
    moved = sorted(docs.redirects())[1:]   # one stands for all
    for page in (p for p in pages(site) if p not in moved):
        browser.get_log('browser'); browser.get_log('performance')
        browser.get(url + page)
        for where, width in widths:   # the first is the one that the page before ended with
            if where == widths[1][0]: set_width(browser, width)
            problems += [(page, where, o) for o in browser.execute_async_script(TOO_WIDE)]
        widths.reverse()
        problems += [(page, o['message']) for o in browser.get_log('browser') if o['level'] in ('SEVERE', 'WARNING')]
        for m in (json.loads(line['message'])['message'] for line in browser.get_log('performance')):
            if m['method'] == 'Network.requestWillBeSent' and not m['params']['request']['url'].startswith((url, 'data:')): problems.append((page, m['params']['request']['url']))
            if m['method'] == 'Network.responseReceived' and m['params']['response']['status'] >= 400: problems.append((page, m['params']['response']['url']))
            if m['method'] == 'Network.loadingFailed' and not m['params'].get('canceled'): problems.append((page, m['params']['errorText']))
    assert not problems, problems[:10]


def found_by(browser, words) -> list:
    "Pages that the search lists, the best first"
    from selenium.webdriver.support.ui import WebDriverWait
    box = browser.find_element('css selector', '#quarto-search input')
    box.clear(); box.send_keys(words)
    marked = f'return document.querySelector(".smalldocs-search-results.show mark")?.textContent.toLowerCase() == {json.dumps(words.split()[0])}'
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(marked))
    return [a.get_attribute('href').partition('/')[2].partition('/')[2].partition('/')[2] for a in browser.find_elements('css selector', '.smalldocs-search-results a')]


def test_the_search_finds_what_people_call_it(url, browser):
    "By the words of other libraries too (tools/pages.csv)"
    open_page(browser, url + 'index.html', WIDTHS['desktop'])
    expected = {'grad-cam': 'report/cam', 'early stopping': 'training/callbacks', 'imbalance': 'how_to/imbalance', 'kfold': 'baseline/folds', 'out of memory': 'how_to/memory',
                'mixed precision': 'training/precision', 'confusion matrix': 'metrics/evaluation'}
    first = {words: found_by(browser, words)[0].partition('.html')[0] for words in expected}
    assert first == expected
    assert any('training/rule.html' in h for h in found_by(browser, 'fit_hyperrule'))


def test_a_key_leads_to_the_search(url, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    open_page(browser, url + 'index.html', WIDTHS['desktop'])
    assert browser.execute_script('return getComputedStyle(document.querySelector(".smalldocs-search"), "::after").content') == '"/"'   # the hint
    ActionChains(browser).send_keys('/').perform()
    assert browser.switch_to.active_element.get_attribute('type') == 'search'


def test_a_link_opens_what_is_folded(url, browser):
    open_page(browser, url + 'metrics/selective.html#one_per_group', WIDTHS['desktop'])
    assert browser.execute_script('return document.querySelector("details.internals").open')


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


def test_a_wrong_address_leads_on(site):
    "A host shows 404.html at addresses of any depth, so every link in it is resolved at the base"
    text = (site/'404.html').read_text()
    page = Links(text)
    assert '<base href="/fastbit/">' in text and 'This page does not exist' in text and 'backbone' not in text   # not the text of the page it was made of
    for link in (*page.links, *page.loaded):
        if '://' not in link and not link.startswith('#'): assert (site/urlsplit(link).path).is_file() or not urlsplit(link).path, link


def test_plots_are_dark_in_the_dark(url, browser):
    "Plots are inverted, photographs are not"
    open_page(browser, url + 'tutorials/one_line.html', WIDTHS['desktop'], 'dark')
    looks = browser.execute_script('return [...document.querySelectorAll(".cell-output-display img")].map(e => [e.classList.contains("plot"), getComputedStyle(e).filter])')
    assert [plot for plot, _ in looks] == [True, False]   # the losses, and a row of images
    assert 'invert' in looks[0][1] and 'invert' not in looks[1][1]
    open_page(browser, url + 'tutorials/one_line.html', WIDTHS['desktop'])
    assert browser.execute_script('return getComputedStyle(document.querySelector("img.plot")).filter') == 'none'


@pytest.mark.parametrize('where, name', [('desktop', 'report'), ('phone', 'phone')])
def test_the_picture_of_the_home_page_follows_the_button(url, browser, where, name):
    "On a phone it is another one, whose text is as large as that of a page"
    open_page(browser, url + 'index.html', WIDTHS[where])
    shown = 'const i = document.querySelector("picture img"); return i.decode().then(() => i.currentSrc.split("/").pop())'
    assert browser.execute_script(shown) == f'{name}_light.webp'
    browser.execute_script('window.smalldocsToggleScheme()')
    try: assert browser.execute_async_script(f'const done = arguments[0]; setTimeout(() => (() => {{ {shown} }})().then(done), 200)') == f'{name}_dark.webp'
    finally: browser.execute_script('localStorage.clear()')


def test_breadcrumbs_do_not_repeat_themselves(site):
    "A section and its first page have one name, and one place in the sidebar"
    lists = {p: re.search(r'<ol class="breadcrumb">(.*?)</ol>', (site/p).read_text(), re.S) for p in pages(site)}
    crumbs = {p: [re.sub(r'<[^>]+>', '', o).strip() for o in re.findall(r'<li.*?</li>', m[1], re.S)] for p, m in lists.items() if m}
    assert len(crumbs) > 200 and crumbs['results.html'] == ['Benchmarks', 'Results']
    assert {p: o for p, o in crumbs.items() if len(set(o)) < len(o)} == {}


def test_notes_of_names_are_in_sight_on_a_phone(url, browser):
    "The third column of `in timm | in fastbit | …` stands below the others, and options are not cut at their hyphens"
    for page in ('coming_from/timm_users.html', 'coming_from/fastai_users.html', 'how_to/imbalance.html'):
        open_page(browser, url + page, WIDTHS['phone'])
        wide = browser.execute_script('return [...document.querySelectorAll("table.noted td")].filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.innerText)')
        assert wide == [] and browser.execute_script('return document.querySelectorAll("table.noted").length') > 0
        over = """return [...document.querySelectorAll("table.noted td + td:not(:empty)")].filter(e => {
            const a = e.previousElementSibling.getBoundingClientRect(), b = e.getBoundingClientRect(); return a.right > b.left + 1 && a.bottom > b.top + 1 }).map(e => e.innerText)"""
        assert browser.execute_script(over) == []   # side by side, or below
        assert browser.execute_script('return [...document.querySelectorAll("main .option")].every(e => e.getClientRects().length === 1)')
    open_page(browser, url + 'how_to/imbalance.html', WIDTHS['desktop'])
    codes = 'return [...document.querySelectorAll("main th code, main td:not(.long) code")].map(e => [e.innerText, e.getClientRects().length])'
    assert ['batches', 1] in (found := browser.execute_script(codes)) and {n for _, n in found} == {1}


def test_plots_and_tables_can_be_read_on_a_phone(url, browser):
    open_page(browser, url + 'tutorials/classic.html', WIDTHS['phone'])
    widths = browser.execute_script('return [...document.querySelectorAll(".cell-output-display img")].map(e => [e.naturalWidth, e.getBoundingClientRect().width])')
    assert len(widths) > 4 and all(shown >= .3*natural for natural, shown in widths)   # text of 10 points has 9 pixels
    open_page(browser, url + 'index.html', WIDTHS['phone'])
    assert browser.execute_script('return [...document.querySelectorAll("main td")].every(e => e.getBoundingClientRect().right <= innerWidth)')   # three columns, all in sight
    assert browser.execute_script('return document.querySelector(".nav-footer-center").getBoundingClientRect().width') > 300


def test_what_a_program_printed_is_not_cut_off_on_a_desktop(url, browser):
    open_page(browser, url + 'tutorials/one_line.html', WIDTHS['desktop'])
    assert browser.execute_script('return [...document.querySelectorAll(".cell-output > pre")].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 80))') == []
    assert 'fitted on the same images; only 72' in browser.execute_script('return document.body.innerText').replace('\n', ' ')


def test_a_page_on_paper(url, browser):
    "The page alone, on white, whatever was folded, also from a dark window"
    for page in ('data/loaders.html', 'tutorials/classic.html'):
        open_page(browser, url + page, 700, 'dark')
        browser.execute_script('dispatchEvent(new Event("beforeprint"))')
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media='print', features=[dict(name='prefers-color-scheme', value='dark')]))
        try:
            shown = browser.execute_script('return ["#quarto-header", "#quarto-sidebar", ".page-navigation", ".footer"].filter(s => document.querySelector(s)?.checkVisibility())')
            assert shown == []
            assert browser.execute_script('return getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
            assert browser.execute_script('return [...document.querySelectorAll("main details > :not(summary)")].every(e => e.checkVisibility())')
            assert browser.execute_script('return [...document.querySelectorAll("main img, main table, main pre")].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))') == []
        finally: browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=''))


def test_no_hidden_cell_lost_its_output():
    "A cell that shows only its output (`echo: false`) and has none leaves a heading above nothing, as on the page of results"
    import ast
    empty = []
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if any(o[0] in '._' for o in p.relative_to(ROOT/'nbs').parts): continue
        for cell in json.loads(p.read_text())['cells']:
            text = ''.join(cell['source'])
            if cell['cell_type'] != 'code' or '| echo: false' not in text or cell['outputs']: continue
            if isinstance(ast.parse(text).body[-1], ast.Expr): empty.append((p.name, text[:80]))
    assert not empty, empty
