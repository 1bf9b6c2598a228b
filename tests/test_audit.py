"Any body of timm: what fastbit relies on, by family"
import importlib.util
from pathlib import Path

import pandas as pd, pytest, timm

from fastbit.bodies.audit import audit_body

FAST = {   # a small member of 17 families -> what it goes on without
    'test_resnet': (), 'resnext26ts': (), 'regnetx_002': (), 'test_convnext': (), 'test_convnext2': (),
    'densenet121': (), 'mobilenetv3_small_050': (), 'ghostnet_050': (), 'repvgg_a0': (), 'test_nfnet': (),
    'hgnetv2_b0': (), 'mobilenetv4_conv_small_035': (), 'poolformerv2_s12': (), 'test_vit': (),
    'swin_tiny_patch4_window7_224': (),
    'deit_tiny_distilled_patch16_224': (), 'efficientvit_m0': ()}   # two classifiers; a norm before the classifier


@pytest.mark.parametrize('arch', FAST)
def test_audit(arch):
    found = audit_body(arch)
    assert not found.refused and set(found.failed) - {'folding'} <= set(FAST[arch]), found   # rounding depends on the CPU


TABLE = Path(__file__).parents[1]/'nbs'/'concepts'/'bodies.csv'   # of `python tools/audit.py`


MODULES = 64   # with the smallest bodies; all take five minutes
SLOW = ('halonet_h1',)   # as long as all others together: its attention takes 256 pixels


def _smallest_of_each_module() -> list:
    rows = pd.read_csv(TABLE).sort_values('params_m')
    rows = rows[~rows.checked.isin(SLOW)].drop_duplicates('module').head(MODULES)
    return [(r.checked, r.verdict) for r in rows.itertuples() if timm.is_model(r.checked)]


@pytest.mark.slow
@pytest.mark.parametrize('arch, verdict', _smallest_of_each_module())
def test_the_page_is_right(arch, verdict):
    spec = importlib.util.spec_from_file_location('audit_tool', TABLE.parents[2]/'tools'/'audit.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found = tool.full_audit(arch)
    assert (found.verdict == 'refused') == (verdict == 'refused'), found   # of the others rounding may decide
