"""What runs on a GPU, against the same on the CPU. Skipped where PyTorch sees none."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distsage.config import LocalConfig
from distsage.features.resident import ResidentRows, input_rows, keep_on_gpu
from distsage.features.slots import gathered_input
from distsage.kernels.rng import Purpose, stream_key
from distsage.model import inference, tensor_ops
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.sampling.sampler import Sampler
from distsage.train import local
from distsage.train.batches import Batch
from distsage.train.feeding import feed, pinned
from tests.unit.graphs import random_topology

if not torch.cuda.is_available():
    pytest.skip("PyTorch sees no GPU here", allow_module_level=True)

ROOT = Path(__file__).parents[2]
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
N, F = 3000, 50
TOPOLOGY = random_topology(N, 40_000)
X = torch.from_numpy(np.random.default_rng(5).standard_normal((N, F), "f4"))
LABELS = torch.arange(N) % 7


def batch(step: int, num_layers: int = 2, resident: ResidentRows | None = None) -> Batch:
    sampler = Sampler(TOPOLOGY, [5, 6, 7][:num_layers], number_inputs=True)
    seeds = np.random.default_rng(step).choice(N, 200, replace=False)
    keys = [stream_key(0, 0, 0, step, p) for p in (Purpose.SAMPLE, Purpose.DROPOUT)]
    sampled = sampler.sample(seeds, *keys)
    inputs = gathered_input(sampled, input_rows((X,), sampled.input_gid, resident))
    return Batch(inputs, sampled.blocks, sampled.key, LABELS[torch.from_numpy(seeds)], 200)


def on_gpu(one: Batch) -> Batch:
    (there,) = feed([pinned(one)], GPU)
    return there


def logits_and_gradients(model: GraphSAGE, one: Batch) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(one.inputs, one.blocks, one.key)
    torch.nn.functional.cross_entropy(logits, one.labels).backward()
    return [t.detach().cpu() for t in (logits, *(p.grad for p in model.parameters()))]


@pytest.fixture(autouse=True)
def exact_products():
    assert not torch.backends.cuda.matmul.allow_tf32  # or float32 would have 11 bits


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_logits_and_gradients_are_those_of_the_cpu(num_layers, precision):
    found = []
    for device in (CPU, GPU):
        model = GraphSAGE(F, 64, 7, num_layers, dropout=0.0, precision=precision).to(device)
        one = batch(0, num_layers)
        found.append(logits_and_gradients(model, on_gpu(one) if device == GPU else one))
    near = 1e-4 if precision == torch.float32 else 0.05
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= near * a.norm()


def test_two_runs_of_a_batch_are_equal_to_the_last_bit():
    """With dropout: masks are a function of the key, and sums have an order."""
    found = []
    for _ in range(2):
        model = GraphSAGE(F, 64, 7, 2, dropout=0.5).to(GPU)
        torch.rand(1000, device=GPU)  # the device's own generator counts for nothing
        found.append(logits_and_gradients(model, on_gpu(batch(3))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_gradient_of_a_source_with_thousands_of_destinations():
    rows = torch.zeros(1, 16, dtype=torch.bfloat16, device=GPU, requires_grad=True)
    sources = torch.zeros(4096, dtype=torch.int32, device=GPU)
    mean = tensor_ops.segment_mean(rows.float(), torch.arange(4097, device=GPU), sources)
    mean.bfloat16().sum(0).float().sum().backward()
    assert rows.grad.float().tolist() == [[4096.0] * 16]


@pytest.mark.parametrize("first", [0, 1000, 2500])
def test_resident_rows_need_not_travel(first):
    model = GraphSAGE(F, 64, 7, 2, dropout=0.0).to(GPU)
    resident = ResidentRows(first, X[first:2800].to(GPU))
    partly = batch(1, resident=resident)
    (rows,) = partly.inputs.tables
    assert len(rows.rows) < rows.resident_at.numel() + len(rows.rows)
    expected = logits_and_gradients(model, on_gpu(batch(1)))
    found = logits_and_gradients(model, on_gpu(partly))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_rows_are_kept_on_the_gpu_as_far_as_they_fit(monkeypatch):
    own, cached = X[:2000], X[2000:]
    for free, expected in ((2**30, (0, N)), (2 * 250_000, (2000, 1000)), (1000, None)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        kept = keep_on_gpu(own, cached, GPU)
        assert (kept and (kept.first, len(kept.rows))) == expected
    assert keep_on_gpu(own, cached, CPU) is None


def test_many_batches_arrive_whole_and_in_order():
    """While one is computed, copies of the next ones are under way, from memory used in turn."""
    expected = [batch(step) for step in range(8)]
    for i, one in enumerate(feed((pinned(batch(i % 8)) for i in range(64)), GPU)):
        torch.cuda._sleep(1_000_000)  # the device is busy
        (rows,) = one.inputs.tables
        (host_rows,) = expected[i % 8].inputs.tables
        assert torch.equal(rows.cpu(), host_rows)
        indices = torch.from_numpy(expected[i % 8].blocks[0].indices)
        assert torch.equal(one.blocks[0].indices.cpu(), indices)


@pytest.mark.parametrize("share", [1e-7, 1e-5, 0.1])
def test_inference_in_pieces_is_that_of_the_cpu(share, monkeypatch):
    model = GraphSAGE(F, 64, 7, 3, dropout=0.5).eval()
    expected = infer(model, TOPOLOGY, X)
    monkeypatch.setattr(inference, "_SHARE_OF_GPU", share)
    found = infer(model.to(GPU), TOPOLOGY, X)
    assert found.device == CPU
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def run(run_dir: Path, **options) -> dict:
    options = {"dataset": "synthetic:5000", "num_epochs": 3, "num_workers": 0, **options}
    return local.train(LocalConfig(run_dir=run_dir, **options))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_local_run_learns_what_the_cpu_learns(tmp_path, precision):
    found = {
        device: run(tmp_path / device, device=device, dropout=0.0, precision=precision)
        for device in ("cpu", "cuda")
    }
    assert found["cuda"]["device"] == "cuda"
    assert abs(found["cpu"]["val"]["accuracy"] - found["cuda"]["val"]["accuracy"]) < 0.02


def test_a_local_run_can_be_repeated_to_the_last_bit(tmp_path):
    losses = []
    for i in range(2):
        run(tmp_path / str(i), device="auto", num_workers=i)
        lines = (tmp_path / str(i) / "epochs.jsonl").read_text().splitlines()
        losses.append([line.split('"seconds"')[0] for line in lines])
    assert losses[0] == losses[1]


def test_device_cpu_never_touches_the_gpu(tmp_path):
    program = (
        "import sys, torch\n"
        "from distsage.cli import main\n"
        "main(sys.argv[1:])\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    arguments = ["local", "--dataset", "synthetic:2000", "--num-epochs", "1", "--device", "cpu"]
    command = [sys.executable, "-c", program, *arguments, "--run-dir", str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
