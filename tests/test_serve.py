"`fastbit serve`: the answers of `predict` by HTTP, a page that a browser opens, and nothing for anybody else"
import csv, http.client, io, json, os, pickle, re, signal, socket, struct, threading, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np, pytest, torch

import corpus
from conftest import chromium, picture, write_folder
from fastbit.cli.command import main
from fastbit.core.files import csv_text
from fastbit.core.web import MAX_PARTS, WebLimits, form_file, open_server, Refused
from fastbit.export import Artifact, load_predictor, save_artifact, save_index
from fastbit.export.similar import INDEX_FILE
from fastbit.data import image_table
from fastbit.metrics import fit_feature_gaussian, held_out_answers
from fastbit.studies import ModelServer, serve
from forks import COMMAND, Fork
from tasks import CASES, NAMES

def encoded(img, kind='PNG') -> bytes:
    data = io.BytesIO()
    img.save(data, kind)
    return data.getvalue()


def multipart(data, boundary='x', head='Content-Disposition: form-data; name="image"; filename="a.png"') -> bytes:
    return f'--{boundary}\r\n{head}\r\n\r\n'.encode() + data + f'\r\n--{boundary}--\r\n'.encode()


def ask(page, method='GET', path='/', body=None, **headers):
    "(status, JSON) of a request"
    connection = http.client.HTTPConnection('127.0.0.1', page.server.server_port, timeout=30)
    try:
        connection.request(method, path, body, {k.replace('_', '-'): v for k, v in headers.items()})
        found = connection.getresponse()
        return found.status, json.loads(found.read())
    finally: connection.close()


def send(page, data: bytes, half=False) -> bytes:
    "All that comes back for some bytes; `half`: nothing more will be sent"
    with socket.create_connection(('127.0.0.1', page.server.server_port), timeout=30) as s:
        s.sendall(data)
        if half: s.shutdown(socket.SHUT_WR)
        return s.makefile('rb').read()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "A folder as a run would leave it, with names from hell: (its images, the folder)"
    root = tmp_path_factory.mktemp('serve')
    table = image_table(write_folder(root/'data', {'a': 4, 'b': 4, 'c': 4}))
    net, _ = CASES['label'].artifact()
    about = CASES['label'].artifact(classes=(NAMES[0], 'дом', 'unsure'), temperature=2.)[1]
    features = np.random.default_rng(0).random((100, net.num_features))
    right = torch.eye(3)[torch.arange(100) % 3]
    answers = held_out_answers(.9*right + .1/3, torch.arange(100) % 3, 2., gaussian=(g := fit_feature_gaussian(features)), distance=g.distances(features))
    about = save_artifact(root/'run <b>'/'model', net, about, answers=answers)
    index = load_predictor(root/'run <b>', 'cpu').index_images(table.assign(label=NAMES[0]))
    save_index(root/'run <b>'/INDEX_FILE, index, about.sha256)
    return [Path(p) for p in table.path], root/'run <b>'


@pytest.fixture(scope='module')
def page(results):
    with serve(results[1], 0, block=False, device='cpu', verbose=False, max_mb=.1) as found: yield found


@pytest.fixture(scope='module')
def image(results): return results[0][0].read_bytes()


# The same answer

@contextmanager
def served(case, tmp_path):
    net, about = case.artifact()
    save_artifact(tmp_path/'model', net, about)
    with serve(tmp_path, 0, block=False, device='cpu', verbose=False) as found: yield found


@pytest.mark.parametrize('key', CASES)
def test_the_answer_is_the_row_of_predict(key, tmp_path, image):
    "Bit for bit, and what a file of CSV says"
    with served(CASES[key], tmp_path) as page:
        p, numbers = page.predictor, key == 'number'
        status, answer = ask(page, 'POST', '/predict', image)
        df = p.predict([image], probs=not numbers, **page.limits)
        assert status == 200 and page.limits == {}
        for name in df.columns.drop('path'):
            if name.startswith('p('): continue
            value = df[name][0]
            assert answer[name] == (list(value) if isinstance(value, tuple) else None if value != value else value), name
        if not numbers: assert list(answer['probs'].values()) == df.iloc[0, -3:].tolist() and list(answer['probs']) == list(p.classes)
        text, = csv.DictReader(io.StringIO(csv_text(df)))
        if key == 'label': assert (text['prediction'], float(text['probability'])) == (answer['prediction'], answer['probability'])
        if numbers: assert [float(text[k]) for k in ('prediction', 'low', 'high')] == [answer[k] for k in ('prediction', 'low', 'high')]
        assert ask(page, 'POST', '/map', image)[1]['map'].startswith('data:image/jpeg')
        assert ask(page, 'POST', '/similar', image)[1] == dict(similar=[], words=page._nearest.words)
        assert 'which `fastbit baseline` keeps' in page._nearest.words


@pytest.mark.parametrize('key', CASES)
def test_the_command_prints_what_the_server_answers(key, tmp_path, results, image, capsys):
    (tmp_path/'bad\u202e.png').write_bytes(b'no image')
    with served(CASES[key], tmp_path) as page: served_answer = ask(page, 'POST', '/predict', image)[1]
    files = [str(results[0][0]), str(tmp_path/'bad\u202e.png'), str(results[0][5])]
    assert main(['predict', str(tmp_path), *files, '--json', '--device', 'cpu']) == 1   # one of them cannot be read
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row.pop('path') for row in rows] == files and '\u202e' not in out and '1 of 3 images' in err
    assert rows[0] == served_answer and list(rows[1]) == ['reason'] and rows[2] != rows[0]


def test_json_is_a_format_of_its_own(results, capsys):
    for other in ('--csv', '--spreadsheet'):
        assert main(['predict', str(results[1]), str(results[0][0]), '--json', other]) == 2
        assert capsys.readouterr().err == 'fastbit: error: Choose one of --json, --csv and --spreadsheet.\n'


def test_thresholds_of_the_run_are_used(page, image):
    assert page.limits == dict(min_precision=.95, unlike=.05)
    answer = ask(page, 'POST', '/predict', image)[1]
    row = page.predictor.predict([image], probs=True, min_precision=.95, unlike=.05).iloc[0]
    for name in ('prediction', 'probability', 'calibrated', 'answer', 'unlike', 'p_value'): assert answer[name] == row[name], name
    assert answer['calibrated'] == answer['calibrated_probs'][answer['prediction']]
    sentences = ask(page, path='/info')[1]['promises']
    assert '95% or more, with 95% confidence' in sentences[0] and 'Unlike' in sentences[1]


@pytest.mark.parametrize('kind, wrap', [('application/octet-stream', bytes), ('image/png', bytes), ('application/x-www-form-urlencoded', bytes), ('', bytes), ('multipart/form-data; boundary=x', multipart),
                                        ('Multipart/Form-Data;boundary="x"', multipart), ('multipart/form-data; charset=utf-8; boundary=x', lambda d: b'\r\n' + multipart(d, head='content-disposition:form-data;filename*=utf-8\'\'%D1%8F'))])
def test_every_way_to_send_an_image_is_the_same(page, image, kind, wrap):
    assert ask(page, 'POST', '/predict', wrap(image), Content_Type=kind) == ask(page, 'POST', '/predict', image)


def test_nearest_training_images(page, results, image):
    found = ask(page, 'POST', '/similar', image)[1]
    assert len(found['similar']) == 6 and found['similar'][0]['similarity'] == pytest.approx(1, abs=1e-3)
    assert found['similar'][0]['label'] == NAMES[0] and found['similar'][0]['file'] == '/'.join(results[0][0].parts[-2:])   # no folder of the machine
    want = page.predictor.similar([image], n=6)
    assert [o['similarity'] for o in found['similar']] == want.similarity.tolist()


def test_the_map_is_that_of_the_class_that_is_asked_for(page, image):
    maps = [ask(page, 'POST', f'/map?output={i}', image)[1] for i in range(3)]
    assert len({m['map'] for m in maps}) == 3 and len({m['picture'] for m in maps}) == 1
    predicted = page.predictor.classes.index(ask(page, 'POST', '/predict', image)[1]['prediction'])
    assert ask(page, 'POST', '/map', image)[1] == maps[predicted]
    for wrong in ('3', '-1', '1e1', '٣', '9'*400, 'x'): assert ask(page, 'POST', f'/map?output={urllib.request.quote(wrong)}', image)[0] == 400


def test_the_model_answers_one_at_a_time(page, image, monkeypatch):
    real, inside, most = page.predictor.predict, [0], []
    def predict(*args, **kwargs):
        inside[0] += 1
        most.append(inside[0])
        time.sleep(.01)
        try: return real(*args, **kwargs)
        finally: inside[0] -= 1
    monkeypatch.setattr(page.predictor, 'predict', predict)
    found = []
    threads = [threading.Thread(target=lambda: found.append(ask(page, 'POST', '/predict', image))) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(found) == 6 and all(o == found[0] for o in found) and found[0][0] == 200 and max(most) == 1


# What is refused

def hostile() -> dict:
    "Name -> bytes"
    png, jpg = encoded(corpus.art()), encoded(corpus.art(), 'JPEG')
    files = {c.name: c.data for c in corpus.not_images() if c.name.endswith('.jpg') and c.data}
    bomb = dict(bomb=corpus.png(60_000, 60_000), wide=corpus.png(2**31-1, 1), empty=corpus.png(0, 0))
    return files | bomb | dict(cut_png=png[:len(png)//2], cut_jpg=jpg[:len(jpg)//2], svg=b'<svg xmlns="http://www.w3.org/2000/svg"/>', pickled=pickle.dumps(png), zero=b'\0',
                               mvg=b'push graphic-context\nimage over 0,0 0,0 "|id"\n', tiff=struct.pack('<2sHIH', b'II', 42, 8, 65535))


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_hostile_files_get_the_verdict_of_predict(page):
    for name, data in hostile().items():
        reason = page.predictor.predict([data]).reason[0]
        assert reason, name
        wanted = (422, dict(error=f'This file cannot be read as an image: {reason}.'))
        assert ask(page, 'POST', '/predict', data) == wanted, name
    for path in ('/map', '/similar'): assert ask(page, 'POST', path, data)[0] == 422
    assert ask(page, path='/health') == (200, dict(status='ok'))


POST = b'POST /predict HTTP/1.1\r\nHost: localhost\r\n'
RAW = {   # what is wrong -> (status, bytes)
    'no length': (411, POST + b'\r\nabc'),
    'chunks': (411, POST + b'Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n'),
    'chunks and a length': (411, POST + b'Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc'),
    'two lengths': (400, POST + b'Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd'),
    'a list of lengths': (400, POST + b'Content-Length: 3, 4\r\n\r\nabcd'),
    'a negative length': (400, POST + b'Content-Length: -1\r\n\r\nabc'),
    'a length in words': (400, POST + b'Content-Length: three\r\n\r\nabc'),
    'nothing': (400, POST + b'Content-Length: 0\r\n\r\n'),
    'too short': (400, POST + b'Content-Length: 30\r\n\r\nabc'),
    'too long': (413, POST + b'Content-Length: 99999999999\r\n\r\nabc'),
    'too long, asked before': (413, POST + b'Expect: 100-continue\r\nContent-Length: 200000\r\n\r\n'),
    'no host': (403, b'GET / HTTP/1.1\r\n\r\n'),
    'another host': (403, b'GET / HTTP/1.1\r\nHost: evil.com\r\n\r\n'),
    'a host in the address': (404, b'GET http://evil.com/ HTTP/1.1\r\nHost: localhost\r\n\r\n'),
    'another site': (403, POST + b'Origin: http://evil.com\r\nContent-Length: 3\r\n\r\nabc'),
    'another port': (403, POST + b'Origin: http://localhost:1\r\nContent-Length: 3\r\n\r\nabc'),
    'a page in a sandbox': (403, POST + b'Origin: null\r\nContent-Length: 3\r\n\r\nabc'),
    'a form of another site': (403, POST + b'Sec-Fetch-Site: cross-site\r\nContent-Length: 3\r\n\r\nabc'),
    'no form': (400, POST + b'Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 3\r\n\r\nabc'),
    'a form without boundary': (400, POST + b'Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc'),
    'noise': (400, b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n'),
    'a long line': (414, b'GET /' + b'a'*70_000 + b' HTTP/1.1\r\n\r\n'),
    'many headers': (431, b'GET / HTTP/1.1\r\n' + b''.join(b'X-%d: 1\r\n' % i for i in range(200)) + b'\r\n'),
    'another HTTP': (505, b'GET / HTTP/9.1\r\n\r\n'),
    'a method': (501, b'BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n'),
    'put': (405, b'PUT /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc'),
    'options': (405, b'OPTIONS /predict HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n')}


@pytest.mark.parametrize('what', RAW)
def test_requests_that_are_refused(page, what):
    status, data = RAW[what]
    found = send(page, data, half=what != 'too long, asked before')
    head, _, body = found.partition(b'\r\n\r\n')
    assert head.startswith(f'HTTP/1.1 {status} '.encode()), found
    assert set(json.loads(body)) == {'error'} and b'nosniff' in head and b"default-src 'none'" in head
    assert b'Traceback' not in found and b'File "' not in found and b'Python' not in head and b'100 Continue' not in found


@pytest.mark.parametrize('path', ['/..', '/../../etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '//etc/passwd', '/model/config.json', '/predict/', '/favicon.ico', '/?../x', '/info\x7f'])
def test_there_are_no_files(page, path):
    found = send(page, f'GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())
    assert found.startswith(b'HTTP/1.1 200' if path == '/?../x' else b'HTTP/1.1 404'), found[:200]


def test_a_client_that_asks_before_it_sends(page, image):
    "As curl does with large files"
    found = send(page, POST + f'Expect: 100-continue\r\nContent-Length: {len(image)}\r\n\r\n'.encode() + image)
    assert found.startswith(b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK') and b'prediction' in found


def test_a_file_that_is_too_large_gets_an_answer(page):
    "Although it is still being sent"
    assert ask(page, 'POST', '/predict', bytes(5_000_000)) == (413, dict(error='The file has 5.0 MB, and 0.1 MB are accepted: send a smaller one, or start the server with a larger --max-mb.'))


def test_too_many_at_once_are_told_so(results, image):
    with open_server(port=0, limits=WebLimits(connections=1)) as server:
        with ModelServer(load_predictor(results[1], 'cpu'), server) as page:
            with socket.create_connection(('127.0.0.1', server.server_port)):   # says nothing
                assert send(page, b'').startswith(b'HTTP/1.1 503')
            until = time.monotonic() + 10
            while (found := ask(page, path='/health'))[0] == 503 and time.monotonic() < until: time.sleep(.01)
            assert found[0] == 200


def test_forms_of_noise():
    "Refused, or the bytes between the lines"
    dice = np.random.default_rng(0)
    pieces = [b'--x', b'\r\n', b'--', b'Content-Disposition: form-data; filename=a', b'\r\n\r\n', b'--x--', b'abc', b'\0', b': ;=', b'filename*=']
    read = 0
    for _ in range(3000):
        body = b''.join(pieces[i] for i in dice.integers(0, len(pieces), dice.integers(1, 3*MAX_PARTS)))
        try: read += form_file('multipart/form-data; boundary=x', body) in body
        except Refused as e: assert e.status == 400
    assert read


# The command, and Python

@pytest.fixture
def interrupted(monkeypatch):
    "Ctrl-C as soon as the server waits; what it was asked until then is in the list"
    seen = []
    def wait(page):
        seen.append((page.url, ask(page, path='/info')[1]))
        raise KeyboardInterrupt
    monkeypatch.setattr(ModelServer, 'wait', wait)
    monkeypatch.setattr('webbrowser.open', lambda url: seen.append(url))
    return seen


@pytest.mark.filterwarnings('default::fastbit.core.text.DataWarning')
def test_the_command_serves_until_ctrl_c(results, interrupted, capsys, monkeypatch):
    monkeypatch.setenv('BROWSER', 'some')
    assert main(['serve', str(results[1]), '--port', '0', '--device', 'cpu', '--coverage', '.8', '--max-mb', '3']) == 0
    said = capsys.readouterr()
    opened, (url, info) = interrupted
    assert opened == url and info['limits'] == dict(min_precision=.95, unlike=.05, coverage=.8)
    assert said.err == 'fastbit: stopped\n' and f'{url} (for this machine only)' in said.out and f'curl --data-binary @photo.jpg {url}/predict' in said.out
    with pytest.raises(OSError): urllib.request.urlopen(url)   # the port is free again
    assert main(['serve', str(results[1]), '--port', '0', '--quiet', '--no-browser', '--host', '0.0.0.0']) == 0
    said = capsys.readouterr()
    assert (said.out, said.err.count('\n')) == ('', 1) and said.err.startswith('fastbit: note: --host 0.0.0.0 lets anybody in the network use this model')
    assert len(interrupted) == 3


def test_mistakes_of_the_command(results, page, capsys):
    port = str(page.server.server_port)
    for words, message in ((['--port', port], f'--port {port} is in use. Choose another, or leave it out.'), (['--port', '70000'], '--port 70000: a number from 0 to 65535'),
                           (['--max-mb', '0'], '--max-mb 0.0: MB of the largest image, 0.01 to 1000'), (['--host', '192.0.2.1'], '--host 192.0.2.1 is not an address of this machine.'),
                           (['--host', ''], 'host is empty'), (['--port', '0', '--min-precision', '.9999'], '--min-precision 0.9999: No threshold reaches')):
        assert main(['serve', str(results[1]), *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith('fastbit: error: ') and message in said and said.count('\n') == 1, said


def test_the_next_free_port(page):
    with open_server() as first, open_server() as second: assert second.server_port != first.server_port


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_command(results, tmp_path, signum):
    with Fork(COMMAND, 'serve', results[1], '--port', '0', '--device', 'cpu', cwd=tmp_path, env=os.environ) as run:
        until = time.monotonic() + 60
        while not (found := re.search(r'http://\S+', Path(run.output, 'stdout').read_text() if Path(run.output, 'stdout').exists() else '')):
            assert run.poll() is None and time.monotonic() < until
            time.sleep(.02)
        assert json.loads(urllib.request.urlopen(f'{found[0]}/health').read()) == dict(status='ok')
        run.send_signal(signum)
        out, err = run.communicate(60)
    assert run.returncode == 0 and err == 'fastbit: stopped\n'


def test_a_notebook_gets_no_bar_for_one_image(monkeypatch):
    "Each request would leave one in the cell that runs"
    import fastprogress.fastprogress
    from fastbit.core import text
    monkeypatch.setattr(text, 'is_interactive', lambda: True)
    monkeypatch.setattr(fastprogress.fastprogress, 'progress_bar', lambda items, **kw: pytest.fail('a bar'))
    assert list(text.track(iter('a'), 1, 'predicting')) == ['a']


# The page

def test_the_page_needs_nothing_from_elsewhere(page):
    found = urllib.request.urlopen(page.url)
    html, policy = found.read().decode(), found.headers['Content-Security-Policy']
    assert not re.search(r'(src|href)="(?!/info|data:)', html) and '@import' not in html and 'url(' not in html
    assert "default-src 'none'" in policy and 'unsafe' not in policy and "frame-ancestors 'none'" in policy
    assert found.headers['X-Content-Type-Options'] == 'nosniff' and found.headers['Server'].startswith('fastbit')
    assert 'alert(1)<' not in html and '<b>' not in html.replace('<b>Drop', '') and 'run &lt;b&gt;' in html
    assert send(page, b'HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n').endswith(b'\r\n\r\n')


ANSWERED = 'const id = arguments[0], done = arguments[1], look = () => document.getElementById(id).offsetParent ? done(1) : setTimeout(look, 20); look()'
DROP = '''const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)), data = new DataTransfer(), kind = arguments[1]
if (bytes.length) data.items.add(new File([bytes], 'a.png', {type: 'image/png'}))
const event = kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true}) : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
document.body.dispatchEvent(event)'''


def opened(browser, page, width=1280):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=False))
    browser.get(page.url)
    return lambda id: browser.find_element('id', id)


def wait_for(browser, id):
    browser.set_script_timeout(30)
    browser.execute_async_script(ANSWERED, id)


@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_a_browser_shows_the_answer(page, results, image, width, dark):
    answer = ask(page, 'POST', '/predict', image)[1]
    with chromium(dark) as browser:
        get = opened(browser, page, width)
        get('file').send_keys(str(results[0][0]))
        wait_for(browser, 'similar')
        shown = answer['prediction'] if answer['answer'] == answer['prediction'] else 'Unsure'
        assert get('verdict').text == shown
        assert [o.text for o in browser.find_elements('css selector', '.bars .row span:first-child')] == sorted(answer['calibrated_probs'], key=lambda c: -answer['calibrated_probs'][c])
        assert len(browser.find_elements('css selector', '#nearest img')) == 6
        assert browser.execute_script('return document.documentElement.scrollWidth <= window.innerWidth')
        get('map-on').send_keys(' ')   # without a mouse
        assert get('map-on').is_selected() and get('picture').get_attribute('alt') == 'The image with its activation map' and 'Red regions' in get('map-words').text
        assert browser.execute_script('return [...document.images].every(i => i.complete && i.naturalWidth)')
        ground = browser.execute_script('return getComputedStyle(document.body).backgroundColor')
        assert ground == ('rgb(20, 25, 31)' if dark else 'rgb(255, 255, 255)')
        assert json.loads(browser.execute_script('return document.getElementById("json-text").textContent')) == answer
        assert not browser.get_log('browser')
        requests = [json.loads(o['message'])['message']['params']['request']['url'] for o in browser.get_log('performance') if '"Network.requestWillBeSent"' in o['message']]
        assert {u for u in requests if not u.startswith(('data:', 'blob:', page.url))} <= {u for u in requests if u.startswith('about:')}


def test_images_are_dropped_pasted_and_refused(page, image):
    import base64
    with chromium() as browser:
        get, text = opened(browser, page), base64.b64encode(image).decode()
        for kind in ('drop', 'paste'):
            browser.execute_script(DROP, text, kind)
            wait_for(browser, 'similar')
            assert get('result').is_displayed() and not get('error').is_displayed()
            browser.execute_script(DROP, base64.b64encode(b'no image').decode(), kind)
            wait_for(browser, 'error')
            assert 'not an image that Pillow can read' in get('error').text and not get('result').is_displayed()
        browser.execute_script(DROP, base64.b64encode(bytes(200_000)).decode(), 'drop')
        assert get('error').text == 'The file has 0.2 MB, and 0.1 MB are accepted.'
        browser.execute_script(DROP, '', 'paste')
        assert get('error').text == 'The clipboard has no image.'
        browser.execute_script('document.getElementById("error").hidden = true')
        get('camera').click()   # where there is none
        wait_for(browser, 'error')
        assert 'hoose a file' in get('error').text
        browser.get_log('browser')   # of the refused uploads, which Chromium lists


@pytest.mark.parametrize('key', ['labels', 'number'])
def test_a_browser_shows_other_tasks(key, tmp_path, results, image):
    with served(CASES[key], tmp_path) as page, chromium() as browser:
        answer, get = ask(page, 'POST', '/predict', image)[1], opened(browser, page, 390)
        get('file').send_keys(str(results[0][0]))
        wait_for(browser, 'similar')
        if key == 'labels': assert get('verdict').text == (', '.join(answer['prediction']) or 'No label') and len(browser.find_elements('css selector', '.tick')) == 3
        else: assert float(get('verdict').text) == pytest.approx(answer['prediction'], abs=.06) and '90% interval' in get('sure').text and get('line').is_displayed()
        assert browser.execute_script('return document.documentElement.scrollWidth <= window.innerWidth') and not browser.get_log('browser')


def test_every_field_of_an_answer_is_explained_where_it_is_met(results, tmp_path):
    "In the help of both commands and in the docstrings; and none is explained that no answer has"
    from fastbit.cli.parser import make_parser
    from fastbit.export import Predictor, json_answer, json_answers
    from fastbit.metrics.task_names import ANSWER_FIELDS
    p, file = load_predictor(results[1], 'cpu'), str(results[0][0])
    found = set(json_answers(p, [file], min_precision=.6, coverage=.9, unlike=.05)[0]) | {'level', 'low', 'high'}
    for task, case in CASES.items():
        save_artifact(tmp_path/task, *case.artifact())
        found |= set(json_answers(load_predictor(tmp_path/task, 'cpu'), [file])[0])
    assert found == set(ANSWER_FIELDS)
    helps = [make_parser().commands[name].format_help() for name in ('predict', 'serve')]
    for text in (*helps, json_answers.__doc__, json_answer.__doc__, Predictor.predict.__doc__):
        joined = ' '.join(text.split())
        for name, words in ANSWER_FIELDS.items(): assert f'{name}: {words}' in joined, name
