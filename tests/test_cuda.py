"""What a GPU does otherwise than a CPU.

The first part needs no GPU: networks of fake tensors, which have a device, a shape and a precision but no values, show
which maps CUDA's own autocast makes in fp32.  The rest runs where there is a GPU and is skipped elsewhere.
"""
from argparse import Namespace
from collections import Counter

import pytest
import torch
from conftest import draws
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import alae
import common
import data
import faae
import invgan
import lia

DEVICE = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none here")
needs_bf16 = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)),
    reason="needs a CUDA GPU that computes in bf16, and there is none here")


# ------------------------------------------------------------------------------------- without a GPU: precisions

class Maps(TorchDispatchMode):
    """Counts the bytes of new tensors of 2^16 bytes or more, by precision."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out._is_view() and out.numel() * out.element_size() >= 2**16:
            self.bytes[out.dtype] += out.numel() * out.element_size()
        return out


def maps(build, device, grown=None):
    """Bytes of the maps that a pass makes in bf16 autocast on fake tensors of a device: dtype -> bytes.

    build() -> a model, a function of it.  `torch.autocast` refuses CUDA where there is none; its switches do not.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        model, forward = build()
        if grown:
            common.grow(*grown, model)
        before = torch.get_autocast_dtype(device)
        torch.set_autocast_enabled(device, True)
        torch.set_autocast_dtype(device, torch.bfloat16)
        try:
            with Maps() as counted:
                forward(model)
        finally:
            torch.set_autocast_enabled(device, False)
            torch.set_autocast_dtype(device, before)
            torch.clear_autocast_cache()
    return counted.bytes


def images(n=4, size=64):
    return torch.randn(n, 3, size, size, requires_grad=True)


NETWORKS = {
    "alae stylegan": lambda: (alae.ALAE("stylegan", (3, 64, 64), 64, 64, 4, "lrelu"),
                              lambda m: (m.G(torch.randn(4, 64)), m.E(m.see(images())))),
    "alae dcgan": lambda: (alae.ALAE("dcgan", (3, 64, 64), 64, 64, 1, "lrelu"),
                           lambda m: (m.G(torch.randn(4, 64)), m.E(images()))),
    "lia stylegan": lambda: (lia.LIA("encoder", "pixel", backbone="stylegan", image_shape=(3, 64, 64), nz=64, nw=64,
                                     width=4),
                             lambda m: (m.g(torch.randn(4, 64)), m.c(m.c.fit(images())), m.f(images()))),
    "invgan biggan": lambda: (invgan.InvGAN("biggan", (3, 32, 32), 64, 64),
                              lambda m: (m.G(torch.randn(4, 64)), m.D(images(size=32)))),
    "faae dcgan": lambda: (faae.Autoencoder("dcgan", (3, 64, 64), 64, 1, "faae"),
                           lambda m: (m.G(torch.randn(4, 64)), m.E(images()), m.D(images()))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_have_the_same_precision_on_cuda_and_cpu(name):
    grown = (4, 0.5) if "stylegan" in name else None
    on_cpu, on_cuda = (maps(NETWORKS[name], device, grown) for device in ("cpu", "cuda"))
    assert on_cuda[torch.bfloat16] > 2**22
    assert on_cuda[torch.bfloat16] == pytest.approx(on_cpu[torch.bfloat16], rel=0.1)
    assert on_cuda[torch.float32] <= 1.05 * on_cpu[torch.float32] + 0.05 * on_cuda[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_summed_in_fp32(dtype):
    x = (torch.randn(2, 3, 64, 64, dtype=torch.float64) * 3 + 1).to(dtype)
    y, mu, sigma = common.moments(x)
    assert (y.dtype, mu.dtype, sigma.dtype) == (dtype, torch.float32, torch.float32)
    # bf16: a sum is rounded once, and each square.  Added up in bf16, it would stay at 256, to which 1 adds nothing
    rtol = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(mu[..., 0, 0].double(), x.double().mean((2, 3)), rtol=rtol, atol=1e-6)
    own_sigma = y.double().square().mean((2, 3)).sqrt()         # of what is divided by it
    torch.testing.assert_close(sigma[..., 0, 0].double(), own_sigma, rtol=rtol, atol=0)


# ------------------------------------------------------------------------------------------------- with a GPU

def make(method, flags, device):
    """-> step(x, draws, amp) -> losses of one iteration, and the model: the same weights on every device."""
    torch.manual_seed(0)
    args = method.parse_args(flags)
    size = 28 if args.backbone == "mlp" else int(args.resolution)
    args.image_shape = (1 if args.backbone == "mlp" else 3, size, size)
    if method is faae:
        args.schedule_kimg = args.kimg
        model = faae.make_model(vars(args)).to(device)
        opt = faae.make_optimizers(model, args)
        return model, lambda x, draw, amp: faae.STEPS[args.objective](
            (model.G, model.E, model.D), opt, model.see(x), draws(lambda n: draw(args.nz, n)), amp, faae.hyper(args, 0))
    if method is alae:
        model, names, step = alae.ALAE(**alae.network_args(vars(args))), "FGED", alae.train_step
    elif method is lia:
        model, step = lia.Decoder(**lia.network_args(vars(args))), lia.decoder_step
        names = "phi", "g", "c"
    else:
        model, names, step = invgan.InvGAN(**invgan.network_args(vars(args))), "MGD", invgan.train_step
    model.to(device)
    nets = [getattr(model, name) for name in names]
    opt = Namespace(**{name: common.adam(net, 0.001, (0.0, 0.99)) for name, net in zip(names, nets, strict=True)})
    return model, lambda x, draw, amp: step(
        nets, opt, model.see(x), draws(lambda n: draw(args.nz, n)), args, amp, getattr(model, "mean_w", None))


def three_steps(method, flags, device, precision, n=8):
    """-> losses (3, number) of three iterations on the same images and codes, float64 on the CPU."""
    model, step = make(method, flags, device)
    for module in model.modules():              # the noise that a generator draws itself differs from device to device
        if isinstance(module, common.StyleLayer):
            assert not module.noise_gain.any()
    rng = torch.Generator().manual_seed(1)
    shape, losses = model.image_shape, []
    for _ in range(3):
        x = (torch.rand(n, *shape, generator=rng) * 2 - 1).to(device)
        out = step(x, lambda nz, k: torch.randn(k, nz, generator=rng).to(device), common.autocast(precision, device))
        losses.append([loss.item() for loss in out])
    return torch.tensor(losses, dtype=torch.float64)


SMALL = ["--width", "8"]
STEPS = {f"{method.__name__} {backbone}": (method, ["--backbone", backbone, *more, *SMALL])
         for method in (alae, faae, lia, invgan)
         for backbone, more in (("mlp", []), ("dcgan", ["--resolution", "32"]), ("stylegan", ["--resolution", "32"]))}
STEPS["invgan biggan"] = invgan, ["--backbone", "biggan", "--resolution", "32", *SMALL]
STEPS.update({f"faae {name}": (faae, ["--objective", name, "--backbone", "dcgan", "--resolution", "32", *SMALL])
              for name in faae.STEPS if name != "faae"})


@needs_gpu
@pytest.mark.parametrize("name", STEPS)
def test_steps_on_a_gpu_are_those_on_the_cpu(name):
    method, flags = STEPS[name]
    with torch.backends.cudnn.flags(allow_tf32=False):
        there = three_steps(method, flags, DEVICE, "fp32")
    here = three_steps(method, flags, torch.device("cpu"), "fp32")
    torch.testing.assert_close(there, here, rtol=0.01, atol=0.01)


@needs_bf16
@pytest.mark.parametrize("name", STEPS)
def test_bf16_steps_on_a_gpu_are_near_those_in_fp32(name):
    method, flags = STEPS[name]
    bf16, fp32 = three_steps(method, flags, DEVICE, "bf16"), three_steps(method, flags, torch.device("cpu"), "fp32")
    torch.testing.assert_close(bf16, fp32, rtol=0.15, atol=0.1)


@needs_bf16
def test_bf16_takes_little_more_than_half_the_memory_of_fp32():
    def peak(precision):
        flags = ["--backbone", "stylegan", "--resolution", "256", "--batch", "4"]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _, step = make(alae, flags, DEVICE)
        before = torch.cuda.memory_allocated()
        step(torch.rand(4, 3, 256, 256, device=DEVICE), lambda nz, k: torch.randn(k, nz, device=DEVICE),
             common.autocast(precision, DEVICE))
        return torch.cuda.max_memory_allocated() - before
    assert peak("bf16") < 0.7 * peak("fp32")


@needs_gpu
@pytest.mark.parametrize("name", ["alae stylegan", "alae dcgan", "lia stylegan", "invgan dcgan", "faae dcgan"])
def test_compiled_networks_are_the_plain_ones_on_a_gpu(name):
    method, flags = STEPS[name]
    model, _ = make(method, flags, DEVICE)
    G = {alae: "G", lia: "g", invgan: "G", faae: "G"}[method]
    w = torch.randn(8, model.nw, device=DEVICE)
    more = ["fixed"] if model.grows else []
    compiled, = common.compiled(getattr(model, G))
    torch.testing.assert_close(compiled(w, *more), getattr(model, G)(w, *more), rtol=1e-3, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("name", ["alae stylegan", "alae dcgan", "alae mlp", "faae dcgan", "lia stylegan",
                                  "invgan dcgan", "invgan stylegan"])
def test_runs_train_resume_and_load_on_a_gpu(name, script, tmp_path, image_folder):
    method, flags = STEPS[name]
    data_flags = [] if name.endswith("mlp") else ["--data", image_folder, "--batch", "8"]
    gpu = {"CUDA_VISIBLE_DEVICES": "0"}
    done = script(f"{method.__name__}.py", *flags, *data_flags, "--kimg", "0.5", "--out", "run", env=gpu)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False) and not name.endswith("mlp")
    assert f"precision {'bf16' if bf16 else 'fp32'}" in done.stdout
    script(f"{method.__name__}.py", "--resume", "run", "--kimg", "0.7", env=gpu)
    model = method.load(tmp_path / "run", DEVICE)
    x = model.generate(model.map(model.prior(4, torch.Generator(DEVICE).manual_seed(0))))
    assert x.device == DEVICE
    assert x.shape == (4, *model.image_shape)
    assert x.isfinite().all()
    on_cpu = method.load(tmp_path / "run", "cpu")
    w = torch.randn(4, model.nw)
    torch.testing.assert_close(model.generate(w.to(DEVICE)).cpu(), on_cpu.generate(w), rtol=0.02, atol=0.02)


@pytest.fixture
def image_folder(tmp_path):
    from PIL import Image
    (tmp_path / "images").mkdir()
    for i in range(40):
        pixels = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{i:02}.png")
    return tmp_path / "images"


@needs_gpu
def test_batches_of_large_sets_reach_the_gpu(image_folder, monkeypatch):
    monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    train, _ = data.load(str(image_folder), resolution="32")
    on_gpu = data.batches(train, 8, 0, 0, DEVICE, workers=1)
    on_cpu = data.batches(train, 8, 0, 0, torch.device("cpu"))
    for _ in range(3):
        batch = next(on_gpu)
        assert batch.device == DEVICE
        assert torch.equal(batch.cpu(), next(on_cpu))
