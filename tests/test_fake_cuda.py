"""The fake device is what the tests of the packages take it for."""

import pytest
import torch

from conftest import random_prompts, tiny_llama
from fake_cuda import CUDA, move


@pytest.mark.parametrize(
    "operation",
    [
        lambda cpu, cuda: cpu + cuda,
        lambda cpu, cuda: torch.cat([cuda, cpu]),
        lambda cpu, cuda: cpu[cuda],
        lambda cpu, cuda: cuda.index_put_([cuda[:1]], cpu[:1]),
        lambda cpu, cuda: cuda.gather(0, cpu),
        lambda cpu, cuda: cpu.sum().add_(cuda.sum()),
        lambda cpu, cuda: torch.nn.functional.embedding(cpu, cuda.float()[:, None]),
        lambda cpu, cuda: torch.rand(3, device=CUDA, generator=torch.Generator()),
        lambda cpu, cuda: cuda.numpy(),
    ],
)
def test_two_devices_do_not_mix(device, operation):
    with pytest.raises((RuntimeError, TypeError)):
        operation(torch.arange(3), torch.arange(3, device=CUDA))


@pytest.mark.parametrize("inference", [False, True])
def test_what_cuda_allows_has_its_values(device, inference):
    with torch.inference_mode(inference):
        x = torch.tensor([0, 1, 2], device=CUDA)
        x[[1]] = 7
        x[x > 6] = 5
        x[2:] = torch.tensor([4])
        y = (x + torch.tensor(1))[torch.tensor([0, 2])]
        assert (x.device, y.device, y.to(CUDA).device, x.new_tensor([1]).device) == (CUDA,) * 4
        assert (x.tolist(), y.tolist(), x[1].item(), y.cpu().device.type) == ([0, 5, 4], [1, 5], 5, "cpu")


def test_a_training_step_is_that_of_the_cpu(device):
    ids, mask = random_prompts(2, 5)

    def step(model, ids, mask):
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        model(input_ids=ids, attention_mask=mask).logits.logsumexp(-1).sum().backward()
        optimizer.step()
        return [weight.detach().cpu() for weight in model.parameters()]

    expected = step(tiny_llama(1, 1), ids, mask)
    torch.testing.assert_close(step(move(tiny_llama(1, 1)), ids.to(CUDA), mask.to(CUDA)), expected)
