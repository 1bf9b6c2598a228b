"The Hugging Face Hub, played by a server in this process: what is uploaded, what is refused, and what comes back"
import base64, hashlib, json, re, shutil, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub, numpy as np, pytest
from huggingface_hub import constants
from PIL import Image

from fastbit.cli.command import main
from fastbit.export import load_predictor, push_to_hub, save_artifact
from fastbit.export.card import CARD
from fastbit.export.ensemble import save_ensemble
from test_artifact import about_net, some_net

TOKENS = {'hf_write': 200, 'hf_read': 403}   # others: 401


class Hub(BaseHTTPRequestHandler):
    "The few addresses of the Hub that an upload and a download ask for"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def answer(self, status, body=b'', **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in dict(Content_Length=len(data), **headers).items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data)

    def refuse(self, status, code='', message='no'): self.answer(status, dict(error=message), X_Error_Code=code, X_Error_Message=message)

    @property
    def repos(self): return self.server.repos
    @property
    def sent(self): return self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def may_write(self) -> bool:
        status = TOKENS.get(self.headers.get('Authorization', '').removeprefix('Bearer '), 401)
        if status != 200: self.refuse(status, message='Invalid credentials in Authorization header' if status == 401 else 'forbidden')
        return status == 200

    def do_GET(self):
        self.server.asked.append(self.path)
        if m := re.fullmatch(r'/([^/]+/[^/]+)/resolve/[^/]+/(.+?)(\?.*)?', self.path):
            data = self.repos.get(m[1], {}).get(m[2])
            if data is None: return self.refuse(404, 'EntryNotFound')
            return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit='c'*40)
        m = re.match(r'/api/models/([^/]+/[^/?]+)(/tree)?', self.path)
        files = self.repos.get(m[1]) if m else None
        if files is None: return self.refuse(404, 'RepoNotFound', 'Repository not found')
        if m[2]: return self.answer(200, [dict(type='file', path=k, size=len(v), oid='0'*40) for k, v in files.items()])
        self.answer(200, dict(_id='1', id=m[1], modelId=m[1], sha='c'*40, private=False, tags=[], downloads=0, likes=0, siblings=[dict(rfilename=k) for k in files]))
    do_HEAD = do_GET

    def do_POST(self):
        data = self.sent
        if self.path == '/api/validate-yaml': return self.answer(200, dict(errors=[], warnings=[]))
        if not self.may_write(): return
        if self.path == '/api/repos/create':
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.created.append(asked)
            self.repos.setdefault(name, {'.gitattributes': b''})
            return self.answer(200, dict(url=f'{self.server.address}/{name}', name=name))
        repo = re.match(r'/api/models/([^/]+/[^/?]+)', self.path)[1]
        if '/preupload/' in self.path:
            return self.answer(200, dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(data)['files']]))
        for line in map(json.loads, data.splitlines()):
            if line['key'] == 'file': self.repos[repo][line['value']['path']] = base64.b64decode(line['value']['content'])
            if line['key'] == 'deletedFile': del self.repos[repo][line['value']['path']]
        self.answer(200, dict(success=True, commitOid='c'*40, commitUrl=f'{self.server.address}/{repo}/commit/{"c"*40}', hookOutput=''))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A Hub on this machine, a token, and an empty cache of downloads"
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.repos, server.created, server.asked = {}, [], []
    server.address = address = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    for name, value in dict(HF_HUB_OFFLINE=False, ENDPOINT=address, HF_HUB_CACHE=str(tmp_path/'hub'), HUGGINGFACE_CO_URL_TEMPLATE=address + '/{repo_id}/resolve/{revision}/{filename}').items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    monkeypatch.setenv('HF_HUB_DISABLE_PROGRESS_BARS', '1')
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def results(tmp_path):
    "The folder of a run, with files that must not leave this machine"
    out = tmp_path/'results'
    save_artifact(out/'model', some_net(), about_net())
    (out/'predictions.csv').write_text('path\n/home/ada/patients/1.png')
    (out/'report.html').write_text('<img>')
    (out/'model'/'notes.txt').write_text('secret')
    return out


PIXELS = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def test_what_is_uploaded_is_the_artifact_and_comes_back_the_same(hub, results):
    assert push_to_hub(results, 'ada/flowers', private=True).endswith('ada/flowers')
    assert hub.created[0].get('private') is True or hub.created[0].get('visibility') == 'private'
    there = hub.repos['ada/flowers']
    assert set(there) == {'.gitattributes', CARD, 'config.json', 'model.safetensors'}
    assert there['model.safetensors'] == (results/'model'/'model.safetensors').read_bytes()
    assert b"load_predictor('hf://ada/flowers')" in there[CARD] and b'FOLDER' not in there[CARD]
    hub.repos['ada/flowers']['evil.pkl'], hub.asked[:] = b'no', []
    opened = load_predictor('hf://ada/flowers', 'cpu')
    assert opened.predict(PIXELS).equals(load_predictor(results, 'cpu').predict(PIXELS))
    assert not [p for p in hub.asked if 'evil' in p or CARD in p]


def test_offline_the_cached_copy_is_opened(hub, results, monkeypatch):
    push_to_hub(results, 'ada/flowers')
    load_predictor('hf://ada/flowers', 'cpu')
    hub.shutdown()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert load_predictor('hf://ada/flowers', 'cpu').classes == ('blue', 'green', 'red')
    with pytest.raises(OSError, match='does not answer .*HF_HUB_OFFLINE'): load_predictor('hf://ada/other', 'cpu')
    with pytest.raises(OSError, match='cannot be uploaded'): push_to_hub(results, 'ada/new')


def test_a_damaged_model_is_refused_as_a_local_one_is(hub, results):
    push_to_hub(results, 'ada/flowers')
    data = hub.repos['ada/flowers']['model.safetensors']
    hub.repos['ada/flowers']['model.safetensors'] = data[:-4] + b'\0\0\0\1'
    with pytest.raises(ValueError, match='SHA-256'): load_predictor('hf://ada/flowers', 'cpu')
    hub.repos['ada/none'] = {'pytorch_model.bin': b'pickle'}
    with pytest.raises(FileNotFoundError, match='not a fastbit results folder'): load_predictor('hf://ada/none', 'cpu')
    with pytest.raises(FileNotFoundError, match='no model ada/absent'): load_predictor('hf://ada/absent', 'cpu')


def test_a_name_that_is_taken(hub, results):
    push_to_hub(results, 'ada/flowers')
    hub.repos['ada/flowers'] |= {'abstain.tensors': b'of the earlier model', 'LICENSE': b'mine'}
    with pytest.raises(FileExistsError, match=r'ada/flowers exists on the Hub, with 5 files.*--overwrite'): push_to_hub(results, 'ada/flowers')
    push_to_hub(results, 'ada/flowers', overwrite=True, report=True)
    assert set(hub.repos['ada/flowers']) == {'.gitattributes', CARD, 'config.json', 'model.safetensors', 'report.html', 'LICENSE'}


def test_an_upload_that_was_interrupted_is_repeated(hub, results):
    hub.repos['ada/flowers'] = {'.gitattributes': b''}
    push_to_hub(results, 'ada/flowers')
    assert CARD in hub.repos['ada/flowers']


def test_an_ensemble(hub, tmp_path):
    for i in range(2): save_artifact(tmp_path/f'fold-{i}', some_net(i), about_net())
    save_ensemble(tmp_path/'out'/'model', [tmp_path/f'fold-{i}' for i in range(2)])
    push_to_hub(tmp_path/'out', 'ada/mean')
    assert load_predictor('hf://ada/mean', 'cpu').predict(PIXELS).equals(load_predictor(tmp_path/'out', 'cpu').predict(PIXELS))


@pytest.mark.parametrize('token, words', [('hf_other', 'does not accept the token'), ('hf_read', 'does not allow writing to ada/flowers')])
def test_a_token_that_does_not_do(hub, results, token, words):
    with pytest.raises(OSError, match=words): push_to_hub(results, 'ada/flowers', token=token)
    assert not hub.repos


def test_errors_come_before_the_upload(hub, results, monkeypatch, capsys):
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
    with pytest.raises(ValueError, match='hf auth login'): push_to_hub(results, 'ada/flowers')
    assert main(['push', str(results), 'ada/flowers']) == 2 and 'needs a token with write access' in capsys.readouterr().err
    assert main(['push', str(results), 'flowers']) == 2 and 'Use OWNER/NAME' in capsys.readouterr().err
    assert main(['push', str(results/'nothing'), 'ada/flowers']) == 2 and "There is no folder" in capsys.readouterr().err
    assert main(['predict', 'hf://flowers', str(results)]) == 2 and 'Use OWNER/NAME' in capsys.readouterr().err
    assert not hub.asked


def test_the_command(hub, results, tmp_path, capsys):
    assert main(['push', str(results), 'ada/flowers', '--private']) == 0
    assert 'ada/flowers: model and card uploaded, private\nUse it anywhere: fastbit predict hf://ada/flowers IMAGES\n' in capsys.readouterr().out
    PIXELS.save(tmp_path/'a.png')
    assert main(['predict', 'hf://ada/flowers', str(tmp_path/'a.png')]) == 0 and 'a.png' in capsys.readouterr().out
    shutil.rmtree(results/'model')
    assert main(['push', str(results), 'ada/flowers']) == 2 and 'not a fastbit results folder' in capsys.readouterr().err
