"""The host's side of GPU kernels: checks, launches and their order, errors, what is refused; without a GPU."""

from __future__ import annotations

import importlib
import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hpcps_kernels import SPECS, load
from hpcps_kernels.gpu import FAMILIES
from hpcps_kernels.gpu._launch import THREADS, Instance, one_each, strides
from hpcps_kernels.gpu._nccl import Nccl
from hpcps_kernels.gpu._source import source
from hpcps_kernels.gpu.found import look
from hpcps_kernels.gpu.gradient import cuts
from hpcps_kernels.gpu.reduce import lanes_for
from hpcps_kernels.gpu.table import LEFT_OUT, GpuKernels
from on_cpu import Compiled, DeviceArray, OnCpu, on_device

ONES = np.ones(6, np.float32)


@pytest.fixture
def device(compiled: Compiled) -> OnCpu:
    return OnCpu(compiled)


def test_every_family_is_there_or_left_out_with_a_reason(device: OnCpu) -> None:
    assert set(FAMILIES) | set(LEFT_OUT) == {spec.module for spec in SPECS.values()}
    assert not set(FAMILIES) & set(LEFT_OUT)
    with pytest.raises(AttributeError, match="parse_libsvm is not there on a GPU: text is parsed on the host"):
        _ = GpuKernels(device).parse_libsvm
    with pytest.raises(AttributeError, match="kernels: there is none called 'conv'"):
        _ = GpuKernels(device).conv


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (ONES, TypeError, "sgd: gradient must be a CuPy array, not ndarray"),
        (on_device(np.ones(6)), TypeError, "sgd: gradient must be float32 as params is, not float64"),
        (
            on_device(np.ones(5, "f4")),
            ValueError,
            "sgd: gradient must have shape (n,) with n = 6 as in params, not (5,)",
        ),
        (on_device(np.ones(12, "f4"))[::2], ValueError, "sgd: gradient must be C-contiguous, not with strides (8,)"),
        (
            DeviceArray(np.zeros(25, "u1")[1:].view("f4"), ONES),
            ValueError,
            "sgd: gradient must be aligned to its dtype, not at address 0x",
        ),
        (DeviceArray(ONES, ONES, device_id=1), ValueError, "sgd: gradient must be on GPU 0, not on GPU 1"),
    ],
)
def test_a_wrong_argument_is_named(device: OnCpu, wrong, error, says: str) -> None:
    kernels = GpuKernels(device)
    params = on_device(ONES)
    for _ in range(2):  # a refused layout is not remembered
        with pytest.raises(error) as caught:
            kernels.sgd(params, wrong, 0.1, 0.0, 0.0, 1.0)
        assert str(caught.value).startswith(says)
    assert device.done == []


def test_a_bound_kernel_and_threads_of_the_host(device: OnCpu) -> None:
    kernels, params = GpuKernels(device), on_device(ONES)
    kernels.sgd.bind(params, on_device(ONES))(0.5, 0.0, 0.0, 1.0)
    kernels.sgd(params, on_device(ONES), 0.25, 0.0, 0.0, 1.0, threads=4)
    np.testing.assert_array_equal(params.view_on_host, ONES / 4)


def test_a_dense_step_is_one_launch_that_nobody_waits_for(device: OnCpu) -> None:
    a, b, c, d = (on_device(np.zeros(1000)) for _ in range(4))
    GpuKernels(device).adam(a, b, c, d, 0.1, 0.9, 0.99, 1e-8, 1, 0.0, 0.0, 1.0)
    assert device.done == ["dense<double, Adam>"]


def test_rows_are_looked_over_before_they_are_updated_and_the_host_waits_once(device: OnCpu) -> None:
    table, gradient = on_device(np.zeros((9, 3))), on_device(np.ones((2, 3)))
    kernels = GpuKernels(device)
    kernels.sgd_rows(table, gradient, on_device(np.array([7, 0])), 1.0, 0.0, 0.0, 1.0)
    assert device.done == ["numbers_below<i64>", "rows<double, Sgd>", "read"]
    before = table.view_on_host.copy()
    for bad in (-1, 9, 2**62):
        with pytest.raises(IndexError, match=r"sgd_rows: an index is outside 0\.\.N-1"):
            kernels.sgd_rows(table, gradient, on_device(np.array([3, bad])), 1.0, 0.0, 0.0, 1.0)
    np.testing.assert_array_equal(table.view_on_host, before)


def test_a_loss_with_its_gradient_waits_once_also_where_entries_are_looked_over(device: OnCpu) -> None:
    kernels, floats = GpuKernels(device), [on_device(np.ones(3)) for _ in range(4)]
    entries = on_device(np.arange(4)), on_device(np.arange(3).astype(np.int32)), floats[0]
    gradient, bias = on_device(np.zeros(3)), on_device(np.zeros(1))
    model = floats[1], on_device(np.zeros(1))
    kernels.csr_loss_gradient(gradient, bias, *entries, floats[2], floats[3][:0], *model, "logistic", 1.0)
    assert device.done.count("read") == 1
    assert device.done[-1] == "read"
    labels = on_device(np.full(3, 2.0))
    with pytest.raises(ValueError, match="logistic: a label is neither 0 nor 1"):
        kernels.csr_loss_gradient(gradient, bias, *entries, labels, floats[3][:0], *model, "logistic", 1.0)


def test_nothing_to_do_is_no_launch(device: OnCpu) -> None:
    nothing = on_device(np.zeros(0, np.float32))
    GpuKernels(device).add_into(nothing, nothing)
    assert device.done == []


def test_what_is_wrong_in_the_data_is_an_error(device: OnCpu) -> None:
    kernels, one, none = GpuKernels(device), on_device(np.ones(1)), on_device(np.ones(0))
    with pytest.raises(ValueError, match="logistic: a label is neither 0 nor 1"):
        kernels.point_loss(one, on_device(np.full(1, 2.0)), none, "logistic", 1.0)
    with pytest.raises(ValueError, match="huber: delta is not positive"):
        kernels.point_loss(one, one, none, "huber", 0.0)
    with pytest.raises(ValueError, match=r"softmax: a label is outside 0\.\.K-1"):
        kernels.softmax_loss(on_device(np.ones((1, 3))), on_device(np.array([3])), none)
    codes, scales = on_device(np.zeros(4, np.int8)), on_device(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="an element is not finite"):
        kernels.quantize_int8(codes, scales, on_device(np.float32([0, 1, np.inf, 2])), 4, "nearest", 0, 0)
    zero = on_device(np.array([0]))
    with pytest.raises(ValueError, match="the adds leave another number of sums"):
        kernels.sum_tree(on_device(np.ones((2, 3))), on_device(np.ones((1, 3))), zero, zero)


@pytest.mark.parametrize(("indptr", "column"), [([0, 5], 0), ([2, 1], 0), ([-1, 1], 0), ([0, 1], 4), ([0, 1], -1)])
def test_malformed_samples_are_errors_and_nothing_is_written(device: OnCpu, indptr: list[int], column: int) -> None:
    kernels, out = GpuKernels(device), on_device(np.full((1, 2), 5.0))
    entries = on_device(np.array(indptr)), on_device(np.full(3, column, np.int32)), on_device(np.ones(3))
    table = on_device(np.full((4, 2), 7.0))
    with pytest.raises(IndexError, match="entries outside"):
        kernels.bag_forward(out, *entries, table, "sum")
    with pytest.raises(IndexError, match="entries outside"):
        kernels.bag_backward(table, *entries, out, "mean")
    with pytest.raises(IndexError, match="entries outside"):
        kernels.csr_softmax_scores(out, *entries, table, on_device(np.zeros(2)))
    ones = on_device(np.ones(4))
    with pytest.raises(IndexError, match="outside"):
        kernels.gather_csr(on_device(np.zeros((1, 4))), *entries, on_device(np.array([0])), ones, ones)
    assert (out.view_on_host == 5).all()
    assert (table.view_on_host == 7).all()


def test_grids() -> None:
    few, most = strides(THREADS), 16 * 132
    assert [few(n, 132) for n in (0, 1, 256, 257, 10**9)] == [0, 1, 1, 2, most]
    assert one_each(5, 1) == one_each(5, 1000) == 5
    assert [lanes_for(n) for n in (0, 1, 2, 3, 17, 32, 33, 1000)] == [1, 1, 2, 4, 32, 32, 32, 32]


@pytest.mark.parametrize("classes", [1, 10, 1000])
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 5000, 10**6])
def test_cuts_cover_the_samples_and_go_by_their_number_alone(n: int, classes: int) -> None:
    found = cuts(7, 7 + n, classes)
    assert found == [7 + place for place in cuts(0, n, classes)]
    assert (found[0], found[-1]) == (7, 7 + n)
    assert all(low < high for low, high in pairwise(found)) or n == 0
    assert len(found) <= 514


def test_a_source_is_one_text_and_every_header_is_in_it_once() -> None:
    text = source("codec")
    assert "#include" not in text
    assert text.count("typedef long long i64;") == 1
    assert text.index("u64 mixed") < text.index("quantize_int8")


# CuPy's side, on a CuPy that only writes down what it is asked for.


class FakeRuntimeError(RuntimeError):
    """In the place of CUDARuntimeError."""


def fake_cupy(version: str = "14.0.0", gpus: int = 2, driver: int = 13000) -> SimpleNamespace:
    """As much of CuPy as is used to open a device and to launch; `asked` is what it was asked for, in order."""
    asked: list[object] = []

    class Device:
        def __init__(self, number: int) -> None:
            self.number, self.attributes, self.compute_capability = number, {"MultiProcessorCount": 132}, "90"

        def __enter__(self) -> None:
            asked.append(("use", self.number))

        def __exit__(self, *error: object) -> None:
            asked.append("before")

    class RawModule:
        def __init__(self, **given: object) -> None:
            asked.append(given)

        def get_function(self, name: str):
            return lambda grid, block, arguments: asked.append((name, grid, block, arguments))

    def count() -> int:
        if not gpus:
            raise FakeRuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return gpus

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=FakeRuntimeError, driverGetVersion=lambda: driver)
    cuda = SimpleNamespace(runtime=runtime, Device=Device)
    return SimpleNamespace(asked=asked, __version__=version, ndarray=DeviceArray, cuda=cuda, RawModule=RawModule)


@pytest.fixture
def with_cupy(monkeypatch):
    def use(fake: SimpleNamespace):
        compiled: set[Instance] = set()

        def kept(instance: Instance, architecture: int) -> SimpleNamespace:
            assert instance not in compiled
            compiled.add(instance)
            return SimpleNamespace(path=f"{instance.file}.{architecture}", name=instance.expression)

        monkeypatch.setitem(sys.modules, "cupy", fake)
        monkeypatch.setitem(sys.modules, "hpcps_kernels.gpu._nvrtc", SimpleNamespace(kept=kept, version=tuple))
        monkeypatch.delitem(sys.modules, "hpcps_kernels.gpu._cupy", raising=False)
        return importlib.import_module("hpcps_kernels.gpu._cupy")

    yield use
    sys.modules.pop("hpcps_kernels.gpu._cupy", None)


def test_a_kernel_is_compiled_once_and_launched_on_its_device(with_cupy) -> None:
    fake = fake_cupy()
    kernels = GpuKernels(with_cupy(fake).CupyDevice(1))
    arrays = [DeviceArray(ONES, ONES, device_id=1) for _ in range(2)]
    for _ in range(2):
        kernels.axpy(*arrays, 0.5)
    use, module, launched, *rest = fake.asked
    assert use == ("use", 1)
    assert module == {"path": "reduce.90"}
    assert launched == ("axpy<float>", (1,), (THREADS,), (*arrays, 6, 0.5))
    assert rest == ["before", use, launched, "before"]


@pytest.mark.parametrize(
    ("fake", "says"),
    [
        (fake_cupy(gpus=0, driver=0), "there is no NVIDIA driver on this machine"),
        (fake_cupy(gpus=0), "no GPU can be used: cudaErrorNoDevice"),
        (fake_cupy(gpus=1), r"there is no GPU 1; 1 seen, counted from 0"),
        (fake_cupy(version="12.3.0"), r"CuPy 12\.3\.0 is too old; 14 or newer is needed"),
    ],
)
def test_why_there_is_no_table_is_one_line(with_cupy, fake: SimpleNamespace, says: str) -> None:
    found = with_cupy(fake)
    with pytest.raises(RuntimeError, match=f"^kernels: {says}") as caught:
        found.CupyDevice(1)
    assert "\n" not in str(caught.value)


def test_a_stream_waits_for_kernels_and_kernels_for_it(with_cupy) -> None:
    asked: list[tuple[object, ...]] = []

    class Event:
        def __init__(self, **given: bool) -> None:
            assert given == {"disable_timing": True}

        def record(self, stream: object = None) -> None:
            asked.append(("record", stream))

    class Stream:
        def __init__(self, **given: bool) -> None:
            assert given == {"non_blocking": True}

        def wait_event(self, event: Event) -> None:
            asked.append(("wait", self))

        def synchronize(self) -> None:
            asked.append(("synchronize", self))

        def record(self, event: Event) -> Event:
            event.record(self)
            return event

    Event.done = False  # CuPy's is a property, too
    fake = fake_cupy()
    current, fake.cuda.Stream, fake.cuda.Event = object.__new__(Stream), Stream, Event
    fake.cuda.get_current_stream = lambda: current
    stream = with_cupy(fake).CupyStream()
    own = stream._stream
    copied: list[tuple[object, ...]] = []
    array = SimpleNamespace(
        data=SimpleNamespace(
            copy_to_host_async=lambda *given: copied.append(given),
            copy_from_host_async=lambda *given: copied.append(given),
        )
    )
    stream.follow()
    stream.to_host(ONES, array)
    stream.to_device(array, ONES)
    stream.precede()
    stream.synchronize()
    assert asked == [("record", None), ("wait", own), ("record", own), ("wait", current), ("synchronize", own)]
    assert copied == [(ONES.ctypes.data, ONES.nbytes, own)] * 2
    mark = stream.mark()
    assert asked[5:] == [("record", own)]
    assert not mark.done()
    Event.done = True
    assert mark.done()


def test_constants_are_made_once_and_read_without_the_device(with_cupy) -> None:
    made, fake = [], fake_cupy()
    fake.asarray = lambda array: made.append(array) or on_device(array)
    device = with_cupy(fake).CupyDevice(0)
    first = device.constant((0, 3, 7))
    assert device.constant((0, 3, 7)) is first
    np.testing.assert_array_equal(device.read(first), [0, 3, 7], strict=True)
    for number in range(1000):
        device.constant((number,))
    assert device.constant((0, 3, 7)) is not first  # not all are kept
    assert len(made) == 1002


@pytest.mark.parametrize("is_there", [True, False])
def test_nccl_is_what_cupy_finds(with_cupy, monkeypatch, is_there) -> None:
    fake, asked = fake_cupy(), []
    fake.cuda.runtime.runtimeGetVersion = lambda: 13020
    fake.cuda.nccl = SimpleNamespace(available=is_there, NCCL_SUM=0, NCCL_FLOAT32=7, NCCL_FLOAT64=8)
    fake.cuda.nccl.get_unique_id = lambda: b"\1" * 128

    def communicator(*given: object) -> SimpleNamespace:
        return SimpleNamespace(allReduce=lambda *told: asked.append((given, told)))

    fake.cuda.nccl.NcclCommunicator = communicator
    device = with_cupy(fake).CupyDevice(1)
    monkeypatch.setitem(sys.modules, "cupy.cuda", fake.cuda)
    if not is_there:
        with pytest.raises(RuntimeError, match=r"^CuPy finds no NCCL: pip install nvidia-nccl-cu13$"):
            device.nccl()
        return
    nccl, x = device.nccl(), DeviceArray(ONES, ONES, device_id=1)
    nccl.communicator(2, nccl.unique_id(), 1).add_up(x, SimpleNamespace(ptr=9))
    assert asked == [((2, b"\1" * 128, 1), (x.data.ptr, x.data.ptr, ONES.size, 7, 0, 9))]


def test_the_nccl_of_the_cupy_that_is_installed_is_asked_rightly() -> None:
    """Needs no GPU: an id can be made, a communicator cannot."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("cupy.cuda.nccl")
    if not module.available:
        pytest.skip("CuPy finds no NCCL")
    nccl = Nccl(module)
    assert len(nccl.unique_id()) == 128
    if look().obstacle:
        with pytest.raises(RuntimeError, match="unhandled cuda error"):
            nccl.communicator(1, nccl.unique_id(), 0)


def test_memory_of_the_host_is_unpinned_when_nobody_has_it_and_copied_unpinned_where_it_cannot_be(with_cupy) -> None:
    fake, pinned = fake_cupy(), []

    def register(address: int, size_bytes: int, flags: int) -> None:
        if size_bytes > 100:
            raise FakeRuntimeError("cudaErrorHostMemoryAlreadyRegistered")
        pinned.append((address, size_bytes, flags))

    fake.cuda.runtime.hostRegister = register
    fake.cuda.runtime.hostUnregister = lambda address: pinned.append(address)
    device = with_cupy(fake).CupyDevice(0)
    array, large = np.zeros(5), np.zeros(50)
    address = array.ctypes.data
    device.pin(array)
    device.pin(large)
    assert pinned == [(address, 40, 1)]
    del array
    assert pinned[1:] == [address]


def test_without_cupy_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "hpcps_kernels.gpu._cupy", raising=False)
    load.cache_clear()
    with pytest.raises(RuntimeError, match=r"kernels: CuPy is needed: pip install 'hpcps\[cuda13\]'"):
        load("gpu")
