"""The tensor form of a codebook: look-ups, working copies, and what a module goes through."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from codehead.codes import Codebook, build
from codehead.codes.table import CodewordTable
from codehead.errors import CodebookError

DESIGNS = ["minrandom", "sparse_random", "one_vs_all"]
PACKED = DESIGNS[:2]
CLASSES = 90


@pytest.fixture(params=DESIGNS)
def codebook(request: pytest.FixtureRequest) -> Codebook:
    return build(request.param, CLASSES, candidates=1) if "random" in request.param else build(request.param, CLASSES)


@pytest.fixture(params=PACKED)
def packed(request: pytest.FixtureRequest) -> Codebook:
    return build(request.param, CLASSES, candidates=1)


def matrix(codebook: Codebook) -> Tensor:
    return torch.from_numpy(codebook.to_array()).float()


def other(codebook: Codebook) -> CodewordTable:
    """A table of the same shape with other codewords."""
    return CodewordTable(build(codebook.design, CLASSES, seed=9, candidates=1))


def test_contents(codebook: Codebook) -> None:
    table = CodewordTable(codebook)
    assert (table.num_classes, table.length) == (CLASSES, codebook.length)
    assert table.is_ternary == codebook.is_ternary
    assert table.is_implicit == (codebook.design == "one_vs_all")
    assert torch.equal(table.signs(), matrix(codebook))
    assert table.signs().dtype == torch.float32


def test_only_planes_are_saved(codebook: Codebook) -> None:
    table = CodewordTable(codebook)
    table.signs()
    state = table.state_dict()
    names = {"minrandom": ["sign_plane"], "sparse_random": ["sign_plane", "support_plane"], "one_vs_all": []}
    assert list(state) == names[codebook.design]
    assert all(plane.dtype == torch.uint8 for plane in state.values())
    assert sum(plane.nbytes for plane in state.values()) == codebook.nbytes
    assert not list(table.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0, 4)])
def test_lookup(codebook: Codebook, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ids = torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    codewords = CodewordTable(codebook).lookup(ids)
    assert codewords.dtype == torch.float32
    assert torch.equal(codewords, matrix(codebook)[ids.long()])


@pytest.mark.parametrize("bad", [-1, -100, CLASSES])
def test_lookup_of_no_class(codebook: Codebook, bad: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        CodewordTable(codebook).lookup(torch.tensor([0, bad]))


def test_lookup_is_never_as_wide_as_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    table = CodewordTable(build("minrandom", 5000, candidates=1))
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        table.lookup(torch.tensor([1, 4999]))
    assert 0 < largest <= 2 * 8 * 8


def test_the_working_copy_is_kept(packed: Codebook) -> None:
    table = CodewordTable(packed)
    assert table.signs() is table.signs()
    table.reset_cache()
    assert torch.equal(table.signs(), matrix(packed))


def test_the_working_copy_follows_its_planes(packed: Codebook) -> None:
    table, new = CodewordTable(packed), other(packed)
    table.signs()
    table.load_state_dict(new.state_dict())
    assert torch.equal(table.signs(), new.signs())
    assert table.sign_plane is not None
    table.sign_plane.copy_(CodewordTable(packed).sign_plane)
    assert not torch.equal(table.signs(), new.signs())
    table.sign_plane = new.sign_plane
    assert torch.equal(table.signs(), new.signs())


@pytest.mark.parametrize("assign", [False, True])
def test_from_the_meta_device(codebook: Codebook, assign: bool) -> None:
    table = CodewordTable(codebook)
    with torch.device("meta"):
        empty = CodewordTable.empty(CLASSES, codebook.length, table.is_ternary, table.is_implicit)
        empty.signs()
    if not assign:
        empty.to_empty(device="cpu")
        empty.signs()
    empty.load_state_dict(table.state_dict(), assign=assign)
    assert torch.equal(empty.signs(), matrix(codebook))


def test_the_working_copy_moves_with_the_table(packed: Codebook) -> None:
    table = CodewordTable(packed)
    table.signs()
    assert table.to("meta").signs().device.type == "meta"


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, copy.deepcopy])
def test_casts_and_copies(codebook: Codebook, cast: object) -> None:
    table = CodewordTable(codebook)
    table.signs()
    changed = cast(table)  # type: ignore[operator]
    assert torch.equal(changed.signs(), matrix(codebook))
    assert changed.signs().dtype == torch.float32
    assert all(plane.dtype == torch.uint8 for plane in changed.buffers())


def test_copies_are_independent(packed: Codebook) -> None:
    table = CodewordTable(packed)
    table.signs()
    twin = copy.deepcopy(table)
    twin.load_state_dict(other(packed).state_dict())
    twin.signs()
    assert torch.equal(table.signs(), matrix(packed))


def test_pickles_are_small(packed: Codebook) -> None:
    table = CodewordTable(packed)
    fresh = len(pickle.dumps(table))
    table.signs()
    stream = io.BytesIO(pickle.dumps(table))
    assert len(stream.getvalue()) == fresh
    assert torch.equal(pickle.load(stream).signs(), matrix(packed))


def test_a_copy_made_for_inference_serves_in_training(packed: Codebook) -> None:
    table = CodewordTable(packed)
    with torch.inference_mode():
        table.signs()
    logits = torch.zeros(1, packed.length, requires_grad=True)
    (logits @ table.signs().T)[0, 3].backward()
    assert torch.equal(logits.grad, matrix(packed)[3:4])


def test_back_to_a_codebook(codebook: Codebook) -> None:
    table = CodewordTable(codebook)
    again = table.to_codebook(codebook.design, codebook.seed, codebook.params)
    assert again.checksum == codebook.checksum
    assert (again.design, again.seed, again.params) == (codebook.design, codebook.seed, codebook.params)


def test_a_damaged_table_is_no_codebook(packed: Codebook) -> None:
    table = CodewordTable(packed)
    assert table.sign_plane is not None
    table.sign_plane[1] = table.sign_plane[0]
    if table.support_plane is not None:
        table.support_plane[1] = table.support_plane[0]
    with pytest.raises(CodebookError, match="equal codewords for the classes 0 and 1"):
        table.to_codebook()


class Scores(nn.Module):
    """All token scores of bit logits, and the codewords of labels."""

    def __init__(self, codebook: Codebook) -> None:
        super().__init__()
        self.table = CodewordTable(codebook)

    def forward(self, bit_logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return bit_logits @ self.table.signs().T, self.table.lookup(ids)


@pytest.mark.parametrize("warm", [False, True])
def test_compiles_in_one_graph(codebook: Codebook, warm: bool) -> None:
    model = Scores(codebook)
    if warm:
        model.table.signs()
    bit_logits, ids = torch.randn(3, codebook.length), torch.tensor([[0, 7, CLASSES - 1]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for result, expected in zip(compiled(bit_logits, ids), model(bit_logits, ids), strict=True):
        torch.testing.assert_close(result, expected)


def test_exports(codebook: Codebook) -> None:
    model = Scores(codebook)
    arguments = (torch.randn(3, codebook.length), torch.tensor([[0, 7, CLASSES - 1]]))
    exported = torch.export.export(model, arguments)
    for result, expected in zip(exported.module()(*arguments), model(*arguments), strict=True):
        torch.testing.assert_close(result, expected)
    assert type(model.table.signs()) is Tensor


def test_the_largest_implicit_code_has_look_ups_but_no_matrix() -> None:
    table = CodewordTable(build("one_vs_all", 262_144))
    codeword = table.lookup(torch.tensor(262_143))
    assert codeword.shape == (262_144,)
    assert codeword.argmax() == 262_143
    with pytest.raises(CodebookError, match="too large to write out"):
        table.signs()


def test_repr_tells_the_kind() -> None:
    kinds = [repr(CodewordTable(build(design, 8))) for design in ("minimal", "sparse_random", "one_vs_all")]
    assert [kind.rstrip(")").split(", ")[-1] for kind in kinds] == ["binary", "ternary", "implicit"]
