"""How fast are the parts that fastbit computes in another way than PyTorch, each against PyTorch's own way?

    python benchmarks/kernels.py [--repeats 5] [--arch NAME ...]

Prints ratios of the shortest of several calls, on the threads that PyTorch uses (OMP_NUM_THREADS=1: one). *Gradient*:
the weight gradient of a depthwise 5 x 5 convolution as PyTorch computes it, divided by fastbit's, and by PyTorch's for
3 x 3. *Standardization*: fastbit's weight standardization divided by that of timm's `StdConv2d`. *Pooling*: BiT's max
pooling in channels-last memory, copies included, divided by PyTorch's contiguous one. *Memory format*: forward and
backward of 16 images, contiguous divided by channels-last, for each body. No images, no downloads; it takes three
minutes. The pages of the modules `conv_grad`, `fused`, `inference` and `stages` quote these ratios.
"""
import argparse, time

import timm, torch, torch.nn.functional as F
from torch import nn

from fastbit.bodies.conv_grad import depthwise_weight_grad
from fastbit.bodies.inference import ChannelsLastPool

# channels and side of EfficientNet-Lite0's depthwise 5 x 5 convolutions at 64 and at 128 pixels
MAPS = ((144, 8), (240, 4), (672, 4), (1152, 2), (240, 8), (672, 8), (1152, 4))
BODIES = ('tf_efficientnet_lite0', 'efficientnet_b0', 'mobilenetv3_small_100', 'mobilenetv4_conv_small', 'resnet50',
          'regnety_004', 'regnety_016', 'densenet121', 'convnext_atto', 'resnetv2_50x1_bit')


def ratio(a, b, repeats) -> float:
    "Time of `a` divided by that of `b`: of each the shortest of calls in turns, so that other work counts little"
    times = {a: [], b: []}
    for _ in range(repeats + 1):   # the first ones warm up
        for f in times:
            start = time.perf_counter()
            f()
            times[f].append(time.perf_counter() - start)
    return min(times[a])/min(times[b])


def torch_grad(x, out, kernel):
    "PyTorch's weight gradient of a depthwise convolution"
    weight = torch.zeros(x.shape[1], 1, kernel, kernel)
    args = [1, 1], [kernel//2]*2, [1, 1], False, [0, 0], x.shape[1], [False, True, False]
    return lambda: torch.ops.aten.convolution_backward(out, x, weight, None, *args)


def gradients(repeats, images=32):
    for channels, side in MAPS:
        x = torch.randn(images, channels, side, side).contiguous(memory_format=torch.channels_last)
        out = torch.randn_like(x)
        wide, narrow = (torch_grad(x, out, k) for k in (5, 3))
        ours = lambda: depthwise_weight_grad(x, out, (5, 5), (1, 1), (2, 2))
        print(f'gradient, {channels} channels of {side} x {side}: PyTorch / fastbit {ratio(wide, ours, repeats):.1f}, '
              f'PyTorch 5 x 5 / 3 x 3 {ratio(wide, narrow, repeats):.1f}', flush=True)


def standardization(repeats, shape=(512, 512, 3, 3)):
    weight = torch.randn(shape, requires_grad=True)
    rows = weight.view(1, shape[0], -1)   # as timm's `StdConv2d` has them
    theirs = lambda: F.batch_norm(rows, None, None, training=True, momentum=0., eps=1e-8).sum().backward()
    ours = lambda: F.layer_norm(rows, rows.shape[2:], eps=1e-8).sum().backward()
    print(f'standardization, forward and backward: fastbit / timm {ratio(ours, theirs, 10*repeats):.2f}')


def pooling(repeats, images=8):
    pool = nn.MaxPool2d(3, stride=2)
    x = torch.randn(images, 64, 66, 66)   # of BiT at 128 pixels
    ours = ChannelsLastPool(pool)
    with torch.inference_mode(): found = ratio(lambda: ours(x), lambda: pool(x), 10*repeats)
    print(f'pooling: fastbit / PyTorch {found:.2f}')


def trained(arch, side, form, images=16):
    "A call that goes forwards and backwards through a body in a memory format"
    torch.manual_seed(0)
    net = timm.create_model(arch, num_classes=10).train().to(memory_format=form)
    x, target = torch.randn(images, 3, side, side).contiguous(memory_format=form), torch.randint(10, (images,))
    return lambda: F.cross_entropy(net(x), target).backward()


def memory_formats(archs, repeats):
    for arch in archs:
        for side in (64, 128):
            forms = torch.contiguous_format, torch.channels_last
            found = ratio(*(trained(arch, side, form) for form in forms), repeats)
            print(f'memory format, {arch}, {side} px: contiguous / channels-last {found:.2f}', flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--arch', action='append', help='a body of timm; otherwise a few')
    args = p.parse_args()
    torch.manual_seed(0)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f'PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s), {capability}')
    gradients(args.repeats)
    standardization(args.repeats)
    pooling(args.repeats)
    memory_formats(args.arch or BODIES, args.repeats)


if __name__ == '__main__': main()
