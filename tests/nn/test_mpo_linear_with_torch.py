"""MPOLinear within the rest of torch: compiled, exported, in half precision, copied, tied, distributed, transformed."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from unbraid.nn import MPOLinear, tensorize
from unbraid.tensors import MPO
from unbraid.tensors.contraction import Plan, rounded
from unbraid.tensors.prices import CACHE

BATCHES = (1, 3, 64, 300)


def layer(outs=60, ins=48, bond=3, bias=True, sites=3, dtype=None):
    dims = [(4,) * (sites - 1) + (-(-size // 4 ** (sites - 1)),) for size in (outs, ins)]
    mpo = MPO.random(*dims, bond, shape=(outs, ins), dtype=dtype)
    return MPOLinear(mpo, torch.linspace(-1, 1, outs) if bias else None)


def wide():
    """Large enough that every kind of plan is taken."""
    return MPOLinear(MPO.random((4,) * 5, (4,) * 5, 4, dtype=torch.float64), torch.randn(1024))


def dense(module, x):
    return nn.functional.linear(x, module.weight, module.bias)


# plans


def test_plans_follow_the_batch_and_what_is_wanted():
    module = MPOLinear(MPO.random((4,) * 5, (4,) * 5, 8))
    kinds = {module.plan(batch, training=False).describe() for batch in (1, 64, 1024)}
    assert len(kinds) > 1
    assert module.plan(1, training=True).describe() == "blocks of sites 0 to 1, 2, 3 to 4, the last one first"
    assert "rows at a time" in module.plan(1024, training=False).describe()
    assert MPOLinear(MPO.random((4,) * 5, (4,) * 5, 64)).plan(1024).describe() == "the dense weight is formed"
    assert module.plan(5) == module.plan(8)
    with torch.no_grad():
        assert module.plan(1024) == module.plan(1024, training=False)
    module.requires_grad_(False)
    assert module.plan(1024) == module.plan(1024, training=False)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("bias", [True, False])
def test_every_way_gives_the_same(batch, bias):
    module = layer(bias=bias, dtype=torch.float64)
    x = torch.randn(batch, 48, dtype=torch.float64)
    wanted = dense(module, x)
    assert torch.allclose(module(x), wanted)
    with torch.no_grad():
        assert torch.allclose(module(x), wanted)
        assert torch.allclose(module(x), wanted)  # from what was kept
        module.keeps_blocks = False
        assert torch.allclose(module(x), wanted)


WAYS = {
    "chunks from the first site": Plan(((0, 2), (2, 5)), True, 32, 0.0),
    "chunks from the last site": Plan(((0, 2), (2, 3), (3, 5)), False, 32, 0.0),
    "blocks": Plan(((0, 2), (2, 5)), True, 0, 0.0),
    "sweep": Plan(tuple((k, k + 1) for k in range(5)), False, 0, 0.0),
    "dense": Plan(((0, 5),), False, 0, 0.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_and_second_derivatives_of_a_wide_layer(way, monkeypatch):
    module = wide()
    monkeypatch.setattr(module, "_plan", lambda *_, **__: WAYS[way])
    x = torch.randn(100, 1024, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    found, wanted = (torch.autograd.grad(y.sin().sum(), inputs) for y in (module(x), dense(module, x)))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, wanted, strict=True))
    twice = []
    for function in (module, lambda x: dense(module, x)):
        slopes = torch.autograd.grad(function(x).sin().sum(), inputs, create_graph=True)
        twice.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), inputs))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max())) for a, b in zip(*twice, strict=True))
    module.requires_grad_(False)
    only = torch.autograd.grad(module(x).sin().sum(), x)[0]
    assert torch.allclose(only, found[0], atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_inputs_and_gradients_that_do_not_lie_in_order(way, monkeypatch):
    module = wide()
    monkeypatch.setattr(module, "_plan", lambda *_, **__: WAYS[way])
    x = torch.randn(1024, 100, dtype=torch.float64).mT.requires_grad_()
    inputs = [x, *module.parameters()]
    found, wanted = (torch.autograd.grad(y.mT.sum(), inputs) for y in (module(x), dense(module, x)))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        module.cores[1] = nn.Parameter(module.cores[1].transpose(1, 2).contiguous().transpose(1, 2))
    found, wanted = (torch.autograd.grad(y.sum(), list(module.cores)) for y in (module(x), dense(module, x)))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, wanted, strict=True))


def test_layers_share_what_is_written_again():
    one, other = wide(), wide()
    for module in (one, other):
        module._plan = lambda *_, **__: WAYS["dense"]
    x = torch.randn(64, 1024, dtype=torch.float64)
    found = torch.autograd.grad(other(torch.tanh(one(x))).sin().sum(), [*one.cores, *other.cores])
    y = dense(other, torch.tanh(dense(one, x)))
    wanted = torch.autograd.grad(y.sin().sum(), [*one.cores, *other.cores])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, wanted, strict=True))


def test_chunks_keep_no_activations():
    module = MPOLinear(MPO.random((4,) * 5, (4,) * 5, 8))
    assert module.plan(1024).rows
    kept = []
    x = torch.randn(1024, 1024)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(x)
    fresh = sum(t.numel() for t in kept if t.data_ptr() != x.data_ptr())
    assert fresh < CACHE


# what is kept


def test_kept_blocks_follow_every_change_of_the_cores():
    module = layer().eval()
    x = torch.randn(64, 48)

    def same():
        with torch.no_grad():
            wanted = dense(module, x)
            return bool(torch.dist(module(x), wanted) < 1e-5 * wanted.norm())

    assert same()
    with torch.no_grad():
        module.cores[0].mul_(2)
    assert same()
    module.cores[1].data = torch.randn_like(module.cores[1])
    assert same()
    module.cores[2] = nn.Parameter(torch.randn_like(module.cores[2]))
    assert same()
    module.load_state_dict(layer(bond=3).state_dict())
    assert same()
    module(x).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert same()
    module.double().float()
    assert same()
    module.cores[0].data.mul_(3)  # not seen: no counter tells
    assert not same()
    module.train().eval()
    assert same()


def test_what_is_kept_is_neither_copied_nor_saved():
    module = layer().eval()
    x = torch.randn(64, 48)
    with torch.no_grad():
        module(x)
    assert module._kept._made
    copied = copy.deepcopy(module)
    assert not copied._kept._made
    assert not pickle.loads(pickle.dumps(module))._kept._made
    assert set(module.state_dict()) == {"cores.0", "cores.1", "cores.2", "bias"}
    with torch.no_grad():
        copied.cores[0].mul_(2)
        assert torch.allclose(module(x), dense(module, x), atol=1e-5)
        assert torch.allclose(copied(x), dense(copied, x), atol=1e-5)


def test_inference_mode_and_training_take_turns():
    module = layer()
    x = torch.randn(64, 48)
    with torch.inference_mode():
        first = module(x)
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    module.requires_grad_(False)
    y = x.clone().requires_grad_()
    module(y).sum().backward()  # through kept blocks
    assert torch.allclose(y.grad, module.weight.sum(0).expand(64, -1), atol=1e-5)
    assert torch.allclose(first, dense(module, x), atol=1e-5)
    with torch.inference_mode():
        inside = layer()
        assert torch.allclose(inside(x), dense(inside, x), atol=1e-5)


# the rest of torch


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training):
    torch._dynamo.reset()
    module = layer().train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (4, 5, 6):  # from the second on with a symbolic size
        x = torch.randn(batch, 48, requires_grad=True)
        assert torch.allclose(compiled(x), dense(module, x), atol=1e-5)
    if training:
        compiled(x).sum().backward()
        assert torch.allclose(x.grad, module.weight.sum(0).expand(6, -1), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(compiled(x), dense(module, x), atol=1e-5)


@pytest.mark.parametrize("sites", [1, 3])
def test_exports_for_any_batch(sites):
    module = layer(sites=sites).eval()
    exported = torch.export.export(
        module, (torch.randn(5, 48),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    x = torch.randn(17, 48)
    assert torch.allclose(again(x), dense(module, x), atol=1e-5)


def test_no_gradient_is_summed_in_half_precision():
    module = MPOLinear(MPO.random((4,) * 5, (4,) * 5, 8))
    assert module.plan(1024).rows
    assert not module.bfloat16().plan(1024).rows


@pytest.mark.parametrize("batch", BATCHES)
def test_autocast_and_half_precision(batch):
    module = layer()
    x = torch.randn(batch, 48)
    exact = dense(module, x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        y.float().sum().backward()
        with torch.no_grad():
            kept = module(x)
    assert y.dtype == kept.dtype == torch.bfloat16
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())
    for found in (y, kept):
        assert torch.dist(found.float(), exact) < 0.02 * exact.norm()
    with torch.no_grad():
        assert torch.allclose(module(x), exact, atol=1e-4)  # what was kept under autocast has full precision
    half = copy.deepcopy(module).bfloat16()
    assert torch.dist(half(x.bfloat16()).float(), exact) < 0.03 * exact.norm()


def test_wide_layers_under_autocast():
    module = MPOLinear(MPO.random((4,) * 5, (4,) * 5, 8), torch.zeros(1024))
    assert module.plan(1024).rows
    x = torch.randn(1024, 1024, requires_grad=True)
    exact = dense(module, x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert torch.dist(y.float(), exact) < 0.02 * exact.norm()
    assert torch.dist(x.grad, module.weight.detach().sum(0).expand(1024, -1)) < 0.02 * x.grad.norm()


def test_tied_layers_train_together():
    tied = layer(48, 48, bias=False)
    model = nn.Sequential(tied, nn.Tanh(), tied)
    assert len(list(model.parameters())) == 3
    x = torch.randn(10, 48)
    model(x).sum().backward()
    grads = [core.grad.clone() for core in tied.cores]
    weight = tied.weight
    y = nn.functional.linear(torch.tanh(nn.functional.linear(x, weight)), weight).sum()
    for found, wanted in zip(grads, torch.autograd.grad(y, list(tied.cores)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)


def test_a_layer_that_stands_in_two_places_is_replaced_in_both():
    shared = nn.Linear(16, 16)
    model = tensorize(nn.Sequential(shared, nn.ReLU(), shared), max_bond=2)
    assert model[0] is model[2]
    assert isinstance(model[0], MPOLinear)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0, 3)])
def test_leading_dimensions(shape):
    module = layer(bias=False)
    x = torch.randn(*shape, 48)
    assert torch.allclose(module(x), dense(module, x), atol=1e-5)
    with torch.no_grad():
        assert module(x).shape == (*shape, 60)


def test_transforms_of_torch_func():
    module = layer(dtype=torch.float64)
    values = {name: value.detach() for name, value in module.named_parameters()}
    x = torch.randn(5, 48, dtype=torch.float64)

    def loss(values, row):
        return torch.func.functional_call(module, values, (row,)).sin().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x)
    whole = torch.func.grad(loss)(values, x)
    for name, found in each.items():
        assert torch.allclose(found.sum(0), whole[name])
    stacked = {name: torch.stack([value, 2 * value]) for name, value in values.items()}
    with torch.no_grad():
        both = torch.func.vmap(lambda v: torch.func.functional_call(module, v, (x,)))(stacked)
    assert torch.allclose(both[0], dense(module, x))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/join", rank=0, world_size=1)
    try:
        module = layer()
        parallel = nn.parallel.DistributedDataParallel(module)
        x = torch.randn(9, 48)
        parallel(x).sum().backward()
        found = [parameter.grad.clone() for parameter in module.parameters()]
        wanted = torch.autograd.grad(dense(module, x).sum(), list(module.parameters()))
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_batches_share_plans_by_powers_of_two():
    assert [rounded(batch) for batch in (0, 1, 2, 3, 1024, 1025, 2**40)] == [1, 1, 2, 4, 1024, 2048, 2**20]


def test_fused_optimizers_are_seen():
    module, x = layer(), torch.randn(8, 48)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        with torch.no_grad():
            assert torch.allclose(module(x), dense(module, x), atol=1e-4)
        module(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert torch.allclose(module(x), dense(module, x), atol=1e-4)


def test_compiled_embeddings_and_exports_of_any_number_of_rows():
    torch._dynamo.reset()
    table = tensorize(nn.Embedding(50, 12), "", max_bond=3)
    compiled = torch.compile(table, fullgraph=True, backend="aot_eager")
    for rows in (4, 5, 7):
        index = torch.arange(rows)
        assert torch.allclose(compiled(index), table(index), atol=1e-6)
    dim = torch.export.Dim("rows", min=2)
    exported = torch.export.export(table, (torch.arange(5),), dynamic_shapes=({0: dim},)).module()
    assert torch.allclose(exported(torch.arange(17)), table(torch.arange(17)), atol=1e-6)


def _gradients_of_a_half(rank, folder):
    torch.manual_seed(0)
    module, x = layer(), torch.randn(8, 48)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    try:
        parallel = nn.parallel.DistributedDataParallel(module)
        parallel(x[4 * rank : 4 * rank + 4]).square().mean().backward()
        torch.save([parameter.grad for parameter in module.parameters()], f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(_gradients_of_a_half, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    module, x = layer(), torch.randn(8, 48)
    module(x).square().mean().backward()
    for rank in (0, 1):
        for found, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), module.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad)
