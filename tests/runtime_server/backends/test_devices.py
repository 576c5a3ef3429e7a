import pytest

from runtime_server.backends.cuda_driver import Card
from runtime_server.backends.devices import CudaState, DeviceError, Missing, choose

CARD, OTHER = (Card(index, "Test Card", (8, 9), 24 * 10**9, 20 * 10**9) for index in range(2))
OLD = Card(0, "Old Card", (7, 5), 16 * 10**9, 15 * 10**9)
CUDA = CudaState((CARD, OTHER), driver=(13, 0))
NONE = CudaState(missing=(Missing("no driver of NVIDIA's", "install it"),))


@pytest.mark.parametrize(
    ("wish", "quantization", "cuda", "device", "reason"),
    [
        ("cpu", "int8", CUDA, "cpu", "as asked"),
        ("auto", "fp32", NONE, "cpu", "no driver"),
        ("auto", "int8", CUDA, "cpu", "stored as int8, and CUDA runs bf16 and int4"),
        ("auto", "bf16", CUDA, "cuda:0", "Test Card"),
        ("cuda", "int4", CUDA, "cuda:0", "as asked"),
        ("cuda:1", "bf16", CUDA, "cuda:1", "as asked"),
    ],
)
def test_the_device_and_why(wish: str, quantization: str, cuda: CudaState, device: str, reason: str) -> None:
    chosen = choose(wish, quantization, cuda)
    assert str(chosen) == device
    assert chosen.kind == device.partition(":")[0]
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("wish", "quantization", "cuda", "says", "hint"),
    [
        ("cuda", "bf16", NONE, "CUDA cannot be used here: no driver", "install it"),
        ("cuda:1", "int8", NONE, "CUDA cannot be used here", "install it"),
        ("auto", "bf16", NONE, "CUDA cannot be used here", "install it"),
        ("cuda:2", "bf16", CUDA, "no cuda:2: this machine has cuda:0 to cuda:1", "--device"),
        ("cuda:7", "bf16", CudaState((CARD,)), "only cuda:0", "--device"),
        ("cuda", "bf16", CudaState((OLD,)), "compute capability 8.0 is needed", "--device cpu"),
        ("cuda", "int8", CUDA, "stored as int8, and CUDA runs bf16 and int4", "--quantization bf16"),
        ("cpu", "int4", CUDA, "stored as int4, and the CPU runs int8 and fp32", "--quantization int8"),
    ],
)
def test_a_wish_that_cannot_be_met_is_an_error(
    wish: str, quantization: str, cuda: CudaState, says: str, hint: str
) -> None:
    with pytest.raises(DeviceError, match=says) as refused:
        choose(wish, quantization, cuda)
    assert hint in refused.value.hint
